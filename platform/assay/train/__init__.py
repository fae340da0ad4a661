"""What learns: tasks, the loop, workers, streams."""

"""From settings to a trained, judged and exported run."""

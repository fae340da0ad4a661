"""Learning without labels: losses, the networks that they are between, and their schedules."""

"""What ships: sealed graphs that answer without torch, and the registry that says which of them does."""

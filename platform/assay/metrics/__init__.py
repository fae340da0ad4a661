"""Numbers from a predictions table: estimates, decisions, comparisons."""

"""Small data sets with planted truth, drawn from a seed."""

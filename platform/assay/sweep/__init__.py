"""Many experiments: searches, folds, and what they say together."""

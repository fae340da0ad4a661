"""Scores as pure functions of arrays: what val says in training, and what judging computes too."""

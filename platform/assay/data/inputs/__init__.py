"""Pixels to arrays: what a network is shown, the same in training, judging and serving."""

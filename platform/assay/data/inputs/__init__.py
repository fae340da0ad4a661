"""Pixels to arrays: what a network is shown, the same in training, judging and serving."""

import os

os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # importing it asks no network

"""Algorithms of domain generalisation, each on one interface (see `base`)."""

"""Assay: distributed experiments for manufacturing vision on Ray."""

__version__ = "0.1.0"

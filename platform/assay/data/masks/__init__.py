"""Masks: given or made by rules, checked, and drawn over images."""

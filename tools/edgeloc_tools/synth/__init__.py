"""Procedural scenes with exact ground truth."""

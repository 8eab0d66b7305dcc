"""Readers that turn recordings on disk into one in-memory form."""

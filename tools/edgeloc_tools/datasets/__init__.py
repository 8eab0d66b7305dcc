"""Readers that turn recordings on disk into one in-memory form."""

from edgeloc_tools.datasets.registry import FORMATS, open_recording, select_frames

__all__ = ["FORMATS", "open_recording", "select_frames"]

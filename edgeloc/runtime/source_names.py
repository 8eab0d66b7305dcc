"""What the text after ``--camera`` says before anything is opened."""

from __future__ import annotations

import re

DEVICE = re.compile(r"(/dev/video)?\d+")
SCHEME = re.compile(r"([a-zA-Z][a-zA-Z0-9+.-]*)://")


def is_pipeline(text: str) -> bool:
    """Return whether the text is a GStreamer pipeline."""
    return " ! " in text


def seems_live(text: str) -> bool:
    """Return whether the text names a camera or stream rather than files.

    A video behind a URL also seems live; only opening it tells.
    """
    return bool(is_pipeline(text) or SCHEME.match(text) or DEVICE.fullmatch(text))

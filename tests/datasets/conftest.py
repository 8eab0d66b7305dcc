"""Makers of tiny recordings."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest

WIDTH, HEIGHT = 32, 24


@pytest.fixture
def write_image() -> Callable[..., Path]:
    """A function that writes a 32x24 image whose pixels tell `value`."""

    def write(path: Path, value: int = 0, size: tuple[int, int] = (WIDTH, HEIGHT)):
        path.parent.mkdir(parents=True, exist_ok=True)
        image = np.full((size[1], size[0], 3), value, np.uint8)
        assert cv2.imwrite(str(path), image)
        return path

    return write


@pytest.fixture
def write_depth() -> Callable[..., Path]:
    """A function that writes a 16-bit depth image of one value."""

    def write(path: Path, value: int, size: tuple[int, int] = (WIDTH, HEIGHT)):
        path.parent.mkdir(parents=True, exist_ok=True)
        assert cv2.imwrite(str(path), np.full((size[1], size[0]), value, np.uint16))
        return path

    return write


@pytest.fixture
def write_text() -> Callable[[Path, str], Path]:
    """A function that writes a text file and its folders."""

    def write(path: Path, text: str) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
        return path

    return write

"""Scenes shared by the tests of the renderer (making one takes a second)."""

from __future__ import annotations

import pytest

from edgeloc.types import CameraModel
from edgeloc_tools.synth.scene import Scene, make_room, make_street


@pytest.fixture(scope="session")
def room() -> Scene:
    return make_room(3)


@pytest.fixture(scope="session")
def street() -> Scene:
    return make_street(3, 30.0)


@pytest.fixture
def vga() -> CameraModel:
    return CameraModel(
        model="PINHOLE", width=640, height=480, params=(500.0, 500.0, 320.0, 240.0)
    )


@pytest.fixture
def small() -> CameraModel:
    return CameraModel(
        model="PINHOLE", width=160, height=120, params=(125.0, 125.0, 80.0, 60.0)
    )

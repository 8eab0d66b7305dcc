"""Fixtures shared by all tests."""

from __future__ import annotations

import logging
import zlib
from collections.abc import Iterator
from pathlib import Path

# Before pycolmap, whatever a test imports first: see edgeloc_tools.mapping.sfm_colmap.
import cv2  # noqa: F401
import numpy as np
import pytest

pytest_plugins = ("site_fixture",)

REPOSITORY = Path(__file__).resolve().parent.parent


# Several processes with deadlines: one test at a time, or they disturb each other.
_REAL_TIME = ("scenarios/", "cli/test_run_", "evaluate/test_deadline", "test_memory")


def pytest_itemcollected(item: pytest.Item) -> None:
    """Keep a file's tests, and all those in real time, on one worker of xdist."""
    if not item.config.pluginmanager.hasplugin("xdist"):
        return
    name = item.location[0].replace("\\", "/")
    real_time = any(part in name for part in _REAL_TIME)
    item.add_marker(pytest.mark.xdist_group("real time" if real_time else name))


@pytest.fixture
def rng(request: pytest.FixtureRequest) -> np.random.Generator:
    """A generator seeded by the test's own name, so that failures repeat."""
    return np.random.default_rng(zlib.crc32(request.node.name.encode()))


@pytest.fixture(autouse=True)
def _no_log_handlers_left() -> Iterator[None]:
    """A command run in this process logs to the stderr of its own test only."""
    yield
    logging.getLogger("edgeloc").handlers.clear()


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real recordings; skips visibly when it is absent."""
    path = REPOSITORY.parent / "shared" / "data"
    if not path.is_dir():
        pytest.skip("the real recordings (../shared/data) are not here")
    return path

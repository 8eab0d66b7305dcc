"""Fixtures of the scripts for boards."""

from __future__ import annotations

import shutil
import sys

import pytest
from board_scripts import Board


@pytest.fixture
def board(tmp_path):
    """Folders of a board, and a way to run its scripts."""
    if sys.platform == "win32" or shutil.which("bash") is None:
        pytest.skip("the scripts are for Linux")
    return Board(tmp_path)

"""What the tests of the commands share."""

from __future__ import annotations

import importlib.util
import json
import logging
import sys
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import pytest

from edgeloc.cli import run

FAKE_RUN = Path(__file__).with_name("fake_run.py")


@dataclass(frozen=True)
class Outcome:
    code: int
    out: str
    err: str

    @property
    def records(self):
        return [json.loads(line) for line in self.out.splitlines()]


@pytest.fixture(scope="session")
def fake_run_path():
    return FAKE_RUN


@pytest.fixture(scope="session")
def fake():
    """The module `fake_run`."""
    spec = importlib.util.spec_from_file_location("fake_run", FAKE_RUN)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]


@pytest.fixture
def images(tmp_path):
    """A folder with five pictures."""
    folder = tmp_path / "images"
    folder.mkdir()
    for idx in range(5):
        picture = np.full((48, 64, 3), 40 * idx, np.uint8)
        assert cv2.imwrite(str(folder / f"{idx}.png"), picture)
    return folder


@pytest.fixture
def site(tmp_path, fake):
    return fake.make_fake_site(tmp_path / "site")


@pytest.fixture
def edgeloc_run(monkeypatch, capsys, fake):
    """Call the command in this process, with the fake site and estimator."""
    for name, module in fake.fake_modules().items():
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setattr(run, "WORKER", fake.WORKER)
    logger = logging.getLogger("edgeloc")
    before = logger.handlers, logger.propagate, logger.level

    def call(*arguments):
        try:
            code = run.main([str(argument) for argument in arguments])
        except SystemExit as exc:  # argparse leaves this way
            code = exc.code
        captured = capsys.readouterr()
        return Outcome(code=code, out=captured.out, err=captured.err)

    yield call
    logger.handlers, logger.propagate = before[:2]
    logger.setLevel(before[2])

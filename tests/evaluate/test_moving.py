"""The figure of masks: what is said of a crowd is measured in one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from edgeloc.features.segment import open_segmenter
from edgeloc_tools.evaluate import moving
from edgeloc_tools.evaluate.moving import (
    CAMERA,
    Outcome,
    dressed_in_magenta,
    hidden_share,
    report,
    unmasked,
)
from edgeloc_tools.synth.colour_segmenter import write_colour_segmenter
from edgeloc_tools.synth.movers import make_crowd
from edgeloc_tools.synth.record import Capture, synth_recording
from edgeloc_tools.synth.scene import make_room
from edgeloc_tools.synth.trajectory import room_walk


def test_the_network_finds_the_crowd_that_is_drawn(tmp_path: Path) -> None:
    room = make_room(1)
    crowd = dressed_in_magenta(make_crowd(3, CAMERA, coverage=0.4))
    recording = synth_recording(
        room.with_movers([crowd]),
        room_walk(1, room.extent_m, duration_s=20.0),
        CAMERA,
        capture=Capture(num_frames=2, rate_hz=0.5),
        depth=False,
    )
    assert hidden_share(recording) == pytest.approx(0.4, abs=0.03)
    assert hidden_share(unmasked(recording)) == 0.0
    segmenter = open_segmenter(write_colour_segmenter(tmp_path))
    for image in recording.images:
        true = image.read_mask() == 0
        found = segmenter.keep_mask(image.source.read()) == 0
        assert np.count_nonzero(true & found) / np.count_nonzero(true | found) > 0.85


def test_the_table_compares_with_the_empty_room() -> None:
    def outcome(name: str, recall: float) -> Outcome:
        return Outcome(
            name=name,
            recall=recall,
            median_m=0.01,
            num_wrong=0,
            hidden=0.4,
            num_landmarks=1000,
        )

    table = report([outcome("empty room", 0.8), outcome("crowd, masks", 0.6)])
    assert "| crowd, masks | 40.0 % | 1,000 | 60.0 % | 75.0 % | 1.00 cm | 0 |" in table


@pytest.mark.slow
def test_masks_recover_the_recall_of_the_empty_room(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = ["--out", str(tmp_path), "--mapping", "40", "--queries", "20"]
    assert moving.main(argv) == 0
    rows = capsys.readouterr().out.splitlines()[2:]
    empty, without, masked = (
        float(row.split("|")[4].strip().removesuffix(" %")) for row in rows
    )
    assert empty > 90.0
    assert without <= masked
    assert masked >= 100 * moving.WANTED * empty / 100

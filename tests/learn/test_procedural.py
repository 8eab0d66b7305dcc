"""Procedural recordings that are kept on disk."""

from __future__ import annotations

import numpy as np
import pytest

from edgeloc.errors import DatasetError
from edgeloc_tools.learn import procedural
from edgeloc_tools.learn.photo_pairs import ViewOptions
from edgeloc_tools.learn.posed_frames import load_posed_frames
from edgeloc_tools.learn.procedural import ProceduralOptions, procedural_recordings

OPTIONS = ProceduralOptions(count=2, num_frames=3, width=96, height=72, seed=40)


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    folder = tmp_path_factory.mktemp("procedural") / "cache"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(procedural, "_STREET_M", 20.0)
        told = []
        procedural_recordings(
            folder, options=OPTIONS, progress=lambda *args: told.append(args)
        )
    assert told == [
        ("procedural recordings", 1, 2),
        ("procedural recordings", 2, 2),
    ]
    return folder


def test_a_room_and_a_street_with_pose_and_depth(cache):
    assert sorted(path.name for path in cache.iterdir()) == [
        "room-40-3x96x72-v1",
        "street-41-3x96x72-v1",
    ]
    views = ViewOptions(width=64, height=48)
    for recording in procedural_recordings(cache, options=OPTIONS):
        assert recording.metric
        assert len(recording.images) == 3
        frames = load_posed_frames(recording, options=views)
        assert len(frames.frames) == 3
        assert len(frames.pairs) >= 2
        assert np.ptp(frames.frames[0].photo.image) > 100


def test_what_is_there_is_not_made_again(cache, monkeypatch):
    made = []

    def make(place, kind, seed, _options):
        made.append((place.name, kind, seed))
        raise DatasetError("made")

    monkeypatch.setattr(procedural, "_make", make)
    assert len(procedural_recordings(cache, options=OPTIONS)) == 2
    assert made == []
    more = ProceduralOptions(count=3, num_frames=3, width=96, height=72, seed=40)
    with pytest.raises(DatasetError, match=r"^made$"):
        procedural_recordings(cache, options=more)
    assert made == [("room-42-3x96x72-v1", "room", 42)]

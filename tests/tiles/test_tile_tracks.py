"""Which keyframes see which landmarks: there and back, in few bits."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeloc.errors import TileFormatError
from edgeloc.tiles.bits import NumberReader, encode_numbers, offsets_of
from edgeloc.tiles.container import Section
from edgeloc.tiles.tracks import decode_tracks, encode_tracks, runs_of, track_order


def reader(payload: bytes) -> NumberReader:
    return NumberReader(
        Section(tag="VIDS", codec=4, payload=memoryview(payload), offset=64)
    )


def flat(tracks: list[list[int]]) -> tuple[np.ndarray, np.ndarray]:
    rows = np.array([k for track in tracks for k in track], dtype=np.int64)
    return rows, offsets_of([len(track) for track in tracks])


def test_runs_are_found_within_each_landmark():
    runs = runs_of(*flat([[0, 1, 2, 5], [6, 7], [0]]))
    assert runs.starts.tolist() == [0, 5, 6, 0]
    assert runs.lengths.tolist() == [3, 1, 2, 1]
    assert runs.offsets.tolist() == [0, 2, 3, 4]


def test_landmarks_are_ordered_by_their_runs_and_unseen_ones_come_last():
    tracks = [[4], [], [0, 1, 9], [0, 1], [0], [4], [], [0, 1, 9], [300]]
    order = track_order(*flat(tracks))
    assert order.tolist() == [4, 3, 2, 7, 0, 5, 8, 1, 6]
    assert track_order(*flat([])).tolist() == []
    assert track_order(*flat([[], []])).tolist() == [0, 1]


track = st.sets(st.integers(0, 9), min_size=1, max_size=10).map(sorted)
lists = st.lists(st.lists(track, min_size=1, max_size=12), max_size=3)


@settings(max_examples=200)
@given(lists=lists, twice=st.booleans())
def test_tracks_come_back(lists, twice):
    """In any order, with the same one several times in a row, in several lists."""
    if twice:
        lists = [[t for t in one for _ in range(2)] for one in lists]
    tracks = [t for one in lists for t in one]
    rows, offsets = flat(tracks)
    sizes = np.array([len(one) for one in lists], dtype=np.int64)
    payload, groups = encode_tracks(
        rows, offsets, list_starts=np.cumsum(sizes) - sizes, num_keyframes=10
    )
    taker = reader(payload)
    found, counts = decode_tracks(
        taker,
        num_groups=groups,
        list_sizes=sizes,
        num_keyframes=10,
        num_visible=len(rows),
    )
    taker.finish()
    assert found.tolist() == rows.tolist()
    assert counts.tolist() == [len(t) for t in tracks]


def walk(rng: np.random.Generator, num_landmarks: int, num_keyframes: int):
    """Landmarks that are seen while a camera passes, with gaps, some once more."""
    tracks = []
    for _ in range(num_landmarks):
        seen = np.zeros(num_keyframes, bool)
        for _ in range(1 + (rng.uniform() < 0.2)):
            start = rng.integers(0, num_keyframes)
            seen[start : start + rng.geometric(0.12)] = True
        seen &= rng.uniform(size=num_keyframes) < 0.85
        if seen.any():
            tracks.append(np.flatnonzero(seen).tolist())
    return tracks


def test_a_walk_takes_two_bits_per_pair(rng):
    tracks = walk(rng, 4000, 120)
    rows, offsets = flat(tracks)
    order = track_order(rows, offsets)
    tracks = [tracks[i] for i in order]
    rows, offsets = flat(tracks)
    payload, groups = encode_tracks(
        rows, offsets, list_starts=np.array([0]), num_keyframes=120
    )
    assert groups < len(tracks)
    assert 8 * len(payload) / len(rows) < 2.4
    # Gaps between the landmarks of each keyframe, the obvious way, in the same order.
    by_keyframe = np.lexsort(
        (np.repeat(np.arange(len(tracks)), np.diff(offsets)), rows)
    )
    landmark = np.repeat(np.arange(len(tracks)), np.diff(offsets))[by_keyframe]
    gaps = np.maximum(np.diff(landmark, prepend=0), 0)
    assert len(payload) < 0.6 * len(encode_numbers(gaps))


def numbers(*sequences: list[int]) -> bytes:
    return b"".join(encode_numbers(np.array(s, np.int64)) for s in sequences)


@pytest.mark.parametrize(
    ("payload", "groups", "sizes", "visible", "message"),
    [
        (b"", 0, [], 1, "no landmarks that are seen 1 times"),
        (b"", 1, [], 0, "has 1 groups of 0 landmarks"),
        (b"", 3, [2], 4, "has 3 groups of 2 landmarks that are seen 4 times"),
        (b"", 2, [2], 1, "has 2 groups of 2 landmarks that are seen 1 times"),
        (b"", 1, [1, 1], 2, "has 1 groups of 2 landmarks"),
        (numbers([2]), 1, [2], 4, "groups that do not end where their landmarks do"),
        (numbers([1, 0]), 2, [1, 2], 4, "groups that do not end where their"),
        (numbers([0], [5]), 1, [1], 4, "holds the number 5, expected at most 4"),
        (numbers([0], [4], [0], [1]), 1, [1], 2, "ends at keyframe 6 of 5"),
        (numbers([0], [0], [3], [0]), 1, [1], 2, "has 4 runs of 2 visible landmarks"),
        (
            numbers([0], [0], [1], [0], [0], [4]), 1, [1], 2,
            "ends at keyframe 7 of 5",
        ),
        (numbers([0], [0], [0], [0]), 1, [1], 2, "are seen 1 times in all, expected 2"),
        (numbers([0], [0], [0], [0], [1]), 1, [1], 1, "has 5 bytes after its last"),
    ],
)  # fmt: skip
def test_damaged_tracks_are_refused(payload, groups, sizes, visible, message):
    def read() -> None:
        taker = reader(payload)
        decode_tracks(
            taker,
            num_groups=groups,
            list_sizes=np.array(sizes, np.int64),
            num_keyframes=5,
            num_visible=visible,
        )
        taker.finish()

    with pytest.raises(TileFormatError, match=message):
        read()


def test_a_tile_without_keyframes_sees_nothing():
    with pytest.raises(TileFormatError, match="seen by none of no keyframes"):
        decode_tracks(
            reader(b""),
            num_groups=1,
            list_sizes=np.array([1]),
            num_keyframes=0,
            num_visible=1,
        )

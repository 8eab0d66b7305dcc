"""Which keyframes see which landmarks, in one to two bits per pair.

Written landmark by landmark: a landmark is seen by a few runs of neighbouring
keyframes, and landmarks that are sorted by their runs repeat each other. What is stored
are sequences of small numbers (`edgeloc.tiles.bits`): how many landmarks in a row have
the same keyframes; where the first run begins, as the difference to the landmark
before; the number of runs; their lengths; the gaps between them.

Measured on an indoor map of 120 keyframes and 13,000 landmarks (95,000 pairs): 1.5 bits
per pair; lists of landmarks per keyframe take 4.6 bits with Rice-coded gaps in the same
order, 8 as bytes, and an adaptive coder with the best of simple contexts 1.5.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from edgeloc.tiles.bits import NumberReader, encode_numbers, offsets_of, ranges
from edgeloc.types import BoolArray, IntArray

MAX_VISIBLE = 2**22
"""Pairs of keyframe and landmark in a tile."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Runs:
    """Runs of consecutive keyframes, grouped.

    Parameters
    ----------
    starts, lengths : ndarray of shape (R,), int64
        First keyframe and number of keyframes of each run.
    offsets : ndarray of shape (G + 1,), int64
        Runs of group i: [offsets[i], offsets[i + 1]); at least one each.
    """

    starts: IntArray
    lengths: IntArray
    offsets: IntArray


def runs_of(keyframe_rows: IntArray, offsets: IntArray) -> Runs:
    """Return the runs of each list of keyframes.

    Parameters
    ----------
    keyframe_rows : ndarray of shape (V,), int64
        Ascending within each list.
    offsets : ndarray of shape (N + 1,), int64
        Of lists that are not empty.
    """
    begins = np.ones(len(keyframe_rows), dtype=np.bool_)
    begins[1:] = keyframe_rows[1:] != keyframe_rows[:-1] + 1
    begins[offsets[:-1]] = True
    first = np.flatnonzero(begins)
    return Runs(
        starts=keyframe_rows[first],
        lengths=np.diff(first, append=len(keyframe_rows)),
        offsets=np.searchsorted(first, offsets),
    )


def track_order(keyframe_rows: IntArray, offsets: IntArray) -> IntArray:
    """Return landmarks sorted by the runs of keyframes that see them, unseen ones last.

    Parameters
    ----------
    keyframe_rows : ndarray of shape (V,), int64
        Keyframes that see landmark 0, those that see landmark 1, ...; ascending.
    offsets : ndarray of shape (P + 1,), int64
        Of the landmarks.

    Returns
    -------
    ndarray of shape (P,), int64
        Equal ones keep their order.
    """
    counts = np.diff(offsets)
    seen = np.flatnonzero(counts)
    unseen = np.flatnonzero(counts == 0)
    runs = runs_of(keyframe_rows, offsets_of(counts[seen]))
    num_runs = np.diff(runs.offsets)
    # One row of edges per landmark, big-endian, so that bytes compare as numbers do.
    edges = np.zeros((len(seen), 2 * int(num_runs.max(initial=0))), dtype=">u4")
    row = np.repeat(np.arange(len(seen)), num_runs)
    column = 2 * (np.arange(len(row)) - np.repeat(runs.offsets[:-1], num_runs))
    edges[row, column] = runs.starts
    edges[row, column + 1] = runs.starts + runs.lengths
    keys = [edge.tobytes() for edge in edges]
    order = sorted(range(len(seen)), key=keys.__getitem__)
    return np.concatenate([seen[np.array(order, dtype=np.int64)], unseen])


def _same_as_before(runs: Runs) -> BoolArray:
    """Return whether the runs of a group are those of the group before, (G,)."""
    counts = np.diff(runs.offsets)
    same = np.zeros(len(counts), dtype=np.bool_)
    same[1:] = counts[1:] == counts[:-1]
    candidates = np.flatnonzero(same)
    own = ranges(runs.offsets[candidates], counts[candidates])
    before = ranges(runs.offsets[candidates - 1], counts[candidates])
    differs = (runs.starts[own] != runs.starts[before]) | (
        runs.lengths[own] != runs.lengths[before]
    )
    owner = np.repeat(candidates, counts[candidates])
    same[owner[differs]] = False
    return same


def encode_tracks(
    keyframe_rows: IntArray,
    offsets: IntArray,
    *,
    list_starts: IntArray,
    num_keyframes: int,
) -> tuple[bytes, int]:
    """Return the keyframes that see each of some landmarks, as bits.

    Parameters
    ----------
    keyframe_rows : ndarray of shape (V,), int64
        Keyframes of the tile that see the first landmark, the second, ...; ascending.
    offsets : ndarray of shape (N + 1,), int64
        Of the landmarks; each is seen.
    list_starts : ndarray of shape (L,), int64
        Where the landmarks of another tile begin: nothing is told relative to the
        landmark before.
    num_keyframes : int
        Of the tile.

    Returns
    -------
    payload : bytes
    num_groups : int
        Landmarks in a row that are seen by the same keyframes count as one.
    """
    if len(offsets) == 1:
        return b"", 0
    runs = runs_of(keyframe_rows, offsets)
    begins = ~_same_as_before(runs)
    begins[list_starts] = True
    group = np.flatnonzero(begins)
    first_run = runs.offsets[group]
    num_runs = np.diff(runs.offsets)[group]
    chosen = ranges(first_run, num_runs)
    later = np.ones(len(chosen), dtype=np.bool_)
    later[np.cumsum(num_runs) - num_runs] = False
    ends = runs.starts + runs.lengths

    starts, lengths = runs.starts[first_run], runs.lengths[first_run] - 1
    new_list = np.isin(group, list_starts)
    step = np.where(new_list, starts, np.diff(starts, prepend=0)) % num_keyframes
    fresh = new_list | (step != 0)
    growth = np.where(fresh, lengths, np.diff(lengths, prepend=0)) % num_keyframes
    gaps = runs.starts[chosen[later]] - ends[chosen[later] - 1] - 1
    parts = (
        np.diff(group, append=len(offsets) - 1) - 1,
        step,
        num_runs - 1,
        growth,
        runs.lengths[chosen[later]] - 1,
        gaps,
    )
    return b"".join(encode_numbers(part) for part in parts), len(group)


def _running_sum(values: IntArray, begins: BoolArray) -> IntArray:
    """Return cumulative sums that begin anew where `begins` is true."""
    total = np.cumsum(values)
    first = np.flatnonzero(begins)
    before = total[first] - values[first]
    return np.asarray(total - np.repeat(before, np.diff(first, append=len(values))))


def decode_tracks(
    reader: NumberReader,
    *,
    num_groups: int,
    list_sizes: IntArray,
    num_keyframes: int,
    num_visible: int,
) -> tuple[IntArray, IntArray]:
    """Return what `encode_tracks` was given.

    Parameters
    ----------
    reader : NumberReader
        Of the section.
    num_groups : int
        As `encode_tracks` gave it; bounded here.
    list_sizes : ndarray of shape (L,), int64
        Landmarks of each list, none empty.
    num_keyframes, num_visible : int
        Keyframes of the tile, and pairs, at most `MAX_VISIBLE`.

    Returns
    -------
    keyframe_rows : ndarray of shape (V,), int64
        Ascending within each landmark.
    counts : ndarray of shape (N,), int64
        Keyframes of each landmark.

    Raises
    ------
    TileFormatError
        When it is something else.
    """
    num = int(list_sizes.sum())
    if not num <= num_visible or not min(num, len(list_sizes)) <= num_groups <= num:
        raise reader.fail(
            f"has {num_groups} groups of {num} landmarks that are seen {num_visible} "
            "times"
        )
    if num == 0:
        if num_visible:
            raise reader.fail(f"has no landmarks that are seen {num_visible} times")
        return np.zeros(0, np.int64), np.zeros(0, np.int64)
    if num_keyframes == 0:
        raise reader.fail("has landmarks that are seen by none of no keyframes")
    top = num_keyframes - 1
    repeats = reader.read(num_groups, limit=num) + 1
    group_ends = np.cumsum(repeats)
    list_ends = np.cumsum(list_sizes)
    last = np.searchsorted(group_ends, list_ends)
    if int(group_ends[-1]) != num or np.any(group_ends[last] != list_ends):
        raise reader.fail("has groups that do not end where their landmarks do")
    new_list = np.zeros(num_groups, dtype=np.bool_)
    new_list[0] = True
    new_list[last[:-1] + 1] = True

    step = reader.read(num_groups, limit=top)
    starts = _running_sum(step, new_list) % num_keyframes
    num_runs = reader.read(num_groups, limit=top) + 1
    growth = reader.read(num_groups, limit=top)
    first_lengths = _running_sum(growth, new_list | (step != 0)) % num_keyframes + 1
    total = int(num_runs.sum())
    if total > num_visible:
        raise reader.fail(f"has {total} runs of {num_visible} visible landmarks")
    later = np.ones(total, dtype=np.bool_)
    first_run = np.cumsum(num_runs) - num_runs
    later[first_run] = False
    lengths = np.empty(total, dtype=np.int64)
    lengths[first_run] = first_lengths
    lengths[later] = reader.read(total - num_groups, limit=top) + 1
    advance = np.empty(total, dtype=np.int64)
    advance[first_run] = starts
    advance[later] = reader.read(total - num_groups, limit=top) + 1
    ends = _running_sum(advance + lengths, ~later)
    if int(ends.max()) > num_keyframes:
        raise reader.fail(f"ends at keyframe {int(ends.max())} of {num_keyframes}")

    run_offsets = np.append(first_run, total)
    group_counts = np.add.reduceat(lengths, first_run)
    counts = np.repeat(group_counts, repeats)
    if int((group_counts * repeats).sum()) != num_visible:
        raise reader.fail(
            f"has landmarks that are seen {int(counts.sum())} times in all, expected "
            f"{num_visible}"
        )
    rows = ranges(ends - lengths, lengths)
    group_offsets = offsets_of(lengths)[run_offsets]
    return rows[ranges(np.repeat(group_offsets[:-1], repeats), counts)], counts

"""Which landmarks are still where they were: those that stop being seen lose weight.

For each landmark, the log-odds that it is gone, against what was believed before. In a
frame in which a share p of all expected landmarks is found, one that is there is found
with probability p, and one that is gone with the small one of a chance match; so that a
miss says more where everything else is found, and a single sighting outweighs many
misses. A landmark that is left out is not looked for and cannot be missed: its log-odds
decay until it is tried again.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from dataclasses import dataclass

import numpy as np

from edgeloc.types import BoolArray, Float32Array, FloatArray, IntArray

_NS_PER_S = 1_000_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordOptions:
    """Options of `LandmarkRecord`.

    Parameters
    ----------
    gone_share : float
        Of landmarks that nothing is known of.
    chance_share : float
        Probability that a landmark that is gone is matched all the same.
    exclude_at : float
        Log-odds, against before, from which a landmark is left out.
    limits : (float, float)
        Log-odds stay between these.
    recovery : float
        What the log-odds of one that is left out are multiplied with each time.
    min_expected : int
        Fewer expected landmarks say nothing of what is found as a rule.
    min_gap_s : float
        Between two counts from one place: what hides a landmark may hide it for long.
    max_landmarks : int
        Remembered, the least recently expected ones forgotten first.
    """

    gone_share: float = 0.05
    chance_share: float = 0.02
    exclude_at: float = 6.0
    limits: tuple[float, float] = (-4.0, 8.0)
    recovery: float = 0.95
    min_expected: int = 30
    min_gap_s: float = 1.0
    max_landmarks: int = 50_000


def updated(
    log_odds: FloatArray, found: BoolArray, options: RecordOptions
) -> FloatArray:
    """Return the log-odds that landmarks are gone after one more frame.

    Parameters
    ----------
    log_odds : ndarray of shape (N,), float64
        Of the landmarks that were expected, before.
    found : ndarray of shape (N,), bool
        Which were found.
    options : RecordOptions
        How much a frame says.
    """
    out = log_odds.copy()
    excluded = log_odds >= options.exclude_at
    tried = ~excluded
    chance = options.chance_share
    share = float(found[tried].mean()) if tried.any() else 0.0
    if share > chance:
        share = min(share, 0.9)
        out[tried & found] += math.log(chance / share)
        out[tried & ~found] += math.log((1.0 - chance) / (1.0 - share))
    # Left out for a while, not from one frame to the next.
    out[tried & (out >= options.exclude_at)] = options.limits[1]
    out[excluded] *= options.recovery
    return np.asarray(np.clip(out, *options.limits))


class LandmarkRecord:
    """What frames said about landmarks.

    Parameters
    ----------
    options : RecordOptions, optional
        Defaults of `RecordOptions` when None.
    min_moved : float
        Two counts are of different places when the camera moved so far, m.
    """

    def __init__(
        self, options: RecordOptions | None = None, *, min_moved: float = 0.0
    ) -> None:
        self._options = options or RecordOptions()
        self._min_moved = min_moved
        self._log_odds: OrderedDict[int, float] = OrderedDict()
        self._left_out: set[int] = set()
        self._last: tuple[int, FloatArray] | None = None

    def __len__(self) -> int:
        return len(self._log_odds)

    def wants(self, timestamp_ns: int, center: FloatArray) -> bool:
        """Return whether a frame would say anything new.

        Parameters
        ----------
        timestamp_ns : int
            Of the frame.
        center : ndarray of shape (3,), float64
            Its camera centre, m.
        """
        if self._last is None:
            return True
        last_ns, last = self._last
        moved = float(np.linalg.norm(center - last))
        gap_s = abs(timestamp_ns - last_ns) / _NS_PER_S
        return moved > self._min_moved or gap_s >= self._options.min_gap_s

    def note(
        self,
        expected_ids: IntArray,
        found_ids: IntArray,
        *,
        timestamp_ns: int,
        center: FloatArray,
    ) -> None:
        """Take what one frame says.

        Parameters
        ----------
        expected_ids : ndarray of shape (N,), int64
            Landmarks that should be in view, each once.
        found_ids : ndarray of shape (M,), int64
            Those that agree with its pose.
        timestamp_ns : int
            Of the frame.
        center : ndarray of shape (3,), float64
            Its camera centre, m.
        """
        if len(expected_ids) < self._options.min_expected:
            return
        self._last = timestamp_ns, center
        ids = expected_ids.tolist()
        before = np.array([self._log_odds.get(i, 0.0) for i in ids])
        after = updated(before, np.isin(expected_ids, found_ids), self._options)
        for landmark_id, value in zip(ids, after.tolist(), strict=True):
            self._log_odds[landmark_id] = value
            self._log_odds.move_to_end(landmark_id)
            if value >= self._options.exclude_at:
                self._left_out.add(landmark_id)
            else:
                self._left_out.discard(landmark_id)
        while len(self._log_odds) > self._options.max_landmarks:
            self._left_out.discard(self._log_odds.popitem(last=False)[0])

    def wanted(self, point3D_ids: IntArray) -> BoolArray:
        """Return which landmarks are not left out, (M,) bool: those of a weight."""
        if not self._left_out:
            return np.ones(len(point3D_ids), bool)
        left_out = np.fromiter(self._left_out, np.int64, len(self._left_out))
        return np.isin(point3D_ids, left_out, invert=True)

    def weights(self, point3D_ids: IntArray) -> Float32Array:
        """Return how likely landmarks are still there, 0 for those to leave out.

        Parameters
        ----------
        point3D_ids : ndarray of shape (M,), int64
            Landmarks.

        Returns
        -------
        ndarray of shape (M,), float32
            In [0, 1].
        """
        options = self._options
        known = [self._log_odds.get(i, 0.0) for i in point3D_ids.tolist()]
        log_odds = np.array(known, np.float64)
        before = math.log(options.gone_share / (1.0 - options.gone_share))
        weights = 1.0 / (1.0 + np.exp(before + log_odds))
        weights[log_odds >= options.exclude_at] = 0.0
        return weights.astype(np.float32)

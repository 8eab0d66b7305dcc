"""How an estimator deals with priors: what it believes, learns and tells its filter."""

from __future__ import annotations

import logging

from edgeloc.clock import Clock
from edgeloc.localize.candidate import Candidate
from edgeloc.localize.pose_prior import PosePrior, PositionPrior
from edgeloc.runtime.priors import PriorTrust
from edgeloc.runtime.telemetry import RepeatedWarning
from edgeloc.runtime.tracker import MotionTracker
from edgeloc.types import PoseStatus

_log = logging.getLogger(__name__)

_CORRELATION_S = 20.0
"""The error of a receiver hardly changes within this time: however many positions it
tells, they are worth one."""
_NS_PER_S = 1e9


class Believing:
    """Trust in priors, and what follows from it.

    Parameters
    ----------
    strong_inliers : int
        See `PriorTrust`.
    clock : Clock
        Of warnings.
    """

    def __init__(self, *, strong_inliers: int, clock: Clock) -> None:
        self._strong_inliers = strong_inliers
        self._warnings = RepeatedWarning(_log, clock)
        self._told_ns: int | None = None
        self.trust = PriorTrust(strong_inliers=strong_inliers)

    def forget(self) -> None:
        """Believe everything again."""
        self.trust.forget()

    def believed(self, measured: PosePrior) -> PosePrior:
        """Return the part of a prior that may narrow where to look."""
        return self.trust.believed(measured)

    def allows(self, measured: PosePrior, fix: Candidate) -> bool:
        """Return whether a fix from nowhere may be told, and learn from it.

        Parameters
        ----------
        measured : PosePrior
            What sensors said about its frame.
        fix : Candidate
            LOCALIZED.
        """
        if measured.is_empty or fix.status is not PoseStatus.LOCALIZED:
            return True
        before = self.trust.num_rejected_priors
        allowed = self.trust.allows(measured, fix)
        if self.trust.num_rejected_priors > before:
            self._warnings.warn(
                f"a prior was rejected: {fix.num_inliers} landmarks say otherwise"
            )
        return allowed

    def learn(self, measured: PosePrior, fix: Candidate) -> None:
        """Learn from a fix that continues others, and needs no leave, if it is strong.

        Parameters
        ----------
        measured : PosePrior
            What sensors said about its frame.
        fix : Candidate
            LOCALIZED.
        """
        if fix.num_inliers >= self._strong_inliers:
            self.allows(measured, fix)

    def tell(
        self, motion: MotionTracker, timestamp_ns: int, position: PositionPrior
    ) -> None:
        """Give a believed position to the motion filter, for what is new in it.

        Parameters
        ----------
        motion : MotionTracker
            The filter.
        timestamp_ns : int
            Of the frame.
        position : PositionPrior
            Where the camera is then.
        """
        gap_s = _CORRELATION_S
        if self._told_ns is not None:
            gap_s = abs(timestamp_ns - self._told_ns) / _NS_PER_S
        self._told_ns = timestamp_ns
        if gap_s > 0.0:
            share = min(gap_s / _CORRELATION_S, 1.0)
            motion.add_position(
                timestamp_ns, position.center, position.covariance / share
            )

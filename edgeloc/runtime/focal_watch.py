"""Watching whether the focal length that was given fits what the camera sees."""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass, replace

import numpy as np

from edgeloc.geometry.focal import FocalFit, fit_focal
from edgeloc.localize.candidate import Candidate
from edgeloc.runtime.following import lost_like
from edgeloc.types import CameraModel, Cause, PoseStatus

_log = logging.getLogger(__name__)

_NOISE = 2.0
"""Fits scatter so many times more than their points' noise says: 302 of right cameras
in seven places, handheld and outdoors, with ORB and with the network's features."""
_SAME_SIGMA = 0.012
"""What all frames of a place share: errors of its map, and of lenses that were
calibrated well. More frames do not reduce it."""
_SIGNIFICANT = 3.0
"""Standard deviations. The 302 showed at most 2.9 in pictures blurred by motion, and at
most 2.2 in others."""
_DRIFT_SIGMA = 0.001
"""Between two fits: lenses focus."""
_TURN = 0.25
"""Share of its displacement, as an angle at the landmarks, by which a pose is turned
about each axis: in the median of a place up to 0.3 about all of them together."""
_AS_WELL = 1.5
"""Ratio of variances."""
_MIN_FITS = 3
_NS_PER_S = 1_000_000_000
_OPEN_EVERY_NS = _NS_PER_S // 3
_SETTLED_EVERY_NS = 10 * _NS_PER_S


@dataclass(frozen=True, slots=True, kw_only=True)
class FocalEvidence:
    """What fits say together of the factor by which the focal length is off.

    Parameters
    ----------
    log_focal : float
        Its natural logarithm.
    variance : float
        Of that, without `_SAME_SIGMA`; from the start anything within a factor e.
    num_fits : int
        Fits in it.
    """

    log_focal: float = 0.0
    variance: float = 1.0
    num_fits: int = 0

    def updated(self, fit: FocalFit) -> FocalEvidence:
        """Return the evidence with one more fit."""
        noise = (_NOISE * fit.sigma) ** 2
        variance = self.variance + _DRIFT_SIGMA**2
        gain = variance / (variance + noise)
        return FocalEvidence(
            log_focal=self.log_focal + gain * (fit.log_focal - self.log_focal),
            variance=(1.0 - gain) * variance,
            num_fits=self.num_fits + 1,
        )

    def contradicts(self, fit: FocalFit) -> bool:
        """Return whether a fit is far from what the others say."""
        sigma = math.hypot(math.sqrt(self.variance), _NOISE * fit.sigma, _DRIFT_SIGMA)
        return abs(fit.log_focal - self.log_focal) > _SIGNIFICANT * sigma

    @property
    def is_off(self) -> bool:
        """Whether the focal length is wrong beyond doubt."""
        sigma = math.hypot(math.sqrt(self.variance), _SAME_SIGMA)
        return abs(self.log_focal) > _SIGNIFICANT * sigma

    @property
    def is_settled(self) -> bool:
        """Whether it is right, and another fit would hardly change that."""
        known = self.num_fits >= _MIN_FITS and self.variance <= _SAME_SIGMA**2
        return known and not self.is_off


class FocalWatch:
    """Keeps fixes through a lens that does not fit from being told as LOCALIZED.

    It costs time, and pictures in a row show the same: a focal length is fitted three
    times a second until the evidence is settled, then every ten seconds.

    Parameters
    ----------
    camera : CameraModel
        Intrinsics, as they were given.
    cold : bool
        Judge each fix by itself alone.
    """

    def __init__(self, camera: CameraModel, *, cold: bool) -> None:
        self._camera = camera
        self._cold = cold
        self._warned = False
        self.reset()

    def reset(self) -> None:
        """Forget all fixes."""
        self.evidence = self._rival = FocalEvidence()
        self._fitted_ns: int | None = None

    def judge(self, fix: Candidate, timestamp_ns: int) -> Candidate:
        """Return a fix, or what is left of it with a wrong focal length.

        Parameters
        ----------
        fix : Candidate
            LOCALIZED.
        timestamp_ns : int
            Of its frame.

        Returns
        -------
        Candidate
            The same; or for WRONG_INTRINSICS, COARSE with a covariance that holds how
            far the pose may be displaced, or LOST where it tells of no landmarks.
        """
        if self._cold:
            self.reset()
        fit = self._fit(fix, timestamp_ns) if self._is_due(timestamp_ns) else None
        if fit is not None:
            self._learn(fit)
        if self.evidence.is_off:
            self._warn()
            return demoted(fix, self.evidence.log_focal)
        if fit is not None:
            alone = FocalEvidence().updated(fit)
            if alone.is_off:
                return demoted(fix, alone.log_focal)
        return fix

    def _fit(self, fix: Candidate, timestamp_ns: int) -> FocalFit | None:
        # What is looked for beside the pixels of a pose agrees with it, right or wrong.
        free = fix.first or fix
        if free.matches is None or free.cam_from_world is None:
            return None
        self._fitted_ns = timestamp_ns
        return fit_focal(
            free.matches,
            self._camera,
            free.cam_from_world,
            point_sigmas=free.point_sigmas,
            pixel_sigmas=free.pixel_sigmas,
        )

    def _learn(self, fit: FocalFit) -> None:
        """Take one more fit.

        Those that contradict what is known are gathered by themselves, and believed as
        soon as they know it as well: the lens may have zoomed, or the first fixes were
        wrong. Weak fixes through a wrong lens agree with it again and again, but never
        as narrowly as strong ones do with the right one.
        """
        if not self.evidence.contradicts(fit):
            self.evidence = self.evidence.updated(fit)
            self._rival = FocalEvidence()
            return
        if self._rival.contradicts(fit):
            self._rival = FocalEvidence()
        self._rival = self._rival.updated(fit)
        if self._rival.variance <= _AS_WELL * self.evidence.variance:
            self.evidence, self._rival = self._rival, FocalEvidence()

    def _is_due(self, timestamp_ns: int) -> bool:
        if self._fitted_ns is None:
            return True
        settled = self.evidence.is_settled and not self._rival.num_fits
        every_ns = _SETTLED_EVERY_NS if settled else _OPEN_EVERY_NS
        return abs(timestamp_ns - self._fitted_ns) >= every_ns

    def _warn(self) -> None:
        if self._warned:
            return
        self._warned = True
        given_px = self._camera.focal_px[0]
        fitted_px = given_px * math.exp(self.evidence.log_focal)
        sigma_px = fitted_px * math.hypot(
            math.sqrt(self.evidence.variance), _SAME_SIGMA
        )
        _log.warning(
            "camera: the focal length given is %.0f px, the pictures fit %.0f +- %.0f "
            "px: answers are not LOCALIZED; calibrate the camera and give the result "
            "with --intrinsics",
            given_px,
            fitted_px,
            sigma_px,
        )


def demoted(fix: Candidate, log_focal: float) -> Candidate:
    """Return what a fix is worth when the focal length is off by a factor.

    Parameters
    ----------
    fix : Candidate
        LOCALIZED.
    log_focal : float
        Natural logarithm of the factor.

    Returns
    -------
    Candidate
        COARSE. A camera with a focal length wrong by a tenth stands off by about a
        tenth of the landmarks' distance, and is turned a little. LOST where there are
        no landmarks to tell a distance.
    """
    if fix.matches is None or fix.inlier_mask is None:
        return lost_like(fix, Cause.WRONG_INTRINSICS)
    assert fix.cam_from_world is not None
    assert fix.covariance is not None
    in_cam = fix.cam_from_world.transform(fix.matches.points3D[fix.inlier_mask])
    distance = float(np.median(np.linalg.norm(in_cam, axis=1)))
    off = math.expm1(abs(log_focal))
    widening = np.square(np.repeat([_TURN * off, off * distance], 3))
    return replace(
        fix,
        status=PoseStatus.COARSE,
        cause=Cause.WRONG_INTRINSICS,
        covariance=fix.covariance + np.diag(widening),
    )

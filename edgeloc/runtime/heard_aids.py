"""What helps an estimator is listened to in a run, and says it again in a replay."""

from __future__ import annotations

from collections.abc import Iterator

from edgeloc.clock import MonotonicClock
from edgeloc.errors import LogFormatError, ModelError
from edgeloc.localize.pose_prior import PosePrior
from edgeloc.runtime.aids import Aids, Motions, Priors
from edgeloc.runtime.log_aids import LoggedAids, LoggedMask, SessionAids
from edgeloc.runtime.masking import FrameMasks
from edgeloc.runtime.sensed_motion import SensedMotion
from edgeloc.types import ByteArray


def session_aids(aids: Aids) -> SessionAids | None:
    """Return what a log says about what helps; None when nothing does."""
    if aids == Aids():
        return None
    static = None if aids.masks is None else aids.masks.static
    return SessionAids(
        static_mask=None if static is None else LoggedMask.of(static),
        segmenter=aids.masks is not None and aids.masks.segmenter is not None,
        priors=aids.priors is not None,
        motions=aids.motions is not None,
    )


class ListenedAids:
    """What helps an estimator, and what it said since one last asked.

    Parameters
    ----------
    aids : Aids
        What helps; its masks are listened to from now on.

    Attributes
    ----------
    aids : Aids
        What the estimator must go by.
    """

    def __init__(self, aids: Aids) -> None:
        self._prior = PosePrior()
        self._motion: SensedMotion | None = None
        self._masks: list[LoggedMask | None] = []
        if aids.masks is not None:
            aids.masks.on_segmented = self._segmented
        priors, motions = aids.priors, aids.motions
        self.aids = Aids(
            masks=aids.masks,
            priors=None if priors is None else _ListenedPriors(self, priors),
            motions=None if motions is None else _ListenedMotions(self, motions),
        )

    def take(self) -> LoggedAids:
        """Return what was said since the last call."""
        said = LoggedAids(
            prior=self._prior, motion=self._motion, masks=tuple(self._masks)
        )
        self._prior, self._motion = PosePrior(), None
        self._masks.clear()
        return said

    def heard(self, prior: PosePrior) -> None:
        """Remember a prior; the last one holds."""
        self._prior = prior

    def moved(self, motion: SensedMotion) -> None:
        """Remember the way to a frame."""
        self._motion = motion

    def _segmented(self, keep: ByteArray | None) -> None:
        self._masks.append(None if keep is None else LoggedMask.of(keep))


class _ListenedPriors:
    def __init__(self, listener: ListenedAids, priors: Priors) -> None:
        self._listener = listener
        self._priors = priors

    def at(self, timestamp_ns: int, /) -> PosePrior:
        prior = self._priors.at(timestamp_ns)
        self._listener.heard(prior)
        return prior

    def close(self) -> None:
        self._priors.close()


class _ListenedMotions:
    def __init__(self, listener: ListenedAids, motions: Motions) -> None:
        self._listener = listener
        self._motions = motions

    def until(self, timestamp_ns: int, /) -> SensedMotion:
        motion = self._motions.until(timestamp_ns)
        self._listener.moved(motion)
        return motion

    def close(self) -> None:
        self._motions.close()


class ReplayedAids:
    """Helps again as a log says that it helped.

    Parameters
    ----------
    session : SessionAids or None
        What helped in the session; None = nothing.
    size : (int, int)
        Width and height of the pictures, px.
    cold : bool
        Whether each frame is by itself.

    Attributes
    ----------
    aids : Aids
        For the estimator.

    Raises
    ------
    LogFormatError
        When the mask of all frames is of another size.
    """

    def __init__(
        self, session: SessionAids | None, *, size: tuple[int, int], cold: bool
    ) -> None:
        session = session or SessionAids(
            static_mask=None, segmenter=False, priors=False
        )
        self._size = size
        self._prior = PosePrior()
        self._motion: SensedMotion | None = None
        self._masks: Iterator[LoggedMask | None] = iter(())
        static = session.static_mask
        masks = None
        if static is not None or session.segmenter:
            masks = FrameMasks(
                None if static is None else self._fitting(static),
                self if session.segmenter else None,
                clock=MonotonicClock(),  # of warnings: not the log's
                cold=cold,
            )
        self.aids = Aids(
            masks=masks,
            priors=self if session.priors else None,
            motions=self if session.motions else None,
        )

    def begin(self, said: LoggedAids) -> None:
        """Go on with what was said in a frame."""
        self._prior, self._motion = said.prior, said.motion
        self._masks = iter(said.masks)

    def _fitting(self, logged: LoggedMask) -> ByteArray:
        if (logged.width, logged.height) != self._size:
            raise LogFormatError(
                f"a mask of {logged.width}x{logged.height} px does not belong to "
                f"pictures of {self._size[0]}x{self._size[1]} px"
            )
        return logged.mask()

    def keep_mask(self, image: ByteArray) -> ByteArray:  # noqa: ARG002 - known already
        """Return what the network said in the run; `ModelError` where it failed."""
        try:
            logged = next(self._masks)
        except StopIteration:
            raise ModelError("the run made no mask here, the log has none") from None
        if logged is None:
            raise ModelError("the network failed here in the run, too")
        return self._fitting(logged)

    def at(self, timestamp_ns: int, /) -> PosePrior:  # noqa: ARG002 - of this frame
        """Return what was known about the frame."""
        return self._prior

    def until(self, timestamp_ns: int, /) -> SensedMotion:
        """Return what was known about the way to the frame."""
        return self._motion or SensedMotion(start_ns=timestamp_ns, end_ns=timestamp_ns)

    def close(self) -> None:
        """Nothing is open."""

"""REGRESS on the device."""

from __future__ import annotations

from edgeloc.errors import MapError
from edgeloc.inference.network import Network
from edgeloc.localize.candidate import Candidate
from edgeloc.localize.regress import RegressCalibration, regress_picture, regress_pose
from edgeloc.runtime.frame_work import FrameWork
from edgeloc.runtime.site_models import open_site_head
from edgeloc.runtime.site_parts import SiteParts


class RegressMethod:
    """The pose that a network of the site sees in a frame.

    Parameters
    ----------
    parts : SiteParts
        The opened site.

    Raises
    ------
    MapError
        When the site carries no such network, or it was changed.
    ModelError
        When the network cannot be used.
    """

    def __init__(self, parts: SiteParts) -> None:
        self._parts = parts
        self._head = open_site_head(
            parts.site, "regress", options=parts.options.backend
        )
        try:
            self._calibration = RegressCalibration.from_arrays(
                parts.site.retrieval_arrays
            )
        except ValueError as exc:
            raise MapError(f"{parts.site.path}: {exc}; train the head again") from exc

    def answer(self, work: FrameWork) -> Candidate:
        """See `edgeloc.runtime.methods.Method`."""
        head = self._head
        if isinstance(head, Network):
            with self._parts.timer.stage("regress"):
                return regress_picture(
                    head, work.frame.image, calibration=self._calibration
                )
        query = work.query()
        with self._parts.timer.stage("regress"):
            return regress_pose(query, head, calibration=self._calibration)

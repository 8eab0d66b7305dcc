"""Looking for new landmarks in the time that a frame's answer does not need."""

from __future__ import annotations

from collections import deque
from dataclasses import replace
from functools import partial

import numpy as np

from edgeloc.clock import Clock
from edgeloc.errors import TileFormatError
from edgeloc.features.extract import extract_prepared, prepare_image
from edgeloc.features.learned import LearnedFamily
from edgeloc.localize.near_keyframes import keyframes_in_view
from edgeloc.runtime.following import Following, Look
from edgeloc.runtime.frame_work import FrameWork
from edgeloc.runtime.site_parts import SiteParts
from edgeloc.tiles.layout import LocalMap
from edgeloc.tiles.reader import (
    TileMissingError,
    assemble_local_map,
    visible_point3D_ids,
)
from edgeloc.types import (
    Features,
    FloatArray,
    Frame,
    IntArray,
    Rigid3,
)

_PARTS = (1, 2, 3, 4, 6, 8)
"""Parts of the picture, one of which is looked at for landmarks."""

_NUM_GAPS = 16
"""Gaps between frames, of which the shortest is taken for their period."""

_PART_MARGIN_PX = 24
"""Around a part: features near the border of what is looked at are not found."""


class Looking:
    """Looks at a part of a frame, and recognises landmarks in it, as time allows.

    Parameters
    ----------
    parts : SiteParts
        The opened site.
    following : Following
        Takes the landmarks.
    clock : Clock
        What tells the time.
    """

    def __init__(self, parts: SiteParts, following: Following, clock: Clock) -> None:
        self._parts = parts
        self._following = following
        self._clock = clock
        self._look: tuple[Look, int] | None = None
        self._mask_ns = 0
        self._last_timestamp_ns: int | None = None
        self._gaps_ns: deque[int] = deque(maxlen=_NUM_GAPS)
        # Images of another size than a network's own would reach it stretched.
        fixed = (
            isinstance(parts.family, LearnedFamily)
            and parts.family.network.manifest.input.size is not None
        )
        self._num_parts = _PARTS[:1] if fixed else _PARTS

    def forget(self) -> None:
        """Drop what was looked at and not recognised yet."""
        self._look = None

    def note_time(self, timestamp_ns: int) -> None:
        """Learn the period of the frames.

        Parameters
        ----------
        timestamp_ns : int
            Of the newest one.
        """
        if self._last_timestamp_ns is not None:
            gap_ns = timestamp_ns - self._last_timestamp_ns
            if gap_ns > 0:
                self._gaps_ns.append(gap_ns)
        self._last_timestamp_ns = timestamp_ns

    def look_for_landmarks(self, work: FrameWork, covariance: FloatArray) -> None:
        """Use what is left of a frame's time for the frames that follow.

        Parameters
        ----------
        work : FrameWork
            The frame, answered by TRACK.
        covariance : ndarray of shape (6, 6), float64
            Of its pose.
        """
        following, timer = self._following, self._parts.timer
        spare_ns = self._spare_ns(work)
        # Without new landmarks there will soon be nothing to follow. This frame is
        # answered, and one that is late now costs less than all that come after it.
        urgent = following.starves
        if self._look is None and following.wants_landmarks:
            num_parts = self._affordable_parts(spare_ns)
            if urgent and not num_parts:
                num_parts = self._num_parts[-1]
            if num_parts:
                setting = _setting_of(num_parts)
                needed_ns = timer.cost_ns(
                    "look", setting=setting, share=1.2 / num_parts
                )
                self._mask_ns = spare_ns - needed_ns
                look = self._look_at_part(
                    work.frame, covariance, num_parts, turns=work.turns
                )
                self._look = look, _setting_of(num_parts)
        if self._look is None:
            return
        look, setting = self._look
        cost_ns = timer.cost_ns("track_map") + timer.cost_ns(
            "look_match", setting=setting, share=1.0
        )
        if urgent or cost_ns <= self._spare_ns(work):
            # What comes after this frame is not kept waiting for a slow disk.
            if self._recognise(look, setting, until_ns=self._end_ns(work)):
                self._look = None
        elif work.frame.timestamp_ns != look.timestamp_ns:
            timer.forget_a_little("look_match", "track_map")

    def rehearse(self, frame: Frame, covariance: FloatArray, num_parts: int) -> None:
        """Look at a part and recognise it, whatever that costs.

        Parameters
        ----------
        frame : Frame
            The newest frame that is followed.
        covariance : ndarray of shape (6, 6), float64
            Of its pose.
        num_parts : int
            One of `sizes`.
        """
        look = self._look_at_part(frame, covariance, num_parts)
        self._recognise(look, _setting_of(num_parts), until_ns=None)

    @property
    def sizes(self) -> tuple[int, ...]:
        """Into how many parts pictures are divided, from one."""
        return self._num_parts

    def near_map(self, pose: Rigid3, *, until_ns: int | None) -> bool:
        """Have the landmarks around a pose at hand; False when tiles are not there.

        Parameters
        ----------
        pose : Rigid3
            Where the camera is, about.
        until_ns : int or None
            Wait no longer for the disk, which then reads on for a later frame.
        """
        site, tiles, record = self._parts.site, self._parts.tiles, self._parts.record
        patience_s = None if until_ns is None else self._clock.patience_s(until_ns)
        load_tile = partial(tiles.load, timeout_s=patience_s)
        state = self._following.motion_state
        distance = 1.0 if state is None else state.landmark_distance

        def load(ids: IntArray) -> tuple[LocalMap, list[IntArray], FloatArray]:
            visible = visible_point3D_ids(load_tile, site, ids)
            if record is not None:
                # What stopped being seen is looked for nowhere.
                visible = [seen[record.wanted(seen)] for seen in visible]
            return (
                assemble_local_map(load_tile, site, ids),
                visible,
                site.keyframes.centers_of(site.keyframes.index_of(ids)),
            )

        with self._parts.timer.stage("track_map"):
            try:
                self._following.near_map(
                    pose,
                    choose=lambda at, k: keyframes_in_view(
                        site.keyframes, at, k=k, distance=distance
                    ),
                    load=load,
                    spacing=self._parts.coarse.keyframe_spacing,
                )
            except (TileMissingError, TileFormatError):
                return False
        return True

    def _spare_ns(self, work: FrameWork) -> int:
        """Return the time for what this frame's answer does not need.

        Until its deadline, and until the next frame comes, which would have to wait.
        """
        return self._end_ns(work) - self._clock.now_ns()

    def _end_ns(self, work: FrameWork) -> int:
        deadline_ns = work.budget.deadline_ns
        if not self._gaps_ns:
            return deadline_ns
        return min(deadline_ns, work.begin_ns + min(self._gaps_ns))

    def _affordable_parts(self, spare_ns: int) -> int:
        """Return into how many parts the picture is divided; 0 = no time for any."""
        timer = self._parts.timer
        least = 1 if self._following.num_tracks < 40 else 3
        for num_parts in self._num_parts:
            if num_parts < least and len(self._num_parts) > 1:
                continue
            cost_ns = timer.cost_ns(
                "look", setting=_setting_of(num_parts), share=1.2 / num_parts
            )
            if cost_ns <= spare_ns:
                return num_parts
        timer.forget_a_little("look")
        return 0

    def _look_at_part(
        self, frame: Frame, covariance: FloatArray, num_parts: int, *, turns: int = 0
    ) -> Look:
        """Return the features of the part of the picture that is next."""
        with self._parts.timer.stage("look", setting=_setting_of(num_parts)):
            rows = self._following.next_rows(num_parts)
            features = self._features_of_rows(frame, rows, turns)
            return self._following.look(features, rows, frame.timestamp_ns, covariance)

    def _recognise(self, look: Look, setting: int, *, until_ns: int | None) -> bool:
        """Find landmarks among features; False without tiles."""
        if not self.near_map(look.cam_from_world, until_ns=until_ns):
            return False
        with self._parts.timer.stage("look_match", setting=setting):
            self._following.recognise(look)
        return True

    def _features_of_rows(
        self, frame: Frame, rows: tuple[int, int], turns: int
    ) -> Features:
        """Return the features in some rows of a picture, px of the whole of it."""
        parts, image = self._parts, frame.image
        mask = None
        if parts.masks is not None:
            mask = parts.masks.mask(frame, parts.timer, spare_ns=self._mask_ns)
        spec = parts.site.manifest.family
        height, width = image.shape[:2]
        first = max(rows[0] - _PART_MARGIN_PX, 0)
        last = min(rows[1] + _PART_MARGIN_PX, height)
        part = image[first:last]
        max_side_px = spec.max_side_px
        if max_side_px and max(height, width) > max_side_px:
            # As much smaller as the whole picture would be made.
            longest = max(part.shape[:2])
            max_side_px = max(1, round(longest * max_side_px / max(height, width)))
        else:
            max_side_px = 0
        wanted = parts.options.max_keypoints or spec.max_keypoints
        features = extract_prepared(
            prepare_image(part, parts.family, max_side_px=max_side_px),
            parts.family,
            max_keypoints=max(1, round(wanted * (last - first) / height)),
            mask=None if mask is None else mask[first:last],
            turns=turns,
        )
        shift = np.array([0.0, first], np.float32)
        return replace(features, keypoints=features.keypoints + shift)


def _setting_of(num_parts: int) -> int:
    """Return how `StageTimer` tells looks at parts from those at the whole picture."""
    return 0 if num_parts == 1 else num_parts

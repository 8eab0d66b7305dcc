"""INTERPOLATE on the device."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from edgeloc.errors import TileFormatError
from edgeloc.geometry.camera import normalized_from_pixels
from edgeloc.localize.candidate import LOST, Candidate
from edgeloc.localize.interpolate import interpolate_pose
from edgeloc.localize.rerank import Agreement, LocalView, supporting_matches
from edgeloc.runtime.frame_work import FrameWork
from edgeloc.runtime.site_parts import SiteParts
from edgeloc.tiles.reader import (
    TileMissingError,
    assemble_features,
    assemble_local_map,
    visible_point3D_ids,
)
from edgeloc.types import Cause, IntArray


class InterpolateMethod:
    """The pose from retrieved keyframes' poses.

    Parameters
    ----------
    parts : SiteParts
        The opened site.
    """

    def __init__(self, parts: SiteParts) -> None:
        self._parts = parts
        # As a net below other methods it must cost next to nothing, and these look at
        # the same features, more closely.
        alone = parts.options.method == "interpolate"
        self._rerank = parts.interpolate.rerank if alone else None

    def answer(self, work: FrameWork) -> Candidate:
        """See `edgeloc.runtime.methods.Method`."""
        parts = self._parts
        if len(work.query().features) == 0:
            return replace(LOST, cause=Cause.FEW_FEATURES)
        retrieved = work.retrieved()
        with parts.timer.stage("interpolate"):
            agreement = self._agreement(work, retrieved.keyframe_ids)
            return interpolate_pose(
                query=work.query().global_descriptor,
                retrieved=retrieved,
                keyframes=parts.site.keyframes,
                index=parts.index,
                calibration=parts.coarse if agreement is None else parts.checked,
                options=parts.interpolate,
                agreement=agreement,
            )

    def _agreement(self, work: FrameWork, keyframe_ids: IntArray) -> Agreement | None:
        """Return what speaks for keyframes; None where there is nothing to compare."""
        options = self._rerank
        if options is None or len(keyframe_ids) < 2:
            return None
        query = work.query()
        plane = normalized_from_pixels(query.camera, query.features.keypoints)
        view = LocalView(points=plane, descriptors=query.descriptors)
        try:
            images = list(keyframe_views(self._parts, keyframe_ids, options.num_image))
        except (TileMissingError, TileFormatError):
            return None
        return supporting_matches(view, images, options) if images else None


def keyframe_views(
    parts: SiteParts, keyframe_ids: IntArray, count: int
) -> Iterator[LocalView]:
    """Yield what keyframes see, on the plane z = 1; nothing where the site lacks it.

    Their local features where the site keeps them, else the landmarks that most images
    saw, where they should be in the picture.

    Parameters
    ----------
    parts : SiteParts
        The opened site.
    keyframe_ids : ndarray of shape (K,), int64
        Of keyframes.
    count : int
        Bound of what is taken of each.

    Raises
    ------
    TileFormatError, TileMissingError
        When a tile cannot be read.
    """
    site, load = parts.site, parts.tiles.load
    keyframes = site.keyframes
    rows = keyframes.index_of(keyframe_ids).tolist()
    if site.manifest.has_features:
        features = assemble_features(load, site, keyframe_ids)
        if len(features):
            for i, row in enumerate(rows):
                own = features.of(np.array([i]))
                camera = site.manifest.cameras[keyframes.camera_ids[row]]
                yield LocalView(
                    points=normalized_from_pixels(camera, own.keypoints[:count]),
                    descriptors=parts.decode_landmarks(own.descriptors[:count]),
                )
            return
    seen = assemble_local_map(load, site, keyframe_ids)
    if len(seen) == 0:
        return
    first_row = np.searchsorted(seen.row_to_point, np.arange(len(seen)))
    for row, ids in zip(
        rows, visible_point3D_ids(load, site, keyframe_ids), strict=True
    ):
        idx = np.searchsorted(seen.point3D_ids, ids)
        most = np.argsort(-seen.num_observations[idx], kind="stable")[:count]
        idx = idx[most]
        in_cam = keyframes.cam_from_world(row).transform(seen.points3D[idx])
        in_front = in_cam[:, 2] > 0
        yield LocalView(
            points=in_cam[in_front, :2] / in_cam[in_front, 2:],
            descriptors=parts.decode_landmarks(
                seen.descriptors[first_row[idx[in_front]]]
            ),
        )

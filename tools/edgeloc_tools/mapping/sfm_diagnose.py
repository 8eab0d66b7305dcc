"""Why structure from motion found no model, or not all images, in words."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from edgeloc_tools.datasets.recording import ImageFile
from edgeloc_tools.mapping import sfm_colmap

FEW_FEATURES = 150
"""An image with fewer features is dark, blurred or without texture."""
MIN_PAIR_INLIERS = 15
"""COLMAP uses a pair from so many verified matches."""
SMALL_PARALLAX_RAD = math.radians(1.5)
"""COLMAP drops points seen under smaller angles."""
BLURRED_BELOW = 15.0
"""Variance of the Laplacian of an image 640 px wide: below this it looks blurred."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageState:
    """What is known about one image after matching.

    Parameters
    ----------
    name : str
        The image.
    num_features : int
        Features found.
    num_partners : int
        Other images with enough verified matches.
    best_pair_inliers : int
        Verified matches with the best of them.
    """

    name: str
    num_features: int
    num_partners: int
    best_pair_inliers: int


def image_states(
    names: Sequence[str],
    features: Mapping[str, int],
    pairs: Sequence[sfm_colmap.PairStats],
) -> list[ImageState]:
    """Return the state of each image."""
    partners: dict[str, list[int]] = {name: [] for name in names}
    for pair in pairs:
        if pair.num_inliers >= MIN_PAIR_INLIERS:
            partners[pair.name_a].append(pair.num_inliers)
            partners[pair.name_b].append(pair.num_inliers)
    return [
        ImageState(
            name=name,
            num_features=features.get(name, 0),
            num_partners=len(partners[name]),
            best_pair_inliers=max(partners[name], default=0),
        )
        for name in names
    ]


def sharpness(path: Path) -> float:
    """Return the variance of the Laplacian at 640 px width: small = blurred or flat."""
    grey = cv2.cvtColor(ImageFile(path).read(), cv2.COLOR_BGR2GRAY)
    scale = 640.0 / grey.shape[1]
    if scale < 1.0:
        grey = np.asarray(
            cv2.resize(grey, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA),
            dtype=np.uint8,
        )
    return float(cv2.Laplacian(grey, cv2.CV_64F).var())


def explain_image(state: ImageState, images: Path) -> str:
    """Return why one image was not registered."""
    if state.num_features < FEW_FEATURES:
        look = (
            "blurred or without texture"
            if sharpness(images / state.name) < BLURRED_BELOW
            else "little texture"
        )
        return f"only {state.num_features} features ({look})"
    if state.num_partners == 0:
        blurred = sharpness(images / state.name) < BLURRED_BELOW
        return "matches no other image" + (" (it looks blurred)" if blurred else "")
    return (
        f"matches {state.num_partners} images (at best {state.best_pair_inliers} "
        "matches), but too few of these see points of the model"
    )


def explain_failure(
    states: Sequence[ImageState],
    pairs: Sequence[sfm_colmap.PairStats],
    database: Path,
    images: Path,
) -> str:
    """Return why there is no model at all: what, and what to do."""
    poor = [s for s in states if s.num_features < FEW_FEATURES]
    if 2 * len(poor) > len(states):
        blurred = sum(sharpness(images / s.name) < BLURRED_BELOW for s in poor[:20])
        kind = "blurred or textureless" if 2 * blurred > min(20, len(poor)) else "plain"
        return (
            f"{len(poor)} of {len(states)} images have fewer than {FEW_FEATURES} "
            f"features and look {kind}: take sharper, brighter pictures of textured "
            "surfaces, or raise --max-side"
        )
    verified = [p for p in pairs if p.num_inliers >= MIN_PAIR_INLIERS]
    if not verified:
        return (
            f"none of {len(pairs)} image pairs share {MIN_PAIR_INLIERS} matches: the "
            "pictures do not overlap or do not show the same fixed scene; take them "
            "closer together"
        )
    if len(verified) < len(states) - 1:
        return (
            f"only {len(verified)} of {len(pairs)} image pairs match, too few to "
            f"connect {len(states)} images: take pictures closer together"
        )
    best = sorted(verified, key=lambda p: -p.num_inliers)[:20]
    angle = float(np.median(sfm_colmap.two_view_angles_rad(database, best)))
    if angle < SMALL_PARALLAX_RAD:
        return (
            f"the images match, but the parallax is {math.degrees(angle):.1f}° (median "
            "of the best pairs): the camera seems to turn on the spot, or to see one "
            "flat or far surface; move it sideways while recording"
        )
    return (
        f"{len(verified)} image pairs match, but no consistent model of 3 or more "
        "images comes from them: add pictures in between, or give the intrinsics"
    )

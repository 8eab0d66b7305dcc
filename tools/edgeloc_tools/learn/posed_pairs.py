"""Training pairs with true parallax: two posed frames with depth, in other light."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from edgeloc.types import BoolArray, Float32Array, FloatArray
from edgeloc_tools.learn.corners import corners_in_view
from edgeloc_tools.learn.photo_pairs import (
    Pair,
    ViewOptions,
    draw_correspondences,
    map_points,
    random_view,
    take_view,
)
from edgeloc_tools.learn.posed_frames import PosedFrame, PosedFrames, map_pixels

_TRIES = 6
_MIN_SHARE = 0.2
"""Of what a view shows that the other shows too, in a training pair."""
_MIN_SHARE_PLACE = 0.3


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class View:
    """A part of a frame.

    Parameters
    ----------
    frame : PosedFrame
        What it shows.
    frame_from_view : ndarray of shape (3, 3), float64
        Homography, corner convention.
    """

    frame: PosedFrame
    frame_from_view: FloatArray


def posed_pair(
    frames: PosedFrames,
    rng: np.random.Generator,
    *,
    options: ViewOptions,
    num_points: int,
) -> Pair:
    """Return random views of two frames that show the same place.

    Parameters
    ----------
    frames : PosedFrames
        Source.
    rng : Generator
        What is drawn from.
    options : ViewOptions
        How views are drawn; more gently than of photos, since the frames themselves
        were taken from different places.
    num_points : int
        Rows of `Pair.points`.
    """
    a, b = draw_views(frames, rng, options=options, min_share=_MIN_SHARE)
    return pair_of_views(a, b, rng, options=options, num_points=num_points)


def covisible_views(
    frames: PosedFrames, rng: np.random.Generator, options: ViewOptions
) -> Float32Array:
    """Return two pictures of one place in different light, (2, H, W), grey in [0, 1].

    At least 30 % of what the first shows is seen in the second; where six draws find
    no such pair, the best of them.

    Parameters
    ----------
    frames : PosedFrames
        Source.
    rng : Generator
        What is drawn from.
    options : ViewOptions
        How views are drawn.
    """
    views = draw_views(frames, rng, options=options, min_share=_MIN_SHARE_PLACE)
    return np.stack([_picture(view, rng, options) for view in views])


def draw_views(
    frames: PosedFrames,
    rng: np.random.Generator,
    *,
    options: ViewOptions,
    min_share: float,
) -> tuple[View, View]:
    """Return views of two frames, of which the second sees `min_share` of the first.

    The best of six draws where none reaches it.
    """
    gentle = replace(
        options,
        max_log_zoom=0.6 * options.max_log_zoom,
        tilt=0.4 * options.tilt,
        shift=0.6 * options.shift,
    )
    best: tuple[View, View] | None = None
    best_share = -1.0
    for _ in range(_TRIES):
        mirrored = rng.random() < 0.5
        a, b = (
            View(
                frame=frame,
                frame_from_view=random_view(
                    frame.photo.image, rng, gentle, mirrored=mirrored
                ),
            )
            for frame in frames.draw(rng)
        )
        share = seen_share(a, b, options)
        if best is None or share > best_share:
            best, best_share = (a, b), share
        if share >= min_share:
            break
    assert best is not None
    return best


def seen_share(a: View, b: View, options: ViewOptions) -> float:
    """Return the share of what view A shows, where depth is known, that B shows."""
    y, x = np.mgrid[8 : options.height : 16, 8 : options.width : 16]
    grid = np.stack([x.ravel(), y.ravel()], axis=1).astype(np.float64)
    at, seen = map_views(a, b, grid)
    num_known = np.count_nonzero(np.isfinite(at[:, 0]))
    if num_known * 10 < len(grid):
        return 0.0
    return np.count_nonzero(seen & _inside(at, options)) / num_known


def map_views(a: View, b: View, points: FloatArray) -> tuple[FloatArray, BoolArray]:
    """Return where view B shows what view A shows at points, and whether it sees it.

    As `map_pixels`; a point that B sees may still lie outside the picture.
    """
    in_a, in_front = map_points(a.frame_from_view, points)
    in_b, seen = map_pixels(a.frame, b.frame, in_a)
    at, in_front_b = map_points(_inverse(b.frame_from_view), in_b)
    return at, seen & in_front & in_front_b


def pair_of_views(
    a: View,
    b: View,
    rng: np.random.Generator,
    *,
    options: ViewOptions,
    num_points: int,
) -> Pair:
    """Return two views as a training pair.

    Parameters
    ----------
    a, b : View
        Of frames of one world.
    rng : Generator
        What light and points are drawn from.
    options : ViewOptions
        Size of the views and strength of the light's change.
    num_points : int
        Rows of `Pair.points`.
    """
    corners = corners_in_view(
        a.frame.photo.corners,
        _inverse(a.frame_from_view),
        width=options.width,
        height=options.height,
    )

    def into_b(points: FloatArray) -> tuple[FloatArray, BoolArray]:
        return map_views(a, b, points)

    points, valid = draw_correspondences(
        corners, into_b, rng, options=options, num_points=num_points
    )
    return Pair(
        images=np.stack([_picture(view, rng, options) for view in (a, b)]),
        points=points,
        valid=valid,
    )


def _inverse(homography: FloatArray) -> FloatArray:
    return np.asarray(np.linalg.inv(homography), np.float64)


def _picture(
    view: View, rng: np.random.Generator, options: ViewOptions
) -> Float32Array:
    return take_view(view.frame.photo.image, view.frame_from_view, rng, options)


def _inside(points: FloatArray, options: ViewOptions) -> BoolArray:
    """Return which points lie in a view; nan does not."""
    size = np.array([options.width, options.height], np.float64)
    return np.asarray(np.all((points >= 0.0) & (points <= size), axis=1))

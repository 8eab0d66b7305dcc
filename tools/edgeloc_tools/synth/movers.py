"""Things that move by themselves: walkers, cars, and a crowd in front of the camera."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import cv2
import numpy as np

from edgeloc.types import ByteArray, CameraModel, FloatArray, Rigid3
from edgeloc_tools.synth import textures as tx
from edgeloc_tools.synth.scene import UP, Quad
from edgeloc_tools.synth.textures import Texture, make_texture

PERSON_SIZE_M = (0.6, 1.75)
MAX_COVERAGE = 0.8
CROSSING_S = 8.0
"""All of a crowd walk one way at one speed: bunched, they would hide less."""
_PERSON_TEXTURE_PX = (160, 468)


def make_person(rng: np.random.Generator) -> Texture:
    """Return the texture of a person, different each time."""
    image, alpha = tx.person(rng, *_PERSON_TEXTURE_PX)
    return make_texture(image, alpha=alpha)


def _there_and_back(time_s: float, period_s: float) -> float:
    """Return a position that goes from 0 to 1 and back with constant speed."""
    phase = (time_s / period_s) % 1.0
    return 1.0 - abs(1.0 - 2.0 * phase)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Walker:
    """A person who walks between two places and back, always seen from the front.

    Parameters
    ----------
    texture : Texture
        With a cut-out.
    start, end : (float, float, float)
        Where the feet are, world, m.
    speed_m_s : float
        Walking speed.
    """

    texture: Texture
    start: tuple[float, float, float]
    end: tuple[float, float, float]
    speed_m_s: float = 1.0

    def quads_at(self, time_s: float, cam_from_world: Rigid3) -> list[Quad]:
        """Return the person at a time, turned to the camera."""
        first, last = np.array(self.start), np.array(self.end)
        period_s = 2 * max(float(np.linalg.norm(last - first)), 1e-6) / self.speed_m_s
        feet = first + _there_and_back(time_s, period_s) * (last - first)
        away = feet - cam_from_world.origin_in_a
        right = np.cross(away, UP)
        length = float(np.linalg.norm(right))
        right = np.array([0.0, -1.0, 0.0]) if length < 1e-6 else right / length
        width, height = PERSON_SIZE_M
        return [
            Quad(
                origin=feet + UP * height - right * width / 2,
                edge_u=right * width,
                edge_v=-UP * height,
                texture=self.texture,
                two_sided=True,
            )
        ]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Traffic:
    """Rectangles that drive through again and again.

    Parameters
    ----------
    quads : tuple of Quad
        At its start.
    velocity_m_s : (float, float, float)
        World.
    period_s : float
        After which it is back at its start.
    """

    quads: tuple[Quad, ...]
    velocity_m_s: tuple[float, float, float]
    period_s: float

    def quads_at(self, time_s: float, cam_from_world: Rigid3) -> list[Quad]:  # noqa: ARG002
        """Return the rectangles at a time."""
        shift = np.array(self.velocity_m_s) * (time_s % self.period_s)
        return [replace(quad, origin=quad.origin + shift) for quad in self.quads]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Crowd:
    """People who walk past right before the camera and hide a share of its picture.

    They keep to the camera, 0.8 to 1.2 m before it, whatever it does, so that the
    share is the same in every frame.

    Parameters
    ----------
    camera : CameraModel
        Whose picture is meant.
    coverage : float
        Share of the pixels that is hidden, in (0, 0.8].
    textures : tuple of Texture
        The people, with cut-outs.
    phases : tuple of float
        Where each starts, in [0, 1).
    """

    camera: CameraModel
    coverage: float
    textures: tuple[Texture, ...]
    phases: tuple[float, ...]

    def __post_init__(self) -> None:
        if not 0.0 < self.coverage <= MAX_COVERAGE:
            raise ValueError(f"{self.coverage=} must be in (0, {MAX_COVERAGE}]")

    def quads_at(self, time_s: float, cam_from_world: Rigid3) -> list[Quad]:
        """Return the people at a time, large enough to hide the wanted share."""
        low, high = 0.02, 6.0
        for _ in range(14):
            size = math.sqrt(low * high)
            if self._covered(self._boxes(time_s, size)) < self.coverage:
                low = size
            else:
                high = size
        world_from_cam = cam_from_world.inverse()
        quads = []
        boxes = self._boxes(time_s, high)
        for idx, (box, texture) in enumerate(zip(boxes, self.textures, strict=True)):
            depth = 0.8 + 0.4 * idx / len(self.textures)
            left, top, width, height = box * depth
            quads.append(
                Quad(
                    origin=world_from_cam.transform([left, top, depth]),
                    edge_u=world_from_cam.R @ np.array([width, 0.0, 0.0]),
                    edge_v=world_from_cam.R @ np.array([0.0, height, 0.0]),
                    texture=texture,
                    two_sided=True,
                )
            )
        return quads

    def _frame(self) -> FloatArray:
        """Return left, top, right and bottom of the picture in bearing units."""
        (fx, fy), (cx, cy) = self.camera.focal_px, self.camera.principal_point_px
        width, height = self.camera.width, self.camera.height
        return np.array([-cx / fx, -cy / fy, (width - cx) / fx, (height - cy) / fy])

    def _boxes(self, time_s: float, size: float) -> FloatArray:
        """Return left, top, width, height of each person in bearing units, (N, 4)."""
        left, top, right, bottom = self._frame()
        out = []
        for phase in self.phases:
            along = (phase + time_s / CROSSING_S) % 1.0
            height = size * (bottom - top)
            width = height * PERSON_SIZE_M[0] / PERSON_SIZE_M[1]
            # They come in from beyond the border, so that none pops up.
            middle = left - width / 2 + along * (right - left + width)
            out.append([middle - width / 2, bottom - 0.85 * height, width, height])
        return np.array(out)

    def _covered(self, boxes: FloatArray) -> float:
        """Return the share of the picture that people in these places hide."""
        left, top, right, bottom = self._frame()
        rows, columns = 120, 160
        scale = np.array([columns / (right - left), rows / (bottom - top)])
        canvas: ByteArray = np.zeros((rows, columns), np.uint8)
        for box, texture in zip(boxes, self.textures, strict=True):
            if texture.alpha is None:
                continue
            height_px, width_px = texture.alpha.shape
            zoom = box[2:] * scale / (width_px, height_px)
            shift = (box[:2] - (left, top)) * scale
            placed = cv2.warpAffine(
                texture.alpha,
                np.array([[zoom[0], 0, shift[0]], [0, zoom[1], shift[1]]]),
                (columns, rows),
                flags=cv2.INTER_NEAREST,
            )
            np.maximum(canvas, placed, out=canvas)
        return float((canvas >= 128).mean())


def make_crowd(seed: int, camera: CameraModel, *, coverage: float) -> Crowd:
    """Return six people who hide a share of the picture."""
    rng = np.random.default_rng([seed, 5])
    num = 6
    phases = (np.arange(num) + rng.uniform(0, 0.3, num)) / num
    return Crowd(
        camera=camera,
        coverage=coverage,
        textures=tuple(make_person(rng) for _ in range(num)),
        phases=tuple(float(p) for p in phases),
    )


def make_walkers(
    seed: int, places: Sequence[tuple[tuple[float, float, float], ...]]
) -> list[Walker]:
    """Return a person for each (start, end)."""
    rng = np.random.default_rng([seed, 6])
    return [
        Walker(
            texture=make_person(rng),
            start=start,
            end=end,
            speed_m_s=float(rng.uniform(0.8, 1.4)),
        )
        for start, end in places
    ]

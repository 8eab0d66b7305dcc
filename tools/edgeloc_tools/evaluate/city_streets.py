"""Procedural streets of a synthetic city, block by block, as contents of a site.

Each block fills one cube of the site's grid with crossing streets: facades of varied
height and setback on both sides, poles and cars before them, the ground. A camera
drives along each and takes a keyframe per metre. What a keyframe sees is what projects
into its picture, for as long as a feature would be tracked.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from edgeloc.features.keyframe_index import global_coding
from edgeloc.features.quantizer import ProductQuantizer
from edgeloc.localize.coarse import CoarseCalibration
from edgeloc.localize.fix import FixCalibration
from edgeloc.tiles.layout import (
    Codebook,
    FamilySpec,
    KeyframeTable,
    LandmarkTable,
    PoseArrays,
    SiteContents,
)
from edgeloc.types import (
    ByteArray,
    CameraModel,
    Float32Array,
    FloatArray,
    IntArray,
)
from edgeloc_tools.mapping.coarse_lists import make_lists

CAMERA = CameraModel(
    model="PINHOLE", width=640, height=480, params=(450.0, 450.0, 320.0, 240.0)
)
BLOCK_M = 512.0
"""Edge of a block, a power of two."""
STREET_KEYFRAMES = 480
"""Keyframes of a whole street, one per metre."""
_STREETS = ((True, 120.0), (True, 376.0), (False, 136.0), (False, 392.0))
"""Streets of a block: whether along x, and where on the other axis, m."""
_FIRST_M = 4.0
_BEYOND_M = 26.0
"""How far a street goes on behind its last keyframe."""
_EYE_M = 1.6
_JITTER_M = 12.0
_MAX_TRACK = 10
_MARGIN_PX = 8.0
_STEP_M = 2.0**-7
_GROUND_M = -1.0
"""Least height of the grid: a facade of 30 m and its street fit one cell of 32 m."""
_LOOKS_CHANGE_M = 10.0
"""Distance over which a street comes to look different."""
_EVERYWHERE, _STREET, _HERE, _MOMENT = 0.5, 0.4, 0.8, 0.2
"""How much of a global descriptor is that of the city, street, place and picture."""


@dataclass(frozen=True, kw_only=True, eq=False)
class City:
    """What a city is made of.

    Parameters
    ----------
    num_keyframes : int
        One per metre of street.
    landmarks_per_keyframe : int
        Landmarks for each keyframe.
    descriptor_codebook, global_codebook : Codebook
        What codes stand for.
    real_codes : ndarray of shape (N, M), uint8, or None
        Codes of real descriptors, from which those of landmarks are drawn.
    seed : int
        Of everything.
    """

    num_keyframes: int
    landmarks_per_keyframe: int
    descriptor_codebook: Codebook
    global_codebook: Codebook
    real_codes: ByteArray | None = None
    seed: int = 0

    @cached_property
    def descriptor_quantizer(self) -> ProductQuantizer:
        """Of landmarks' descriptors."""
        return ProductQuantizer.from_arrays(self.descriptor_codebook.arrays)

    @cached_property
    def global_quantizer(self) -> ProductQuantizer:
        """Of global descriptors."""
        return ProductQuantizer.from_arrays(self.global_codebook.arrays)

    def blocks(self) -> Iterator[SiteContents]:
        """Yield the blocks, for `edgeloc.tiles.writer.write_site_in_blocks`."""
        per_block = len(_STREETS) * STREET_KEYFRAMES
        num_blocks = -(-self.num_keyframes // per_block)
        side = math.ceil(math.sqrt(num_blocks))
        for number in range(num_blocks):
            first = number * per_block
            corner = BLOCK_M * np.array([number % side, number // side, 0.0])
            yield self._block(number, first, corner)

    def _block(self, number: int, first: int, corner: FloatArray) -> SiteContents:
        rng = np.random.default_rng([self.seed, number])
        places = [at + rng.uniform(-_JITTER_M, _JITTER_M) for _, at in _STREETS]
        widths = rng.uniform(5.0, 10.0, len(_STREETS))
        streets = []
        left = self.num_keyframes - first
        for k, (along_x, _) in enumerate(_STREETS):
            count = min(STREET_KEYFRAMES, left - k * STREET_KEYFRAMES)
            if count <= 0:
                break
            crossings = [
                (place, width + 2.0)
                for place, width, (other, _) in zip(
                    places, widths, _STREETS, strict=True
                )
                if other != along_x
            ]
            streets.append(
                _make_street(
                    rng,
                    count=count,
                    num_landmarks=count * self.landmarks_per_keyframe,
                    half_width=float(widths[k]),
                    crossings=crossings,
                ).placed(along_x=along_x, at=places[k], corner=corner)
            )
        codes = [self._global_codes(rng, len(street.centers)) for street in streets]
        return self._contents(rng, streets, first=first, global_codes=codes)

    def _contents(
        self,
        rng: np.random.Generator,
        streets: list[_Street],
        *,
        first: int,
        global_codes: list[ByteArray],
    ) -> SiteContents:
        num_points = [len(street.points3D) for street in streets]
        starts = np.cumsum([0, *num_points])
        total = int(starts[-1])
        R = np.concatenate([street.R for street in streets])
        centers = np.concatenate([street.centers for street in streets])
        quantizer = self.descriptor_quantizer
        return SiteContents(
            name=f"synthetic city, {self.num_keyframes / 1000:g} km",
            metric=True,
            cameras={"cam": CAMERA},
            family=FamilySpec(
                name=self.descriptor_codebook.name.rsplit("-pq", 1)[0],
                stored_dtype="uint8",
                stored_dim=quantizer.num_parts,
                max_keypoints=1000,
                coding="pq",
            ),
            keyframes=KeyframeTable(
                keyframe_ids=first + np.arange(len(R)),
                camera_ids=("cam",) * len(R),
                poses=PoseArrays(R=R, t=-np.einsum("kij,kj->ki", R, centers)),
                global_codes=np.concatenate(global_codes),
            ),
            landmarks=LandmarkTable(
                points3D=np.concatenate([street.points3D for street in streets]),
                sigmas=np.concatenate([street.sigmas for street in streets]),
                num_observations=np.concatenate(
                    [street.num_observations for street in streets]
                ),
                descriptor_offsets=np.arange(total + 1),
                descriptors=draw_codes(rng, total, quantizer, self.real_codes),
            ),
            visible_offsets=np.cumsum(
                [0, *(n for street in streets for n in street.num_visible.tolist())]
            ),
            visible_landmark_idx=np.concatenate(
                [s.visible + start for s, start in zip(streets, starts, strict=False)]
            ),
            retrieval_arrays={
                **CoarseCalibration(
                    min_score=0.5,
                    position_sigma=1.0,
                    rotation_sigma_rad=0.05,
                    keyframe_spacing=1.0,
                ).to_arrays(),
                **FixCalibration().to_arrays(),
            },
            row_arrays=self._lists,
            codebooks={
                "descriptors": self.descriptor_codebook,
                "global": self.global_codebook,
            },
            global_coding="pq",
            position_step=_STEP_M,
            grid_origin=(0.0, 0.0, _GROUND_M),
            gravity_in_world=(0.0, 0.0, -1.0),
        )

    def _lists(
        self, codes: npt.NDArray[np.generic]
    ) -> dict[str, npt.NDArray[np.generic]]:
        coding = global_coding("pq", self.global_codebook.arrays)
        return make_lists(codes, coding.decode)

    def _global_codes(self, rng: np.random.Generator, count: int) -> ByteArray:
        """Return global descriptors that change slowly along a street."""
        dim = self.global_quantizer.dim
        city = np.random.default_rng([self.seed, 1 << 30]).normal(size=dim)
        knots = rng.normal(size=(int(count / _LOOKS_CHANGE_M) + 2, dim))
        at = np.arange(count) / _LOOKS_CHANGE_M
        low = at.astype(np.int64)
        # A quarter of a circle between two knots keeps the length.
        angle = (at - low)[:, None] * (np.pi / 2)
        here = np.cos(angle) * knots[low] + np.sin(angle) * knots[low + 1]
        vectors = (
            _EVERYWHERE * city
            + _STREET * rng.normal(size=dim)
            + _HERE * here
            + _MOMENT * rng.normal(size=(count, dim))
        )
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        return self.global_quantizer.encode(vectors.astype(np.float32))


def draw_codes(
    rng: np.random.Generator,
    count: int,
    quantizer: ProductQuantizer,
    real_codes: ByteArray | None,
) -> ByteArray:
    """Return codes of descriptors, (count, M).

    Parameters
    ----------
    rng : Generator
        Randomness.
    count : int
        How many.
    quantizer : ProductQuantizer
        What they are codes of.
    real_codes : ndarray of shape (N, M), uint8, or None
        Two parts of each code drawn from these become those of another one, so that
        there are more different ones; None: any codes.
    """
    num_parts = quantizer.num_parts
    if real_codes is None:
        return rng.integers(0, 256, (count, num_parts), dtype=np.uint8)
    codes = real_codes[rng.integers(0, len(real_codes), count)]
    rows = np.arange(count)
    for _ in range(2):
        part = rng.integers(0, num_parts, count)
        codes[rows, part] = real_codes[rng.integers(0, len(real_codes), count), part]
    return codes


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Street:
    """One street, along x from 0 until `placed`; z is up."""

    R: FloatArray
    centers: FloatArray
    points3D: FloatArray
    sigmas: Float32Array
    num_observations: IntArray
    num_visible: IntArray
    visible: IntArray

    def placed(self, *, along_x: bool, at: float, corner: FloatArray) -> _Street:
        """Return the street where it belongs."""
        turn = np.eye(3)
        if not along_x:
            turn = np.array([[0.0, -1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 1.0]])
        shift = corner + (np.array([0, at, 0]) if along_x else np.array([at, 0, 0]))
        return _Street(
            R=self.R @ turn.T,
            centers=self.centers @ turn.T + shift,
            points3D=self.points3D @ turn.T + shift,
            sigmas=self.sigmas,
            num_observations=self.num_observations,
            num_visible=self.num_visible,
            visible=self.visible,
        )


def _bend(x: FloatArray, sway: float, phase: float) -> FloatArray:
    return np.asarray(sway * np.sin(x / 60.0 + phase))


def _make_street(
    rng: np.random.Generator,
    *,
    count: int,
    num_landmarks: int,
    half_width: float,
    crossings: list[tuple[float, float]],
) -> _Street:
    sway, phase = rng.uniform(0, 3.0), rng.uniform(0, 2 * np.pi)
    x = np.asarray(_FIRST_M + np.arange(count), np.float64)
    heading = np.arctan(sway / 60.0 * np.cos(x / 60.0 + phase))
    heading += rng.normal(scale=0.01, size=count)
    centers = np.stack(
        [x, _bend(x, sway, phase) - 0.2 * half_width, np.full(count, _EYE_M)], axis=1
    )
    centers[:, 1:] += rng.normal(scale=0.03, size=(count, 2))
    zero, one = np.zeros(count), np.ones(count)
    right = np.stack([np.sin(heading), -np.cos(heading), zero], axis=1)
    forward = np.stack([np.cos(heading), np.sin(heading), zero], axis=1)
    R = np.stack([right, np.stack([zero, zero, -one], axis=1), forward], axis=1)

    length = count + _BEYOND_M
    facades = _Facades.drawn(rng, length)
    points, first, tracked = [], [], []
    found = 0
    while found < num_landmarks:
        size = 2 * (num_landmarks - found) + 100
        at = rng.uniform(_FIRST_M, length, size)
        local = facades.points(rng, at, half_width=half_width, crossings=crossings)
        local[:, 1] += _bend(at, sway, phase)
        # From where it is first seen to where it leaves the picture.
        distance = rng.exponential(6.0, size) + 5.0
        last = np.floor(at - _FIRST_M - distance).astype(np.int64)
        begin = np.maximum(last - rng.geometric(0.3, size).clip(1, _MAX_TRACK - 1), 0)
        keep = (last > begin) & (last < count) & ~np.isnan(local[:, 0])
        # In the picture at both ends is in the picture between them.
        for row in (begin, last):
            rows = np.clip(row, 0, count - 1)
            seen = np.einsum("nij,nj->ni", R[rows], local - centers[rows])
            depth = np.maximum(seen[:, 2], 1e-3)
            for axis, size_px in ((0, CAMERA.width), (1, CAMERA.height)):
                px = 450.0 * seen[:, axis] / depth + size_px / 2
                keep &= (px > _MARGIN_PX) & (px < size_px - _MARGIN_PX)
        kept = np.flatnonzero(keep)[: num_landmarks - found]
        points.append(local[kept])
        first.append(begin[kept])
        tracked.append(last[kept] - begin[kept] + 1)
        found += len(kept)
    points3D, num = np.concatenate(points), np.concatenate(tracked)
    begins = np.concatenate(first)
    landmark = np.repeat(np.arange(len(num)), num)
    step = np.arange(len(landmark)) - np.repeat(np.cumsum(num) - num, num)
    keyframe = np.repeat(begins, num) + step
    order = np.argsort(keyframe.astype(np.uint16), kind="stable")
    depth = np.linalg.norm(points3D - centers[begins], axis=1)
    return _Street(
        R=R,
        centers=centers,
        points3D=points3D,
        sigmas=(0.005 + 0.002 * depth).astype(np.float32),
        num_observations=num,
        num_visible=np.bincount(keyframe, minlength=count),
        visible=landmark[order],
    )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Facades:
    """The houses on both sides: where each ends, its height and setback, m."""

    ends: FloatArray
    heights: FloatArray
    setbacks: FloatArray

    @staticmethod
    def drawn(rng: np.random.Generator, length: float) -> _Facades:
        num = int(length / 8.0) + 2
        return _Facades(
            ends=np.cumsum(rng.uniform(8.0, 22.0, num)),
            heights=rng.uniform(6.0, 26.0, (num, 2)),
            setbacks=rng.uniform(0.0, 3.0, (num, 2)),
        )

    def points(
        self,
        rng: np.random.Generator,
        at: FloatArray,
        *,
        half_width: float,
        crossings: list[tuple[float, float]],
    ) -> FloatArray:
        """Return points on what stands along a street; nan where there is nothing."""
        size = len(at)
        house = np.minimum(np.searchsorted(self.ends, at), len(self.ends) - 1)
        side = rng.integers(0, 2, size)
        sign = 2.0 * side - 1.0
        kind = rng.random(size)
        wall = half_width + self.setbacks[house, side]
        height = self.heights[house, side] * rng.random(size)
        # Windows and cornices stand out of the wall.
        y = sign * (wall - 0.3 * rng.random(size))
        z = height
        low = kind > 0.6  # cars, poles, people before the houses
        y = np.where(low, sign * half_width * rng.uniform(0.55, 1.0, size), y)
        z = np.where(low, rng.uniform(0.1, 2.5, size), z)
        ground = kind > 0.82
        y = np.where(ground, half_width * rng.uniform(-1.0, 1.0, size), y)
        z = np.where(ground, 0.0, z)
        points = np.stack([at, y, z], axis=1)
        for place, width in crossings:
            points[(np.abs(at - place) < width) & ~ground] = np.nan
        return points

"""Textures of walls, furniture, houses, signs, people and skies, of noise and glyphs.

Every function takes a `numpy.random.Generator` and a size in texels and returns a BGR
image; equal generators give equal bytes. The spectra fall like 1/f, as in photographs,
and every texture differs from every other of its kind, so that places can be told
apart.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from edgeloc.types import ByteArray, Float32Array, FloatArray

Colour = tuple[float, float, float]

_CONSONANTS = "BCDFGHKLMNPRSTVZ"
_VOWELS = "AEIOU"
_FONTS = (
    cv2.FONT_HERSHEY_SIMPLEX,
    cv2.FONT_HERSHEY_DUPLEX,
    cv2.FONT_HERSHEY_COMPLEX,
    cv2.FONT_HERSHEY_TRIPLEX,
    cv2.FONT_HERSHEY_SCRIPT_COMPLEX,
)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Texture:
    """An image and its halvings, for filtering at any distance.

    Parameters
    ----------
    levels : tuple of ndarray of shape (H, W, 3), uint8
        BGR, level 0 first.
    alpha : ndarray of shape (H, W), uint8, or None
        Cut-out: texels below 128 are not there.
    wrap : bool
        Whether the texture repeats beyond its edges.
    """

    levels: tuple[ByteArray, ...]
    alpha: ByteArray | None = None
    wrap: bool = False

    @property
    def size_px(self) -> tuple[int, int]:
        """(width, height) of level 0."""
        height, width = self.levels[0].shape[:2]
        return width, height


def make_texture(
    image: ByteArray, *, alpha: ByteArray | None = None, wrap: bool = False
) -> Texture:
    """Return a texture with its pyramid.

    Parameters
    ----------
    image : ndarray of shape (H, W, 3), uint8
        BGR.
    alpha : ndarray of shape (H, W), uint8, optional
        Cut-out.
    wrap : bool
        Whether it repeats.

    Returns
    -------
    Texture
    """
    levels = [np.ascontiguousarray(image)]
    while min(levels[-1].shape[:2]) >= 4:
        height, width = levels[-1].shape[:2]
        half = cv2.resize(
            levels[-1],
            ((width + 1) // 2, (height + 1) // 2),
            interpolation=cv2.INTER_AREA,
        )
        levels.append(np.asarray(half, dtype=np.uint8))
    return Texture(levels=tuple(levels), alpha=alpha, wrap=wrap)


def as_bgr(colour: Sequence[float]) -> Float32Array:
    """Return a colour as float32."""
    return np.asarray(colour, dtype=np.float32)


def to_bytes(image: Float32Array) -> ByteArray:
    """Return an image in [0, 255], rounded."""
    return np.asarray(np.clip(image + 0.5, 0, 255).astype(np.uint8))


def blank(width_px: int, height_px: int, colour: Colour) -> Float32Array:
    """Return a plain image, (H, W, 3) float32."""
    return np.full((height_px, width_px, 3), colour, dtype=np.float32)


def noise(
    rng: np.random.Generator,
    size_px: tuple[int, int],
    *,
    coarsest_px: float = 256.0,
    falloff: float = 0.6,
    stretch: float = 1.0,
) -> Float32Array:
    """Return fractal noise of mean 0 and standard deviation 1.

    Parameters
    ----------
    rng : Generator
        Source of randomness.
    size_px : (int, int)
        Width and height.
    coarsest_px : float
        Wavelength of the first octave.
    falloff : float
        Amplitude of an octave relative to the one before; 0.5 is 1/f.
    stretch : float
        Wavelength along x over wavelength along y.

    Returns
    -------
    ndarray of shape (height, width), float32
    """
    width, height = size_px
    out = np.zeros((2, 2), np.float32)
    amplitude, wavelength = 1.0, coarsest_px
    while wavelength >= 1.0:
        columns = min(width, max(2, math.ceil(width / (wavelength * stretch))))
        rows = min(height, max(2, math.ceil(height / wavelength)))
        # Each octave is added on its own grid and only then enlarged.
        out = _enlarge(out, columns, rows)
        octave = rng.standard_normal((rows, columns), dtype=np.float32)
        out = out + np.float32(amplitude) * octave
        amplitude *= falloff
        wavelength /= 2.0
    out = _enlarge(out, width, height)
    out = out - out.mean()
    return np.asarray(out / (out.std() + np.float32(1e-6)), dtype=np.float32)


def _enlarge(grid: Float32Array, columns: int, rows: int) -> Float32Array:
    size = (columns, rows)
    return np.asarray(
        cv2.resize(grid, size, interpolation=cv2.INTER_CUBIC), dtype=np.float32
    )


def random_colour(
    rng: np.random.Generator,
    *,
    saturation: tuple[float, float] = (0.15, 0.85),
    value: tuple[float, float] = (0.25, 0.95),
) -> Colour:
    """Return a BGR colour of random hue."""
    hsv = np.array(
        [[[rng.uniform(0, 360), rng.uniform(*saturation), rng.uniform(*value)]]],
        dtype=np.float32,
    )
    b, g, r = 255.0 * np.asarray(cv2.cvtColor(hsv, cv2.COLOR_HSV2BGR))[0, 0]
    return float(b), float(g), float(r)


def earthy_colour(rng: np.random.Generator) -> Colour:
    """Return a BGR colour of walls: sand, brick, grey, now and then green or blue."""
    hue_deg = (rng.normal(28, 12) if rng.random() < 0.8 else rng.uniform(80, 230)) % 360
    pixel = np.array(
        [[[hue_deg, rng.uniform(0.05, 0.42), rng.uniform(0.42, 0.88)]]], np.float32
    )
    b, g, r = 255.0 * np.asarray(cv2.cvtColor(pixel, cv2.COLOR_HSV2BGR))[0, 0]
    return float(b), float(g), float(r)


def random_word(rng: np.random.Generator, num_syllables: int) -> str:
    """Return a pronounceable word in capitals."""
    return "".join(
        _CONSONANTS[rng.integers(len(_CONSONANTS))] + _VOWELS[rng.integers(5)]
        for _ in range(num_syllables)
    )


def draw_text(
    image: Float32Array,
    text: str,
    box: tuple[float, float, float, float],
    *,
    colour: Colour,
    font: int = cv2.FONT_HERSHEY_DUPLEX,
    weight: float = 1.0,
) -> None:
    """Draw `text` to fill `box` (x, y, width, height; px) of `image` in place."""
    x, y, width, height = box
    (base_width, base_height), base_line = cv2.getTextSize(text, font, 1.0, 1)
    scale = min(width / max(base_width, 1), height / (base_height + base_line))
    if scale * base_height < 2.0:
        return
    # OpenCV 5 writes on 8-bit images only.
    left, top = max(0, int(x)), max(0, int(y))
    part = image[top : math.ceil(y + height), left : math.ceil(x + width)]
    mask = np.zeros(part.shape[:2], np.uint8)
    origin = (round((width - scale * base_width) / 2), round(scale * base_height))
    thickness = max(1, round(2.2 * scale * weight))
    cv2.putText(mask, text, origin, font, scale, 255, thickness, cv2.LINE_AA)
    cover = mask[..., None].astype(np.float32) / np.float32(255)
    part += cover * (as_bgr(colour) - part)


def _shift(colour: Colour, factor: float) -> Colour:
    b, g, r = colour
    return b * factor, g * factor, r * factor


def _stain(image: Float32Array, rng: np.random.Generator, count: int) -> None:
    """Draw scratches, cracks and spots in place."""
    height, width = image.shape[:2]
    for _ in range(count):
        at = rng.uniform((0, 0), (width, height))
        tone = float(rng.uniform(0.55, 1.3))
        under = image[min(int(at[1]), height - 1), min(int(at[0]), width - 1)]
        colour = tuple(float(c) * tone for c in under)
        if rng.random() < 0.6:
            line = _wander(rng, at, reach_px=float(rng.uniform(8, 60)))
            cv2.polylines(image, [line], False, colour, 1, cv2.LINE_AA)
        else:
            radius = np.abs(rng.normal(0, 3.0, 2)) + 1.0
            cv2.ellipse(
                image,
                (int(at[0]), int(at[1])),
                (int(radius[0]), int(radius[1])),
                float(rng.uniform(0, 180)),
                0,
                360,
                colour,
                -1,
            )


def _wander(
    rng: np.random.Generator, start: FloatArray, *, reach_px: float
) -> NDArray[np.int32]:
    """Return a crooked line, (N, 2) px, that keeps roughly to one direction."""
    num_steps = max(4, int(reach_px / 5))
    turn = rng.uniform(0, 2 * math.pi) + np.cumsum(rng.normal(0, 0.45, num_steps))
    steps = np.stack([np.cos(turn), np.sin(turn)], axis=1) * reach_px / num_steps
    return np.rint(start + np.cumsum(steps, axis=0)).astype(np.int32)


def plaster(
    rng: np.random.Generator, width_px: int, height_px: int, *, colour: Colour
) -> ByteArray:
    """Return a painted wall with clouds, grain, scratches and a skirting board."""
    image = blank(width_px, height_px, colour)
    size = (width_px, height_px)
    image *= 1.0 + 0.05 * noise(rng, size, coarsest_px=400)[..., None]
    image *= 1.0 + 0.025 * noise(rng, size, coarsest_px=6, falloff=0.9)[..., None]
    if rng.random() < 0.5:
        _wallpaper(image, rng)
    _stain(image, rng, 60 + width_px * height_px // 9000)
    down = np.linspace(0, 1, height_px, dtype=np.float32)[:, None, None]
    image *= 1.04 - 0.16 * down**3
    skirting = max(4, height_px // 26)
    image[-skirting:] = 0.35 * image[-skirting:] + 25
    image[-skirting : -skirting + 2] *= 0.5
    return to_bytes(image)


def _wallpaper(image: Float32Array, rng: np.random.Generator) -> None:
    """Print a repeated motif on a wall, in place: ambiguity on purpose."""
    height, width = image.shape[:2]
    period = int(rng.integers(70, 130))
    motif = np.zeros((period, period), np.float32)
    for _ in range(3):
        centre = rng.uniform(0.25, 0.75, 2) * period
        cv2.ellipse(
            motif,
            (int(centre[0]), int(centre[1])),
            (int(rng.uniform(4, 0.25 * period)), int(rng.uniform(3, 0.15 * period))),
            float(rng.uniform(0, 180)),
            0,
            360,
            float(rng.choice([-1.0, 1.0])),
            int(rng.choice([-1, 2])),
            cv2.LINE_AA,
        )
    rows, columns = -(-height // period), -(-width // period)
    image *= 1.0 + 0.12 * np.tile(motif, (rows, columns))[:height, :width, None]


def wood(
    rng: np.random.Generator, width_px: int, height_px: int, *, planks: int = 1
) -> ByteArray:
    """Return boards with grain along x."""
    tone = rng.uniform(0.5, 1.15)
    base = (70 * tone, 115 * tone, 165 * tone)
    image = blank(width_px, height_px, base)
    edges = np.linspace(0, height_px, planks + 1).astype(int)
    for top, bottom in itertools.pairwise(edges):
        cuts = [0, *np.sort(rng.integers(0, width_px, planks // 3)).tolist(), width_px]
        for left, right in itertools.pairwise(cuts):
            size = (right - left, bottom - top)
            if min(size) < 4:
                continue
            grain = noise(rng, size, coarsest_px=60, falloff=0.75, stretch=12.0)
            rings = np.sin(2.0 * noise(rng, size, coarsest_px=150, stretch=5.0) * 3.0)
            board = image[top:bottom, left:right]
            board *= (
                rng.uniform(0.8, 1.15) * (1 + 0.10 * grain + 0.05 * rings)[..., None]
            )
            if planks > 1:
                board[:2] *= 0.45
                board[:, :2] *= 0.5
    _stain(image, rng, 20 + width_px * height_px // 12000)
    return to_bytes(image)


def tiles(
    rng: np.random.Generator, width_px: int, height_px: int, *, tile_px: int
) -> ByteArray:
    """Return floor tiles: the same grid everywhere, each tile a little different."""
    colours = [random_colour(rng, saturation=(0.05, 0.35)) for _ in range(2)]
    image = blank(width_px, height_px, colours[0])
    for row, top in enumerate(range(0, height_px, tile_px)):
        for column, left in enumerate(range(0, width_px, tile_px)):
            tone = float(rng.normal(1.0, 0.08))
            image[top : top + tile_px, left : left + tile_px] = _shift(
                colours[(row + column) % 2], tone
            )
    size = (width_px, height_px)
    image *= 1 + 0.07 * noise(rng, size, coarsest_px=200, falloff=0.7)[..., None]
    for at in range(0, max(width_px, height_px), tile_px):
        image[at : at + 3] *= 0.55
        image[:, at : at + 3] *= 0.55
    _stain(image, rng, 100 + width_px * height_px // 7000)
    return to_bytes(image)


def ceiling(
    rng: np.random.Generator, width_px: int, height_px: int, *, panel_px: int
) -> ByteArray:
    """Return suspended ceiling panels with pinholes: weak and repeated texture."""
    image = blank(width_px, height_px, (205, 212, 215))
    size = (width_px, height_px)
    image *= 1 + 0.03 * noise(rng, size, coarsest_px=300)[..., None]
    spots = rng.random((height_px, width_px)) < 0.012
    image[spots] *= rng.uniform(0.5, 0.85, (int(spots.sum()), 1)).astype(np.float32)
    for at in range(0, max(size), panel_px):
        image[at : at + 4] *= 0.62
        image[:, at : at + 4] *= 0.62
    _stain(image, rng, 60)
    return to_bytes(image)


def bricks(
    rng: np.random.Generator,
    width_px: int,
    height_px: int,
    *,
    colour: Colour,
    brick_px: tuple[int, int] = (36, 12),
) -> ByteArray:
    """Return a brick wall, each brick of its own tone."""
    brick_width, brick_height = brick_px
    rows = -(-height_px // brick_height)
    columns = -(-width_px // brick_width) + 1
    tones = rng.normal(1.0, 0.13, (rows, columns)).astype(np.float32)
    # Courses of one parity share their joints: work on whole courses, not on texels.
    odd = (np.arange(rows) % 2 == 1)[:, None]
    x = np.arange(width_px)[None, :] + odd * (brick_width // 2)
    tone = np.take_along_axis(tones, np.minimum(x // brick_width, columns - 1), axis=1)
    y = np.arange(height_px)
    course = y // brick_height
    joint = (x % brick_width < 2)[course] | (y % brick_height < 2)[:, None]
    image = blank(width_px, height_px, colour)
    image *= tone[course][..., None]
    image[joint] = 0.4 * image[joint] + 0.6 * as_bgr([165, 172, 176])
    size = (width_px, height_px)
    image *= 1 + 0.08 * noise(rng, size, coarsest_px=300, falloff=0.75)[..., None]
    _stain(image, rng, width_px * height_px // 8000)
    return to_bytes(image)


def poster(rng: np.random.Generator, width_px: int, height_px: int) -> ByteArray:
    """Return a printed poster: colour fields, shapes, a title and lines of text."""
    top, bottom = (as_bgr(random_colour(rng)) for _ in range(2))
    ramp = np.linspace(0, 1, height_px, dtype=np.float32)[:, None, None]
    image = np.ascontiguousarray(
        np.broadcast_to((1 - ramp) * top + ramp * bottom, (height_px, width_px, 3))
    )
    image += 14 * noise(rng, (width_px, height_px), coarsest_px=width_px / 2)[..., None]
    extent = np.array([width_px, height_px], dtype=np.float64)
    for _ in range(int(rng.integers(10, 26))):
        colour = random_colour(rng)
        at = rng.uniform(0, 1, 2) * extent
        size = rng.uniform(0.03, 0.28) * width_px
        filled = int(rng.choice([-1, -1, 2, 4]))
        centre = (int(at[0]), int(at[1]))
        kind = rng.integers(4)
        if kind == 0:
            cv2.circle(image, centre, int(size / 2) + 1, colour, filled, cv2.LINE_AA)
        elif kind == 1:
            corners = at + rng.normal(0, size, (int(rng.integers(3, 6)), 2))
            cv2.fillPoly(
                image, [np.rint(corners).astype(np.int32)], colour, cv2.LINE_AA
            )
        elif kind == 2:
            end = at + rng.normal(0, 2 * size, 2)
            cv2.line(
                image,
                centre,
                (int(end[0]), int(end[1])),
                colour,
                int(rng.integers(1, 8)),
                cv2.LINE_AA,
            )
        else:
            far = at + rng.uniform(0.3, 1.2, 2) * size
            cv2.rectangle(image, centre, (int(far[0]), int(far[1])), colour, filled)
    ink = (20.0, 20.0, 20.0) if image.mean() > 110 else (240.0, 240.0, 240.0)
    font = int(rng.choice(_FONTS))
    draw_text(
        image,
        random_word(rng, int(rng.integers(2, 4))),
        (0.08 * width_px, 0.05 * height_px, 0.84 * width_px, 0.16 * height_px),
        colour=ink,
        font=font,
        weight=1.6,
    )
    line_height = 0.045 * height_px
    for line in range(int(rng.integers(3, 8))):
        words = " ".join(random_word(rng, int(n)) for n in rng.integers(1, 4, 4))
        draw_text(
            image,
            words,
            (
                0.1 * width_px,
                0.62 * height_px + line * line_height,
                0.8 * width_px,
                0.8 * line_height,
            ),
            colour=ink,
        )
    border = max(3, width_px // 40)
    cv2.rectangle(
        image,
        (0, 0),
        (width_px - 1, height_px - 1),
        random_colour(rng, value=(0.05, 0.9)),
        2 * border,
    )
    return to_bytes(image)


def picture(rng: np.random.Generator, width_px: int, height_px: int) -> ByteArray:
    """Return a framed landscape: sky, ridges with noise, a sun, a wooden frame."""
    size = (width_px, height_px)
    image = blank(width_px, height_px, random_colour(rng, value=(0.6, 1.0)))
    image += 18 * noise(rng, size, coarsest_px=width_px / 2, stretch=2.5)[..., None]
    sun = (
        int(rng.uniform(0.2, 0.8) * width_px),
        int(rng.uniform(0.1, 0.3) * height_px),
    )
    cv2.circle(image, sun, width_px // 16, (190, 235, 250), -1, cv2.LINE_AA)
    columns = np.arange(width_px)
    for layer in range(4):
        profile = noise(rng, (width_px, 2), coarsest_px=width_px / (1.5 + layer))[0]
        level = (0.35 + 0.16 * layer) * height_px + 0.07 * height_px * profile
        below = np.arange(height_px)[:, None] > level[None, columns]
        shade = as_bgr(random_colour(rng, value=(0.2, 0.75)))
        grain = 1 + 0.22 * noise(rng, size, coarsest_px=48, falloff=0.8)
        image[below] = (shade * grain[..., None])[below]
    frame = max(4, width_px // 24)
    cv2.rectangle(
        image,
        (0, 0),
        (width_px - 1, height_px - 1),
        random_colour(rng, saturation=(0.3, 0.6), value=(0.15, 0.5)),
        2 * frame,
    )
    cv2.rectangle(
        image,
        (frame, frame),
        (width_px - 1 - frame, height_px - 1 - frame),
        (215, 225, 228),
        max(1, frame // 3),
    )
    return to_bytes(image)


def bookshelf(
    rng: np.random.Generator, width_px: int, height_px: int, *, boards: int = 5
) -> ByteArray:
    """Return the front of a full bookshelf, spines with titles."""
    image = wood(rng, width_px, height_px).astype(np.float32)
    edge = max(4, width_px // 40)
    pitch = (height_px - edge) / boards
    for board in range(boards):
        top, floor = edge + board * pitch, (board + 1) * pitch
        inside = image[int(top) : int(floor), edge:-edge]
        inside[:] = (22, 26, 30)
        x = float(edge)
        while x < width_px - 2 * edge:
            book_width = rng.uniform(0.025, 0.07) * width_px
            right = min(x + book_width, width_px - edge)
            if rng.random() < 0.07:
                x = right + rng.uniform(0.5, 2) * book_width
                continue
            book_top = floor - rng.uniform(0.6, 0.93) * (floor - top)
            spine = image[int(book_top) : int(floor), int(x) : int(right) - 1]
            if spine.size:
                spine[:] = _book(rng, spine.shape[1], spine.shape[0])
            x = right
    image *= (1 + 0.04 * noise(rng, (width_px, height_px), coarsest_px=8))[..., None]
    return to_bytes(image)


def _book(rng: np.random.Generator, width_px: int, height_px: int) -> Float32Array:
    """Return one spine, its title running down."""
    colour = random_colour(rng, value=(0.12, 0.9))
    lying = blank(height_px, width_px, colour)
    across = np.linspace(-1, 1, width_px, dtype=np.float32)[:, None, None]
    lying *= 1.1 - 0.35 * across**2
    ink = random_colour(rng, value=(0.0, 0.2) if sum(colour) > 330 else (0.8, 1.0))
    draw_text(
        lying,
        random_word(rng, int(rng.integers(2, 5))),
        (0.1 * height_px, 0.2 * width_px, 0.6 * height_px, 0.7 * width_px),
        colour=ink,
        font=int(rng.choice(_FONTS[:4])),
    )
    for at in rng.uniform(0.02, 0.98, 3):
        lying[:, int(at * height_px) : int(at * height_px) + 3] = ink
    turned = cv2.rotate(lying, cv2.ROTATE_90_CLOCKWISE)
    return np.asarray(turned, dtype=np.float32)


def carton(rng: np.random.Generator, width_px: int, height_px: int) -> ByteArray:
    """Return the side of a cardboard box with tape, a label and a mark."""
    tone = rng.uniform(0.75, 1.15)
    image = blank(width_px, height_px, (95 * tone, 140 * tone, 180 * tone))
    size = (width_px, height_px)
    image *= 1 + 0.06 * noise(rng, size, coarsest_px=90, falloff=0.75)[..., None]
    middle = height_px // 2
    tape = max(3, height_px // 14)
    image[middle - tape : middle + tape] *= as_bgr([1.1, 1.15, 1.2])
    box = (0.1 * width_px, 0.08 * height_px, 0.8 * width_px, 0.3 * height_px)
    ink = random_colour(rng, value=(0.1, 0.5))
    draw_text(image, random_word(rng, 3), box, colour=ink, font=int(rng.choice(_FONTS)))
    left, top = int(rng.uniform(0.1, 0.5) * width_px), int(0.6 * height_px)
    right, bottom = left + width_px // 3, top + height_px // 4
    cv2.rectangle(image, (left, top), (right, bottom), (235, 238, 240), -1)
    for bar in range(left + 3, right - 3, 3):
        if rng.random() < 0.55:
            image[top + 3 : (top + bottom) // 2 + 3, bar : bar + 2] = 25
    draw_text(
        image,
        str(rng.integers(10_000, 99_999)),
        (left + 3, (top + bottom) / 2 + 5, right - left - 6, (bottom - top) / 2 - 8),
        colour=(20, 20, 20),
    )
    _stain(image, rng, 25)
    cv2.rectangle(image, (0, 0), (width_px - 1, height_px - 1), (50, 75, 100), 3)
    return to_bytes(image)


def fabric(rng: np.random.Generator, width_px: int, height_px: int) -> ByteArray:
    """Return a woven carpet or cover: stripes, diamonds and a border."""
    image = blank(width_px, height_px, random_colour(rng, value=(0.3, 0.7)))
    y, x = np.mgrid[0:height_px, 0:width_px].astype(np.float32)
    for _ in range(4):
        angle = rng.uniform(0, math.pi)
        period = rng.uniform(18, 160)
        wave = np.sin(
            (math.cos(angle) * x + math.sin(angle) * y) * (2 * math.pi / period)
        )
        where = wave > rng.uniform(0.2, 0.8)
        image[where] = 0.4 * image[where] + 0.6 * as_bgr(random_colour(rng))
    for _ in range(width_px * height_px // 16000 + 4):
        centre = rng.uniform((0, 0), (width_px, height_px))
        half = rng.uniform(8, 60, 2)
        diamond = centre + half * np.array([[1, 0], [0, 1], [-1, 0], [0, -1]])
        cv2.fillPoly(
            image,
            [np.rint(diamond).astype(np.int32)],
            random_colour(rng),
            cv2.LINE_AA,
        )
    border = max(6, min(width_px, height_px) // 16)
    corner = (width_px - border // 2, height_px - border // 2)
    cv2.rectangle(image, (border // 2,) * 2, corner, random_colour(rng), border)
    weave = noise(rng, (width_px, height_px), coarsest_px=8, falloff=0.95)
    return to_bytes(image * (1 + 0.1 * weave)[..., None])


def door(rng: np.random.Generator, width_px: int, height_px: int) -> ByteArray:
    """Return a panelled door with a handle and a number plate."""
    image = blank(width_px, height_px, random_colour(rng, value=(0.25, 0.75)))
    image *= 1 + 0.05 * noise(rng, (width_px, height_px), coarsest_px=100)[..., None]
    for top, bottom in ((0.08, 0.42), (0.5, 0.92)):
        for left, right in ((0.12, 0.46), (0.54, 0.88)):
            first = (int(left * width_px), int(top * height_px))
            last = (int(right * width_px), int(bottom * height_px))
            image[first[1] : last[1], first[0] : last[0]] *= 0.85
            cv2.rectangle(image, first, last, (35, 40, 45), 3, cv2.LINE_AA)
    knob = (int(0.9 * width_px), int(0.47 * height_px))
    cv2.circle(image, knob, max(4, width_px // 28), (60, 150, 190), -1, cv2.LINE_AA)
    plate = (0.38 * width_px, 0.44 * height_px, 0.24 * width_px, 0.05 * height_px)
    draw_text(image, str(rng.integers(1, 199)), plate, colour=(230, 230, 230))
    _stain(image, rng, 40)
    cv2.rectangle(image, (0, 0), (width_px - 1, height_px - 1), (45, 50, 55), 8)
    return to_bytes(image)


def window(rng: np.random.Generator, width_px: int, height_px: int) -> ByteArray:
    """Return a window: glass with reflections, curtains or blinds, a frame."""
    tone = rng.uniform(0.5, 1.5)
    image = blank(width_px, height_px, (80 * tone, 62 * tone, 52 * tone))
    glass = noise(rng, (width_px, height_px), coarsest_px=height_px / 2, stretch=0.6)
    image *= 1 + 0.35 * glass[..., None]
    kind = rng.integers(4)
    if kind == 0:
        pitch = max(4, height_px // 24)
        down = int(rng.uniform(0.3, 1.0) * height_px)
        for top in range(0, down, pitch):
            image[top : top + max(2, pitch - 2)] = rng.uniform(150, 220)
    elif kind == 1:
        reach = int(rng.uniform(0.15, 0.4) * width_px)
        curtain = as_bgr(random_colour(rng, value=(0.5, 0.95)))
        folds = 1 + 0.25 * np.sin(np.arange(reach) * rng.uniform(0.25, 0.6))
        folded = curtain * folds[None, :, None].astype(np.float32)
        image[:, :reach], image[:, -reach:] = folded, folded[:, ::-1]
    elif kind == 2:
        for _ in range(4):
            at = (int(rng.uniform(0.1, 0.9) * width_px), int(0.9 * height_px))
            size = (width_px // 10, int(rng.uniform(0.1, 0.4) * height_px))
            cv2.ellipse(
                image, at, size, 0, 180, 360, earthy_colour(rng), -1, cv2.LINE_AA
            )
    frame = max(3, width_px // 18)
    light = rng.uniform(120, 240)
    last = (width_px - 1, height_px - 1)
    cv2.rectangle(image, (0, 0), last, (light,) * 3, 2 * frame)
    image[:, width_px // 2 - frame // 2 : width_px // 2 + frame // 2 + 1] = light
    crossbar = int(rng.choice([0.35, 0.5])) or int(0.36 * height_px)
    image[crossbar : crossbar + frame] = light
    return to_bytes(image)


def facade(
    rng: np.random.Generator, width_px: int, height_px: int, *, px_per_m: float
) -> ByteArray:
    """Return a house front: masonry, rows of windows, a door, a shop sign."""
    colour = earthy_colour(rng)
    if rng.random() < 0.5:
        brick = (max(4, int(0.30 * px_per_m)), max(3, int(0.12 * px_per_m)))
        base = bricks(rng, width_px, height_px, colour=colour, brick_px=brick)
    else:
        base = plaster(rng, width_px, height_px, colour=colour)
    image = base.astype(np.float32)
    ground = 3.3 * px_per_m
    storey = rng.uniform(2.7, 3.2) * px_per_m
    pitch = rng.uniform(1.9, 2.9) * px_per_m
    columns = max(2, int(width_px / pitch))
    pane = (int(rng.uniform(0.42, 0.62) * pitch), int(rng.uniform(0.48, 0.6) * storey))
    offset = (width_px - (columns - 1) * pitch) / 2
    variants = [window(rng, *pane) for _ in range(5)]
    top = height_px - ground - storey
    trim = random_colour(rng, saturation=(0.0, 0.3))
    while top > 0.1 * px_per_m:
        image[int(top + storey) - 5 : int(top + storey)] *= 0.65
        for column in range(columns):
            left = int(offset + column * pitch - pane[0] / 2)
            at = int(top + 0.25 * storey)
            patch = image[at : at + pane[1], left : left + pane[0]]
            if left < 0 or patch.shape[:2] != (pane[1], pane[0]):
                continue
            patch[:] = variants[int(rng.integers(len(variants)))]
            sill = image[at + pane[1] : at + pane[1] + 6, left - 5 : left + pane[0] + 5]
            sill[:] = trim
        top -= storey
    _shop_front(image, rng, ground, px_per_m)
    image[:6] *= 0.5
    rim = np.ones(width_px, np.float32)
    rim[:4] = rim[-4:] = 0.55
    return to_bytes(image * rim[None, :, None])


def _shop_front(
    image: Float32Array, rng: np.random.Generator, ground_px: float, px_per_m: float
) -> None:
    """Draw the ground floor of a facade in place: door, shop windows, sign."""
    height, width = image.shape[:2]
    top = int(height - 0.78 * ground_px)
    door_width, door_height = int(1.1 * px_per_m), int(2.3 * px_per_m)
    left = int(rng.uniform(0.08, 0.85) * (width - door_width))
    image[height - door_height :, left : left + door_width] = door(
        rng, door_width, door_height
    )
    x = int(0.3 * px_per_m)
    while x < width - 1.2 * px_per_m:
        pane_width = int(rng.uniform(1.1, 2.6) * px_per_m)
        right = min(x + pane_width, width - 4)
        clear = right < left - 4 or x > left + door_width + 4
        if clear and right - x > px_per_m:
            draw = poster if rng.random() < 0.3 else window
            bottom = height - int(0.5 * px_per_m)
            image[top:bottom, x:right] = draw(rng, right - x, bottom - top)
        x = right + int(rng.uniform(0.25, 0.7) * px_per_m)
    sign_bottom = top - int(0.08 * px_per_m)
    sign_top = sign_bottom - int(rng.uniform(0.4, 0.65) * px_per_m)
    first = int(rng.uniform(0.03, 0.25) * width)
    last = int(rng.uniform(0.65, 0.97) * width)
    image[sign_top:sign_bottom, first:last] = sign(
        rng, last - first, sign_bottom - sign_top
    )


def sign(rng: np.random.Generator, width_px: int, height_px: int) -> ByteArray:
    """Return a shop or street sign with a name."""
    colour = random_colour(rng, saturation=(0.4, 0.95), value=(0.2, 0.8))
    image = blank(width_px, height_px, colour)
    image *= 1 + 0.04 * noise(rng, (width_px, height_px), coarsest_px=60)[..., None]
    ink = (235.0, 240.0, 245.0) if sum(colour) < 380 else (25.0, 20.0, 20.0)
    words = f"{random_word(rng, 3)} {random_word(rng, 2)}"
    box = (0.06 * width_px, 0.16 * height_px, 0.88 * width_px, 0.68 * height_px)
    draw_text(image, words, box, colour=ink, font=int(rng.choice(_FONTS)), weight=1.5)
    last = (width_px - 1, height_px - 1)
    cv2.rectangle(image, (0, 0), last, ink, max(2, height_px // 16))
    return to_bytes(image)


def road(
    rng: np.random.Generator, width_px: int, height_px: int, *, px_per_m: float
) -> ByteArray:
    """Return asphalt along x: speckle, patches, cracks, a dashed line, drains."""
    size = (width_px, height_px)
    image = blank(width_px, height_px, (88, 86, 84))
    image *= 1 + 0.10 * noise(rng, size, coarsest_px=400, falloff=0.7)[..., None]
    image *= 1 + 0.13 * rng.standard_normal((height_px, width_px, 1)).astype(np.float32)
    for _ in range(max(2, width_px // 300)):
        at = rng.uniform((0, 0), (width_px, height_px)).astype(int)
        patch = image[at[1] : at[1] + height_px // 5, at[0] : at[0] + int(2 * px_per_m)]
        patch *= rng.uniform(0.6, 1.25)
        patch[:2], patch[-2:] = patch[:2] * 0.5, patch[-2:] * 0.5
    for _ in range(width_px // 40):
        at = rng.uniform((0, 0), (width_px, height_px))
        crack = _wander(rng, at, reach_px=float(rng.uniform(0.4, 3.0)) * px_per_m)
        tone = float(rng.uniform(34, 66))
        cv2.polylines(image, [crack], False, (tone,) * 3, int(rng.integers(1, 3)))
    dash, half = int(3 * px_per_m), max(2, int(0.07 * px_per_m))
    wear = 1 + 0.12 * noise(rng, size, coarsest_px=30, falloff=0.9)
    middle = height_px // 2
    for left in range(0, width_px, 2 * dash):
        rows, columns = slice(middle - half, middle + half), slice(left, left + dash)
        image[rows, columns] = 205 * wear[rows, columns, None]
    for _ in range(max(1, width_px // int(9 * px_per_m))):
        at = rng.uniform((0.1, 0.1), (0.9, 0.9)) * np.array(size)
        cv2.circle(
            image,
            (int(at[0]), int(at[1])),
            int(0.33 * px_per_m),
            (48, 50, 52),
            -1,
            cv2.LINE_AA,
        )
    return to_bytes(image)


def pavement(
    rng: np.random.Generator, width_px: int, height_px: int, *, px_per_m: float
) -> ByteArray:
    """Return paving slabs."""
    slab = max(6, int(0.5 * px_per_m))
    return bricks(
        rng, width_px, height_px, colour=(140, 143, 146), brick_px=(2 * slab, slab)
    )


def car_paint(rng: np.random.Generator) -> Colour:
    """Return the colour of a car: mostly grey, now and then a loud one."""
    if rng.random() < 0.6:
        tone = float(rng.uniform(25, 225))
        return tone * 1.02, tone, tone * 0.98
    return random_colour(rng, saturation=(0.4, 0.85), value=(0.25, 0.75))


def car_body(
    rng: np.random.Generator, width_px: int, height_px: int, *, paint: Colour
) -> ByteArray:
    """Return the lower side of a car: doors, handles, wheels."""
    image = blank(width_px, height_px, paint)
    down = np.linspace(0, 1, height_px, dtype=np.float32)[:, None, None]
    image *= 1.15 - 0.45 * down
    image += 7 * noise(rng, (width_px, height_px), coarsest_px=width_px / 3)[..., None]
    for at in (0.3, 0.52, 0.74):
        image[: int(0.85 * height_px), int(at * width_px) :][:, :2] *= 0.45
        handle = (int((at + 0.02) * width_px), int(0.22 * height_px))
        end = (handle[0] + max(3, width_px // 40), handle[1] + max(2, height_px // 24))
        cv2.rectangle(image, handle, end, (40, 40, 42), -1)
    for at in (0.19, 0.81):
        wheel = (int(at * width_px), int(0.68 * height_px))
        radius = int(0.34 * height_px)
        cv2.circle(image, wheel, radius, (22, 22, 24), -1)
        cv2.circle(image, wheel, int(0.6 * radius), (150, 152, 155), -1)
        for spoke in np.arange(5) * 2 * math.pi / 5 + rng.uniform(0, 1):
            tip = (
                int(wheel[0] + 0.6 * radius * math.cos(spoke)),
                int(wheel[1] + 0.6 * radius * math.sin(spoke)),
            )
            cv2.line(image, wheel, tip, (60, 60, 62), 2)
    image[int(0.9 * height_px) :] *= 0.2
    return to_bytes(image)


def car_cabin(
    rng: np.random.Generator, width_px: int, height_px: int, *, paint: Colour
) -> ByteArray:
    """Return the windows of a car, side or end."""
    image = blank(width_px, height_px, paint)
    rim = max(2, height_px // 8)
    image[rim:, rim:-rim] = (62, 52, 46)
    glass = noise(rng, (width_px, height_px), coarsest_px=height_px, stretch=2.0)
    image *= 1 + 0.3 * glass[..., None]
    for at in (0.36, 0.66):
        image[:, int(at * width_px) : int(at * width_px) + rim] = paint
    return to_bytes(image)


def car_end(
    rng: np.random.Generator, width_px: int, height_px: int, *, paint: Colour
) -> ByteArray:
    """Return the lower front or back of a car: lamps, bumper, number plate."""
    image = blank(width_px, height_px, paint)
    image += 8 * noise(rng, (width_px, height_px), coarsest_px=width_px / 2)[..., None]
    image[int(0.68 * height_px) :] *= 0.6
    lamp = (40.0, 40.0, 190.0) if rng.random() < 0.5 else (225.0, 235.0, 235.0)
    for at in (0.14, 0.86):
        centre = (int(at * width_px), int(0.35 * height_px))
        axes = (width_px // 11, height_px // 8)
        cv2.ellipse(image, centre, axes, 0, 0, 360, lamp, -1)
        cv2.ellipse(image, centre, axes, 0, 0, 360, (30, 30, 30), 1)
    plate = (int(0.34 * width_px), int(0.48 * height_px))
    end = (int(0.66 * width_px), int(0.68 * height_px))
    cv2.rectangle(image, plate, end, (235, 235, 235), -1)
    draw_text(
        image,
        f"{random_word(rng, 1)} {rng.integers(100, 999)}",
        (plate[0] + 3, plate[1] + 3, end[0] - plate[0] - 6, end[1] - plate[1] - 6),
        colour=(25, 25, 25),
    )
    image[int(0.9 * height_px) :] *= 0.25
    return to_bytes(image)


def person(
    rng: np.random.Generator, width_px: int, height_px: int
) -> tuple[ByteArray, ByteArray]:
    """Return a standing figure, BGR and its cut-out."""
    alpha = np.zeros((height_px, width_px), np.uint8)
    image = blank(width_px, height_px, (0, 0, 0))
    size = np.array([width_px, height_px], dtype=np.float64)
    shirt, trousers = random_colour(rng), random_colour(rng, value=(0.1, 0.5))
    skin = tuple(rng.uniform(0.45, 1.0) * np.array([150.0, 180.0, 225.0]))
    limbs: list[tuple[list[tuple[float, float]], Colour]] = [
        ([(0.3, 0.5), (0.5, 0.5), (0.46, 1.0), (0.28, 1.0)], trousers),
        ([(0.5, 0.5), (0.7, 0.5), (0.74, 1.0), (0.55, 1.0)], trousers),
        ([(0.24, 0.2), (0.76, 0.2), (0.73, 0.53), (0.27, 0.53)], shirt),
        ([(0.25, 0.2), (0.1, 0.33), (0.04, 0.53), (0.17, 0.54), (0.3, 0.3)], shirt),
        ([(0.75, 0.2), (0.9, 0.33), (0.96, 0.53), (0.83, 0.54), (0.7, 0.3)], shirt),
    ]
    for outline, colour in limbs:
        corners = [np.rint(np.array(outline) * size).astype(np.int32)]
        cv2.fillPoly(image, corners, colour, cv2.LINE_AA)
        cv2.fillPoly(alpha, corners, 255)
    head = (int(0.5 * width_px), int(0.1 * height_px))
    axes = (int(0.15 * width_px), int(0.085 * height_px))
    cv2.ellipse(image, head, axes, 0, 0, 360, skin, -1, cv2.LINE_AA)
    cv2.ellipse(alpha, head, axes, 0, 0, 360, 255, -1)
    hair = random_colour(rng, saturation=(0.1, 0.5), value=(0.05, 0.4))
    cv2.ellipse(image, head, axes, 0, 180, 360, hair, -1, cv2.LINE_AA)
    print_box = (0.36 * width_px, 0.28 * height_px, 0.28 * width_px, 0.1 * height_px)
    draw_text(image, random_word(rng, 2), print_box, colour=random_colour(rng))
    folds = noise(rng, (width_px, height_px), coarsest_px=width_px / 3, stretch=0.4)
    return to_bytes(image * (1 + 0.14 * folds)[..., None]), alpha


def tree(
    rng: np.random.Generator, width_px: int, height_px: int
) -> tuple[ByteArray, ByteArray]:
    """Return a tree, BGR and its cut-out."""
    alpha = np.zeros((height_px, width_px), np.uint8)
    image = blank(width_px, height_px, (45, 65, 85))
    trunk = slice(int(0.46 * width_px), int(0.54 * width_px))
    alpha[int(0.45 * height_px) :, trunk] = 255
    leaf = np.array([rng.uniform(30, 60), rng.uniform(90, 140), rng.uniform(50, 110)])
    for _ in range(420):
        radius = np.sqrt(rng.random())
        turn = rng.uniform(0, 2 * math.pi)
        at = (
            int((0.5 + 0.42 * radius * math.cos(turn)) * width_px),
            int((0.33 + 0.29 * radius * math.sin(turn)) * height_px),
        )
        axes = tuple(int(a) for a in rng.uniform(0.015, 0.06, 2) * width_px)
        angle = float(rng.uniform(0, 180))
        tone = tuple(float(c) for c in leaf * rng.uniform(0.45, 1.35))
        cv2.ellipse(image, at, (axes[0], axes[1]), angle, 0, 360, tone, -1)
        cv2.ellipse(alpha, at, (axes[0], axes[1]), angle, 0, 360, 255, -1)
    bark = noise(rng, (width_px, height_px), coarsest_px=16, falloff=0.9)
    return to_bytes(image * (1 + 0.15 * bark)[..., None]), alpha


def sky(rng: np.random.Generator, width_px: int, height_px: int) -> ByteArray:
    """Return a panorama of sky and clouds: columns azimuth, rows zenith to nadir."""
    down = np.linspace(0, 1, height_px, dtype=np.float32)[:, None, None]
    zenith, horizon = as_bgr([190, 130, 80]), as_bgr([225, 210, 195])
    blend = np.clip(2 * down, 0, 1)
    image = (1 - blend) * zenith + blend * horizon
    image = np.repeat(image, width_px, axis=1)
    cloud = noise(rng, (width_px, height_px), coarsest_px=height_px / 3, stretch=2.0)
    # The panorama closes on itself: fade the clouds out where its ends meet.
    seam = np.minimum(np.arange(width_px), np.arange(width_px)[::-1]) / (width_px / 20)
    cover = np.clip(0.55 * cloud, 0, 1) * np.clip(seam, 0, 1)[None, :]
    cover = (0.85 * cover)[..., None].astype(np.float32)
    return to_bytes(image * (1 - cover) + cover * 245)


Painter = Callable[[np.random.Generator, int, int], ByteArray]
"""A texture function that needs nothing but its size."""

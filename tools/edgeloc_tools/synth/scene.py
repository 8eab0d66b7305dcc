"""Scenes of textured rectangles: the data model, a room and a street.

The world is right-handed, z up, metres. A room is centred on x = y = 0 with its floor
at z = 0; a street runs along +x from 0, its road centred on y = 0.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from typing import Protocol

import numpy as np
import numpy.typing as npt

from edgeloc.types import ByteArray, FloatArray, Rigid3
from edgeloc_tools.synth import textures as tx
from edgeloc_tools.synth.textures import Texture, make_texture

UP = np.array([0.0, 0.0, 1.0])


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Quad:
    """A textured parallelogram.

    Its points are ``origin + u * edge_u + v * edge_v`` for u, v in [0, 1]; texture
    columns run along u, rows along v. It is seen from the side from which u points to
    the right and v down.

    Parameters
    ----------
    origin, edge_u, edge_v : ndarray of shape (3,), float64
        World, m.
    texture : Texture
        What is printed on it.
    repeat : (float, float)
        How often the texture repeats along u and v (of a texture that wraps).
    shade : float
        Brightness factor of its orientation.
    two_sided : bool
        Whether it is also seen, mirrored, from behind.
    """

    origin: FloatArray
    edge_u: FloatArray
    edge_v: FloatArray
    texture: Texture
    repeat: tuple[float, float] = (1.0, 1.0)
    shade: float = 1.0
    two_sided: bool = False

    @property
    def corners(self) -> FloatArray:
        """The corners in the order (0,0), (1,0), (1,1), (0,1), (4, 3), m."""
        far = self.origin + self.edge_u
        return np.stack(
            [self.origin, far, far + self.edge_v, self.origin + self.edge_v]
        )


class Mover(Protocol):
    """Something that moves by itself: it is drawn, and marked in the mask."""

    def quads_at(self, time_s: float, cam_from_world: Rigid3) -> list[Quad]:
        """Return its rectangles at a time, for a camera there."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Scene:
    """A place.

    Parameters
    ----------
    name : str
        For reports.
    quads : tuple of Quad
        All that stands still.
    movers : tuple of Mover
        All that moves.
    sky : Texture or None
        Panorama behind everything; black without.
    extent_m : (float, float, float)
        Length, width and height of the free space.
    """

    name: str
    quads: tuple[Quad, ...]
    movers: tuple[Mover, ...] = ()
    sky: Texture | None = None
    extent_m: tuple[float, float, float] = (0.0, 0.0, 0.0)

    def with_movers(self, movers: Iterable[Mover]) -> Scene:
        """Return the same place with more moving objects."""
        return replace(self, movers=(*self.movers, *movers))


@dataclass(slots=True)
class SceneBuilder:
    """Collects rectangles.

    Parameters
    ----------
    rng : Generator
        Source of randomness.
    texels_per_m : float
        Resolution of the textures.
    """

    rng: np.random.Generator
    texels_per_m: float
    quads: list[Quad] = field(default_factory=list)

    def texels(self, *sizes_m: float) -> tuple[int, ...]:
        """Return lengths in texels, at least 8."""
        return tuple(max(8, round(size * self.texels_per_m)) for size in sizes_m)

    def paint(self, painter: tx.Painter, width_m: float, height_m: float) -> Texture:
        """Return a texture of that size in the world."""
        width_px, height_px = self.texels(width_m, height_m)
        return make_texture(painter(self.rng, width_px, height_px))

    def panel(
        self,
        centre: npt.ArrayLike,
        forward: npt.ArrayLike,
        size_m: tuple[float, float],
        texture: Texture,
    ) -> None:
        """Add an upright rectangle that is seen by who looks along `forward`."""
        direction = np.asarray(forward, dtype=np.float64)
        direction = direction / np.linalg.norm(direction)
        right = np.cross(direction, UP)
        width, height = size_m
        top_left = np.asarray(centre) - right * width / 2 + UP * height / 2
        self.quads.append(
            Quad(
                origin=top_left,
                edge_u=right * width,
                edge_v=-UP * height,
                texture=texture,
                shade=_shade(-direction),
            )
        )

    def floor(
        self,
        centre: tuple[float, float, float],
        size_m: tuple[float, float],
        texture: Texture,
        *,
        yaw_rad: float = 0.0,
        faces_up: bool = True,
    ) -> None:
        """Add a level rectangle, seen from above or from below."""
        x_axis, y_axis = _axes(yaw_rad)
        length, width = size_m
        y_axis = y_axis if faces_up else -y_axis
        self.quads.append(
            Quad(
                origin=np.asarray(centre) - x_axis * length / 2 + y_axis * width / 2,
                edge_u=x_axis * length,
                edge_v=-y_axis * width,
                texture=texture,
                shade=_shade(UP if faces_up else -UP),
            )
        )

    def box(
        self,
        base: tuple[float, float, float],
        size_m: tuple[float, float, float],
        skin: Callable[[str, float, float], Texture],
        *,
        yaw_rad: float = 0.0,
        bottom: bool = False,
    ) -> None:
        """Add a box that stands on `base`, the centre of its lower face.

        Parameters
        ----------
        base : (float, float, float)
            World, m.
        size_m : (float, float, float)
            Along its own x, y and z.
        skin : callable
            Makes the texture of a face from its name (``+x -x +y -y +z -z``), width
            and height, m.
        yaw_rad : float
            Turn about z.
        bottom : bool
            Whether its lower face can be seen.
        """
        length, width, height = size_m
        x_axis, y_axis = _axes(yaw_rad)
        middle = np.asarray(base) + UP * height / 2
        for name, outward, half, across in (
            ("+x", x_axis, length / 2, width),
            ("-x", -x_axis, length / 2, width),
            ("+y", y_axis, width / 2, length),
            ("-y", -y_axis, width / 2, length),
        ):
            texture = skin(name, across, height)
            self.panel(middle + outward * half, -outward, (across, height), texture)
        top = (base[0], base[1], base[2] + height)
        self.floor(top, (length, width), skin("+z", length, width), yaw_rad=yaw_rad)
        if bottom:
            self.floor(
                base,
                (length, width),
                skin("-z", length, width),
                yaw_rad=yaw_rad,
                faces_up=False,
            )


def _axes(yaw_rad: float) -> tuple[FloatArray, FloatArray]:
    c, s = np.cos(yaw_rad), np.sin(yaw_rad)
    return np.array([c, s, 0.0]), np.array([-s, c, 0.0])


def _shade(outward: FloatArray) -> float:
    """Return the brightness of a face under one soft light."""
    light = np.array([0.35, 0.55, 0.76])
    return float(0.86 + 0.16 * (outward @ light))


def _constant(texture: Texture) -> Callable[[str, float, float], Texture]:
    return lambda _name, _width, _height: texture


def _table(
    builder: SceneBuilder, at: tuple[float, float], size: tuple[float, float, float]
) -> None:
    """Add a table with four legs and things on it."""
    rng = builder.rng
    length, width, height = size
    top = builder.paint(tx.wood, length, width)
    leg = builder.paint(tx.wood, 0.1, 0.7)
    builder.box(
        (at[0], at[1], height - 0.05),
        (length, width, 0.05),
        _constant(top),
        bottom=True,
    )
    for sx in (-1, 1):
        for sy in (-1, 1):
            foot = (at[0] + sx * (length / 2 - 0.05), at[1] + sy * (width / 2 - 0.05))
            builder.box((*foot, 0.0), (0.06, 0.06, height - 0.05), _constant(leg))
    for slot in np.linspace(-0.36, 0.36, max(2, int(length / 0.5))):
        side = rng.uniform(0.12, 0.3, 3)
        place = (
            at[0] + float(slot) * length,
            at[1] + float(rng.uniform(-0.2, 0.2)) * width,
            height,
        )
        kind = tx.carton if rng.random() < 0.5 else tx.poster
        builder.box(
            place,
            (float(side[0]), float(side[1]), float(side[2])),
            lambda _name, w, h, kind=kind: builder.paint(kind, w, h),  # type: ignore[misc]
            yaw_rad=float(rng.uniform(-0.6, 0.6)),
        )


def _chair(
    builder: SceneBuilder, at: tuple[float, float], yaw_rad: float, cover: Texture
) -> None:
    """Add a chair; all chairs of a room are the same, on purpose."""
    skin = _constant(cover)
    x_axis, y_axis = _axes(yaw_rad)
    builder.box((*at, 0.42), (0.42, 0.42, 0.05), skin, yaw_rad=yaw_rad, bottom=True)
    for sx in (-0.18, 0.18):
        for sy in (-0.18, 0.18):
            foot = np.array([*at, 0.0]) + sx * x_axis + sy * y_axis
            builder.box(
                (float(foot[0]), float(foot[1]), 0.0),
                (0.04, 0.04, 0.42),
                skin,
                yaw_rad=yaw_rad,
            )
    back = np.array([*at, 0.0]) - 0.19 * x_axis
    builder.box(
        (float(back[0]), float(back[1]), 0.47),
        (0.04, 0.42, 0.45),
        skin,
        yaw_rad=yaw_rad,
    )


def _dress_wall(
    builder: SceneBuilder,
    forward: FloatArray,
    wall: tuple[float, float, float],
    shared: dict[str, Texture],
) -> None:
    """Hang and stand things along one wall; `wall` is (distance, width, height)."""
    rng = builder.rng
    distance, width, height = wall
    right = np.cross(forward, UP)
    num_slots = int(width / 1.25)
    kinds = rng.permutation(["door", "shelf", "window", "art", "art", "art", "board"])
    for slot, kind in enumerate(kinds[:num_slots]):
        along = ((slot + 0.5) / num_slots - 0.5) * (width - 0.5)
        on_wall = forward * (distance - 0.02) + right * along
        if kind == "door":
            texture = builder.paint(tx.door, 0.9, 2.05)
            builder.panel(on_wall + UP * 1.025, forward, (0.9, 2.05), texture)
        elif kind == "window":
            builder.panel(on_wall + UP * 1.55, forward, (1.0, 1.2), shared["window"])
        elif kind == "shelf":
            depth, tall = 0.32, float(rng.uniform(1.5, 2.1))
            foot = forward * (distance - depth / 2) + right * along
            front = builder.paint(tx.bookshelf, 0.95, tall)
            side = builder.paint(tx.wood, depth, tall)
            builder.box(
                (float(foot[0]), float(foot[1]), 0.0),
                (depth, 0.95, tall),
                lambda name, _w, _h, front=front, side=side: (  # type: ignore[misc]
                    front if name == "-x" else side
                ),
                yaw_rad=float(np.arctan2(forward[1], forward[0])),
            )
        elif kind == "board":
            builder.panel(on_wall + UP * 1.5, forward, (0.6, 0.5), shared["board"])
        else:
            _hang_art(builder, on_wall, forward, height)


def _hang_art(
    builder: SceneBuilder, on_wall: FloatArray, forward: FloatArray, height: float
) -> None:
    """Hang one or two pictures or posters, each of its own."""
    rng = builder.rng
    right = np.cross(forward, UP)
    for side in rng.permutation([-1, 1])[: int(rng.integers(1, 3))]:
        width = float(rng.uniform(0.4, 0.55))
        tall = width * float(rng.uniform(0.8, 1.45))
        centre = (
            on_wall
            + right * float(side) * 0.3
            + UP * float(rng.uniform(0.5, 0.62)) * height
        )
        painter = tx.poster if rng.random() < 0.6 else tx.picture
        texture = builder.paint(painter, width, tall)
        builder.panel(centre, forward, (width, tall), texture)


def make_room(
    seed: int,
    size: tuple[float, float, float] = (6.0, 5.0, 2.7),
    *,
    texels_per_m: float = 280.0,
) -> Scene:
    """Return a furnished room, centred on the origin.

    The space within 55 % of the half size of the centre and above 1 m is free.

    Parameters
    ----------
    seed : int
        Equal seeds give equal rooms.
    size : (float, float, float)
        Length (x), width (y) and height, m; at least 4 x 4 x 2.4.
    texels_per_m : float
        Resolution of the textures.

    Returns
    -------
    Scene

    Raises
    ------
    ValueError
        When the room is too small to be furnished.
    """
    length, width, height = size
    if min(length, width) < 4.0 or height < 2.4:
        raise ValueError(f"a room of {size} m is too small, at least 4 x 4 x 2.4")
    rng = np.random.default_rng([seed, 1])
    builder = SceneBuilder(rng, texels_per_m)
    floor_px, ceiling_px = builder.texels(0.5, 0.6)

    def lay(generator: np.random.Generator, w_px: int, h_px: int) -> ByteArray:
        if rng.random() < 0.5:
            return tx.wood(generator, w_px, h_px, planks=int(width / 0.18))
        return tx.tiles(generator, w_px, h_px, tile_px=floor_px)

    def panels(generator: np.random.Generator, w_px: int, h_px: int) -> ByteArray:
        return tx.ceiling(generator, w_px, h_px, panel_px=ceiling_px)

    builder.floor((0, 0, 0), (length, width), builder.paint(lay, length, width))
    builder.floor(
        (0, 0, height),
        (length, width),
        builder.paint(panels, length, width),
        faces_up=False,
    )
    shared = {
        "window": builder.paint(tx.window, 1.0, 1.2),
        "board": builder.paint(tx.poster, 0.6, 0.5),
    }
    for forward, distance, across in (
        (np.array([1.0, 0.0, 0.0]), length / 2, width),
        (np.array([-1.0, 0.0, 0.0]), length / 2, width),
        (np.array([0.0, 1.0, 0.0]), width / 2, length),
        (np.array([0.0, -1.0, 0.0]), width / 2, length),
    ):
        colour = tx.earthy_colour(rng)
        w_px, h_px = builder.texels(across, height)
        texture = make_texture(tx.plaster(rng, w_px, h_px, colour=colour))
        centre = forward * distance + UP * height / 2
        builder.panel(centre, forward, (across, height), texture)
        _dress_wall(builder, forward, (distance, across, height), shared)
    _furnish(builder, size)
    return Scene(name=f"room-{seed}", quads=tuple(builder.quads), extent_m=size)


def _furnish(builder: SceneBuilder, size: tuple[float, float, float]) -> None:
    """Add a carpet, tables, chairs and stacks of cartons."""
    rng = builder.rng
    length, width, _ = size
    carpet = (0.4 * length, 0.4 * width)
    yaw_rad = float(rng.uniform(-0.3, 0.3))
    texture = builder.paint(tx.fabric, *carpet)
    builder.floor((0.0, 0.0, 0.01), carpet, texture, yaw_rad=yaw_rad)
    _table(builder, (float(rng.uniform(-0.3, 0.3)), 0.0), (1.0, 0.6, 0.42))
    end = int(rng.choice([-1, 1]))
    desk_y = end * (width / 2 - 0.45)
    _table(builder, (float(rng.uniform(-0.6, 0.6)), desk_y), (1.7, 0.7, 0.75))
    cover = builder.paint(tx.fabric, 0.45, 0.45)
    for at in ((-0.5, desk_y - end * 0.65), (0.45, desk_y - end * 0.75)):
        _chair(builder, at, float(rng.uniform(-3.1, 3.1)), cover)
    for sx, sy in ((-1, -1), (1, -1), (-1, 1), (1, 1)):
        if rng.random() < 0.25:
            continue
        stack = 0.0
        for _ in range(int(rng.integers(1, 4))):
            side = rng.uniform(0.3, 0.48, 3)
            corner = (sx * (length / 2 - 0.38), sy * (width / 2 - 0.38), stack)
            builder.box(
                corner,
                (float(side[0]), float(side[1]), float(side[2])),
                lambda _name, w, h: builder.paint(tx.carton, w, h),
                yaw_rad=float(rng.uniform(-0.25, 0.25)),
            )
            stack += float(side[2])


ROAD_HALF_WIDTH_M = 3.5
PAVEMENT_WIDTH_M = 2.5


def make_street(
    seed: int, length: float = 60.0, *, texels_per_m: float = 90.0
) -> Scene:
    """Return a street between houses, from x = 0 to `length`, closed at both ends.

    Parameters
    ----------
    seed : int
        Equal seeds give equal streets.
    length : float
        m, at least 20.
    texels_per_m : float
        Resolution of the textures.

    Returns
    -------
    Scene

    Raises
    ------
    ValueError
        When the street is too short.
    """
    if not length >= 20.0:
        raise ValueError(f"a street of {length} m is too short, at least 20 m")
    rng = np.random.default_rng([seed, 2])
    builder = SceneBuilder(rng, texels_per_m)

    def front(generator: np.random.Generator, w_px: int, h_px: int) -> ByteArray:
        return tx.facade(generator, w_px, h_px, px_per_m=texels_per_m)

    def asphalt(generator: np.random.Generator, w_px: int, h_px: int) -> ByteArray:
        return tx.road(generator, w_px, h_px, px_per_m=texels_per_m)

    def slabs(generator: np.random.Generator, w_px: int, h_px: int) -> ByteArray:
        return tx.pavement(generator, w_px, h_px, px_per_m=texels_per_m)

    edge = ROAD_HALF_WIDTH_M + PAVEMENT_WIDTH_M
    first, last, segment = -12.0, length + 12.0, 16.0
    for x in np.arange(first, last, segment):
        span = float(min(segment, last - x))
        middle = float(x) + span / 2
        road_size = (span, 2 * ROAD_HALF_WIDTH_M)
        builder.floor((middle, 0.0, 0.0), road_size, builder.paint(asphalt, *road_size))
        for side in (-1.0, 1.0):
            y = side * (ROAD_HALF_WIDTH_M + PAVEMENT_WIDTH_M / 2 + 0.75)
            size = (span, PAVEMENT_WIDTH_M + 1.5)
            builder.floor((middle, y, 0.12), size, builder.paint(slabs, *size))
            kerb = builder.paint(slabs, span, 0.12)
            lip = (middle, side * ROAD_HALF_WIDTH_M, 0.06)
            builder.panel(lip, (0.0, side, 0.0), (span, 0.12), kerb)
    for side in (-1.0, 1.0):
        _houses(builder, (first, last), side * edge, front)
        _kerbside(builder, length, side)
    for x, forward in ((first, -1.0), (last, 1.0)):
        texture = builder.paint(front, 2 * edge + 4, 12.0)
        builder.panel((x, 0.0, 6.0), (forward, 0, 0), (2 * edge + 4, 12.0), texture)
    return Scene(
        name=f"street-{seed}",
        quads=tuple(builder.quads),
        sky=make_texture(tx.sky(rng, 2048, 1024)),
        extent_m=(length, 2 * edge, 12.0),
    )


def _houses(
    builder: SceneBuilder, span: tuple[float, float], y: float, front: tx.Painter
) -> None:
    """Line one side of the street with houses of unequal height and setback."""
    rng = builder.rng
    side = float(np.sign(y))
    x, end = span
    while x < end - 0.1:
        width = float(min(rng.uniform(6.0, 12.0), end - x))
        if end - (x + width) < 5.0:
            width = end - x
        tall = float(rng.uniform(6.8, 12.5))
        wall_y = y + side * float(rng.uniform(0.0, 1.4))
        builder.panel(
            (x + width / 2, wall_y, tall / 2),
            (0.0, side, 0.0),
            (width, tall),
            builder.paint(front, width, tall),
        )
        colour = tx.earthy_colour(rng)
        w_px, h_px = builder.texels(1.6, tall)
        flank = make_texture(tx.bricks(rng, w_px, h_px, colour=colour))
        for at, forward in ((x, 1.0), (x + width, -1.0)):
            flank_centre = (at, wall_y + side * 0.8, tall / 2)
            builder.panel(flank_centre, (forward, 0.0, 0.0), (1.6, tall), flank)
        board = builder.paint(tx.sign, 0.9, 0.7)
        hang = (x + float(rng.uniform(0.2, 0.8)) * width, wall_y - side * 0.5, 3.0)
        for forward in (1.0, -1.0):
            builder.panel(hang, (forward, 0.0, 0.0), (0.9, 0.7), board)
        x += width


def _kerbside(builder: SceneBuilder, length: float, side: float) -> None:
    """Park cars and put up lamp posts with signs and trees along one side."""
    rng = builder.rng
    x = float(rng.uniform(1.0, 6.0))
    while x < length:
        if rng.random() < 0.75:
            _car(builder, x, side * 2.55)
        x += float(rng.uniform(5.2, 9.0))
    steel = make_texture(
        tx.plaster(rng, *builder.texels(0.12, 4.0), colour=(92.0, 96.0, 94.0))
    )
    for at in np.arange(4.0, length, 13.0) + float(rng.uniform(0, 5)):
        y = side * (ROAD_HALF_WIDTH_M + 0.35)
        builder.box((float(at), y, 0.12), (0.12, 0.12, 4.2), _constant(steel))
        board = builder.paint(tx.sign if rng.random() < 0.6 else tx.poster, 0.8, 0.55)
        for forward in (1.0, -1.0):
            centre = (float(at) - 0.08 * forward, y, 2.6)
            builder.panel(centre, (forward, 0, 0), (0.8, 0.55), board)
        _tree(builder, (float(at) + 6.0, y + side * 0.3, 0.12))


def car_quads(
    rng: np.random.Generator, at: tuple[float, float], *, texels_per_m: float = 90.0
) -> tuple[Quad, ...]:
    """Return a car, a box with a cabin on it, its length along x.

    Parameters
    ----------
    rng : Generator
        Source of randomness.
    at : (float, float)
        Its middle, x and y, m.
    texels_per_m : float
        Resolution of the textures.
    """
    builder = SceneBuilder(rng, texels_per_m)
    _car(builder, *at)
    return tuple(builder.quads)


def _car(builder: SceneBuilder, x: float, y: float) -> None:
    rng = builder.rng
    paint = tx.car_paint(rng)
    low, high = float(rng.uniform(0.75, 0.95)), float(rng.uniform(0.45, 0.8))
    faces = {
        name: make_texture(painter(rng, *builder.texels(*size), paint=paint))
        for name, painter, size in (
            ("side", tx.car_body, (4.1, low)),
            ("end", tx.car_end, (1.7, low)),
            ("glass", tx.car_cabin, (2.3, high)),
        )
    }
    tin = tx.plaster(rng, *builder.texels(2.0, 1.5), colour=paint)
    faces["roof"] = make_texture(tin)

    def body(name: str, _width: float, _height: float) -> Texture:
        return faces["roof" if name == "+z" else "end" if name[1] == "x" else "side"]

    def cabin(name: str, _width: float, _height: float) -> Texture:
        return faces["roof" if name == "+z" else "glass"]

    builder.box((x, y, 0.0), (4.1, 1.7, low), body)
    builder.box((x - 0.2, y, low), (2.3, 1.5, high), cabin)


def _tree(builder: SceneBuilder, foot: tuple[float, float, float]) -> None:
    """Plant a tree of two crossed cut-outs."""
    rng = builder.rng
    wide, tall = float(rng.uniform(2.2, 3.2)), float(rng.uniform(3.6, 5.0))
    image, alpha = tx.tree(rng, *builder.texels(wide, tall))
    texture = make_texture(image, alpha=alpha)
    for yaw_rad in rng.uniform(0, np.pi) + np.array([0.0, np.pi / 2]):
        along, _ = _axes(float(yaw_rad))
        builder.quads.append(
            Quad(
                origin=np.asarray(foot) - along * wide / 2 + UP * tall,
                edge_u=along * wide,
                edge_v=-UP * tall,
                texture=texture,
                two_sided=True,
            )
        )

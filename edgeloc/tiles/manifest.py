"""site.json: what a site is, and the checksums of all its other files.

The text is canonical JSON (FORMAT.md), and the id of the map is a hash of it; so a
site.json that was changed in any way is recognised.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np

from edgeloc.errors import TileFormatError
from edgeloc.fields import Field, parse_json
from edgeloc.tiles.codec import MAX_COORDINATE, MAX_IDS
from edgeloc.tiles.container import FORMAT_VERSION
from edgeloc.tiles.layout import FamilySpec, SiteContents
from edgeloc.types import CameraModel, Rung

SITE_FILE = "site.json"
INDEX_FILE = "index.bin"
TILE_FOLDER = "tiles"
MODEL_FOLDER = "models"
MODEL_ROLES = ("features", "retrieval")
FORMAT_NAME = "edgeloc-site"
MAX_SITE_JSON_BYTES = 64 << 20
MAX_FILE_BYTES = 1 << 40
MAX_TILES = 10**6
MAP_ID_CHARS = 16
DESCRIPTOR_DTYPES: Mapping[str, str] = MappingProxyType(
    {"uint8": "u1", "int8": "i1", "float16": "<f2", "float32": "<f4"}
)
"""Element types that descriptors may have, and how they are stored."""

CONVENTIONS: Mapping[str, str] = MappingProxyType(
    {
        "camera": "x right, y down, z forward",
        "pixel_origin": "corner of the first pixel",
        "pose": "cam_from_world: x_in_cam = R x_in_world + t",
        "world": "right-handed; metres if metric; east, north, up if geo_reference",
    }
)
"""Said in every site, so that site.json explains itself."""


def tile_file_name(tile_idx: int) -> str:
    """Return the name of a tile's file within the site."""
    return f"{TILE_FOLDER}/{tile_idx:06d}.tile"


@dataclass(frozen=True, slots=True, kw_only=True)
class FileEntry:
    """One binary file of a site.

    Parameters
    ----------
    file : str
        Name within the site.
    num_bytes : int
        Size.
    crc32 : int
        Of header and section table, which hold the checksums of the rest; checked
        whenever the file is read, so a file of another build is never taken for it.
    sha256 : str
        Of the whole file, checked by `verify_site`.
    """

    file: str
    num_bytes: int
    crc32: int
    sha256: str


def model_manifest_name(role: str) -> str:
    """Return the name of a model's manifest within the site."""
    return f"{MODEL_FOLDER}/{role}.json"


def model_network_name(role: str) -> str:
    """Return the name of a model's ONNX file within the site."""
    return f"{MODEL_FOLDER}/{role}.onnx"


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelFile:
    """One file of a model.

    Parameters
    ----------
    file : str
        Name within the site.
    num_bytes : int
        Size.
    sha256 : str
        Of the whole file, checked before the model is used.
    """

    file: str
    num_bytes: int
    sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelEntry:
    """A network that the site carries.

    Parameters
    ----------
    name : str
        In its manifest.
    manifest, network : ModelFile
        Its two files.
    """

    name: str
    manifest: ModelFile
    network: ModelFile


@dataclass(frozen=True, slots=True, kw_only=True)
class TileEntry:
    """One row of the tile table.

    Parameters
    ----------
    file : FileEntry
        Where it is.
    box_min, box_max : tuple of 3 float, or None
        Bounding box of the landmarks, m; None without any.
    first_point3D_id : int
        Landmark ids of the tile are consecutive from here.
    num_landmarks, num_descriptors, num_keyframes, num_visible : int
        What the tile holds.
    """

    file: FileEntry
    box_min: tuple[float, float, float] | None
    box_max: tuple[float, float, float] | None
    first_point3D_id: int
    num_landmarks: int
    num_descriptors: int
    num_keyframes: int
    num_visible: int


@dataclass(frozen=True, slots=True, kw_only=True)
class SiteManifest:
    """What site.json says.

    Parameters
    ----------
    map_id : str
        Hash of everything the site holds; equal ids mean equal sites.
    name, metric, cameras, family, rungs, covariance_scale, gravity_in_world,
    geo_reference, build
        As in `SiteContents`.
    models : mapping of str to ModelEntry
        Networks that the site carries, by role.
    tiles : tuple of TileEntry
        The tile table.
    index : FileEntry
        The resident index.
    num_keyframes : int
        Keyframes of all tiles.
    global_descriptor_dim : int
        Elements of a global descriptor.
    retrieval_shapes : mapping of str to tuple of int
        Shapes of the retrieval model's arrays.
    format_version : int
        Version of FORMAT.md.
    total_bytes : int
        Size of all files.
    """

    map_id: str
    name: str
    metric: bool
    cameras: Mapping[str, CameraModel]
    family: FamilySpec
    rungs: tuple[str, ...]
    covariance_scale: float
    gravity_in_world: tuple[float, float, float] | None
    geo_reference: Mapping[str, float] | None
    build: Mapping[str, str | int | float]
    models: Mapping[str, ModelEntry]
    tiles: tuple[TileEntry, ...]
    index: FileEntry
    num_keyframes: int
    global_descriptor_dim: int
    retrieval_shapes: Mapping[str, tuple[int, ...]]
    format_version: int
    total_bytes: int

    @property
    def num_landmarks(self) -> int:
        """Landmarks of all tiles; their ids are below it."""
        return sum(tile.num_landmarks for tile in self.tiles)

    @property
    def camera_ids(self) -> tuple[str, ...]:
        """Cameras in the order that the index counts them."""
        return tuple(sorted(self.cameras))


_MODEL_FILE_KEYS = ("file", "bytes", "sha256")
_MODEL_KEYS = ("name", "manifest", "network")
_FILE_KEYS = ("file", "bytes", "crc32", "sha256")
_COUNT_KEYS = ("num_landmarks", "num_descriptors", "num_keyframes", "num_visible")
_TILE_KEYS = (*_FILE_KEYS, "box_min", "box_max", "first_point3D_id", *_COUNT_KEYS)
_FAMILY_KEYS = ("name", "stored_dtype", "stored_dim", "max_keypoints", "max_side_px")
_CAMERA_KEYS = ("model", "width", "height", "params")
_GEO_LIMITS = {"latitude_deg": 90.0, "longitude_deg": 180.0, "altitude_m": 1e5}
_SITE_KEYS = (
    "format", "format_version", "map_id", "name", "metric", "conventions", "cameras",
    "family", "rungs", "covariance_scale", "gravity_in_world", "geo_reference",
    "build", "num_keyframes", "global_descriptor_dim", "retrieval_arrays", "index",
    "tiles",
)  # fmt: skip


def canonical_json(document: Mapping[str, object]) -> bytes:
    """Return the one text of a JSON document: sorted keys, UTF-8, one item a line."""
    # Lines come from the separator: `indent` would leave the fast encoder.
    text = json.dumps(
        document,
        sort_keys=True,
        ensure_ascii=False,
        allow_nan=False,
        separators=(",\n", ": "),
    )
    return text.encode("utf-8") + b"\n"


def seal(document: Mapping[str, object]) -> bytes:
    """Return site.json with its `map_id`: SHA-256 of the same text with "" for it.

    Parameters
    ----------
    document : mapping
        All fields of site.json; a `map_id` is replaced.

    Returns
    -------
    bytes
    """
    digest = hashlib.sha256(canonical_json({**document, "map_id": ""})).hexdigest()
    return canonical_json({**document, "map_id": digest[:MAP_ID_CHARS]})


def _file_document(entry: FileEntry) -> dict[str, object]:
    return {
        "file": entry.file,
        "bytes": entry.num_bytes,
        "crc32": entry.crc32,
        "sha256": entry.sha256,
    }


def _model_file_document(entry: ModelFile) -> dict[str, object]:
    return {"file": entry.file, "bytes": entry.num_bytes, "sha256": entry.sha256}


def _model_document(entry: ModelEntry) -> dict[str, object]:
    return {
        "name": entry.name,
        "manifest": _model_file_document(entry.manifest),
        "network": _model_file_document(entry.network),
    }


def _tile_document(entry: TileEntry) -> dict[str, object]:
    return {
        **_file_document(entry.file),
        "box_min": entry.box_min,
        "box_max": entry.box_max,
        "first_point3D_id": entry.first_point3D_id,
        **{key: getattr(entry, key) for key in _COUNT_KEYS},
    }


def encode_manifest(
    contents: SiteContents,
    *,
    index: FileEntry,
    tiles: Sequence[TileEntry],
    models: Mapping[str, ModelEntry],
) -> bytes:
    """Return the text of site.json.

    Parameters
    ----------
    contents : SiteContents
        What the site holds.
    index : FileEntry
        The index that was made of it.
    tiles : sequence of TileEntry
        The tiles that were made of it.
    models : mapping of str to ModelEntry
        The models that were copied of it.

    Returns
    -------
    bytes
        To be checked with `decode_manifest`: nothing is checked here.

    Raises
    ------
    TypeError, ValueError
        When JSON cannot say it.
    """
    gravity, geo = contents.gravity_in_world, contents.geo_reference
    carried: dict[str, object] = {}
    if models:
        carried["models"] = {role: _model_document(m) for role, m in models.items()}
    return seal(
        {
            **carried,
            "format": FORMAT_NAME,
            "format_version": FORMAT_VERSION,
            "name": contents.name,
            "metric": contents.metric,
            "conventions": dict(CONVENTIONS),
            "cameras": {
                camera_id: {key: getattr(camera, key) for key in _CAMERA_KEYS}
                for camera_id, camera in contents.cameras.items()
            },
            "family": {key: getattr(contents.family, key) for key in _FAMILY_KEYS},
            "rungs": list(contents.rungs),
            "covariance_scale": float(contents.covariance_scale),
            "gravity_in_world": None
            if gravity is None
            else [float(value) for value in gravity],
            "geo_reference": None
            if geo is None
            else {key: float(value) for key, value in geo.items()},
            "build": dict(contents.build),
            "num_keyframes": len(contents.keyframes),
            "global_descriptor_dim": contents.keyframes.global_codes.shape[1],
            "retrieval_arrays": {
                name: list(np.shape(array))
                for name, array in contents.retrieval_arrays.items()
            },
            "index": _file_document(index),
            "tiles": [_tile_document(tile) for tile in tiles],
        }
    )


def _decode_file(fields: Mapping[str, Field], expected_name: str) -> FileEntry:
    # The name follows from the format, so that no name can lead out of the folder.
    if fields["file"].value != expected_name:
        fields["file"].fail(repr(expected_name))
    return FileEntry(
        file=expected_name,
        num_bytes=fields["bytes"].integer(0, MAX_FILE_BYTES),
        crc32=fields["crc32"].integer(0, 2**32 - 1),
        sha256=fields["sha256"].sha256(),
    )


def _decode_model_file(field: Field, expected_name: str) -> ModelFile:
    fields = field.members(_MODEL_FILE_KEYS)
    if fields["file"].value != expected_name:
        fields["file"].fail(repr(expected_name))
    return ModelFile(
        file=expected_name,
        num_bytes=fields["bytes"].integer(1, MAX_FILE_BYTES),
        sha256=fields["sha256"].sha256(),
    )


def _decode_models(field: Field) -> Mapping[str, ModelEntry]:
    members = field.members((), optional=MODEL_ROLES)
    if not members:
        field.fail("at least one model, or no such field")
    models = {}
    for role, member in members.items():
        fields = member.members(_MODEL_KEYS)
        models[role] = ModelEntry(
            name=fields["name"].text(),
            manifest=_decode_model_file(fields["manifest"], model_manifest_name(role)),
            network=_decode_model_file(fields["network"], model_network_name(role)),
        )
    return MappingProxyType(models)


def _decode_tiles(field: Field) -> tuple[TileEntry, ...]:
    items = field.items()
    if not 1 <= len(items) <= MAX_TILES:
        field.fail(f"1 to {MAX_TILES} tiles")
    tiles: list[TileEntry] = []
    next_id = 0
    for tile_idx, item in enumerate(items):
        fields = item.members(_TILE_KEYS)
        counts = {key: fields[key].integer(0, MAX_IDS) for key in _COUNT_KEYS}
        box_min = box_max = None
        if counts["num_landmarks"] > 0:
            box_min = fields["box_min"].vector(2 * MAX_COORDINATE)
            box_max = fields["box_max"].vector(2 * MAX_COORDINATE)
        elif fields["box_min"].value is not None or fields["box_max"].value is not None:
            item.fail("no box around no landmarks")
        if fields["first_point3D_id"].integer(0, MAX_IDS) != next_id:
            fields["first_point3D_id"].fail(f"{next_id}, next to the tile before")
        tiles.append(
            TileEntry(
                file=_decode_file(fields, tile_file_name(tile_idx)),
                box_min=box_min,
                box_max=box_max,
                first_point3D_id=next_id,
                **counts,
            )
        )
        next_id += counts["num_landmarks"]
    if next_id > MAX_IDS:
        field.fail(f"at most {MAX_IDS} landmarks")
    return tuple(tiles)


def _decode_camera(field: Field) -> CameraModel:
    fields = field.members(_CAMERA_KEYS)
    params = tuple(p.number(-1e9, 1e9) for p in fields["params"].items())
    try:
        return CameraModel(
            model=fields["model"].text(),
            width=fields["width"].integer(1, 2**20),
            height=fields["height"].integer(1, 2**20),
            params=params,
        )
    except ValueError as exc:
        raise TileFormatError(f"{field.name}: {exc}") from exc


def _decode_cameras(field: Field) -> Mapping[str, CameraModel]:
    members = field.members()
    if not members:
        field.fail("at least one camera")
    return MappingProxyType({key: _decode_camera(f) for key, f in members.items()})


def _decode_family(field: Field) -> FamilySpec:
    fields = field.members(_FAMILY_KEYS)
    return FamilySpec(
        name=fields["name"].text(),
        stored_dtype=fields["stored_dtype"].choice(DESCRIPTOR_DTYPES),
        stored_dim=fields["stored_dim"].integer(1, 2**16),
        max_keypoints=fields["max_keypoints"].integer(1, 2**24),
        max_side_px=fields["max_side_px"].integer(0, 2**20),
    )


def _decode_rungs(field: Field) -> tuple[str, ...]:
    rungs = tuple(item.text() for item in field.items())
    if len(set(rungs)) != len(rungs) or not set(rungs) <= set(Rung.__members__):
        field.fail(f"different ones of {', '.join(Rung.__members__)}")
    return rungs


def _decode_gravity(field: Field) -> tuple[float, float, float] | None:
    if field.value is None:
        return None
    gravity = field.vector(1.0)
    if abs(math.hypot(*gravity) - 1.0) > 1e-6:
        field.fail("a vector of length 1")
    return gravity


def _decode_geo_reference(field: Field) -> Mapping[str, float] | None:
    if field.value is None:
        return None
    fields = field.members(_GEO_LIMITS)
    return MappingProxyType(
        {key: fields[key].number(-lim, lim) for key, lim in _GEO_LIMITS.items()}
    )


def _decode_build(field: Field) -> Mapping[str, str | int | float]:
    facts: dict[str, str | int | float] = {}
    for key, fact in field.members().items():
        if isinstance(fact.value, str):
            facts[key] = fact.text()
        elif isinstance(fact.value, float):
            facts[key] = fact.number(-1e300, 1e300)
        else:
            facts[key] = fact.integer(-(2**53), 2**53)
    return MappingProxyType(facts)


def _decode_shapes(field: Field) -> Mapping[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {}
    for name, shape in field.members().items():
        items = shape.items()
        if len(items) > 8:
            shape.fail("at most 8 dimensions")
        shapes[name] = tuple(item.integer(0, MAX_IDS) for item in items)
        # Zeros aside, since NumPy has no array of shape (0, 2**32, 2**32) either.
        if math.prod(max(size, 1) for size in shapes[name]) > MAX_FILE_BYTES:
            shape.fail(f"a product of at most {MAX_FILE_BYTES}")
    return MappingProxyType(dict(sorted(shapes.items())))


def decode_manifest(raw: bytes) -> SiteManifest:
    """Return what the text of site.json says.

    Parameters
    ----------
    raw : bytes
        The file.

    Returns
    -------
    SiteManifest

    Raises
    ------
    TileFormatError
        With the field that is wrong, or when the text is not canonical or does not
        have the hash that its `map_id` says.
    """
    root = parse_json(raw, TileFormatError)
    top = root.members()
    # Before anything that a later version might change.
    kind = top.get("format", Field("format", None, TileFormatError))
    if kind.text() != FORMAT_NAME:
        kind.fail(repr(FORMAT_NAME))
    version = top.get("format_version", Field("format_version", None, TileFormatError))
    if version.integer(0, 2**53) != FORMAT_VERSION:
        version.fail(f"{FORMAT_VERSION}, all that this edgeloc reads")
    fields = root.members(_SITE_KEYS, optional=("models",))
    if fields["conventions"].value != dict(CONVENTIONS):
        fields["conventions"].fail("those of the format")
    tiles = _decode_tiles(fields["tiles"])
    index = _decode_file(fields["index"].members(_FILE_KEYS), INDEX_FILE)
    num_keyframes = fields["num_keyframes"].integer(1, MAX_IDS)
    if sum(tile.num_keyframes for tile in tiles) != num_keyframes:
        fields["num_keyframes"].fail("the sum over the tiles")
    models = _decode_models(fields["models"]) if "models" in fields else {}
    family = _decode_family(fields["family"])
    if "features" in models and models["features"].name != family.name:
        raise TileFormatError(
            f"family.name is {family.name!r}, models.features.name "
            f"{models['features'].name!r}"
        )
    manifest = SiteManifest(
        map_id=fields["map_id"].text(),
        name=fields["name"].text(),
        metric=fields["metric"].flag(),
        cameras=_decode_cameras(fields["cameras"]),
        family=family,
        rungs=_decode_rungs(fields["rungs"]),
        covariance_scale=fields["covariance_scale"].number(1e-9, 1e9),
        gravity_in_world=_decode_gravity(fields["gravity_in_world"]),
        geo_reference=_decode_geo_reference(fields["geo_reference"]),
        build=_decode_build(fields["build"]),
        models=MappingProxyType(dict(models)),
        tiles=tiles,
        index=index,
        num_keyframes=num_keyframes,
        global_descriptor_dim=fields["global_descriptor_dim"].integer(0, 2**20),
        retrieval_shapes=_decode_shapes(fields["retrieval_arrays"]),
        format_version=FORMAT_VERSION,
        total_bytes=len(raw)
        + index.num_bytes
        + sum(tile.file.num_bytes for tile in tiles)
        + sum(m.manifest.num_bytes + m.network.num_bytes for m in models.values()),
    )
    document = {key: field.value for key, field in fields.items()}
    try:
        sealed = seal(document)
    except UnicodeEncodeError as exc:
        raise TileFormatError(f"holds text that is not Unicode: {exc.reason}") from exc
    if sealed != raw:
        raise TileFormatError("was changed: its text does not go with its map_id")
    return manifest

"""site.json: what a site is, and the checksums of what it is made of.

The text is canonical JSON (FORMAT.md), and the id of the map is a hash of it; so a
site.json that was changed in any way is recognised. It holds the SHA-256 of the index,
and the index that of every tile.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from edgeloc.errors import TileFormatError
from edgeloc.fields import Field, parse_json
from edgeloc.tiles.canonical import canonical_json
from edgeloc.tiles.codec import MAX_COORDINATE
from edgeloc.tiles.container import BASE_VERSION, FORMAT_VERSION
from edgeloc.tiles.layout import FamilySpec, SiteContents
from edgeloc.tiles.tile_table import MAX_TILE_LANDMARKS, MAX_TILES
from edgeloc.types import CameraModel, Rung

SITE_FILE = "site.json"
PREVIOUS_FILE = "previous.json"
TILE_FOLDER = "tiles"
MODEL_FOLDER = "models"
MODEL_ROLES = ("features", "retrieval", "scene_coords", "regress")
CODEBOOK_ROLES = ("descriptors", "global")
CODINGS = ("plain", "pq")
GLOBAL_CODINGS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {"float16": ("float16",), "int8": ("int8",), "pq": ("uint8", "uint16")}
)
"""How global descriptors may be coded, and the element types of each."""
DESCRIPTOR_DTYPES = ("uint8", "int8", "float16", "float32")
"""Element types that descriptors may have."""
FORMAT_NAME = "edgeloc-site"
MAX_SITE_JSON_BYTES = 16 << 20
MAX_FILE_BYTES = 1 << 40
MAX_KEYFRAMES = 2**26
MAX_CAMERAS = 2**16
MAP_ID_CHARS = 16
NAME_CHARS = 16
"""Hexadecimal digits of its SHA-256 in the name of a file."""


def tile_file_name(sha256: str) -> str:
    """Return the name of a tile's file within the site."""
    return f"{TILE_FOLDER}/{sha256[:NAME_CHARS]}.tile"


def index_file_name(sha256: str) -> str:
    """Return the name of the index within the site."""
    return f"index-{sha256[:NAME_CHARS]}.bin"


def codebook_file_name(sha256: str) -> str:
    """Return the name of a codebook within the site."""
    return f"codebook-{sha256[:NAME_CHARS]}.bin"


def signature_file_name(map_id: str) -> str:
    """Return the name of the signature of site.json."""
    return f"site-{map_id}.sig"


@dataclass(frozen=True, slots=True, kw_only=True)
class FileEntry:
    """One file of a site; its name follows from what it is and from its SHA-256.

    Parameters
    ----------
    file : str
        Name within the site.
    num_bytes : int
        Size.
    sha256 : str
        Of the whole file.
    """

    file: str
    num_bytes: int
    sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class IndexEntry(FileEntry):
    """The index.

    Parameters
    ----------
    crc32 : int
        Of header and section table, which hold the checksums of the rest; checked
        whenever the file is read, so a file of another build is never taken for it.
    """

    crc32: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelEntry:
    """A network that the site carries.

    Parameters
    ----------
    name : str
        In its manifest.
    manifest, network : FileEntry
        Its two files.
    """

    name: str
    manifest: FileEntry
    network: FileEntry


def model_entry(
    role: str, name: str, manifest: tuple[int, str], network: tuple[int, str]
) -> ModelEntry:
    """Return the entry of a network from (bytes, SHA-256) of its two files.

    They lie in a folder of their own, named by both, under names that a model manifest
    can refer to.
    """
    both = hashlib.sha256(f"{manifest[1]}{network[1]}".encode()).hexdigest()
    stem = f"{MODEL_FOLDER}/{both[:NAME_CHARS]}/{role}"
    return ModelEntry(
        name=name,
        manifest=FileEntry(
            file=f"{stem}.json", num_bytes=manifest[0], sha256=manifest[1]
        ),
        network=FileEntry(file=f"{stem}.onnx", num_bytes=network[0], sha256=network[1]),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class CodebookEntry(FileEntry):
    """A codebook that the site carries.

    Parameters
    ----------
    name : str
        Its name.
    """

    name: str


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
    codebooks : mapping of str to CodebookEntry
        Codebooks that the site carries, by role.
    index : IndexEntry
        The index, which holds the tile table.
    grid_origin : tuple of 3 float
        Where the grid of cells begins, m.
    num_tiles, num_landmarks, num_keyframes, tile_bytes : int
        Sums over the tile table.
    global_coding, global_dtype, global_dim : str, str, int
        How global descriptors are coded, element type and elements of each.
    format_version : int
        Version of FORMAT.md that the site is written in: 3 with keyframe features.
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
    codebooks: Mapping[str, CodebookEntry]
    index: IndexEntry
    grid_origin: tuple[float, float, float]
    num_tiles: int
    num_landmarks: int
    num_keyframes: int
    tile_bytes: int
    global_coding: str
    global_dtype: str
    global_dim: int
    format_version: int
    total_bytes: int

    @property
    def has_features(self) -> bool:
        """Whether its tiles hold local features of their keyframes."""
        return self.format_version >= FORMAT_VERSION

    @property
    def camera_ids(self) -> tuple[str, ...]:
        """Cameras in the order that the index counts them."""
        return tuple(sorted(self.cameras))


_FILE_KEYS = ("bytes", "sha256")
_INDEX_KEYS = (*_FILE_KEYS, "crc32")
_MODEL_KEYS = ("name", "manifest", "network")
_CODEBOOK_KEYS = (*_FILE_KEYS, "name")
_TILES_KEYS = ("count", "bytes", "landmarks", "grid_origin")
_GLOBAL_KEYS = ("coding", "dtype", "dim")
_FAMILY_KEYS = (
    "name", "stored_dtype", "stored_dim", "max_keypoints", "max_side_px", "coding",
)  # fmt: skip
_CAMERA_KEYS = ("model", "width", "height", "params")
_GEO_LIMITS = {"latitude_deg": 90.0, "longitude_deg": 180.0, "altitude_m": 1e5}
_SITE_KEYS = (
    "format", "format_version", "map_id", "name", "metric", "cameras", "family",
    "rungs", "covariance_scale", "build", "keyframes", "global_descriptors", "index",
    "tiles",
)  # fmt: skip
_OPTIONAL_KEYS = ("models", "codebooks", "gravity_in_world", "geo_reference")


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
    return {"bytes": entry.num_bytes, "sha256": entry.sha256}


@dataclass(frozen=True, slots=True, kw_only=True)
class WrittenFiles:
    """What a site was written to, beside site.json.

    Parameters
    ----------
    index : IndexEntry
        The index.
    num_tiles, num_landmarks, tile_bytes : int
        Sums over the tile table.
    grid_origin : tuple of 3 float
        Where the grid of cells begins, m.
    models : mapping of str to ModelEntry
        Networks, by role.
    codebooks : mapping of str to CodebookEntry
        Codebooks, by role.
    """

    index: IndexEntry
    num_tiles: int
    num_landmarks: int
    tile_bytes: int
    grid_origin: tuple[float, float, float]
    models: Mapping[str, ModelEntry]
    codebooks: Mapping[str, CodebookEntry]


def _models_document(models: Mapping[str, ModelEntry]) -> dict[str, object]:
    return {
        role: {
            "name": entry.name,
            "manifest": _file_document(entry.manifest),
            "network": _file_document(entry.network),
        }
        for role, entry in models.items()
    }


def files_document(files: WrittenFiles) -> dict[str, object]:
    """Return the fields of site.json that tell of other files."""
    document: dict[str, object] = {
        "index": {**_file_document(files.index), "crc32": files.index.crc32},
        "tiles": {
            "count": files.num_tiles,
            "bytes": files.tile_bytes,
            "landmarks": files.num_landmarks,
            "grid_origin": [float(value) for value in files.grid_origin],
        },
    }
    if files.models:
        document["models"] = _models_document(files.models)
    if files.codebooks:
        document["codebooks"] = {
            role: {**_file_document(entry), "name": entry.name}
            for role, entry in files.codebooks.items()
        }
    return document


def encode_manifest(contents: SiteContents, files: WrittenFiles) -> bytes:
    """Return the text of site.json.

    Parameters
    ----------
    contents : SiteContents
        What the site holds; global codes are as they are stored.
    files : WrittenFiles
        What was made of it.

    Returns
    -------
    bytes
        To be checked with `decode_manifest`: nothing is checked here.

    Raises
    ------
    TypeError, ValueError
        When JSON cannot say it.
    """
    codes = contents.keyframes.global_codes
    document: dict[str, object] = {
        **files_document(files),
        "format": FORMAT_NAME,
        "format_version": BASE_VERSION if contents.features is None else FORMAT_VERSION,
        "name": contents.name,
        "metric": contents.metric,
        "cameras": {
            camera_id: {key: getattr(camera, key) for key in _CAMERA_KEYS}
            for camera_id, camera in contents.cameras.items()
        },
        "family": {key: getattr(contents.family, key) for key in _FAMILY_KEYS},
        "rungs": list(contents.rungs),
        "covariance_scale": float(contents.covariance_scale),
        "build": dict(contents.build),
        "keyframes": len(contents.keyframes),
        "global_descriptors": {
            "coding": contents.global_coding,
            "dtype": codes.dtype.name,
            "dim": codes.shape[1],
        },
    }
    gravity, geo = contents.gravity_in_world, contents.geo_reference
    if gravity is not None:
        document["gravity_in_world"] = [float(value) for value in gravity]
    if geo is not None:
        document["geo_reference"] = {key: float(value) for key, value in geo.items()}
    return seal(document)


def with_tile_table(
    site_json: bytes, *, index: IndexEntry, tile_bytes: int, num_landmarks: int
) -> bytes:
    """Return the text of site.json with another index.

    Parameters
    ----------
    site_json : bytes
        Of the version before.
    index : IndexEntry
        The new one.
    tile_bytes, num_landmarks : int
        Sums over its tile table.
    """
    fields = parse_json(site_json, TileFormatError).members()
    document = {key: field.value for key, field in fields.items()}
    tiles = {key: field.value for key, field in fields["tiles"].members().items()}
    return seal(
        {
            **document,
            "index": {**_file_document(index), "crc32": index.crc32},
            "tiles": {**tiles, "bytes": tile_bytes, "landmarks": num_landmarks},
        }
    )


def with_models(
    site_json: bytes,
    *,
    index: IndexEntry,
    models: Mapping[str, ModelEntry],
    rungs: Iterable[str],
) -> bytes:
    """Return the text of site.json with further networks.

    Parameters
    ----------
    site_json : bytes
        Of the version before.
    index : IndexEntry
        The new one.
    models : mapping of str to ModelEntry
        Networks to add, by role; one of the same role is replaced.
    rungs : iterable of str
        What the site carries data for from now on, beside what it did before.
    """
    fields = parse_json(site_json, TileFormatError).members()
    document = {key: field.value for key, field in fields.items()}
    before = fields["models"].members() if "models" in fields else {}
    known = [item.text() for item in fields["rungs"].items()]
    return seal(
        {
            **document,
            "index": {**_file_document(index), "crc32": index.crc32},
            "models": {
                **{role: field.value for role, field in before.items()},
                **_models_document(models),
            },
            "rungs": list(dict.fromkeys([*known, *rungs])),
        }
    )


def _decode_size(fields: Mapping[str, Field]) -> tuple[int, str]:
    return fields["bytes"].integer(1, MAX_FILE_BYTES), fields["sha256"].sha256()


def _decode_index(field: Field) -> IndexEntry:
    fields = field.members(_INDEX_KEYS)
    num_bytes, sha256 = _decode_size(fields)
    return IndexEntry(
        file=index_file_name(sha256),
        num_bytes=num_bytes,
        sha256=sha256,
        crc32=fields["crc32"].integer(0, 2**32 - 1),
    )


def _roles(field: Field, roles: tuple[str, ...]) -> Mapping[str, Field]:
    members = field.members((), optional=roles)
    if not members:
        field.fail("at least one, or no such field")
    return members


def _decode_models(field: Field) -> Mapping[str, ModelEntry]:
    models = {}
    for role, member in _roles(field, MODEL_ROLES).items():
        fields = member.members(_MODEL_KEYS)
        models[role] = model_entry(
            role,
            fields["name"].text(),
            _decode_size(fields["manifest"].members(_FILE_KEYS)),
            _decode_size(fields["network"].members(_FILE_KEYS)),
        )
    return MappingProxyType(models)


def _decode_codebooks(field: Field) -> Mapping[str, CodebookEntry]:
    codebooks = {}
    for role, member in _roles(field, CODEBOOK_ROLES).items():
        fields = member.members(_CODEBOOK_KEYS)
        num_bytes, sha256 = _decode_size(fields)
        codebooks[role] = CodebookEntry(
            file=codebook_file_name(sha256),
            num_bytes=num_bytes,
            sha256=sha256,
            name=fields["name"].text(),
        )
    return MappingProxyType(codebooks)


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
    if not 1 <= len(members) <= MAX_CAMERAS:
        field.fail(f"1 to {MAX_CAMERAS} cameras")
    return MappingProxyType({key: _decode_camera(f) for key, f in members.items()})


def _decode_family(field: Field) -> FamilySpec:
    fields = field.members(_FAMILY_KEYS)
    return FamilySpec(
        name=fields["name"].text(),
        stored_dtype=fields["stored_dtype"].choice(DESCRIPTOR_DTYPES),
        stored_dim=fields["stored_dim"].integer(1, 2**16),
        max_keypoints=fields["max_keypoints"].integer(1, 2**24),
        max_side_px=fields["max_side_px"].integer(0, 2**20),
        coding=fields["coding"].choice(CODINGS),
    )


def _decode_global(field: Field) -> tuple[str, str, int]:
    fields = field.members(_GLOBAL_KEYS)
    coding = fields["coding"].choice(GLOBAL_CODINGS)
    dtype = fields["dtype"].choice(GLOBAL_CODINGS[coding])
    return coding, dtype, fields["dim"].integer(0, 2**20)


def needed_codebooks(family: FamilySpec, global_coding: str) -> tuple[str, ...]:
    """Return the roles of the codebooks that a site cannot do without."""
    needed = {"descriptors": family.coding == "pq", "global": global_coding == "pq"}
    return tuple(role for role, is_needed in needed.items() if is_needed)


def _decode_rungs(field: Field) -> tuple[str, ...]:
    rungs = tuple(item.text() for item in field.items())
    if len(set(rungs)) != len(rungs) or not set(rungs) <= set(Rung.__members__):
        field.fail(f"different ones of {', '.join(Rung.__members__)}")
    return rungs


def _decode_gravity(field: Field) -> tuple[float, float, float]:
    gravity = field.vector(1.0)
    if abs(math.hypot(*gravity) - 1.0) > 1e-6:
        field.fail("a vector of length 1")
    return gravity


def _decode_geo_reference(field: Field) -> Mapping[str, float]:
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
    if not BASE_VERSION <= version.integer(0, 2**53) <= FORMAT_VERSION:
        version.fail(f"{BASE_VERSION} or {FORMAT_VERSION}, all that this edgeloc reads")
    fields = root.members(_SITE_KEYS, optional=_OPTIONAL_KEYS)
    index = _decode_index(fields["index"])
    tiles = fields["tiles"].members(_TILES_KEYS)
    num_tiles = tiles["count"].integer(1, MAX_TILES)
    tile_bytes = tiles["bytes"].integer(1, MAX_FILE_BYTES)
    models = _decode_models(fields["models"]) if "models" in fields else {}
    codebooks = _decode_codebooks(fields["codebooks"]) if "codebooks" in fields else {}
    family = _decode_family(fields["family"])
    if "features" in models and models["features"].name != family.name:
        raise TileFormatError(
            f"family.name is {family.name!r}, models.features.name "
            f"{models['features'].name!r}"
        )
    coding, global_dtype, global_dim = _decode_global(fields["global_descriptors"])
    for role in needed_codebooks(family, coding):
        if role not in codebooks:
            raise TileFormatError(
                f"codebooks.{role} is missing: codes say nothing without it"
            )
    gravity, geo = fields.get("gravity_in_world"), fields.get("geo_reference")
    manifest = SiteManifest(
        map_id=fields["map_id"].text(),
        name=fields["name"].text(),
        metric=fields["metric"].flag(),
        cameras=_decode_cameras(fields["cameras"]),
        family=family,
        rungs=_decode_rungs(fields["rungs"]),
        covariance_scale=fields["covariance_scale"].number(1e-9, 1e9),
        gravity_in_world=None if gravity is None else _decode_gravity(gravity),
        geo_reference=None if geo is None else _decode_geo_reference(geo),
        build=_decode_build(fields["build"]),
        models=MappingProxyType(dict(models)),
        codebooks=MappingProxyType(dict(codebooks)),
        index=index,
        grid_origin=tiles["grid_origin"].vector(2 * MAX_COORDINATE),
        num_tiles=num_tiles,
        num_landmarks=tiles["landmarks"].integer(0, num_tiles * MAX_TILE_LANDMARKS),
        num_keyframes=fields["keyframes"].integer(1, MAX_KEYFRAMES),
        tile_bytes=tile_bytes,
        global_coding=coding,
        global_dtype=global_dtype,
        global_dim=global_dim,
        format_version=version.integer(BASE_VERSION, FORMAT_VERSION),
        total_bytes=len(raw)
        + index.num_bytes
        + tile_bytes
        + sum(m.manifest.num_bytes + m.network.num_bytes for m in models.values())
        + sum({c.file: c.num_bytes for c in codebooks.values()}.values()),
    )
    document = {key: field.value for key, field in fields.items()}
    try:
        sealed = seal(document)
    except UnicodeEncodeError as exc:
        raise TileFormatError(f"holds text that is not Unicode: {exc.reason}") from exc
    if sealed != raw:
        raise TileFormatError("was changed: its text does not go with its map_id")
    return manifest

"""Model manifests: the JSON beside an ONNX file that says how it is to be used.

Nothing is guessed from the network itself: input, outputs and decoder are written down,
every field is checked, and the ONNX file must have the SHA-256 that the manifest says.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType

from edgeloc.errors import ConfigError, ModelError
from edgeloc.fields import Field, parse_json

FORMAT_NAME = "edgeloc-model"
FORMAT_VERSION = 1
MAX_MANIFEST_BYTES = 64 << 10
MAX_NETWORK_BYTES = 2 << 30
"""What a protobuf can hold."""
ROLES = ("features", "retrieval", "scene_coords", "regress", "segmentation")
HEADS = ("scene_coords", "regress")
"""Roles of networks of one site: heads, which take descriptors of an image and not its
pixels, or whole networks, which take the image; the decoder says which."""
PRECISIONS = ("fp32", "fp16", "int8")
FLAVOURS = ("any", "cpu", "tensorrt")
DECODERS: Mapping[str, tuple[str, tuple[str, ...]]] = MappingProxyType(
    {
        "edgeloc": ("features", ("descriptors", "reliability")),
        "xfeat": ("features", ("descriptors", "keypoints", "reliability")),
        "superpoint": ("features", ("descriptors", "keypoints")),
        "aliked": ("features", ("descriptors", "scores")),
        "disk": ("features", ("descriptors", "scores")),
        "points": ("features", ("descriptors", "keypoints", "scores")),
        "points-normalized": ("features", ("descriptors", "keypoints", "scores")),
        "vector": ("retrieval", ("global_descriptor",)),
        "class-logits": ("segmentation", ("classes",)),
        "class-ids": ("segmentation", ("classes",)),
        "points-of-descriptors": ("scene_coords", ("points", "log_sigma")),
        "pose-of-descriptors": ("regress", ("center", "rotation")),
        "dense-points": ("scene_coords", ("points",)),
        "dense-points-sigma": ("scene_coords", ("points", "log_sigma")),
        "pose-quaternion": ("regress", ("center", "quaternion")),
        "pose-log-quaternion": ("regress", ("center", "log_quaternion")),
    }
)
"""Role of each decoder, and what the network must put out for it."""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_MAX_SIDE_PX = 1 << 14
_MAX_DIM = 1 << 16
_TOP_KEYS = (
    *("format", "version", "name", "role", "file", "sha256", "precision", "flavour"),
    *("input", "decoder", "outputs", "descriptor_dim", "license", "source"),
)
_INPUT_KEYS = ("name", "channels", "scale", "mean", "std", "size_multiple", "size")
_HEAD_KEYS = ("name", "family", "grid", "extent", "origin")
_OF_DESCRIPTORS = ("points-of-descriptors", "pose-of-descriptors")
"""Decoders of heads that do not take pictures."""
_MAX_GRID = 64
_MAX_COORDINATE = 1e8


@dataclass(frozen=True, slots=True, kw_only=True)
class InputSpec:
    """How an image becomes the network's input.

    Parameters
    ----------
    name : str
        Of the ONNX input, (1, channels, H, W).
    channels : {1, 3}
        Grey or RGB.
    scale : float
        ``x = (pixel * scale - mean) / std``.
    mean, std : tuple of float
        One per channel.
    size_multiple : int
        Sides are padded to a multiple of it, right and below, with edge pixels.
    size : (int, int) or None
        Height and width that every image is resized to; None = any size.
    """

    name: str = "image"
    channels: int = 1
    scale: float = 1.0 / 255.0
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)
    size_multiple: int = 1
    size: tuple[int, int] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class HeadSpec:
    """What goes into a network of one site.

    Parameters
    ----------
    family : str
        Whose descriptors it takes; "" for a network that takes the picture itself.
    grid : (int, int)
        Columns and rows of the view over which descriptors are averaged (regress), see
        `edgeloc.features.view`; (0, 0) for scene_coords, which takes them one by one.
    extent : (float, float)
        Half the width and height of that view, on the plane z = 1.
    origin : tuple of 3 float
        Positions in the world are relative to it, m.
    """

    family: str
    grid: tuple[int, int] = (0, 0)
    extent: tuple[float, float] = (1.0, 1.0)
    origin: tuple[float, float, float] = (0.0, 0.0, 0.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelManifest:
    """What a manifest says.

    Parameters
    ----------
    name : str
        Of the model; letters, digits, ``. _ -``.
    role : {"features", "retrieval", "scene_coords", "regress", "segmentation"}
        What it is for.
    file : str
        The ONNX file, beside the manifest.
    sha256 : str
        Of that file.
    precision : {"fp32", "fp16", "int8"}
        Of weights and activations.
    flavour : {"any", "cpu", "tensorrt"}
        Which runtime it was written for.
    input : InputSpec
        Preprocessing; of a head that takes descriptors only the name.
    decoder : str
        A key of `DECODERS`.
    outputs : mapping of str to str
        Names of the ONNX outputs by what the decoder calls them.
    descriptor_dim : int
        Elements of a descriptor, local or global; of a head, of those that it takes.
    match_ratio : float or None
        Lowe's ratio that serves the descriptors best; None but for features.
    license, source : str
        One line each.
    head : HeadSpec or None
        What a network of one site takes; None for others.
    classes : tuple of str
        Names of what a segmentation network tells apart, in the order of its numbers;
        `descriptor_dim` is how many. Empty for other roles.
    """

    name: str
    role: str
    file: str
    sha256: str
    precision: str
    flavour: str
    input: InputSpec
    decoder: str
    outputs: Mapping[str, str]
    descriptor_dim: int
    match_ratio: float | None
    license: str
    source: str
    head: HeadSpec | None = None
    classes: tuple[str, ...] = ()

    @property
    def takes_pictures(self) -> bool:
        """Whether pixels go in, and not descriptors."""
        return self.head is None or not self.head.family


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """A manifest whose network was found to be the right one.

    Parameters
    ----------
    manifest : ModelManifest
        What it says.
    manifest_path, network_path : Path
        The two files.
    """

    manifest: ModelManifest
    manifest_path: Path
    network_path: Path


def encode_manifest(manifest: ModelManifest) -> bytes:
    """Return the text of a manifest.

    Raises
    ------
    ModelError
        When it would not be accepted again.
    """
    document: dict[str, object] = {
        "format": FORMAT_NAME,
        "version": FORMAT_VERSION,
        "name": manifest.name,
        "role": manifest.role,
        "file": manifest.file,
        "sha256": manifest.sha256,
        "precision": manifest.precision,
        "flavour": manifest.flavour,
        "input": _input_document(manifest),
        "decoder": manifest.decoder,
        "outputs": dict(manifest.outputs),
        "descriptor_dim": manifest.descriptor_dim,
        "license": manifest.license,
        "source": manifest.source,
    }
    if manifest.match_ratio is not None:
        document["match_ratio"] = manifest.match_ratio
    if manifest.classes:
        document["classes"] = list(manifest.classes)
    raw = json.dumps(document, indent=2, ensure_ascii=False).encode() + b"\n"
    decode_manifest(raw)
    return raw


def _input_document(manifest: ModelManifest) -> dict[str, object]:
    spec, head = manifest.input, manifest.head
    if head is not None and head.family:
        return {
            "name": spec.name,
            "family": head.family,
            "grid": list(head.grid),
            "extent": list(head.extent),
            "origin": list(head.origin),
        }
    return {
        "name": spec.name,
        "channels": spec.channels,
        "scale": spec.scale,
        "mean": list(spec.mean),
        "std": list(spec.std),
        "size_multiple": spec.size_multiple,
        "size": None if spec.size is None else list(spec.size),
        **({} if head is None else {"origin": list(head.origin)}),
    }


def decode_manifest(raw: bytes) -> ModelManifest:
    """Return what the text of a manifest says.

    Raises
    ------
    ModelError
        With the field that is wrong.
    """
    root = parse_json(raw, ModelError)
    top = root.members()
    # Before anything that a later version might change.
    kind = top.get("format", Field("format", None, ModelError))
    kind.choice((FORMAT_NAME,))
    version = top.get("version", Field("version", None, ModelError))
    if version.integer(0, 2**53) != FORMAT_VERSION:
        version.fail(f"{FORMAT_VERSION}, all that this edgeloc reads")
    fields = root.members(_TOP_KEYS, optional=("match_ratio", "classes"))
    role = fields["role"].choice(ROLES)
    decoder = fields["decoder"].choice(
        [name for name, (served, _) in DECODERS.items() if served == role]
    )
    outputs = {
        key: field.text()
        for key, field in fields["outputs"].members(DECODERS[decoder][1]).items()
    }
    if ("match_ratio" in fields) != (role == "features"):
        state = "is missing" if role == "features" else "is only for features"
        raise ModelError(f"match_ratio {state}")
    classes = _decode_classes(fields, role)
    head = None
    if decoder in _OF_DESCRIPTORS:
        spec, head = _decode_head(fields["input"], role)
    elif role in HEADS:
        spec, head = _decode_input_of_site(fields["input"])
    else:
        spec = _decode_input(fields["input"].members(_INPUT_KEYS))
    return ModelManifest(
        name=_name(fields["name"]),
        role=role,
        file=_name(fields["file"]),
        sha256=fields["sha256"].sha256(),
        precision=fields["precision"].choice(PRECISIONS),
        flavour=fields["flavour"].choice(FLAVOURS),
        input=spec,
        decoder=decoder,
        outputs=MappingProxyType(outputs),
        descriptor_dim=fields["descriptor_dim"].integer(1, _MAX_DIM),
        match_ratio=fields["match_ratio"].number(0.01, 1.0)
        if role == "features"
        else None,
        license=fields["license"].text(),
        source=fields["source"].text(),
        head=head,
        classes=classes,
    )


def _decode_classes(fields: Mapping[str, Field], role: str) -> tuple[str, ...]:
    if ("classes" in fields) != (role == "segmentation"):
        state = "is missing" if role == "segmentation" else "is only for segmentation"
        raise ModelError(f"classes {state}")
    if "classes" not in fields:
        return ()
    classes = tuple(item.text() for item in fields["classes"].items())
    if len(set(classes)) != len(classes):
        fields["classes"].fail("names that differ from each other")
    if len(classes) != fields["descriptor_dim"].integer(1, _MAX_DIM):
        fields["classes"].fail("as many names as descriptor_dim says")
    return classes


def _name(field: Field) -> str:
    # Nothing that could lead out of the folder.
    if not _NAME.fullmatch(field.text()):
        field.fail("1 to 64 letters, digits, '.', '_', '-' that begin with no sign")
    return field.text()


def _decode_input_of_site(field: Field) -> tuple[InputSpec, HeadSpec]:
    fields = field.members((*_INPUT_KEYS, "origin"))
    return _decode_input(fields), HeadSpec(family="", origin=_origin(fields))


def _origin(fields: Mapping[str, Field]) -> tuple[float, float, float]:
    return fields["origin"].vector(_MAX_COORDINATE)


def _decode_input(fields: Mapping[str, Field]) -> InputSpec:
    channels = fields["channels"].integer(1, 3)
    if channels == 2:
        fields["channels"].fail("1 (grey) or 3 (RGB)")
    multiple = fields["size_multiple"].integer(1, 1024)
    size = None
    if fields["size"].value is not None:
        height, width = (
            side.integer(1, _MAX_SIDE_PX) for side in fields["size"].items(2)
        )
        size = (height, width)
        if height % multiple or width % multiple:
            fields["size"].fail(f"multiples of size_multiple {multiple}")
    return InputSpec(
        name=fields["name"].text(),
        channels=channels,
        scale=fields["scale"].number(1e-6, 1e6),
        mean=tuple(f.number(-1e6, 1e6) for f in fields["mean"].items(channels)),
        std=tuple(f.number(1e-6, 1e6) for f in fields["std"].items(channels)),
        size_multiple=multiple,
        size=size,
    )


def _decode_head(field: Field, role: str) -> tuple[InputSpec, HeadSpec]:
    fields = field.members(_HEAD_KEYS)
    columns, rows = (n.integer(0, _MAX_GRID) for n in fields["grid"].items(2))
    if (min(columns, rows) > 0) != (role == "regress"):
        fields["grid"].fail(
            "columns and rows" if role == "regress" else "[0, 0] for scene_coords"
        )
    width, height = (n.number(1e-3, 1e3) for n in fields["extent"].items(2))
    if not fields["family"].text():
        fields["family"].fail("the name of the features")
    head = HeadSpec(
        family=fields["family"].text(),
        grid=(columns, rows),
        extent=(width, height),
        origin=_origin(fields),
    )
    return InputSpec(name=fields["name"].text()), head


def load_manifest(path: Path) -> ModelManifest:
    """Return a manifest from its file; the network is not looked at.

    Raises
    ------
    ConfigError
        When there is no such file.
    ModelError
        With file and field.
    """
    try:
        with path.open("rb") as file:
            raw = file.read(MAX_MANIFEST_BYTES + 1)
    except FileNotFoundError as exc:
        raise ConfigError(f"{path}: no such model manifest") from exc
    except OSError as exc:
        raise ModelError(f"{path}: cannot be read ({exc.strerror})") from exc
    if len(raw) > MAX_MANIFEST_BYTES:
        raise ModelError(f"{path}: has more than {MAX_MANIFEST_BYTES} bytes")
    try:
        return decode_manifest(raw)
    except ModelError as exc:
        raise ModelError(f"{path}: {exc}") from exc


def load_model_for(role: str, path: Path) -> Model:
    """Return `load_model`'s model, if it is for something.

    Parameters
    ----------
    role : str
        What it has to be for.
    path : Path
        Its manifest.

    Raises
    ------
    ConfigError
        When there is no such manifest.
    ModelError
        When it cannot be used, or is for something else.
    """
    model = load_model(path)
    if model.manifest.role != role:
        raise ModelError(f"{path}: role is {model.manifest.role!r}, expected {role!r}")
    return model


def load_model(path: Path) -> Model:
    """Return a model whose network has the SHA-256 that its manifest says.

    Parameters
    ----------
    path : Path
        Of the manifest.

    Raises
    ------
    ConfigError
        When there is no such file.
    ModelError
        When the manifest or the network is not as it should be.
    """
    manifest = load_manifest(path)
    network = path.parent / manifest.file
    digest = hashlib.sha256()
    try:
        with network.open("rb") as file:
            num_bytes = file.seek(0, 2)
            file.seek(0)
            if not 0 < num_bytes <= MAX_NETWORK_BYTES:
                raise ModelError(
                    f"{network}: has {num_bytes} bytes, expected 1 to "
                    f"{MAX_NETWORK_BYTES}"
                )
            while block := file.read(1 << 20):
                digest.update(block)
    except OSError as exc:
        raise ModelError(
            f"{network}: cannot be read ({exc.strerror}), {path.name} names it"
        ) from exc
    if digest.hexdigest() != manifest.sha256:
        raise ModelError(
            f"{network}: its SHA-256 begins with {digest.hexdigest()[:12]}, sha256 in "
            f"{path.name} with {manifest.sha256[:12]}; copy both files again"
        )
    return Model(manifest=manifest, manifest_path=path, network_path=network)


def shipped_folder() -> Path | None:
    """Return where this edgeloc's own models are, if it has any.

    In the wheel that is ``edgeloc/models``, in a checkout ``models`` beside it.
    """
    package = Path(__file__).resolve().parent.parent
    folders = [package / "models"]
    # Beside an installed package there is site-packages, where anything may be.
    if (package.parent / "pyproject.toml").is_file():
        folders.append(package.parent / "models")
    for folder in folders:
        if any(folder.glob("*.json")):
            return folder
    return None


def shipped_manifests() -> list[Path]:
    """Return the manifests of this edgeloc's own models, by name."""
    folder = shipped_folder()
    return [] if folder is None else sorted(folder.glob("*.json"))


def shipped_model(role: str) -> Path | None:
    """Return the manifest of the model that is used for `role` when none is named.

    INT8 for the CPU before other precisions that run anywhere, and of several the
    smallest.

    Raises
    ------
    ModelError
        When one of the shipped manifests is broken.
    """
    candidates = []
    for path in shipped_manifests():
        manifest = load_manifest(path)
        if manifest.role == role and manifest.flavour in {"any", "cpu"}:
            network = path.parent / manifest.file
            num_bytes = network.stat().st_size if network.is_file() else 0
            preference = ("int8", "fp32", "fp16").index(manifest.precision)
            candidates.append((preference, num_bytes, path))
    return min(candidates)[2] if candidates else None


def with_file(manifest: ModelManifest, file: str, network: bytes) -> ModelManifest:
    """Return the manifest of the same model as `file`, which holds `network`."""
    digest = hashlib.sha256(network).hexdigest()
    return replace(manifest, file=file, sha256=digest)

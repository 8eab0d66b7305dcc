"""Which camera model belongs to the frames: calibration files and the site's own."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from edgeloc.errors import ConfigError
from edgeloc.geometry.camera import scaled_camera
from edgeloc.types import CAMERA_MODEL_NUM_PARAMS, CameraModel

_log = logging.getLogger(__name__)

_JSON_KEYS = frozenset({"model", "width", "height", "params"})


def make_camera(
    model: object, size: Sequence[object], params: object, *, where: str
) -> CameraModel:
    """Make a camera model of what a file says.

    Parameters
    ----------
    model : object
        COLMAP's name.
    size : (width, height)
        px, as numbers or text.
    params : object
        A list of numbers or texts, in COLMAP's order.
    where : str
        File and place, for messages.

    Returns
    -------
    CameraModel

    Raises
    ------
    ConfigError
        When a value is not what it must be.
    """
    if not isinstance(params, (list, tuple)):
        raise ConfigError(f"{where}: params must be a list of numbers, got {params!r}")
    try:
        width, height = (int(str(value)) for value in size)
        numbers = tuple(float(value) for value in params)
        return CameraModel(model=str(model), width=width, height=height, params=numbers)
    except (ValueError, TypeError) as exc:
        raise ConfigError(f"{where}: {exc}") from exc


def split_fragment(text: str) -> tuple[Path, str | None]:
    """Split ``FILE#ID``; a file whose name has a # stays whole."""
    path, mark, fragment = text.rpartition("#")
    if mark and path and not Path(text).exists():
        return Path(path), fragment
    return Path(text), None


def pick_camera(
    names: Sequence[str],
    wanted: str | None,
    *,
    path: Path,
    option: str = "--intrinsics",
) -> str:
    """Return the name of the camera to use of a file that may hold several.

    Parameters
    ----------
    names : sequence of str
        What the file has.
    wanted : str or None
        What the user named after ``#``.
    path : Path
        For messages.
    option : str
        Of the command line, for messages.

    Raises
    ------
    ConfigError
        When there is no such camera, or several and none was named.
    """
    listed = ", ".join(names)
    if wanted is not None:
        if wanted not in names:
            raise ConfigError(f"{path}: has no camera {wanted}, only {listed}")
        return wanted
    if len(names) != 1:
        raise ConfigError(
            f"{path}: has {len(names)} cameras ({listed}); "
            f"choose one with {option} '{path}#{names[0]}'"
            if names
            else f"{path}: has no cameras"
        )
    return names[0]


def _from_text(text: str, wanted: str | None, path: Path) -> CameraModel:
    lines = {
        number: line.split()
        for number, line in enumerate(text.splitlines(), start=1)
        if line.strip() and not line.lstrip().startswith("#")
    }
    cameras: dict[str, tuple[int, list[str]]] = {}
    for number, words in lines.items():
        bare = words[0] in CAMERA_MODEL_NUM_PARAMS
        name = str(len(cameras) + 1) if bare else words[0]
        fields = words if bare else words[1:]
        if len(fields) < 4:
            raise ConfigError(
                f"{path} line {number}: expected `[CAMERA_ID] MODEL WIDTH HEIGHT "
                f"PARAMS...` (COLMAP cameras.txt), got `{' '.join(words)[:60]}`"
            )
        if name in cameras:
            raise ConfigError(f"{path} line {number}: camera {name} comes twice")
        cameras[name] = (number, fields)
    number, fields = cameras[pick_camera(list(cameras), wanted, path=path)]
    where = f"{path} line {number}"
    return make_camera(fields[0], fields[1:3], fields[3:], where=where)


def _from_json(text: str, wanted: str | None, path: Path) -> CameraModel:
    try:
        content = json.loads(text)
    except ValueError as exc:
        raise ConfigError(f"{path}: is not valid JSON ({exc})") from exc
    if not isinstance(content, dict) or set(content) != _JSON_KEYS:
        raise ConfigError(
            f"{path}: expected an object with exactly the keys "
            f"{', '.join(sorted(_JSON_KEYS))}"
        )
    if wanted is not None:
        raise ConfigError(f"{path}: holds one camera without a name, drop #{wanted}")
    size = (content["width"], content["height"])
    return make_camera(content["model"], size, content["params"], where=str(path))


def load_intrinsics(text: str | Path) -> CameraModel:
    """Read a calibration file.

    By suffix: ``.json`` is our own object (model, width, height, params), ``.yaml``
    and ``.yml`` are ROS camera_info or Kalibr camchain, all else is COLMAP's
    cameras.txt or one line ``MODEL WIDTH HEIGHT PARAMS...``.

    Parameters
    ----------
    text : str or Path
        ``FILE`` or ``FILE#ID`` with COLMAP's camera id or Kalibr's name (``cam1``).

    Returns
    -------
    CameraModel
        In the corner pixel convention, whatever the file's is.

    Raises
    ------
    ConfigError
        When it cannot be read or understood.
    """
    path, wanted = split_fragment(str(text))
    try:
        content = path.read_text(encoding="utf-8")
    except OSError as exc:
        raise ConfigError(
            f"intrinsics {path}: cannot be read ({exc.strerror or exc})"
        ) from exc
    except UnicodeDecodeError as exc:
        raise ConfigError(f"intrinsics {path}: is not a text file") from exc
    suffix = path.suffix.lower()
    if suffix == ".json":
        return _from_json(content, wanted, path)
    if suffix in {".yaml", ".yml"}:
        from edgeloc.runtime.intrinsics_yaml import (
            camera_from_yaml,
        )

        return camera_from_yaml(content, wanted, path=path)
    return _from_text(content, wanted, path)


def fit_camera(camera: CameraModel, *, size: tuple[int, int]) -> CameraModel:
    """Return the camera model for images of another size.

    Parameters
    ----------
    camera : CameraModel
        As calibrated.
    size : (int, int)
        Width and height of the images, px.

    Returns
    -------
    CameraModel
        The same one when the size fits.

    Raises
    ------
    ConfigError
        When the shape differs: then the images were cropped or turned, and nobody can
        know where the principal point went.
    """
    width, height = size
    if (camera.width, camera.height) == size:
        return camera
    # Within a pixel: resized images have rounded sizes.
    if abs(camera.height * width / camera.width - height) > 1.0:
        raise ConfigError(
            f"intrinsics are for {camera.width}x{camera.height} but the images are "
            f"{width}x{height}, another shape; give --intrinsics for this size"
        )
    _log.warning(
        "intrinsics are for %dx%d, images are %dx%d: scaled",
        camera.width,
        camera.height,
        width,
        height,
    )
    return scaled_camera(
        camera,
        width / camera.width,
        height / camera.height,
        width=width,
        height=height,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class IntrinsicsChoice:
    """The calibrated camera and where it is from.

    Parameters
    ----------
    camera : CameraModel
        As calibrated, not yet fitted to the images.
    origin : str
        For people.
    """

    camera: CameraModel
    origin: str


def choose_intrinsics(
    file: str | None, *, site_cameras: Mapping[str, CameraModel]
) -> IntrinsicsChoice:
    """Return the user's calibration, or the site's camera when it has just one.

    Parameters
    ----------
    file : str or None
        What was given as ``--intrinsics``.
    site_cameras : mapping of str to CameraModel
        Cameras of the mapping images.

    Returns
    -------
    IntrinsicsChoice

    Raises
    ------
    ConfigError
        When there is no file and the site has none or several.
    """
    if file is not None:
        return IntrinsicsChoice(camera=load_intrinsics(file), origin=file)
    if len(site_cameras) == 1:
        ((name, camera),) = site_cameras.items()
        return IntrinsicsChoice(camera=camera, origin=f"the site's camera {name}")
    listed = ", ".join(sorted(site_cameras)) or "none"
    raise ConfigError(
        f"--intrinsics is needed: the site has {len(site_cameras)} cameras ({listed}) "
        "and only a single one is taken by itself; give COLMAP cameras.txt, JSON, ROS "
        "camera_info or Kalibr YAML"
    )

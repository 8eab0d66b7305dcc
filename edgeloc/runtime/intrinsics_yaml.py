"""Calibrations in YAML: ROS camera_info and Kalibr camchain.

Both put the origin of pixels at the centre of the first one, as OpenCV does; half a
pixel is added to the principal point here and nowhere else.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edgeloc.errors import ConfigError
from edgeloc.runtime.intrinsics import make_camera, pick_camera
from edgeloc.types import CameraModel

_CORNER_FROM_CENTRE_PX = 0.5


def load_yaml(text: str, path: Path) -> Mapping[str, Any]:
    """Return the content of a YAML file with a mapping in it.

    Raises
    ------
    ConfigError
        When it is something else, or PyYAML is missing.
    """
    try:
        import yaml
    except ImportError as exc:
        raise ConfigError(
            f"{path}: reading YAML needs PyYAML; install it with "
            "`pip install 'edgeloc[yaml]'`, or give a camera as JSON and extrinsics as "
            "numbers"
        ) from exc
    try:
        content = yaml.safe_load(text)
    except yaml.YAMLError as exc:
        reason = " ".join(str(exc).split())
        raise ConfigError(f"{path}: is not valid YAML ({reason})") from exc
    if not isinstance(content, dict):
        raise ConfigError(f"{path}: is neither ROS camera_info nor Kalibr camchain")
    return content


def yaml_numbers(value: object, where: str) -> list[float]:
    """Return a list of numbers, also one that is wrapped as a matrix.

    Raises
    ------
    ConfigError
        When it is something else.
    """
    if isinstance(value, dict):  # camera_calibration wraps matrices: rows, cols, data
        value = value.get("data")
    if not isinstance(value, list):
        raise ConfigError(f"{where}: expected a list of numbers, got {value!r}")
    try:
        return [float(item) for item in value]
    except (TypeError, ValueError) as exc:
        raise ConfigError(f"{where}: expected numbers ({exc})") from exc


def _first(content: Mapping[str, Any], names: tuple[str, ...], where: str) -> Any:  # noqa: ANN401 - whatever YAML holds
    for name in names:
        if name in content:
            return content[name]
    raise ConfigError(f"{where}: has no {names[0]}")


def _distorted(
    model: str, coefficients: list[float], where: str
) -> tuple[str, list[float]]:
    """Return COLMAP's model and distortion for OpenCV's names and order."""
    if not coefficients or model in {"none", ""}:
        return "PINHOLE", []
    count = len(coefficients)
    if model in {"equidistant", "fisheye", "equi"}:
        if count != 4:
            raise ConfigError(f"{where}: {model} takes 4 coefficients, got {count}")
        return "OPENCV_FISHEYE", coefficients
    if model in {"plumb_bob", "radtan", "rational_polynomial"}:
        if count not in {4, 5, 8}:
            raise ConfigError(
                f"{where}: {model} takes 4, 5 or 8 coefficients, got {count}"
            )
        if any(coefficients[4:]):
            return "FULL_OPENCV", [*coefficients, *[0.0] * (8 - count)]
        return "OPENCV", coefficients[:4]
    raise ConfigError(
        f"{where}: distortion model {model!r} is not supported, expected plumb_bob, "
        "rational_polynomial, radtan, equidistant or none"
    )


def _from_ros(content: Mapping[str, Any], path: Path) -> CameraModel:
    where = str(path)
    K = yaml_numbers(
        _first(content, ("camera_matrix", "k", "K"), where), f"{path} camera_matrix"
    )
    if len(K) != 9:
        raise ConfigError(f"{path} camera_matrix: expected 9 numbers, got {len(K)}")
    if K[1] != 0.0:
        raise ConfigError(f"{path} camera_matrix: skew {K[1]:g} is not supported")
    model, distortion = _distorted(
        str(content.get("distortion_model", "")),
        yaml_numbers(
            _first(content, ("distortion_coefficients", "d", "D"), where),
            f"{path} distortion_coefficients",
        ),
        f"{path} distortion_model",
    )
    size = (
        _first(content, ("image_width", "width"), where),
        _first(content, ("image_height", "height"), where),
    )
    shift = _CORNER_FROM_CENTRE_PX
    params = [K[0], K[4], K[2] + shift, K[5] + shift, *distortion]
    return make_camera(model, size, params, where=where)


def _from_kalibr(camera: Mapping[str, Any], where: str) -> CameraModel:
    kind = camera.get("camera_model", "pinhole")
    if kind != "pinhole":
        raise ConfigError(
            f"{where}: camera_model {kind!r} is not supported, calibrate with "
            "pinhole-radtan or pinhole-equi"
        )
    intrinsics = yaml_numbers(
        _first(camera, ("intrinsics",), where), f"{where} intrinsics"
    )
    if len(intrinsics) != 4:
        raise ConfigError(
            f"{where} intrinsics: expected fu fv pu pv, got {len(intrinsics)} numbers"
        )
    resolution = yaml_numbers(
        _first(camera, ("resolution",), where), f"{where} resolution"
    )
    if len(resolution) != 2:
        raise ConfigError(f"{where} resolution: expected width and height")
    model, distortion = _distorted(
        str(camera.get("distortion_model", "none")),
        yaml_numbers(camera.get("distortion_coeffs", []), f"{where} distortion_coeffs"),
        f"{where} distortion_model",
    )
    fu, fv, pu, pv = intrinsics
    shift = _CORNER_FROM_CENTRE_PX
    params = [fu, fv, pu + shift, pv + shift, *distortion]
    size = tuple(int(side) for side in resolution)
    return make_camera(model, size, params, where=where)


def camera_from_yaml(text: str, wanted: str | None, *, path: Path) -> CameraModel:
    """Read ROS camera_info (file or message) or a Kalibr camchain.

    Parameters
    ----------
    text : str
        Content of the file.
    wanted : str or None
        Kalibr's name of the camera, ``cam0``.
    path : Path
        For messages.

    Returns
    -------
    CameraModel
        Corner pixel convention.

    Raises
    ------
    ConfigError
        When PyYAML is missing or the content is neither.
    """
    content = load_yaml(text, path)
    chain = {
        str(name): camera
        for name, camera in content.items()
        if isinstance(camera, dict) and "intrinsics" in camera
    }
    if chain:
        name = pick_camera(list(chain), wanted, path=path)
        return _from_kalibr(chain[name], f"{path} {name}")
    if wanted is not None:
        raise ConfigError(f"{path}: holds one camera without a name, drop #{wanted}")
    if not {"camera_matrix", "k", "K"} & set(content):
        raise ConfigError(f"{path}: is neither ROS camera_info nor Kalibr camchain")
    return _from_ros(content, path)

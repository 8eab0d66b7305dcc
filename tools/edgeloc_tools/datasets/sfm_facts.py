"""What `edgeloc-build sfm` knows of a model beyond the model: the file ``sfm.json``."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgeloc.errors import DatasetError
from edgeloc_tools.datasets.textfile import read_text

FORMAT_VERSION = 1
"""Of ``sfm.json``."""

_FILE = "sfm.json"
_HINT = "run `edgeloc-build sfm` again, or remove it to use the model without a scale"
_GEO_LIMITS = {"latitude_deg": 90.0, "longitude_deg": 180.0, "altitude_m": 1e5}


@dataclass(frozen=True, slots=True, kw_only=True)
class SfmFacts:
    """What a COLMAP model cannot say of its world.

    Parameters
    ----------
    metric : bool
        Whether the world's unit is the metre.
    gravity_in_world : tuple of 3 float or None
        Unit vector that points down.
    geo_reference : mapping of str to float or None
        WGS84 latitude_deg, longitude_deg, altitude_m of the origin of an ENU world.
    pose_source : str
        For reports.
    """

    metric: bool
    gravity_in_world: tuple[float, float, float] | None
    geo_reference: Mapping[str, float] | None
    pose_source: str


def find_sfm_facts(model_folder: Path) -> SfmFacts | None:
    """Return the facts of a COLMAP model, or None when it has no ``sfm.json``.

    Parameters
    ----------
    model_folder : Path
        Folder with images.bin or images.txt. The file lies there or up to two levels
        above and names this model; a file that is of another model, of a failed run or
        of another program does not count.

    Raises
    ------
    DatasetError
        When it is ours but damaged: a scale must not get lost silently.
    """
    model_folder = model_folder.resolve()
    for folder in (model_folder, *list(model_folder.parents)[:2]):
        path = folder / _FILE
        if not path.is_file():
            continue
        facts = _load(path)
        model = facts.get("model")
        if (
            isinstance(model, str)
            and facts.get("status") == "ok"
            and (folder / model).resolve() == model_folder
        ):
            return _parse(facts, path)
    return None


def _load(path: Path) -> Mapping[str, Any]:
    try:
        facts = json.loads(read_text(path, hint=_HINT))
    except (ValueError, RecursionError) as exc:
        raise DatasetError(f"{path}: is not valid JSON ({exc}); {_HINT}") from exc
    if not isinstance(facts, dict) or "format_version" not in facts:
        return {}
    if facts["format_version"] != FORMAT_VERSION:
        raise DatasetError(
            f"{path}: format_version is {facts['format_version']!r}, only "
            f"{FORMAT_VERSION} is known; {_HINT}"
        )
    return facts


def _wrong(path: Path, key: str, expected: str) -> DatasetError:
    return DatasetError(f"{path}: {key} must be {expected}; {_HINT}")


def _number(value: object, limit: float) -> float | None:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    return float(value) if abs(value) <= limit else None


def _parse(facts: Mapping[str, Any], path: Path) -> SfmFacts:
    metric = facts.get("metric")
    if not isinstance(metric, bool):
        raise _wrong(path, "metric", "true or false")
    return SfmFacts(
        metric=metric,
        gravity_in_world=_gravity(facts.get("gravity_in_world"), path),
        geo_reference=_geo_reference(facts.get("geo_reference"), path),
        pose_source=f"structure from motion (COLMAP {facts.get('pycolmap', '')})",
    )


def _gravity(value: object, path: Path) -> tuple[float, float, float] | None:
    if value is None:
        return None
    items = value if isinstance(value, Sequence) and len(value) == 3 else ()
    numbers = [n for n in (_number(item, 1e3) for item in items) if n is not None]
    length = math.hypot(*numbers)
    if len(numbers) != 3 or not abs(length - 1.0) < 1e-3:
        raise _wrong(path, "gravity_in_world", "null or 3 numbers of length 1")
    x, y, z = (number / length for number in numbers)
    return (x, y, z)


def _geo_reference(value: object, path: Path) -> Mapping[str, float] | None:
    if value is None:
        return None
    out = {}
    for key, limit in _GEO_LIMITS.items():
        number = _number(value.get(key) if isinstance(value, dict) else None, limit)
        if number is None:
            raise _wrong(path, f"geo_reference.{key}", f"a number up to ±{limit:g}")
        out[key] = number
    return out

"""Rows of a text file that know where they are, for errors that say so."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from pathlib import Path

from edgeloc.errors import DatasetError
from edgeloc.geometry.se3 import rigid_from_quat
from edgeloc.types import CAMERA_MODEL_NUM_PARAMS, CameraModel, Rigid3

_MAX_SHOWN = 40
"""Characters of a wrong value that an error shows."""
_MAX_SECONDS = 10**10
"""Largest time: more than 300 years."""


def shown(text: str) -> str:
    """Return a value quoted for a one-line error, cut when it is long."""
    return repr(text if len(text) <= _MAX_SHOWN else f"{text[:_MAX_SHOWN]}...")


def read_text(path: Path, *, hint: str) -> str:
    """Return the text of a UTF-8 file.

    Parameters
    ----------
    path : Path
        The file.
    hint : str
        What to do when it is missing.

    Raises
    ------
    DatasetError
        When it is missing, unreadable or no text.
    """
    try:
        return path.read_text(encoding="utf-8-sig")
    except FileNotFoundError as exc:
        raise DatasetError(f"{path}: is missing; {hint}") from exc
    except UnicodeDecodeError as exc:
        raise DatasetError(
            f"{path}: is not UTF-8 text (byte {exc.start}); {hint}"
        ) from exc
    except OSError as exc:
        raise DatasetError(f"{path}: cannot be read ({exc.strerror}); {hint}") from exc


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One line of a text file, split into fields.

    Parameters
    ----------
    path : Path
        The file.
    line : int
        Line number from 1.
    fields : tuple of str
        The fields, stripped.
    """

    path: Path
    line: int
    fields: tuple[str, ...]

    def error(self, message: str) -> DatasetError:
        """Return an error that names the file and the line."""
        return DatasetError(f"{self.path}:{self.line}: {message}")

    def need(self, count: int, layout: str) -> None:
        """Check that there are at least `count` fields.

        Raises
        ------
        DatasetError
            When there are fewer; the message shows `layout`.
        """
        if len(self.fields) < count:
            raise self.error(f"has {len(self.fields)} fields, expected '{layout}'")

    def integer(self, index: int, name: str) -> int:
        """Return field `index` as an integer >= 0."""
        text = self.fields[index]
        # 20 digits hold any 64-bit number.
        if not (text.isascii() and text.isdigit() and len(text) <= 20):
            raise self.error(f"{name} {shown(text)} is not a whole number >= 0")
        return int(text)

    def number(self, index: int, name: str) -> float:
        """Return field `index` as a finite number."""
        text = self.fields[index]
        try:
            value = float(text)
        except ValueError as exc:
            raise self.error(f"{name} {shown(text)} is not a number") from exc
        if not math.isfinite(value):
            raise self.error(
                f"{name} is {shown(text)}, expected a finite number; "
                "remove the line if the value is not known"
            )
        return value

    def numbers(self, start: int, names: Sequence[str]) -> list[float]:
        """Return consecutive fields as finite numbers."""
        return [self.number(start + i, name) for i, name in enumerate(names)]

    def seconds_as_ns(self, index: int, name: str) -> int:
        """Return field `index`, decimal seconds, in ns without rounding by a float."""
        text = self.fields[index]
        try:
            seconds = Decimal(text)
        except InvalidOperation as exc:
            raise self.error(f"{name} {shown(text)} is not a time in seconds") from exc
        if not (seconds.is_finite() and seconds.copy_abs() < _MAX_SECONDS):
            raise self.error(f"{name} {shown(text)} is not a time in seconds")
        return int(seconds.scaleb(9).to_integral_value())

    def pose(self, start: int) -> Rigid3:
        """Return the transform in fields ``qw qx qy qz tx ty tz``."""
        q = self.numbers(start, ("qw", "qx", "qy", "qz"))
        t = self.numbers(start + 4, ("tx", "ty", "tz"))
        return make_pose(q, t, where=f"{self.path}:{self.line}")

    def camera(self, start: int) -> CameraModel:
        """Return the camera in fields ``MODEL WIDTH HEIGHT PARAMS...``."""
        self.need(start + 3, "... MODEL WIDTH HEIGHT PARAMS[]")
        width = self.integer(start + 1, "WIDTH")
        height = self.integer(start + 2, "HEIGHT")
        model = self.fields[start]
        params = [
            self.number(i, f"camera parameter {i - start - 2}")
            for i in range(start + 3, len(self.fields))
        ]
        return make_camera(
            model, (width, height), params, where=f"{self.path}:{self.line}"
        )


def read_rows(path: Path, *, hint: str, separator: str | None = None) -> Iterator[Row]:
    """Yield the rows of a text file without empty lines and ``#`` comments.

    Parameters
    ----------
    path : Path
        The file.
    hint : str
        What to do when it is missing.
    separator : str, optional
        Between fields; white space by default.

    Yields
    ------
    Row
    """
    for line, text in enumerate(read_text(path, hint=hint).splitlines(), start=1):
        stripped = text.strip()
        if stripped and not stripped.startswith("#"):
            fields = tuple(field.strip() for field in stripped.split(separator))
            yield Row(path=path, line=line, fields=fields)


def make_pose(q_wxyz: Sequence[float], t: Sequence[float], *, where: str) -> Rigid3:
    """Return a transform; `DatasetError` that begins with `where` when it is none.

    Quaternions that are not of unit length (to 5 %) are refused: they come from fields
    that are shifted or missing, not from rounding.
    """
    norm = math.sqrt(sum(value * value for value in q_wxyz))
    if not abs(norm - 1.0) < 0.05:
        raise DatasetError(
            f"{where}: quaternion has length {norm:.4g}, expected 1; "
            "check the order of the fields"
        )
    try:
        return rigid_from_quat(q_wxyz, t)
    except ValueError as exc:
        raise DatasetError(f"{where}: pose is wrong: {exc}") from exc


def make_camera(
    model: str, size: tuple[int, int], params: Sequence[float], *, where: str
) -> CameraModel:
    """Return a camera; `DatasetError` that begins with `where` when it is none."""
    if model not in CAMERA_MODEL_NUM_PARAMS:
        raise DatasetError(
            f"{where}: camera model {shown(model)} is not supported, only "
            f"{', '.join(CAMERA_MODEL_NUM_PARAMS)}; undistort the images first, "
            "for example with `colmap image_undistorter`"
        )
    try:
        return CameraModel(
            model=model, width=size[0], height=size[1], params=tuple(params)
        )
    except ValueError as exc:
        raise DatasetError(f"{where}: camera is wrong: {exc}") from exc

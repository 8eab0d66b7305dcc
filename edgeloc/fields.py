"""Strict reading of JSON and msgpack: a value is taken only as what it should be.

Every message names the field, as in ``tiles[3].bytes is -1, expected ...``.
"""

from __future__ import annotations

import json
import reprlib
from collections.abc import Collection
from dataclasses import dataclass
from typing import NoReturn

from edgeloc.errors import EdgelocError

MAX_TEXT = 4096
"""Characters of a text."""

_SHORT = reprlib.Repr()
_SHORT.maxlevel, _SHORT.maxdict, _SHORT.maxlist, _SHORT.maxstring = 1, 2, 4, 60


@dataclass(frozen=True, slots=True)
class Field:
    """A JSON value and where it stands.

    Parameters
    ----------
    name : str
        Its place in the document, "" for the document itself.
    value : object
        As `json.loads` or `msgpack.unpackb` gave it.
    error : type of EdgelocError
        What every method raises when the value is something else.
    """

    name: str
    value: object
    error: type[EdgelocError]

    def fail(self, expected: str) -> NoReturn:
        """Raise the error that says what the value should have been."""
        shown = _SHORT.repr(self.value)
        raise self.error(f"{self.name} is {shown}, expected {expected}")

    def text(self) -> str:
        """Return Unicode text of bounded length."""
        value = self.value
        if not isinstance(value, str) or len(value) > MAX_TEXT:
            self.fail(f"text of at most {MAX_TEXT} characters")
        # JSON can say half of a surrogate pair, which no file can hold.
        if any("\ud800" <= character <= "\udfff" for character in value):
            self.fail("Unicode text")
        return value

    def binary(self, low: int, high: int) -> bytes:
        """Return binary data of `low` to `high` bytes; msgpack has it, JSON not."""
        if not isinstance(self.value, bytes) or not low <= len(self.value) <= high:
            size = f"{low}" if low == high else f"{low} to {high}"
            self.fail(f"binary data of {size} bytes")
        return self.value

    def choice(self, choices: Collection[str]) -> str:
        """Return one of a few texts."""
        if not isinstance(self.value, str) or self.value not in choices:
            self.fail(f"one of {', '.join(choices)}")
        return self.value

    def sha256(self) -> str:
        """Return a SHA-256 in lower-case hexadecimal digits."""
        text = self.text()
        if len(text) != 64 or not set(text) <= set("0123456789abcdef"):
            self.fail("64 lower-case hexadecimal digits")
        return text

    def flag(self) -> bool:
        """Return a boolean."""
        if not isinstance(self.value, bool):
            self.fail("true or false")
        return self.value

    def integer(self, low: int, high: int) -> int:
        """Return an integer from `low` to `high`."""
        value = self.value
        # bool is an int to Python, not to JSON.
        if not isinstance(value, int) or isinstance(value, bool):
            self.fail("an integer")
        if not low <= value <= high:
            self.fail(f"an integer from {low} to {high}")
        return value

    def number(self, low: float, high: float) -> float:
        """Return a number from `low` to `high`."""
        value = self.value
        if not isinstance(value, (int, float)) or isinstance(value, bool):
            self.fail("a number")
        if not low <= value <= high:
            self.fail(f"a number from {low:g} to {high:g}")
        return float(value)

    def items(self, count: int | None = None) -> list[Field]:
        """Return the items of a list, of length `count` if that is given."""
        if not isinstance(self.value, list) or (
            count is not None and len(self.value) != count
        ):
            self.fail("a list" if count is None else f"a list of {count}")
        return [
            Field(f"{self.name}[{i}]", value, self.error)
            for i, value in enumerate(self.value)
        ]

    def members(
        self, keys: Collection[str] | None = None, *, optional: Collection[str] = ()
    ) -> dict[str, Field]:
        """Return the members of an object by key.

        Parameters
        ----------
        keys : collection of str, optional
            All that must be there; with it, others are refused.
        optional : collection of str
            Others that may be there.
        """
        if not isinstance(self.value, dict):
            self.fail("an object")
        prefix = f"{self.name}." if self.name else ""
        found = set(self.value) - set(optional)
        if keys is not None and found != set(keys):
            wrong = sorted(set(keys) ^ found)[0]
            state = "is missing" if wrong in keys else "is not a field of the format"
            raise self.error(f"{prefix}{_SHORT.repr(wrong)[1:-1]} {state}")
        return {
            key: Field(f"{prefix}{key}", value, self.error)
            for key, value in self.value.items()
        }

    def vector(self, limit: float) -> tuple[float, float, float]:
        """Return three numbers, each from -`limit` to `limit`."""
        x, y, z = (item.number(-limit, limit) for item in self.items(3))
        return x, y, z


def _refuse_constant(text: str) -> NoReturn:
    raise ValueError(f"{text} is not JSON")


def parse_json(raw: bytes, error: type[EdgelocError]) -> Field:
    """Return the document as a field.

    Parameters
    ----------
    raw : bytes
        UTF-8; NaN and infinities are refused.
    error : type of EdgelocError
        Raised when it is not JSON, and by the field.
    """
    try:
        value = json.loads(raw.decode("utf-8"), parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as exc:
        reason = str(exc).partition("\n")[0]
        raise error(f"is not JSON: {reason}") from exc
    return Field("", value, error)

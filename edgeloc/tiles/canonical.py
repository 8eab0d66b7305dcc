"""JSON that has one spelling only."""

from __future__ import annotations

import json
from collections.abc import Mapping


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

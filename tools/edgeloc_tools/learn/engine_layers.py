"""In which precision the layers of an engine run, as TensorRT itself tells.

With a GPU the engine inspector says it, in JSON. Without one an engine cannot be
opened, but TensorRT for RTX prints the same facts when it has built one.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from edgeloc.errors import ModelError

_BLOCK = "Layers:\n"
_LAYER = re.compile(
    r"Name: (?P<name>.*?), LayerType: (?P<kind>.*?), Inputs: \[(?P<inputs>.*?)\], "
    r"(?:Constants: \[(?P<constants>.*?)\], )?Outputs: \[(?P<outputs>.*?)\], "
    r"TacticName:.*?(?:Metadata: (?P<metadata>.*))?"
)
_DATATYPE = re.compile(r"Datatype: (\w+)")
_ONNX = re.compile(r"\[ONNX Layer: ([^\]]*)\]")
# Words of TensorRT 10 ("Format/Datatype": "... FP16 format"), 11 and RTX ("Half").
_TYPES = (
    ("int8", ("int8",)),
    ("fp16", ("half", "fp16")),
    ("fp32", ("float", "fp32")),
    ("bf16", ("bfloat16", "bf16")),
    ("int32", ("int32",)),
    ("int64", ("int64",)),
    ("bool", ("bool",)),
)
_PRODUCTS = ("correlation", "conv", "gemm", "matmul", "matrix_multiply", "fc")


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineLayer:
    """A layer of an engine.

    Parameters
    ----------
    name, kind : str
        As TensorRT calls them.
    onnx : tuple of str
        Nodes of the ONNX file that it does.
    inputs, weights, outputs : tuple of str
        Types of what it reads and writes: "int8", "fp16", "fp32", ...
    """

    name: str
    kind: str
    onnx: tuple[str, ...]
    inputs: tuple[str, ...]
    weights: tuple[str, ...]
    outputs: tuple[str, ...]

    @property
    def multiplies(self) -> bool:
        """Whether it is a convolution or a matrix product: where the time goes."""
        return any(word in self.kind.lower() for word in _PRODUCTS)

    @property
    def precision(self) -> str:
        """In which its products are: that of its first input."""
        return self.inputs[0] if self.inputs else ""


def layers_of_inspector(text: str) -> list[EngineLayer]:
    """Return the layers in the engine inspector's JSON.

    Raises
    ------
    ModelError
        When it is something else.
    """
    try:
        layers = json.loads(text)["Layers"]
        return [_of_json(layer) for layer in layers if isinstance(layer, dict)]
    except (ValueError, KeyError, TypeError, AttributeError) as exc:
        raise ModelError(
            f"TensorRT's layer information is not as known: {exc}"
        ) from exc


def _of_json(layer: Mapping[str, Any]) -> EngineLayer:
    weights = [t for t in layer.get("Constants", ()) if isinstance(t, dict)]
    types = [_type_of(tensor) for tensor in weights]
    own = layer.get("Weights")
    if isinstance(own, dict) and own.get("Count", 0):
        types.append(_named(str(own.get("Type", ""))))
    kind = str(layer.get("ParameterType") or layer.get("LayerType", ""))
    return EngineLayer(
        name=str(layer.get("Name", "")),
        kind=kind,
        onnx=tuple(_ONNX.findall(str(layer.get("Metadata", "")))),
        inputs=tuple(_type_of(tensor) for tensor in layer.get("Inputs", ())),
        weights=tuple(types),
        outputs=tuple(_type_of(tensor) for tensor in layer.get("Outputs", ())),
    )


def _type_of(tensor: Mapping[str, Any]) -> str:
    for key in ("Datatype", "DataType", "Format/Datatype", "Format"):
        if found := _named(str(tensor.get(key, ""))):
            return found
    return ""


def _named(text: str) -> str:
    words = re.findall(r"[a-z]+\d*", text.lower())
    for name, aliases in _TYPES:
        if any(word in aliases for word in words):
            return name
    return ""


def layers_of_log(messages: Sequence[str]) -> list[EngineLayer]:
    """Return the layers that TensorRT printed when it had built an engine.

    Parameters
    ----------
    messages : sequence of str
        All that it said.

    Returns
    -------
    list of EngineLayer
        Empty when it did not say.
    """
    for message in reversed(messages):
        if message.startswith(_BLOCK):
            found = (_LAYER.fullmatch(line) for line in message.splitlines()[1:])
            return [_of_match(match) for match in found if match is not None]
    return []


def _of_match(match: re.Match[str]) -> EngineLayer:
    def types(part: str) -> tuple[str, ...]:
        return tuple(_named(word) for word in _DATATYPE.findall(match[part] or ""))

    return EngineLayer(
        name=match["name"],
        kind=match["kind"],
        onnx=tuple(_ONNX.findall(match["metadata"] or "")),
        inputs=types("inputs"),
        weights=types("constants"),
        outputs=types("outputs"),
    )


def count_precisions(layers: Sequence[EngineLayer]) -> dict[str, int]:
    """Return how many layers that multiply there are of each precision."""
    counts = Counter(
        layer.precision or "unknown" for layer in layers if layer.multiplies
    )
    return dict(sorted(counts.items()))


def layer_rows(layers: Sequence[EngineLayer]) -> list[list[str]]:
    """Return a table of layers: what they do, and in which types."""
    return [
        [
            layer.name if not layer.onnx else " ".join(layer.onnx),
            layer.kind,
            " ".join(layer.inputs),
            " ".join(sorted(set(layer.weights))),
            " ".join(layer.outputs),
        ]
        for layer in layers
    ]

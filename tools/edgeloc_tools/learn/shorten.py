"""Weights with as many digits as a network needs, so that its file packs well.

    python -m edgeloc_tools.learn.shorten models/NAME.json ...

A float32 weight has 24 significant bits, of which a network needs no more than 11, as
float16 has. Rounded to those, the rest is zeros: a wheel or an archive takes two thirds
of the space. The file itself stays float32, for every runtime.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper

from edgeloc.inference.manifest import load_model
from edgeloc.types import Float32Array
from edgeloc_tools.learn.graph import to_bytes
from edgeloc_tools.model_files import write_model

SIGNIFICANT_BITS = 11
"""As float16 has; its range is not taken over."""

_FLOAT32_BITS = 24


def rounded(weights: Float32Array) -> Float32Array:
    """Return weights rounded to `SIGNIFICANT_BITS`, to nearest, ties away from zero.

    Parameters
    ----------
    weights : ndarray, float32
        Finite, and below half of the largest float32.
    """
    drop = _FLOAT32_BITS - SIGNIFICANT_BITS
    bits = np.ascontiguousarray(weights, np.float32).view(np.uint32)
    # A carry into the exponent is right: it is the next power of two.
    kept = (bits + np.uint32(1 << (drop - 1))) >> np.uint32(drop) << np.uint32(drop)
    return np.asarray(kept.view(np.float32))


def shorten(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return a network whose float32 weights are rounded.

    Vectors (biases, scales) stay as they are: they take no space.

    Parameters
    ----------
    model : ModelProto
        Not changed.
    """
    out = onnx.ModelProto()
    out.CopyFrom(model)
    for tensor in out.graph.initializer:
        if tensor.data_type == TensorProto.FLOAT and len(tensor.dims) > 1:
            short = rounded(numpy_helper.to_array(tensor).astype(np.float32))
            tensor.CopyFrom(numpy_helper.from_array(short, tensor.name))
    return out


def main(argv: Sequence[str] | None = None) -> int:
    """Shorten networks in place, with their manifests; return the exit code.

    Parameters
    ----------
    argv : sequence of str, optional
        Arguments, those of the process by default.
    """
    parser = argparse.ArgumentParser(
        prog="python -m edgeloc_tools.learn.shorten",
        description="Round the float32 weights of networks, in place.",
    )
    parser.add_argument("manifest", nargs="+", type=Path)
    for path in parser.parse_args(argv).manifest:
        model = load_model(path)
        network = to_bytes(shorten(onnx.load(str(model.network_path))))
        write_model(path.parent, model.manifest, network)
    return 0


if __name__ == "__main__":
    sys.exit(main())

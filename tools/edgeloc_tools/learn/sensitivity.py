"""Which layers of a network suffer from quantization."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass

import numpy as np
import onnx

from edgeloc_tools.learn.agreement import Probe
from edgeloc_tools.learn.candidate import Workbench, digest
from edgeloc_tools.learn.graph import GraphView
from edgeloc_tools.mapping.work import Arrays, WorkFolder
from edgeloc_tools.progress import Progress, silent

Make = Callable[[Collection[str]], onnx.ModelProto]
"""From the layers that stay float to a quantized network."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Measurement:
    """What a probe said about one network.

    Parameters
    ----------
    damage : float
        See `edgeloc_tools.learn.agreement.Agreement`.
    facts : dict of str to float
        Its figures.
    """

    damage: float
    facts: dict[str, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerDamage:
    """What the quantization of one layer alone does.

    Parameters
    ----------
    layer, op_type : str
        The layer.
    num_weights : int
        Elements of its weight.
    measurement : Measurement
        With all other layers in float32.
    """

    layer: str
    op_type: str
    num_weights: int
    measurement: Measurement


class Judge:
    """Measures networks with a probe and remembers what it has measured.

    Parameters
    ----------
    probe : Probe
        Compares with the truth.
    bench : Workbench
        Opens the networks.
    work : WorkFolder
        Where measurements are kept.
    key : str
        Names the probe: truth, pictures and options.
    """

    def __init__(
        self, *, probe: Probe, bench: Workbench, work: WorkFolder, key: str
    ) -> None:
        self._probe = probe
        self._bench = bench
        self._work = work
        self._key = key

    def measure(self, model: onnx.ModelProto) -> Measurement:
        """Return what the probe says about a network."""

        def make() -> Arrays:
            agreement = self._probe.measure(self._bench.open(model))
            facts = agreement.facts()
            return {
                "damage": np.float64(agreement.damage),
                "names": np.array(list(facts)),
                "values": np.array(list(facts.values()), np.float64),
            }

        key = {"step": "agreement", "probe": self._key, "model": digest(model)}
        arrays = self._work.cached(key, make)
        return Measurement(
            damage=float(arrays["damage"]),
            facts=dict(
                zip(arrays["names"].tolist(), arrays["values"].tolist(), strict=True)
            ),
        )


def layer_damages(
    truth: onnx.ModelProto, make: Make, judge: Judge, *, progress: Progress = silent
) -> list[LayerDamage]:
    """Return what each layer's quantization does on its own, worst first.

    Each layer is quantized alone. Left alone in float, a harmful layer would drown in
    the damage of the others; and the order is all that is taken from this: whether a
    network is good enough, a gate decides on the network as a whole.

    Parameters
    ----------
    truth : ModelProto
        The float32 network.
    make : callable
        From layers that stay float to a quantized network.
    judge : Judge
        Measures.
    progress : callable
        Told about each layer.
    """
    layers = GraphView(truth).layers()
    names = [layer.name for layer in layers]
    out = []
    for done, layer in enumerate(layers, start=1):
        alone = make([name for name in names if name != layer.name])
        out.append(
            LayerDamage(
                layer=layer.name,
                op_type=layer.op_type,
                num_weights=layer.num_weights,
                measurement=judge.measure(alone),
            )
        )
        progress("sensitivity", done, len(layers))
    return sorted(out, key=lambda entry: (-entry.measurement.damage, entry.layer))

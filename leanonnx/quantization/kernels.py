"""Layers as kernels [G, O, K] on input patches [G, K, n]: the form in which errors of weights and inputs are computed.

G conv groups, O outputs of each, K = inputs · taps of each.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx

from leanonnx.graph.nodes import standard_name
from leanonnx.graph.positions import Window, features, rows_at, spread_positions, window_of
from leanonnx.graph.view import GraphView
from leanonnx.numeric.arrays import Array, Floats
from leanonnx.quantization.layers import Layer
from leanonnx.runtime.probes import tensor_values
from leanonnx.runtime.sessions import Feed


@dataclass(frozen=True, kw_only=True)
class KernelLayer:
    """A layer with its node, its weight, and the window of a convolution; None for a matrix product."""

    layer: Layer
    node: onnx.NodeProto
    weight: Floats
    window: Window | None

    @property
    def kernels(self) -> Floats:
        """The weight as kernels [G, O, K]."""
        if self.window is None:
            rows = self.weight if self.layer.axis == 0 else self.weight.T
            return np.asarray(rows[None])
        groups = self.window.groups
        return np.asarray(self.weight.reshape(groups, len(self.weight) // groups, -1))

    @property
    def features(self) -> int:
        """Number of inputs · taps of a group, K."""
        return int(self.kernels.shape[2])

    def in_weight_layout(self, kernels: Array) -> Array:
        """Numbers [G, O, K] in the layout of the weight."""
        if self.window is None:
            return kernels[0] if self.layer.axis == 0 else np.ascontiguousarray(kernels[0].T)
        return kernels.reshape(self.weight.shape)

    def patches(self, values: Mapping[str, Array], count: int, rng: np.random.Generator) -> Array:
        """Input patches [G, K, n] at up to ``count`` positions of one run."""
        x, y = values[self.node.input[0]], values[self.node.output[0]]
        if self.window is None:
            return rows_at(x, -1, spread_positions(x.size // x.shape[-1], count, rng)).T[None]
        chosen = spread_positions(y.size // y.shape[1], count, rng)
        return features(self.window, x, y.shape[2:], chosen).reshape(self.window.groups, -1, chosen.size)


def kernel_layers(proto: onnx.ModelProto, layers: Collection[Layer]) -> tuple[KernelLayer, ...]:
    """The layers of a model whose weights are stored constants."""
    view, nodes = GraphView(proto), {node.name: node for node in proto.graph.node}
    result = []
    for layer in layers:
        node, weight = nodes[layer.name], np.asarray(view.constant(layer.weight), np.float64)
        window = window_of(node, weight.shape[2:]) if standard_name(node) == "Conv" else None
        result.append(KernelLayer(layer=layer, node=node, weight=weight, window=window))
    return tuple(result)


def patch_runs(
    proto: onnx.ModelProto,
    layers: Collection[KernelLayer],
    feeds: Iterable[Feed],
    rows: Mapping[str, int],
    libraries: Sequence[Path] = (),
) -> Iterator[dict[str, Array]]:
    """Yield input patches [G, K, n] of each run, by name of the layer.

    Args:
        proto: the float model.
        layers: the layers.
        feeds: inputs of the model.
        rows: number of positions of each layer in one run.
        libraries: hold its custom operators.

    Raises:
        RunFailed: the model cannot be run.
    """
    names = [name for each in layers for name in (each.node.input[0], each.node.output[0])]
    for index, values in enumerate(tensor_values(proto, names, feeds, libraries)):
        rng = np.random.default_rng(index)
        yield {each.layer.name: each.patches(values, rows[each.layer.name], rng) for each in layers}

"""A pruned mixed-scale dense network read from ONNX and written back with other weights.

Every hidden layer has one channel: a sum of dilated 3x3 convolutions of single earlier channels, then Relu.  So the
network is a list of kernels, each with the map it reads, and a pointwise last layer.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

Floats = NDArray[np.float32]
Ints = NDArray[np.int32]


@dataclass(frozen=True)
class Stack:
    """``first`` [L + 1], ``source`` [K]: layer k reads the maps source[first[k]:first[k + 1]]; map 0 is the input.

    ``weight`` [K, 9], ``bias`` [L], ``dilation`` [L]; the last layer reads the maps ``final`` [F] with ``last``
    [classes, F] and ``last_bias`` [classes].  ``names``: initializers of each layer's weight and bias, the last
    layer's at the end; ``scale``: what the input is multiplied with, and what is added.
    """

    first: Ints
    source: Ints
    dilation: Ints
    weight: Floats
    bias: Floats
    final: Ints
    last: Floats
    last_bias: Floats
    names: tuple[tuple[str, str], ...]
    scale: tuple[float, float]

    @property
    def kernels(self) -> int:
        """How many 3x3 kernels there are."""
        return int(self.source.size)

    def trained(self) -> tuple[Floats, ...]:
        """All that is trained."""
        return self.weight, self.bias, self.last, self.last_bias

    def changed(self, values: tuple[Floats, ...]) -> Stack:
        """The same network with other weights."""
        weight, bias, last, last_bias = values
        return replace(self, weight=weight, bias=bias, last=last, last_bias=last_bias)


class _Reader:
    """Follows the graph: which maps each tensor holds."""

    def __init__(self, graph: onnx.GraphProto) -> None:
        self.arrays = {t.name: np.asarray(numpy_helper.to_array(t)) for t in graph.initializer}
        self.maps: dict[str, list[int]] = {graph.input[0].name: [0]}
        self.layers: list[tuple[list[int], int, str, str]] = []
        self.final: tuple[list[int], str, str] | None = None
        self.scale = [1.0, 0.0]

    def node(self, node: onnx.NodeProto) -> None:
        """Take in one node."""
        known = [self.maps[name] for name in node.input if name in self.maps]
        found = known[0]
        if node.op_type in ("Mul", "Add"):
            constant = float(self.arrays[node.input[1]].reshape(-1)[0])
            self.scale[node.op_type == "Add"] = constant
        elif node.op_type == "Concat":
            found = [one for part in known for one in part]
        elif node.op_type == "Gather":
            found = [found[int(k)] for k in self.arrays[node.input[1]].reshape(-1)]
        elif node.op_type == "Conv":
            found = self._convolution(node, found)
        elif node.op_type not in ("Pad", "Relu", "Identity"):
            raise ValueError(f"node '{node.name}' ({node.op_type}) is not of a mixed-scale dense network")
        self.maps[node.output[0]] = found

    def _convolution(self, node: onnx.NodeProto, read: list[int]) -> list[int]:
        attributes: Mapping[str, Any] = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
        if self.arrays[node.input[1]].shape[2:] == (1, 1):
            self.final = read, node.input[1], node.input[2]
            return []
        self.layers.append((read, attributes["dilations"][0], node.input[1], node.input[2]))
        return [len(self.layers)]


def read_stack(path: Path) -> Stack:
    """Read a pruned network.

    Raises:
        ValueError: it holds an operator that these networks have not.
    """
    graph = onnx.load(path).graph
    reader = _Reader(graph)
    for node in graph.node:
        reader.node(node)
    assert reader.final is not None
    read, last, last_bias = reader.final
    arrays = reader.arrays
    counts = [len(sources) for sources, *_ in reader.layers]
    return Stack(
        first=np.concatenate([[0], np.cumsum(counts)]).astype(np.int32),
        source=np.array([one for sources, *_ in reader.layers for one in sources], np.int32),
        dilation=np.array([dilation for _, dilation, *_ in reader.layers], np.int32),
        weight=np.concatenate([arrays[name].reshape(-1, 9) for _, _, name, _ in reader.layers]).astype(np.float32),
        bias=np.concatenate([arrays[name].reshape(-1) for *_, name in reader.layers]).astype(np.float32),
        final=np.array(read, np.int32),
        last=arrays[last].reshape(-1, len(read)).astype(np.float32),
        last_bias=arrays[last_bias].astype(np.float32),
        names=(*((weight, bias) for *_, weight, bias in reader.layers), (last, last_bias)),
        scale=(reader.scale[0], reader.scale[1]),
    )


def write_stack(stack: Stack, source: Path, target: Path) -> None:
    """Write the network of ``source`` with the weights of ``stack``."""
    model = onnx.load(source)
    parts: dict[str, Floats] = {}
    for k, (weight, bias) in enumerate(stack.names[:-1]):
        parts[weight] = stack.weight[stack.first[k] : stack.first[k + 1]]
        parts[bias] = stack.bias[k : k + 1]
    parts[stack.names[-1][0]], parts[stack.names[-1][1]] = stack.last, stack.last_bias
    for tensor in model.graph.initializer:
        if tensor.name in parts:
            array = parts[tensor.name].reshape(tuple(tensor.dims))
            tensor.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(array), tensor.name))
    onnx.save(model, target)

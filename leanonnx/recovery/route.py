"""Route of a constant from its storage to the layer that reads it: casts, transpositions, reshapes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import onnx

from leanonnx.graph.model import Model
from leanonnx.graph.nodes import attribute, standard_name
from leanonnx.numeric.arrays import Array

_AxisOrder = tuple[int, ...]
_TensorShape = tuple[int, ...]
_Step = _AxisOrder | tuple[_TensorShape, _TensorShape]


@dataclass(frozen=True)
class Route:
    """``holder`` names the stored constant; each step permutes the axes, or reshapes from one shape to another."""

    holder: str
    steps: tuple[_Step, ...] = ()

    @property
    def is_direct(self) -> bool:
        """True if the constant is read in the shape in which it is stored."""
        return not self.steps

    def to_read(self, stored: Array) -> Array:
        """Convert the stored constant to the form that the layer reads."""
        for step in self.steps:
            stored = stored.reshape(step[1]) if isinstance(step[0], tuple) else stored.transpose(step)
        return stored

    def to_stored(self, weight: Array) -> Array:
        """Convert from the form that the layer reads to the stored form."""
        for step in reversed(self.steps):
            weight = weight.reshape(step[0]) if isinstance(step[0], tuple) else weight.transpose(np.argsort(step))
        return weight


def route_to(model: Model, name: str) -> Route | None:
    """Route of the constant that is read as ``name``; None if it is computed in another way."""
    start, behind = _beginning(model, name)
    return _route(model, start, behind) if start in model.origins else None


def dequantised_route(model: Model, name: str) -> tuple[Route, onnx.NodeProto] | None:
    """Route of the constant integers that are read as ``name``, and the node that makes floats of them."""
    start, behind = _beginning(model, name)
    node = model.view.producer(start)
    if node is None or node.op_type != "DequantizeLinear" or node.input[0] not in model.origins:
        return None
    route = _route(model, node.input[0], behind)
    return None if route is None else (route, node)


def _beginning(model: Model, name: str) -> tuple[str, list[onnx.NodeProto]]:
    """The value from which steps of a route lead to ``name``, and their nodes, the last one first."""
    behind: list[onnx.NodeProto] = []
    while name not in model.origins and name in model.producers:
        node = model.proto.graph.node[model.producers[name]]
        if standard_name(node) not in ROUTE_STEPS:
            break
        behind.append(node)
        name = node.input[0]
    return name, behind


def _route(model: Model, name: str, behind: list[onnx.NodeProto]) -> Route | None:
    """Route of a constant through nodes, the last one first; None if a step cannot be undone."""
    shape, steps = model.constant(name).shape, []
    for node in reversed(behind):
        step = ROUTE_STEPS[node.op_type](model, node, shape)
        if step is None:
            return None
        if node.op_type != "Cast":
            steps.append(step)
            shape = step[1] if isinstance(step[0], tuple) else tuple(shape[axis] for axis in step)
    return Route(model.origins[name], tuple(steps))


def count_reads(model: Model, name: str) -> int:
    """Number of node inputs, subgraphs and graph outputs that read a constant, directly or by way of routes."""
    total = 0
    for index in model.consumers.get(name, []):
        node = model.proto.graph.node[index] if index >= 0 else None
        if node is not None and _hands_on(model, node, name):
            total += count_reads(model, node.output[0])
        else:
            total += 1 if node is None else max(list(node.input).count(name), 1)
    return total


def _hands_on(model: Model, node: onnx.NodeProto, name: str) -> bool:
    """True if all that a node does with a constant is a step of a route."""
    if list(node.input).count(name) != 1 or node.input[0] != name:
        return False
    return standard_name(node) in ROUTE_STEPS or (node.op_type == "Identity" and node.output[0] in model.origins)


def _cast(_: Model, __: onnx.NodeProto, shape: _TensorShape) -> _Step:
    return (shape, shape)


def _transpose(_: Model, node: onnx.NodeProto, shape: _TensorShape) -> _Step:
    return tuple(attribute(node, "perm", range(len(shape))[::-1]))


def _reshape(model: Model, node: onnx.NodeProto, shape: _TensorShape) -> _Step | None:
    if node.input[1] not in model.origins or attribute(node, "allowzero", 0):
        return None
    target = [int(size) for size in model.constant(node.input[1]).reshape(-1)]
    sizes = [shape[axis] if size == 0 else size for axis, size in enumerate(target)]
    return (shape, np.empty(shape, np.int8).reshape(sizes).shape)


ROUTE_STEPS: Mapping[str, Callable[[Model, onnx.NodeProto, _TensorShape], _Step | None]] = {
    "Cast": _cast,
    "Transpose": _transpose,
    "Reshape": _reshape,
}
"""Steps of the operators that a route may contain, on a constant of a given shape."""

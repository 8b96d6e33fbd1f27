"""The way of a constant from what holds it to the layer that reads it: cast, turned, reshaped."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import onnx

from leanonnx.graph.model import Model
from leanonnx.graph.nodes import attribute, standard
from leanonnx.numeric.arrays import Array

Order = tuple[int, ...]
Sizes = tuple[int, ...]
Step = Order | tuple[Sizes, Sizes]


@dataclass(frozen=True)
class Route:
    """``holder`` names the constant; each step turns the axes in an order, or leads from one shape to another."""

    holder: str
    steps: tuple[Step, ...] = ()

    @property
    def straight(self) -> bool:
        """Whether the constant is read in the shape in which it is held."""
        return not self.steps

    def read(self, held: Array) -> Array:
        """The constant as the layer reads it."""
        for step in self.steps:
            held = held.reshape(step[1]) if isinstance(step[0], tuple) else held.transpose(step)
        return held

    def back(self, weight: Array) -> Array:
        """What the layer reads, as the constant holds it."""
        for step in reversed(self.steps):
            weight = weight.reshape(step[0]) if isinstance(step[0], tuple) else weight.transpose(np.argsort(step))
        return weight


def route_to(model: Model, name: str) -> Route | None:
    """The way of a constant to where it is read under a name; None where it is computed otherwise, or read beside."""
    behind: list[onnx.NodeProto] = []
    while name not in model.origins:
        if name not in model.producers or model.use_counts.get(name, 0) != 1:
            return None
        behind.append(model.proto.graph.node[model.producers[name]])
        if standard(behind[-1]) not in ROUTE_STEPS:
            return None
        name = behind[-1].input[0]
    shape, steps = model.constant(name).shape, []
    for node in reversed(behind):
        step = ROUTE_STEPS[node.op_type](model, node, shape)
        if step is None:
            return None
        if node.op_type != "Cast":
            steps.append(step)
            shape = step[1] if isinstance(step[0], tuple) else tuple(shape[axis] for axis in step)
    return Route(model.origins[name], tuple(steps))


def _cast(_: Model, __: onnx.NodeProto, shape: Sizes) -> Step:
    return (shape, shape)


def _transpose(_: Model, node: onnx.NodeProto, shape: Sizes) -> Step:
    return tuple(attribute(node, "perm", range(len(shape))[::-1]))


def _reshape(model: Model, node: onnx.NodeProto, shape: Sizes) -> Step | None:
    if node.input[1] not in model.origins or attribute(node, "allowzero", 0):
        return None
    target = [int(size) for size in model.constant(node.input[1]).reshape(-1)]
    sizes = [shape[axis] if size == 0 else size for axis, size in enumerate(target)]
    return (shape, np.empty(shape, np.int8).reshape(sizes).shape)


ROUTE_STEPS: Mapping[str, Callable[[Model, onnx.NodeProto, Sizes], Step | None]] = {
    "Cast": _cast,
    "Transpose": _transpose,
    "Reshape": _reshape,
}
"""What an operator on the way does to a constant of a shape."""

"""Random models with free axes: each size is known at several values at once and is computed in the graph.

A ``Size`` passes through the steps of ``graph_steps``, ``graph_moves`` and ``graph_blocks`` like a number.  Where a
step writes it into a shape vector, the builder adds the nodes that compute it from the shapes of tensors.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

import numpy as np
from onnx import TensorProto

from tests.graph_builder import Array, Builder, Choose, Tensor

FAR = 1 << 40
COUNT = 3
"""Sizes at which a model is run; further values of a ``Size`` distinguish sizes that are equal here by chance."""
OPERATIONS = {"Add": operator.add, "Sub": operator.sub, "Mul": operator.mul, "Div": operator.floordiv}
OPERATIONS |= {"Mod": operator.mod}


class Unfit(Exception):
    """A step needs a number where there is a free size."""


class Size(int):
    """A size of a free axis, or what is computed of such sizes: one value for each of several sizes of the inputs.

    As a number it is the first value; sizes are equal where all their values are.
    """

    values: tuple[int, ...]
    made: tuple[str, int, int] | None

    def __new__(cls, values: Sequence[int], made: tuple[str, int, int] | None = None) -> Size:
        self = super().__new__(cls, values[0])
        self.values, self.made = tuple(values), made
        return self

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Size) and self.values == other.values

    def __ne__(self, other: object) -> bool:
        return not self == other

    def __hash__(self) -> int:
        return hash(self.values)

    def __repr__(self) -> str:
        return "|".join(map(str, self.values))

    def __add__(self, other: int) -> int:
        return combined("Add", self, other)

    def __radd__(self, other: int) -> int:
        return combined("Add", other, self)

    def __sub__(self, other: int) -> int:
        return combined("Sub", self, other)

    def __rsub__(self, other: int) -> int:
        return combined("Sub", other, self)

    def __mul__(self, other: int) -> int:
        return combined("Mul", self, other)

    def __rmul__(self, other: int) -> int:
        return combined("Mul", other, self)

    def __floordiv__(self, other: int) -> int:
        if self.values[0] < 0:  # ONNX rounds towards zero
            return -((other - 1 - self) // other)
        return combined("Div", self, other)

    def __mod__(self, other: int) -> int:
        return combined("Mod", self, other)

    def __neg__(self) -> int:
        return combined("Sub", 0, self)


def values_of(size: int, count: int) -> tuple[int, ...]:
    return size.values if isinstance(size, Size) else (size,) * count


def combined(op: str, a: int, b: int) -> int:
    """Arithmetic of sizes; a plain number where all values are the same."""
    count = max(len(s.values) for s in (a, b) if isinstance(s, Size))
    pairs = zip(values_of(a, count), values_of(b, count), strict=True)
    values = [OPERATIONS[op](x, y) for x, y in pairs]
    return Size(values, (op, a, b)) if len(set(values)) > 1 else values[0]


def free(*sizes: int) -> bool:
    return any(isinstance(size, Size) for size in sizes)


class FreeBuilder(Builder):
    """A builder of models with free axes; steps that need a fixed size where there is none are taken back."""

    def __init__(self, choose: Choose) -> None:
        super().__init__(choose)
        self.fixed_batch = False
        self.shapes: dict[str, str] = {}

    def attempt(self, step: Any) -> None:
        """Add a step, unless it needs a fixed size."""
        counts = [len(found) for found in (self.nodes, self.initializers, self.tensors)]
        weights, shapes = dict(self.weights), dict(self.shapes)
        try:
            step(self)
        except Unfit:
            for found, count in zip((self.nodes, self.initializers, self.tensors), counts, strict=True):
                del found[count:]
            self.weights, self.shapes = weights, shapes

    def offer(self, tensor: Tensor) -> Tensor:
        """Let later steps build on a tensor, unless it is empty at some size."""
        if min(min(values_of(size, 1)) for size in tensor.shape) < 1:
            raise Unfit
        return super().offer(tensor)

    def normal(self, shape: Sequence[int], scale: float = 1.0) -> Array:
        if free(*shape):
            raise Unfit
        return super().normal(shape, scale)

    def node(self, op: str, inputs: Sequence[str], outputs: int = 1, **attributes: Any) -> list[str]:
        for value in attributes.values():
            if free(*(value if isinstance(value, (list, tuple)) else (value,))):
                raise Unfit
        return super().node(op, inputs, outputs, **attributes)

    def ints(self, *values: int) -> str:
        """A shape vector: constant where it can be, else joined of constants and what is computed."""
        pieces: list[str] = []
        fixed: list[int] = []
        for value in values:
            if free(value) or (value > 1 and self.places(value) and self.chance(6)):
                pieces += [super().ints(*fixed)] if fixed else []
                pieces.append(self.measured(value))
                fixed = []
            else:
                fixed.append(value)
        pieces += [super().ints(*fixed)] if fixed or not values else []
        return self.node("Concat", pieces, axis=0)[0] if len(pieces) > 1 else pieces[0]

    def places(self, value: int) -> list[tuple[Tensor, int]]:
        """Axes of this size."""
        return [(t, k) for t in self.tensors for k, n in enumerate(t.shape) if n == value]

    def measured(self, value: int) -> str:
        """A vector [1] that holds a size: of a tensor's axis, or by arithmetic."""
        places = self.places(value)
        made = value.made if isinstance(value, Size) else None
        if made and (not places or self.chance(2)):
            op, *operands = made
            (name,) = self.node(op, [self.measured(n) for n in operands])
        elif places:
            name = self.size_of(*places[-1 - min(self.choose(len(places)), self.choose(len(places)))])
        else:
            name = super().ints(value)
        positive = min(values_of(value, 1)) > 0
        return self.one_of(DETOURS)(self, name) if positive and self.chance(6) else name

    def scalar(self, value: int) -> str:
        """A size without axes."""
        return self.axes_node("Squeeze", [self.measured(value)], [0], 13)

    def shape_of(self, t: Tensor) -> str:
        """The Shape of a tensor, now and then by a node of its own."""
        if t.name not in self.shapes or self.chance(3):
            (self.shapes[t.name],) = self.node("Shape", [t.name])
        return self.shapes[t.name]

    def size_of(self, t: Tensor, axis: int) -> str:
        """A vector [1]: one size of a tensor, in one of the ways in which exporters read it."""
        place = axis - len(t.shape) if self.chance(3) else axis
        form = self.choose(4)
        if form == 1 and self.opset >= 15:
            return self.node("Shape", [t.name], start=axis, end=axis + 1)[0]
        if form == 2:
            end = place + 1 if place != -1 else FAR
            bounds = [Builder.ints(self, n) for n in (place, end, 0)]
            return self.node("Slice", [self.shape_of(t), *bounds])[0]
        if form == 3:
            (one,) = self.node("Gather", [self.shape_of(t), self.constant(np.array(place))], axis=0)
            return self.axes_node("Unsqueeze", [one], [0], 13)
        return self.node("Gather", [self.shape_of(t), self.constant(np.array([place]))], axis=0)[0]

    def reshaped(self, name: str, before: Sequence[int], after: Sequence[int]) -> str:
        """A Reshape to a target that is computed, some entries of which may be 0 or -1."""
        entries = list(after)
        for k, (old, new) in enumerate(zip(before, after, strict=False)):
            if old == new and self.chance(3):
                entries[k] = 0
        if self.chance(2):
            entries[self.choose(len(entries))] = -1
        return self.node("Reshape", [name, self.ints(*entries)])[0]


def through_floats(b: Builder, name: str) -> str:
    (real,) = b.node("Cast", [name], to=TensorProto.FLOAT)
    (down,) = b.node("Floor", [b.node("Mul", [real, b.constant(np.array([1.0], np.float32))])[0]])
    return b.node("Cast", [down], to=TensorProto.INT64)[0]


def through_int32(b: Builder, name: str) -> str:
    return b.node("Cast", [b.node("Cast", [name], to=TensorProto.INT32)[0]], to=TensorProto.INT64)[0]


def unless_minus_one(b: Builder, name: str) -> str:
    """As torch writes the target of an expand."""
    (test,) = b.node("Equal", [name, b.constant(np.array([-1]))])
    return b.node("Where", [test, b.constant(np.array([1])), name])[0]


def at_least_one(b: Builder, name: str) -> str:
    if b.opset < 12:
        return name
    (low,) = b.node("Max", [name, b.constant(np.array([0]))])
    return b.node("Min", [low, b.constant(np.array([FAR]))])[0]


def there_and_back(b: Builder, name: str) -> str:
    (more,) = b.node("Mul", [name, b.constant(np.array([2]))])
    (all_,) = b.node("Add", [more, b.constant(np.array([1]))])
    return b.node("Div", [all_, b.constant(np.array([2]))])[0]


def product_of_one(b: Builder, name: str) -> str:
    return b.axes_node("ReduceProd", [name], [0], 18, keepdims=1)


DETOURS = (through_floats, through_int32, unless_minus_one, at_least_one, there_and_back, product_of_one)
"""Arithmetic that leaves a size as it is."""

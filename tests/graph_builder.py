"""The state that a step of a random model sees: the model so far, random choices, and weights as files store them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeVar

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

Array = NDArray[Any]
Choose = Callable[[int], int]
T = TypeVar("T")

IR_VERSIONS = {11: 6, 13: 7, 17: 8, 21: 10}
LISTS = {np.dtype(np.int64): "value_ints", np.dtype(np.float32): "value_floats"}
LARGEST = 1500
"""Elements up to which a tensor is worth building on."""


class Tensor(NamedTuple):
    """A float tensor of the model; ``axis`` is its channel axis."""

    name: str
    shape: tuple[int, ...]
    axis: int = 1

    @property
    def channels(self) -> int:
        return self.shape[self.axis]

    @property
    def is_image(self) -> bool:
        """Channels on axis 1 and at least one spatial axis."""
        return self.axis == 1 and len(self.shape) > 2

    def resized(self, size: int, axis: int | None = None) -> tuple[int, ...]:
        """The shape with another size on one axis (the channel axis, if none is named)."""
        at = self.axis if axis is None else axis
        return (*self.shape[:at], size, *self.shape[at + 1 :])


class Builder:
    """A model under construction: its nodes, its constants and the tensors that steps may build on."""

    def __init__(self, choose: Choose) -> None:
        self.choose = choose
        self.opset = self.one_of(sorted(IR_VERSIONS))
        self.rng = np.random.default_rng(choose(1 << 16))
        self.fixed_batch = self.chance(2)
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: list[TensorProto] = []
        self.tensors: list[Tensor] = []
        self.weights: dict[tuple[int, ...], str] = {}
        self.count = 0

    def chance(self, n: int) -> bool:
        """True once in n draws; shrinks to False."""
        return self.choose(n) == n - 1

    def one_of(self, items: Sequence[T]) -> T:
        """One of some items; shrinks to the first."""
        return items[self.choose(len(items))]

    def between(self, low: int, high: int) -> int:
        return low + self.choose(high - low + 1)

    def pick(self, suits: Callable[[Tensor], bool]) -> Tensor | None:
        """A suitable tensor, preferably a late one."""
        found = [t for t in reversed(self.tensors) if suits(t) and math.prod(t.shape) <= LARGEST]
        return found[min(self.choose(len(found)), self.choose(len(found)))] if found else None

    def image(self) -> Tensor | None:
        return self.pick(lambda t: t.is_image)

    def name(self, stem: str) -> str:
        self.count += 1
        return f"{stem}_{self.count}"

    def node(self, op: str, inputs: Sequence[str], outputs: int = 1, **attributes: Any) -> list[str]:
        """Add a node; the names of its outputs."""
        names = [self.name(op.lower()) for _ in range(outputs)]
        self.nodes.append(helper.make_node(op, inputs, names, name=f"node_{len(self.nodes)}", **attributes))
        return names

    def put(self, shape: Sequence[int], op: str, inputs: Sequence[str], axis: int = 1, /, **attributes: Any) -> Tensor:
        """Add a node with one output, which later steps may build on."""
        (name,) = self.node(op, inputs, **attributes)
        return self.offer(Tensor(name, tuple(shape), axis))

    def offer(self, tensor: Tensor) -> Tensor:
        self.tensors.append(tensor)
        return tensor

    def normal(self, shape: Sequence[int], scale: float = 1.0) -> Array:
        return (self.rng.standard_normal(tuple(shape)) * scale).astype(np.float32)

    def initializer(self, array: Array) -> str:
        name = self.name("const")
        self.initializers.append(numpy_helper.from_array(np.array(array, order="C"), name))
        return name

    def constant(self, array: Array) -> str:
        """An initializer or the output of a Constant node."""
        if self.chance(5):
            if self.opset > 11 and array.ndim == 1 and array.size and array.dtype in LISTS and self.chance(2):
                return self.node("Constant", [], **{LISTS[array.dtype]: array.tolist()})[0]
            return self.node("Constant", [], value=numpy_helper.from_array(np.array(array, order="C")))[0]
        return self.initializer(array)

    def ints(self, *values: int) -> str:
        return self.constant(np.array(values, np.int64))

    def weight(self, shape: Sequence[int], fan_in: int, out_axis: int = 0) -> str:
        """A weight in one of the forms that occur in files."""
        shape = tuple(shape)
        array = self.normal(shape, 1.2 / math.sqrt(max(fan_in, 1)))
        form = self.one_of((plain, plain, plain, plain, *HELD_FORMS))
        if form is dequantised_per_channel and self.opset < 13:
            form = dequantised
        if self.chance(60):
            form = self.one_of(COMPUTED_FORMS)
        name = form(self, array, out_axis)
        self.weights.setdefault(shape, name)
        return name

    def vector(self, size: int) -> str:
        """A bias, sometimes one that another node reads as well."""
        if (size,) in self.weights and self.chance(3):
            return self.weights[size,]
        self.weights[size,] = self.parameter((size,), 0.5)
        return self.weights[size,]

    def parameter(self, shape: Sequence[int], scale: float = 1.0, shift: float = 0.0) -> str:
        """A constant that no mixing operator reads, sometimes computed from constants."""
        form = self.one_of(COMPUTED_FORMS) if shape and self.chance(6) else plain
        return form(self, self.normal(shape, scale) + np.float32(shift), 0)

    def axes_node(self, op: str, inputs: Sequence[str], axes: Sequence[int], since: int, **attributes: Any) -> str:
        """A node whose axes are an input from some operator set on, an attribute before."""
        if self.opset >= since:
            return self.node(op, [*inputs, self.constant(np.array(axes, np.int64))], **attributes)[0]
        return self.node(op, inputs, axes=list(axes), **attributes)[0]


def plain(b: Builder, array: Array, out_axis: int) -> str:
    return b.constant(array)


def shared(b: Builder, array: Array, out_axis: int) -> str:
    """The weight of an earlier node of the same shape."""
    return b.weights.get(array.shape) or b.initializer(array)


def identity_fed(b: Builder, array: Array, out_axis: int) -> str:
    return b.node("Identity", [b.constant(array)])[0]


def transpose_fed(b: Builder, array: Array, out_axis: int) -> str:
    order = b.rng.permutation(array.ndim).tolist()
    return b.node("Transpose", [b.constant(array.transpose(np.argsort(order)))], perm=order)[0]


def reshape_fed(b: Builder, array: Array, out_axis: int) -> str:
    flat = array.reshape(-1) if b.chance(2) else array.reshape(*array.shape[:1], -1)
    target = [-1, *array.shape[1:]] if array.ndim and b.chance(2) else list(array.shape)
    return b.node("Reshape", [b.constant(flat), b.ints(*target)])[0]


def squeeze_fed(b: Builder, array: Array, out_axis: int) -> str:
    return b.axes_node("Squeeze", [b.constant(array[None])], [0], 13)


def cast_fed(b: Builder, array: Array, out_axis: int) -> str:
    return b.node("Cast", [b.constant(array.astype(np.float64))], to=TensorProto.FLOAT)[0]


def computed(b: Builder, array: Array, out_axis: int) -> str:
    """A weight that the graph computes from two constants (weight normalisation): a pin."""
    factors = b.rng.uniform(0.5, 2, [n if k == out_axis else 1 for k, n in enumerate(array.shape)])
    return b.node("Mul", [b.constant(array), b.constant(factors.astype(np.float32))])[0]


def dequantised(b: Builder, array: Array, out_axis: int) -> str:
    scale = np.float32(np.abs(array).max() / 127)
    data = np.round(array / scale).astype(np.int8)
    zero = [b.constant(np.array(b.one_of((0, 3)), np.int8))] if b.chance(2) else []
    return b.node("DequantizeLinear", [b.initializer(data), b.constant(np.asarray(scale)), *zero])[0]


def dequantised_per_channel(b: Builder, array: Array, out_axis: int) -> str:
    others = tuple(k for k in range(array.ndim) if k != out_axis)
    scale = np.abs(array).max(others, keepdims=True) / 127
    data = np.round(array / scale).astype(np.int8)
    zero = [b.constant(b.rng.integers(-3, 4, scale.size).astype(np.int8))] if b.chance(2) else []
    inputs = [b.initializer(data), b.constant(scale.reshape(-1)), *zero]
    return b.node("DequantizeLinear", inputs, axis=out_axis)[0]


HELD_FORMS = (shared, identity_fed, dequantised, dequantised_per_channel)
"""Ways in which a file stores a prunable weight."""
COMPUTED_FORMS = (transpose_fed, reshape_fed, squeeze_fed, cast_fed, computed)
"""Constants computed by operators: a weight is pinned, others are sliced at the source or stored as values."""


def dense(b: Builder, x: Tensor, out: int) -> Tensor:
    """Flatten and Gemm."""
    flat = x.name if len(x.shape) == 2 else flattened(b, x)
    width = math.prod(x.shape[1:])
    turned = b.chance(2)
    weight = b.weight((out, width) if turned else (width, out), width, 0 if turned else 1)
    shape = b.one_of(((out,), (1, out), (1,), None))
    bias = [] if shape is None else [b.vector(out) if shape == (out,) else b.parameter(shape)]
    scale = {"alpha": 0.5} if b.chance(4) else {}
    (name,) = b.node("Gemm", [flat, weight, *bias], transB=int(turned), **scale)
    return Tensor(name, (x.shape[0], out))


def flattened(b: Builder, x: Tensor) -> str:
    """[N, …] as [N, K], in one of the ways that exporters write it."""
    width = math.prod(x.shape[1:])
    targets = [(0, -1), (0, width), (-1, width)]
    form = b.choose(len(targets) + 2)
    if form < len(targets):
        return b.node("Reshape", [x.name, b.ints(*targets[form])])[0]
    if form == len(targets):
        return b.node("Flatten", [x.name], axis=1)[0]
    (shape,) = b.node("Shape", [x.name])
    (batch,) = b.node("Gather", [shape, b.constant(np.array([0]))], axis=0)
    (target,) = b.node("Concat", [batch, b.ints(-1)], axis=0)
    return b.node("Reshape", [x.name, target])[0]

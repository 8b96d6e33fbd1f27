"""Weights stored as 8-bit integers: the constants of a layer that reads them, and the floats that they stand for.

An integer q stands for (q − zero point) · scale.  Two forms occur:

* a float operator reads a DequantizeLinear of the stored integers;
* an integer operator (``INTEGER_FORMS``) reads the integers themselves; then the tensors that it reads and outputs are
  integers as well, with scales and zero points of their own.

The unit of an int32 bias is the product of the scales of the weight and of the data.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import onnx

from leanonnx.graph.formats import is_float
from leanonnx.graph.model import Model
from leanonnx.graph.nodes import BIAS, BIASED, attribute, standard_name
from leanonnx.numeric.arrays import Array, Floats
from leanonnx.operators.integer_forms import INTEGER_FORMS
from leanonnx.recovery.route import Route, count_reads, dequantised_route

STORED_TYPES = (np.dtype(np.int8), np.dtype(np.uint8))
SEVEN_BITS = {"int8": (-64, 64), "uint8": (0, 128)}
"""Integers of weights that are limited to 7 bits, for processors without VNNI, by type."""
QUANTISED_WEIGHT = "its weight is quantised"
"""The reason why a layer with other integers than these cannot be fitted."""
QUANTISED_SHARED = "its weight is quantised and shared"


@dataclass(frozen=True)
class Quantised:
    """Scale and zero point of a tensor of integers."""

    scale: float
    zero: int

    def to_floats(self, integers: Array) -> Array:
        """The floats that integers stand for."""
        return (integers.astype(np.float32) - np.float32(self.zero)) * np.float32(self.scale)

    def is_rounded(self, floats: Array, integers: Array) -> bool:
        """True if integers are those of some floats, or next to them."""
        kind = np.iinfo(integers.dtype)
        made = np.clip(np.rint(floats / self.scale) + self.zero, kind.min, kind.max)
        return bool(np.abs(made - integers).max(initial=0) <= 1)


@dataclass(frozen=True, kw_only=True)
class IntegerWeight:
    """Stored integers of a weight, with the names of the constants that belong to it.

    ``axis``: that of the scales in the stored weight, None for a single scale.  ``scale`` and ``zero`` are "" where
    there are none.  ``bias_scale`` is that of an int32 bias of its own DequantizeLinear.  ``lowest`` and ``highest``:
    the integers that may be stored.  ``rescales``: the scales may be changed.  ``reads`` and ``writes``: the integers
    that an integer operator reads and outputs, None of a float operator.
    """

    weight: str
    scale: str
    zero: str
    axis: int | None
    bias: str
    bias_scale: str
    lowest: int
    highest: int
    rescales: bool
    reads: Quantised | None
    writes: Quantised | None

    def scales(self, model: Model) -> Floats:
        """The scales: one, or one per index along ``axis``."""
        return np.asarray(model.constant(self.scale), np.float64).reshape(-1) if self.scale else np.ones(1)

    def zeros(self, model: Model) -> Floats:
        """The zero points, as many as there are scales."""
        count = 1 if self.axis is None else model.constant(self.weight).shape[self.axis]
        stored = np.asarray(model.constant(self.zero), np.float64).reshape(-1) if self.zero else np.zeros(1)
        return np.broadcast_to(stored, (count,))

    def to_floats(self, model: Model) -> Floats:
        """The weight that the integers stand for, in their shape."""
        integers = np.asarray(model.constant(self.weight), np.float64)
        return (integers - self.spread(self.zeros(model), integers.shape)) * self.spread(
            self.scales(model), integers.shape
        )

    def places(self, model: Model) -> Array:
        """Index of the scale of each stored integer, in their shape."""
        shape = model.constant(self.weight).shape
        count = 1 if self.axis is None else shape[self.axis]
        return np.broadcast_to(self.spread(np.arange(count), shape), shape)

    def spread(self, numbers: Array, shape: tuple[int, ...]) -> Array:
        """One number per scale, as an array that broadcasts with integers of this shape."""
        if self.axis is None or numbers.size == 1:
            return numbers.reshape(())
        return numbers.reshape([-1 if k == self.axis else 1 for k in range(len(shape))])

    def bias_units(self, model: Model) -> Floats | None:
        """The units of the int32 bias, as many as there are scales, or one; None if the bias is none of integers."""
        if not self.bias:
            return None
        if self.bias_scale:
            return np.asarray(model.constant(self.bias_scale), np.float64).reshape(-1)
        return self.scales(model) * (self.reads.scale if self.reads else 1.0)

    def bias_in(self, model: Model) -> Floats:
        """The int32 bias in floats [O]."""
        units = self.bias_units(model)
        return np.asarray(model.constant(self.bias), np.float64).reshape(-1) * (1.0 if units is None else units)


def stored_integers(model: Model, node: onnx.NodeProto, slot: int) -> tuple[IntegerWeight, Route] | str | None:
    """The integers of the weight in a slot, and their route to the node; the reason if they are not supported.

    None if the weight is none of integers.
    """
    form = INTEGER_FORMS.get(standard_name(node))
    if form is None:
        return _dequantised(model, node, slot)
    if slot != form.weight or node.input[slot] not in model.origins:
        return QUANTISED_WEIGHT
    names = [node.input[k] if 0 <= k < len(node.input) else "" for k in (form.scale, form.zero, form.bias)]
    pairs = [[node.input[k] if 0 <= k < len(node.input) else "" for k in pair] for pair in (form.data, form.output)]
    if not {*names, *pairs[0], *pairs[1]} <= model.origins.keys() | {""}:
        return QUANTISED_WEIGHT
    reads, writes = (_activations(model, *pair) for pair in pairs)
    if reads is None or writes is None:
        return QUANTISED_WEIGHT
    axis = 0 if form.operator == "Conv" else -1
    weight, scale, zero, bias = (model.origins.get(name, "") for name in (node.input[slot], *names))
    made = _weight(model, (weight, scale, zero), axis, (bias, ""), (reads, writes))
    return made if isinstance(made, str) else (made, Route(weight))


def _dequantised(model: Model, node: onnx.NodeProto, slot: int) -> tuple[IntegerWeight, Route] | str | None:
    """The same for a float operator."""
    behind = dequantised_route(model, node.input[slot])
    if behind is None:
        return None
    route, maker = behind
    weight, scale, zero = (model.origins.get(name, "") for name in [*maker.input, ""][:3])
    if not scale or (len(maker.input) > 2 and not zero) or attribute(maker, "block_size", 0):
        return QUANTISED_WEIGHT
    if count_reads(model, maker.output[0]) != 1:
        return QUANTISED_SHARED
    bias = _dequantised_bias(model, node)
    axis = int(attribute(maker, "axis", 1))
    made = bias if isinstance(bias, str) else _weight(model, (weight, scale, zero), axis, bias, (None, None))
    return made if isinstance(made, str) else (made, route)


def _dequantised_bias(model: Model, node: onnx.NodeProto) -> tuple[str, str] | str:
    """Names of the int32 bias that a float operator reads and of its scale, "" if it reads none; or a reason."""
    name = node.input[BIAS] if standard_name(node) in BIASED and len(node.input) > BIAS else ""
    maker = model.view.producer(name) if name else None
    if maker is None or maker.op_type != "DequantizeLinear":
        return "", ""
    known = set(maker.input) <= model.origins.keys()
    if not known or model.constant(maker.input[0]).dtype != np.int32 or count_reads(model, name) != 1:
        return "its bias is shared or computed"
    if len(maker.input) > 2 and np.any(model.constant(maker.input[2])):
        return QUANTISED_WEIGHT
    return model.origins[maker.input[0]], model.origins[maker.input[1]]


def _activations(model: Model, scale: str, zero: str) -> Quantised | None:
    """Scale and zero point of a tensor of integers; None if it has several."""
    values = [model.constant(name) if name else np.array(default) for name, default in ((scale, 1.0), (zero, 0))]
    if any(value.size != 1 for value in values):
        return None
    return Quantised(float(values[0].item()), int(values[1].item()))


def _weight(
    model: Model,
    names: tuple[str, str, str],
    axis: int,
    bias: tuple[str, str],
    around: tuple[Quantised | None, Quantised | None],
) -> IntegerWeight | str:
    """The weight of these constants; a reason if it is not supported."""
    weight, scale, zero = names
    integers = model.constant(weight)
    sizes = {model.constant(name).size for name in (scale, zero) if name}
    if integers.dtype not in STORED_TYPES or not integers.ndim or (scale and not is_float(model.constant(scale))):
        return QUANTISED_WEIGHT
    if not sizes <= {1, integers.shape[axis]}:
        return QUANTISED_WEIGHT
    if count_reads(model, weight) != 1 or (bias[0] and count_reads(model, bias[0]) != 1):
        return QUANTISED_SHARED
    single = max(sizes, default=1) == 1
    units = [name for name in (scale, bias[1]) if name]
    count = model.constant(scale).size if scale else 0
    follows = all(count_reads(model, name) == 1 and model.constant(name).size == count for name in units)
    kind = np.iinfo(integers.dtype.name)
    return IntegerWeight(
        weight=weight,
        scale=scale,
        zero=zero,
        axis=None if single else axis % integers.ndim,
        bias=bias[0],
        bias_scale=bias[1],
        lowest=int(kind.min),
        highest=int(kind.max),
        rescales=bool(scale) and follows and count == (1 if single else integers.shape[axis]),
        reads=around[0],
        writes=around[1],
    )


def bits_range(model: Model, weight: IntegerWeight) -> tuple[int, int]:
    """The integers that a weight may hold: those of 7 bits if it holds no others, all of its type otherwise."""
    integers = model.constant(weight.weight)
    low, high = SEVEN_BITS[integers.dtype.name]
    if integers.size and low <= integers.min() and integers.max() <= high:
        return low, high
    return weight.lowest, weight.highest


def original_floats(model: Model, node: onnx.NodeProto, slot: int, kernels: Floats) -> tuple[Floats, Floats] | None:
    """Kernels [G, O, K] and bias [O] in floats that an integer operator computes with; None of a float operator.

    Args:
        model: the network.
        node: the operator.
        slot: the slot of its weight.
        kernels: its integers [G, O, K].
    """
    made = stored_integers(model, node, slot) if standard_name(node) in INTEGER_FORMS else None
    if not isinstance(made, tuple):
        return None
    weight, size = made[0], math.prod(kernels.shape[:2])
    scales, zeros = (
        np.broadcast_to(numbers, (size,)).reshape(*kernels.shape[:2], 1)
        for numbers in (weight.scales(model), weight.zeros(model))
    )
    return (kernels - zeros) * scales, weight.bias_in(model) if weight.bias else np.zeros(size)

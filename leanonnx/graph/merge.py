"""Merge adjacent linear layers: a scale, a shift or a 1×1 convolution is multiplied into the weights before it.

A shift may also pass sums on its way to a bias before it, or go into the bias of a linear layer behind it.

The result is equal up to rounding, because sums are taken in another order; so only float32 and float64 are merged,
whose rounding errors are far below any bound of the proof.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx

from leanonnx.graph.formats import PRECISE_FLOATS
from leanonnx.graph.nodes import BIAS, BIASED, attribute, bias_of, is_padded, scale_and_shift, standard_name
from leanonnx.graph.noops import TidyContext
from leanonnx.numeric.arrays import Array
from leanonnx.operators.facts import Trait
from leanonnx.operators.table import TRANSPOSED_CONVOLUTIONS, names_with

SHIFTS_OR_SCALES = names_with(Trait.ARITHMETIC)
SHIFT_SIGNS = {"Add": 1.0, "Sub": -1.0}
WEIGHT = 1


@dataclass(frozen=True)
class MergedConstants:
    """New constants of the first node by input slot; those in ``fresh`` need a name of their own."""

    by_slot: Mapping[int, Array]
    fresh: frozenset[int]


def merge_constants(
    context: TidyContext, first: onnx.NodeProto, second: onnx.NodeProto, own: set[str]
) -> MergedConstants | None:
    """Constants with which the first of two nodes computes both; None if that is not exact or saves nothing.

    ``own`` names initializers whose values may change.
    """
    if standard_name(first) not in BIASED or not standard_name(second) or first.input[WEIGHT] not in own:
        return None
    weight = context.constant(first.input[WEIGHT])
    if weight is None or context.view.input_counts[first.input[WEIGHT]] > 1 or weight.dtype not in PRECISE_FLOATS:
        return None
    if second.op_type == "Conv":
        return _merge_convolutions(context, first, second, weight, own)
    size = _width(first, weight)
    pair = _affine(context, second, first.output[0], size, weight.ndim)
    bias = _bias(context, first, size)
    if pair is None or bias is None or (first.op_type == "ConvTranspose" and attribute(first, "group", 1) > 1):
        return None
    scale, shift = pair
    axis = _output_axis(first)
    shape = [size if k == axis else 1 for k in range(weight.ndim)]
    return _rounded_constants(context, first, weight * scale.reshape(shape), bias * scale + shift, weight.dtype, own)


def addends(node: onnx.NodeProto, producer: Callable[[str], onnx.NodeProto | None]) -> Iterator[onnx.NodeProto]:
    """Nodes with a bias whose output a sum adds up, through further sums; none if the node is no sum.

    ``producer`` returns the producer of a tensor that nothing else reads.
    """
    for name in node.input if standard_name(node) == "Add" else ():
        source = producer(name)
        if source is not None and standard_name(source) in BIASED:
            yield source
        elif source is not None:
            yield from addends(source, producer)


def absorbed_before(
    context: TidyContext, absorber: onnx.NodeProto, shift: onnx.NodeProto, own: set[str]
) -> MergedConstants | None:
    """Constants with which an addend of a sum adds the constant that the second node adds to the sum; None without."""
    if standard_name(shift) not in SHIFT_SIGNS or absorber.input[WEIGHT] not in own:
        return None
    weight = context.constant(absorber.input[WEIGHT])
    if weight is None or weight.dtype not in PRECISE_FLOATS:
        return None
    size = _width(absorber, weight) * _groups_of_outputs(absorber)
    numbers, bias = _shift(context, shift, shift.input[0], size, weight.ndim), _bias(context, absorber, size)
    if numbers is None or bias is None:
        return None
    return _rounded_constants(context, absorber, None, bias + numbers, weight.dtype, own)


def absorbed_behind(
    context: TidyContext, shift: onnx.NodeProto, second: onnx.NodeProto, own: set[str]
) -> MergedConstants | None:
    """Constants with which a linear layer adds what the node before it shifts its input by; None if it cannot.

    A border of zeros would not be shifted, and the shift must not enlarge what it is added to.
    """
    if (
        standard_name(shift) not in SHIFT_SIGNS
        or second.op_type not in BIASED - TRANSPOSED_CONVOLUTIONS
        or is_padded(second)
    ):
        return None
    if not context.covers(shift.input[0], shift.input[1]):
        return None
    weight = context.constant(second.input[WEIGHT])
    if weight is None or weight.dtype not in PRECISE_FLOATS or attribute(second, "transA", 0):
        return None
    if second.op_type == "Gemm" and not attribute(second, "transB", 0):
        weight = weight.T
    groups = attribute(second, "group", 1)
    numbers = _shift(context, shift, shift.input[0], weight.shape[1] * groups, weight.ndim)
    bias = _bias(context, second, weight.shape[0])
    if numbers is None or bias is None:
        return None
    sums = np.asarray(weight, np.float64).reshape(groups, -1, weight.shape[1], math.prod(weight.shape[2:])).sum(-1)
    alpha = attribute(second, "alpha", 1.0) if second.op_type == "Gemm" else 1.0
    added = alpha * (sums @ numbers.reshape(groups, -1, 1)).reshape(-1)
    return _rounded_constants(context, second, None, bias + added, weight.dtype, own)


def _groups_of_outputs(node: onnx.NodeProto) -> int:
    """Number of conv groups, where the axis of output channels counts those of one."""
    return int(attribute(node, "group", 1)) if node.op_type == "ConvTranspose" else 1


def _shift(context: TidyContext, node: onnx.NodeProto, source: str, size: int, rank: int) -> Array | None:
    """The number [size] that a node adds to each channel of ``source``; None if that is not all that it does."""
    pair = _affine(context, node, source, size, rank)
    return None if pair is None else pair[1]


def _width(first: onnx.NodeProto, weight: Array) -> int:
    """Number of output channels."""
    return int(weight.shape[_output_axis(first)])


def _output_axis(first: onnx.NodeProto) -> int:
    """The axis of the weight along which the output channels lie."""
    if first.op_type == "Gemm":
        return 0 if attribute(first, "transB", 0) else 1
    return 1 if first.op_type == "ConvTranspose" else 0


def _bias(context: TidyContext, first: onnx.NodeProto, size: int) -> Array | None:
    """Bias of the first node for each output channel [size]; None where it is not known."""
    if first.op_type == "Gemm" and not attribute(first, "beta", 1.0):
        return None
    return bias_of(first, size, context.constant)


def _affine(
    context: TidyContext, second: onnx.NodeProto, source: str, size: int, rank: int
) -> tuple[Array, Array] | None:
    """Scale and shift [size] of each channel of ``source`` if that is all that a node computes; None otherwise."""
    if second.op_type == "BatchNormalization":
        return _batch_normalization(context, second, size)
    if second.op_type not in SHIFTS_OR_SCALES or second.input[0] != source:
        return None
    array = context.constant(second.input[1])
    if array is None or array.ndim > rank or array.dtype not in PRECISE_FLOATS:
        return None
    shape = (1,) * (rank - array.ndim) + array.shape
    if any(n != 1 for axis, n in enumerate(shape) if axis != 1) or shape[1] not in (1, size):
        return None
    numbers = np.broadcast_to(np.asarray(array, np.float64).reshape(-1), (size,))
    one, zero = np.ones(size), np.zeros(size)
    if second.op_type in SHIFT_SIGNS:
        return one, SHIFT_SIGNS[second.op_type] * numbers
    if second.op_type == "Div" and not numbers.all():
        return None
    return (numbers if second.op_type == "Mul" else 1 / numbers), zero


def _batch_normalization(context: TidyContext, second: onnx.NodeProto, size: int) -> tuple[Array, Array] | None:
    parameters = [context.constant(name) for name in second.input[1:5]]
    if any(p is None or p.shape != (size,) for p in parameters) or attribute(second, "training_mode", 0):
        return None
    if any(name for name in second.output[1:]):
        return None
    gamma, beta, mean, variance = (np.asarray(p, np.float64) for p in parameters)
    return scale_and_shift(gamma, beta, mean, variance, attribute(second, "epsilon", 1e-5))


def _merge_convolutions(
    context: TidyContext, first: onnx.NodeProto, second: onnx.NodeProto, weight: Array, own: set[str]
) -> MergedConstants | None:
    """Merge a convolution with a 1×1 convolution behind it, unless that costs more multiply-adds."""
    outer, bias = context.constant(second.input[WEIGHT]), _bias(context, first, weight.shape[0])
    if outer is None or bias is None or first.op_type != "Conv" or not _is_pointwise(second, outer):
        return None
    if attribute(first, "group", 1) != 1 or outer.dtype != weight.dtype:
        return None
    middle, width, taps, out = *weight.shape[:2], math.prod(weight.shape[2:]), outer.shape[0]
    last = _bias(context, second, out)
    if last is None or taps * width * out > taps * width * middle + middle * out:
        return None
    matrix = np.asarray(outer, np.float64).reshape(out, middle)
    kernels = (matrix @ np.asarray(weight, np.float64).reshape(middle, -1)).reshape(out, *weight.shape[1:])
    return _rounded_constants(context, first, kernels, matrix @ bias + last, weight.dtype, own)


def _is_pointwise(node: onnx.NodeProto, weight: Array) -> bool:
    """True if a convolution has 1×1 kernels on all channels, without stride or padding."""
    steps = [n - 1 for n in attribute(node, "strides", [])]
    single = all(n == 1 for n in weight.shape[2:]) and attribute(node, "group", 1) == 1
    return single and not any([*steps, *attribute(node, "pads", [])])


def _rounded_constants(
    context: TidyContext, first: onnx.NodeProto, weight: Array | None, bias: Array, dtype: np.dtype[Any], own: set[str]
) -> MergedConstants | None:
    """The new constants of a node; None if they are not finite.  ``weight``: None if it stays."""
    beta = attribute(first, "beta", 1.0) if first.op_type == "Gemm" else 1.0
    constants = {BIAS: (bias / beta).astype(dtype)}
    if weight is not None:
        constants[WEIGHT] = weight.astype(dtype)
    if not all(np.isfinite(array).all() for array in constants.values()):
        return None
    name = first.input[BIAS] if len(first.input) > BIAS else ""
    kept = name in own and context.view.input_counts[name] == 1
    if not name and not constants[BIAS].any():
        del constants[BIAS]
    return MergedConstants(constants, frozenset() if kept else frozenset({BIAS}))

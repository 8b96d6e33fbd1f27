"""Operators that act on each position by itself.

Unary (activations, casts): channels pass through.
Joins (Add, Mul, Where, comparisons …): channels at the same position are tied; an operand that is broadcast over the
channels is not.  A constant operand is sliced with its tensor.
"""

from __future__ import annotations

import numpy as np

from leanonnx.labels import Labels, Shape, compact, varied
from leanonnx.rules.call import Call, Effect, Link, Pairs, Slice, Unsupported, broadcast_factor, side_pins

UNARY = [
    "Relu",
    "LeakyRelu",
    "Sigmoid",
    "Tanh",
    "Elu",
    "Selu",
    "Celu",
    "Softplus",
    "Softsign",
    "HardSigmoid",
    "HardSwish",
    "Mish",
    "Gelu",
    "Swish",
    "ThresholdedRelu",
    "Clip",
    "Abs",
    "Neg",
    "Exp",
    "Log",
    "Sqrt",
    "Reciprocal",
    "Floor",
    "Ceil",
    "Round",
    "Sign",
    "Sin",
    "Cos",
    "Tan",
    "Asin",
    "Acos",
    "Atan",
    "Sinh",
    "Cosh",
    "Asinh",
    "Acosh",
    "Atanh",
    "Erf",
    "Not",
    "BitwiseNot",
    "IsNaN",
    "IsInf",
    "Cast",
    "CastLike",
    "Identity",
    "Dropout",
    "Shrink",
    "Affine",
    "ScaledTanh",
    "ParametricSoftplus",
]
JOINS = [
    "Add",
    "Sub",
    "Mul",
    "Div",
    "Min",
    "Max",
    "Sum",
    "Mean",
    "Pow",
    "Mod",
    "Where",
    "And",
    "Or",
    "Xor",
    "Equal",
    "Greater",
    "Less",
    "GreaterOrEqual",
    "LessOrEqual",
    "BitwiseAnd",
    "BitwiseOr",
    "BitwiseXor",
]


def unary(call: Call) -> Effect:
    """Channels pass through; further outputs (a dropout mask) hold the same channels."""
    return Effect((call.labels(0),) * len(call.output_shapes), pins=side_pins(call, "reads it as a parameter"))


def join(call: Call) -> Effect:
    """Operands are broadcast against each other, position by position."""
    return join_slots(call, tuple(k for k in range(len(call.inputs)) if call.has(k)))


def join_slots(call: Call, slots: tuple[int, ...]) -> Effect:
    """Tie the labelled operands in these slots and slice the constant ones."""
    computed = [k for k in slots if not call.is_constant(k)]
    out, ties, links = _merge(call, computed)
    slices: list[Slice] = []
    for slot in slots:
        if slot not in computed:
            factor, more = broadcast_factor(out, call.shape(slot))
            ties += more
            slices += [Slice(slot, (factor,))] if varied(factor) else []
    if call.op in ("Mul", "Div") and len(computed) == 1 and len(slots) == 2 and varied(out):
        scaled = _scaled(call, out, next(k for k in slots if k not in computed))
        if scaled is not None:
            minted, link = scaled
            return Effect((minted,), (*ties, (out, minted)), links=(link,), slices=_relabel(call, slices, minted))
    return Effect((out,), tuple(ties), links=tuple(links), slices=tuple(slices))


def _merge(call: Call, computed: list[int]) -> tuple[Labels, list[Pairs], list[Link]]:
    """Labels of a join's output, with ties and identity edges from each computed operand."""
    shape = call.output_shape()
    aligned = [_align(call.labels(k), len(shape)) for k in computed]
    joint = np.broadcast_shapes(*[labels.shape for labels in aligned])
    spread = [np.broadcast_to(labels, joint) for labels in aligned]
    if all(np.array_equal(spread[0], other) for other in spread[1:]):
        return spread[0], [], []
    unique, inverse = np.unique(np.stack([s.reshape(-1) for s in spread]), axis=1, return_inverse=True)
    out = call.mint(unique.shape[1])[inverse.reshape(-1)].reshape(joint)
    ties, links = [], []
    for slot, own, labels in zip(computed, aligned, spread, strict=True):
        pairs = np.unique(np.stack([labels.reshape(-1), out.reshape(-1)]), axis=1)
        links.append(Link(pairs[0], pairs[1]))
        if varied(own) or not _is_broadcast(call.shape(slot), shape, out):
            ties.append((pairs[0], pairs[1]))
    return out, ties, links


def _align(labels: Labels, rank: int) -> Labels:
    return labels.reshape((1,) * (rank - labels.ndim) + labels.shape)


def _is_broadcast(operand: Shape, shape: Shape, out: Labels) -> bool:
    """Whether an operand has size 1 on an axis along which the output's channels change."""
    full = (1,) * (len(shape) - len(operand)) + tuple(operand)
    return any(full[axis] == 1 and shape[axis] > 1 for axis in varied(out))


def _scaled(call: Call, labels: Labels, slot: int) -> tuple[Labels, Link] | None:
    """Fresh labels behind a multiplication by (or division through) one constant per channel; None for others.

    A factor that is the same for all channels leaves the order of the chains through a layer as it is.
    """
    constant = call.array(slot)
    shape = (1,) * (labels.ndim - constant.ndim) + constant.shape
    elsewhere = any(size != 1 and axis not in varied(labels) for axis, size in enumerate(shape))
    if constant.size < 2 or elsewhere or constant.dtype.kind != "f" or (call.op == "Div" and slot == 0):
        return None
    unique, inverse = np.unique(labels, return_inverse=True)
    gains = np.zeros(unique.size)
    np.maximum.at(
        gains, inverse.reshape(-1), np.broadcast_to(np.abs(constant.reshape(shape)), labels.shape).reshape(-1)
    )
    if call.op == "Div":
        gains = 1 / np.maximum(gains, np.finfo(np.float32).tiny)
    minted = call.mint(unique.size)
    return minted[inverse].reshape(labels.shape), Link(unique, minted, gains.astype(np.float32))


def _relabel(call: Call, slices: list[Slice], labels: Labels) -> tuple[Slice, ...]:
    """The same slices, by the fresh labels."""
    return tuple(Slice(s.slot, (broadcast_factor(labels, call.shape(s.slot))[0],)) for s in slices)


def prelu(call: Call) -> Effect:
    """PRelu-16: the slope is one constant per channel, or one for all."""
    if not call.is_constant(1):
        raise Unsupported("the slope is computed at run time")
    factor, ties = broadcast_factor(call.labels(0), call.shape(1))
    return Effect((call.labels(0),), tuple(ties), slices=(Slice(1, (factor,)),) if varied(factor) else ())


def qlinear_join(call: Call) -> Effect:
    """com.microsoft.QLinearAdd and QLinearMul: A, a_scale, a_zero, B, b_scale, b_zero, c_scale, c_zero."""
    return join_slots(call, (0, 3))


def image_scaler(call: Call) -> Effect:
    """ImageScaler (experimental): one bias per channel in an attribute, which is left as it is."""
    labels = call.labels(0)
    if varied(labels):
        raise Unsupported("its bias per channel is an attribute")
    return Effect((compact(labels),))


def bias_gelu(call: Call) -> Effect:
    """com.microsoft.BiasGelu: an addition, then Gelu."""
    return join_slots(call, (0, 1))

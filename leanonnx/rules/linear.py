"""Channel-mixing operators: Conv, ConvTranspose, Gemm, MatMul with a constant, and their fused or quantised forms.

Flow: every kernel leads from its input channel to its output channel.
Ties: groups live or die whole (``group`` shrinks, channels per group stay).
Pins: a weight that is computed at run time; products of two computed tensors.
"""

from __future__ import annotations

import math

import numpy as np

from leanonnx.labels import Labels, on_axis, uniform, varied
from leanonnx.rules import products
from leanonnx.rules.call import (
    Call,
    Edit,
    Effect,
    Kept,
    Link,
    Mix,
    Pairs,
    Rewrite,
    Slice,
    Unsupported,
    broadcast_factor,
    pin_all,
)


def conv(
    call: Call, weight: int = 1, bias: int = 2, residual: int | None = None, per_channel: tuple[int, ...] = ()
) -> Effect:
    """Conv of any rank and group (ONNX Conv-22); weight ``[O, I/g, *k]``.

    ``per_channel`` names further slots that hold one value per output channel (scales of quantised weights);
    ``residual`` is the slot that FusedConv adds to the result.
    """
    if not _is_held(call, weight):
        return pin_all(call, _unheld(call, weight))
    out, width, *kernel = call.shape(weight)
    groups = int(call.attribute("group", 1))
    sources, ties = call.slices(0, 1)
    inward, targets = _grouped(call, sources, width, out, groups)
    ties += _group_ties(inward, targets) if groups > 1 else []
    rank = len(call.output_shape())
    factors = (
        on_axis(targets.reshape(-1), 0, 2 + len(kernel)),
        _spread(inward, out // groups).reshape(-1, width, *[1] * len(kernel)),
    )
    result = on_axis(targets.reshape(-1), 1, rank)
    mix = Mix(
        inward,
        targets,
        weight,
        lambda: call.array(weight).reshape(groups, out // groups, width, *kernel),
        factors[1],
        _per_axis(call, "strides", len(kernel)),
        math.prod(kernel),
        math.prod(call.output_shape()) // out,
    )
    links: list[Link] = []
    if residual is not None and call.has(residual):
        link, more = _residual(call, residual, targets.reshape(-1))
        links, ties = [link], ties + more
    return Effect(
        (result,),
        tuple(ties),
        mixes=(mix,),
        links=tuple(links),
        slices=(Slice(weight, factors), *_vectors(call, (bias, *per_channel), targets.reshape(-1))),
        rewrite=_shrink_groups(targets) if groups > 1 else None,
    )


def conv_transpose(call: Call) -> Effect:
    """ConvTranspose (ONNX ConvTranspose-22); weight ``[I, O/g, *k]``; its norm is that of the adjoint."""
    if not _is_held(call, 1):
        return pin_all(call, _unheld(call, 1))
    width, per_group, *kernel = call.shape(1)
    groups = int(call.attribute("group", 1))
    out = per_group * groups
    sources, ties = call.slices(0, 1)
    inward, targets = _grouped(call, sources, width // groups, out, groups)
    ties += _group_ties(inward, targets) if groups > 1 else []
    factors = (
        on_axis(inward.reshape(-1), 0, 2 + len(kernel)),
        _spread(targets, width // groups).reshape(-1, per_group, *[1] * len(kernel)),
    )
    mix = Mix(
        inward,
        targets,
        1,
        lambda: call.array(1).reshape(groups, width // groups, per_group, *kernel).swapaxes(1, 2),
        factors[0],
        _per_axis(call, "strides", len(kernel)),
        math.prod(kernel),
        math.prod(call.shape(0)) // width,
    )
    return Effect(
        (on_axis(targets.reshape(-1), 1, len(call.output_shape())),),
        tuple(ties),
        mixes=(mix,),
        slices=(Slice(1, factors), *_vectors(call, (2,), targets.reshape(-1))),
        rewrite=_shrink_groups(targets) if groups > 1 else None,
    )


def fused_conv(call: Call) -> Effect:
    """com.microsoft.FusedConv: Conv, plus an optional tensor added before the activation."""
    return conv(call, residual=3)


def qlinear_conv(call: Call) -> Effect:
    """QLinearConv-10: x, x_scale, x_zero, w, w_scale, w_zero, y_scale, y_zero, B."""
    return conv(call, weight=3, bias=8, per_channel=(4, 5))


def conv_integer(call: Call) -> Effect:
    """ConvInteger-10: x, w, x_zero, w_zero."""
    return conv(call, weight=1, bias=-1, per_channel=(3,))


def gemm(call: Call, weight: int = 1, bias: int = 2, per_channel: tuple[int, ...] = ()) -> Effect:
    """Gemm-13 with a constant B; a Flatten before it repeats each channel over its pixels."""
    if not _is_held(call, weight):
        return pin_all(call, _unheld(call, weight))
    if call.attribute("transA", 0):
        return pin_all(call, f"{call.title} transposes its input")
    turned = bool(call.attribute("transB", 0))
    shape = call.shape(weight)
    effect = _dense(call, 1, weight, shape[::-1] if turned else shape, turned)
    bias_slices: tuple[Slice, ...] = ()
    ties: list[Pairs] = []
    if call.is_constant(bias):
        factor, ties = broadcast_factor(effect.outputs[0], call.shape(bias))
        bias_slices = (Slice(bias, (factor,)),) if varied(factor) else ()
    elif call.has(bias):
        return pin_all(call, f"{call.title} adds a computed tensor")
    slices = (*effect.slices, *bias_slices, *_vectors(call, per_channel, effect.mixes[0].targets[0]))
    return Effect(effect.outputs, (*effect.ties, *ties), mixes=effect.mixes, slices=slices)


def qgemm(call: Call) -> Effect:
    """com.microsoft.QGemm (A, a_scale, a_zero, B, …): counted, but left as it is."""
    return _uncounted(call, pin_all(call, f"{call.title} is a quantised matrix product that is not pruned"), 3)


def matmul(call: Call, weight: int = 1, per_channel: tuple[int, ...] = ()) -> Effect:
    """MatMul-13 with a constant matrix on the right; products of two computed tensors are in ``products``.

    Where the channels lie on other axes than the last, the product acts inside each channel and moves no channel.
    """
    if call.is_constant(0):
        return pin_all(call, f"{call.title} has its constant on the left")
    if not call.is_constant(weight):
        return products.matmul(call)
    if not _is_held(call, weight):
        return pin_all(call, _unheld(call, weight))
    shape, labels = call.shape(weight), call.labels(0)
    if len(shape) != 2:
        return _uncounted(call, pin_all(call, f"{call.title} has a stack of matrices as its constant"), weight)
    if labels.shape[-1] == 1 and varied(labels):
        return _uncounted(call, Effect((labels,)), weight)
    effect = _dense(call, len(call.shape(0)) - 1, weight, shape, turned=False)
    extra = _vectors(call, per_channel, effect.mixes[0].targets[0])
    return Effect(effect.outputs, effect.ties, mixes=effect.mixes, slices=(*effect.slices, *extra))


def qlinear_matmul(call: Call) -> Effect:
    """QLinearMatMul-21: a, a_scale, a_zero, b, b_scale, b_zero, y_scale, y_zero."""
    return matmul(call, weight=3, per_channel=(4, 5))


def matmul_integer(call: Call) -> Effect:
    """MatMulInteger-10: a, b, a_zero, b_zero."""
    return matmul(call, weight=1, per_channel=(3,))


def _is_held(call: Call, weight: int) -> bool:
    return call.is_constant(weight) and call.value(weight).held


def _unheld(call: Call, weight: int) -> str:
    """Why a product without a weight in the file is pinned."""
    if call.is_constant(weight):
        name = call.value(weight).name
        return f"{call.title} computes its weight '{name}' from constants (fold constants first to have it pruned)"
    return f"{call.title} multiplies two computed tensors"


def _dense(call: Call, axis: int, weight: int, shape: tuple[int, ...], turned: bool) -> Effect:
    """A matrix ``[I, O]`` (stored ``[O, I]`` if turned) applied along one axis."""
    width, out = shape
    sources, ties = call.slices(0, axis)
    targets = call.mint(out)
    inward, outward = on_axis(sources, int(turned), 2), on_axis(targets, 1 - int(turned), 2)
    mix = Mix(
        sources.reshape(1, width),
        targets.reshape(1, out),
        weight,
        lambda: (call.array(weight) if turned else call.array(weight).T)[None],
        inward,
        positions=math.prod(call.shape(0)) // width,
    )
    output = on_axis(targets, len(call.output_shape()) - 1, len(call.output_shape()))
    return Effect((output,), tuple(ties), mixes=(mix,), slices=(Slice(weight, (outward, inward)),))


def _uncounted(call: Call, effect: Effect, weight: int) -> Effect:
    """Add the cost of a matrix that no channel removal can shrink (label 0 lives always)."""
    rows, columns = call.shape(weight)[-2:]
    positions = math.prod(call.output_shape()) // columns
    fixed = uniform(0, 2)
    sources, targets = np.broadcast_to(fixed, (1, rows)), np.broadcast_to(fixed, (1, columns))
    mix = Mix(sources, targets, weight, lambda: call.array(weight), positions=positions)
    return Effect(effect.outputs, effect.ties, mixes=(mix,), links=effect.links, pins=effect.pins)


def _grouped(call: Call, sources: Labels, width: int, out: int, groups: int) -> tuple[Labels, Labels]:
    """Labels of the channels read [G, I] and put out [G, O]."""
    if sources.size != width * groups:
        raise Unsupported(f"{width * groups} input channels in the weight, {sources.size} in the data")
    return sources.reshape(groups, width), call.mint(out).reshape(groups, out // groups)


def _group_ties(inward: Labels, targets: Labels) -> list[Pairs]:
    """All channels that a group reads and puts out live or die together."""
    members = np.concatenate([inward, targets], axis=1)
    return [(np.repeat(members[:, :1], members.shape[1] - 1, axis=1), members[:, 1:])]


def _spread(labels: Labels, times: int) -> Labels:
    """Labels [G, n] repeated for each of the ``times`` rows of its group: [G·times, n]; [1, n] for one group."""
    return np.repeat(labels, times, axis=0) if labels.shape[0] > 1 else labels


def _shrink_groups(targets: Labels) -> Rewrite:
    return lambda kept: Edit({"group": _alive_groups(kept, targets)})


def _alive_groups(kept: Kept, targets: Labels) -> int:
    return int(kept.mask(targets[:, 0]).sum())


def _per_axis(call: Call, name: str, rank: int) -> tuple[int, ...]:
    return tuple(int(s) for s in call.attribute(name, [1] * rank))


def _vectors(call: Call, slots: tuple[int, ...], targets: Labels) -> tuple[Slice, ...]:
    """Slices of the slots that hold one value per output channel (scalars stay)."""
    found = []
    for slot in slots:
        if slot < 0 or not call.has(slot):
            continue
        if not call.is_constant(slot):
            raise Unsupported(f"input {slot} is computed from a graph input")
        if math.prod(call.shape(slot)) == targets.size and targets.size > 1:
            found.append(Slice(slot, (targets.reshape(call.shape(slot)),)))
    return tuple(found)


def _residual(call: Call, slot: int, targets: Labels) -> tuple[Link, list[Pairs]]:
    """The tensor that FusedConv adds: its channels are tied to the output's."""
    if call.is_constant(slot):
        raise Unsupported(f"input {slot} is a constant")
    added, ties = call.slices(slot, 1)
    return Link(added, targets), [*ties, (added, targets)]

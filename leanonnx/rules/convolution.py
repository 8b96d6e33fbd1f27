"""Convolutions: Conv, ConvTranspose, DeformConv and their fused or quantised forms."""

from __future__ import annotations

import math

import numpy as np

from leanonnx.numeric.channel_ids import ChannelIds, on_axis, varied
from leanonnx.rules import advice
from leanonnx.rules.call import (
    Call,
    Edit,
    Effect,
    FixedEdges,
    KeptChannels,
    KernelBlock,
    Pin,
    Rewrite,
    Slice,
    TiePairs,
    Unsupported,
    steered,
)
from leanonnx.rules.correlation import correlation
from leanonnx.rules.weights import require_held, vectors

MANY_GROUPS = 8
"""From so many groups on, whole groups are fine enough a grain."""


def conv(
    call: Call, weight: int = 1, bias: int = 2, residual: int | None = None, per_channel: tuple[int, ...] = ()
) -> Effect:
    """Convolution of any rank, stride, dilation and group; weight ``[O, I/g, *k]``.

    Flow: every kernel leads from its input channel to its output channel, within its group.
    Ties: none for one group.  Many groups live and die whole (``group`` shrinks); few groups (under 8) lose the same
        positions in all of them (``group`` stays).  Input channels of a weight that another branch computes are tied to
        those of the data; with several groups, groups go whole from both (correlations).
    Pins: channels that lie along a pixel axis; what a weight touches that is computed from sizes.
    Limits: the weight is a constant, computed from constants (weight norm, casts), or computed from a graph
        input, with channels on its groups alone or on its inputs alone.
    Specification: ONNX Conv-22.

    ``per_channel`` names further slots that hold one value per output channel (scales of quantised weights);
    ``residual`` is the slot that FusedConv adds to the result.
    """
    if (call.domain, call.op) == ("", "Conv") and not (call.is_constant(0) or call.is_constant(weight)):
        return correlation(call)
    require_held(call, weight)
    out, width, *kernel = call.shape(weight)
    groups = int(call.attribute("group", 1))
    sources, ties = call.slices(0, 1)
    inward, targets = _grouped(call, sources, width, out, groups)
    whole = not call.by_position and _go_whole(inward, targets)
    ties += _group_ties(inward, targets, whole) if groups > 1 else []
    rank = len(call.output_shape())
    factors = (
        on_axis(targets.reshape(-1), 0, 2 + len(kernel)),
        _spread(inward, out // groups).reshape(-1, width, *[1] * len(kernel)),
    )
    result = on_axis(targets.reshape(-1), 1, rank)
    mix = KernelBlock(
        inward,
        targets,
        weight,
        lambda: call.array(weight).reshape(groups, out // groups, width, *kernel),
        factors[1],
        _strides(call, kernel),
        math.prod(kernel),
        math.prod(call.output_shape()) // out,
        axis=1,
        onto=1,
    )
    links: list[FixedEdges] = []
    if residual is not None and call.has(residual):
        link, more = _residual(call, residual, targets.reshape(-1))
        links, ties = [link], ties + more
    return Effect(
        (result,),
        tuple(ties),
        kernel_blocks=(mix,),
        fixed_edges=tuple(links),
        slices=(Slice(weight, factors), *vectors(call, (bias, *per_channel), targets.reshape(-1))),
        pins=_along(call),
        rewrite=_shrink_groups(targets) if groups > 1 and whole else None,
    )


def conv_transpose(call: Call) -> Effect:
    """Transposed convolution; weight ``[I, O/g, *k]``; the gain of a kernel is that of the adjoint.

    Flow: every kernel leads from its input channel to its output channel, within its group.
    Ties: groups live and die whole.
    Pins: channels that lie along a pixel axis; what a computed weight touches.
    Limits: the weight is a constant, or computed from constants.
    Specification: ONNX ConvTranspose-22.
    """
    require_held(call, 1)
    width, per_group, *kernel = call.shape(1)
    groups = int(call.attribute("group", 1))
    out = per_group * groups
    sources, ties = call.slices(0, 1)
    inward, targets = _grouped(call, sources, width // groups, out, groups)
    ties += _group_ties(inward, targets, whole=True) if groups > 1 else []
    factors = (
        on_axis(inward.reshape(-1), 0, 2 + len(kernel)),
        _spread(targets, width // groups).reshape(-1, per_group, *[1] * len(kernel)),
    )
    mix = KernelBlock(
        inward,
        targets,
        1,
        lambda: call.array(1).reshape(groups, width // groups, per_group, *kernel).swapaxes(1, 2),
        factors[0],
        _strides(call, kernel),
        math.prod(kernel),
        math.prod(call.shape(0)) // width,
        axis=1,
        onto=1,
    )
    return Effect(
        (on_axis(targets.reshape(-1), 1, len(call.output_shape())),),
        tuple(ties),
        kernel_blocks=(mix,),
        slices=(Slice(1, factors), *vectors(call, (2,), targets.reshape(-1))),
        pins=_along(call),
        rewrite=_shrink_groups(targets) if groups > 1 else None,
    )


def fused_conv(call: Call) -> Effect:
    """Convolution, an optional tensor added to it, and an activation.

    Flow: as Conv; the added tensor's channels lead on to the output's.
    Ties: as Conv; the added tensor's channels with the output's.
    Pins: as Conv.
    Limits: as Conv; the added tensor is computed.
    Specification: com.microsoft.FusedConv-1 (onnxruntime writes it at optimisation level 'extended').
    """
    return conv(call, residual=3)


def qlinear_conv(call: Call) -> Effect:
    """Convolution of integers: x, x_scale, x_zero, w, w_scale, w_zero, y_scale, y_zero, B.

    Flow: as Conv.
    Ties: as Conv; scales and zero points per output channel are sliced with it.
    Pins: as Conv.
    Limits: as Conv.
    Specification: ONNX QLinearConv-10.
    """
    return conv(call, weight=3, bias=8, per_channel=(4, 5))


def conv_integer(call: Call) -> Effect:
    """Convolution of integers without scales: x, w, x_zero, w_zero.

    Flow: as Conv.
    Ties: as Conv; zero points per output channel are sliced with it.
    Pins: as Conv.
    Limits: as Conv.
    Specification: ONNX ConvInteger-10.
    """
    return conv(call, weight=1, bias=-1, per_channel=(3,))


def deform_conv(call: Call) -> Effect:
    """Deformable convolution: X, W, offset, B, mask.

    Flow: as Conv.
    Ties: as Conv.
    Pins: offsets and masks, which steer the sampling of all channels.
    Limits: one group of offsets; the weight is a constant, or computed from constants.
    Specification: ONNX DeformConv-22.
    """
    if int(call.attribute("offset_group", 1)) != 1:
        raise Unsupported("each group of its offsets steers some of the channels", advice.EXPORT)
    return steered(call, conv(call, bias=3), "is steered by it")


def _along(call: Call) -> tuple[Pin, ...]:
    """Channels that lie along the pixel axes only: each takes part in what becomes of its neighbours."""
    channel_ids = call.channel_ids(0)
    if not varied(channel_ids) or 1 in varied(channel_ids):
        return ()
    return (Pin(np.unique(channel_ids), call.value(0).name, f"{call.title} runs along the channels"),)


def _grouped(call: Call, sources: ChannelIds, width: int, out: int, groups: int) -> tuple[ChannelIds, ChannelIds]:
    """Labels of the channels read [G, I] and put out [G, O]."""
    if sources.size != width * groups:
        raise Unsupported(f"{width * groups} input channels in the weight, {sources.size} in the data", advice.EXPORT)
    return sources.reshape(groups, width), call.mint(out).reshape(groups, out // groups)


def _go_whole(inward: ChannelIds, targets: ChannelIds) -> bool:
    """Whether whole groups go, rather than the same positions of all groups."""
    groups, narrow = targets.shape[0], min(inward.shape[1], targets.shape[1])
    return bool(groups >= MANY_GROUPS or narrow <= groups)


def _group_ties(inward: ChannelIds, targets: ChannelIds, whole: bool) -> list[TiePairs]:
    """All channels that a group reads and puts out are tied, or the channels at the same position of all groups."""
    if whole:
        members = np.concatenate([inward, targets], axis=1)
        return [(np.repeat(members[:, :1], members.shape[1] - 1, axis=1), members[:, 1:])]
    return [(np.repeat(side[:1], side.shape[0] - 1, axis=0), side[1:]) for side in (inward, targets)]


def _spread(channel_ids: ChannelIds, times: int) -> ChannelIds:
    """Labels [G, n] repeated for each of the ``times`` rows of its group: [G·times, n]; [1, n] for one group."""
    return np.repeat(channel_ids, times, axis=0) if channel_ids.shape[0] > 1 else channel_ids


def _shrink_groups(targets: ChannelIds) -> Rewrite:
    return lambda kept: Edit({"group": _alive_groups(kept, targets)})


def _alive_groups(kept: KeptChannels, targets: ChannelIds) -> int:
    return int(kept.mask(targets[:, 0]).sum())


def _strides(call: Call, kernel: list[int]) -> tuple[int, ...]:
    """Strides as the gain of a kernel sees them.

    A factor that a stride shares with the dilation only leaves out positions that no tap sees together; beyond the
    kernel's own size, a longer step makes no difference.
    """
    steps, gaps = (call.attribute(name, [1] * len(kernel)) for name in ("strides", "dilations"))
    return tuple(min(step // math.gcd(step, gap), size) for step, gap, size in zip(steps, gaps, kernel, strict=True))


def _residual(call: Call, slot: int, targets: ChannelIds) -> tuple[FixedEdges, list[TiePairs]]:
    """The tensor that FusedConv adds: its channels are tied to the output's."""
    if call.is_constant(slot):
        raise Unsupported(f"input {slot} is a constant", advice.FOLD)
    added, ties = call.slices(slot, 1)
    return FixedEdges(added, targets), [*ties, (added, targets)]


RULES = {
    ("", "Conv"): conv,
    ("", "ConvTranspose"): conv_transpose,
    ("", "ConvInteger"): conv_integer,
    ("", "QLinearConv"): qlinear_conv,
    ("", "DeformConv"): deform_conv,
    ("com.microsoft", "FusedConv"): fused_conv,
}

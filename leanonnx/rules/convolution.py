"""Convolutions: Conv, ConvTranspose, DeformConv and their fused or quantised forms."""

from __future__ import annotations

import math

import numpy as np

from leanonnx.numeric.channel_ids import ChannelIds, on_axis, varied_axes
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
    pin_side_inputs,
)
from leanonnx.rules.correlation import correlation
from leanonnx.rules.weights import per_channel_slices, require_static_weight

MANY_GROUPS = 8
"""Number of conv groups from which on whole groups are removed."""


def conv(
    call: Call, weight: int = 1, bias: int = 2, residual: int | None = None, per_channel: tuple[int, ...] = ()
) -> Effect:
    """Convolution of any rank, stride, dilation and group; weight ``[O, I/g, *k]``.

    Flow: every kernel leads from its input channel to its output channel, within its group.
    Ties: none for one group.  With many groups whole groups are removed (``group`` shrinks); with few (under 8) the
        same positions are removed from all of them (``group`` stays).  Input channels of a weight that another branch
        computes are tied to those of the data; with several groups, whole groups of both (correlations).
    Pins: channels that lie along a pixel axis; inputs and outputs if the weight is computed from sizes.
    Limits: the weight is a constant, computed from constants (weight norm, casts), or computed from a graph
        input, with channels on its groups alone or on its inputs alone.
    Specification: ONNX Conv-22.

    ``per_channel``: further slots that hold one value per output channel (scales of quantised weights);
    ``residual``: the slot that FusedConv adds to the result.
    """
    if (call.domain, call.op) == ("", "Conv") and not (call.is_constant(0) or call.is_constant(weight)):
        return correlation(call)
    require_static_weight(call, weight)
    out, width, *kernel = call.shape(weight)
    groups = int(call.attribute("group", 1))
    sources, ties = call.channel_ids_along(0, 1)
    inward, destinations = _grouped_channels(call, sources, width, out, groups)
    whole = groups > 1 and not call.tie_by_position and _removes_whole_groups(inward, destinations)
    ties += _group_ties(inward, destinations, whole) if groups > 1 else []
    rank = len(call.output_shape())
    factors = (
        on_axis(destinations.ravel(), 0, 2 + len(kernel)),
        _repeat_rows(inward, out // groups).reshape(-1, width, *[1] * len(kernel)),
    )
    result = on_axis(destinations.ravel(), 1, rank)
    block = KernelBlock(
        sources=inward,
        destinations=destinations,
        slot=weight,
        kernels=lambda: call.array(weight).reshape(groups, out // groups, width, *kernel),
        input_channel_ids=factors[1],
        strides=_strides(call, kernel),
        taps=math.prod(kernel),
        positions=math.prod(call.output_shape()) // out,
        input_axis=1,
        output_axis=1,
    )
    fixed_edges: list[FixedEdges] = []
    if residual is not None and call.has_input(residual):
        edges, more = _residual(call, residual, destinations.ravel())
        fixed_edges, ties = [edges], ties + more
    return Effect(
        (result,),
        tuple(ties),
        kernel_blocks=(block,),
        fixed_edges=tuple(fixed_edges),
        slices=(Slice(weight, factors), *per_channel_slices(call, (bias, *per_channel), destinations.ravel())),
        pins=_pixel_axis_pins(call),
        rewrite=_shrink_groups(destinations) if whole else None,
    )


def conv_transpose(call: Call) -> Effect:
    """Transposed convolution; weight ``[I, O/g, *k]``; a kernel has the gain of its adjoint.

    Flow: every kernel leads from its input channel to its output channel, within its group.
    Ties: all channels of a group.
    Pins: channels that lie along a pixel axis; inputs and outputs if the weight is computed.
    Limits: the weight is a constant, or computed from constants.
    Specification: ONNX ConvTranspose-22.
    """
    require_static_weight(call, 1)
    width, per_group, *kernel = call.shape(1)
    groups = int(call.attribute("group", 1))
    out = per_group * groups
    sources, ties = call.channel_ids_along(0, 1)
    inward, destinations = _grouped_channels(call, sources, width // groups, out, groups)
    ties += _group_ties(inward, destinations, whole=True) if groups > 1 else []
    factors = (
        on_axis(inward.ravel(), 0, 2 + len(kernel)),
        _repeat_rows(destinations, width // groups).reshape(-1, per_group, *[1] * len(kernel)),
    )
    block = KernelBlock(
        sources=inward,
        destinations=destinations,
        slot=1,
        kernels=lambda: call.array(1).reshape(groups, width // groups, per_group, *kernel).swapaxes(1, 2),
        input_channel_ids=factors[0],
        strides=_strides(call, kernel),
        taps=math.prod(kernel),
        positions=math.prod(call.shape(0)) // width,
        input_axis=1,
        output_axis=1,
    )
    return Effect(
        (on_axis(destinations.ravel(), 1, len(call.output_shape())),),
        tuple(ties),
        kernel_blocks=(block,),
        slices=(Slice(1, factors), *per_channel_slices(call, (2,), destinations.ravel())),
        pins=_pixel_axis_pins(call),
        rewrite=_shrink_groups(destinations) if groups > 1 else None,
    )


def fused_conv(call: Call) -> Effect:
    """Convolution with an optional residual input and an activation.

    Flow: as Conv; the added tensor's channels lead to the output's.
    Ties: as Conv; the added tensor's channels with the output's.
    Pins: as Conv.
    Limits: as Conv; the added tensor is computed.
    Specification: com.microsoft.FusedConv-1 (onnxruntime writes it at optimisation level 'extended').
    """
    return conv(call, residual=3)


def qlinear_conv(call: Call) -> Effect:
    """Quantised convolution: x, x_scale, x_zero, w, w_scale, w_zero, y_scale, y_zero, B.

    Flow: as Conv.
    Ties: as Conv; scales and zero points per output channel are sliced with it.
    Pins: as Conv.
    Limits: as Conv.
    Specification: ONNX QLinearConv-10.
    """
    return conv(call, weight=3, bias=8, per_channel=(4, 5))


def conv_integer(call: Call) -> Effect:
    """Integer convolution without scales: x, w, x_zero, w_zero.

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
    Pins: offsets and masks, which apply to all channels.
    Limits: one group of offsets; the weight is a constant, or computed from constants.
    Specification: ONNX DeformConv-22.
    """
    if int(call.attribute("offset_group", 1)) != 1:
        raise Unsupported("its offset groups apply to different channels", advice.EXPORT_AGAIN)
    return pin_side_inputs(call, conv(call, bias=3), "takes its offsets or mask from it")


def _pixel_axis_pins(call: Call) -> tuple[Pin, ...]:
    """Pins of channels that lie along pixel axes only: the convolution mixes each one with its neighbours."""
    channel_ids = call.channel_ids(0)
    if not varied_axes(channel_ids) or 1 in varied_axes(channel_ids):
        return ()
    return (
        Pin(
            channel_ids=np.unique(channel_ids),
            tensor=call.value(0).name,
            reason=f"{call.title} runs along the channels",
        ),
    )


def _grouped_channels(
    call: Call, sources: ChannelIds, width: int, out: int, groups: int
) -> tuple[ChannelIds, ChannelIds]:
    """Input channels [G, I] and new output channels [G, O]."""
    if sources.size != width * groups:
        raise Unsupported(
            f"{width * groups} input channels in the weight, {sources.size} in the data", advice.EXPORT_AGAIN
        )
    return sources.reshape(groups, width), call.mint(out).reshape(groups, out // groups)


def _removes_whole_groups(inward: ChannelIds, destinations: ChannelIds) -> bool:
    """Return True if whole groups are removed, rather than the same positions of all groups."""
    groups, narrow = destinations.shape[0], min(inward.shape[1], destinations.shape[1])
    return bool(groups >= MANY_GROUPS or narrow <= groups)


def _group_ties(inward: ChannelIds, destinations: ChannelIds, whole: bool) -> list[TiePairs]:
    """Ties of all input and output channels of a group, or of the channels at the same position of all groups."""
    if whole:
        members = np.concatenate([inward, destinations], axis=1)
        return [(np.repeat(members[:, :1], members.shape[1] - 1, axis=1), members[:, 1:])]
    return [(np.repeat(side[:1], side.shape[0] - 1, axis=0), side[1:]) for side in (inward, destinations)]


def _repeat_rows(channel_ids: ChannelIds, times: int) -> ChannelIds:
    """Channel ids [G, n] repeated for each of the ``times`` rows of its group: [G·times, n]; [1, n] for one group."""
    return np.repeat(channel_ids, times, axis=0) if channel_ids.shape[0] > 1 else channel_ids


def _shrink_groups(destinations: ChannelIds) -> Rewrite:
    return lambda kept: Edit({"group": _count_kept_groups(kept, destinations)})


def _count_kept_groups(kept: KeptChannels, destinations: ChannelIds) -> int:
    return int(kept.mask(destinations[:, 0]).sum())


def _strides(call: Call, kernel: list[int]) -> tuple[int, ...]:
    """Effective strides for the gain of a kernel.

    A factor that a stride shares with the dilation skips only positions that no two taps read together; a stride
    longer than the kernel has the same gain as one of the kernel's size.
    """
    steps, gaps = (call.attribute(name, [1] * len(kernel)) for name in ("strides", "dilations"))
    return tuple(min(step // math.gcd(step, gap), size) for step, gap, size in zip(steps, gaps, kernel, strict=True))


def _residual(call: Call, slot: int, destinations: ChannelIds) -> tuple[FixedEdges, list[TiePairs]]:
    """Edges and ties from the tensor that FusedConv adds to the output."""
    if call.is_constant(slot):
        raise Unsupported(f"input {slot} is a constant", advice.FOLD_CONSTANTS)
    added, ties = call.channel_ids_along(slot, 1)
    return FixedEdges(added, destinations), [*ties, (added, destinations)]


CONVOLUTION_RULES = {
    ("", "Conv"): conv,
    ("", "ConvTranspose"): conv_transpose,
    ("", "ConvInteger"): conv_integer,
    ("", "QLinearConv"): qlinear_conv,
    ("", "DeformConv"): deform_conv,
    ("com.microsoft", "FusedConv"): fused_conv,
}

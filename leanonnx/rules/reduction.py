"""Reductions and softmax: channels pass through if the reduced axes hold no channels.

Zeros do not change sums and norms, so that these can lose channels that would be zero there; a mean over the kept
channels is scaled by their share.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

import numpy as np

from leanonnx.numeric.channel_ids import ChannelIds, uniform_ids, varied_axes
from leanonnx.operators.facts import Trait
from leanonnx.operators.table import names_with
from leanonnx.rules.call import Call, Edit, Effect, FixedEdges, KeptChannels, Reduction, Unsupported, combine_axes

ZERO_INVARIANT = names_with(Trait.WHOLE_SUM)
"""Reductions and poolings that zeros do not change, or only by their number."""


def reduce(call: Call) -> Effect:
    """Sums, means, maxima and other reductions over axes.

    Flow: channels on other axes pass through; sums, means and norms (L1, L2, squares) combine all channels into one.
    Ties: channels that are reduced together, if other axes hold channels too (heads).
    Pins: if no other axis holds channels: the channels that a maximum, minimum, product or logarithm reduces; those
        that a sum, mean or norm reduces, if they would not be zero when their layer outputs zeros (after a Sigmoid, or
        minus a mean).
    Limits: the axes are constants.  A mean of fewer channels is scaled, so that removed channels count as zeros.
    Specification: ONNX ReduceMean-18, ReduceSum-13 and the other reductions.
    """
    axes = call.ints(1, "axes")
    if axes is None or not axes:
        axes = [] if call.attribute("noop_with_empty_axes", 0) else list(range(len(call.shape(0))))
    if call.op in ZERO_INVARIANT and sums_channels(call, axes):
        return combine_channels(call, mean=call.op == "ReduceMean")
    return _reduction_effect(call, axes, bool(call.attribute("keepdims", 1)))


def sums_channels(call: Call, axes: Collection[int]) -> bool:
    """Return True if a reduction over these axes combines all channels of the first input."""
    channel_ids = call.channel_ids(0)
    channel_axes = set(varied_axes(channel_ids))
    return bool(channel_axes) and channel_axes <= {axis % channel_ids.ndim for axis in axes}


def combine_channels(call: Call, mean: bool) -> Effect:
    """Effect of a node that reduces all channels of its first input to one: their sum, or their mean.

    Raises:
        Unsupported: removed channels would not be zero there.
    """
    require_zeros(call, "it reduces over the channels")
    channel_ids = call.channel_ids(0)
    channels, counts = np.unique(channel_ids, return_counts=True)
    gains = counts / channel_ids.size if mean else np.ones(channels.size)
    destination = call.mint(1)
    edges = FixedEdges(channels, np.broadcast_to(destination, channels.shape), gains.astype(np.float32))

    def rewrite(kept: KeptChannels) -> Edit:
        return Edit(output_scales={0: kept_share(kept, channel_ids)})

    return Effect(
        (uniform_ids(int(destination[0]), len(call.output_shape())),),
        fixed_edges=(edges,),
        reductions=(Reduction(0, channel_ids, destination),),
        rewrite=rewrite if mean else None,
    )


def require_zeros(call: Call, reason: str) -> None:
    """Require that removed channels are zero in the first input.

    Raises:
        Unsupported: they would not be zero when their layer outputs zeros.
    """
    if not call.value(0).preserves_zeros:
        raise Unsupported(f"{reason}, which would not be zero there when their layers output zeros")


def kept_share(kept: KeptChannels, channel_ids: ChannelIds) -> float:
    """Share of a tensor's positions that are kept."""
    return int(kept.mask(channel_ids).sum()) / channel_ids.size


def arg_extremum(call: Call) -> Effect:
    """Index of the largest or smallest element along an axis.

    Flow: channels on other axes pass through.
    Ties: channels that are reduced together, if other axes hold channels too (heads).
    Pins: channels on that axis if no other axis holds channels.
    Limits: none.
    Specification: ONNX ArgMax-13, ArgMin-13.
    """
    return _reduction_effect(call, [int(call.attribute("axis", 0))], bool(call.attribute("keepdims", 1)))


def _reduction_effect(call: Call, axes: list[int], keep: bool) -> Effect:
    rank = len(call.shape(0))
    taken = {axis % max(rank, 1) for axis in axes}
    effect = combine_axes(call, taken, "it reduces over the channels")
    (channel_ids,) = effect.outputs
    left = [size for axis, size in enumerate(channel_ids.shape) if axis not in taken]
    return replace(effect, outputs=(channel_ids if keep else channel_ids.reshape(left),))


def softmax(call: Call) -> Effect:
    """Softmax, LogSoftmax and Hardmax; before opset 13 over all axes from ``axis`` on.

    Flow: channels on other axes pass through.
    Ties: channels that are normalised together, if other axes hold channels too (heads).
    Pins: channels on a normalised axis if no other axis holds channels.
    Limits: none.
    Specification: ONNX Softmax-13, LogSoftmax-13, Hardmax-13.
    """
    rank = len(call.shape(0))
    old = call.opset < 13
    axis = int(call.attribute("axis", 1 if old else -1)) % rank
    taken = set(range(axis, rank)) if old else {axis}
    return combine_axes(call, taken, "it normalises over the channels")


def cumulative_sum(call: Call) -> Effect:
    """Cumulative sum along an axis.

    Flow: channels on other axes pass through.
    Ties: channels that are summed together, if other axes hold channels too (heads).
    Pins: channels on that axis if no other axis holds channels.
    Limits: the axis is a constant.
    Specification: ONNX CumSum-14.
    """
    axis = int(call.array(1).item())
    return combine_axes(call, {axis % len(call.shape(0))}, "it adds up the channels")


REDUCTION_RULES = {
    ("", "ReduceMean"): reduce,
    ("", "ReduceSum"): reduce,
    ("", "ReduceMax"): reduce,
    ("", "ReduceMin"): reduce,
    ("", "ReduceProd"): reduce,
    ("", "ReduceL1"): reduce,
    ("", "ReduceL2"): reduce,
    ("", "ReduceSumSquare"): reduce,
    ("", "ReduceLogSum"): reduce,
    ("", "ReduceLogSumExp"): reduce,
    ("", "ArgMax"): arg_extremum,
    ("", "ArgMin"): arg_extremum,
    ("", "Softmax"): softmax,
    ("", "LogSoftmax"): softmax,
    ("", "Hardmax"): softmax,
    ("", "CumSum"): cumulative_sum,
}

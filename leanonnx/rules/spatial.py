"""Pooling and resizing: operators on the pixels of each channel.

Flow: channels pass through on axis 1.  Pins: tensors that control the sampling (grids, regions), and indices of MaxPool
(which count positions across channels) unless only a MaxUnpool reads them, which loses the same channels.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from leanonnx.numeric.channel_ids import compact_ids, on_axis, varied_axes
from leanonnx.rules import advice
from leanonnx.rules.call import (
    Call,
    Edit,
    Effect,
    FixedEdges,
    KeptChannels,
    ShapeEdit,
    Unsupported,
    mint_for_rows,
    pin_side_inputs,
)
from leanonnx.rules.reduction import ZERO_INVARIANT, combine_channels, sums_channels

SAMPLING_ROLE = "takes its sampling positions or sizes from it"


def pool_or_sample(call: Call) -> Effect:
    """Pooling and sampling of the pixels of each channel.

    Flow: channels pass through on axis 1.
    Ties: none.
    Pins: computed grids, regions and other inputs that control the sampling.
    Limits: indices of MaxPool count across all channels, and only a MaxUnpool may read them.  Global pooling over
        channels (on a later axis) combines them, as a reduction does.
    Specification: ONNX AveragePool-22, MaxPool-22, LpPool-22, GlobalAveragePool-22, GridSample-22, RoiAlign-22,
        MaxRoiPool-22 and the other pooling operators.
    """
    if any(call.consumer_ops(k) - {"MaxUnpool"} for k, name in enumerate(call.outputs) if k and name):
        raise Unsupported("it outputs indices that count across all channels", advice.NO_EXACT_FORM)
    if call.op in ZERO_INVARIANT and sums_channels(call, range(2, len(call.shape(0)))):
        return combine_channels(call, mean=call.op == "GlobalAveragePool")
    vector, ties = call.channel_ids_along(0, 1)
    channel_ids = compact_ids(on_axis(vector, 1, len(call.output_shape())))
    return pin_side_inputs(call, Effect((channel_ids,) * len(call.outputs), tuple(ties)), SAMPLING_ROLE)


def max_unpool(call: Call) -> Effect:
    """Scatter pixels back to the positions that a MaxPool recorded.

    Flow: the channels of data and indices lead to the output's.
    Ties: the channels of data and indices, which count across the kept channels.
    Pins: a computed output size.
    Limits: the indices are the unchanged ones of a MaxPool, and the output has the size of its input.
    Specification: ONNX MaxUnpool-22.
    """
    indices, after = call.value(1), call.output_shape()
    if indices.producer_op != "MaxPool" or indices.producer_input_shape is None:
        raise Unsupported("its indices do not come from a MaxPool", advice.NO_EXACT_FORM)
    if indices.producer_input_shape[2:] != after[2:]:
        raise Unsupported("its indices refer to a tensor of another size", advice.NO_EXACT_FORM)
    (vector, ties), (places, more) = call.channel_ids_along(0, 1), call.channel_ids_along(1, 1)
    fresh = mint_for_rows(call, np.stack([vector, places], axis=1))
    pairs, fixed_edges = [(vector, fresh), (places, fresh)], (FixedEdges(vector, fresh), FixedEdges(places, fresh))
    channel_ids = compact_ids(on_axis(fresh, 1, len(after)))

    def rewrite(kept: KeptChannels) -> Edit:
        return Edit(
            inputs={2: ShapeEdit({1: kept.axis_size(channel_ids, 1, after[1])}, {1: after[1]})}
            if call.has_input(2)
            else {}
        )

    effect = Effect((channel_ids,), (*ties, *more, *pairs), fixed_edges=fixed_edges, rewrite=rewrite)
    sized = replace(call, inputs=(call.inputs[0], *call.inputs[2:]))
    return pin_side_inputs(sized, effect, "takes a size from it")


def resize(call: Call) -> Effect:
    """Resize the pixel axes.

    Flow: channels pass through.
    Ties: none.
    Pins: computed sizes, scales and regions.
    Limits: the channel axis keeps its size; a constant target size is rewritten to the number of kept channels.
    Specification: ONNX Resize-19, Upsample-9.
    """
    channel_ids = call.channel_ids(0)
    before, after = call.shape(0), call.output_shape()
    if any(before[axis] != after[axis] for axis in varied_axes(channel_ids)):
        raise Unsupported("it resizes the channel axis", advice.EXPORT_AGAIN)
    slot = 3
    axes = [int(a) % len(after) for a in call.attribute("axes", range(len(after)))]

    def rewrite(kept: KeptChannels) -> Edit:
        sizes = {axes.index(a): kept.axis_size(channel_ids, a, after[a]) for a in varied_axes(channel_ids) if a in axes}
        return Edit(inputs={slot: ShapeEdit(sizes, {k: after[axes[k]] for k in sizes})})

    has_sizes = call.op == "Resize" and call.has_input(slot) and call.shape(slot) != (0,)
    return pin_side_inputs(call, Effect((channel_ids,), rewrite=rewrite if has_sizes else None), SAMPLING_ROLE)


SPATIAL_RULES = {
    ("", "AveragePool"): pool_or_sample,
    ("", "MaxPool"): pool_or_sample,
    ("", "MaxUnpool"): max_unpool,
    ("", "LpPool"): pool_or_sample,
    ("", "GlobalAveragePool"): pool_or_sample,
    ("", "GlobalMaxPool"): pool_or_sample,
    ("", "GlobalLpPool"): pool_or_sample,
    ("", "GridSample"): pool_or_sample,
    ("", "RoiAlign"): pool_or_sample,
    ("", "MaxRoiPool"): pool_or_sample,
    ("", "Resize"): resize,
    ("", "Upsample"): resize,
    ("com.microsoft", "QLinearGlobalAveragePool"): pool_or_sample,
    ("com.microsoft", "QLinearAveragePool"): pool_or_sample,
}

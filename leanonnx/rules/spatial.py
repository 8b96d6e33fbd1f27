"""Pooling and resizing: operators on the pixels of each channel.

Flow: channels pass through on axis 1.  Pins: outputs that count positions over channels (indices of MaxPool),
and tensors that steer the sampling (grids, regions).
"""

from __future__ import annotations

from leanonnx.numeric.labels import compact, on_axis, varied
from leanonnx.rules import advice
from leanonnx.rules.call import Call, Edit, Effect, Entries, Kept, Unsupported, steered

STEERING = "is steered by it"


def channelwise(call: Call) -> Effect:
    """Pooling, sampling and the like, on the pixels of each channel.

    Flow: channels pass through on axis 1.
    Ties: none.
    Pins: grids, regions and whatever else steers the sampling.
    Limits: no second output (indices count over all channels).
    Specification: ONNX AveragePool-22, MaxPool-22, GlobalAveragePool-22, GridSample-22, RoiAlign-22,
        MaxRoiPool-22 and their like.
    """
    if any(name for name in call.outputs[1:]):
        raise Unsupported("it puts out indices that count over all channels", advice.EXPORT)
    vector, ties = call.slices(0, 1)
    labels = compact(on_axis(vector, 1, len(call.output_shape())))
    return steered(call, Effect((labels,), tuple(ties)), STEERING)


def resize(call: Call) -> Effect:
    """Other sizes of the pixel axes.

    Flow: channels pass through.
    Ties: none.
    Pins: computed sizes, scales and regions.
    Limits: the channel axis keeps its size; a constant target size names the kept channels.
    Specification: ONNX Resize-19, Upsample-9.
    """
    labels = call.labels(0)
    before, after = call.shape(0), call.output_shape()
    if any(before[axis] != after[axis] for axis in varied(labels)):
        raise Unsupported("it resizes the channel axis", advice.EXPORT)
    slot = 3
    axes = [int(a) % len(after) for a in call.attribute("axes", range(len(after)))]

    def rewrite(kept: Kept) -> Edit:
        sizes = {axes.index(a): kept.count(labels, a, after[a]) for a in varied(labels) if a in axes}
        return Edit(inputs={slot: Entries(sizes, {k: after[axes[k]] for k in sizes})})

    has_sizes = call.op == "Resize" and call.has(slot) and call.shape(slot) != (0,)
    return steered(call, Effect((labels,), rewrite=rewrite if has_sizes else None), STEERING)


RULES = {
    ("", "AveragePool"): channelwise,
    ("", "MaxPool"): channelwise,
    ("", "LpPool"): channelwise,
    ("", "GlobalAveragePool"): channelwise,
    ("", "GlobalMaxPool"): channelwise,
    ("", "GlobalLpPool"): channelwise,
    ("", "GridSample"): channelwise,
    ("", "RoiAlign"): channelwise,
    ("", "MaxRoiPool"): channelwise,
    ("", "Resize"): resize,
    ("", "Upsample"): resize,
    ("com.microsoft", "QLinearGlobalAveragePool"): channelwise,
    ("com.microsoft", "QLinearAveragePool"): channelwise,
}

"""Movements of data: operators that do not change it act on the labels as on the data.

Where the kept positions stay a product of index sets, shape constants are rewritten; where they do not (a channel
shuffle), surgery replaces the run of movements by one Gather, for which each rule gives its ``moves``.
"""

from __future__ import annotations

import math

import numpy as np

from leanonnx.numeric.channel_ids import ChannelIds, Shape, on_axis, reshape, uniform, varied
from leanonnx.rules import advice
from leanonnx.rules.call import (
    Call,
    Edit,
    Effect,
    FixedEdges,
    KeptChannels,
    ShapeEdit,
    TiePairs,
    Unsupported,
    kept_together,
    steered,
)


def reshaped(call: Call) -> Effect:
    """Another shape for the same data, in row-major order.

    Flow: channels move with their data.
    Ties: none; channels that come to lie on several axes are tied where nothing else keeps them a product of index
        sets (a Gather takes the place of a channel shuffle).
    Pins: nothing.
    Limits: the channels' places follow from the shapes of one run; the target is rewritten to name the
        kept channels; a computed one has entries laid over it.
    Specification: ONNX Reshape-21, Flatten-21, Squeeze-21, Unsqueeze-21.
    """
    before, after = call.shape(0), call.output_shape()
    channel_ids = call.channel_ids(0)
    output = reshape(channel_ids, before, after)
    rewrite = None
    if call.op == "Reshape":
        target = call.ints(1, "shape") or []
        frozen = bool(call.attribute("allowzero", 0))

        def rewrite(kept: KeptChannels) -> Edit:
            entries = _target_entries(kept, channel_ids, output, before, after, target, frozen)
            if call.has(1):
                return Edit(inputs={1: ShapeEdit(entries, {k: after[k] for k in entries if target[k]})})
            return Edit({"shape": [entries.get(k, value) for k, value in enumerate(target)]})

    return Effect((output,), rewrite=rewrite, moves=(lambda given: reshape(given, before, after),))


def _target_entries(
    kept: KeptChannels,
    channel_ids: ChannelIds,
    output: ChannelIds,
    before: Shape,
    after: Shape,
    target: list[int],
    frozen: bool,
) -> dict[int, int]:
    """Entries of a Reshape target that must name the kept sizes; -1 and 0 follow by themselves where they can."""
    found = {}
    for axis, value in enumerate(target):
        size = kept.count(output, axis, after[axis])
        if value == -1 or (value == 0 and not frozen and kept.count(channel_ids, axis, before[axis]) == size):
            continue
        if size != after[axis] or value == 0:
            found[axis] = size
    return found


def transpose(call: Call) -> Effect:
    """Axes in another order.

    Flow: channels move with their data.
    Ties: none.
    Pins: nothing.
    Limits: none.
    Specification: ONNX Transpose-21.
    """
    rank = len(call.shape(0))
    order = [int(k) for k in call.attribute("perm", list(range(rank))[::-1])]
    return Effect((call.channel_ids(0).transpose(order),), moves=(lambda given: given.transpose(order),))


def expand(call: Call) -> Effect:
    """Broadcast to a target shape.

    Flow: channels pass through.
    Ties: none.
    Pins: nothing.
    Limits: none; the target names the kept channels.
    Specification: ONNX Expand-13.
    """
    shape = call.output_shape()
    channel_ids = call.channel_ids(0)
    output = channel_ids.reshape((1,) * (len(shape) - channel_ids.ndim) + channel_ids.shape)
    target = (call.ints(1) or []) if call.is_constant(1) else list(shape[len(shape) - math.prod(call.shape(1)) :])
    lead = len(shape) - len(target)
    named = [k for k in varied(output) if k >= lead and target[k - lead] != 1]

    def rewrite(kept: KeptChannels) -> Edit:
        sizes = {k - lead: kept.count(output, k, shape[k]) for k in named}
        return Edit(inputs={1: ShapeEdit(sizes, {k: shape[k + lead] for k in sizes})})

    return Effect((output,), rewrite=rewrite)


def tile(call: Call) -> Effect:
    """Repeat along axes.

    Flow: each copy holds the same channels.
    Ties: none.
    Pins: nothing.
    Limits: the repeats are constant.
    Specification: ONNX Tile-13.
    """
    repeats = call.ints(1) or []
    channel_ids = call.channel_ids(0)
    times = [repeat if size > 1 else 1 for repeat, size in zip(repeats, channel_ids.shape, strict=True)]
    return Effect((np.tile(channel_ids, times),))


def depth_to_space(call: Call) -> Effect:
    """Channels to pixels (DCR and CRD).

    Flow: the r² channels of one output channel lead to it.
    Ties: those r² channels.
    Pins: nothing.
    Limits: none.
    Specification: ONNX DepthToSpace-13.
    """
    block = int(call.attribute("blocksize"))
    vector, ties = call.slices(0, 1)
    crd = call.text("mode", "DCR") == "CRD"
    members = vector.reshape(-1, block * block) if crd else vector.reshape(block * block, -1).T
    return _folded(call, members, ties)


def col2im(call: Call) -> Effect:
    """Blocks of pixels laid side by side or over each other, and added up there (torch's fold).

    Flow: the channels that hold the pixels of one output channel's blocks lead to it.
    Ties: those channels, as many as a block has pixels.
    Pins: what the sizes of image and block are computed from.
    Limits: none; the number of output channels follows from the input.
    Specification: ONNX Col2Im-18.
    """
    vector, ties = call.slices(0, 1)
    return steered(call, _folded(call, vector.reshape(call.output_shape()[1], -1), ties), "takes a size from it")


def _folded(call: Call, members: ChannelIds, ties: list[TiePairs]) -> Effect:
    """Output channels that are each made of several input channels [C, n]."""
    minted = call.mint(members.shape[0])
    spread = np.broadcast_to(minted[:, None], members.shape)
    pair = (members.reshape(-1), spread.reshape(-1))
    return Effect((on_axis(minted, 1, len(call.output_shape())),), (*ties, pair), fixed_edges=(FixedEdges(*pair),))


def space_to_depth(call: Call) -> Effect:
    """Pixels to channels.

    Flow: each input channel appears r² times.
    Ties: none.
    Pins: nothing.
    Limits: none.
    Specification: ONNX SpaceToDepth-13.
    """
    block = int(call.attribute("blocksize"))
    channel_ids, ties = kept_together(call, 0, 1)
    vector = channel_ids.reshape(-1)
    output = on_axis(np.tile(vector, block * block), 1, channel_ids.ndim) if vector.size > 1 else channel_ids
    return Effect((output,), tuple(ties))


def shape_of(call: Call) -> Effect:
    """The sizes of a tensor, which keep answering as before.

    Flow: none: every piece of shape arithmetic computes what it always did; only where a size is used (Reshape, Expand,
        Slice …) is it replaced.
    Ties: none.
    Pins: all channels of a tensor whose elements are counted.
    Limits: none.
    Specification: ONNX Shape-21, Size-21.
    """
    channel_ids, shape = call.channel_ids(0), call.shape(0)
    if call.op == "Size":
        if varied(channel_ids):
            raise Unsupported("it counts the elements of all channels", advice.EXPORT)
        return Effect((uniform(0, 0),))
    start, stop, _ = slice(call.attribute("start", 0), call.attribute("end")).indices(len(shape))
    entries = {a - start: shape[a] for a in varied(channel_ids) if start <= a < stop}

    def rewrite(kept: KeptChannels) -> Edit:
        return Edit(
            outputs={0: ShapeEdit(entries, {k: kept.count(channel_ids, k + start, n) for k, n in entries.items()})}
        )

    return Effect((uniform(0, 1),), rewrite=rewrite if entries else None)


def crop(call: Call) -> Effect:
    """A border of pixels is cut off.

    Flow: channels pass through.
    Ties: none.
    Pins: nothing.
    Limits: the channels lie on axis 1.
    Specification: ONNX Crop-1 (experimental).
    """
    channel_ids = call.channel_ids(0)
    if set(varied(channel_ids)) - {1}:
        raise Unsupported("its channels lie on a cropped axis", advice.EXPORT)
    return Effect((channel_ids,))


RULES = {
    ("", "Reshape"): reshaped,
    ("", "Flatten"): reshaped,
    ("", "Squeeze"): reshaped,
    ("", "Unsqueeze"): reshaped,
    ("", "Transpose"): transpose,
    ("", "Expand"): expand,
    ("", "Tile"): tile,
    ("", "DepthToSpace"): depth_to_space,
    ("", "SpaceToDepth"): space_to_depth,
    ("", "Col2Im"): col2im,
    ("", "Shape"): shape_of,
    ("", "Size"): shape_of,
    ("", "Crop"): crop,
}

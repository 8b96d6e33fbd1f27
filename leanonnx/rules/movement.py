"""Movements of data: operators that rearrange data act on the channel ids in the same way.

Where the kept positions are a product of index sets, shape constants are rewritten; where they are not (a channel
shuffle), surgery replaces the run of movements by one Gather, for which each rule provides ``moves``.
"""

from __future__ import annotations

import math

import numpy as np

from leanonnx.numeric.channel_ids import ChannelIds, Shape, on_axis, reshape_ids, uniform_ids, varied_axes
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
    channels_on_axis,
    pin_side_inputs,
)


def reshape(call: Call) -> Effect:
    """Change the shape of a tensor, in row-major order.

    Flow: channels move with their data.
    Ties: none; channels that spread over several axes are tied unless something else keeps them a product of index
        sets (a Gather replaces a channel shuffle).
    Pins: nothing.
    Limits: channel positions are those of the observed shapes.  The target shape is rewritten to the number of kept
        channels; of a computed one single entries are overwritten.
    Specification: ONNX Reshape-21, Flatten-21, Squeeze-21, Unsqueeze-21.
    """
    before, after = call.shape(0), call.output_shape()
    channel_ids = call.channel_ids(0)
    output = reshape_ids(channel_ids, before, after)
    rewrite = None
    if call.op == "Reshape":
        target = call.ints(1, "shape") or []
        frozen = bool(call.attribute("allowzero", 0))

        def rewrite(kept: KeptChannels) -> Edit:
            entries = _target_entries(kept, channel_ids, output, before, after, target, frozen)
            if call.has_input(1):
                return Edit(inputs={1: ShapeEdit(entries, {k: after[k] for k in entries if target[k]})})
            return Edit({"shape": [entries.get(k, value) for k, value in enumerate(target)]})

    return Effect((output,), rewrite=rewrite, moves=(lambda channel_ids: reshape_ids(channel_ids, before, after),))


def _target_entries(
    kept: KeptChannels,
    channel_ids: ChannelIds,
    output: ChannelIds,
    before: Shape,
    after: Shape,
    target: list[int],
    frozen: bool,
) -> dict[int, int]:
    """Entries of a Reshape target that must change; -1 and 0 stay where they already give the kept size."""
    entries = {}
    for axis, value in enumerate(target):
        size = kept.axis_size(output, axis, after[axis])
        if value == -1 or (value == 0 and not frozen and kept.axis_size(channel_ids, axis, before[axis]) == size):
            continue
        if size != after[axis] or value == 0:
            entries[axis] = size
    return entries


def transpose(call: Call) -> Effect:
    """Permute the axes.

    Flow: channels move with their data.
    Ties: none.
    Pins: nothing.
    Limits: none.
    Specification: ONNX Transpose-21.
    """
    rank = len(call.shape(0))
    order = [int(k) for k in call.attribute("perm", list(range(rank))[::-1])]
    return Effect((call.channel_ids(0).transpose(order),), moves=(lambda channel_ids: channel_ids.transpose(order),))


def expand(call: Call) -> Effect:
    """Broadcast to a target shape.

    Flow: channels pass through.
    Ties: none.
    Pins: what a target is computed from.
    Limits: none; in the target shape, sizes of channel axes become 1, which leaves them as they come.
    Specification: ONNX Expand-13.
    """
    shape = call.output_shape()
    channel_ids = call.channel_ids(0)
    output = channel_ids.reshape((1,) * (len(shape) - channel_ids.ndim) + channel_ids.shape)
    lead = len(shape) - math.prod(call.shape(1))
    named = [k - lead for k in varied_axes(output) if k >= lead]

    def rewrite(kept: KeptChannels) -> Edit:
        return Edit(inputs={1: ShapeEdit(dict.fromkeys(named, 1))})

    return Effect((output,), rewrite=rewrite if named else None)


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
    """Rearrange channels into pixels (DCR and CRD).

    Flow: r² input channels lead to each output channel.
    Ties: those r² channels.
    Pins: nothing.
    Limits: none.
    Specification: ONNX DepthToSpace-13.
    """
    block = int(call.attribute("blocksize"))
    vector, ties = call.channel_ids_along(0, 1)
    crd = call.string_attribute("mode", "DCR") == "CRD"
    members = vector.reshape(-1, block * block) if crd else vector.reshape(block * block, -1).T
    return _combine_channels(call, members, ties)


def col2im(call: Call) -> Effect:
    """Sum sliding blocks of pixels into an image (torch's fold).

    Flow: the input channels that hold the block pixels of one output channel lead to it.
    Ties: those channels, as many as a block has pixels.
    Pins: computed sizes of image and block.
    Limits: none; the number of output channels follows from the input.
    Specification: ONNX Col2Im-18.
    """
    vector, ties = call.channel_ids_along(0, 1)
    return pin_side_inputs(
        call, _combine_channels(call, vector.reshape(call.output_shape()[1], -1), ties), "takes a size from it"
    )


def _combine_channels(call: Call, members: ChannelIds, ties: list[TiePairs]) -> Effect:
    """Effect of an operator that combines n input channels into each output channel; ``members`` is [C, n]."""
    minted = call.mint(members.shape[0])
    spread = np.broadcast_to(minted[:, None], members.shape)
    pair = (members.ravel(), spread.ravel())
    return Effect((on_axis(minted, 1, len(call.output_shape())),), (*ties, pair), fixed_edges=(FixedEdges(*pair),))


def space_to_depth(call: Call) -> Effect:
    """Rearrange pixels into channels.

    Flow: each input channel appears r² times.
    Ties: none.
    Pins: nothing.
    Limits: none.
    Specification: ONNX SpaceToDepth-13.
    """
    block = int(call.attribute("blocksize"))
    channel_ids, ties = channels_on_axis(call, 0, 1)
    vector = channel_ids.ravel()
    output = on_axis(np.tile(vector, block * block), 1, channel_ids.ndim) if vector.size > 1 else channel_ids
    return Effect((output,), tuple(ties))


def shape_of(call: Call) -> Effect:
    """Shape or number of elements of a tensor, with the original number of channels.

    Flow: none: shape arithmetic computes the same values as in the original; a size is replaced only where it is used
        (Reshape, Expand, Slice …).
    Ties: none.
    Pins: all channels of a tensor whose elements are counted.
    Limits: none.
    Specification: ONNX Shape-21, Size-21.
    """
    channel_ids, shape = call.channel_ids(0), call.shape(0)
    if call.op == "Size":
        if varied_axes(channel_ids):
            raise Unsupported("it counts the elements of all channels", advice.EXPORT_AGAIN)
        return Effect((uniform_ids(0, 0),))
    start, stop, _ = slice(call.attribute("start", 0), call.attribute("end")).indices(len(shape))
    entries = {a - start: shape[a] for a in varied_axes(channel_ids) if start <= a < stop}

    def rewrite(kept: KeptChannels) -> Edit:
        return Edit(
            outputs={0: ShapeEdit(entries, {k: kept.axis_size(channel_ids, k + start, n) for k, n in entries.items()})}
        )

    return Effect((uniform_ids(0, 1),), rewrite=rewrite if entries else None)


def crop(call: Call) -> Effect:
    """Crop a border of pixels.

    Flow: channels pass through.
    Ties: none.
    Pins: nothing.
    Limits: the channels lie on axis 1.
    Specification: ONNX Crop-1 (experimental).
    """
    channel_ids = call.channel_ids(0)
    if set(varied_axes(channel_ids)) - {1}:
        raise Unsupported("its channels lie on a cropped axis", advice.EXPORT_AGAIN)
    return Effect((channel_ids,))


MOVEMENT_RULES = {
    ("", "Reshape"): reshape,
    ("", "Flatten"): reshape,
    ("", "Squeeze"): reshape,
    ("", "Unsqueeze"): reshape,
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

"""Concat and Split: operators that put tensors side by side, or take them apart."""

from __future__ import annotations

import numpy as np

from leanonnx.numeric.channel_ids import ChannelIds, compact, on_axis, uniform, varied
from leanonnx.rules import advice
from leanonnx.rules.call import (
    Call,
    Edit,
    Effect,
    FixedEdges,
    KeptChannels,
    Move,
    Select,
    Slice,
    TiePairs,
    Unsupported,
    broadcast_factor,
    mint_for_rows,
)


def concat(call: Call) -> Effect:
    """Put tensors side by side along one axis.

    Flow: along the channel axis each position of the output is a reader of its operand's channel: it cannot outlive
        the channel, but a consumer can do without it; parts of a single channel stay one.
    Ties: along another axis: the operands' channels.
    Pins: nothing.
    Limits: channels do not lie on the concatenated axis and on another at once.
    Specification: ONNX Concat-13.
    """
    shape = call.output_shape()
    axis = int(call.attribute("axis", 1)) % len(shape)
    slots = [k for k in range(len(call.inputs)) if call.has(k)]
    computed = [k for k in slots if not call.is_constant(k)]
    axes = {a for k in computed for a in varied(call.channel_ids(k))}
    whole = {int(channel_id) for k in computed for channel_id in call.channel_ids(k).flat} if not axes else set()
    if len(whole) == 1:
        return Effect((uniform(whole.pop(), len(shape)),))
    if axes - {axis} and axis in axes:
        raise Unsupported("its operands hold channels on the concatenated axis and on another", advice.EXPORT)
    return _concat_other(call, slots, computed, axis) if axes - {axis} else _concat_channels(call, slots, axis)


def _concat_channels(call: Call, slots: list[int], axis: int) -> Effect:
    rank = len(call.output_shape())
    parts: list[ChannelIds] = []
    implied: list[TiePairs] = []
    links: list[FixedEdges] = []
    slices: list[Slice] = []
    starts: list[ChannelIds] = []
    operands: dict[int, tuple[ChannelIds, ChannelIds]] = {}
    for slot in slots:
        size = call.shape(slot)[axis]
        if call.is_constant(slot):
            readers = call.mint(size)
            operands[slot] = (readers, readers)
            slices.append(Slice(slot, (on_axis(readers, axis, rank),)))
            starts += [readers] if np.any(call.array(slot)) else []
        else:
            vector, _ = call.slices(slot, axis)
            unique, inverse = np.unique(vector, return_inverse=True)
            minted = call.mint(unique.size)
            readers = minted[inverse]
            implied.append((unique, minted))
            links.append(FixedEdges(unique, minted))
            operands[slot] = (vector, readers)
        parts.append(readers)

    def rewrite(kept: KeptChannels) -> Edit:
        found = {slot: _pick(kept, axis, *pair) for slot, pair in operands.items()}
        return Edit(inputs={slot: pick for slot, pick in found.items() if pick is not None})

    return Effect(
        (on_axis(np.concatenate(parts), axis, rank),),
        concat_slots=tuple(implied),
        fixed_edges=tuple(links),
        slices=tuple(slices),
        starts=tuple(starts),
        rewrite=rewrite,
    )


def _pick(kept: KeptChannels, axis: int, vector: ChannelIds, readers: ChannelIds) -> Select | None:
    """Which of an operand's surviving positions are read; None where all are."""
    read = kept.mask(readers)[kept.mask(vector)]
    return None if read.size and read.all() else Select(axis, np.flatnonzero(read))


def _concat_other(call: Call, slots: list[int], computed: list[int], axis: int) -> Effect:
    own = {k: call.channel_ids(k) for k in computed}
    joint = np.broadcast_shapes(*[channel_ids.shape for channel_ids in own.values()])
    spread = {k: np.broadcast_to(channel_ids, joint) for k, channel_ids in own.items()}
    first = spread[computed[0]]
    if all(np.array_equal(first, other) for other in spread.values()):
        out, ties, links = first, [], []
    else:
        out = mint_for_rows(
            call, np.stack([channel_ids.reshape(-1) for channel_ids in spread.values()], axis=1)
        ).reshape(joint)
        ties = [(channel_ids.reshape(-1), out.reshape(-1)) for channel_ids in spread.values()]
        links = [FixedEdges(*pair) for pair in ties]
    slices = []
    for slot in set(slots) - set(computed):
        factor, more = broadcast_factor(out, call.shape(slot))
        ties += more
        slices += [Slice(slot, (factor,))] if varied(factor) else []
    return Effect((out,), tuple(ties), fixed_edges=tuple(links), slices=tuple(slices))


def qlinear_concat(call: Call) -> Effect:
    """Put integer tensors side by side: y_scale, y_zero, then tensor, scale and zero point of each operand.

    Flow: along the channel axis channels move with their data.
    Ties: along another axis: the operands' channels.
    Pins: nothing.
    Limits: no operand is a constant; channels do not lie on the concatenated axis and on another at once.
    Specification: com.microsoft.QLinearConcat-1.
    """
    axis = int(call.attribute("axis", 1)) % len(call.output_shape())
    slots = list(range(2, len(call.inputs), 3))
    found = [call.channel_ids(slot) for slot in slots]
    axes = {a for channel_ids in found for a in varied(channel_ids)}
    if axes - {axis} and axis in axes:
        raise Unsupported("its operands hold channels on the concatenated axis and on another", advice.EXPORT)
    if axes - {axis}:
        return _concat_other(call, slots, slots, axis)
    vectors = [call.slices(slot, axis)[0] for slot in slots]
    return Effect((on_axis(np.concatenate(vectors), axis, len(call.output_shape())),))


def split(call: Call) -> Effect:
    """Cut into parts along one axis.

    Flow: channels go with their part.
    Ties: none.
    Pins: nothing.
    Limits: none; the sizes follow from the channels kept in each part.
    Specification: ONNX Split-18.
    """
    channel_ids = call.channel_ids(0)
    axis = int(call.attribute("axis", 0)) % channel_ids.ndim
    sizes = [shape[axis] if shape else 0 for shape in call.output_shapes]
    ends = np.cumsum(sizes)
    moves = tuple(window(axis, int(end) - size, int(end)) for size, end in zip(sizes, ends, strict=True))
    outputs = tuple(compact(move(channel_ids)) for move in moves)
    if axis not in varied(channel_ids):
        return Effect(outputs, moves=moves)

    def rewrite(kept: KeptChannels) -> Edit:
        kept_sizes = [kept.count(out, axis, size) for out, size in zip(outputs, sizes, strict=True)]
        if call.opset < 13:
            return Edit({"split": kept_sizes})
        return Edit({"num_outputs": None}, inputs={1: np.asarray(kept_sizes, np.int64)})

    return Effect(outputs, rewrite=rewrite, moves=moves)


def window(axis: int, start: int, end: int) -> Move:
    """Labels of the positions start to end of one axis."""

    def move(given: ChannelIds) -> ChannelIds:
        index = (slice(None),) * axis + (slice(start, end),)
        return given[index] if given.shape[axis] > 1 else given

    return move


RULES = {("", "Concat"): concat, ("", "Split"): split, ("com.microsoft", "QLinearConcat"): qlinear_concat}

"""Concat and Split: operators that concatenate tensors or split them."""

from __future__ import annotations

import numpy as np

from leanonnx.numeric.channel_ids import ChannelIds, compact_ids, on_axis, uniform_ids, varied_axes
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
    mint_for_rows,
)
from leanonnx.rules.joins import broadcast_factor


def concat(call: Call) -> Effect:
    """Concatenate tensors along one axis.

    Flow: on the channel axis each position of the output is a slot of its operand's channel: it is removed with the
        channel, or alone.  Operands that all hold the same single channel keep it.
    Ties: on another axis: the operands' channels.
    Pins: nothing.
    Limits: channels lie either on the concatenated axis or on others, not both.
    Specification: ONNX Concat-13.
    """
    shape = call.output_shape()
    axis = int(call.attribute("axis")) % len(shape)
    slots = [k for k in range(len(call.inputs)) if call.has_input(k)]
    computed = [k for k in slots if not call.is_constant(k)]
    axes = {a for k in computed for a in varied_axes(call.channel_ids(k))}
    whole = {int(channel_id) for k in computed for channel_id in call.channel_ids(k).flat} if not axes else set()
    if len(whole) == 1:
        return Effect((uniform_ids(whole.pop(), len(shape)),))
    if axes - {axis} and axis in axes:
        raise Unsupported("its operands hold channels on the concatenated axis and on another", advice.EXPORT_AGAIN)
    return _concat_other(call, slots, computed, axis) if axes - {axis} else _concat_channels(call, slots, axis)


def _concat_channels(call: Call, slots: list[int], axis: int) -> Effect:
    rank = len(call.output_shape())
    parts: list[ChannelIds] = []
    concat_slots: list[TiePairs] = []
    fixed_edges: list[FixedEdges] = []
    slices: list[Slice] = []
    starts: list[ChannelIds] = []
    operands: dict[int, tuple[ChannelIds, ChannelIds]] = {}
    for slot in slots:
        size = call.shape(slot)[axis]
        if call.is_constant(slot):
            slot_ids = call.mint(size)
            operands[slot] = (slot_ids, slot_ids)
            slices.append(Slice(slot, (on_axis(slot_ids, axis, rank),)))
            starts += [slot_ids] if np.any(call.array(slot)) else []
        else:
            vector, _ = call.channel_ids_along(slot, axis)
            unique, inverse = np.unique(vector, return_inverse=True)
            minted = call.mint(unique.size)
            slot_ids = minted[inverse]
            concat_slots.append((unique, minted))
            fixed_edges.append(FixedEdges(unique, minted))
            operands[slot] = (vector, slot_ids)
        parts.append(slot_ids)

    def rewrite(kept: KeptChannels) -> Edit:
        selections = {slot: _select(kept, axis, *pair) for slot, pair in operands.items()}
        return Edit(inputs={slot: select for slot, select in selections.items() if select is not None})

    return Effect(
        (on_axis(np.concatenate(parts), axis, rank),),
        concat_slots=tuple(concat_slots),
        fixed_edges=tuple(fixed_edges),
        slices=tuple(slices),
        starts=tuple(starts),
        rewrite=rewrite,
    )


def _select(kept: KeptChannels, axis: int, vector: ChannelIds, slot_ids: ChannelIds) -> Select | None:
    """Kept positions of an operand that the Concat still reads; None if it reads all of them."""
    mask = kept.mask(slot_ids)[kept.mask(vector)]
    return None if mask.size and mask.all() else Select(axis, np.flatnonzero(mask))


def _concat_other(call: Call, slots: list[int], computed: list[int], axis: int) -> Effect:
    own = {k: call.channel_ids(k) for k in computed}
    joint = np.broadcast_shapes(*[channel_ids.shape for channel_ids in own.values()])
    spread = {k: np.broadcast_to(channel_ids, joint) for k, channel_ids in own.items()}
    first = spread[computed[0]]
    if all(np.array_equal(first, other) for other in spread.values()):
        out, ties, fixed_edges = first, [], []
    else:
        out = mint_for_rows(call, np.stack([channel_ids.ravel() for channel_ids in spread.values()], axis=1)).reshape(
            joint
        )
        ties = [(channel_ids.ravel(), out.ravel()) for channel_ids in spread.values()]
        fixed_edges = [FixedEdges(*pair) for pair in ties]
    slices = []
    for slot in set(slots) - set(computed):
        factor, more = broadcast_factor(out, call.shape(slot))
        ties += more
        slices += [Slice(slot, (factor,))] if varied_axes(factor) else []
    return Effect((out,), tuple(ties), fixed_edges=tuple(fixed_edges), slices=tuple(slices))


def qlinear_concat(call: Call) -> Effect:
    """Concatenate quantised tensors: y_scale, y_zero, then tensor, scale and zero point of each operand.

    Flow: on the channel axis channels move with their data.
    Ties: on another axis: the operands' channels.
    Pins: nothing.
    Limits: no operand is a constant; channels lie either on the concatenated axis or on others, not both.
    Specification: com.microsoft.QLinearConcat-1.
    """
    axis = int(call.attribute("axis")) % len(call.output_shape())
    slots = list(range(2, len(call.inputs), 3))
    operands = [call.channel_ids(slot) for slot in slots]
    axes = {a for channel_ids in operands for a in varied_axes(channel_ids)}
    if axes - {axis} and axis in axes:
        raise Unsupported("its operands hold channels on the concatenated axis and on another", advice.EXPORT_AGAIN)
    if axes - {axis}:
        return _concat_other(call, slots, slots, axis)
    vectors = [call.channel_ids_along(slot, axis)[0] for slot in slots]
    return Effect((on_axis(np.concatenate(vectors), axis, len(call.output_shape())),))


def split(call: Call) -> Effect:
    """Split into parts along one axis.

    Flow: channels move with their part.
    Ties: none.
    Pins: what sizes are computed from.
    Limits: none; the sizes are those of the kept channels in each part.
    Specification: ONNX Split-18.
    """
    channel_ids = call.channel_ids(0)
    axis = int(call.attribute("axis", 0)) % channel_ids.ndim
    sizes = [shape[axis] if shape else 0 for shape in call.output_shapes]
    ends = np.cumsum(sizes)
    moves = tuple(window_move(axis, int(end) - size, int(end)) for size, end in zip(sizes, ends, strict=True))
    outputs = tuple(compact_ids(move(channel_ids)) for move in moves)
    if axis not in varied_axes(channel_ids):
        return Effect(outputs, moves=moves)

    def rewrite(kept: KeptChannels) -> Edit:
        kept_sizes = [kept.axis_size(out, axis, size) for out, size in zip(outputs, sizes, strict=True)]
        if call.opset < 13:
            return Edit({"split": kept_sizes})
        return Edit({"num_outputs": None}, inputs={1: np.asarray(kept_sizes, np.int64)})

    return Effect(outputs, rewrite=rewrite, moves=moves)


def window_move(axis: int, start: int, end: int) -> Move:
    """Movement that takes the positions ``start`` to ``end`` of one axis."""

    def move(channel_ids: ChannelIds) -> ChannelIds:
        index = (slice(None),) * axis + (slice(start, end),)
        return channel_ids[index] if channel_ids.shape[axis] > 1 else channel_ids

    return move


ASSEMBLY_RULES = {("", "Concat"): concat, ("", "Split"): split, ("com.microsoft", "QLinearConcat"): qlinear_concat}

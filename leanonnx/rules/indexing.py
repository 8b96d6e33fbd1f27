"""Gather, Scatter and related operators: operators that select positions by index.

Indices along an axis without channels do not change; along the channel axis, constant indices are renumbered.
"""

from __future__ import annotations

import numpy as np

from leanonnx.graph.formats import is_float
from leanonnx.numeric.arrays import Array
from leanonnx.numeric.channel_ids import ChannelIds, Shape, any_along, compact_ids, on_axis, varied_axes
from leanonnx.rules import advice
from leanonnx.rules.call import (
    Call,
    Edit,
    Effect,
    FixedEdges,
    KeptChannels,
    Move,
    Pin,
    Slice,
    TiePairs,
    Unsupported,
    pin_side_inputs,
)
from leanonnx.rules.joins import join_operands

TABLE_RANK = 2


def gather(call: Call) -> Effect:
    """Gather positions along one axis.

    Flow: channels pass through, in the order of the indices; the columns of a constant table (an embedding) are
        channels without a producer.
    Ties: none.
    Pins: channels selected by computed indices; computed indices.
    Limits: on the channel axis the indices are constants; they are renumbered.  A table has rank 2 and is indexed by
        rows.
    Specification: ONNX Gather-13.
    """
    if call.is_constant(0):
        return _lookup(call)
    channel_ids, shape = call.channel_ids(0), call.shape(0)
    axis = int(call.attribute("axis", 0)) % channel_ids.ndim
    if axis not in varied_axes(channel_ids):
        if not call.is_constant(1) and varied_axes(call.channel_ids(1)):
            raise Unsupported("its indices hold channels", advice.MAKE_CONSTANT)
        return Effect((_replace_axis(channel_ids, axis, len(call.shape(1))),), moves=_gather_moves(call, axis))
    indices = call.array(1).astype(np.int64) % shape[axis]
    output = compact_ids(np.take(channel_ids, indices, axis))

    def rewrite(kept: KeptChannels) -> Edit:
        alive = any_along(kept.mask(channel_ids), axis)
        new = (np.cumsum(alive) - 1)[_kept_indices(indices, alive)]
        return Edit(inputs={1: np.asarray(new, call.array(1).dtype)})

    return Effect((output,), rewrite=rewrite, moves=_gather_moves(call, axis))


def _lookup(call: Call) -> Effect:
    """Effect of a lookup of rows in a constant table ``[V, C]``, whose columns are channels."""
    table = call.shape(0)
    if len(table) != TABLE_RANK or int(call.attribute("axis", 0)) % TABLE_RANK or not is_float(call.array(0)):
        raise Unsupported("it looks up parts of a constant", advice.MAKE_CONSTANT)
    if varied_axes(call.channel_ids(1)):
        raise Unsupported("its indices hold channels", advice.MAKE_CONSTANT)
    columns = call.mint(table[1])
    source = call.channel_ids(1).ravel()[:1]
    output = on_axis(columns, len(call.output_shape()) - 1, len(call.output_shape()))
    edges = FixedEdges(np.repeat(source, columns.size), columns)
    return Effect(
        (output,), fixed_edges=(edges,), slices=(Slice(0, (on_axis(columns, 1, TABLE_RANK),)),), starts=(columns,)
    )


def _kept_indices(indices: Array, alive: Array) -> Array:
    """Rows and columns of ``indices`` that hold any kept channel."""
    mask = alive[indices]
    for axis in range(indices.ndim):
        indices = np.take(indices, np.flatnonzero(any_along(mask, axis)), axis)
    return indices


def _replace_axis(channel_ids: ChannelIds, axis: int, count: int) -> ChannelIds:
    """Replace an axis of size 1 by ``count`` axes of size 1."""
    return channel_ids.reshape(channel_ids.shape[:axis] + (1,) * count + channel_ids.shape[axis + 1 :])


def _gather_moves(call: Call, axis: int) -> tuple[Move, ...]:
    """Movement of a Gather with constant indices; () if they are computed."""
    if not call.is_constant(1):
        return ()
    indices, size = call.array(1).astype(np.int64), call.shape(0)[axis]

    def move(channel_ids: ChannelIds) -> ChannelIds:
        if channel_ids.shape[axis] == 1:
            return _replace_axis(channel_ids, axis, indices.ndim)
        return np.take(channel_ids, indices % size, axis)

    return (move,)


def gather_elements(call: Call) -> Effect:
    """Gather single elements along one axis, each by its own index.

    Flow: channels on the other axes pass through.
    Ties: channels of data and indices at the same position.
    Pins: nothing.
    Limits: the axis holds no channels; axes that hold channels are not cropped.
    Specification: ONNX GatherElements-13.
    """
    return _elementwise(call, (0, 1))


def scatter_elements(call: Call) -> Effect:
    """Write single elements along one axis, each to its own index.

    Flow: channels of data and updates lead to those of the output.
    Ties: channels of data, indices and updates at the same position.
    Pins: nothing.
    Limits: the axis holds no channels; indices and updates have the data's size on axes that hold channels.
    Specification: ONNX ScatterElements-18, Scatter-11.
    """
    return _elementwise(call, (0, 1, 2))


def _elementwise(call: Call, slots: tuple[int, ...]) -> Effect:
    """Effect of data, indices and updates joined position by position on all axes but the indexed one."""
    sizes = [call.shape(k) for k in slots]
    axis = int(call.attribute("axis", 0)) % len(sizes[0])
    cropped = {a for a in range(len(sizes[0])) if len({size[a] for size in sizes}) > 1}
    for slot in slots:
        if not call.is_constant(slot):
            _require_free(call, slot, {axis})
            if cropped & set(varied_axes(call.channel_ids(slot))):
                raise Unsupported("it leaves out some of the channels", advice.EXPORT_AGAIN)
    left = cropped | {axis}
    return join_operands(call, slots, {k: _collapse(call.shape(k), left) for k in slots})


def _collapse(shape: Shape, axes: set[int]) -> Shape:
    """Shape with size 1 on some axes."""
    return tuple(1 if axis in axes else size for axis, size in enumerate(shape))


def gather_nd(call: Call) -> Effect:
    """Gather slices by tuples of indices.

    Flow: channels on axes that the tuples do not index pass through.
    Ties: none.
    Pins: computed indices.
    Limits: indexed axes and batch axes hold no channels.
    Specification: ONNX GatherND-13.
    """
    channel_ids, where = call.channel_ids(0), call.shape(1)
    reached = where[-1] + int(call.attribute("batch_dims", 0))
    _require_free(call, 0, set(range(reached)))
    if not call.is_constant(1):
        _require_free(call, 1, set(range(len(where))))
    return Effect((channel_ids.reshape((1,) * (len(where) - 1) + channel_ids.shape[reached:]),))


def scatter_nd(call: Call) -> Effect:
    """Write slices to positions given by tuples of indices (assignment to a part of a tensor).

    Flow: channels of data and updates lead to those of the output.
    Ties: channels that end up in the same slice of the output.
    Pins: computed indices; one of the channels that constants are written to.
    Limits: tuples that index the channel axis are constants with one channel per slice of the updates; they are
        renumbered.
    Specification: ONNX ScatterND-18.
    """
    reached, lead = call.shape(1)[-1], len(call.shape(1)) - 1
    data = () if call.is_constant(0) else varied_axes(call.channel_ids(0))
    updates = () if call.is_constant(2) else varied_axes(call.channel_ids(2))
    if min(data, default=reached) >= reached and min(updates, default=lead) >= lead:
        if not call.is_constant(1):
            _require_free(call, 1, set(range(lead + 1)))
        tail = call.shape(2)[lead:]
        return join_operands(call, (0, 2), {0: call.shape(0), 2: (1,) * reached + tail}, {2: lead})
    if len(data) > 1 or len(updates) > 1 or min(updates, default=0) >= lead:
        raise Unsupported("its data and updates hold channels on several axes", advice.EXPORT_AGAIN)
    return _scatter_channels(call, data, updates)


def _scatter_channels(call: Call, data: tuple[int, ...], updates: tuple[int, ...]) -> Effect:
    """Effect of a ScatterND whose tuples index the channel axis."""
    indices, shape = call.array(1).astype(np.int64), call.output_shape()
    axis = data[0] if data else _indexed_axis(indices, updates[0])
    channels = indices[..., axis] % shape[axis]
    changing = [a for a in range(channels.ndim) if _varies(channels, a)]
    changing = changing or [a for a in range(channels.ndim) if channels.shape[a] == 1][:1]
    if len(changing) != 1 or set(updates) - set(changing):
        raise Unsupported("it does not write each channel as one slice", advice.EXPORT_AGAIN)
    at = changing[0]
    named = np.moveaxis(channels, at, 0).reshape(channels.shape[at], -1)[:, 0]
    minted = call.mint(shape[axis])
    ties: list[TiePairs] = []
    fixed_edges: list[FixedEdges] = []
    slices: list[Slice] = []
    starts: list[ChannelIds] = []
    for slot, place, destination in ((0, axis, minted), (2, at, minted[named])):
        if call.is_constant(slot):
            slices.append(Slice(slot, (on_axis(destination, place, len(call.shape(slot))),)))
            starts += [destination] if np.any(call.array(slot)) else []
            continue
        vector, more = call.channel_ids_along(slot, place)
        ties += [*more, (vector, destination)]
        fixed_edges.append(FixedEdges(vector, destination))

    def rewrite(kept: KeptChannels) -> Edit:
        alive = kept.mask(minted)
        new = indices.copy()
        new[..., axis] = (np.cumsum(alive) - 1)[channels]
        return Edit(inputs={1: np.compress(alive[named], new, axis=at)})

    output = on_axis(minted, axis, len(shape))
    (name,) = call.outputs
    last = (
        Pin(
            channel_ids=minted[named[:1]],
            tensor=name,
            reason=f"{call.title} must write at least one channel",
        ),
    )
    return Effect(
        (output,),
        tuple(ties),
        fixed_edges=tuple(fixed_edges),
        slices=tuple(slices),
        pins=last if call.is_constant(2) else (),
        starts=tuple(starts),
        rewrite=rewrite,
    )


def _indexed_axis(indices: Array, axis: int) -> int:
    """Axis of the output that the tuples index where the channels of the updates vary."""
    moving = [k for k in range(indices.shape[-1]) if _varies(indices[..., k], axis)]
    if len(moving) != 1:
        raise Unsupported("the channels of its updates do not lie on a single axis of the output", advice.EXPORT_AGAIN)
    return moving[0]


def _varies(indices: Array, axis: int) -> bool:
    return not np.array_equal(indices, np.broadcast_to(indices.take([0], axis), indices.shape))


def top_k(call: Call) -> Effect:
    """Largest or smallest elements along one axis, with their indices.

    Flow: channels on the other axes pass through.
    Ties: none.
    Pins: a computed number of elements.
    Limits: the axis holds no channels.
    Specification: ONNX TopK-24.
    """
    channel_ids = call.channel_ids(0)
    _require_free(call, 0, {int(call.attribute("axis", -1)) % channel_ids.ndim})
    return pin_side_inputs(call, Effect((channel_ids, channel_ids)), "takes its number of elements from it")


def reverse_sequence(call: Call) -> Effect:
    """Reverse sequences of different lengths.

    Flow: channels on axes other than batch and time pass through.
    Ties: none.
    Pins: computed lengths.
    Limits: batch and time axis hold no channels.
    Specification: ONNX ReverseSequence-10.
    """
    _require_free(call, 0, {int(call.attribute("batch_axis", 1)), int(call.attribute("time_axis", 0))})
    return pin_side_inputs(call, Effect((call.channel_ids(0),)), "takes its lengths from it")


def trilu(call: Call) -> Effect:
    """Upper or lower triangle of matrices.

    Flow: channels on axes other than the last two pass through.
    Ties: none.
    Pins: a computed diagonal.
    Limits: the last two axes hold no channels.
    Specification: ONNX Trilu-14.
    """
    channel_ids = call.channel_ids(0)
    _require_free(call, 0, {channel_ids.ndim - 1, channel_ids.ndim - 2})
    return pin_side_inputs(call, Effect((channel_ids,)), "takes its diagonal from it")


def _require_free(call: Call, slot: int, axes: set[int]) -> None:
    """Refuse an input that holds channels on these axes.

    Raises:
        Unsupported: it holds channels there.
    """
    if axes & set(varied_axes(call.channel_ids(slot))):
        raise Unsupported("it selects among the channels", advice.EXPORT_AGAIN)


INDEXING_RULES = {
    ("", "Gather"): gather,
    ("", "GatherElements"): gather_elements,
    ("", "GatherND"): gather_nd,
    ("", "ScatterElements"): scatter_elements,
    ("", "Scatter"): scatter_elements,
    ("", "ScatterND"): scatter_nd,
    ("", "TopK"): top_k,
    ("", "ReverseSequence"): reverse_sequence,
    ("", "Trilu"): trilu,
}

"""Elementwise joins of tensors: channels at the same position are tied, constants are sliced with them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise

import numpy as np

from leanonnx.numeric.channel_ids import ChannelIds, Shape, varied_axes
from leanonnx.rules import advice
from leanonnx.rules.call import Call, Effect, FixedEdges, Slice, TiePairs, Unsupported


def join_operands(
    call: Call, slots: Sequence[int], shapes: Mapping[int, Shape], cut: Mapping[int, int] | None = None
) -> Effect:
    """Join the operands in these slots.

    ``shapes``: the shape of each operand for broadcasting (1 where positions are not matched); ``cut``: the number of
    leading axes of an operand that the output does not have.
    """
    cut = cut or {}
    computed = [k for k in slots if not call.is_constant(k)]
    shape = np.broadcast_shapes(*shapes.values())
    own = [_align(call.channel_ids(k), cut.get(k, 0), len(shapes[k])) for k in computed]
    out, ties, fixed_edges = join_channels(call, own, [shapes[k] for k in computed], shape)
    slices: list[Slice] = []
    for slot in slots:
        if slot not in computed:
            factor, more = broadcast_factor(out, shapes[slot])
            ties += more
            lead = cut.get(slot, 0)
            rank = len(call.shape(slot)) - lead
            whole = factor.reshape((1,) * lead + factor.shape[factor.ndim - rank :])
            slices += [Slice(slot, (whole,))] if varied_axes(factor) else []
    return Effect((out,), tuple(ties), fixed_edges=tuple(fixed_edges), slices=tuple(slices))


def _align(channel_ids: ChannelIds, cut: int, rank: int) -> ChannelIds:
    """Channel ids without their first ``cut`` axes, padded with leading axes of size 1 to ``rank``."""
    rest = channel_ids.shape[cut:]
    return channel_ids.reshape((1,) * (rank - len(rest)) + rest)


def join_channels(
    call: Call, operands: Sequence[ChannelIds], shapes: Sequence[Shape], shape: Shape
) -> tuple[ChannelIds, list[TiePairs], list[FixedEdges]]:
    """Channel ids of a join's output, with ties and fixed edges from each operand's channels.

    Operands that are broadcast over the output's channels are not tied to them.

    Raises:
        Unsupported: the channels of two operands lie on different axes.
    """
    aligned = [
        channel_ids.reshape((1,) * (len(shape) - channel_ids.ndim) + channel_ids.shape) for channel_ids in operands
    ]
    axes = sorted((set(varied_axes(channel_ids)) for channel_ids in aligned), key=len)
    if any(not one <= other for one, other in pairwise(axes)):
        raise Unsupported("its operands hold channels on different axes", advice.EXPORT_AGAIN)
    joint = np.broadcast_shapes(*[channel_ids.shape for channel_ids in aligned])
    first, *others = spread = [np.broadcast_to(channel_ids, joint) for channel_ids in aligned]
    if all(np.array_equal(first, other) for other in others):
        return first, [], []
    unique, inverse = np.unique(np.stack([s.ravel() for s in spread]), axis=1, return_inverse=True)
    out = call.mint(unique.shape[1])[inverse.ravel()].reshape(joint)
    ties, fixed_edges = [], []
    for size, own, channel_ids in zip(shapes, aligned, spread, strict=True):
        pairs = np.unique(np.stack([channel_ids.ravel(), out.ravel()]), axis=1)
        fixed_edges.append(FixedEdges(pairs[0], pairs[1]))
        if varied_axes(own) or not _is_broadcast(size, shape, out):
            ties.append((pairs[0], pairs[1]))
    return out, ties, fixed_edges


def _is_broadcast(operand: Shape, shape: Shape, out: ChannelIds) -> bool:
    """Return True if an operand has size 1 on an axis along which the output's channels vary."""
    full = (1,) * (len(shape) - len(operand)) + tuple(operand)
    return any(full[axis] == 1 and shape[axis] > 1 for axis in varied_axes(out))


def broadcast_factor(channel_ids: ChannelIds, shape: Shape) -> tuple[ChannelIds, list[TiePairs]]:
    """Channel ids of a constant that broadcasts against a tensor, and the ties under which slices agree.

    An axis on which the constant has size 1 is not sliced; channels that differ only along such axes are tied.
    """
    rank = len(shape)
    pad = (1,) * (rank - channel_ids.ndim)
    aligned = channel_ids.reshape(pad + channel_ids.shape)
    lead = aligned.ndim - rank
    kept = [k for k in varied_axes(aligned) if k >= lead and shape[k - lead] != 1]
    lost = [k for k in varied_axes(aligned) if k not in kept]
    ties: list[TiePairs] = []
    if kept and lost:
        moved = np.moveaxis(aligned, lost, range(len(lost)))
        rows = moved.reshape(-1, *moved.shape[len(lost) :])
        ties = [(np.broadcast_to(rows[0], rows[1:].shape), rows[1:])]
    index = tuple(slice(None) if k in kept else slice(0, 1) for k in range(aligned.ndim))
    return aligned[index].reshape(aligned[index].shape[lead:]), ties

"""Arrays of channel ids: the channel of each position of a tensor.

Such an array has the rank of its tensor and, on each axis, either the tensor's size or 1; 1 means that all positions
along this axis share a channel.  ``[1, C, 1, 1]`` is the usual case of an NCHW feature map.
This module is pure numpy and scipy and independent of ONNX.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypeVar

import numpy as np
import scipy
from numpy.typing import NDArray

ChannelIds = NDArray[np.int64]
Mask = NDArray[np.bool_]
Shape = tuple[int, ...]
Number = TypeVar("Number", bound=np.generic)


def compact_ids(channel_ids: ChannelIds) -> ChannelIds:
    """Reduce every axis along which the channel ids do not vary to size 1."""
    for axis in range(channel_ids.ndim):
        if channel_ids.shape[axis] > 1:
            first = channel_ids.take([0], axis)
            if np.array_equal(channel_ids, np.broadcast_to(first, channel_ids.shape)):
                channel_ids = first
    return channel_ids


def varied_axes(channel_ids: ChannelIds) -> tuple[int, ...]:
    """Axes along which compact channel ids vary."""
    return tuple(axis for axis, size in enumerate(channel_ids.shape) if size != 1)


def uniform_ids(channel_id: int, rank: int) -> ChannelIds:
    """Channel ids of a tensor of the given rank with a single channel."""
    return np.full((1,) * rank, channel_id, np.int64)


def on_axis(vector: NDArray[Number], axis: int, rank: int) -> NDArray[Number]:
    """A vector [n], such as channel ids, arranged along one axis of a tensor of the given rank."""
    shape = [1] * rank
    shape[axis] = vector.size
    return vector.reshape(shape)


def channel_ids_along(
    channel_ids: ChannelIds, axis: int, size: int
) -> tuple[ChannelIds, list[tuple[ChannelIds, ChannelIds]]]:
    """Read a tensor as slices along one axis, which has ``size`` positions.

    Returns one channel id for each slice [size], and the ties that this requires, as pairs of ids [k] and [k]: channels
    that share a slice are tied, since only whole slices can be removed.
    """
    rows = np.moveaxis(channel_ids, axis, 0).reshape(channel_ids.shape[axis], -1)
    first = np.ascontiguousarray(rows[:, 0])
    ties = [(np.repeat(first, rows.shape[1] - 1), rows[:, 1:].reshape(-1))] if rows.shape[1] > 1 else []
    return np.broadcast_to(first, (size,)) if first.size == 1 else first, ties


def matching_axes(old: Shape, new: Shape) -> list[tuple[range, range]]:
    """Split a reshape into the smallest groups of adjacent axes whose products agree.

    Remaining axes of size 1 form a last group that may be empty on one side.
    """
    groups, i, j = [], 0, 0
    while i < len(old) and j < len(new):
        start = i, j
        left, right = old[i], new[j]
        i, j = i + 1, j + 1
        while left != right:
            if left < right:
                left, i = left * old[i], i + 1
            else:
                right, j = right * new[j], j + 1
        groups.append((range(start[0], i), range(start[1], j)))
    return [*groups, (range(i, len(old)), range(j, len(new)))]


def reshape_ids(channel_ids: ChannelIds, old: Shape, new: Shape) -> ChannelIds:
    """Channel ids of a tensor of shape ``old`` after a row-major reshape to ``new``.

    Only axes that hold channels are expanded, so that the size of a feature map does not matter.
    """
    if 0 in old or 0 in new:
        return uniform_ids(int(channel_ids.flat[0]), len(new))
    source: list[int] = []
    result: list[int] = []
    for before, after in matching_axes(old, new):
        if all(channel_ids.shape[axis] == 1 for axis in before):
            source += [1] * len(before)
            result += [1] * len(after)
        else:
            source += [old[axis] for axis in before]
            result += [new[axis] for axis in after]
    return compact_ids(np.broadcast_to(channel_ids, source).reshape(result))


def tied_groups(count: int, ties: Iterable[tuple[ChannelIds, ChannelIds]]) -> NDArray[np.int64]:
    """Group of each of ``count`` channels [count]: channels connected by ties are in one group.

    Each tie is a pair of channel id arrays of one shape.  Groups are numbered in the order of their lowest id.
    """
    pairs = list(ties)
    if not pairs:
        return np.arange(count, dtype=np.int64)
    a = np.concatenate([np.asarray(x).reshape(-1) for x, _ in pairs])
    b = np.concatenate([np.asarray(y).reshape(-1) for _, y in pairs])
    graph = scipy.sparse.coo_array((np.ones(a.size, np.int8), (a, b)), shape=(count, count))
    component = scipy.sparse.csgraph.connected_components(graph, directed=False)[1]
    _, first, inverse = np.unique(component, return_index=True, return_inverse=True)
    rank = np.empty_like(first)
    rank[np.argsort(first)] = np.arange(first.size)
    return rank[inverse].astype(np.int64)


def any_along(mask: Mask, axis: int) -> Mask:
    """Mask [size of the axis] of the indices along one axis at which a mask of any shape is True anywhere."""
    return np.asarray(mask.any(axis=tuple(k for k in range(mask.ndim) if k != axis)))


def is_rectangle(mask: Mask) -> bool:
    """Return True if the positions in a mask are a product of one index set per axis."""
    return int(mask.sum()) == int(np.prod([any_along(mask, axis).sum() for axis in range(mask.ndim)]))

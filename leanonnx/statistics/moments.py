"""Means, variances and covariances of the channels of a network on real inputs, in one pass over them.

The rows of a tensor are its positions (pixels, tokens, samples); its columns are the channels along one axis.  A
channel that stands several times on the axis (after a Flatten) gives one row for each time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from leanonnx.analysis.dag import ChannelDag
from leanonnx.errors import DataError
from leanonnx.numeric.arrays import Array, Floats, Ints
from leanonnx.numeric.channel_ids import ChannelIds, varied
from leanonnx.rules.call import KernelBlock, Reduction
from leanonnx.runtime.probes import watched
from leanonnx.runtime.sessions import Feed, RunFailed
from leanonnx.spelling import option

THIN = 2
ADDING = {"Add", "Sub", "Sum", "Mean", "FusedConv"}
"""Joins whose operands share the energy of what they put out."""
BLOCK = 1 << 16
"""Rows of one step."""
ENOUGH = 1 << 17
"""Rows of a tensor over all inputs; of larger ones every so many-th is taken."""


@dataclass(frozen=True)
class Moments:
    """Covariance [C, C] of the channels ``labels`` [C] over the positions of a tensor."""

    channel_ids: Ints
    covariance: Floats


@dataclass(frozen=True)
class Statistics:
    """What is known of the channels of a network.

    ``read``: moments of the tensor that the data input of a node with kernels holds, by (tensor, axis);
    ``variance`` [labels]: of channels that are added to others, NaN where it was not measured.
    """

    read: Mapping[tuple[str, int], Moments]
    variance: Floats


class Accumulator:
    """Sums over rows of ``width`` channels, about the mean of the first rows (which keeps the differences small)."""

    def __init__(self, width: int) -> None:
        self.width, self.rows = width, 0
        self.origin = self.first = np.zeros(width)
        self.second = np.zeros((width, width))

    def add(self, rows: Array) -> None:
        """Take in rows [n, C]."""
        if not self.rows:
            self.origin = rows.mean(0, dtype=np.float64)
            self.first, self.second = np.zeros(self.width), np.zeros((self.width, self.width))
        for start in range(0, len(rows), BLOCK):
            centred = rows[start : start + BLOCK] - self.origin.astype(rows.dtype)
            self.first += centred.sum(0, dtype=np.float64)
            self.second += centred.T @ centred
        self.rows += len(rows)

    def moments(self, channel_ids: Ints) -> Moments:
        """The moments of all rows."""
        mean = self.first / self.rows
        return Moments(channel_ids, self.second / self.rows - np.outer(mean, mean))


def channel_axis(dag: ChannelDag, node: int, mix: KernelBlock) -> tuple[str, int] | None:
    """The tensor that kernels read and the axis along which its channels lie; None where they lie along several."""
    proto = dag.model.proto.graph.node[node]
    for name in proto.input:
        channel_ids = dag.channel_ids.get(name)
        if channel_ids is not None and np.isin(mix.sources, channel_ids).all():
            axis = mix.axis % channel_ids.ndim
            along = channel_ids.shape[axis] == mix.sources.size or channel_ids.size == 1
            return (name, axis) if along and dag.shapes[name][axis] == mix.sources.size else None
    return None


def summed_axis(dag: ChannelDag, node: int, reduction: Reduction) -> tuple[str, int]:
    """The tensor whose channels are added up and the axis along which they lie; -1 where they lie along several."""
    axes = varied(reduction.channel_ids)
    return dag.model.proto.graph.node[node].input[reduction.slot], axes[0] if len(axes) == 1 else -1


def rows_of(value: Array, axis: int, channels: ChannelIds) -> Array:
    """The rows [n, C] of a tensor whose positions on an axis belong to these channels [size], C of them distinct.

    Where a channel stands on several positions there is one row for each; where not all stand equally often, their
    mean.
    """
    flat = np.moveaxis(np.asarray(value, np.float32), axis, -1).reshape(-1, value.shape[axis])
    unique, inverse, counts = np.unique(channels, return_inverse=True, return_counts=True)
    if unique.size == channels.size and np.array_equal(unique, channels):
        return flat
    order = np.argsort(inverse, kind="stable")
    if (counts == counts[0]).all():
        return flat[:, order].reshape(len(flat), unique.size, counts[0]).transpose(0, 2, 1).reshape(-1, unique.size)
    starts = np.cumsum(counts) - counts
    return np.asarray(np.add.reduceat(flat[:, order], starts, axis=1) / counts.astype(np.float32))


def by_label(kernels: Array, sources: ChannelIds) -> Floats | None:
    """Kernels [O, I, *k] that read ``sources`` [I] as [O, C, taps], C being the distinct channels.

    Those of a channel that stands on several places are its taps; None where not all stand on equally many.
    """
    flat = np.asarray(kernels, np.float64).reshape(*kernels.shape[:2], -1)
    _, inverse, counts = np.unique(sources, return_inverse=True, return_counts=True)
    if (counts != counts[0]).any():
        return None
    return flat[:, np.argsort(inverse, kind="stable")].reshape(len(flat), counts.size, -1)


def measure(
    dag: ChannelDag, feeds: Iterable[Feed], count: int, told: Callable[[float], None] = lambda _: None
) -> Statistics:
    """Run a network on inputs and take the moments of all channels that kernels read.

    Args:
        dag: the network.
        feeds: its inputs.
        count: how many feeds there are, by which rows are thinned out.
        told: is told what share of the inputs is done (0 to 1).

    Raises:
        DataError: the network cannot be run on these inputs, or puts out values that are not finite.
    """
    spots = places(dag)
    sums = {place: Accumulator(np.unique(channels).size) for place, channels in spots.items()}
    added = {name: _Spread(dag.channel_ids[name]) for name in _added(dag)}
    names = [*dict.fromkeys(name for name, _ in spots), *added]
    try:
        for done, found in enumerate(watched(dag.model.proto, names, feeds, dag.model.libraries), 1):
            for (name, axis), channels in spots.items():
                sums[name, axis].add(_thinned(rows_of(found[name], axis, channels), ENOUGH // max(count, 1)))
            for name, spread in added.items():
                spread.add(found[name])
            told(min(done / max(count, 1), 1.0))
    except RunFailed as error:
        raise DataError(f"{dag.model.path}: the model cannot be run on the calibration data: {error}") from error
    variance = np.full(dag.count, np.nan)
    for spread in added.values():
        variance[spread.unique] = spread.variance()
    read = {place: sums[place].moments(np.unique(channels)) for place, channels in spots.items()}
    _check(read)
    return Statistics(read, variance)


def _thinned(rows: Array, most: int) -> Array:
    """About ``most`` rows at equal distances; a step without common factors spreads them over an image."""
    step = len(rows) // max(most, 1)
    return rows if step < THIN else rows[:: step + 1 - step % 2]


def _check(read: Mapping[tuple[str, int], Moments]) -> None:
    for (name, _), moments in read.items():
        if not np.isfinite(moments.covariance).all():
            raise DataError(
                f"tensor '{name}' holds NaN or infinite values on the calibration data; check how the data are "
                f"normalised ({option('mean')}, {option('std')})"
            )


def places(dag: ChannelDag) -> dict[tuple[str, int], ChannelIds]:
    """Tensors that kernels read, with the channel of each position along the axis."""
    found: dict[tuple[str, int], ChannelIds] = {}
    for node, mix in dag.kernel_blocks:
        place = channel_axis(dag, node, mix) if mix.inward is not None else None
        if place is not None and np.unique(mix.sources).size > 1:
            found[place] = mix.sources.reshape(-1)
    for node, reduction, _ in dag.sums:
        name, axis = summed_axis(dag, node, reduction)
        if axis >= 0:
            found.setdefault((name, axis), reduction.channel_ids.reshape(-1))
    return found


def _added(dag: ChannelDag) -> list[str]:
    """Computed operands of additions."""
    nodes = dag.model.proto.graph.node
    adding = {node for node, _ in dag.fixed_edges if nodes[node].op_type in ADDING}
    return list(dict.fromkeys(name for node in sorted(adding) for name in nodes[node].input if name in dag.channel_ids))


class _Spread:
    """Sums for the variance of each channel of a tensor with any layout of labels."""

    def __init__(self, channel_ids: ChannelIds) -> None:
        self.shape = channel_ids.shape
        self.unique, self.inverse = np.unique(channel_ids.reshape(-1), return_inverse=True)
        self.first, self.second = np.zeros(self.unique.size), np.zeros(self.unique.size)
        self.rows = np.zeros(self.unique.size)
        self.origin: Floats | None = None

    def add(self, value: Array) -> None:
        """Take in one run."""
        axes = tuple(k for k, size in enumerate(self.shape) if size == 1)
        wide = np.asarray(value, np.float64)
        each = wide.size / self.inverse.size
        means = wide.mean(axes, keepdims=True)
        squares = np.square(wide).mean(axes, keepdims=True)
        for total, part in ((self.first, means), (self.second, squares)):
            total += np.bincount(self.inverse, part.reshape(-1) * each, self.unique.size)
        self.rows += np.bincount(self.inverse, minlength=self.unique.size) * each

    def variance(self) -> Floats:
        """Variance of each channel [C]."""
        return np.maximum(self.second / self.rows - np.square(self.first / self.rows), 0)

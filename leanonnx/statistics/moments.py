"""Channel means, variances and covariances of a network on real inputs, measured in one pass.

The rows of a tensor are its positions (pixels, tokens, samples); its columns are the channels along one axis.  A
channel that occurs several times on the axis (after a Flatten) gives one row per occurrence.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from leanonnx.analysis.dag import ChannelDag
from leanonnx.errors import DataError
from leanonnx.graph.positions import rows_at, spread_positions
from leanonnx.numeric.arrays import Array, Floats, Ints
from leanonnx.numeric.channel_ids import ChannelIds, varied_axes
from leanonnx.numeric.products import matrix_product
from leanonnx.operators.facts import Trait
from leanonnx.operators.table import names_with
from leanonnx.rules.call import KernelBlock, Reduction
from leanonnx.runtime.probes import tensor_values
from leanonnx.runtime.sessions import Feed, RunFailed
from leanonnx.spelling import option

ADDITIONS = names_with(Trait.ADDS)
"""Operators whose operands share the energy of the output."""
BUFFERED_ROWS = 1 << 10
"""Rows that are buffered before their products are summed; at least as many as there are channels."""
ROWS_PER_CHANNEL = 16
"""Rows of a tensor for each of its channels, over all inputs; others are left out."""
MAX_FREE_MOMENT_ROWS = 1 << 15
"""Rows of a tensor up to which more are used, while their products take at most ``FREE_MOMENT_WORK``."""
FREE_MOMENT_WORK = 2e9
"""Multiply-adds of the products of one tensor."""
SINGLE_PRECISION_SUMS_WIDTH = 256
"""Number of channels from which products are summed in single precision, about the mean of the first rows."""
HELD_OUT_RUN_STRIDE = 5
"""One run in so many is held out to choose the regularisation of covariances; the last of fewer runs."""


@dataclass(frozen=True)
class Moments:
    """Covariance [C, C] of the channels ``channel_ids`` [C] over the positions of a tensor.

    ``parts``: the covariances over most runs, and over one in ``HELD_OUT_RUN_STRIDE``, about the same mean, to choose a
    regularisation by; None if they were not measured apart.
    """

    channel_ids: Ints
    covariance: Array
    parts: tuple[Array, Array] | None = None


@dataclass(frozen=True)
class Statistics:
    """Statistics of the channels of a network.

    ``moments``: moments of each tensor that kernels read, by (tensor, axis);
    ``variance`` [channels]: variance of the channels that are operands of additions, NaN where it was not measured.
    """

    moments: Mapping[tuple[str, int], Moments]
    variance: Floats


class Accumulator:
    """Sums over rows of ``width`` channels, centred on the mean of the first rows for numerical accuracy."""

    def __init__(self, width: int) -> None:
        self.width, self.rows = width, 0
        self.origin = self.first = np.zeros(width)
        self.second: Any = np.zeros((width, width), np.float32 if width >= SINGLE_PRECISION_SUMS_WIDTH else np.float64)
        self.buffer: list[Array] = []
        self.buffered_rows = 0

    def add(self, rows: Array) -> None:
        """Add rows [n, C] to the sums."""
        self.buffer.append(rows)
        self.buffered_rows += len(rows)
        if self.buffered_rows >= max(BUFFERED_ROWS, self.width):
            self.flush()

    def flush(self) -> None:
        """Add the buffered rows to the sums."""
        if not self.buffered_rows:
            return
        centred: Any = np.concatenate(self.buffer).astype(np.float32, copy=False)
        self.buffer, self.buffered_rows = [], 0
        if not self.rows:
            self.origin = centred.mean(0, dtype=np.float64)
        self.rows += len(centred)
        centred -= self.origin.astype(np.float32)
        self.first += centred.sum(0, dtype=np.float64)
        self.second += matrix_product(centred.T, centred)

    def take_products(self, mean: Floats) -> Array:
        """Sum of the products of deviations from a mean [C, C]; the sums are empty afterwards."""
        self.flush()
        shift = self.origin - mean
        first = self.first + self.rows / 2 * shift
        kind = self.second.dtype
        products, self.second = self.second, np.zeros((0, 0))
        products += np.stack([first, shift], 1).astype(kind) @ np.stack([shift, first]).astype(kind)
        return np.asarray(products)

    def mean(self) -> Floats:
        """Mean of all rows [C]."""
        self.flush()
        return self.origin + self.first / max(self.rows, 1)


def joint_moments(channel_ids: Ints, fitted: Accumulator, apart: Accumulator) -> Moments:
    """Moments of the rows of both sums, which are empty afterwards."""
    mean = fitted.mean(), apart.mean()
    total = fitted.rows + apart.rows
    centre = (fitted.rows * mean[0] + apart.rows * mean[1]) / total
    one, other = fitted.take_products(centre), apart.take_products(centre)
    covariance = one + other
    covariance /= total
    if not fitted.rows or not apart.rows:
        return Moments(channel_ids, covariance)
    one /= fitted.rows
    other /= apart.rows
    return Moments(channel_ids, covariance, (one, other))


def channel_axis(dag: ChannelDag, node: int, block: KernelBlock) -> tuple[str, int] | None:
    """Tensor that a kernel block reads, and its channel axis; None if the channels lie along several axes."""
    proto = dag.model.proto.graph.node[node]
    for name in proto.input:
        channel_ids = dag.channel_ids.get(name)
        if channel_ids is not None and np.isin(block.sources, channel_ids).all():
            axis = block.input_axis % channel_ids.ndim
            along = channel_ids.shape[axis] == block.sources.size or channel_ids.size == 1
            return (name, axis) if along and dag.shapes[name][axis] == block.sources.size else None
    return None


def summed_axis(dag: ChannelDag, node: int, reduction: Reduction) -> tuple[str, int]:
    """Tensor whose channels are summed, and its channel axis; -1 if the channels lie along several axes."""
    axes = varied_axes(reduction.channel_ids)
    return dag.model.proto.graph.node[node].input[reduction.slot], axes[0] if len(axes) == 1 else -1


def joined_repeats(rows: Array, channels: ChannelIds) -> Array:
    """Rows [n, C] from rows [m, size] whose columns belong to ``channels`` [size], C of them distinct.

    A channel at several positions gives one row per position; if the counts differ between channels, positions are
    averaged instead.
    """
    flat = np.asarray(rows, np.float32)
    unique, inverse, counts = np.unique(channels, return_inverse=True, return_counts=True)
    if unique.size == channels.size and np.array_equal(unique, channels):
        return flat
    order = np.argsort(inverse, kind="stable")
    if (counts == counts[0]).all():
        return flat[:, order].reshape(len(flat), unique.size, counts[0]).transpose(0, 2, 1).reshape(-1, unique.size)
    starts = np.cumsum(counts) - counts
    return np.asarray(np.add.reduceat(flat[:, order], starts, axis=1) / counts.astype(np.float32))


def kernels_by_channel(kernels: Array, sources: ChannelIds) -> Floats | None:
    """Kernels [O, I, *k] of the inputs ``sources`` [I], regrouped by distinct channel as [O, C, taps].

    The kernels of a channel at several positions become its taps; None if channels differ in their number of positions.
    """
    flat = np.asarray(kernels, np.float64).reshape(*kernels.shape[:2], -1)
    _, inverse, counts = np.unique(sources, return_inverse=True, return_counts=True)
    if (counts != counts[0]).any():
        return None
    return flat[:, np.argsort(inverse, kind="stable")].reshape(len(flat), counts.size, -1)


def measure_statistics(
    dag: ChannelDag,
    feeds: Iterable[Feed],
    count: int,
    on_progress: Callable[[float], None] = lambda _: None,
    *,
    rows_per_channel: int = ROWS_PER_CHANNEL,
) -> Statistics:
    """Run a network on inputs and measure the moments of all channels that kernels read.

    Args:
        dag: the network.
        feeds: its inputs.
        count: number of feeds, which sets how many positions of each are used.
        on_progress: called with the fraction of inputs processed (0 to 1).
        rows_per_channel: positions of a tensor, over all inputs, for each of its channels.

    Raises:
        DataError: the network cannot be run on these inputs, or computes values that are not finite.
    """
    places_read = measured_axes(dag)
    sums = {place: _PlaceSums(place[1], channels, count, rows_per_channel) for place, channels in places_read.items()}
    operands = {name: _VarianceSums(dag.channel_ids[name], count) for name in _addition_operands(dag)}
    names = [*dict.fromkeys(name for name, _ in places_read), *operands]
    stride = max(2, min(HELD_OUT_RUN_STRIDE, count))
    try:
        for done, values in enumerate(tensor_values(dag.model.proto, names, feeds, dag.model.libraries), 1):
            for (name, axis), place in sums.items():
                place.add(values[name], np.random.default_rng((done, axis)), done % stride == 0)
            for name, spread in operands.items():
                spread.add(values[name], np.random.default_rng(done))
            on_progress(min(done / max(count, 1), 1.0))
    except RunFailed as error:
        raise DataError(f"{dag.model.path}: the model cannot be run on the calibration data: {error}") from error
    variance = np.full(dag.count, np.nan)
    for spread in operands.values():
        variance[spread.unique] = spread.variance()
    read = {place: joint_moments(one.unique, *one.sums) for place, one in sums.items()}
    _check_finite(read)
    return Statistics(read, variance)


def free_rows(width: int) -> int:
    """Number of rows of ``width`` channels whose products cost next to nothing."""
    return int(min(MAX_FREE_MOMENT_ROWS, FREE_MOMENT_WORK / width**2))


class _PlaceSums:
    """Sums over sampled rows of a tensor whose positions along ``axis`` belong to ``channels``."""

    def __init__(self, axis: int, channels: ChannelIds, count: int, rows_per_channel: int) -> None:
        self.axis, self.channels = axis, channels
        self.unique = np.unique(channels)
        self.sums = Accumulator(self.unique.size), Accumulator(self.unique.size)
        rows = max(rows_per_channel * self.unique.size, free_rows(self.unique.size))
        self.each = -(-rows * self.unique.size // (channels.size * max(count, 1)))

    def add(self, value: Array, rng: np.random.Generator, held_out: bool) -> None:
        """Add rows of one run."""
        chosen = spread_positions(value.size // value.shape[self.axis], self.each, rng)
        self.sums[held_out].add(joined_repeats(rows_at(value, self.axis, chosen), self.channels))


def _check_finite(read: Mapping[tuple[str, int], Moments]) -> None:
    for (name, _), moments in read.items():
        if not np.isfinite(moments.covariance).all():
            raise DataError(
                f"tensor '{name}' holds NaN or infinite values on the calibration data; check how the data are "
                f"normalised ({option('mean')}, {option('std')})"
            )


def measured_axes(dag: ChannelDag) -> dict[tuple[str, int], ChannelIds]:
    """Tensors that kernels read, by (tensor, axis), with the channel of each position along the axis.

    Those whose kernels read one channel each (depthwise) are left out: its share of their output is the whole.
    """
    axes: dict[tuple[str, int], ChannelIds] = {}
    for node, block in dag.kernel_blocks:
        place = channel_axis(dag, node, block) if block.input_channel_ids is not None else None
        if place is not None and (block.sources != block.sources[:, :1]).any():
            axes[place] = block.sources.reshape(-1)
    for node, reduction, _ in dag.channel_sums:
        name, axis = summed_axis(dag, node, reduction)
        if axis >= 0:
            axes.setdefault((name, axis), reduction.channel_ids.reshape(-1))
    return axes


def _addition_operands(dag: ChannelDag) -> list[str]:
    """Names of the computed operands of additions."""
    nodes = dag.model.proto.graph.node
    adding = {node for node, _ in dag.fixed_edges if nodes[node].op_type in ADDITIONS}
    return list(dict.fromkeys(name for node in sorted(adding) for name in nodes[node].input if name in dag.channel_ids))


class _VarianceSums:
    """Sums for the variance of each channel of a tensor with any channel layout."""

    def __init__(self, channel_ids: ChannelIds, count: int) -> None:
        self.shape = channel_ids.shape
        self.unique, self.inverse = np.unique(channel_ids.reshape(-1), return_inverse=True)
        self.first, self.second = np.zeros(self.unique.size), np.zeros(self.unique.size)
        self.rows = np.zeros(self.unique.size)
        self.each = -(-MAX_FREE_MOMENT_ROWS // max(count, 1))

    def add(self, value: Array, rng: np.random.Generator) -> None:
        """Add the values of one run: at sampled positions if the channels lie along one axis."""
        varied = [k for k, size in enumerate(self.shape) if size != 1]
        if len(varied) == 1:
            chosen = spread_positions(value.size // value.shape[varied[0]], self.each, rng)
            rows = rows_at(value, varied[0], chosen).astype(np.float64)
            each, means, squares = len(rows), rows.mean(0), np.square(rows).mean(0)
        else:
            axes = tuple(k for k, size in enumerate(self.shape) if size == 1)
            wide = np.asarray(value, np.float64)
            each = wide.size // self.inverse.size
            means, squares = wide.mean(axes), np.square(wide).mean(axes)
        for total, part in ((self.first, means), (self.second, squares)):
            total += np.bincount(self.inverse, part.reshape(-1) * each, self.unique.size)
        self.rows += np.bincount(self.inverse, minlength=self.unique.size) * each

    def variance(self) -> Floats:
        """Variance of each channel [C]."""
        return np.maximum(self.second / self.rows - np.square(self.first / self.rows), 0)

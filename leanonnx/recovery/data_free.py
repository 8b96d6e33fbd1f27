"""Data-free recovery: fold removed channels into the remaining weights, using only what the network itself contains.

A layer reads channels x of which some were removed.  Each removed channel is approximated by
x_c ≈ Σ_k s_ck x_k + b_c over the kept channels k; s is folded into the kernels that read x_k, b into the bias.

1. *constants*: a constant channel (see ``constant_channels``) is replaced by its value.
2. *means*: if the network stores the statistics of the channels, in BatchNormalization, b compensates the mean.
3. *merged*: a scaled and shifted copy of a kept channel is replaced by that channel; otherwise s is the ridge
   regression under the propagated moments (see ``propagation``).  With one k for each c, this is Neuron Merging (Kim
   et al., NeurIPS 2020, arXiv 2010.13160).

A layer is changed only if this reduces the mean squared error of its output under the propagated moments.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import onnx

from leanonnx.analysis.dag import ChannelDag
from leanonnx.graph.model import Model
from leanonnx.numeric.arrays import Array, Floats, Ints
from leanonnx.numeric.channel_ids import Mask
from leanonnx.numeric.gaussian import ChannelMoments
from leanonnx.recovery.changes import LayerChange, apply_changes
from leanonnx.recovery.layers import LinearLayer, linear_layers
from leanonnx.statistics.moments import channel_axis, kernels_by_channel
from leanonnx.statistics.propagation import PropagatedMoments, tap_coverage

COMPENSATIONS = ("constants", "means", "merged")
COPY_CORRELATION = 1 - 1e-8
"""Squared correlation above which a channel counts as a copy of another."""
RIDGE_SHARE = 0.1
"""Ridge added to each variance, as a share of it."""
RIDGE_FLOOR = 0.01
"""Ridge added to each variance, as a share of the mean variance."""
FAINT_VARIANCE = 1e-4
"""Share of the mean variance below which a channel has no copies."""
WEIGHT_TOLERANCE = 1e-5
"""Relative difference up to which two weights count as equal."""
MIN_CHANNEL_VARIANCE = 1e-30


@dataclass(frozen=True)
class DataFreeFit:
    """The network with its weights changed.

    ``counts``: number of removed channels compensated over all layers, by way; ``assumed``: some of them although the
    network does not store their statistics.
    """

    proto: onnx.ModelProto
    counts: Mapping[str, int]
    assumed: bool


@dataclass(frozen=True, kw_only=True)
class Fold:
    """x_c ≈ Σ_k scales[c, k] x_k + shifts[c] for removed channels c and kept channels k; their number by way."""

    scales: Floats
    shifts: Floats
    counts: Mapping[str, int]
    assumed: bool


def fit_without_data(
    known: PropagatedMoments,
    alive: Mask,
    proto: onnx.ModelProto,
    ways: Collection[str] = COMPENSATIONS,
    assume: bool = True,
) -> DataFreeFit:
    """Refit the weights of a compressed network without data.

    Args:
        known: propagated moments of the original.
        alive: keep mask of its channels [channels].
        proto: the compressed network, whose layers have the output names of the original.
        ways: the permitted ways, of ``WAYS``.
        assume: also apply what rests on an assumption about the network's inputs.
    """
    dag = known.dag
    compressed = replace(dag.model, proto=proto)
    counts, assumed = dict.fromkeys(COMPENSATIONS, 0), False
    linear, _ = linear_layers(dag, alive, compressed)
    chosen = [layer for layer in linear if not layer.shared and layer.integers is None]
    if alive.all() or not chosen:
        return DataFreeFit(proto, counts, assumed)
    numbers = known.constant_values
    affected = [(layer, name) for layer in chosen if (name := _reduced_tensor(dag, alive, layer))]
    changes: dict[int, LayerChange] = {}
    for layer, moments in _with_moments(known, affected):
        name = _reduced_tensor(dag, alive, layer)
        constant = (
            np.unique(dag.channel_ids[name][np.isfinite(numbers[name])]) if name in numbers else np.zeros(0, np.int64)
        )
        work = _LayerFit(dag, alive, layer, compressed, moments, constant)
        del moments
        change = work.refit(ways, assume)
        if change is not None:
            changes[layer.after] = change
            counts = {way: counts[way] + work.counts[way] for way in COMPENSATIONS}
            assumed |= work.assumed
        del work
    return DataFreeFit(apply_changes(compressed, changes.values()) if changes else proto, counts, assumed)


def _reduced_tensor(dag: ChannelDag, alive: Mask, layer: LinearLayer) -> str:
    """Name of the tensor that a layer reads, if channels of it were removed; "" if it cannot be compensated."""
    place = channel_axis(dag, layer.before, layer.block)
    return "" if place is None or alive[layer.block.sources].all() else place[0]


def _with_moments(
    known: PropagatedMoments, layers: Sequence[tuple[LinearLayer, str]]
) -> Iterator[tuple[LinearLayer, ChannelMoments]]:
    """Yield each layer with the moments of the tensor it reads, which are kept until its last layer has had them."""
    readers = Counter(name for _, name in layers)
    stream, waiting = known.moments_in_order(readers), dict[str, ChannelMoments]()
    for layer, name in layers:
        while name not in waiting:
            waiting.update([next(stream)])
        readers[name] -= 1
        yield layer, waiting[name] if readers[name] else waiting.pop(name)


class _LayerFit:
    """One layer that is refitted; ``constant`` holds the constant channels among those that it reads."""

    def __init__(
        self,
        dag: ChannelDag,
        alive: Mask,
        layer: LinearLayer,
        compressed: Model,
        moments: ChannelMoments,
        constant: Ints,
    ) -> None:
        self.dag, self.alive, self.layer, self.constant = dag, alive, layer, constant
        self.weight = np.require(layer.to_kernels(layer.weight_in(compressed)), requirements="W")
        self.kind = compressed.constant(layer.weight).dtype
        self.bias = np.zeros(self.weight.shape[0] * self.weight.shape[1])
        if layer.bias:
            self.bias += np.asarray(compressed.constant(layer.bias), np.float64).reshape(-1)
        self.counts = dict.fromkeys(COMPENSATIONS, 0)
        self.assumed = False
        self.mean, self.covariance = moments.mean, moments.covariance()
        self.moments = replace(moments, correlation=np.zeros((0, 0)))

    def refit(self, ways: Collection[str], assume: bool) -> LayerChange | None:
        """Return the layer's new weights; None if it stays unchanged."""
        block, weight, bias = self.layer.block, self.weight, self.bias.copy()
        after, width = 0, self.weight.shape[1]
        for group, sources in enumerate(block.sources):
            out, kept = self.alive[block.destinations[group]], self.alive[sources]
            if not out.any() or not kept.any():
                continue
            kernels = np.asarray(block.kernels()[group][out], np.float64)
            kernels = kernels.reshape(*kernels.shape[:2], -1)
            if after >= len(weight) or not _is_equal(weight[after], kernels[:, kept]):
                return None
            distinct = kernels_by_channel(kernels, sources)
            del kernels
            done = None if distinct is None else self._group(distinct, sources, ways, assume)
            if done is not None:
                weight[after] = done[0]
                bias[after * width : (after + 1) * width] += done[1]
            after += 1
        if not any(self.counts.values()):
            return None
        shifted = not np.array_equal(bias, self.bias)
        return LayerChange(self.layer, self.layer.to_stored(weight).astype(self.kind), bias if shifted else None)

    def _group(
        self, distinct: Floats, sources: Ints, ways: Collection[str], assume: bool
    ) -> tuple[Floats, Floats] | None:
        """Weights [O, kept I, taps] and bias shift [O] of one conv group; None if it stays unchanged.

        ``distinct`` [O, C, taps]: the kernels of each channel.
        """
        channel_ids = np.unique(sources)
        kept = self.alive[channel_ids]
        if kept.all():
            return None
        node = self.dag.model.proto.graph.node[self.layer.before]
        covers = tap_coverage(self.dag, node, self.layer.window.kernel if self.layer.window else ())
        taps = np.tile(covers, distinct.shape[2] // covers.size)
        where = self.moments.indices_of(channel_ids)
        gone, left = where[~kept], where[kept]
        is_constant = np.isin(channel_ids[~kept], self.constant)
        fold = self._fold(gone, left, is_constant, ways, assume)
        if not any(fold.counts.values()) or not self._better(fold, gone, left, distinct[:, ~kept], taps):
            return None
        self.counts = {way: self.counts[way] + fold.counts[way] for way in COMPENSATIONS}
        self.assumed |= fold.assumed
        shift = (distinct[:, ~kept] @ taps) @ fold.shifts
        mixed = distinct[:, kept] + np.einsum("oct,ck->okt", distinct[:, ~kept], fold.scales)
        remaining = sources[self.alive[sources]]
        result = np.empty((len(distinct), remaining.size, self.weight.shape[3]))
        result[:, np.argsort(remaining, kind="stable")] = mixed.reshape(len(distinct), -1, self.weight.shape[3])
        return result, shift

    def _fold(self, gone: Ints, left: Ints, constant: Mask, ways: Collection[str], assume: bool) -> Fold:
        """Approximation of the removed channels by the kept ones."""
        free, mean = self.layer.can_change_bias, self.mean
        scales, shifts = np.zeros((gone.size, left.size)), np.zeros(gone.size)
        centred = free and self.moments.is_known and "means" in ways
        assumed = False
        replaceable, merged = constant & free & ("constants" in ways), np.zeros(gone.size, bool)
        if "merged" in ways:
            copies, chosen = self._copies(gone, left)
            copies &= ~constant & free
            scales[copies, chosen[copies]] = (
                self.covariance[gone, left[chosen]]
                / np.maximum(self.covariance[left, left][chosen], MIN_CHANNEL_VARIANCE)
            )[copies]
            shifts[copies] = mean[gone[copies]] - scales[copies] @ mean[left]
            rest = ~constant & ~copies
            if rest.any() and (assume or self.moments.is_known):
                scales[rest] = self._regression(gone[rest], left, centred)
                assumed = not self.moments.is_known
            merged = np.asarray(scales.any(1))
        shifts[replaceable] = mean[gone[replaceable]]
        plain = ~constant & centred & (shifts == 0)
        shifts[plain] = mean[gone[plain]] - scales[plain] @ mean[left]
        counts = ((replaceable & (shifts != 0)).sum(), (plain & ~merged & (shifts != 0)).sum(), merged.sum())
        return Fold(
            scales=scales,
            shifts=shifts,
            counts=dict(zip(COMPENSATIONS, map(int, counts), strict=True)),
            assumed=assumed,
        )

    def _copies(self, gone: Ints, left: Ints) -> tuple[Mask, Ints]:
        """Mask of the removed channels that copy a kept channel, and the most similar kept channel of each."""
        power = np.maximum(np.diag(self.covariance), MIN_CHANNEL_VARIANCE)
        like = np.square(self.covariance[np.ix_(gone, left)]) / power[gone][:, None] / power[left]
        like[:, power[left] < FAINT_VARIANCE * power.mean()] = 0
        chosen = like.argmax(1)
        return np.asarray(like.max(1) > COPY_CORRELATION), chosen

    def _regression(self, gone: Ints, left: Ints, centred: bool) -> Floats:
        """s [C, K] of the removed channels; for deviations from the mean if the bias compensates the mean."""
        offset = np.zeros_like(self.mean) if centred else self.mean
        own = self.covariance[np.ix_(left, left)]
        own += np.outer(offset[left], offset[left])
        cross = self.covariance[np.ix_(gone, left)]
        cross += np.outer(offset[gone], offset[left])
        power = np.diag(own).copy()
        own[np.diag_indices_from(own)] += RIDGE_SHARE * power + RIDGE_FLOOR * power.mean() + MIN_CHANNEL_VARIANCE
        return np.asarray(np.linalg.solve(own, cross.T).T, np.float64)

    def _better(self, fold: Fold, gone: Ints, left: Ints, removed: Floats, taps: Floats) -> bool:
        """True if the mean squared error of the output falls; ``removed`` kernels are [O, C, taps]."""
        folded = np.einsum("oct,odt->cd", removed, removed)
        sums, total, mean = removed @ taps, self.covariance, self.mean

        def error(scales: Floats, shifts: Floats) -> float:
            cross = scales @ total[np.ix_(left, gone)]
            spread = total[np.ix_(gone, gone)]
            spread -= cross
            spread -= cross.T
            spread += scales @ total[np.ix_(left, left)] @ scales.T
            spread *= folded
            offset = mean[gone] - scales @ mean[left] - shifts
            return float(spread.sum() + np.square(sums @ offset).sum())

        return error(fold.scales, fold.shifts) < error(np.zeros_like(fold.scales), np.zeros_like(fold.shifts))


def _is_equal(one: Array, other: Array) -> bool:
    """True if two weights are equal up to rounding."""
    return one.shape == other.shape and bool(
        np.abs(one - other).max(initial=0) <= WEIGHT_TOLERANCE * np.abs(other).max(initial=0)
    )

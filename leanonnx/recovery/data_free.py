"""Recovery without data: what the network itself tells of removed channels goes into the weights that are left.

A layer reads channels x of which some were removed.  Each removed one is replaced by what comes nearest to it among
x_c ≈ Σ_k s_ck x_k + b_c over the channels k that are left; s goes into the kernels that read x_k, b into the bias.

1. *constants*: a steady channel (see ``steady``) is its number.
2. *means*: where the network holds the statistics of the channels, in BatchNormalization, b makes up for the mean.
3. *merged*: a copy of a channel that is left, scaled and shifted, is that one; otherwise s is the ridge regression
   under what is believed of the channels (see ``beliefs``).  With one k for each c, this is Neuron Merging (Kim et
   al., NeurIPS 2020, arXiv 2010.13160).

A layer is left alone unless the mean squared error of what it puts out falls by that, as far as can be believed.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace

import numpy as np
import onnx

from leanonnx.analysis.dag import ChannelDag
from leanonnx.graph.model import Model
from leanonnx.numeric.arrays import Array, Floats, Ints
from leanonnx.numeric.channel_ids import Mask
from leanonnx.numeric.gaussian import ChannelMoments
from leanonnx.recovery.layers import Change, Layer, changed, layers
from leanonnx.statistics.moments import by_label, channel_axis
from leanonnx.statistics.propagation import PropagatedMoments, covers_of

WAYS = ("constants", "means", "merged")
COPY = 1 - 1e-8
"""Square of the correlation from which on a channel is a copy of another."""
RIDGE = 0.1
"""What is added to each variance, as a share of it, and as a share of the mean variance."""
FLOOR = 0.01
FAINT = 1e-4
"""Share of the mean variance below which nothing is a copy of a channel."""
NEAR = 1e-5
TINY = 1e-30


@dataclass(frozen=True)
class DataFreeFit:
    """The network with its weights changed.

    ``counts``: over all layers, how many removed channels were made up for in which way; ``assumed``: some were though
    the network does not hold their statistics.
    """

    proto: onnx.ModelProto
    counts: Mapping[str, int]
    assumed: bool


@dataclass(frozen=True)
class Fold:
    """x_c ≈ Σ_k scales[c, k] x_k + shifts[c] for removed channels c and those left k; how many in which way."""

    scales: Floats
    shifts: Floats
    counts: Mapping[str, int]
    assumed: bool


def recover(
    known: PropagatedMoments, alive: Mask, proto: onnx.ModelProto, ways: Collection[str] = WAYS, assume: bool = True
) -> DataFreeFit:
    """Change the weights of a compressed network for the better, without any data.

    Args:
        known: what is known of the original.
        alive: its channels that are left [labels].
        proto: the compressed network, whose layers put out tensors named as in the original.
        ways: what may be done, of ``WAYS``.
        assume: also do what rests on an assumption on the network's inputs.
    """
    dag = known.dag
    compressed = replace(dag.model, proto=proto)
    counts, assumed = dict.fromkeys(WAYS, 0), False
    chosen, _ = layers(dag, alive, compressed)
    if alive.all() or not chosen:
        return DataFreeFit(proto, counts, assumed)
    found, numbers = known.moments, known.numbers
    changes: dict[int, Change] = {}
    for layer in chosen:
        place = channel_axis(dag, layer.before, layer.mix)
        if place is None or alive[layer.mix.sources].all():
            continue
        name = place[0]
        still = (
            np.unique(dag.channel_ids[name][np.isfinite(numbers[name])]) if name in numbers else np.zeros(0, np.int64)
        )
        work = _Layer(dag, alive, layer, compressed, found[name], still)
        change = work.mended(ways, assume)
        if change is not None:
            changes[layer.after] = change
            counts = {way: counts[way] + work.counts[way] for way in WAYS}
            assumed |= work.assumed
    return DataFreeFit(changed(compressed, changes) if changes else proto, counts, assumed)


class _Layer:
    """One layer that is mended; ``still`` holds the steady ones among the channels that it reads."""

    def __init__(
        self, dag: ChannelDag, alive: Mask, layer: Layer, compressed: Model, belief: ChannelMoments, still: Ints
    ) -> None:
        self.dag, self.alive, self.layer, self.belief, self.still = dag, alive, layer, belief, still
        self.weight = layer.laid_out(layer.held_in(compressed))
        self.bias = np.zeros(self.weight.shape[0] * self.weight.shape[1])
        if layer.bias:
            self.bias += np.asarray(compressed.constant(layer.bias), np.float64).reshape(-1)
        self.counts = dict.fromkeys(WAYS, 0)
        self.assumed = False
        self.mean, self.covariance = belief.mean, belief.covariance()

    def mended(self, ways: Collection[str], assume: bool) -> Change | None:
        """The layer's new weights; None where it stays as it is."""
        mix, weight, bias = self.layer.mix, self.weight.copy(), self.bias.copy()
        after, width = 0, self.weight.shape[1]
        for group, sources in enumerate(mix.sources):
            out, kept = self.alive[mix.destinations[group]], self.alive[sources]
            if not out.any() or not kept.any():
                continue
            kernels = np.asarray(mix.kernels()[group], np.float64)[out]
            kernels = kernels.reshape(*kernels.shape[:2], -1)
            if after >= len(weight) or not _same(weight[after], kernels[:, kept]):
                return None
            done = self._group(kernels, sources, ways, assume)
            if done is not None:
                weight[after] = done[0]
                bias[after * width : (after + 1) * width] += done[1]
            after += 1
        if not any(self.counts.values()):
            return None
        shifted = not np.array_equal(bias, self.bias)
        return Change(self.layer, self.layer.stored(weight), bias if shifted else None)

    def _group(
        self, kernels: Floats, sources: Ints, ways: Collection[str], assume: bool
    ) -> tuple[Floats, Floats] | None:
        """Weights [O, I left, taps] and shift of the bias [O] of one group; None where it stays as it is."""
        channel_ids = np.unique(sources)
        distinct, kept = by_label(kernels, sources), self.alive[channel_ids]
        if distinct is None or kept.all():
            return None
        node = self.dag.model.proto.graph.node[self.layer.before]
        covers = covers_of(self.dag, node, self.layer.window.kernel if self.layer.window else ())
        taps = np.tile(covers, distinct.shape[2] // covers.size)
        where = self.belief.places(channel_ids)
        gone, left = where[~kept], where[kept]
        still = np.isin(channel_ids[~kept], self.still)
        fold = self._fold(gone, left, still, ways, assume)
        if not any(fold.counts.values()) or not self._better(fold, gone, left, distinct[:, ~kept], taps):
            return None
        self.counts = {way: self.counts[way] + fold.counts[way] for way in WAYS}
        self.assumed |= fold.assumed
        shift = (distinct[:, ~kept] @ taps) @ fold.shifts
        mixed = distinct[:, kept] + np.einsum("oct,ck->okt", distinct[:, ~kept], fold.scales)
        remaining = sources[self.alive[sources]]
        result = np.empty((len(kernels), remaining.size, kernels.shape[2]))
        result[:, np.argsort(remaining, kind="stable")] = mixed.reshape(len(kernels), -1, kernels.shape[2])
        return result, shift

    def _fold(self, gone: Ints, left: Ints, still: Mask, ways: Collection[str], assume: bool) -> Fold:
        """What the removed channels are replaced by."""
        free, mean = self.layer.free_bias, self.mean
        scales, shifts = np.zeros((gone.size, left.size)), np.zeros(gone.size)
        centred = free and self.belief.known and "means" in ways
        assumed = False
        constant, merged = still & free & ("constants" in ways), np.zeros(gone.size, bool)
        if "merged" in ways:
            copies, chosen = self._copies(gone, left)
            copies &= ~still & free
            scales[copies, chosen[copies]] = (
                self.covariance[gone, left[chosen]] / np.maximum(self.covariance[left, left][chosen], TINY)
            )[copies]
            shifts[copies] = mean[gone[copies]] - scales[copies] @ mean[left]
            rest = ~still & ~copies
            if rest.any() and (assume or self.belief.known):
                scales[rest] = self._regression(gone[rest], left, centred)
                assumed = not self.belief.known
            merged = np.asarray(scales.any(1))
        shifts[constant] = mean[gone[constant]]
        plain = ~still & centred & (shifts == 0)
        shifts[plain] = mean[gone[plain]] - scales[plain] @ mean[left]
        counts = ((constant & (shifts != 0)).sum(), (plain & ~merged & (shifts != 0)).sum(), merged.sum())
        return Fold(scales, shifts, dict(zip(WAYS, map(int, counts), strict=True)), assumed)

    def _copies(self, gone: Ints, left: Ints) -> tuple[Mask, Ints]:
        """Which removed channels are those left, scaled and shifted; and the most like it among these for each."""
        power = np.maximum(np.diag(self.covariance), TINY)
        like = np.square(self.covariance[np.ix_(gone, left)]) / power[gone][:, None] / power[left]
        like[:, power[left] < FAINT * power.mean()] = 0
        chosen = like.argmax(1)
        return np.asarray(like.max(1) > COPY), chosen

    def _regression(self, gone: Ints, left: Ints, centred: bool) -> Floats:
        """s [C, K] of the removed channels; of deviations from the mean where the bias takes up the mean."""
        offset = np.zeros_like(self.mean) if centred else self.mean
        own = self.covariance[np.ix_(left, left)] + np.outer(offset[left], offset[left])
        cross = self.covariance[np.ix_(gone, left)] + np.outer(offset[gone], offset[left])
        power = np.diag(own)
        return np.asarray(
            np.linalg.solve(own + np.diag(RIDGE * power + FLOOR * power.mean() + TINY), cross.T).T, np.float64
        )

    def _better(self, fold: Fold, gone: Ints, left: Ints, removed: Floats, taps: Floats) -> bool:
        """Whether the mean squared error of what is put out falls; ``removed`` kernels are [O, C, taps]."""
        folded = np.einsum("oct,odt->cd", removed, removed)
        sums, total, mean = removed @ taps, self.covariance, self.mean

        def error(scales: Floats, shifts: Floats) -> float:
            cross = scales @ total[np.ix_(left, gone)]
            spread = total[np.ix_(gone, gone)] - cross - cross.T + scales @ total[np.ix_(left, left)] @ scales.T
            offset = mean[gone] - scales @ mean[left] - shifts
            return float((folded * spread).sum() + np.square(sums @ offset).sum())

        return error(fold.scales, fold.shifts) < error(np.zeros_like(fold.scales), np.zeros_like(fold.shifts))


def _same(one: Array, other: Array) -> bool:
    """Whether two weights are equal, but for the last places."""
    return one.shape == other.shape and bool(np.abs(one - other).max(initial=0) <= NEAR * np.abs(other).max(initial=0))

"""What can be said about the channels of a network without running it on anything: means, variances, covariances.

The network is run on Gaussian variables (see ``gaussian``), its inputs being independent standard normal ones.

1. BatchNormalization says what mean and variance each channel that it reads has: whatever came before is rescaled to
   them, and what follows counts as known.
2. Channel mixing: a sum of many terms, taken as Gaussian; mean and covariance follow from those of what it reads.
3. Pointwise operators are run in onnxruntime on the tables of their operands.
4. Sums and products of operands with different variables take these as independent.
5. Movements and pooling pass channels on as they are.
6. What any other operator puts out is not known; steady channels (see ``steady``) hold their numbers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import onnx

from leanonnx.analysis.constant_channels import BORDERED, MOVING, POINTWISE, SUMMING, Numbers, constant_channels
from leanonnx.analysis.constants import Constants
from leanonnx.analysis.dag import ChannelDag
from leanonnx.graph.formats import is_float
from leanonnx.graph.nodes import LINEAR, attribute, bias_of, scale_and_shift, standard
from leanonnx.graph.positions import coverage, window_of
from leanonnx.numeric.arrays import Floats
from leanonnx.numeric.channel_ids import ChannelIds
from leanonnx.numeric.gaussian import POINTS, ChannelMoments, chosen, gaussian, together, unknown
from leanonnx.operators.facts import Trait
from leanonnx.operators.table import CONVOLUTIONS, names_with
from leanonnx.runtime.sessions import run_node
from leanonnx.statistics.moments import Moments, Statistics, by_label, channel_axis, places

EXTREMES = names_with(Trait.EXTREME)
POWERS = names_with(Trait.NORM)
AVERAGES = names_with(Trait.WHOLE_SUM) - POWERS
OPERAND_SIGNS = {"Add": 1, "Sum": 1, "Sub": -1}
"""The sign with which an operator adds its operands after the first."""
BENT = 0.99
HOLDING = names_with(Trait.PER_CHANNEL)
"""Operators whose constants tell the statistics of their channels."""
MOST_WORK = 4e10
"""Multiply-adds above which the channels that a node puts out are taken as independent."""
LARGEST = 4096
"""Channels of a tensor above which they are."""
NEIGHBOURS = 0.7
"""Correlation of a channel at two places next to each other."""
MOST = 0.5
"""Share of the kernels that have to read channels whose statistics the network holds."""


@dataclass(frozen=True)
class PropagatedMoments:
    """What is known of the tensors of a network without running it on anything, found when it is first asked for."""

    dag: ChannelDag

    @cached_property
    def numbers(self) -> Mapping[str, Numbers]:
        """Numbers of the steady channels of each tensor, laid out as its labels."""
        return constant_channels(self.dag).numbers

    @cached_property
    def moments(self) -> Mapping[str, ChannelMoments]:
        """What is believed of each tensor."""
        walk = _Walk(self.dag, self.numbers)
        for index, node in enumerate(self.dag.model.proto.graph.node):
            walk.visit(index, node)
        return walk.found


def propagate_statistics(known: PropagatedMoments) -> Statistics | None:
    """Statistics of all channels that kernels read; None where the network holds those of too few."""
    dag = known.dag
    if not any(node.op_type in HOLDING for node in dag.model.proto.graph.node):
        return None
    found = known.moments
    spots = places(dag)
    counts = {True: 0, False: 0}
    for node, mix in dag.kernel_blocks:
        spot = channel_axis(dag, node, mix) if mix.inward is not None else None
        if spot is not None and spot in spots:
            counts[found[spot[0]].known] += mix.sources.size * mix.destinations.shape[1]
    if not counts[True] or counts[True] < MOST * (counts[True] + counts[False]):
        return None
    read = {}
    for name, axis in spots:
        belief = found[name]
        read[name, axis] = Moments(belief.channel_ids, belief.covariance())
    variance = np.full(dag.count, np.nan)
    for belief in found.values():
        variance[belief.channel_ids] = belief.variance
    return Statistics(read, variance)


class _Walk:
    """What has been found while the nodes are visited; ``numbers`` are those of steady channels."""

    def __init__(self, dag: ChannelDag, numbers: Mapping[str, Numbers]) -> None:
        self.dag = dag
        self.found: dict[str, ChannelMoments] = {}
        self.fixed = Constants(dag.model, dag.observation).fixed
        self.steady = numbers

    def visit(self, index: int, node: onnx.NodeProto) -> None:
        """Find what is to be believed of what a node puts out."""
        op = standard(node)
        for name in node.input:
            if name in self.dag.channel_ids and name not in self.found:
                self.found[name] = unknown(np.unique(self.dag.channel_ids[name]))
        for slot, name in enumerate(node.output):
            if name not in self.dag.channel_ids:
                continue
            belief = None
            if slot == 0 and index in self.dag.kernel_blocks_of:
                belief = self._mixed(index, node, op)
            elif op == "BatchNormalization":
                belief = self._normalised(node)
            elif op in POINTWISE:
                belief = self._pointwise(node, op)
            elif op in MOVING | SUMMING | BORDERED:
                belief = self._moved(index, node, name)
            channel_ids = np.unique(self.dag.channel_ids[name])
            if belief is None or not np.array_equal(belief.channel_ids, channel_ids):
                belief = unknown(channel_ids)
            if not np.isfinite(belief.values).all():
                belief = unknown(channel_ids)
            self.found[name] = self._held(name, belief)

    def _held(self, name: str, belief: ChannelMoments) -> ChannelMoments:
        """A belief that knows which channels are steady."""
        numbers = self.steady.get(name)
        if numbers is None:
            return belief
        places = belief.places(self.dag.channel_ids[name].reshape(-1))
        values = belief.values.copy()
        fixed = np.isfinite(numbers.reshape(-1))
        values[:, places[fixed]] = numbers.reshape(-1)[fixed]
        return ChannelMoments(belief.channel_ids, values, belief.correlation, belief.known)

    # 2: mixing

    def _mixed(self, index: int, node: onnx.NodeProto, op: str) -> ChannelMoments | None:
        mix, *others = self.dag.kernel_blocks_of[index]
        place = channel_axis(self.dag, index, mix)
        weights = mix.kernels()
        if op not in LINEAR or others or place is None or not is_float(weights):
            return None
        bias = bias_of(node, mix.destinations.size, self.fixed, mix.onto)
        targets = mix.destinations.reshape(-1)
        if bias is None or np.unique(targets).size != targets.size:
            return None
        belief = self.found[place[0]]
        covers = covers_of(self.dag, node, weights.shape[3:])
        alpha = float(attribute(node, "alpha", 1.0)) if op == "Gemm" else 1.0
        mean, covariance = bias.copy(), np.zeros((targets.size, targets.size))
        total, near = belief.covariance(), _neighbours(node, weights.shape[3:])
        width = mix.destinations.shape[1]
        for group, sources in enumerate(mix.sources):
            kernels = by_label(alpha * np.asarray(weights[group], np.float64), sources)
            if kernels is None:
                return None
            where = belief.places(np.unique(sources))
            rows = slice(group * width, (group + 1) * width)
            taps = np.tile(covers, kernels.shape[2] // covers.size)
            mean[rows] += (kernels @ taps) @ belief.mean[where]
            kernels = _spread(kernels * np.sqrt(taps), near)
            covariance[rows, rows] = _through(kernels, total[np.ix_(where, where)])
        if mix.sources.shape[1] == 1 and width == 1 and np.unique(mix.sources).size == mix.sources.size:
            where = belief.places(mix.sources.reshape(-1))
            flat = alpha * np.asarray(weights, np.float64).reshape(targets.size, -1) * np.sqrt(covers)
            flat = _spread(flat, near)
            covariance = (flat @ flat.T) * total[np.ix_(where, where)]
        return gaussian(targets, mean, covariance, belief.known)

    # 1: normalisation by fixed statistics

    def _normalised(self, node: onnx.NodeProto) -> ChannelMoments | None:
        parameters = [self.fixed(name) for name in node.input[1:]]
        if any(p is None for p in parameters) or attribute(node, "training_mode", 0):
            return None
        gamma, beta, mean, variance = (np.asarray(p, np.float64) for p in parameters)
        before, after = (self.dag.channel_ids[name].reshape(-1) for name in (node.input[0], node.output[0]))
        belief = self.found[node.input[0]]
        if not before.size == after.size == gamma.size == belief.channel_ids.size:
            return None
        places = belief.places(before)
        order = np.argsort(places)
        belief = belief.rescaled(mean[order], np.maximum(variance[order], 0), known=True)
        self.found[node.input[0]] = self._held(node.input[0], belief)
        scale, shift = scale_and_shift(gamma, beta, mean, variance, attribute(node, "epsilon", 1e-5))
        values = belief.values.copy()
        values[:, places] = values[:, places] * scale + shift
        return chosen(ChannelMoments(belief.channel_ids, values, belief.correlation, known=True), places, after)

    # 3 and 4: pointwise

    def _pointwise(self, node: onnx.NodeProto, op: str) -> ChannelMoments | None:
        free = [name for name in dict.fromkeys(node.input) if name in self.dag.channel_ids]
        held = {name: self.fixed(name) for name in node.input if name and name not in free}
        if not free or any(value is None for value in held.values()):
            return None
        name = node.output[0]
        out = self.dag.channel_ids[name]
        views = [self._aligned(one, out) for one in free]
        if any(view is None for view in views):
            return None
        aligned = [view for view in views if view is not None]
        if all(view.correlation is aligned[0].correlation for view in aligned):
            feed = {one: view.values for one, view in zip(free, aligned, strict=True)}
            return self._tabulated(node, out, feed, aligned[0], held)
        if held or len(node.input) != len(free):
            return None
        return _joined(op, aligned)

    def _aligned(self, name: str, out: ChannelIds) -> ChannelMoments | None:
        """What an operand holds at each channel of an output, under the output's labels; None where it is broadcast."""
        channel_ids, belief = self.dag.channel_ids[name], self.found[name]
        if channel_ids.ndim > out.ndim:
            return None
        channel_ids = channel_ids.reshape((1,) * (out.ndim - channel_ids.ndim) + channel_ids.shape)
        if any(a not in (b, 1) for a, b in zip(channel_ids.shape, out.shape, strict=True)):
            return None
        unique, first = np.unique(out.reshape(-1), return_index=True)
        places = belief.places(np.broadcast_to(channel_ids, out.shape).reshape(-1)[first])
        return chosen(belief, places, unique)

    def _tabulated(
        self,
        node: onnx.NodeProto,
        out: ChannelIds,
        feed: Mapping[str, Floats],
        like: ChannelMoments,
        held: Mapping[str, Any],
    ) -> ChannelMoments | None:
        index = np.searchsorted(like.channel_ids, out)
        tables = {name: values[:, index] for name, values in feed.items()}
        constants = {name: np.asarray(value) for name, value in held.items()}
        kind = next((array.dtype for array in constants.values() if is_float(array)), np.dtype(np.float32))
        fed = {name: table.astype(kind) for name, table in tables.items()}
        result = run_node(node, fed, constants, self.dag.model.proto, self.dag.observation.replaced)
        if result is None or not is_float(result) or result.shape != (POINTS.size, *out.shape):
            return None
        first = np.unique(out.reshape(-1), return_index=True)[1]
        values = np.asarray(result, np.float64).reshape(POINTS.size, -1)[:, first]
        return ChannelMoments(like.channel_ids, values, like.correlation, like.known)

    # 5: movements and pooling

    def _moved(self, index: int, node: onnx.NodeProto, name: str) -> ChannelMoments | None:
        given = [self.found[one] for one in node.input if one in self.found]
        if not given:
            return None
        source = given[0] if len(given) == 1 else together(given)
        if index in self.dag.reductions:
            return self._summed(index, source) if standard(node) in AVERAGES else None
        wanted = np.unique(self.dag.channel_ids[name])
        origin = wanted.copy()
        for link in self.dag.fixed_edges_of.get(index, []):
            back = dict(zip(link.destinations.reshape(-1).tolist(), link.sources.reshape(-1).tolist(), strict=True))
            origin = np.array([back.get(one, one) for one in origin.tolist()], np.int64)
        places = np.minimum(source.places(origin), source.channel_ids.size - 1)
        if not np.array_equal(source.channel_ids[places], origin):
            return None
        passed = chosen(source, places, wanted)
        return _bent(passed, standard(node)) if standard(node) in EXTREMES | POWERS else passed

    def _summed(self, index: int, source: ChannelMoments) -> ChannelMoments | None:
        """Channels that are added up in one."""
        for node, _, link in self.dag.sums:
            if node == index and link.gains is not None:
                where, gains = source.places(link.sources), link.gains.astype(np.float64)
                covariance = gains @ source.covariance()[np.ix_(where, where)] @ gains
                mean = gains @ source.mean[where]
                return gaussian(link.destinations[:1], mean.reshape(1), covariance.reshape(1, 1), source.known)
        return None


def _bent(belief: ChannelMoments, op: str) -> ChannelMoments:
    """Channels of which the largest positions or sums of powers are left: no copies now, but those that rise alike."""
    bends = belief.covariance() < 0 if op in EXTREMES else ~np.eye(belief.channel_ids.size, dtype=bool)
    return replace(belief, correlation=np.where(bends, BENT * belief.correlation, belief.correlation))


def _joined(op: str, operands: list[ChannelMoments]) -> ChannelMoments | None:
    """Independent operands added or multiplied, channel by channel."""
    known = all(one.known for one in operands)
    channel_ids, mean, covariance = operands[0].channel_ids, operands[0].mean, operands[0].covariance()
    for other in operands[1:]:
        shift, spread = other.mean, other.covariance()
        if op in OPERAND_SIGNS:
            mean, covariance = mean + OPERAND_SIGNS[op] * shift, covariance + spread
        elif op == "Mul":
            covariance = covariance * (spread + np.outer(shift, shift)) + np.outer(mean, mean) * spread
            mean = mean * shift
        else:
            return None
    return gaussian(channel_ids, mean, covariance, known)


def _through(kernels: Floats, covariance: Floats) -> Floats:
    """Σ_t K_t Σ K_tᵀ [O, O] for kernels [O, C, taps]; its diagonal alone where that is too much work."""
    out, width, taps = kernels.shape
    if out > LARGEST or taps * out * width * (out + width) > MOST_WORK:
        diagonal: Floats = np.diag(np.square(kernels).sum(2) @ np.diag(covariance))
        return diagonal
    found = np.zeros((out, out))
    for tap in range(taps):
        part = np.ascontiguousarray(kernels[:, :, tap])
        found += part @ covariance @ part.T
    return found


def _neighbours(node: onnx.NodeProto, kernel: tuple[int, ...]) -> Floats:
    """The root of the correlation between the places under the taps of a kernel [taps, taps].

    Taps of a transposed convolution that meet at one place of the output are far apart.
    """
    if standard(node) != "Conv":
        return np.eye(1)
    places = np.indices(kernel).reshape(len(kernel), -1)
    apart = np.abs(places[:, :, None] - places[:, None]).sum(0)
    return np.linalg.cholesky(NEIGHBOURS**apart)


def _spread(kernels: Floats, near: Floats) -> Floats:
    """Kernels [..., positions · taps] for taps that are independent in place of correlated ones."""
    parts = kernels.reshape(*kernels.shape[:-1], -1, len(near)) @ near
    return np.asarray(parts.reshape(kernels.shape))


def covers_of(dag: ChannelDag, node: onnx.NodeProto, kernel: tuple[int, ...]) -> Floats:
    """At which share of the output's positions each tap of a kernel stands over the input [taps]."""
    if node.op_type not in CONVOLUTIONS:
        return np.ones(1)
    window = window_of(node, kernel)
    return coverage(window, dag.shapes[node.input[0]][2:], dag.shapes[node.output[0]][2:])

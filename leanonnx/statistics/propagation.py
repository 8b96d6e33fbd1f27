"""Moment propagation: channel means, variances and covariances of a network, estimated without data.

Gaussian variables (see ``gaussian``) are propagated through the network; its inputs are independent standard normals.

1. BatchNormalization stores the mean and variance of its input channels: the propagated input is rescaled to them, and
   everything downstream counts as known.
2. Channel mixing: a sum of many terms, assumed Gaussian; mean and covariance follow from those of the input.
3. Pointwise operators are run in onnxruntime on the tables of their operands.
4. Operands of sums and products that depend on different variables are assumed independent.
5. Movement and pooling operators pass channels through unchanged.
6. The output of any other operator is unknown; constant channels (see ``constant_channels``) keep their values.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from types import MappingProxyType
from typing import Any

import numpy as np
import onnx

from leanonnx.analysis.constant_channels import (
    BORDER_OPERATORS,
    NUMBER_PRESERVING,
    POINTWISE_OPERATORS,
    SUMMING_OPERATORS,
    Numbers,
    constant_channels,
)
from leanonnx.analysis.constants import Constants
from leanonnx.analysis.dag import ChannelDag
from leanonnx.graph.formats import is_float
from leanonnx.graph.nodes import LINEAR, attribute, bias_of, scale_and_shift, standard_name
from leanonnx.graph.positions import coverage, window_of
from leanonnx.numeric.arrays import Floats
from leanonnx.numeric.channel_ids import ChannelIds
from leanonnx.numeric.gaussian import (
    POINTS,
    ChannelMoments,
    combine_independent,
    gaussian_channels,
    select_channels,
    unknown_channels,
)
from leanonnx.operators.facts import Trait
from leanonnx.operators.table import CONVOLUTIONS, names_with
from leanonnx.runtime.sessions import run_node
from leanonnx.statistics.mixing import correlation_root, decorrelate_taps, output_covariance
from leanonnx.statistics.moments import Moments, Statistics, channel_axis, kernels_by_channel, measured_axes

EXTREMES = names_with(Trait.EXTREME)
POWERS = names_with(Trait.NORM)
AVERAGES = names_with(Trait.WHOLE_SUM) - POWERS
OPERAND_SIGNS = {"Add": 1, "Sum": 1, "Sub": -1}
"""The sign with which an operator adds its operands after the first."""
CORRELATION_FACTOR = 0.99
"""Factor on the correlation of channels that a nonlinear reduction has passed: no longer exact copies."""
STATISTICS_OPERATORS = names_with(Trait.PER_CHANNEL)
"""Operators whose constants hold the statistics of their channels, or fix them."""
NEVER_UNREAD: Mapping[str, int] = MappingProxyType({})
MIN_KNOWN_SHARE = 0.5
"""Smallest share of kernels that must read channels with known statistics."""


@dataclass(frozen=True)
class PropagatedMoments:
    """Moments and constant channels of the tensors of a network, computed without data on first use."""

    dag: ChannelDag

    @cached_property
    def constant_values(self) -> Mapping[str, Numbers]:
        """Values of the constant channels of each tensor, laid out as its channel ids; NaN for other channels."""
        return constant_channels(self.dag).numbers

    @cached_property
    def moments(self) -> Mapping[str, ChannelMoments]:
        """Propagated moments of each tensor."""
        walk = _Propagation(self.dag, self.constant_values)
        for index, node in enumerate(self.dag.model.proto.graph.node):
            walk.visit(index, node)
        return walk.moments

    def moments_in_order(self, names: Collection[str]) -> Iterator[tuple[str, ChannelMoments]]:
        """Yield the moments of some tensors, each as soon as it is final; nothing is kept for longer than it is read.

        A BatchNormalization that reads a tensor rescales its moments, which are final after that.
        """
        if "moments" in self.__dict__:
            yield from ((name, self.moments[name]) for name in self.moments if name in names)
            return
        nodes = self.dag.model.proto.graph.node
        final, unread = _last_visits(self.dag)
        others = {name: index for name, index in unread.items() if name not in names}
        walk = _Propagation(self.dag, self.constant_values, others)
        for index, node in enumerate(nodes):
            walk.visit(index, node)
            concerned = [name for name in dict.fromkeys([*node.input, *node.output]) if name in walk.moments]
            for name in concerned:
                wanted = final[name] == index and name in names
                if unread[name] > index:
                    yield from [(name, walk.moments[name])] if wanted else ()
                elif wanted:
                    yield name, walk.moments.pop(name)
                else:
                    del walk.moments[name]


def _last_visits(dag: ChannelDag) -> tuple[dict[str, int], dict[str, int]]:
    """Index of the node after which the moments of each tensor are final, and of that after which none reads them.

    Moments that only one node reads count as final when it has read them.
    """
    final: dict[str, int] = {}
    unread: dict[str, int] = {}
    for index, node in enumerate(dag.model.proto.graph.node):
        for name in dict.fromkeys((*node.input, *node.output)):
            unread[name] = index
            alone = len(dag.model.consumers.get(name, ())) == 1
            if name not in final or alone or standard_name(node) == "BatchNormalization":
                final[name] = index
    return final, unread


def propagate_statistics(known: PropagatedMoments) -> Statistics | None:
    """Return statistics of all channels that kernels read; None if the network stores those of too few channels."""
    dag = known.dag
    if not any(node.op_type in STATISTICS_OPERATORS for node in dag.model.proto.graph.node):
        return None
    moments = known.moments
    axes = measured_axes(dag)
    counts = {True: 0, False: 0}
    for node, block in dag.kernel_blocks:
        place = channel_axis(dag, node, block) if block.input_channel_ids is not None else None
        if place is not None and place in axes:
            counts[moments[place[0]].is_known] += block.sources.size * block.destinations.shape[1]
    if not counts[True] or counts[True] < MIN_KNOWN_SHARE * (counts[True] + counts[False]):
        return None
    read = {}
    for name, axis in axes:
        read[name, axis] = Moments(moments[name].channel_ids, moments[name].covariance())
    variance = np.full(dag.count, np.nan)
    for each in moments.values():
        variance[each.channel_ids] = each.variance
    return Statistics(read, variance)


class _Propagation:
    """State of the propagation while nodes are visited.

    ``numbers`` are the values of constant channels; ``unread``: index of the last node that reads a tensor, if its
    moments are not wanted after that.
    """

    def __init__(
        self, dag: ChannelDag, numbers: Mapping[str, Numbers], unread: Mapping[str, int] = NEVER_UNREAD
    ) -> None:
        self.dag, self.unread = dag, unread
        self.moments: dict[str, ChannelMoments] = {}
        self.fixed = Constants(dag.model, dag.observation).fixed_value
        self.numbers = numbers

    def visit(self, index: int, node: onnx.NodeProto) -> None:
        """Compute the moments of the outputs of a node."""
        op = standard_name(node)
        for name in node.input:
            if name in self.dag.channel_ids and name not in self.moments:
                self.moments[name] = unknown_channels(np.unique(self.dag.channel_ids[name]))
        for slot, name in enumerate(node.output):
            if name not in self.dag.channel_ids:
                continue
            moments = None
            if slot == 0 and index in self.dag.kernel_blocks_of:
                moments = self._mix_channels(index, node, op)
            elif op == "BatchNormalization":
                moments = self._normalise(node)
            elif op in POINTWISE_OPERATORS:
                moments = self._pointwise(index, node, op)
            elif op in NUMBER_PRESERVING | SUMMING_OPERATORS | BORDER_OPERATORS:
                moments = self._move_channels(index, node, name)
            channel_ids = np.unique(self.dag.channel_ids[name])
            if moments is None or not np.array_equal(moments.channel_ids, channel_ids):
                moments = unknown_channels(channel_ids)
            if not np.isfinite(moments.values).all():
                moments = unknown_channels(channel_ids)
            self.moments[name] = self._fill_constants(name, moments)

    def _fill_constants(self, name: str, moments: ChannelMoments) -> ChannelMoments:
        """Return the moments with the values of constant channels filled in."""
        numbers = self.numbers.get(name)
        if numbers is None:
            return moments
        places = moments.indices_of(self.dag.channel_ids[name].reshape(-1))
        values = moments.values.copy()
        fixed = np.isfinite(numbers.reshape(-1))
        values[:, places[fixed]] = numbers.reshape(-1)[fixed]
        return ChannelMoments(
            channel_ids=moments.channel_ids, values=values, correlation=moments.correlation, is_known=moments.is_known
        )

    # 2: mixing

    def _mix_channels(self, index: int, node: onnx.NodeProto, op: str) -> ChannelMoments | None:
        block, *others = self.dag.kernel_blocks_of[index]
        place = channel_axis(self.dag, index, block)
        weights = block.kernels()
        if op not in LINEAR or others or place is None or not is_float(weights):
            return None
        bias = bias_of(node, block.destinations.size, self.fixed, block.output_axis)
        targets = block.destinations.reshape(-1)
        if bias is None or np.unique(targets).size != targets.size:
            return None
        moments = self.moments[place[0]]
        covers = tap_coverage(self.dag, node, weights.shape[3:])
        alpha = float(attribute(node, "alpha", 1.0)) if op == "Gemm" else 1.0
        mean, covariance = bias.copy(), np.zeros((targets.size, targets.size))
        total, root = moments.covariance(), correlation_root(node, weights.shape[3:])
        width, every = block.destinations.shape[1], np.arange(len(total))
        for group, sources in enumerate(block.sources):
            kernels = kernels_by_channel(alpha * np.asarray(weights[group], np.float64), sources)
            if kernels is None:
                return None
            where = moments.indices_of(np.unique(sources))
            rows = slice(group * width, (group + 1) * width)
            taps = np.tile(covers, kernels.shape[2] // covers.size)
            mean[rows] += (kernels @ taps) @ moments.mean[where]
            kernels = decorrelate_taps(kernels * np.sqrt(taps), root)
            part = output_covariance(kernels, total if np.array_equal(where, every) else total[np.ix_(where, where)])
            if len(block.sources) == 1:
                covariance = part
            else:
                covariance[rows, rows] = part
        if block.sources.shape[1] == 1 and width == 1 and np.unique(block.sources).size == block.sources.size:
            where = moments.indices_of(block.sources.reshape(-1))
            flat = alpha * np.asarray(weights, np.float64).reshape(targets.size, -1) * np.sqrt(covers)
            flat = decorrelate_taps(flat, root)
            covariance = (flat @ flat.T) * total[np.ix_(where, where)]
        return gaussian_channels(targets, mean, covariance, moments.is_known)

    # 1: normalisation by stored statistics

    def _normalise(self, node: onnx.NodeProto) -> ChannelMoments | None:
        parameters = [self.fixed(name) for name in node.input[1:]]
        if any(p is None for p in parameters) or attribute(node, "training_mode", 0):
            return None
        gamma, beta, mean, variance = (np.asarray(p, np.float64) for p in parameters)
        before, after = (self.dag.channel_ids[name].reshape(-1) for name in (node.input[0], node.output[0]))
        moments = self.moments[node.input[0]]
        if not before.size == after.size == gamma.size == moments.channel_ids.size:
            return None
        places = moments.indices_of(before)
        order = np.argsort(places)
        moments = moments.rescale(mean[order], np.maximum(variance[order], 0), is_known=True)
        self.moments[node.input[0]] = self._fill_constants(node.input[0], moments)
        scale, shift = scale_and_shift(gamma, beta, mean, variance, attribute(node, "epsilon", 1e-5))
        values = moments.values.copy()
        values[:, places] = values[:, places] * scale + shift
        return select_channels(
            ChannelMoments(
                channel_ids=moments.channel_ids, values=values, correlation=moments.correlation, is_known=True
            ),
            places,
            after,
        )

    # 3 and 4: pointwise

    def _pointwise(self, index: int, node: onnx.NodeProto, op: str) -> ChannelMoments | None:
        free = [name for name in dict.fromkeys(node.input) if name in self.dag.channel_ids]
        constants = {name: self.fixed(name) for name in node.input if name and name not in free}
        if not free or any(value is None for value in constants.values()):
            return None
        name = node.output[0]
        out = self.dag.channel_ids[name]
        views = [self._align_operand(one, out) for one in free]
        if any(view is None for view in views):
            return None
        operands = [view for view in views if view is not None]
        if all(view.correlation is operands[0].correlation for view in operands):
            feed = {one: view.values for one, view in zip(free, operands, strict=True)}
            return self._run_on_tables(node, out, feed, operands[0], constants)
        if constants or len(node.input) != len(free):
            return None
        del views
        for one in free:
            if self.unread.get(one) == index:
                del self.moments[one]
        return _combine_operands(op, operands)

    def _align_operand(self, name: str, out: ChannelIds) -> ChannelMoments | None:
        """Moments of an operand under the output's channel ids; None if it is broadcast along a channel axis."""
        channel_ids, moments = self.dag.channel_ids[name], self.moments[name]
        if channel_ids.ndim > out.ndim:
            return None
        channel_ids = channel_ids.reshape((1,) * (out.ndim - channel_ids.ndim) + channel_ids.shape)
        if any(a not in (b, 1) for a, b in zip(channel_ids.shape, out.shape, strict=True)):
            return None
        unique, first = np.unique(out.reshape(-1), return_index=True)
        places = moments.indices_of(np.broadcast_to(channel_ids, out.shape).reshape(-1)[first])
        return select_channels(moments, places, unique)

    def _run_on_tables(
        self,
        node: onnx.NodeProto,
        out: ChannelIds,
        feed: Mapping[str, Floats],
        like: ChannelMoments,
        fixed: Mapping[str, Any],
    ) -> ChannelMoments | None:
        index = np.searchsorted(like.channel_ids, out)
        tables = {name: values[:, index] for name, values in feed.items()}
        constants = {name: np.asarray(value) for name, value in fixed.items()}
        kind = next((array.dtype for array in constants.values() if is_float(array)), np.dtype(np.float32))
        inputs = {name: table.astype(kind) for name, table in tables.items()}
        result = run_node(node, inputs, constants, self.dag.model.proto, self.dag.observation.replaced_formats)
        if result is None or not is_float(result) or result.shape != (POINTS.size, *out.shape):
            return None
        first = np.unique(out.reshape(-1), return_index=True)[1]
        values = np.asarray(result, np.float64).reshape(POINTS.size, -1)[:, first]
        return ChannelMoments(
            channel_ids=like.channel_ids, values=values, correlation=like.correlation, is_known=like.is_known
        )

    # 5: movements and pooling

    def _move_channels(self, index: int, node: onnx.NodeProto, name: str) -> ChannelMoments | None:
        given = [self.moments[one] for one in node.input if one in self.moments]
        if not given:
            return None
        source = given[0] if len(given) == 1 else combine_independent(given)
        if index in self.dag.reductions:
            return self._sum_channels(index, source) if standard_name(node) in AVERAGES else None
        wanted = np.unique(self.dag.channel_ids[name])
        origin = wanted.copy()
        for edges in self.dag.fixed_edges_of.get(index, []):
            back = dict(zip(edges.destinations.reshape(-1).tolist(), edges.sources.reshape(-1).tolist(), strict=True))
            origin = np.array([back.get(one, one) for one in origin.tolist()], np.int64)
        places = np.minimum(source.indices_of(origin), source.channel_ids.size - 1)
        if not np.array_equal(source.channel_ids[places], origin):
            return None
        passed = select_channels(source, places, wanted)
        return _weaken_correlation(passed, standard_name(node)) if standard_name(node) in EXTREMES | POWERS else passed

    def _sum_channels(self, index: int, source: ChannelMoments) -> ChannelMoments | None:
        """Moments of the sum of several channels."""
        for node, _, edges in self.dag.channel_sums:
            if node == index and edges.gains is not None:
                where, gains = source.indices_of(edges.sources), edges.gains.astype(np.float64)
                covariance = gains @ source.covariance()[np.ix_(where, where)] @ gains
                mean = gains @ source.mean[where]
                return gaussian_channels(
                    edges.destinations[:1], mean.reshape(1), covariance.reshape(1, 1), source.is_known
                )
        return None


def _weaken_correlation(moments: ChannelMoments, op: str) -> ChannelMoments:
    """Reduce correlations after a nonlinear reduction; for maxima only negative ones, as other copies stay copies."""
    bends = moments.covariance() < 0 if op in EXTREMES else ~np.eye(moments.channel_ids.size, dtype=bool)
    return replace(moments, correlation=np.where(bends, CORRELATION_FACTOR * moments.correlation, moments.correlation))


def _combine_operands(op: str, operands: list[ChannelMoments]) -> ChannelMoments | None:
    """Moments of the sum or product of independent operands, channel by channel; None for other operators.

    The list is emptied, so that no operand is kept for longer than needed.
    """
    known = all(one.is_known for one in operands)
    first = operands.pop(0)
    channel_ids, mean, covariance = first.channel_ids, first.mean, first.covariance()
    del first
    while operands:
        other = operands.pop(0)
        shift, spread = other.mean, other.covariance()
        if op in OPERAND_SIGNS:
            mean = mean + OPERAND_SIGNS[op] * shift
            covariance += spread
        elif op == "Mul":
            covariance = covariance * (spread + np.outer(shift, shift)) + np.outer(mean, mean) * spread
            mean = mean * shift
        else:
            return None
    return gaussian_channels(channel_ids, mean, covariance, known)


def tap_coverage(dag: ChannelDag, node: onnx.NodeProto, kernel: tuple[int, ...]) -> Floats:
    """Share of output positions at which each kernel tap lies within the input, not in the padding [taps]."""
    if node.op_type not in CONVOLUTIONS:
        return np.ones(1)
    window = window_of(node, kernel)
    return coverage(window, dag.shapes[node.input[0]][2:], dag.shapes[node.output[0]][2:])

"""Constant channels: channels that hold the same number at every position for all inputs.

These numbers are propagated through the network: each tensor has an array in the shape of its channel ids that holds
the number of a constant channel, and NaN for all others.  Five families of operators propagate numbers; all others
output NaN.

1. Pointwise operators (activations, joins, …) are evaluated on the numbers in onnxruntime, one node at a time.
2. Movements and pooling without a border propagate any number; a mean over channels does if all channels hold the same
   number, where removed channels count as zero.
3. Operators that sum or sample with a border of zeros propagate only zero; a Pad only the number that it fills in.
4. Normalisations by fixed statistics are linear in each channel; a scale of zero makes a channel constant.
5. Channel mixing: an output channel is constant if every kernel that reaches it is zero or reads a constant channel
   (of number zero if the kernel can overlap a border of zeros).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from leanonnx.analysis.constants import Constants
from leanonnx.analysis.dag import ChannelDag
from leanonnx.graph.formats import is_float
from leanonnx.graph.nodes import LINEAR, attribute, bias_of, is_padded, scale_and_shift, standard_name
from leanonnx.numeric.arrays import Array, Floats
from leanonnx.numeric.channel_ids import ChannelIds, Mask
from leanonnx.operators.facts import Family, Trait
from leanonnx.operators.table import CONVOLUTIONS, names_of, names_with
from leanonnx.rules.call import FixedEdges, KernelBlock
from leanonnx.runtime.sessions import run_node

Numbers = Floats
"""Numbers of constant channels, NaN for all other channels."""
MIXING_OPERATORS = LINEAR | {"FusedConv"}
EVEN = MIXING_OPERATORS & names_of(Family.CONVOLUTION, Family.GEMM, Family.MATMUL)
"""Operators that compute all positions of the output in the same way, but for padding."""
POINTWISE_OPERATORS = names_with(Trait.POINTWISE)
DIAGONAL_OPERATORS = names_with(Trait.PER_CHANNEL)
NUMBER_PRESERVING = names_with(Trait.PASSES_CONSTANT)
SUMMING_OPERATORS = names_with(Trait.ACCUMULATES)
BORDER_OPERATORS = names_with(Trait.BORDERED)
DIVIDING = names_with(Trait.DIVIDES)
SINGLE_BLOCK = 1
RESIDUAL_SLOT = 3
"""Input slot of the tensor that a FusedConv adds."""


@dataclass(frozen=True, kw_only=True)
class Flow:
    """Kernels of a channel-mixing node, and the constant channels that they read.

    ``nonzero`` [G, O, I]: True for kernels that are not zero.
    ``numbers`` [G, I]: numbers of the constant channels that the node reads (NaN: not constant).
    ``is_uniform``: True if a constant channel adds the same number at every position.
    """

    node: int
    block: KernelBlock
    nonzero: NDArray[np.bool_]
    numbers: Numbers
    is_uniform: bool

    def needed_kernels(self, folded: bool) -> NDArray[np.bool_]:
        """Mask [G, O, I] of kernels that are needed; ``folded``: constant channels are folded into a bias instead."""
        idle = np.isfinite(self.numbers) if folded and self.is_uniform else self.numbers == 0
        return self.nonzero & ~idle[:, None, :]

    def constant_sums(self, given: Numbers) -> Numbers:
        """Sum of constant channels in each output channel [G, O]; NaN if a kernel reads any other channel."""
        known = np.isfinite(given) if self.is_uniform else given == 0
        sums = np.where((self.nonzero & ~known[:, None, :]).any(2), np.nan, 0.0)
        places = np.argwhere(known & (given != 0))
        weights = self.block.kernels() if len(places) else np.zeros(0)
        for group, channel in places:
            kernels = np.asarray(weights[group, :, channel], np.float64)
            sums[group] += given[group, channel] * kernels.reshape(kernels.shape[0], -1).sum(1)
        return sums


@dataclass(frozen=True)
class ConstantChannels:
    """Numbers of constant channels by tensor, in the shape of its channel ids, and the kernels that read them."""

    numbers: Mapping[str, Numbers]
    flows: tuple[Flow, ...]

    def constant_tensors(self, dag: ChannelDag, needed: Mask, kept: Mask | None = None) -> dict[str, Numbers]:
        """Tensors all of whose needed channels are constant, with the numbers of the kept channels (None: of all).

        The numbers are in the shape of the channel ids; a single one if all needed channels hold the same.
        """
        tensors = {}
        for name, numbers in self.numbers.items():
            channel_ids = dag.channel_ids[name]
            known = numbers[needed[channel_ids]]
            if not known.size or np.isnan(known).any():
                continue
            if (known == known[0]).all():
                tensors[name] = np.full((1,) * numbers.ndim, known[0])
                continue
            filled = np.where(needed[channel_ids], numbers, 0.0)
            left = filled if kept is None else _kept_entries(filled, kept[channel_ids])
            if left is not None:
                tensors[name] = left
        return tensors


def _kept_entries(numbers: Numbers, kept: NDArray[np.bool_]) -> Numbers | None:
    """The numbers of kept channels; None if these are no slices along one axis."""
    if kept.all():
        return numbers
    axes = [axis for axis, size in enumerate(kept.shape) if size > 1]
    return np.compress(kept.reshape(-1), numbers, axis=axes[0]) if len(axes) == 1 else None


def constant_channels(dag: ChannelDag, alive: Mask | None = None) -> ConstantChannels:
    """Find the constant channels of a network in which channels that are not ``alive`` are zero."""
    propagation = _Propagation(dag, dag.all_alive if alive is None else alive)
    for index, node in enumerate(dag.model.proto.graph.node):
        if node.output and node.output[0] in dag.channel_ids:
            propagation.visit(index, node)
    return ConstantChannels(propagation.numbers, tuple(propagation.flows))


class _Propagation:
    """Numbers and flows of the nodes visited so far; ``kinds`` holds the data types of tensors with numbers."""

    def __init__(self, dag: ChannelDag, alive: Mask) -> None:
        self.dag, self.alive = dag, alive
        self.numbers: dict[str, Numbers] = {}
        self.kinds: dict[str, np.dtype[Any]] = {}
        self.flows: list[Flow] = []
        self.fixed = Constants(dag.model, dag.observation).fixed_value
        self.concats = {node for node, _ in dag.concat_slots}

    def visit(self, index: int, node: onnx.NodeProto) -> None:
        """Propagate numbers through a node, and record the flow of its kernels."""
        op = _operator(node)
        blocks = [block for block in self.dag.kernel_blocks_of.get(index, []) if block.input_channel_ids is not None]
        if blocks:
            self._visit_mixing(index, node, op, blocks)
        elif op in DIAGONAL_OPERATORS:
            self._visit_scaling(node, op)
        elif op in POINTWISE_OPERATORS:
            self._visit_pointwise(node)
        elif op in NUMBER_PRESERVING | SUMMING_OPERATORS | BORDER_OPERATORS and any(
            name in self.numbers for name in node.input
        ):
            self._visit_movement(index, node, op)

    def _record(self, name: str, numbers: Array, kind: np.dtype[Any]) -> None:
        """Record the numbers of a tensor that are the same at all positions of a channel."""
        channel_ids = self.dag.channel_ids[name]
        array = np.asarray(numbers, np.float64)
        array = array.reshape((1,) * (channel_ids.ndim - array.ndim) + array.shape)
        axes = tuple(k for k in range(channel_ids.ndim) if channel_ids.shape[k] == 1 and array.shape[k] != 1)
        low, high = array.min(axes, keepdims=True), array.max(axes, keepdims=True)
        shared = np.broadcast_to(np.where((low == high) & np.isfinite(low), low, np.nan), channel_ids.shape)
        if not np.isnan(shared).all():
            self.numbers[name], self.kinds[name] = shared, kind

    def _vector(self, name: str, axis: int, size: int) -> Numbers:
        """Number of each slice of a tensor along an axis [size]; NaN if a slice is not constant."""
        numbers = self.numbers.get(name)
        if numbers is None:
            return np.full(size, np.nan)
        rows = np.moveaxis(numbers, axis, 0).reshape(numbers.shape[axis], -1)
        return np.broadcast_to(np.where((rows == rows[:, :1]).all(1), rows[:, 0], np.nan), (size,))

    # 5: mixing

    def _visit_mixing(self, index: int, node: onnx.NodeProto, op: str, blocks: list[KernelBlock]) -> None:
        flows = [self._flow(index, node, block, op) for block in blocks]
        self.flows.extend(flows)
        if op not in MIXING_OPERATORS or len(flows) != SINGLE_BLOCK or not node.output[0]:
            return
        flow = flows[0]
        bias = bias_of(node, flow.block.destinations.size, self.fixed, flow.block.output_axis)
        if bias is None:
            return
        if len(node.input) > RESIDUAL_SLOT and node.input[RESIDUAL_SLOT]:
            bias = bias + self._vector(node.input[RESIDUAL_SLOT], 1, bias.size)
        given = np.where(self.alive[flow.block.sources], flow.numbers, 0.0)
        alpha = attribute(node, "alpha", 1.0) if op == "Gemm" else 1.0
        numbers = (alpha * flow.constant_sums(given)).reshape(-1) + bias
        if op == "FusedConv":
            numbers = self._activate(node, numbers, flow.block.kernels())
        self._record_channels(node.output[0], flow.block.destinations.reshape(-1), numbers, flow.block.kernels().dtype)

    def _flow(self, index: int, node: onnx.NodeProto, block: KernelBlock, op: str) -> Flow:
        weights = block.kernels()
        groups, width = block.sources.shape
        if self.fixed(node.input[block.slot]) is None or not is_float(weights):
            nonzero = np.ones((groups, block.destinations.shape[1], width), bool)
            return Flow(
                node=index, block=block, nonzero=nonzero, numbers=np.full(block.sources.shape, np.nan), is_uniform=False
            )
        nonzero = (weights != 0).any(axis=tuple(range(3, weights.ndim)))
        given = np.full(block.sources.shape, np.nan)
        if op in MIXING_OPERATORS:
            given = self._vector(node.input[1 - block.slot], block.input_axis, block.sources.size).reshape(
                block.sources.shape
            )
        even = op in EVEN and not (op in CONVOLUTIONS and is_padded(node))
        return Flow(node=index, block=block, nonzero=nonzero, numbers=given, is_uniform=even)

    def _activate(self, node: onnx.NodeProto, numbers: Numbers, weights: Array) -> Numbers:
        """Apply the activation of a FusedConv to numbers [O], by running the node with kernels of zeros."""
        alone = onnx.NodeProto(op_type=node.op_type, domain=node.domain, input=["x", "w", "b"], output=node.output)
        alone.attribute.extend(a for a in node.attribute if a.name.startswith("activation"))
        pixel = (1,) * (weights.ndim - 3)
        data = np.zeros((1, 1, *pixel), weights.dtype)
        bias = np.nan_to_num(numbers).astype(weights.dtype)
        kernels = np.zeros((numbers.size, 1, *pixel), weights.dtype)
        result = self._evaluate(alone, {"x": data}, {"w": kernels, "b": bias})
        if result is None:
            return np.full(numbers.size, np.nan)
        return np.where(np.isnan(numbers), np.nan, result.reshape(-1))

    def _record_channels(self, name: str, channel_ids: ChannelIds, numbers: Numbers, kind: np.dtype[Any]) -> None:
        """Record a tensor by the numbers of channels; all other channels are not constant."""
        order = np.argsort(channel_ids, kind="stable")
        wanted = self.dag.channel_ids[name]
        place = np.minimum(np.searchsorted(channel_ids[order], wanted), channel_ids.size - 1)
        known = np.where(channel_ids[order][place] == wanted, numbers[order][place], np.nan)
        self._record(name, known, kind)

    # 4: normalisation by fixed statistics

    def _visit_scaling(self, node: onnx.NodeProto, op: str) -> None:
        parameters = [self.fixed(name) for name in node.input[1:]]
        if any(p is None for p in parameters) or attribute(node, "training_mode", 0):
            return
        first, *others = [np.asarray(p) for p in parameters]
        kind, gamma = first.dtype, np.asarray(first, np.float64)
        beta, *statistics = [np.asarray(p, np.float64) for p in others]
        given = self._vector(node.input[0], 1, gamma.size)
        if op == "BatchNormalization":
            mean, variance = statistics
            scale, shift = scale_and_shift(gamma, beta, mean, variance, attribute(node, "epsilon", 1e-5))
            numbers = scale * given + shift
        else:
            numbers = np.where(np.isfinite(given), beta, np.nan)
        numbers = np.where(gamma == 0, beta, numbers)
        self._record(node.output[0], numbers.reshape(-1, *[1] * (self.dag.channel_ids[node.output[0]].ndim - 2)), kind)

    # 1: pointwise

    def _visit_pointwise(self, node: onnx.NodeProto) -> None:
        free = [name for name in dict.fromkeys(node.input) if name in self.dag.channel_ids]
        given = {name: self.numbers.get(name, _unknown_numbers(self.dag.channel_ids[name].ndim)) for name in free}
        values = {name: self.fixed(name) for name in node.input if name and name not in given}
        if not given or any(value is None for value in values.values()):
            return
        constants = {name: np.asarray(value) for name, value in values.items()}
        operands = (*given.values(), *constants.values())
        zero = _any([numbers == 0 for numbers in operands if node.op_type == "Mul"])
        unknown = _any([np.isnan(numbers) for numbers in given.values()])
        if unknown.all() and not zero.any():
            return
        kinds = [self.kinds[name] for name in given if name in self.kinds] + [a.dtype for a in constants.values()]
        feed = {
            name: np.nan_to_num(numbers, nan=1.0).astype(self.kinds.get(name, kinds[0]))
            for name, numbers in given.items()
        }
        result = self._evaluate(node, feed, constants)
        if result is not None:
            numbers = np.where(unknown, np.nan, np.asarray(result, np.float64))
            self._record(node.output[0], np.where(zero, 0.0, numbers), result.dtype)

    def _evaluate(self, node: onnx.NodeProto, feed: dict[str, Array], constants: dict[str, Array]) -> Array | None:
        """First output of a node run on its own; None if onnxruntime cannot run it."""
        if node.op_type in DIVIDING and any(not is_float(array) for array in feed.values()):
            return None
        return run_node(node, feed, constants, self.dag.model.proto, self.dag.observation.replaced_formats)

    # 2 and 3: movements, pooling, borders

    def _visit_movement(self, index: int, node: onnx.NodeProto, op: str) -> None:
        names = [name for name in node.input if name] if op == "Concat" else list(node.input[:1])
        given = [name for name in names if name in self.numbers]
        constant = any(name not in self.dag.channel_ids for name in names)
        if not given or (constant and index not in self.concats):
            return
        pairs = [(self.dag.channel_ids[n], self._pass_on(node, op, n)) for n in names if n in self.dag.channel_ids]
        channel_ids, numbers = _by_channel(pairs)
        if index in self.dag.reductions:
            numbers = np.where(self.alive[channel_ids], numbers, 0.0)
        linked = [_follow(edges, channel_ids, numbers) for edges in self.dag.fixed_edges_of.get(index, [])]
        own = [] if constant else [(channel_ids, numbers)]
        if op == "Pad":
            own += self._padded_channels(node, channel_ids)
        channel_ids, numbers = _by_channel([*own, *linked])
        if channel_ids.size:
            for name in node.output if op == "Split" else node.output[:1]:
                self._record_channels(name, channel_ids, numbers, self.kinds[given[0]])

    def _pass_on(self, node: onnx.NodeProto, op: str, name: str) -> Numbers:
        """Numbers of an input that the operator does not change; NaN for all others."""
        numbers = self.numbers.get(name, np.full(self.dag.channel_ids[name].shape, np.nan))
        if op in NUMBER_PRESERVING or (
            op == "AveragePool" and not is_padded(node) and not attribute(node, "ceil_mode", 0)
        ):
            return numbers
        border: float | None = 0.0
        if op == "Pad":
            border = self._fill_value(node)
        elif op == "Resize":
            cropped = attribute(node, "coordinate_transformation_mode") == "tf_crop_and_resize"
            border = attribute(node, "extrapolation_value", 0.0) if cropped else 0.0
            if not cropped and attribute(node, "mode", "nearest") in ("nearest", "linear"):
                return numbers
        return np.where(numbers == border, numbers, np.nan) if border is not None else np.full_like(numbers, np.nan)

    def _fill_value(self, node: onnx.NodeProto) -> float | None:
        """Number that a Pad fills in; None if it is not a single known number."""
        if attribute(node, "mode", "constant") != "constant":
            return None
        if len(node.input) < 3 or not node.input[2]:
            return float(attribute(node, "value", 0.0))
        array = self.fixed(node.input[2])
        return None if array is None or array.size != 1 else float(array.reshape(-1)[0])

    def _padded_channels(self, node: onnx.NodeProto, channel_ids: ChannelIds) -> list[tuple[ChannelIds, Numbers]]:
        """Channels that a Pad adds (in its output, not in its input), with their number."""
        border = self._fill_value(node)
        fresh = np.setdiff1d(self.dag.channel_ids[node.output[0]], channel_ids)
        return [] if border is None or not fresh.size else [(fresh, np.full(fresh.size, border))]


def _operator(node: onnx.NodeProto) -> str:
    """Operator type of a standard operator or a FusedConv; "" for all others."""
    fused = node.domain == "com.microsoft" and node.op_type == "FusedConv"
    return node.op_type if fused else standard_name(node)


def _unknown_numbers(rank: int) -> Numbers:
    return np.full((1,) * rank, np.nan)


def _any(masks: list[NDArray[np.bool_]]) -> NDArray[np.bool_]:
    union = np.zeros((), bool)
    for mask in masks:
        union = union | mask
    return np.asarray(union)


def _by_channel(pairs: list[tuple[ChannelIds, Numbers]]) -> tuple[ChannelIds, Numbers]:
    """Distinct channel ids with their numbers; NaN where positions of a channel disagree."""
    if not pairs:
        return np.zeros(0, np.int64), np.zeros(0)
    channel_ids = np.concatenate([np.asarray(ids).reshape(-1) for ids, _ in pairs])
    numbers = np.concatenate([np.broadcast_to(n, np.shape(ids)).reshape(-1) for ids, n in pairs])
    unique, inverse = np.unique(channel_ids, return_inverse=True)
    low, high = np.full(unique.size, np.inf), np.full(unique.size, -np.inf)
    with np.errstate(invalid="ignore"):  # NaN is meant to win
        np.minimum.at(low, inverse.reshape(-1), numbers)
        np.maximum.at(high, inverse.reshape(-1), numbers)
    return unique, np.where(low == high, low, np.nan)


def _follow(edges: FixedEdges, channel_ids: ChannelIds, numbers: Numbers) -> tuple[ChannelIds, Numbers]:
    """Destinations of fixed edges, with the numbers of their sources."""
    sources, destinations = (side.reshape(-1) for side in (edges.sources, edges.destinations))
    place = np.minimum(np.searchsorted(channel_ids, sources), channel_ids.size - 1)
    return destinations, np.where(channel_ids[place] == sources, numbers[place], np.nan)

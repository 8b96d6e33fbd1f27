"""Multiply-adds that no kernels account for: products of computed tensors, weights that no channel removal shrinks.

Kernel blocks (``KernelBlock``) hold the multiply-adds of what can be pruned.  Every other operator that multiplies and
adds is counted here, from the shapes of one run; where channels of its operands can be removed, so are their
multiply-adds.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx

from leanonnx.analysis.constants import Constants
from leanonnx.analysis.dag import ChannelDag
from leanonnx.graph.nodes import STANDARD_DOMAINS, attribute, subgraphs
from leanonnx.graph.view import unused_outputs
from leanonnx.numeric.channel_ids import ChannelIds, Mask, Shape, varied_axes
from leanonnx.operators.facts import MICROSOFT, NCHWC, Family, OperatorFacts, Trait
from leanonnx.operators.table import OPERATORS, TRANSPOSED_CONVOLUTIONS, names_with
from leanonnx.rules.table import DEFAULT_RULES

HARMLESS = names_with(Trait.NO_PRODUCTS)
"""Operators of onnxruntime without a rule and without multiply-adds (nothing is counted for Fourier transforms)."""


@dataclass(frozen=True)
class Product:
    """Multiply-adds of a node: ``macs`` in all; they shrink with ``factors``, channel id arrays that broadcast."""

    node: int
    macs: int
    factors: tuple[ChannelIds, ...] = ()

    def remaining(self, alive: Mask) -> int:
        """Multiply-adds of a keep set [channels]."""
        axes = [axis for factor in self.factors for axis in varied_axes(factor)]
        if len(axes) == len(set(axes)):
            count = self.macs
            for factor in self.factors:
                count = count * int(np.count_nonzero(alive[factor])) // factor.size
            return count
        mask = alive[self.factors[0]]
        for factor in self.factors[1:]:
            mask = mask & alive[factor]
        return self.macs * int(mask.sum()) // mask.size


@dataclass(frozen=True)
class _View:
    """A node, with the shapes and channel ids of its inputs and outputs."""

    dag: ChannelDag
    node: onnx.NodeProto

    def shape(self, slot: int) -> Shape:
        """Shape of an input."""
        return self.shape_of(self.node.input[slot])

    def output(self, slot: int = 0) -> Shape:
        """Shape of an output."""
        return self.shape_of(self.node.output[slot])

    def shape_of(self, name: str) -> Shape:
        """Shape of a tensor.

        Raises:
            KeyError: it is not known.
        """
        model = self.dag.model
        return model.shape_of(name) if name in model.origins else self.dag.shapes[name]

    def channel_ids(self, name: str) -> ChannelIds | None:
        """Channel ids of a tensor; None where it carries none."""
        return self.dag.channel_ids.get(name)

    def has(self, slot: int) -> bool:
        """True if an input is connected."""
        return slot < len(self.node.input) and bool(self.node.input[slot])

    def number(self, name: str, default: int = 0) -> int:
        """An integer attribute."""
        return int(attribute(self.node, name, default))


Counts = list[tuple[int, tuple[ChannelIds, ...]]]
Counter = Callable[[_View], Counts | None]
"""Multiply-adds of a node with the channel ids that they shrink with; None where they cannot be known."""


def products(dag: ChannelDag) -> tuple[tuple[Product, ...], tuple[int, ...]]:
    """Products of a network, and the indices of nodes whose multiply-adds are not known."""
    graph = dag.model.proto.graph
    static = Constants(dag.model, dag.observation).static
    unused = unused_outputs(graph.node, graph)
    counted: list[Product] = []
    unknown: list[int] = []
    for index, node in enumerate(graph.node):
        outputs = [name for name in node.output if name]
        if unused.issuperset(outputs) or static.issuperset(outputs) or _has_kernels(dag, index):
            continue
        counts = _counts(dag, index, node)
        if counts is None:
            unknown.append(index)
        else:
            counted += [Product(index, macs, factors) for macs, factors in counts if macs]
    return tuple(counted), tuple(unknown)


def _has_kernels(dag: ChannelDag, index: int) -> bool:
    return any(mix.taps * mix.positions for mix in dag.kernel_blocks_of.get(index, ()))


def _counts(dag: ChannelDag, index: int, node: onnx.NodeProto) -> Counts | None:
    domain = "" if node.domain in STANDARD_DOMAINS else node.domain
    counter = COUNTERS.get((domain, node.op_type))
    if counter is not None:
        try:
            return counter(_View(dag, node))
        except KeyError:  # a shape that was not observed
            return None
    if any(_multiplies(graph) for graph in subgraphs(node)):
        return None
    ruled = (domain, node.op_type) in DEFAULT_RULES or index not in dag.nodes_without_rule
    harmless = domain in ("", NCHWC) or (domain == MICROSOFT and node.op_type in HARMLESS)
    return [] if ruled or harmless else None


def _multiplies(graph: onnx.GraphProto) -> bool:
    """True if a subgraph holds an operator with multiply-adds, or an unknown one."""
    for node in graph.node:
        domain = "" if node.domain in STANDARD_DOMAINS else node.domain
        if (domain, node.op_type) in COUNTERS or domain or any(_multiplies(inner) for inner in subgraphs(node)):
            return True
    return False


def _contraction(view: _View, slots: Sequence[int], terms: Sequence[str]) -> tuple[int, tuple[ChannelIds, ...]]:
    """One multiply-add for each combination of the indices of two operands, whose letters name them."""
    letters = sorted(set("".join(terms)))
    sizes = dict.fromkeys(letters, 1)
    factors = []
    for slot, term in zip(slots, terms, strict=True):
        sizes |= {letter: max(size, sizes[letter]) for letter, size in zip(term, view.shape(slot), strict=True)}
        channel_ids = view.channel_ids(view.node.input[slot])
        if channel_ids is not None and varied_axes(channel_ids) and len(set(term)) == len(term):
            order = sorted(range(len(term)), key=lambda axis: term[axis])
            by_letter = dict(zip(sorted(term), channel_ids.transpose(order).shape, strict=True))
            factors.append(channel_ids.transpose(order).reshape([by_letter.get(letter, 1) for letter in letters]))
    return math.prod(sizes.values()), tuple(factors)


AXIS_LETTERS = "abcdefghijklmnopqrstuvw"


def _matmul(left: int, right: int) -> Counter:
    """Matrix products as ONNX MatMul-13 defines them; FusedMatMul may transpose its operands."""

    def count(view: _View) -> Counts:
        ranks = [len(view.shape(slot)) for slot in (left, right)]
        batch = AXIS_LETTERS[: max(0, max(ranks) - 2)]
        tails = [
            _operand("yx", view, "A") if ranks[0] > 1 else "x",
            _operand("xz", view, "B") if ranks[1] > 1 else "x",
        ]
        terms = [
            batch[len(batch) - (rank - len(tail)) :] * (rank > 1) + tail
            for rank, tail in zip(ranks, tails, strict=True)
        ]
        return [_contraction(view, (left, right), terms)]

    return count


def _operand(tail: str, view: _View, side: str) -> str:
    if view.number(f"transBatch{side}"):
        raise KeyError(side)
    return tail[::-1] if view.number(f"trans{side}") else tail


def _convolution(weight: int) -> Counter:
    """Each position of the output (of the input, where it is transposed) takes part in one column of the weight.

    Where the kernels are computed, channels can still be removed: those of the data, or whole groups.
    """

    def count(view: _View) -> Counts:
        moving = view.shape(0) if view.node.op_type in TRANSPOSED_CONVOLUTIONS else view.output()
        channel_ids = view.channel_ids(view.node.input[0] if view.number("group", 1) == 1 else view.node.output[0])
        factors = () if channel_ids is None or view.node.op_type in TRANSPOSED_CONVOLUTIONS else (channel_ids,)
        return [(math.prod(moving) * math.prod(view.shape(weight)[1:]), factors)]

    return count


def _einsum(view: _View) -> Counts | None:
    """Contractions of two operands at a time, from left to right."""
    equation = str(attribute(view.node, "equation")).replace(" ", "")
    terms = equation.partition("->")[0].split(",")
    slots = range(len(view.node.input))
    if len(terms) == 1:
        return []
    if "." in equation or any(len(term) != len(view.shape(slot)) for slot, term in zip(slots, terms, strict=True)):
        return None
    if len(terms) == 2:
        return [_contraction(view, slots, terms)]
    sizes = dict(zip("".join(terms), (size for slot in slots for size in view.shape(slot)), strict=True))
    later = [set("".join(terms[k + 1 :]) + equation.partition("->")[2]) for k in range(len(terms))]
    total, at_hand = 0, set(terms[0])
    for k, term in enumerate(terms[1:], start=1):
        at_hand |= set(term)
        total += math.prod(sizes[letter] for letter in at_hand)
        at_hand &= later[k]
    return [(total, ())]


def _recurrent(view: _View) -> Counts:
    """Each number of W and R once for each step of each sequence."""
    steps = math.prod(view.shape(0)[:2])
    return [(steps * (math.prod(view.shape(1)) + math.prod(view.shape(2))), ())]


def _attention(view: _View) -> Counts | None:
    """Queries times keys, and weights times values; they shrink with the channels of queries and of the output."""
    if not view.has(1) or not view.has(2):
        return None
    keys = view.shape(1)
    length = keys[-2]
    past = 4 if view.node.domain in STANDARD_DOMAINS else 6
    if view.has(past) and len(view.shape(past)) > 2:
        length += view.shape(past)[-2]
    parts: Counts = []
    for name in (view.node.input[0], view.node.output[0]):
        shape, channel_ids = view.shape_of(name), view.channel_ids(name)
        parts.append((math.prod(shape) * length, () if channel_ids is None else (channel_ids,)))
    return parts


def _joint_attention(view: _View) -> Counts:
    """com.microsoft.Attention-1 and QAttention-1: projections of the input, then attention over it."""
    batch, length, _ = view.shape(0)
    out = view.output()[-1]
    return [(batch * length * math.prod(view.shape(1)), ()), (2 * batch * length * length * out, ())]


def _packed_matmul(view: _View) -> Counts:
    """Matrices of few bits, packed: A ``[…, K]`` times B ``[K, N]``."""
    return [(math.prod(view.shape(0)) * view.number("N"), ())]


def _unknown(view: _View) -> None:
    """Multiply-adds that depend on more than shapes."""


def _by_weight(facts: OperatorFacts, weight: int) -> Counter:
    """The counter of an operator whose weight is in one slot."""
    if facts.family is Family.RECURRENT:
        return _recurrent
    return _matmul(0, weight) if facts.family in (Family.GEMM, Family.MATMUL) else _convolution(weight)


COUNTERS: Mapping[tuple[str, str], Counter] = {
    **{key: _by_weight(each, each.weight) for key, each in OPERATORS.items() if each.weight is not None},
    (MICROSOFT, "MatMulNBits"): _packed_matmul,
    (MICROSOFT, "MatMulBnb4"): _packed_matmul,
    ("", "Einsum"): _einsum,
    ("", "Attention"): _attention,
    (MICROSOFT, "MultiHeadAttention"): _attention,
    (MICROSOFT, "Attention"): _joint_attention,
    (MICROSOFT, "QAttention"): _joint_attention,
    ("", "LinearAttention"): _unknown,
    ("", "CausalConvWithState"): _unknown,
}
"""Operators with multiply-adds."""

"""Find branches that an affine stand-in can replace: residual branches, branches beside a convolution, gates.

A branch is the part of the graph that leads nowhere but to one operand of a join (Add, Sub, Sum, Mul), and that reads
the data of one tensor only.  A stand-in computes the joined tensor from the other operand.
"""

from __future__ import annotations

import heapq
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import onnx

from leanonnx.analysis.product_costs import COUNTERS
from leanonnx.graph.formats import FLOAT_TYPES, float_types
from leanonnx.graph.model import Model
from leanonnx.graph.nodes import STANDARD_DOMAINS, attribute, captured_names, standard_name
from leanonnx.graph.noops import Types
from leanonnx.graph.view import unused_outputs
from leanonnx.numeric.channel_ids import Shape
from leanonnx.operators.facts import Trait
from leanonnx.operators.table import CONVOLUTIONS, names_with

BranchKind = Literal["linear", "shortcut", "scale"]
ADDITIVE = names_with(Trait.ADDS)
OPERANDS = 2
BROADCAST_OPSET = 7
"""Operator set from which Add and Mul broadcast as numpy does."""
RANKS = range(3, 6)
"""Ranks of tensors with channels on axis 1 and at least one spatial axis."""


@dataclass(frozen=True, kw_only=True)
class Branch:
    """A branch, and what stays in its place.

    Attributes:
        kind: "linear": the joined tensor is to be computed by a matrix; "shortcut": by the convolution that makes the
            other operand; "scale": the branch is a gate, and one factor for each channel takes its place.
        join: index of the node that joins both operands.
        operand: name of the tensor that the branch outputs, which the join alone reads: it tells branches apart.
        output: name of the joined tensor.
        stream: name of the tensor that the stand-in reads: the other operand, or the input of the shortcut.
        nodes: indices of the nodes that exist for the branch only, in ascending order; the join is none of them.
        shortcut: indices of the convolution that stays and of its batch normalisation, if there is one.
        element_type: type of the stream and of the joined tensor.
        rank: number of axes of both.
        channels: number of channels of the joined tensor.
    """

    kind: BranchKind
    join: int
    operand: str
    output: str
    stream: str
    nodes: tuple[int, ...]
    shortcut: tuple[int, ...] = ()
    element_type: int
    rank: int
    channels: int


def find_branches(model: Model, shapes: Mapping[str, Shape]) -> tuple[Branch, ...]:
    """All branches of the main graph, in the order of their joins; some may lie within others.

    Args:
        model: the model, whose node indices the branches refer to.
        shapes: observed shape of each tensor.
    """
    if model.opset < BROADCAST_OPSET:
        return ()
    search = _Search(model, shapes)
    joins = [(k, node) for k, node in enumerate(model.proto.graph.node) if standard_name(node) in ADDITIVE | {"Mul"}]
    return tuple(branch for k, node in joins if len(node.input) == OPERANDS for branch in search.at_join(k, node))


def compatible(chosen: Sequence[Branch]) -> tuple[Branch, ...]:
    """The chosen branches but those that lie within another one, and one branch for each join (the first)."""
    covered = {node for branch in chosen for node in branch.nodes}
    first: dict[int, Branch] = {}
    for branch in chosen:
        if branch.join not in covered:
            first.setdefault(branch.join, branch)
    return tuple(first.values())


@dataclass(frozen=True)
class _Search:
    """A model and the shapes of its tensors."""

    model: Model
    shapes: Mapping[str, Shape]

    @cached_property
    def _types(self) -> Mapping[str, onnx.TypeProto.Tensor]:
        return Types(self.model.proto).inferred

    @cached_property
    def _only_type(self) -> int:
        """The element type of all floats of the model, 0 if there are several."""
        kinds = float_types(self.model.proto)
        return next(iter(kinds)) if len(kinds) == 1 else 0

    @cached_property
    def _dead(self) -> frozenset[int]:
        """Nodes from which no path leads to a graph output."""
        graph = self.model.proto.graph
        unused = unused_outputs(graph.node, graph)
        return frozenset(k for k, node in enumerate(graph.node) if unused.issuperset(n for n in node.output if n))

    def at_join(self, index: int, join: onnx.NodeProto) -> list[Branch]:
        """Branches that end at a join, one operand or the other."""
        if index in self._dead or join.input[0] == join.input[1]:
            return []
        first, second = join.input
        found_in = [self._branch(index, kept=first, gone=second), self._branch(index, kept=second, gone=first)]
        return [branch for branch in found_in if branch is not None]

    def _branch(self, index: int, kept: str, gone: str) -> Branch | None:
        """The branch that ends with the operand ``gone``."""
        join = self.model.proto.graph.node[index]
        nodes = self._nodes_leading_to(gone, index)
        read = self._data_read_by(nodes)
        output = join.output[0]
        shape, element_type = self.shapes.get(output, ()), self._element_type(output)
        if len(read) != 1 or len(shape) not in RANKS or not element_type or not any(map(self._multiplies, nodes)):
            return None
        shortcut = self._shortcut(kept, index)
        stream = self.model.proto.graph.node[shortcut[0]].input[0] if shortcut else self._behind_copies(kept)
        if not self._shares_data(stream, read.pop()) or self.shapes.get(kept) != shape:
            return None
        if shortcut:
            kind: BranchKind = "shortcut"
            if join.op_type == "Mul" or (join.op_type == "Sub" and join.input[0] != kept):
                return None
        else:
            kind = "scale" if join.op_type == "Mul" else "linear"
            opens_channels = kind == "scale" and self._has_one_per_channel(gone, shape)
            if not opens_channels and not self._convolves(nodes, len(shape)):
                return None
        return Branch(
            kind=kind,
            join=index,
            operand=gone,
            output=output,
            stream=stream,
            nodes=tuple(sorted(nodes)),
            shortcut=shortcut,
            element_type=element_type,
            rank=len(shape),
            channels=shape[1],
        )

    def _readers(self, name: str) -> set[int]:
        """Nodes that read a tensor and that something depends on; -1 stands for the caller."""
        return set(self.model.consumers.get(name, ())) - self._dead

    def _nodes_leading_to(self, operand: str, join: int) -> set[int]:
        """Nodes whose outputs lead nowhere but to one operand of a join.

        Nodes are visited from the last to the first, so that the readers of each have been visited before it.
        """
        inside: set[int] = set()
        producers = self.model.producers
        waiting = [-producers[operand]] if operand in producers else []
        while waiting:
            index = -heapq.heappop(waiting)
            node = self.model.proto.graph.node[index]
            readers = {(name, reader) for name in node.output if name for reader in self._readers(name)}
            if index in inside or any(r not in inside and (name, r) != (operand, join) for name, r in readers):
                continue
            inside.add(index)
            for name in {*node.input, *captured_names(node)} & producers.keys():
                heapq.heappush(waiting, -producers[name])
        return inside

    def _data_read_by(self, nodes: set[int]) -> set[str]:
        """Tensors that nodes read the data of and do not compute themselves, values that a caller may set included."""
        given = self.model.free | self.model.overridable
        read: set[str] = set()
        for index in nodes:
            node = self.model.proto.graph.node[index]
            if not given.isdisjoint(node.output):
                read.update(given & {*node.input, *captured_names(node)})
        return {name for name in read if self.model.producers.get(name) not in nodes}

    def _multiplies(self, index: int) -> bool:
        """True if a node multiplies and adds data."""
        node = self.model.proto.graph.node[index]
        domain = "" if node.domain in STANDARD_DOMAINS else node.domain
        return (domain, node.op_type) in COUNTERS and not self.model.free.isdisjoint(node.output)

    def _convolves(self, nodes: set[int], rank: int) -> bool:
        """True if the nodes hold a convolution of tensors of this rank, whose channels are on axis 1."""
        named = (self.model.proto.graph.node[k] for k in nodes if self._multiplies(k))
        return any(n.op_type in CONVOLUTIONS and len(self.shapes.get(n.output[0], ())) == rank for n in named)

    def _has_one_per_channel(self, gate: str, shape: Shape) -> bool:
        """True if a gate has one number for each channel of each sample."""
        sizes = self.shapes.get(gate, ())
        return len(sizes) == len(shape) and sizes[1] == shape[1] and set(sizes[2:]) == {1}

    def _element_type(self, name: str) -> int:
        """Element type of a float tensor; 0 for others."""
        known = self._types.get(name)
        kind = known.elem_type if known is not None and known.elem_type else self._only_type
        return kind if kind in FLOAT_TYPES else 0

    def _behind_copies(self, name: str) -> str:
        """The tensor that Identity nodes copy."""
        producer = self.model.view.producer(name)
        while producer is not None and standard_name(producer) == "Identity":
            name = producer.input[0]
            producer = self.model.view.producer(name)
        return name

    def _shortcut(self, operand: str, join: int) -> tuple[int, ...]:
        """The convolution that alone makes an operand, with its batch normalisation; empty if there is none."""
        last = self._sole_producer(operand, join)
        if last is None:
            return ()
        chain: tuple[int, ...] = (last,)
        node = self.model.proto.graph.node[last]
        if standard_name(node) == "BatchNormalization":
            before = self._sole_producer(node.input[0], last)
            if attribute(node, "training_mode", 0) or not self._is_fixed(node.input[1:]) or before is None:
                return ()
            chain = (before, last)
            node = self.model.proto.graph.node[before]
        if standard_name(node) != "Conv" or not self._is_fixed(node.input[1:]):
            return ()
        return chain

    def _sole_producer(self, name: str, reader: int) -> int | None:
        """The node with one output that only ``reader`` reads."""
        index = self.model.producers.get(name)
        if index is None or self._readers(name) != {reader}:
            return None
        return index if [n for n in self.model.proto.graph.node[index].output if n] == [name] else None

    def _is_fixed(self, names: Sequence[str]) -> bool:
        """True if values are constants that a caller cannot replace."""
        return all(n in self.model.origins and n not in self.model.overridable for n in names if n)

    def _shares_data(self, source: str, read: str) -> bool:
        """True if a tensor is the one that a branch reads, one before it, or that one after nodes without products."""
        if self._depends_on(read, source):
            return True
        while source != read:
            index = self.model.producers.get(source, -1)
            node = self.model.proto.graph.node[index] if index >= 0 else onnx.NodeProto()
            data = [name for name in node.input if name in self.model.free]
            if len(data) != 1 or self._multiplies(index):
                return False
            source = data[0]
        return True

    def _depends_on(self, name: str, source: str) -> bool:
        """True if a tensor is ``source`` or computed from it."""
        seen, waiting = {name}, [name]
        while waiting and source not in seen:
            producer = self.model.view.producer(waiting.pop())
            read = set() if producer is None else {*producer.input, *captured_names(producer)} - seen - {""}
            seen |= read
            waiting += read
        return source in seen

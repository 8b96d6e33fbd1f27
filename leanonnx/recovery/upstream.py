"""Paths that lead to a tensor: whether it differs from the original's, and which layers it depends on."""

from __future__ import annotations

from collections.abc import Collection, Iterable

import onnx

from leanonnx.analysis.dag import ChannelDag
from leanonnx.graph.model import Model
from leanonnx.graph.nodes import attribute, captured_names, normalisation_of
from leanonnx.numeric.arrays import Floats
from leanonnx.numeric.channel_ids import Mask
from leanonnx.recovery.rows import OtherOperand


class Upstream:
    """Two facts about each tensor of the compressed network.

    It is exact if it equals the original's, since no channel was removed and nothing changed upstream of it; the nodes
    in ``changed`` change.  ``latest``: the last of the layers to be fitted that it depends on, by node; -1 without one.
    """

    def __init__(self, dag: ChannelDag, alive: Mask, after: onnx.GraphProto, layers: Collection[int]) -> None:
        self.dag, self.alive, self.nodes = dag, alive, after.node
        fixed = {t.name for t in after.initializer} | {t.values.name for t in after.sparse_initializer}
        self.known = dict.fromkeys({value.name for value in after.input} - fixed, True)
        self.fixed = fixed
        self.producers = {name: index for index, node in enumerate(after.node) for name in node.output if name}
        self.changed: set[int] = set()
        self.latest = last_layers(after.node, layers)

    def reads_exactly(self, name: str, original: str) -> bool:
        """True if a tensor that a node reads is exact, and is all of the tensor that it reads in the original.

        The two differ in name if the compressed network has no more need of a node in between, such as a Concat with a
        single operand left.
        """
        return (original not in self.dag.channel_ids or self._is_whole(original)) and self.is_exact(name)

    def is_exact(self, name: str) -> bool:
        """True if a tensor equals the original's, as long as only layers in ``changed`` change upstream of it."""
        stack = [name]
        while stack:
            index = self.producers.get(stack[-1], -1)
            if stack[-1] in self.known or index < 0:
                stack.pop()
                continue
            waiting = [one for one in self._read(index) if one not in self.known and one in self.producers]
            if waiting:
                stack += waiting
                continue
            self.known.update(dict.fromkeys(self.nodes[index].output, self._passes(index)))
            stack.pop()
        return self.known.get(name, False) and self._is_whole(name)

    def _read(self, index: int) -> list[str]:
        node = self.nodes[index]
        return [name for name in [*node.input, *captured_names(node)] if name and name not in self.fixed]

    def _passes(self, index: int) -> bool:
        """True if the outputs of a node equal the original's, apart from channels that it does not output."""
        node = self.nodes[index]
        before = self.dag.model.producers.get(node.output[0], -1)
        original = self.dag.model.proto.graph.node[before] if before >= 0 else onnx.NodeProto()
        return (
            original.op_type == node.op_type
            and not any(map(self.dag.is_unlike, node.output))
            and index not in self.changed
            and all(self._is_whole(name) for name in original.input if name in self.dag.channel_ids)
            and all(self.known.get(name, False) and self._is_whole(name) for name in self._read(index))
        )

    def _is_whole(self, name: str) -> bool:
        """True if no channel of a tensor of the original was removed."""
        channel_ids = self.dag.channel_ids.get(name)
        return channel_ids is not None and bool(self.alive[channel_ids].all())


def last_layers(nodes: Iterable[onnx.NodeProto], layers: Collection[int]) -> dict[str, int]:
    """The last of some nodes that each tensor depends on."""
    latest: dict[str, int] = {}
    for index, node in enumerate(nodes):
        read = [latest.get(name, -1) for name in [*node.input, *captured_names(node)]]
        last = index if index in layers else max(read, default=-1)
        latest.update(dict.fromkeys(node.output, last))
    return latest


def other_operand(dag: ChannelDag, now: Model, output: str) -> OtherOperand | None:
    """Other operand of the addition that reads a tensor; None without such an addition."""
    addition = _addition(now, output)
    if addition is None:
        return None
    node, mine, scale = addition
    producer = dag.model.producers.get(node.output[0], -1)
    theirs = dag.model.proto.graph.node[producer] if producer >= 0 else node
    if producer < 0 or theirs.op_type != node.op_type or len(node.input) != 2 or len(theirs.input) != 2:
        return None
    slot = 1 - list(node.input).index(mine)
    return OtherOperand(theirs.input[slot], node.input[slot], scale)


def _addition(model: Model, output: str) -> tuple[onnx.NodeProto, str, Floats | None] | None:
    """Addition that is the only consumer of a tensor, the name under which it reads it, and the scale of a
    BatchNormalization in between; None without such an addition.
    """
    scale: Floats | None = None
    while True:
        consumers = model.consumers.get(output, [])
        if len(consumers) != 1 or consumers == [-1]:
            return None
        node = model.proto.graph.node[consumers[0]]
        if node.op_type == "Add":
            return node, output, scale
        if node.op_type != "BatchNormalization" or attribute(node, "training_mode", 0) or scale is not None:
            return None
        if not {*node.input[1:]} <= model.origins.keys():
            return None
        scale, _ = normalisation_of(node, model.constant)
        output = node.output[0]

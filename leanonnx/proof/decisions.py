"""Decisions of a network, and the floats that they are based on.

A decision maps floats to class numbers, truth values or steps: an ArgMax, a comparison, a quantiser.  Its output says
little about its input, so the proof compares the last floats before it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence

import onnx

from leanonnx.graph.formats import FLOAT_TYPES
from leanonnx.graph.model import Model
from leanonnx.graph.nodes import captured_names, standard_name
from leanonnx.graph.noops import Types
from leanonnx.operators.facts import Trait
from leanonnx.operators.table import names_with

STEP_OPERATORS = names_with(Trait.STEP)
"""Decisions that may output floats."""
DISCRETE_OPERATORS = names_with(Trait.DISCRETE)
"""Operators that never output floats, for tensors of unknown type."""
CHANNEL_MIXERS = names_with(Trait.MIXES_CHANNELS)
"""Operators with a weight that mixes channels, or that may contain one."""
WEIGHTLESS_OPERATORS = names_with(Trait.NO_WEIGHT)
"""Operators of other domains without such a weight."""
MAX_TENSORS_BEHIND = 64
"""Largest number of tensors behind outputs that are compared."""


def behind_decisions(model: Model, outputs: Collection[str] | None = None) -> list[str]:
    """Floats that decisions are based on: the nearest before a graph output, on each path.

    A tensor that a float output also reads on a path without a decision is left out: the output itself covers it.

    Args:
        model: the model.
        outputs: graph outputs to walk back from; None: all, without the tensors that they read without a decision.
    """
    walk = _DecisionWalk(model)
    names = [value.name for value in model.proto.graph.output]
    taken = walk.back([name for name in names if outputs is None or name in outputs])
    return sorted(taken if outputs is not None else taken - walk.smooth)


def discrete_outputs(model: Model) -> list[str]:
    """Graph outputs that are not float."""
    return [v.name for v in model.proto.graph.output if v.type.tensor_type.elem_type not in FLOAT_TYPES]


class _DecisionWalk:
    """A walk from outputs back to decisions; ``smooth``: the floats that it has passed."""

    def __init__(self, model: Model) -> None:
        self.model, self.types = model, Types(model.proto)
        self.smooth: set[str] = set()

    def back(self, names: Sequence[str]) -> set[str]:
        """Return the floats that the nearest decisions read."""
        floats: set[str] = set()
        seen: set[str] = set()
        left = list(names)
        while left:
            name = left.pop()
            if name in seen or name not in self.model.free or name not in self.model.producers:
                continue
            seen.add(name)
            node = self.model.proto.graph.node[self.model.producers[name]]
            jump = standard_name(node) in STEP_OPERATORS or not self.is_float(name)
            for read in computed_inputs(self.model, node):
                if jump and self.is_float(read):
                    floats |= {read} & self.model.producers.keys()
                else:
                    left.append(read)
            if self.is_float(name):
                self.smooth.add(name)
        return floats

    def is_float(self, name: str) -> bool:
        """True if a tensor is float; an unknown type counts as float unless its operator never outputs floats."""
        known = self.types.inferred.get(name)
        if known is not None and known.elem_type:
            return known.elem_type in FLOAT_TYPES
        producer = self.model.producers.get(name)
        return producer is None or self.model.proto.graph.node[producer].op_type not in DISCRETE_OPERATORS


def computed_inputs(model: Model, node: onnx.NodeProto) -> list[str]:
    """Computed tensors that a node and its subgraphs read."""
    return [name for name in dict.fromkeys([*node.input, *sorted(captured_names(node))]) if name in model.free]


def mixes_channels(node: onnx.NodeProto) -> bool:
    """True if a node mixes channels by a weight, or may do so."""
    return node.op_type in CHANNEL_MIXERS or (not standard_name(node) and node.op_type not in WEIGHTLESS_OPERATORS)


def tensors_behind(model: Model, names: Sequence[str]) -> dict[str, list[str]]:
    """Tensors behind others without a weight in between: for each tensor, the computed inputs of its producer.

    Breadth first, at most ``MAX_TENSORS_BEHIND`` tensors.
    """
    inputs: dict[str, list[str]] = {}
    left = list(names)
    for name in left:
        if name in inputs or len(inputs) >= MAX_TENSORS_BEHIND + len(names):
            continue
        inputs[name] = []
        producer = model.producers.get(name)
        if producer is not None and not mixes_channels(model.proto.graph.node[producer]):
            inputs[name] = [n for n in computed_inputs(model, model.proto.graph.node[producer]) if n in model.producers]
            left += inputs[name]
    return inputs


def depends_on_weight(model: Model, name: str) -> bool:
    """True if a tensor depends on the values of an input through an operator with a weight, which surgery may cut."""
    return any(mixes_channels(node) for node in _before(model, name))


def _before(model: Model, name: str) -> Iterator[onnx.NodeProto]:
    """Yield all nodes through which a tensor depends on the values of an input."""
    seen: set[int] = set()
    left = [name]
    while left:
        name = left.pop()
        producer = model.producers.get(name) if name in model.free else None
        if producer is None or producer in seen:
            continue
        seen.add(producer)
        node = model.proto.graph.node[producer]
        left += computed_inputs(model, node)
        yield node

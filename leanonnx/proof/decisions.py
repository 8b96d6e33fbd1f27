"""Where a network decides, and the floats that it decides on.

A decision takes floats to class numbers, truth values or steps: an ArgMax, a comparison, a quantiser.  What it puts out
says little of what it reads, so the proof compares the last floats before it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence

import onnx

from leanonnx.graph.formats import FLOATS
from leanonnx.graph.model import Model
from leanonnx.graph.nodes import captured, standard
from leanonnx.graph.noops import Types
from leanonnx.operators.facts import Trait
from leanonnx.operators.table import names_with

STEPS = names_with(Trait.STEP)
"""Decisions that may put out floats."""
DISCRETE = names_with(Trait.DISCRETE)
"""Operators that never put out floats, where types are not known."""
MIXING = names_with(Trait.MIXES_CHANNELS)
"""Operators with a weight that mixes channels, or that may hold one."""
PASSING = names_with(Trait.NO_WEIGHT)
"""Operators of other domains that have none."""
MOST_BEHIND = 64
"""Tensors behind outputs that are looked at."""


def behind_decisions(model: Model, outputs: Collection[str] | None = None) -> list[str]:
    """The floats from which decisions are made: the nearest before a graph output, on each path.

    Of a float output that also reads a tensor on a path without a decision, that tensor is left out: the output itself
    tells of it.

    Args:
        model: the model.
        outputs: the graph outputs to walk back from; None: all, and what they read without a decision is left out.
    """
    walk = _Walk(model)
    names = [value.name for value in model.proto.graph.output]
    taken = walk.back([name for name in names if outputs is None or name in outputs])
    return sorted(taken if outputs is not None else taken - walk.smooth)


def decided(model: Model) -> list[str]:
    """Graph outputs that are no floats."""
    return [v.name for v in model.proto.graph.output if v.type.tensor_type.elem_type not in FLOATS]


class _Walk:
    """A walk from outputs back to decisions; ``smooth``: the floats that were passed on the way."""

    def __init__(self, model: Model) -> None:
        self.model, self.types = model, Types(model.proto)
        self.smooth: set[str] = set()

    def back(self, names: Sequence[str]) -> set[str]:
        """The floats that the nearest decisions read."""
        found: set[str] = set()
        seen: set[str] = set()
        left = list(names)
        while left:
            name = left.pop()
            if name in seen or name not in self.model.free or name not in self.model.producers:
                continue
            seen.add(name)
            node = self.model.proto.graph.node[self.model.producers[name]]
            jump = standard(node) in STEPS or not self.is_float(name)
            for read in reads(self.model, node):
                if jump and self.is_float(read):
                    found |= {read} & self.model.producers.keys()
                else:
                    left.append(read)
            if self.is_float(name):
                self.smooth.add(name)
        return found

    def is_float(self, name: str) -> bool:
        """Whether a tensor holds floats; an unknown type is taken for one unless its operator never puts them out."""
        known = self.types.found.get(name)
        if known is not None and known.elem_type:
            return known.elem_type in FLOATS
        producer = self.model.producers.get(name)
        return producer is None or self.model.proto.graph.node[producer].op_type not in DISCRETE


def reads(model: Model, node: onnx.NodeProto) -> list[str]:
    """Computed tensors that a node or its subgraphs read."""
    return [name for name in dict.fromkeys([*node.input, *sorted(captured(node))]) if name in model.free]


def mixes(node: onnx.NodeProto) -> bool:
    """Whether a node mixes channels by a weight, or may do so."""
    return node.op_type in MIXING or (not standard(node) and node.op_type not in PASSING)


def behind(model: Model, names: Sequence[str]) -> dict[str, list[str]]:
    """What lies behind tensors without a weight in between: for each tensor, the computed ones that make it.

    Nearest first, ``MOST_BEHIND`` at most.
    """
    found: dict[str, list[str]] = {}
    left = list(names)
    for name in left:
        if name in found or len(found) >= MOST_BEHIND + len(names):
            continue
        found[name] = []
        producer = model.producers.get(name)
        if producer is not None and not mixes(model.proto.graph.node[producer]):
            found[name] = [n for n in reads(model, model.proto.graph.node[producer]) if n in model.producers]
            left += found[name]
    return found


def weighed(model: Model, name: str) -> bool:
    """Whether a tensor depends on the numbers of an input through an operator with a weight, which surgery may cut."""
    return any(mixes(node) for node in _before(model, name))


def _before(model: Model, name: str) -> Iterator[onnx.NodeProto]:
    """All nodes through which a tensor depends on the numbers of an input."""
    seen: set[int] = set()
    left = [name]
    while left:
        name = left.pop()
        producer = model.producers.get(name) if name in model.free else None
        if producer is None or producer in seen:
            continue
        seen.add(producer)
        node = model.proto.graph.node[producer]
        left += reads(model, node)
        yield node

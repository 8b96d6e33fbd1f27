"""Outputs of which a comparison tells nothing: BASE's are empty or do not change, whatever NEW computes before them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import onnx

from leanonnx.evaluation.deviation import Fidelity
from leanonnx.graph.formats import FLOATS
from leanonnx.graph.model import Model
from leanonnx.graph.nodes import captured
from leanonnx.operators.facts import Trait
from leanonnx.operators.table import names_with

PASSING = names_with(Trait.INJECTIVE)
"""Operators that put out something else wherever they read something else, of floats."""


def untold(base: Model, found: Iterable[Fidelity]) -> Mapping[str, str]:
    """Outputs that no comparison told anything of, and why.

    One that is made of other outputs alone, or of what these are made of step by step (the class beside its scores),
    needs nothing to be told of it where they tell.
    """
    every = list(found)
    outputs = [value.name for value in base.proto.graph.output]
    reasons = {
        name: one.vacuous
        for name, one in ((one.output, one) for one in (every[0].outputs if every else ()))
        if all(_vacuous(each, name) for each in every)
    }
    told = _known(base, [name for name in outputs if name not in reasons])
    return {name: reason for name, reason in reasons.items() if _open(base, name, told)}


def _vacuous(found: Fidelity, name: str) -> bool:
    return any(one.output == name and bool(one.vacuous) for one in found.outputs)


def _known(base: Model, names: Iterable[str]) -> set[str]:
    """Values that are known where those named are: they themselves, and what each is made of alone."""
    known, waiting = set(names), list(names)
    while waiting:
        producer = base.producers.get(waiting.pop())
        node = None if producer is None else base.proto.graph.node[producer]
        if node is not None and _passes(node):
            read = {name for name in node.input if name in base.free}
            if len(read) == 1 and not read & known:
                known |= read
                waiting += read
    return known


def _passes(node: onnx.NodeProto) -> bool:
    """Whether a node hides nothing of what it reads."""
    if node.op_type == "Cast":
        return any(each.name == "to" and each.i in FLOATS for each in node.attribute)
    return node.op_type in PASSING


def _open(base: Model, name: str, known: set[str]) -> bool:
    """Whether a value depends on inputs in another way than through what is known."""
    inputs, seen, waiting = {value.name for value in base.inputs}, set[str](), [name]
    while waiting:
        each = waiting.pop()
        if each in seen or each in known or each not in base.free:
            continue
        seen.add(each)
        if each in inputs:
            return True
        node = base.proto.graph.node[base.producers[each]]
        waiting += [*node.input, *captured(node)]
    return False

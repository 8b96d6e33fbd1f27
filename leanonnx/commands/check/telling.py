"""Tell where a comparison says little: outputs that are vacuous, and integers whose sums saturate."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import onnx

from leanonnx.data.samples import Dataset, batch_size
from leanonnx.evaluation.deviation import Fidelity
from leanonnx.graph.formats import FLOAT_TYPES
from leanonnx.graph.model import Model
from leanonnx.graph.nodes import captured_names
from leanonnx.operators.facts import Trait
from leanonnx.operators.table import names_with
from leanonnx.proof.proof import is_optimised
from leanonnx.quantization.saturation import fused_difference, saturation_warnings

TRANSPARENT_OPERATORS = names_with(Trait.INJECTIVE)
"""Operators whose float output changes whenever their input does."""


def vacuous_outputs(base: Model, comparisons: Iterable[Fidelity]) -> Mapping[str, str]:
    """Outputs on which every comparison is vacuous, with the reason.

    An output that is computed only from other outputs, or from what determines them (a class from its scores), is left
    out if the comparison of those is not vacuous.
    """
    every = list(comparisons)
    outputs = [value.name for value in base.proto.graph.output]
    reasons = {
        name: one.vacuous
        for name, one in ((one.output, one) for one in (every[0].outputs if every else ()))
        if all(_is_vacuous(each, name) for each in every)
    }
    known = _determined_values(base, [name for name in outputs if name not in reasons])
    return {name: reason for name, reason in reasons.items() if _depends_on_others(base, name, known)}


def _is_vacuous(comparison: Fidelity, name: str) -> bool:
    return any(one.output == name and bool(one.vacuous) for one in comparison.outputs)


def _determined_values(base: Model, names: Iterable[str]) -> set[str]:
    """Values determined by the named ones: these, and the single input of each transparent node before them."""
    known, waiting = set(names), list(names)
    while waiting:
        producer = base.producers.get(waiting.pop())
        node = None if producer is None else base.proto.graph.node[producer]
        if node is not None and _is_transparent(node):
            read = {name for name in node.input if name in base.free}
            if len(read) == 1 and not read & known:
                known |= read
                waiting += read
    return known


def _is_transparent(node: onnx.NodeProto) -> bool:
    """Return True if a change of a node's input always changes its output."""
    if node.op_type == "Cast":
        return any(each.name == "to" and each.i in FLOAT_TYPES for each in node.attribute)
    return node.op_type in TRANSPARENT_OPERATORS


def _depends_on_others(base: Model, name: str, known: set[str]) -> bool:
    """Return True if a value depends on graph inputs other than through the known values."""
    inputs, seen, waiting = {value.name for value in base.inputs}, set[str](), [name]
    while waiting:
        each = waiting.pop()
        if each in seen or each in known or each not in base.free:
            continue
        seen.add(each)
        if each in inputs:
            return True
        node = base.proto.graph.node[base.producers[each]]
        waiting += [*node.input, *captured_names(node)]
    return False


def integer_notes(models: tuple[Model, Model], inputs: Mapping[str, Dataset]) -> tuple[str, ...]:
    """A note if sums of integers of BASE or NEW saturate on this processor, with what the gates compare."""
    data = next(iter(inputs.values()))
    feed = next(data.feeds(batch_size(data)))
    names = ("BASE", "NEW")
    differences = {name: fused_difference(each, each.path, [feed]) for name, each in zip(names, models, strict=True)}
    kernels = "fused" if is_optimised(models[0]) else "plain"
    compared = f"the gates and deviations compare the outputs of the {kernels} kernels"
    return saturation_warnings(differences, models, compared)

"""What a network is taught by another: which tensors of both are held against each other."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import onnx

from leanonnx.graph.formats import FLOATS
from leanonnx.graph.model import Model
from leanonnx.graph.nodes import attribute
from leanonnx.operators.facts import Family, Trait
from leanonnx.operators.table import names_of, names_with
from leanonnx.proof.decisions import behind_decisions, decided

Shapes = Mapping[str, tuple[int, ...]]
SOFTMAX = names_of(Family.SOFTMAX)
SQUASHED = names_with(Trait.PROBABILITY) & names_of(Family.UNARY)
"""Operators whose output says little where their input is large."""
TRANSPARENT = names_with(Trait.PASSES_FIRST)
LAYERS = names_with(Trait.COMPARED_INSIDE)
"""Operators whose outputs are compared within the networks."""
MOST_INNER = 12


@dataclass(frozen=True)
class DistillationTarget:
    """A tensor of both networks; ``axis``: of the classes, in the tensor itself, None where there are none.

    ``inner``: it lies within the networks.
    """

    name: str
    axis: int | None = None
    inner: bool = False


def output_targets(model: Model, shapes: Shapes) -> tuple[DistillationTarget, ...]:
    """The floats that make each graph output: what goes into a last Softmax or Sigmoid, or into a decision."""
    floats = [value.name for value in model.proto.graph.output if value.type.tensor_type.elem_type in FLOATS]
    found = [_behind(model, name, shapes) for name in (*floats, *behind_decisions(model, decided(model)))]
    return tuple({target.name: target for target in found if target.name in shapes}.values())


def _behind(model: Model, name: str, shapes: Shapes) -> DistillationTarget:
    """The target behind a float tensor."""
    node = _producer(model, name)
    while node is not None and node.op_type in TRANSPARENT:
        name, node = node.input[0], _producer(model, node.input[0])
    rank = len(shapes.get(name, ()))
    if node is not None and node.op_type in SOFTMAX and rank:
        axis = attribute(node, "axis", 1 if model.opset < 13 else -1) % rank
        whole = model.opset >= 13 or axis == rank - 1
        return DistillationTarget(node.input[0], axis if whole else None)
    if node is not None and node.op_type in SQUASHED and node.input[0] in model.free:
        return DistillationTarget(node.input[0])
    return DistillationTarget(name, 1 if rank == 2 and shapes[name][1] > 1 else None)


def _producer(model: Model, name: str) -> onnx.NodeProto | None:
    return model.proto.graph.node[model.producers[name]] if name in model.producers else None


def common_targets(teacher: Model, student: Model, ours: Shapes, theirs: Shapes) -> tuple[DistillationTarget, ...]:
    """Targets of both networks, and tensors within them whose shape has stayed what it was.

    Args:
        teacher: the original.
        student: what is trained.
        ours: shapes of the student's tensors.
        theirs: shapes of the teacher's.
    """
    same = {name for name, shape in ours.items() if theirs.get(name) == shape}
    floats = {value.name for value in student.proto.graph.output if value.type.tensor_type.elem_type in FLOATS}
    outputs = [target for target in output_targets(student, ours) if target.name in same]
    if len(outputs) < len(output_targets(student, ours)):
        outputs += [DistillationTarget(name, 1 if len(ours[name]) == 2 else None) for name in sorted(floats & same)]
    taken = {target.name for target in outputs}
    inner = [
        node.output[0]
        for node in student.proto.graph.node
        if node.op_type in LAYERS and node.output[0] in same & student.free & teacher.free - taken
    ]
    chosen = inner[:: -(-len(inner) // MOST_INNER)] if inner else []
    return (*dict.fromkeys(outputs), *(DistillationTarget(name, inner=True) for name in chosen))

"""Distillation targets: the tensors of teacher and student that are compared."""

from __future__ import annotations

from dataclasses import dataclass

import onnx

from leanonnx.graph.formats import FLOAT_TYPES
from leanonnx.graph.model import Model
from leanonnx.graph.nodes import attribute
from leanonnx.operators.facts import Family, Trait
from leanonnx.operators.table import names_of, names_with
from leanonnx.proof.decisions import behind_decisions, discrete_outputs
from leanonnx.runtime.observation import Shapes

SOFTMAX_OPERATORS = names_of(Family.SOFTMAX)
SATURATING_OPERATORS = names_with(Trait.PROBABILITY) & names_of(Family.UNARY)
"""Operators whose output saturates where the input is large."""
PASSING_FIRST = names_with(Trait.PASSES_FIRST)
INNER_TARGET_OPERATORS = names_with(Trait.COMPARED_INSIDE)
"""Operators whose outputs can be inner targets."""
MAX_INNER_TARGETS = 12


@dataclass(frozen=True)
class DistillationTarget:
    """A tensor of both networks.

    ``axis``: its class axis, None if it has no classes; ``inner``: the tensor is not an output of the networks.
    """

    name: str
    axis: int | None = None
    inner: bool = False


def output_targets(model: Model, shapes: Shapes) -> tuple[DistillationTarget, ...]:
    """The float tensors behind each graph output: the inputs of a final Softmax or Sigmoid, or of a decision."""
    floats = [value.name for value in model.proto.graph.output if value.type.tensor_type.elem_type in FLOAT_TYPES]
    targets = [
        _target_behind(model, name, shapes) for name in (*floats, *behind_decisions(model, discrete_outputs(model)))
    ]
    return tuple({target.name: target for target in targets if target.name in shapes}.values())


def _target_behind(model: Model, name: str, shapes: Shapes) -> DistillationTarget:
    """The target behind a float tensor."""
    node = _producer(model, name)
    while node is not None and node.op_type in PASSING_FIRST:
        name, node = node.input[0], _producer(model, node.input[0])
    rank = len(shapes.get(name, ()))
    if node is not None and node.op_type in SOFTMAX_OPERATORS and rank:
        axis = attribute(node, "axis", 1 if model.opset < 13 else -1) % rank
        whole = model.opset >= 13 or axis == rank - 1
        return DistillationTarget(node.input[0], axis if whole else None)
    if node is not None and node.op_type in SATURATING_OPERATORS and node.input[0] in model.free:
        return DistillationTarget(node.input[0])
    return DistillationTarget(name, 1 if rank == 2 and shapes[name][1] > 1 else None)


def _producer(model: Model, name: str) -> onnx.NodeProto | None:
    return model.proto.graph.node[model.producers[name]] if name in model.producers else None


def common_targets(teacher: Model, student: Model, ours: Shapes, theirs: Shapes) -> tuple[DistillationTarget, ...]:
    """Output targets of both networks, and inner tensors whose shape is the same in both.

    Args:
        teacher: the original.
        student: the network to train.
        ours: shapes of the student's tensors.
        theirs: shapes of the teacher's.
    """
    same = {name for name, shape in ours.items() if theirs.get(name) == shape}
    floats = {value.name for value in student.proto.graph.output if value.type.tensor_type.elem_type in FLOAT_TYPES}
    outputs = [target for target in output_targets(student, ours) if target.name in same]
    if len(outputs) < len(output_targets(student, ours)):
        outputs += [DistillationTarget(name, 1 if len(ours[name]) == 2 else None) for name in sorted(floats & same)]
    taken = {target.name for target in outputs}
    inner = [
        node.output[0]
        for node in student.proto.graph.node
        if node.op_type in INNER_TARGET_OPERATORS and node.output[0] in same & student.free & teacher.free - taken
    ]
    chosen = inner[:: -(-len(inner) // MAX_INNER_TARGETS)] if inner else []
    return (*dict.fromkeys(outputs), *(DistillationTarget(name, inner=True) for name in chosen))

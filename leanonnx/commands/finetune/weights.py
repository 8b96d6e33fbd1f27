"""The places where a model reads its constants as weights, and new values of constants in the file's protobuf.

A constant can be trained if it is a float that is read only as a weight of layers (kernels, biases, scales and slopes),
directly or through operators that only move data.  Which of these are trained is decided in ``holding``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import numpy_helper

from leanonnx.graph.model import Model
from leanonnx.graph.nodes import attribute
from leanonnx.numeric.arrays import Array
from leanonnx.operators.facts import Family, Trait
from leanonnx.operators.table import OPERATORS, names_of, names_with

WEIGHT_SLOTS: Mapping[str, frozenset[int]] = {
    name: frozenset(facts.learned) for (_, name), facts in OPERATORS.items() if facts.learned
}
"""Input slots of each operator that hold weights."""
BIAS_SLOTS: Mapping[str, int] = {name: facts.bias for (_, name), facts in OPERATORS.items() if facts.bias is not None}
FAMILIES: Mapping[str, Family] = {name: facts.family for (_, name), facts in OPERATORS.items()}
ARITHMETIC_OPERATORS = names_with(Trait.ARITHMETIC)
"""Operators whose constant operand is a weight if it is a vector."""
SCALING_OPERATORS = names_with(Trait.SCALES)
WEIGHT_CARRIERS = names_with(Trait.CARRIES)
"""Operators between a weight and the layer that reads it."""
MATRIX_PRODUCTS = names_of(Family.GEMM, Family.MATMUL)


@dataclass(frozen=True)
class Place:
    """An input slot of a node that reads a constant; ``turned``: the matrix is transposed on its way there."""

    node: int
    slot: int
    turned: bool = False

    def kind(self, model: Model) -> str:
        """The role that a constant has here; constants of several roles are no ordinary weights."""
        node = model.proto.graph.node[self.node]
        name = node.op_type
        if BIAS_SLOTS.get(name) == self.slot:
            return "bias"
        if name in MATRIX_PRODUCTS:
            turned = self.turned != bool(attribute(node, "transB" if self.slot else "transA", 0))
            return f"{'right' if self.slot else 'left'} matrix{', transposed' if turned else ''}"
        if name in ARITHMETIC_OPERATORS:
            return "factor" if name in SCALING_OPERATORS else "term"
        return f"input {self.slot} of {FAMILIES[name].name.lower().replace('_', ' ') if name in FAMILIES else name}"


def places(model: Model, constant: str) -> list[Place] | None:
    """The slots that read a constant, directly or through carriers; None if it is also an output or read in a branch.

    A single number is followed through functions of one number too: they turn it into the number that is used.
    """
    single = model.view.constant_kind(constant)[1] == 1
    slots_read: list[Place] = []
    waiting = [(constant, False)]
    while waiting:
        name, turned = waiting.pop()
        for k in model.consumers.get(name, [-1]):
            node = model.proto.graph.node[k] if k >= 0 else None
            slots = [slot for slot, read in enumerate(node.input) if read == name] if node is not None else []
            if node is None or not slots:
                return None
            carries = node.op_type in WEIGHT_CARRIERS or (single and FAMILIES.get(node.op_type) is Family.UNARY)
            if carries and slots == [0]:
                waiting.append((node.output[0], turned != _turns(node)))
            else:
                slots_read += [Place(k, slot, turned) for slot in slots]
    return slots_read


def _turns(node: onnx.NodeProto) -> bool:
    """Return True if a node exchanges the last two axes, or all."""
    order = list(attribute(node, "perm", [])) if node.op_type == "Transpose" else [0]
    return not order or order[-2:] != sorted(order)[-2:]


def trainable_constants(model: Model) -> tuple[str, ...]:
    """Names of the float constants that are read only as weights, sorted; single numbers among operands are none."""
    return tuple(sorted(name for name in float_constants(model) if is_weight(model, name)))


def float_constants(model: Model) -> tuple[str, ...]:
    """Names of the float constants, in the order of the file."""
    return tuple(name for name in model.holders if _is_float(model, name))


def _is_float(model: Model, name: str) -> bool:
    kind, size = model.view.constant_kind(name)
    return size > 0 and (kind.startswith("float") or kind == "bfloat16") and not kind.startswith(("float4", "float8"))


def is_weight(model: Model, constant: str) -> bool:
    """Return True if all consumers of a constant, directly or through carriers, read it as a weight."""
    read_at = places(model, constant)
    return bool(read_at) and all(_holds_weight(model, constant, place) for place in read_at or ())


def _holds_weight(model: Model, constant: str, place: Place) -> bool:
    name = model.proto.graph.node[place.node].op_type
    if name in ARITHMETIC_OPERATORS:
        return _is_vector(model.constant(constant))
    return place.slot in WEIGHT_SLOTS.get(name, frozenset())


def _is_vector(value: Array) -> bool:
    """Return True if an array has several elements, all along one axis."""
    return value.size > 1 and max(value.shape, default=1) == value.size


def replace_constants(proto: onnx.ModelProto, values: Mapping[str, Array]) -> onnx.ModelProto:
    """Return a copy of a model with new values of some constants, rounded to their stored types."""
    result = onnx.ModelProto()
    result.CopyFrom(proto)
    for tensor in result.graph.initializer:
        if tensor.name in values:
            _fill(tensor, values[tensor.name])
    for node in result.graph.node:
        if node.op_type == "Constant" and node.output[0] in values:
            attribute, value = node.attribute[0], values[node.output[0]]
            if attribute.name == "value":
                _fill(attribute.t, value)
            elif attribute.name == "value_float":
                attribute.f = float(value)
            else:
                attribute.floats[:] = value.reshape(-1).tolist()
    return result


def _fill(tensor: onnx.TensorProto, value: Array) -> None:
    """Replace the values of a tensor; its name, type and shape stay."""
    fresh = numpy_helper.from_array(round_to_kind(value, tensor.data_type).reshape(tuple(tensor.dims)))
    for field in ("float_data", "int32_data", "double_data"):
        tensor.ClearField(field)
    tensor.raw_data = fresh.raw_data


def round_to_kind(value: Array, kind: int) -> Array:
    """Round values to an element type of ONNX."""
    return np.ascontiguousarray(value.astype(onnx.helper.tensor_dtype_to_np_dtype(kind)))


def constant_kinds(model: Model) -> dict[str, int]:
    """Element type of each constant, by name."""
    kinds = {}
    for name, holder in model.holders.items():
        if isinstance(holder, onnx.TensorProto):
            kinds[name] = holder.data_type
        else:
            attribute = holder.attribute[0]
            kinds[name] = attribute.t.data_type if attribute.name == "value" else onnx.TensorProto.FLOAT
    return kinds

"""Which constants of a model are trained, and how their new values are put back into the file's protobuf.

Trained are floats that are read only where a layer has its weights: kernels, biases, scales and slopes, directly or
through operators that only move data.  Everything else stays as it is: statistics of a BatchNormalization, single
numbers, tables of positions, whatever is computed from.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx
from onnx import numpy_helper

from leanonnx.graph.model import Model
from leanonnx.numeric.arrays import Array
from leanonnx.operators.facts import Trait
from leanonnx.operators.table import OPERATORS, names_with

WEIGHTS: Mapping[str, frozenset[int]] = {
    name: frozenset(facts.learned) for (_, name), facts in OPERATORS.items() if facts.learned
}
"""Inputs of operators that are weights."""
SCALES = names_with(Trait.ARITHMETIC)
"""Operators whose constant operand is a weight where it has one number for each channel."""
CARRIERS = names_with(Trait.CARRIES)
"""Operators through which a weight may be read."""


def trainable(model: Model) -> tuple[str, ...]:
    """Names of the constants that are trained, sorted."""
    floats = {name for name in model.holders if _is_float(model, name)}
    return tuple(sorted(name for name in floats if _is_weight(model, name, name)))


def _is_float(model: Model, name: str) -> bool:
    kind, size = model.view.constant_kind(name)
    return size > 0 and (kind.startswith("float") or kind == "bfloat16") and not kind.startswith(("float4", "float8"))


def _is_weight(model: Model, constant: str, name: str) -> bool:
    """Whether all that reads a constant, or what it is moved to, takes it for a weight."""
    readers = model.consumers.get(name, [-1])
    return -1 not in readers and all(_takes(model, constant, name, model.proto.graph.node[k]) for k in readers)


def _takes(model: Model, constant: str, name: str, node: onnx.NodeProto) -> bool:
    """Whether a node that reads a constant, which has come to it under a name, takes it for a weight."""
    slots = {slot for slot, read in enumerate(node.input) if read == name}
    if node.op_type in CARRIERS and slots == {0}:
        return _is_weight(model, constant, node.output[0])
    if node.op_type in SCALES:
        return _is_vector(model.constant(constant))
    return bool(slots) and slots <= WEIGHTS.get(node.op_type, frozenset())


def _is_vector(value: Array) -> bool:
    """Whether an array has several numbers, all along one axis."""
    return value.size > 1 and max(value.shape, default=1) == value.size


def put_back(proto: onnx.ModelProto, values: Mapping[str, Array]) -> onnx.ModelProto:
    """A copy of a model in which these constants have new values, rounded to the type they had."""
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
    """New numbers in a tensor; all else about it stays."""
    fresh = numpy_helper.from_array(rounded(value, tensor.data_type).reshape(tuple(tensor.dims)))
    for field in ("float_data", "int32_data", "double_data"):
        tensor.ClearField(field)
    tensor.raw_data = fresh.raw_data


def rounded(value: Array, kind: int) -> Array:
    """Numbers in an element type of ONNX."""
    return np.ascontiguousarray(value.astype(onnx.helper.tensor_dtype_to_np_dtype(kind)))


def original_kinds(model: Model) -> dict[str, int]:
    """Element type of each float constant."""
    found = {}
    for name, holder in model.holders.items():
        if isinstance(holder, onnx.TensorProto):
            found[name] = holder.data_type
        else:
            attribute = holder.attribute[0]
            found[name] = attribute.t.data_type if attribute.name == "value" else onnx.TensorProto.FLOAT
    return found

"""Select the constants of a model that are trained, and store their new values in the file's protobuf.

Trained are float constants that are read only as weights of layers (kernels, biases, scales and slopes), directly or
through operators that only move data.  All others stay fixed: statistics of a BatchNormalization, single numbers,
tables of positions, inputs of computed weights.
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

WEIGHT_SLOTS: Mapping[str, frozenset[int]] = {
    name: frozenset(facts.learned) for (_, name), facts in OPERATORS.items() if facts.learned
}
"""Input slots of each operator that hold weights."""
ARITHMETIC_OPERATORS = names_with(Trait.ARITHMETIC)
"""Operators whose constant operand is a weight if it is a vector."""
WEIGHT_CARRIERS = names_with(Trait.CARRIES)
"""Operators between a weight and the layer that reads it."""


def trainable_constants(model: Model) -> tuple[str, ...]:
    """Names of the constants to train, sorted."""
    floats = {name for name in model.holders if _is_float(model, name)}
    return tuple(sorted(name for name in floats if _is_weight(model, name, name)))


def _is_float(model: Model, name: str) -> bool:
    kind, size = model.view.constant_kind(name)
    return size > 0 and (kind.startswith("float") or kind == "bfloat16") and not kind.startswith(("float4", "float8"))


def _is_weight(model: Model, constant: str, name: str) -> bool:
    """Return True if all consumers of a constant, directly or through carriers, read it as a weight."""
    consumers = model.consumers.get(name, [-1])
    return -1 not in consumers and all(
        _reads_as_weight(model, constant, name, model.proto.graph.node[k]) for k in consumers
    )


def _reads_as_weight(model: Model, constant: str, name: str, node: onnx.NodeProto) -> bool:
    """Return True if a node that reads a constant, under the given tensor name, reads it as a weight."""
    slots = {slot for slot, read in enumerate(node.input) if read == name}
    if node.op_type in WEIGHT_CARRIERS and slots == {0}:
        return _is_weight(model, constant, node.output[0])
    if node.op_type in ARITHMETIC_OPERATORS:
        return _is_vector(model.constant(constant))
    return bool(slots) and slots <= WEIGHT_SLOTS.get(node.op_type, frozenset())


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

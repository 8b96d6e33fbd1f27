"""New values for constants of a network: weights and biases of layers."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import onnx
from onnx import numpy_helper

from leanonnx.graph.model import Model
from leanonnx.graph.nodes import BIAS, attribute, fresh_name, holder_array
from leanonnx.graph.view import FREE_INITIALIZERS
from leanonnx.numeric.arrays import Array
from leanonnx.recovery.layers import LinearLayer
from leanonnx.recovery.route import ROUTE_STEPS, count_reads


class ConstantChange(Protocol):
    """New values for constants."""

    def carry_out(self, proto: onnx.ModelProto, model: Model) -> None:
        """Write the values into a protobuf, from which ``model`` was made."""
        ...


def apply_changes(model: Model, changes: Iterable[ConstantChange]) -> onnx.ModelProto:
    """Return a copy of the model with new weights and biases.

    Only values of constants differ, except for biases that are added because there was none, or because other layers
    read the same one.
    """
    result = onnx.ModelProto()
    result.CopyFrom(model.proto)
    for change in changes:
        change.carry_out(result, model)
    return result


@dataclass(frozen=True)
class LayerChange:
    """New values for one layer: the stored weight, and the bias [O] if it changes."""

    layer: LinearLayer
    weight: Array
    bias: Array | None

    def carry_out(self, proto: onnx.ModelProto, model: Model) -> None:
        """Write the values into a protobuf, from which ``model`` was made."""
        layer = self.layer
        kind = set_constant(proto, layer.weight, layer.route.to_stored(self.weight))
        if self.bias is None:
            return
        if layer.bias and count_reads(model, layer.bias) == 1:
            set_constant(proto, layer.bias, self.bias.reshape(model.constant(layer.bias).shape))
            return
        node = proto.graph.node[layer.after]
        kind = _cast(proto, node.input[layer.block.slot]) or kind
        taken = {*model.use_counts, *model.producers, *model.holders, *(t.name for t in proto.graph.initializer)}
        name = fresh_name(taken, f"{node.output[0]}_bias")
        behind = -1 - layer.bias_axis
        add_bias(proto, node, name, self.bias.reshape(-1, *[1] * behind).astype(kind))


def add_bias(proto: onnx.ModelProto, node: onnx.NodeProto, name: str, bias: Array) -> None:
    """Add a bias constant to a node without one."""
    tensor = numpy_helper.from_array(bias, name)
    proto.graph.initializer.append(tensor)
    if proto.ir_version < FREE_INITIALIZERS:
        proto.graph.input.append(onnx.helper.make_tensor_value_info(name, tensor.data_type, tensor.dims))
    node.input.extend([""] * (BIAS + 1 - len(node.input)))
    node.input[BIAS] = name


def _cast(proto: onnx.ModelProto, name: str) -> np.dtype[Any] | None:
    """Type to which a constant is cast before it is read; None if it is not cast."""
    makers = {output: node for node in proto.graph.node for output in node.output}
    while name in makers and makers[name].op_type in ROUTE_STEPS:
        if makers[name].op_type == "Cast":
            return np.dtype(onnx.helper.tensor_dtype_to_np_dtype(attribute(makers[name], "to")))
        name = makers[name].input[0]
    return None


def set_constant(proto: onnx.ModelProto, name: str, array: Array) -> np.dtype[Any]:
    """Set the values of a constant, keeping its shape and type; returns the type."""
    for tensor in proto.graph.initializer:
        if tensor.name == name:
            return _fill(tensor, array)
    node = next(node for node in proto.graph.node if node.op_type == "Constant" and node.output[0] == name)
    old = numpy_helper.from_array(holder_array(node), name)
    kind = _fill(old, array)
    del node.attribute[:]
    node.attribute.append(onnx.helper.make_attribute("value", old))
    return kind


def _fill(tensor: onnx.TensorProto, array: Array) -> np.dtype[Any]:
    kind = onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type)
    filled = numpy_helper.from_array(np.asarray(array, dtype=kind, order="C"), tensor.name)
    if tensor.HasField("doc_string"):
        filled.doc_string = tensor.doc_string
    tensor.CopyFrom(filled)
    return kind

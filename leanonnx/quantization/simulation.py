"""Simulate a model of integers in floats: each conversion becomes a division, rounding, clipping and multiplication."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx
from onnx import numpy_helper

from leanonnx.graph.formats import value_names
from leanonnx.graph.nodes import attribute, fresh_name
from leanonnx.graph.view import GraphView
from leanonnx.numeric.arrays import Array
from leanonnx.operators.facts import Family
from leanonnx.operators.table import names_of

QUANTIZERS = names_of(Family.QUANTIZER)


def simulation_of(proto: onnx.ModelProto) -> onnx.ModelProto:
    """The float model that computes what a model of QuantizeLinear and DequantizeLinear nodes computes."""
    return _Simulation(proto).result()


class _Simulation:
    """The nodes and constants of the float model."""

    def __init__(self, proto: onnx.ModelProto) -> None:
        self.proto, self.view = proto, GraphView(proto)
        self.names = value_names(proto.graph)
        self.nodes: list[onnx.NodeProto] = []
        self.constants: dict[str, Array] = {}

    def result(self) -> onnx.ModelProto:
        """The float model."""
        for node in self.proto.graph.node:
            if node.op_type == "QuantizeLinear":
                self._quantise(node)
            elif node.op_type == "DequantizeLinear":
                self._dequantise(node)
            else:
                self.nodes.append(node)
        model = onnx.ModelProto()
        model.CopyFrom(self.proto)
        used = {name for node in self.nodes for name in node.input}
        used |= {value.name for value in (*model.graph.output, *model.graph.input)}
        integers = {name for node in self.proto.graph.node if node.op_type in QUANTIZERS for name in node.input}
        kept = [t for t in self.proto.graph.initializer if t.name in used or t.name not in integers]
        integer_outputs = {o for n in self.proto.graph.node if n.op_type == "QuantizeLinear" for o in n.output}
        noted = [value for value in self.proto.graph.value_info if value.name not in integer_outputs]
        del model.graph.node[:], model.graph.initializer[:], model.graph.value_info[:]
        model.graph.node.extend(self.nodes)
        model.graph.initializer.extend(kept)
        model.graph.value_info.extend(noted)
        model.graph.initializer.extend(numpy_helper.from_array(array, name) for name, array in self.constants.items())
        return model

    def _quantise(self, node: onnx.NodeProto) -> None:
        """Integers as floats: round(x / scale) + zero point, clipped."""
        scale, zero = self._parameters(node)
        limits = np.iinfo(zero.dtype)
        steps = self._apply("Div", [node.input[0], self._constant(node, scale)])
        rounded = self._apply("Round", [steps])
        shifted = self._apply("Add", [rounded, self._constant(node, zero.astype(np.float32))])
        ends = [self._constant(node, np.array(end, np.float32)) for end in (limits.min, limits.max)]
        self._apply("Clip", [shifted, *ends], node.output[0])

    def _dequantise(self, node: onnx.NodeProto) -> None:
        """Floats of integers: (integer − zero point) × scale."""
        scale, zero = self._parameters(node)
        source = node.input[0]
        if source in self.view.origins:
            integers = self.view.constant(source)
            shape = [1] * integers.ndim
            if scale.size > 1:
                shape[attribute(node, "axis", 1) % integers.ndim] = scale.size
            difference = integers.astype(np.int64) - zero.astype(np.int64).reshape(shape if zero.size > 1 else ())
            values = difference.astype(np.float32) * scale.reshape(shape if scale.size > 1 else ())
            self.constants[node.output[0]] = np.asarray(values, np.float32)
            return
        centred = self._apply("Sub", [source, self._constant(node, zero.astype(np.float32))])
        self._apply("Mul", [centred, self._constant(node, scale)], node.output[0])

    def _parameters(self, node: onnx.NodeProto) -> tuple[Array, Array]:
        """Scale and zero point."""
        scale = np.asarray(self.view.constant(node.input[1]), np.float32)
        if len(node.input) > 2 and node.input[2]:
            return scale, np.asarray(self.view.constant(node.input[2]))
        return scale, np.zeros(scale.shape, np.uint8)

    def _apply(self, operator: str, inputs: Sequence[str], output: str = "") -> str:
        output = output or fresh_name(self.names, f"{inputs[0]}_{operator}")
        self.nodes.append(onnx.helper.make_node(operator, list(inputs), [output]))
        return output

    def _constant(self, node: onnx.NodeProto, array: Array) -> str:
        name = fresh_name(self.names, f"{node.output[0]}_number")
        self.constants[name] = np.asarray(array, np.float32)
        return name

"""Stand-ins for operators that sum products of 8-bit integers: the same sums in floats, exact up to 2²⁴.

Integer kernels of x86 processors without VNNI cut the sum of two neighbouring products off at 16 bits.  Which channels
are neighbours depends on those that are there, so that such sums say nothing of the removal of channels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper

from leanonnx.graph.formats import value_names
from leanonnx.graph.nodes import fresh_name, standard_name
from leanonnx.graph.view import GraphView
from leanonnx.operators.integer_forms import INTEGER_FORMS, IntegerSlots


def has_integer_sums(proto: onnx.ModelProto) -> bool:
    """True if a node of the main graph sums products of integers."""
    return any(standard_name(node) in INTEGER_FORMS for node in proto.graph.node)


def with_exact_sums(proto: onnx.ModelProto) -> onnx.ModelProto:
    """The model with stand-ins in place of its integer operators; the model itself if it has none.

    All tensors keep their names and types.  A convolution whose kernels are computed stays as it is.
    """
    return _StandIns(proto).result() if has_integer_sums(proto) else proto


class _StandIns:
    """The nodes of the model, as far as they are made."""

    def __init__(self, proto: onnx.ModelProto) -> None:
        self.proto, self.view = proto, GraphView(proto)
        self.names = value_names(proto.graph)
        self.nodes: list[onnx.NodeProto] = []

    def result(self) -> onnx.ModelProto:
        """The model."""
        for node in self.proto.graph.node:
            form = INTEGER_FORMS.get(standard_name(node))
            if form is None or (form.operator == "Conv" and node.input[form.weight] not in self.view.origins):
                self.nodes.append(node)
            else:
                self._replace(node, form)
        model = onnx.ModelProto()
        model.CopyFrom(self.proto)
        del model.graph.node[:]
        model.graph.node.extend(self.nodes)
        return model

    def _replace(self, node: onnx.NodeProto, form: IntegerSlots) -> None:
        """The products of the centred integers, their scale, and the rounding to the output's type."""
        given = {slot: name for slot, name in enumerate(node.input) if name}
        ranks = [0, 0]
        if form.operator == "Conv":
            rank = self.view.constant(node.input[form.weight]).ndim
            ranks = [rank, rank - 1]
        data = self._centred(given[0], given.get(form.data[1], ""))
        weight = self._centred(given[form.weight], self._spread(given.get(form.zero, ""), ranks[0]))
        bias = [self._apply("Cast", [given[form.bias]], to=TensorProto.FLOAT)] if form.bias in given else []
        product = onnx.NodeProto(op_type=form.operator, attribute=node.attribute, name=node.name)
        product.input.extend([data, weight, *bias])
        product.output.append(fresh_name(self.names, node.output[0]))
        self.nodes.append(product)
        if form.scale < 0:
            self._apply("Cast", product.output, node.output[0], to=TensorProto.INT32)
            return
        unit = self._apply("Mul", [given[form.data[0]], self._spread(given[form.scale], ranks[1])])
        floats = self._apply("Mul", [*product.output, unit])
        self._apply("QuantizeLinear", [floats, *(given[slot] for slot in form.output)], node.output[0])

    def _centred(self, integers: str, zero: str) -> str:
        """Integers as floats, less their zero point if there is one."""
        floats = self._apply("Cast", [integers], to=TensorProto.FLOAT)
        return self._apply("Sub", [floats, self._apply("Cast", [zero], to=TensorProto.FLOAT)]) if zero else floats

    def _spread(self, numbers: str, rank: int) -> str:
        """Numbers along the first of ``rank`` axes; as they are for rank 0."""
        if not numbers or not rank:
            return numbers
        shape = fresh_name(self.names, numbers)
        sizes = numpy_helper.from_array(np.array([-1, *[1] * (rank - 1)], np.int64), shape)
        self.nodes.append(onnx.helper.make_node("Constant", [], [shape], value=sizes))
        return self._apply("Reshape", [numbers, shape])

    def _apply(self, operator: str, inputs: Sequence[str], output: str = "", **attributes: Any) -> str:
        output = output or fresh_name(self.names, inputs[0])
        self.nodes.append(onnx.helper.make_node(operator, list(inputs), [output], **attributes))
        return output

"""Find the integer inputs that hold pixels or other data, not class numbers, masks or positions."""

from __future__ import annotations

import onnx

from leanonnx.graph.formats import FLOAT_TYPES
from leanonnx.graph.model import Model
from leanonnx.graph.nodes import SHAPE_OPS, attribute, captured_names, standard_name
from leanonnx.operators.facts import Family, Trait
from leanonnx.operators.table import names_of, names_with

BYTE_TYPES = {onnx.TensorProto.UINT8, onnx.TensorProto.INT8}
DATA_MOVEMENTS = names_with(Trait.MOVES)
"""Operators that move the data in slot 0."""
INTEGER_OPERATORS = names_with(Trait.INTEGER_DATA)
"""Operators that compute with the integers in slot 0."""
NUMERIC = names_with(Trait.ARITHMETIC) | (names_with(Trait.EXTREME) & names_of(Family.JOIN))


def pixel_inputs(model: Model) -> frozenset[str]:
    """Graph inputs of 8-bit integers that are only computed with, so that any value of the type may be fed."""
    names = [v.name for v in model.inputs if v.type.tensor_type.elem_type in BYTE_TYPES]
    return frozenset(name for name in names if _computed_with(model, name))


def _computed_with(model: Model, name: str) -> bool:
    """True if all consumers of a tensor of integers, moved or not, compute with it or turn it into floats."""
    values = {name}
    for node in model.proto.graph.node:  # not by its consumers, which are remembered: it may be tapped just now
        for tensor in values.intersection([*node.input, *captured_names(node)]):
            if standard_name(node) == "Concat" or (standard_name(node) in DATA_MOVEMENTS and node.input[0] == tensor):
                values.update(node.output)
            elif not _computes(node, tensor):
                return False
    return True


def _computes(node: onnx.NodeProto, tensor: str) -> bool:
    if node.op_type in SHAPE_OPS:
        return True
    if node.op_type == "Cast":
        return attribute(node, "to") in FLOAT_TYPES
    return node.op_type in NUMERIC or (node.op_type in INTEGER_OPERATORS and node.input[0] == tensor)

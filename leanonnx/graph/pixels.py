"""Which integer inputs of a network hold pixels, or other data, and which hold class numbers, masks and positions."""

from __future__ import annotations

import onnx

from leanonnx.graph.formats import FLOATS
from leanonnx.graph.model import Model
from leanonnx.graph.nodes import SHAPE_OPS, attribute, captured, standard
from leanonnx.operators.facts import Family, Trait
from leanonnx.operators.table import names_of, names_with

BYTES = {onnx.TensorProto.UINT8, onnx.TensorProto.INT8}
MOVING = names_with(Trait.MOVES)
"""Operators that move what is in slot 0."""
COMPUTING = names_with(Trait.INTEGER_DATA)
"""Operators that compute with the integers in slot 0."""
NUMERIC = names_with(Trait.ARITHMETIC) | (names_with(Trait.EXTREME) & names_of(Family.JOIN))


def pixels(model: Model) -> frozenset[str]:
    """Graph inputs of 8-bit integers that the network only computes with: the whole range may be fed."""
    names = [v.name for v in model.inputs if v.type.tensor_type.elem_type in BYTES]
    return frozenset(name for name in names if _computed_with(model, name))


def _computed_with(model: Model, name: str) -> bool:
    """Whether all that reads a tensor of integers turns it into floats or computes with it, moved or not."""
    moved = {name}
    for node in model.proto.graph.node:  # not by its consumers, which are remembered: it may be tapped just now
        for tensor in moved.intersection([*node.input, *captured(node)]):
            if standard(node) == "Concat" or (standard(node) in MOVING and node.input[0] == tensor):
                moved.update(node.output)
            elif not _computes(node, tensor):
                return False
    return True


def _computes(node: onnx.NodeProto, tensor: str) -> bool:
    if node.op_type in SHAPE_OPS:
        return True
    if node.op_type == "Cast":
        return attribute(node, "to") in FLOATS
    return node.op_type in NUMERIC or (node.op_type in COMPUTING and node.input[0] == tensor)

"""Layers whose products can be summed in integers, the reasons why others cannot, and the nodes between them."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass

import onnx

from leanonnx.graph.nodes import attribute, standard_name
from leanonnx.graph.view import GraphView, default_initializers
from leanonnx.operators.facts import Family, Trait
from leanonnx.operators.table import names_of, names_with

WEIGHTED_OPERATORS = names_with(Trait.INTEGER_KERNELS)
"""Operators with integer kernels."""
CARRIERS = names_with(Trait.PASSES_INTEGERS)
"""Operators that run on integers as well, so that those between quantised layers need not convert to floats."""
INTEGER_JOINS = CARRIERS & (names_of(Family.JOIN) | names_with(Trait.JOINS_ZEROS))
"""Those of them that compute with all their inputs."""
BOUNDS = names_with(Trait.BOUNDS_INTEGERS)
"""Carriers that the quantiser makes a part of the layer before them."""
COMPUTED_WEIGHT = "its weight is no stored constant"
OVERRIDABLE_WEIGHT = "its weight is a graph input that a caller may override"
FLOAT_OUTSIDE = "its numbers are no 32-bit floats"
SHARED_WEIGHT = "its weight or bias is read by other nodes as well"
NO_PLAIN_PRODUCT = "its product is scaled, its input transposed, its weight no matrix or its bias no row"
MATRIX_AXES = 2
NOT_FINITE = "it reads or puts out numbers that are not finite"


@dataclass(frozen=True, kw_only=True)
class Layer:
    """A layer with a weight: the name of its node, its weight's name and axis of outputs; why it must stay float.

    ``is_slower``: it could be in integers, but would take longer.
    """

    name: str
    operator: str
    weight: str
    axis: int
    reason: str = ""
    is_slower: bool = False


def weighted_layers(proto: onnx.ModelProto) -> tuple[Layer, ...]:
    """The layers of a model whose nodes have unique names, with the reasons why some cannot be in integers."""
    view, overridable = GraphView(proto), default_initializers(proto)
    stored = {tensor.name: tensor for tensor in proto.graph.initializer}
    layers = []
    for node in proto.graph.node:
        operator = standard_name(node)
        if operator not in WEIGHTED_OPERATORS or len(node.input) < 2:
            continue
        weight, constants = node.input[1], [name for name in node.input[1:] if name]
        if operator == "MatMul" and weight in view.free:
            continue  # a product of two computed tensors has no weight
        rank = len(stored[weight].dims) if weight in stored else 0
        if not all(name in stored for name in constants):
            reason = COMPUTED_WEIGHT
        elif overridable & set(constants):
            reason = OVERRIDABLE_WEIGHT
        elif any(stored[name].data_type != onnx.TensorProto.FLOAT for name in constants):
            reason = FLOAT_OUTSIDE
        elif any(len(view.consumers[name]) > 1 for name in constants) or len(constants) > len(set(constants)):
            reason = SHARED_WEIGHT
        elif not _is_plain(node, rank) or any(
            list(stored[name].dims) != [stored[weight].dims[output_axis(node, rank)]] for name in constants[1:]
        ):
            reason = NO_PLAIN_PRODUCT
        else:
            reason = ""
        axis = output_axis(node, rank)
        layers.append(Layer(name=node.name, operator=operator, weight=weight, axis=axis, reason=reason))
    return tuple(layers)


def _is_plain(node: onnx.NodeProto, rank: int) -> bool:
    """True but for a Gemm that does not compute x·W + b, and a MatMul whose weight has more than two axes."""
    if node.op_type != "Gemm":
        return node.op_type != "MatMul" or rank == MATRIX_AXES
    return not attribute(node, "transA", 0) and all(attribute(node, key, 1.0) == 1.0 for key in ("alpha", "beta"))


def output_axis(node: onnx.NodeProto, rank: int) -> int:
    """The axis of a weight along which the outputs lie."""
    if node.op_type == "Conv" or (node.op_type == "Gemm" and attribute(node, "transB", 0)):
        return 0
    return max(rank - 1, 0)


def carriers_between(proto: onnx.ModelProto, layers: Collection[str], excluded: Collection[str] = ()) -> list[str]:
    """Names of the nodes that pass integers on from quantised layers to others, and of bounds right after one.

    Before the first and behind the last of them, and around layers that stay float, floats are more accurate.

    Args:
        proto: a model whose nodes have unique names, in topological order.
        layers: names of the layers that are quantised.
        excluded: names of nodes that must stay float.
    """
    constants = {tensor.name for tensor in proto.graph.initializer}
    quantised = [node for node in proto.graph.node if node.name in layers]
    view = GraphView(proto)
    reached = {node.output[0] for node in quantised}
    behind: list[onnx.NodeProto] = []
    for node in proto.graph.node:
        if standard_name(node) not in CARRIERS or node.name in excluded or not _holds_zero(node, view):
            continue
        if not reached.isdisjoint(_tensors(node, constants)):
            behind.append(node)
            reached.update(node.output)
    read, written = {node.input[0] for node in quantised}, {node.output[0] for node in quantised}
    chosen: list[str] = []
    for node in reversed(behind):
        leads_on = not read.isdisjoint(node.output)
        if leads_on or (node.op_type in BOUNDS and node.input[0] in written):
            chosen.append(node.name)
            read.update(_tensors(node, constants) if leads_on else ())
    return chosen[::-1]


def _tensors(node: onnx.NodeProto, constants: Collection[str]) -> Iterator[str]:
    yield from (name for name in number_tensors(node) if name not in constants)


def number_tensors(node: onnx.NodeProto) -> list[str]:
    """Tensors of a node that hold the numbers it computes with: no shapes, sizes or limits."""
    inputs = node.input if node.op_type in INTEGER_JOINS else node.input[:1]
    return [name for name in (*inputs, *node.output) if name]


def _holds_zero(node: onnx.NodeProto, view: GraphView) -> bool:
    """True unless a node is a Clip to numbers without zero, which the range of an integer format always holds."""
    if node.op_type != "Clip":
        return True
    limits = [attribute(node, "min"), attribute(node, "max")]
    for slot, name in enumerate(node.input[1:]):
        if name and name not in view.origins:
            return False
        if name:
            limits[slot] = float(view.constant(name).reshape(-1)[0])
    low, high = limits
    return (low is None or low <= 0) and (high is None or high >= 0)

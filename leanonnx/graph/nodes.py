"""Properties of single nodes, and names for new values."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

from leanonnx.numeric.arrays import Floats
from leanonnx.operators.facts import Family, Trait
from leanonnx.operators.table import OPERATORS, names_of, names_with

STANDARD_DOMAINS = ("", "ai.onnx")
LINEAR = names_with(Trait.LINEAR)
BIAS = 2
"""The slot of most biases."""
BIASED = frozenset(name for (_, name), facts in OPERATORS.items() if facts.bias == BIAS)
"""Operators with a bias in that slot."""
RANDOM_OPS = names_of(Family.RANDOM)
SHAPE_OPS = names_of(Family.SHAPE)
QUANTISED = names_with(Trait.QUANTISED)


def attribute(node: onnx.NodeProto, name: str, default: Any = None) -> Any:
    """An attribute's value (text as a string), or a default."""
    match = next((a for a in node.attribute if a.name == name), None)
    value = default if match is None else onnx.helper.get_attribute_value(match)
    return value.decode() if isinstance(value, bytes) else value


def standard_name(node: onnx.NodeProto) -> str:
    """The name of an operator of ONNX; "" for operators of other domains."""
    return node.op_type if node.domain in STANDARD_DOMAINS else ""


def name_of(node: onnx.NodeProto) -> str:
    """The name of a node, or its first output if it has none."""
    return node.name or node.output[0]


def node_title(node: onnx.NodeProto) -> str:
    """Operator and name of a node, for messages."""
    return f"{node.op_type} '{name_of(node)}'"


def subgraphs(node: onnx.NodeProto) -> Iterator[onnx.GraphProto]:
    """The subgraphs of an If, a Loop or a Scan."""
    for each in node.attribute:
        if each.type == onnx.AttributeProto.GRAPH:
            yield each.g
        elif each.type == onnx.AttributeProto.GRAPHS:
            yield from each.graphs


def captured_names(node: onnx.NodeProto) -> set[str]:
    """Outer values that the subgraphs of a node (If, Loop, Scan) read."""
    names: set[str] = set()
    for graph in subgraphs(node):
        inner = {t.name for t in graph.initializer} | {v.name for v in graph.input}
        for child in graph.node:
            names |= {*child.input, *captured_names(child)} - inner
            inner.update(child.output)
        names |= {v.name for v in graph.output} - inner
    return names - {""}


def holder_array(holder: onnx.TensorProto | onnx.NodeProto) -> NDArray[np.generic]:
    """The value of an initializer or of a Constant node."""
    if isinstance(holder, onnx.TensorProto):
        return np.asarray(numpy_helper.to_array(holder))
    held = holder.attribute[0]
    if held.name == "value":
        return np.asarray(numpy_helper.to_array(held.t))
    value = onnx.helper.get_attribute_value(held)
    return np.asarray(value, {"value_float": np.float32, "value_floats": np.float32}.get(held.name))


def is_quantised(node: onnx.NodeProto) -> bool:
    """True if an operator makes, reads or computes in integers that stand for floats."""
    return node.op_type in QUANTISED


def bias_of(
    node: onnx.NodeProto, size: int, constant: Callable[[str], NDArray[Any] | None], onto: int = -1
) -> Floats | None:
    """The bias of a linear operator for each of its output channels [size].

    Args:
        node: a linear operator.
        size: its output channels.
        constant: returns the value of a constant, None for other values.
        onto: the axis of a matrix product along which the channels lie.

    Returns:
        β times the bias, or zeros without one; None unless it is one known number for each channel.
    """
    name = node.input[BIAS] if node.op_type in BIASED and len(node.input) > BIAS else ""
    if not name:
        return np.zeros(size)
    array = constant(name)
    if array is None or not is_per_channel(array, size, onto if node.op_type == "Gemm" else -1):
        return None
    beta = attribute(node, "beta", 1.0) if node.op_type == "Gemm" else 1.0
    return np.broadcast_to(beta * np.asarray(array, np.float64).reshape(-1), (size,))


def is_per_channel(array: NDArray[Any], size: int, axis: int = -1) -> bool:
    """True if a bias is one number, or one for each of ``size`` channels along an axis (counted from the end)."""
    behind = -1 - axis
    return array.size == 1 or array.shape == (1,) * (array.ndim - 1 - behind) + (size,) + (1,) * behind


def scale_and_shift(
    gamma: Floats, beta: Floats, mean: Floats, variance: Floats, epsilon: float
) -> tuple[Floats, Floats]:
    """Scale and shift [C] to which a BatchNormalization with parameters [C] simplifies."""
    scale = gamma / np.sqrt(variance + epsilon)
    return scale, beta - mean * scale


def normalisation_of(node: onnx.NodeProto, constant: Callable[[str], NDArray[Any]]) -> tuple[Floats, Floats]:
    """Scale and shift [C] of a BatchNormalization of constants; ``constant`` returns the value of one."""
    gamma, beta, mean, variance = (np.asarray(constant(name), np.float64) for name in node.input[1:])
    return scale_and_shift(gamma, beta, mean, variance, attribute(node, "epsilon", 1e-5))


def is_padded(node: onnx.NodeProto) -> bool:
    """True if an operator with a window pads its input."""
    return any(attribute(node, "pads", ())) or attribute(node, "auto_pad", "NOTSET") not in ("NOTSET", "VALID")


def fresh_name(taken: set[str], stem: str) -> str:
    """A name made from ``stem`` that is not taken; it is added to ``taken``."""
    number = 1
    while (name := f"{stem}_lean{number}") in taken:
        number += 1
    taken.add(name)
    return name

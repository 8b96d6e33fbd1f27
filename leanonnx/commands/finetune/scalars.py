"""Single numbers and vectors among operands: step sizes are trained, numbers of the architecture are not.

A number is trained if it weighs a correction, x ± number * g(x), where g goes through a product with weights or with an
operator; or if it was learnt already, which shows in that it is no round number.  Others belong to the architecture:
0.5 and √2 in a GELU, 1/√d in attention, an ε, a residue scaled by nothing.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from fractions import Fraction

import numpy as np
import onnx

from leanonnx.commands.finetune.weights import (
    ARITHMETIC_OPERATORS,
    FAMILIES,
    SCALING_OPERATORS,
    WEIGHT_CARRIERS,
    Place,
)
from leanonnx.graph.model import Model
from leanonnx.operators.facts import PRODUCT_FAMILIES, Family, Trait
from leanonnx.operators.table import names_with

PROCESSING = "it prepares an input or turns the result into an output (mean, deviation, range)"
ARCHITECTURE = "a round number that weighs no correction"
ROUND_DIGITS = 5
"""Decimal digits of a round number."""
MAX_NUMERATOR, MAX_DENOMINATOR = 1024, 16
"""Of the fractions that are round numbers."""
ROUND_FORMS = (
    *((power, 1.0, 1) for power in (1, 2, 4)),
    *((power, math.pi, sign) for power in (1, 2) for sign in (1, -1)),
    *((1, math.log(base), sign) for base in (2, 10) for sign in (1, -1)),
)
"""Powers and multiples of round numbers that are fractions: power of the number, factor, power of the factor."""
FLOAT32_ROUNDING = 2.0**-22
"""Relative rounding error of a few operations in single precision."""
SUMS = names_with(Trait.ADDS) - names_with(Trait.KERNELS)
PASSING = names_with(Trait.MOVES) | WEIGHT_CARRIERS | frozenset(n for n, f in FAMILIES.items() if f is Family.ASSEMBLY)
"""Operators that pass every number on as it is."""
PRODUCTS = frozenset(n for n, f in FAMILIES.items() if f in (*PRODUCT_FAMILIES, Family.EINSUM, Family.TRANSFORM))


def operand_reason(model: Model, constant: str, read_at: Collection[Place], held: Collection[str]) -> str:
    """The reason for which a constant operand of arithmetic is held; empty if it is trained.

    Args:
        model: the network.
        constant: a vector or a single number.
        read_at: the places that read it.
        held: matrices and kernels that are held.
    """
    value = np.asarray(model.constant(constant))
    if value.size == 1 and all(_weighs_correction(model, place, held) for place in read_at):
        return ""
    if any(_prepares_input(model, place) for place in read_at):
        return PROCESSING
    if value.size > 1:
        return ""
    if any(_ends_in_output(model, place) for place in read_at):
        return PROCESSING
    return ARCHITECTURE if value.dtype.itemsize < np.float32().itemsize or is_round(float(value.item())) else ""


def is_round(value: float) -> bool:
    """Return True for short decimals, small fractions, their roots, and their products with π or a logarithm."""
    if not math.isfinite(value) or value.is_integer():
        return True
    short = float(f"{value:.{ROUND_DIGITS - 1}e}")
    if value in (short, float(np.float32(short))):
        return True
    return any(_is_fraction(abs(value) ** power * factor**sign) for power, factor, sign in ROUND_FORMS)


def _is_fraction(value: float) -> bool:
    """Return True for p / q or q / p with a small q, to rounding."""
    if not 1 / MAX_NUMERATOR <= value <= MAX_NUMERATOR:
        return False
    nearest = (
        Fraction(value).limit_denominator(MAX_DENOMINATOR),
        Fraction(1 / value).limit_denominator(MAX_DENOMINATOR),
    )
    return any(
        abs(float(near) - x) <= FLOAT32_ROUNDING * x for near, x in zip(nearest, (value, 1 / value), strict=True)
    )


def _computed(model: Model, node: onnx.NodeProto) -> list[str]:
    return [name for name in node.input if name in model.free]


def _weighs_correction(model: Model, place: Place, held: Collection[str]) -> bool:
    """Return True if a factor weighs a term that is added to a tensor from which the term follows by products.

    The term is followed to the sum as long as nothing else reads it.
    """
    node = model.proto.graph.node[place.node]
    operands = _computed(model, node)
    if node.op_type not in SCALING_OPERATORS or len(operands) != 1:
        return False
    behind, name = _before_products(model, operands[0]), node.output[0]
    while len(readers := model.consumers.get(name, [])) == 1 and readers[0] >= 0:
        reader = model.proto.graph.node[readers[0]]
        if reader.op_type in SUMS and behind.intersection(_computed(model, reader)):
            return True
        if reader.op_type not in SUMS and not _is_fixed_linear(model, reader, held):
            return False
        name = reader.output[0]
    return False


def _is_fixed_linear(model: Model, node: onnx.NodeProto, held: Collection[str]) -> bool:
    """Return True if a node moves or scales its one computed input, or takes a product with held constants."""
    if node.op_type in PASSING or FAMILIES.get(node.op_type) is Family.TRANSFORM:
        return True
    if len(_computed(model, node)) != 1:
        return False
    if node.op_type in SCALING_OPERATORS:
        return True
    weights = {model.origins[name] for name in node.input if name in model.origins}
    return node.op_type in PRODUCTS and bool(weights) and weights <= set(held)


def _before_products(model: Model, name: str) -> set[str]:
    """The values from which a value follows by way of at least one product."""
    before: set[str] = set()
    waiting, seen = [(name, False)], set[tuple[str, bool]]()
    while waiting:
        state = waiting.pop()
        value, passed = state
        if state in seen:
            continue
        seen.add(state)
        if passed:
            before.add(value)
        if value in model.producers:
            node = model.proto.graph.node[model.producers[value]]
            through = passed or node.op_type in PRODUCTS
            waiting += [(read, through) for read in _computed(model, node)]
    return before


def _prepares_input(model: Model, place: Place) -> bool:
    """Return True if nothing but such operands lies between a graph input and a place, and nothing else reads it."""
    inputs = {value.name for value in model.inputs}
    node = model.proto.graph.node[place.node]
    while True:
        operands = _computed(model, node)
        if len(operands) != 1 or len(model.consumers.get(operands[0], [])) != 1:
            return False
        if operands[0] in inputs:
            return True
        node = model.proto.graph.node[model.producers[operands[0]]]
        if node.op_type not in ARITHMETIC_OPERATORS | PASSING:
            return False


def _ends_in_output(model: Model, place: Place) -> bool:
    """Return True if nothing but such operands lies between a place and a graph output."""
    outputs = {value.name for value in model.proto.graph.output}
    name = model.proto.graph.node[place.node].output[0]
    while name not in outputs:
        readers = model.consumers.get(name, [])
        node = model.proto.graph.node[readers[0]] if len(readers) == 1 and readers[0] >= 0 else None
        if node is None or node.op_type not in ARITHMETIC_OPERATORS | PASSING or len(_computed(model, node)) != 1:
            return False
        name = node.output[0]
    return True

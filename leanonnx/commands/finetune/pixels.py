"""Matrix products that mix the positions of an image: operators of physics rather than layers."""

from __future__ import annotations

from collections.abc import Collection

import onnx

from leanonnx.commands.finetune.weights import ARITHMETIC_OPERATORS, FAMILIES, MATRIX_PRODUCTS, Place
from leanonnx.graph.model import Model
from leanonnx.graph.nodes import attribute
from leanonnx.operators.facts import Family, Trait
from leanonnx.operators.table import CONVOLUTIONS, names_with
from leanonnx.runtime.observation import Shapes

KEEPING_FAMILIES = (
    *(Family.UNARY, Family.PARAMETRIC, Family.JOIN, Family.NORMALIZATION, Family.SOFTMAX, Family.POOLING),
    *(Family.SAMPLING, Family.ASSEMBLY, Family.CONVOLUTION, Family.TRANSPOSED_CONVOLUTION, Family.MATMUL),
)
"""Families whose operators leave every axis in its place."""
LAYER_FAMILIES = (Family.NORMALIZATION, Family.PARAMETRIC)
"""Families whose operators follow a learned product."""
KEEPING_OPERATORS = names_with(Trait.BORDERED) | {"Slice"}
"""Further operators that leave every axis in its place."""
FIRST_POSITION_AXIS = 2
"""The first axis of positions of what a convolution reads; batch and channels come before."""
ACTIVATIONS = (
    frozenset(name for name, family in FAMILIES.items() if family is Family.UNARY)
    - names_with(Trait.CARRIES)
    - names_with(Trait.INJECTIVE)
    - {"Abs"}
)


def image_tensors(model: Model, shapes: Shapes) -> set[str]:
    """Names of the tensors whose axes are those of a convolution's data: batch, channels, positions.

    These are the data of convolutions, and all that is connected to them by operators that leave each axis in its
    place.
    """
    links: dict[str, set[str]] = {}
    waiting: list[str] = []
    for node in model.proto.graph.node:
        computed = [
            name for name in (*node.input, *node.output) if name in model.free and len(shapes.get(name, ())) > 2
        ]
        if node.op_type in CONVOLUTIONS:
            waiting += computed
        if FAMILIES.get(node.op_type) in KEEPING_FAMILIES or node.op_type in KEEPING_OPERATORS:
            for one in computed:
                links.setdefault(one, set()).update(b for b in computed if len(shapes[b]) == len(shapes[one]))
    images: set[str] = set()
    while waiting:
        name = waiting.pop()
        if name not in images:
            images.add(name)
            waiting += links.get(name, ())
    return images


def mixes_positions(model: Model, place: Place, images: Collection[str], shapes: Shapes) -> bool:
    """Return True if a constant matrix at a place mixes positions of an image, and no layer uses what it gives.

    Args:
        model: the network.
        place: the place of the matrix.
        images: the result of ``image_tensors``.
        shapes: shapes of the tensors.
    """
    node = model.proto.graph.node[place.node]
    data = [name for slot, name in enumerate(node.input) if slot != place.slot and name in images]
    if len(data) != 1:
        return False
    rank = len(shapes[data[0]])
    summed = _summed_axes(node, place.slot, rank)
    return bool(summed) and min(summed) >= FIRST_POSITION_AXIS and not _is_used_as_layer(model, node.output[0])


def _summed_axes(node: onnx.NodeProto, slot: int, rank: int) -> list[int]:
    """Axes of the data over which a product with a constant sums."""
    if node.op_type in MATRIX_PRODUCTS:
        return [rank - 1 if slot else rank - 2]
    terms, arrow, result = str(attribute(node, "equation", "")).replace(" ", "").partition("->")
    if not arrow or "." in terms or terms.count(",") != 1:
        return []
    data = terms.split(",")[1 - slot]
    return [axis for axis, letter in enumerate(data) if letter not in result]


def _is_used_as_layer(model: Model, name: str) -> bool:
    """Return True if a bias, a normalisation or an activation follows a value."""
    for k in model.consumers.get(name, []):
        node = model.proto.graph.node[k] if k >= 0 else None
        if node is None:
            continue
        beside = [read for read in node.input if read != name]
        biased = node.op_type in ARITHMETIC_OPERATORS and any(
            read in model.origins and model.view.constant_kind(read)[1] > 1 for read in beside
        )
        if biased or node.op_type in ACTIVATIONS or FAMILIES.get(node.op_type) in LAYER_FAMILIES:
            return True
    return False

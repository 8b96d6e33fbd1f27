"""Find nodes that output one of their inputs: one small rule per operator.

A rule returns the input that can replace the node's first output, or None.  It reads facts from a ``TidyContext``:
constants that nobody can override, sizes, element types.  Sizes are those of shape inference: free axes have
the name that the file gives them, and nothing is taken from a single run, which might hide a broadcast.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import onnx
from google.protobuf.message import Error as ProtobufError
from onnx.shape_inference import InferenceError

from leanonnx.graph.formats import PRECISE_TYPES
from leanonnx.graph.nodes import attribute, captured_names, holder_array, standard_name
from leanonnx.graph.view import GraphView, default_initializers
from leanonnx.numeric.arrays import Array
from leanonnx.operators.facts import Trait
from leanonnx.operators.table import names_with

ConstantSize = int | str | None
MAX_INFERENCE_ELEMENTS = 1024
"""Elements up to which shape inference gets the values of a constant."""
INFERENCE_ERRORS = (InferenceError, ProtobufError, RuntimeError, ValueError, IndexError, OverflowError)
"""Exceptions that ONNX shape inference can raise, including protobuf's and mapped C++ ones.

Only the declared types and sizes are known then.
"""
SLICE_TO_END = (1 << 31) - 1
"""An end of a Slice that stands for the end of any axis."""
PAIR = 2
COMMUTATIVE = names_with(Trait.COMMUTES)
ARITHMETIC = names_with(Trait.ARITHMETIC)
"""Operators that join two operands."""
SAME_SIZE = names_with(Trait.SAME_SIZE)
"""Operators whose output has the sizes of their first input."""


@dataclass(frozen=True)
class Types:
    """Element types and sizes of the values of a graph, inferred when first asked for."""

    proto: onnx.ModelProto

    @cached_property
    def inferred(self) -> dict[str, onnx.TypeProto.Tensor]:
        """Element types and sizes by shape inference, without the values of large constants."""
        shell = onnx.ModelProto(ir_version=self.proto.ir_version, opset_import=self.proto.opset_import)
        shell.functions.extend(self.proto.functions)
        graph = self.proto.graph
        listed = {value.name for value in graph.input}
        shell.graph.name = graph.name
        shell.graph.node.extend(graph.node)
        shell.graph.input.extend(graph.input)
        shell.graph.output.extend(graph.output)
        shell.graph.value_info.extend(graph.value_info)
        for tensor in graph.initializer:
            if int(np.prod(tensor.dims)) <= MAX_INFERENCE_ELEMENTS:
                shell.graph.initializer.append(tensor)
            elif tensor.name not in listed:
                shell.graph.input.append(
                    onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, list(tensor.dims))
                )
        try:
            inferred = onnx.shape_inference.infer_shapes(shell, data_prop=True).graph
        except INFERENCE_ERRORS:
            inferred = shell.graph
        values = [*inferred.value_info, *inferred.input, *inferred.output]
        types = {v.name: v.type.tensor_type for v in values if v.type.HasField("tensor_type")}
        for tensor in graph.initializer:
            declared = onnx.helper.make_tensor_type_proto(tensor.data_type, list(tensor.dims))
            types[tensor.name] = declared.tensor_type
        return types


@dataclass(frozen=True, kw_only=True)
class TidyContext:
    """Facts about the values of a graph that a rule may use.

    ``view`` shows the nodes in their present state; ``changed`` holds constants that differ from those in the view,
    ``uniform`` computed tensors that are known, as arrays that broadcast to them, ``vital`` those from which a path has
    to lead on.
    """

    view: GraphView
    types: Types
    uniform: Mapping[str, Array]
    changed: Mapping[str, Array] = field(default_factory=dict)
    vital: frozenset[str] = frozenset()

    @cached_property
    def _defaults(self) -> frozenset[str]:
        """Initializers that a caller may override."""
        return default_initializers(self.view.proto)

    def constant(self, name: str) -> Array | None:
        """The value of a constant that a caller cannot override."""
        if name in self.changed:
            return self.changed[name]
        holder = None if name in self._defaults else self.view.holders.get(name)
        return None if holder is None else holder_array(holder)

    def ints(self, node: onnx.NodeProto, slot: int, name: str = "") -> list[int] | None:
        """Integers from an attribute (older operator sets) or from a constant input; None without either."""
        match = next((a for a in node.attribute if a.name == name), None)
        if match is not None:
            return [int(x) for x in (match.ints or [match.i])]
        array = self.constant(node.input[slot]) if slot < len(node.input) and node.input[slot] else None
        return None if array is None else [int(x) for x in array.reshape(-1)]

    def sizes(self, name: str) -> tuple[ConstantSize, ...] | None:
        """Sizes of a value: a number, the name of a free axis, None where unknown; None if not even the rank is."""
        array = self.constant(name)
        if array is not None:
            return array.shape
        kind = self.types.inferred.get(name)
        if kind is None or not kind.HasField("shape"):
            return None
        return tuple(d.dim_value if d.HasField("dim_value") else d.dim_param or None for d in kind.shape.dim)

    def kind(self, name: str) -> int:
        """Element type of a value; 0 if unknown."""
        array = self.constant(name)
        if array is not None:
            return int(onnx.helper.np_dtype_to_tensor_dtype(array.dtype))
        return self.types.inferred[name].elem_type if name in self.types.inferred else 0

    def number(self, name: str) -> float | None:
        """The number that all elements of a value are; None where they differ or are not known."""
        array = self.uniform[name] if name in self.uniform else self.constant(name)
        if array is None or not array.size or array.dtype.kind not in "fiub" or not (array == array.flat[0]).all():
            return None
        return float(array.flat[0])

    def covers(self, name: str, other: str) -> bool:
        """True if ``name`` joined with ``other`` has the sizes of ``name`` at any size of the graph inputs."""
        mine, theirs = self.sizes(name), self.sizes(other)
        if theirs is None or (theirs and mine is None):
            return False
        own = mine or ()
        lead = len(own) - len(theirs)
        return lead >= 0 and all(
            size == 1
            or (size is not None and size == own[lead + axis])
            or self._measure(other, axis) == self._measure(name, lead + axis)
            for axis, size in enumerate(theirs)
        )

    def _measure(self, name: str, axis: int) -> tuple[str, int]:
        """The first tensor, going back, that is known to have the same size on this axis."""
        while (node := self.view.producer(name)) is not None and _keeps_size(self, node, axis):
            name = node.input[0]
        return name, axis

    def vital_behind(self, name: str) -> frozenset[str]:
        """Vital values that a value is computed from."""
        names, left = {name}, [name]
        while left:
            node = self.view.producer(left.pop())
            fresh = {*node.input, *captured_names(node)} - names if node is not None else set()
            names |= fresh
            left += fresh
        return frozenset(names & self.vital)


def _keeps_size(context: TidyContext, node: onnx.NodeProto, axis: int) -> bool:
    """True if the size of a node's output on an axis is always that of its first input."""
    if standard_name(node) in SAME_SIZE:
        return True
    if standard_name(node) != "Conv" or axis == 1:
        return False
    sizes = context.sizes(node.input[1])
    if axis == 0 or sizes is None:
        return axis == 0
    rank, place = len(sizes) - 2, axis - 2
    stride, dilation = (attribute(node, key, [1] * rank)[place] for key in ("strides", "dilations"))
    kernel, kind = sizes[axis], attribute(node, "auto_pad", "NOTSET")
    pads = attribute(node, "pads", [0] * 2 * rank)
    border = pads[place] + pads[place + rank] if kind == "NOTSET" else 0
    fits = isinstance(kernel, int) and border == dilation * (kernel - 1)
    return bool(stride == 1 and (fits or kind.startswith("SAME")))


def _first(_: TidyContext, node: onnx.NodeProto) -> str | None:
    return node.input[0]


def _alone(_: TidyContext, node: onnx.NodeProto) -> str | None:
    """A join of one operand."""
    return node.input[0] if len(node.input) == 1 else None


def _dropout(context: TidyContext, node: onnx.NodeProto) -> str | None:
    """A Dropout that does not train."""
    if context.view.opset < 7:
        return node.input[0] if attribute(node, "is_test", 0) else None
    if len(node.input) > PAIR and node.input[2]:
        training = context.constant(node.input[2])
        return None if training is None or training.any() else node.input[0]
    return node.input[0]


def _slice(context: TidyContext, node: onnx.NodeProto) -> str | None:
    """A Slice of whole axes."""
    starts, ends, axes, steps = (
        context.ints(node, k + 1, n) for k, n in enumerate(("starts", "ends", "axes", "steps"))
    )
    computed = [slot for slot in range(1, len(node.input)) if node.input[slot] and context.ints(node, slot) is None]
    if computed or starts is None or ends is None or any(starts) or any(step != 1 for step in steps or []):
        return None
    sizes = context.sizes(node.input[0])
    for axis, end in zip(axes or range(len(ends)), ends, strict=True):
        size = sizes[axis] if sizes is not None else None
        if end < SLICE_TO_END and not (isinstance(size, int) and end >= size):
            return None
    return node.input[0]


def _pad(context: TidyContext, node: onnx.NodeProto) -> str | None:
    """A Pad by nothing."""
    amounts = context.ints(node, 1, "pads")
    return node.input[0] if amounts is not None and not any(amounts) else None


def _reshape(context: TidyContext, node: onnx.NodeProto) -> str | None:
    """A Reshape to the same sizes: all targets but at most one name the size of their axis or copy it."""
    target, sizes = context.ints(node, 1, "shape"), context.sizes(node.input[0])
    if target is None or sizes is None or len(target) != len(sizes):
        return None
    copied = 0 if attribute(node, "allowzero", 0) else 1
    left = [t for t, size in zip(target, sizes, strict=True) if not ((t == 0 and copied) or t == size)]
    return node.input[0] if left in ([], [-1]) else None


def _flatten(context: TidyContext, node: onnx.NodeProto) -> str | None:
    """A Flatten of a matrix."""
    sizes = context.sizes(node.input[0])
    return node.input[0] if sizes is not None and len(sizes) == PAIR and attribute(node, "axis", 1) in (1, -1) else None


def _inverse(context: TidyContext, node: onnx.NodeProto) -> str | None:
    """A Squeeze after an Unsqueeze of the same axes, or the reverse."""
    before = context.view.producer(node.input[0])
    opposite = {"Squeeze": "Unsqueeze", "Unsqueeze": "Squeeze"}[node.op_type]
    if before is None or standard_name(before) != opposite:
        return None
    one, other = (context.ints(n, 1, "axes") for n in (node, before))
    return before.input[0] if one is not None and other is not None and sorted(one) == sorted(other) else None


def _expand(context: TidyContext, node: onnx.NodeProto) -> str | None:
    """An Expand by 1 or to the size of the axis."""
    target, sizes = context.ints(node, 1), context.sizes(node.input[0])
    if target is None or sizes is None or len(target) > len(sizes):
        return None
    same = all(t in (1, size) for t, size in zip(target, sizes[len(sizes) - len(target) :], strict=True))
    return node.input[0] if same else None


def _tile(context: TidyContext, node: onnx.NodeProto) -> str | None:
    """A Tile that repeats nothing."""
    repeats = context.ints(node, 1) if context.view.opset > 1 else None
    return node.input[0] if repeats is not None and all(n == 1 for n in repeats) else None


def _transpose(_: TidyContext, node: onnx.NodeProto) -> str | None:
    """A Transpose that keeps the order of the axes."""
    order = attribute(node, "perm")
    return node.input[0] if order and list(order) == sorted(order) else None


def _cast(context: TidyContext, node: onnx.NodeProto) -> str | None:
    """A Cast to the same type."""
    kind = context.kind(node.input[0])
    return node.input[0] if kind and attribute(node, "to") == kind else None


def _pool(_: TidyContext, node: onnx.NodeProto) -> str | None:
    """A pooling window of one position."""
    window = attribute(node, "kernel_shape", [])
    moved = [*attribute(node, "pads", []), *(step - 1 for step in attribute(node, "strides", []))]
    return node.input[0] if window and all(n == 1 for n in window) and not any(moved) else None


def _neutral(number: float, slots: tuple[int, ...]) -> Callable[[TidyContext, onnx.NodeProto], str | None]:
    """The rule of a join whose one operand is a neutral number, no larger than the other operand.

    The other is computed from all graph inputs that either is computed from, so that none is left unread.
    """

    def rule(context: TidyContext, node: onnx.NodeProto) -> str | None:
        if len(node.input) != PAIR or context.view.opset < 7:
            return None
        for slot in slots:
            one, other = node.input[slot], node.input[1 - slot]
            idle = context.number(one) == number and context.covers(other, one)
            if idle and context.vital_behind(one) <= context.vital_behind(other):
                return other
        return None

    return rule


NoOpRule = Callable[[TidyContext, onnx.NodeProto], str | None]
NEUTRAL_ADDITION, NEUTRAL_SCALING = _neutral(0.0, (1, 0)), _neutral(1.0, (1, 0))
NOOPS: Mapping[str, tuple[NoOpRule, ...]] = {
    "Identity": (_first,),
    "Dropout": (_dropout,),
    "Slice": (_slice,),
    "Pad": (_pad,),
    "Reshape": (_reshape,),
    "Flatten": (_flatten,),
    "Squeeze": (_inverse,),
    "Unsqueeze": (_inverse,),
    "Expand": (_expand,),
    "Tile": (_tile,),
    "Transpose": (_transpose,),
    "Cast": (_cast,),
    "MaxPool": (_pool,),
    "AveragePool": (_pool,),
    "Concat": (_alone,),
    "Sum": (_alone, NEUTRAL_ADDITION),
    "Mean": (_alone,),
    "Max": (_alone,),
    "Min": (_alone,),
    "Add": (NEUTRAL_ADDITION,),
    "Sub": (_neutral(0.0, (1,)),),
    "Mul": (NEUTRAL_SCALING,),
    "Div": (_neutral(1.0, (1,)),),
}


def known_operand(context: TidyContext, node: onnx.NodeProto) -> int | None:
    """The slot of a computed operand that is known and may be stored; None without one.

    A constant may take its place if the other operand is as large and depends on all graph inputs that it depends on.
    """
    if standard_name(node) not in ARITHMETIC or len(node.input) != PAIR or context.view.opset < 7:
        return None
    for slot, name in enumerate(node.input):
        other = node.input[1 - slot]
        known = name != other and name in context.uniform and context.kind(name) in PRECISE_TYPES
        computed = known and all(context.constant(each) is None for each in node.input)
        if computed and context.covers(other, name) and context.vital_behind(name) <= context.vital_behind(other):
            return slot
    return None


def replacement_of(context: TidyContext, node: onnx.NodeProto) -> str | None:
    """The value that equals a node's first output; None where the node computes something, or might."""
    if not node.input or not node.input[0]:
        return None
    answers = (rule(context, node) for rule in NOOPS.get(standard_name(node), ()))
    return next((answer for answer in answers if answer), None)

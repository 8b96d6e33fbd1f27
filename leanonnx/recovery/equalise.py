"""Cross-layer equalisation: scale channels between two linear layers without changing the network.

Where a layer's output reaches another layer only through positively homogeneous operators, as Relu, channel c of the
first can be divided by s_c > 0 if the second multiplies its column c by s_c.  With s_c = √(r1_c / r2_c), r1_c the
largest weight of the row and r2_c that of the column, both become √(r1_c · r2_c), and one scale for a whole tensor
serves all channels (Nagel et al. 2019, arXiv 1906.04721).  Where weights have a scale per channel, what remains to
equalise are the activations: r1_c is then the largest activation of the channel.

The factors are powers of two: products stay the same to the last bit, unless they leave the range of the format.
BatchNormalizations have to be folded before.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import onnx

from leanonnx.graph.formats import is_float
from leanonnx.graph.nodes import BIAS, BIASED, LINEAR, attribute, is_per_channel, standard_name
from leanonnx.graph.view import GraphView
from leanonnx.numeric.arrays import Array, Floats
from leanonnx.operators.facts import Family, Trait
from leanonnx.operators.table import CONVOLUTIONS, names_of, names_with
from leanonnx.recovery.changes import set_constant

HOMOGENEOUS = names_with(Trait.HOMOGENEOUS)
POOLINGS = names_of(Family.POOLING)
EQUALISATION_PASSES = 20
"""Largest number of passes over all joined layers; each changes what its neighbours see."""
SMALL_CHANGE = 0.01
"""Largest logarithm, base 2, of a factor after which no further pass is made."""
LARGEST_EXPONENT = 16
"""Largest exponent of a factor in all, so that no weight becomes too small or large for its format."""


@dataclass(frozen=True, kw_only=True)
class _Layer:
    """A linear node with a weight of its own, which is stored under a name."""

    node: onnx.NodeProto
    weight: str
    groups: int

    @property
    def is_convolution(self) -> bool:
        """True if the channels lie along axis 1; otherwise they lie along the last one."""
        return self.node.op_type in CONVOLUTIONS

    def width(self, view: GraphView) -> int:
        """Number of output channels."""
        dims = view.shape_of(self.weight)
        if self.node.op_type == "ConvTranspose":
            return dims[1] * self.groups
        return dims[0] if self.is_convolution or self._is_turned else dims[1]

    def inputs(self, view: GraphView) -> int:
        """Number of input channels."""
        dims = view.shape_of(self.weight)
        if self.node.op_type == "ConvTranspose":
            return dims[0]
        if self.is_convolution:
            return dims[1] * self.groups
        return dims[1] if self._is_turned else dims[0]

    def axis(self, view: GraphView) -> int:
        """Axis of the output along which its channels lie, counted from the end."""
        return 1 - len(view.shape_of(self.weight)) if self.is_convolution else -1

    @property
    def _is_turned(self) -> bool:
        """True if the weight of a matrix product is stored as [O, I]."""
        return standard_name(self.node) == "Gemm" and bool(attribute(self.node, "transB", 0))

    def kernels(self, weight: Array) -> Array:
        """A view of the stored weight as [G, O, I, taps]."""
        if not self.is_convolution:
            return (weight if self._is_turned else weight.T)[None, :, :, None]
        split = weight.reshape(self.groups, weight.shape[0] // self.groups, weight.shape[1], -1)
        return split.swapaxes(1, 2) if self.node.op_type == "ConvTranspose" else split


@dataclass(frozen=True, kw_only=True)
class _Join:
    """Two layers, the constants that are added between them, and the tensor that the second reads.

    Channel c of the first becomes ``copies`` successive inputs of the second.
    """

    first: _Layer
    second: _Layer
    added: tuple[str, ...]
    tensor: str
    copies: int

    @property
    def constants(self) -> tuple[str, ...]:
        """All constants that a factor changes."""
        return (self.first.weight, self.second.weight, *self.added)


def equalise(proto: onnx.ModelProto, activations: Mapping[str, Array] | None = None) -> onnx.ModelProto:
    """Return a copy of the network in which joined layers have equalised channels; only constants differ.

    Args:
        proto: the network.
        activations: largest magnitude of each channel by tensor; layers that read one of these tensors get r1 from it,
            the others from weights.
    """
    view = GraphView(proto)
    joins = list(_joins(view))
    constants = {name: np.array(view.constant(name)) for join in joins for name in join.constants}
    magnitudes = {name: np.abs(array.astype(np.float64)) for name, array in constants.items()}
    for join, exponents in zip(joins, _exponents(joins, magnitudes, activations or {}), strict=True):
        _multiply(join, constants, np.exp2(exponents))
    result = onnx.ModelProto()
    result.CopyFrom(proto)
    for name, array in constants.items():
        set_constant(result, name, array)
    return result


def _exponents(joins: list[_Join], weights: Mapping[str, Array], activations: Mapping[str, Array]) -> list[Array]:
    """Exponents of the factors by which the second layer of each join is multiplied; changes the magnitudes."""
    totals = [np.zeros(_rows(join, weights).size) for join in joins]
    for _ in range(EQUALISATION_PASSES):
        largest = 0.0
        for join, total in zip(joins, totals, strict=True):
            rows, columns = _rows(join, weights), _columns(join, weights)
            known = activations.get(join.tensor)
            if known is not None and known.size == rows.size:
                rows = np.where(rows > 0, known * np.exp2(-total), 0)
            usable = (rows > 0) & (columns > 0)
            change = np.log2(np.where(usable, rows, 1) / np.where(usable, columns, 1)) / 2
            change = np.clip(total + change, -LARGEST_EXPONENT, LARGEST_EXPONENT) - total
            _multiply(join, weights, np.exp2(change))
            total += change
            largest = max(largest, float(np.abs(change).max(initial=0)))
        if largest < SMALL_CHANGE:
            break
    return [np.rint(total).astype(np.int64) for total in totals]


def _rows(join: _Join, weights: Mapping[str, Array]) -> Array:
    """Largest weight of each output channel of the first layer."""
    return np.asarray(join.first.kernels(weights[join.first.weight]).max((2, 3)).reshape(-1))


def _columns(join: _Join, weights: Mapping[str, Array]) -> Array:
    """Largest weight that the second layer has for each output channel of the first."""
    largest = join.second.kernels(weights[join.second.weight]).max((1, 3))
    return np.asarray(largest.reshape(-1, join.copies).max(1))


def _multiply(join: _Join, constants: Mapping[str, Array], factors: Floats) -> None:
    """Divide the channels of the first layer by factors, and multiply those that the second reads, in place."""
    rows = join.first.kernels(constants[join.first.weight])
    rows /= factors.reshape(*rows.shape[:2], 1, 1).astype(rows.dtype)
    columns = join.second.kernels(constants[join.second.weight])
    columns *= np.repeat(factors, join.copies).reshape(columns.shape[0], 1, -1, 1).astype(columns.dtype)
    for name in join.added:
        flat = constants[name].reshape(-1)
        flat /= factors.astype(flat.dtype)


def _joins(view: GraphView) -> Iterator[_Join]:
    """All pairs of layers whose channels can be scaled, in the order of the first."""
    for node in view.nodes:
        first = _layer(view, node)
        join = None if first is None else _join(view, first)
        if join is not None:
            yield join


def _layer(view: GraphView, node: onnx.NodeProto) -> _Layer | None:
    """The layer of a linear node with data in slot 0 and a constant weight that it alone reads; None otherwise."""
    if standard_name(node) not in LINEAR or attribute(node, "transA", 0) or not _is_own(view, node.input[1]):
        return None
    weight = view.origins[node.input[1]]
    convolution = node.op_type in CONVOLUTIONS
    if not convolution and len(view.shape_of(weight)) != 2:
        return None
    return _Layer(node=node, weight=weight, groups=int(attribute(node, "group", 1)) if convolution else 1)


def _is_own(view: GraphView, name: str) -> bool:
    """True for a float constant with one reader."""
    if name not in view.origins or name in view.overridable:
        return False
    return view.use_counts[view.origins[name]] == 1 and is_float(view.constant(name))


def _join(view: GraphView, first: _Layer) -> _Join | None:
    """Follow the output of a layer to the one layer that reads it; None if there is none or scaling is not exact."""
    width = first.width(view)
    bias = first.node.input[BIAS] if first.node.op_type in BIASED and len(first.node.input) > BIAS else ""
    if bias and not _is_added(view, bias, width, -1):
        return None
    added = [view.origins[bias]] if bias else []
    has_channel_axis, flat = first.is_convolution, False
    name = first.node.output[0]
    while (node := _only_reader(view, name)) is not None:
        second = _layer(view, node) if node.input[0] == name else None
        if second is not None:
            copies, rest = divmod(second.inputs(view), width)
            fits = second.is_convolution == has_channel_axis and rest == 0 and (copies == 1 or flat)
            return _Join(first=first, second=second, added=tuple(added), tensor=name, copies=copies) if fits else None
        if standard_name(node) == "Add" and not flat:
            other = next(each for each in node.input if each != name)
            if not _is_added(view, other, width, first.axis(view)):
                return None
            added.append(view.origins[other])
        elif standard_name(node) == "Flatten" and has_channel_axis and attribute(node, "axis", 1) == 1:
            has_channel_axis, flat = False, True
        elif not _passes(node, name, has_channel_axis):
            return None
        name = node.output[0]
    return None


def _only_reader(view: GraphView, name: str) -> onnx.NodeProto | None:
    """The node that reads a value, once, if nothing else does."""
    readers = view.consumers.get(name, [])
    alone = len(readers) == 1 and readers[0] >= 0 and view.input_counts[name] == 1
    return view.nodes[readers[0]] if alone else None


def _is_added(view: GraphView, name: str, width: int, axis: int) -> bool:
    """True for a constant of one number per channel that only one node reads."""
    if not _is_own(view, name):
        return False
    array = view.constant(name)
    return array.size == width and is_per_channel(array, width, axis)


def _passes(node: onnx.NodeProto, name: str, has_channel_axis: bool) -> bool:
    """True if a node scales its output's channels with those of a tensor."""
    if standard_name(node) not in HOMOGENEOUS or node.input[0] != name or len([*filter(None, node.output)]) != 1:
        return False
    return has_channel_axis or node.op_type not in POOLINGS

"""Milliseconds that layers save in 8-bit integers, predicted from the cost table of the hardware; nothing is timed.

A layer costs its multiply-adds in either format; starting its node and writing its outputs are taken to cost the same.
Where integers meet floats within the network, numbers are converted; its own inputs and outputs are floats in any case.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import onnx

from leanonnx.graph.nodes import attribute, standard_name
from leanonnx.hardware.costs import (
    KernelSize,
    conversion_ms,
    convolution_ms,
    integer_convolution_ms,
    integer_product_ms,
    product_ms,
)
from leanonnx.hardware.targets import Hardware
from leanonnx.quantization.formats import Int8Format
from leanonnx.quantization.layers import (
    CARRIERS,
    WEIGHTED_OPERATORS,
    Layer,
    carriers_between,
    number_tensors,
    output_axis,
    weighted_layers,
)
from leanonnx.runtime.observation import Shapes
from leanonnx.runtime.probes import tensor_values
from leanonnx.runtime.sessions import Feed

SLOWER = "slower in integers by the table of {}: {:.2g} of the float speed"
NOT_WORTH_IT = "by the table of {} its integers save {:.2g} ms, and converting numbers for it takes longer"
SPATIAL_AXES = 2
"""The axis of a convolution's weight and output where those of space begin."""
SMALLEST_GAIN = 1e-9
"""Share of the predicted cost by which it has to fall for a layer to change its format."""
ChoiceCost = Callable[[frozenset[str]], float]
"""Predicted ms of a choice of layers, relative to the float model."""


@dataclass(frozen=True)
class LayerCosts:
    """Predicted ms of a layer's multiply-adds in floats and in integers."""

    floats: float
    integers: float

    @property
    def gain(self) -> float:
        """ms that integers save; negative where they are slower."""
        return self.floats - self.integers


def saved_ms(proto: onnx.ModelProto, shapes: Shapes, target: Hardware) -> dict[str, float]:
    """ms that each weighted layer saves in integers on a target, conversions left out; negative where it is slower.

    Args:
        proto: a float model whose nodes have unique names.
        shapes: shapes of its tensors; layers whose output has none, or not as many axes as it must, are left out.
        target: the cost table.
    """
    return {name: times.gain for name, times in layer_costs(proto, shapes, target).items()}


def layer_costs(proto: onnx.ModelProto, shapes: Shapes, target: Hardware) -> dict[str, LayerCosts]:
    """Predicted ms of each weighted layer with a known shape, by the name of its node; see ``saved_ms``."""
    known = {**shapes, **{tensor.name: tuple(tensor.dims) for tensor in proto.graph.initializer}}
    stored = {tensor.name for tensor in proto.graph.initializer}
    result = {}
    for node in proto.graph.node:
        if standard_name(node) not in WEIGHTED_OPERATORS or len(node.input) < 2 or node.input[1] not in stored:
            continue
        size = _kernel_size(node, known[node.input[1]], known.get(node.output[0], ()))
        if size is None:
            continue
        if node.op_type == "Conv":
            result[node.name] = LayerCosts(convolution_ms(target, size), integer_convolution_ms(target, size))
        else:
            floats = product_ms(target, size.multiply_adds)
            result[node.name] = LayerCosts(floats, integer_product_ms(target, size))
    return result


def _kernel_size(node: onnx.NodeProto, weight: Sequence[int], output: Sequence[int]) -> KernelSize | None:
    """Kernels of a layer; None where shapes do not tell them."""
    if node.op_type == "Conv":
        if len(output) != len(weight) or len(weight) <= SPATIAL_AXES:
            return None
        groups = attribute(node, "group", 1)
        return KernelSize(
            groups=groups,
            wide=weight[0] // groups,
            deep=weight[1],
            taps=math.prod(weight[SPATIAL_AXES:]),
            positions=output[0] * math.prod(output[SPATIAL_AXES:]),
        )
    if len(weight) < 2 or not output:
        return None
    axis = output_axis(node, len(weight))
    deep = weight[1 - axis] if len(weight) == 2 else weight[-2]
    rows = math.prod(output) // max(weight[axis], 1)
    return KernelSize(groups=1, wide=weight[axis], deep=deep, taps=1, positions=rows)


def observed_shapes(proto: onnx.ModelProto, feed: Feed, libraries: tuple[Path, ...] = ()) -> dict[str, tuple[int, ...]]:
    """Shapes on one input of all tensors that layers, and the nodes that may pass integers on, read or write.

    Raises:
        RunFailed: the model cannot be run.
    """
    stored = {tensor.name for tensor in proto.graph.initializer}
    passing = [node for node in proto.graph.node if standard_name(node) in WEIGHTED_OPERATORS | CARRIERS]
    names = dict.fromkeys(name for node in passing for name in number_tensors(node) if name not in stored)
    (values,) = tensor_values(proto, [name for name in names if name not in feed], [feed], libraries)
    return {name: np.shape(value) for name, value in (feed | values).items()}


@dataclass(frozen=True)
class _Read:
    """A node that reads a tensor from another, and the ms to convert it; ``is_number``: it computes with it."""

    tensor: str
    writer: str
    reader: str
    is_number: bool
    milliseconds: float


@dataclass(frozen=True)
class Conversions:
    """Predicted ms of the conversions within a network, for any choice of layers that are in integers.

    Attributes:
        reads: what nodes read from others.
        carriers: nodes that pass integers on together, once a layer beside one of them is in integers.
        beside: numbers of these groups beside each layer.
    """

    reads: tuple[_Read, ...]
    carriers: tuple[frozenset[str], ...]
    beside: Mapping[str, frozenset[int]]

    def __call__(self, layers: Collection[str]) -> float:
        """Predicted ms while these layers are in integers."""
        groups = {group for layer in layers for group in self.beside.get(layer, ())}
        integers = set(layers).union(*(self.carriers[group] for group in groups))
        converted = {}
        for read in self.reads:
            inside = read.reader in integers
            if (read.writer in integers) != inside and (read.is_number or not inside):
                converted[read.tensor] = read.milliseconds
        return sum(converted.values())


def conversions(proto: onnx.ModelProto, layers: Collection[str], shapes: Shapes, target: Hardware) -> Conversions:
    """The conversions within a network of which some of these layers may be in integers.

    Tensors of unknown shape cost nothing.
    """
    stored = {tensor.name for tensor in proto.graph.initializer}
    carriers = set(carriers_between(proto, layers))
    writers = {name: node.name for node in proto.graph.node for name in node.output}
    numbers = {node.name: set(number_tensors(node)) - stored for node in proto.graph.node}
    reads = tuple(
        _Read(
            name,
            writers[name],
            node.name,
            name in numbers[node.name],
            conversion_ms(target, math.prod(shapes[name])) if name in shapes else 0.0,
        )
        for node in proto.graph.node
        for name in node.input
        if name in writers
    )
    groups: list[tuple[set[str], set[str]]] = []  # names of nodes, their tensors
    for name in carriers:
        joined = [group for group in groups if not group[1].isdisjoint(numbers[name])]
        merged = {name}.union(*(each[0] for each in joined)), numbers[name].union(*(each[1] for each in joined))
        groups = [group for group in groups if group not in joined] + [merged]
    beside = {
        layer: frozenset(k for k, (_, tensors) in enumerate(groups) if not tensors.isdisjoint(numbers[layer]))
        for layer in layers
    }
    return Conversions(reads, tuple(frozenset(names) for names, _ in groups), beside)


def priced_layers(proto: onnx.ModelProto, kind: Int8Format, shapes: Shapes) -> tuple[Layer, ...]:
    """The layers of a model; those that are slower in integers by the table of the format have that as their reason.

    Layers change their format one by one while the predicted time falls, from all in integers that can be, and from
    those alone that save time by themselves; the better end counts.  Layers that no price is known of stay in integers.

    Args:
        proto: a float model whose nodes have unique names.
        kind: the integer formats, and the cost table.
        shapes: shapes of its tensors.
    """
    layers, table = weighted_layers(proto), kind.table
    if table is None:
        return layers
    able = {layer.name for layer in layers if not layer.reason}
    times = {name: each for name, each in layer_costs(proto, shapes, table).items() if name in able}

    converted = conversions(proto, able, shapes, table)

    def cost(chosen: frozenset[str]) -> float:
        return converted(chosen) - sum(times[name].gain for name in chosen & times.keys())

    starts = frozenset(able), frozenset(able - {name for name, each in times.items() if each.gain < 0})
    chosen = min((_descend(start, times, cost) for start in dict.fromkeys(starts)), key=cost)
    return tuple(
        replace(layer, reason=_reason(times[layer.name], table.name), is_slower=True)
        if layer.name in able - chosen
        else layer
        for layer in layers
    )


def _descend(start: frozenset[str], names: Collection[str], cost: ChoiceCost) -> frozenset[str]:
    """The layers in integers after changing the format of one layer at a time while the cost falls."""
    chosen, least = start, cost(start)
    is_changed = True
    while is_changed:
        is_changed = False
        for name in names:
            other = chosen ^ {name}
            changed = cost(other)
            if changed < least - SMALLEST_GAIN * abs(least):
                chosen, least, is_changed = other, changed, True
    return chosen


def _reason(times: LayerCosts, name: str) -> str:
    if times.gain < 0:
        return SLOWER.format(name, times.floats / times.integers)
    return NOT_WORTH_IT.format(name, times.gain)


def by_loss_per_ms(added: Mapping[str, float], saved: Mapping[str, float]) -> list[str]:
    """Names of layers, those first that should be float first: by the squared error added per ms saved, falling.

    Errors of independent layers add up as squares.  Layers that save no time come before all others.

    Args:
        added: the error that each layer adds in integers.
        saved: the ms that it saves; layers without a prediction save as much as the median of the others.
    """
    usual = float(np.median([*saved.values()])) if saved else 1.0

    def urgency(name: str) -> tuple[float, float]:
        ms = saved.get(name, usual)
        return (added[name] ** 2 / ms if ms > 0 else math.inf), added[name]

    return sorted(added, key=urgency, reverse=True)

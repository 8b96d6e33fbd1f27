"""Biases that take back the mean error which a layer's integers add to each of its outputs.

With x the input of a layer in the network of integers before its own rounding, q(x) after it, W and Ŵ its weight before
and after rounding, the mean of Ŵ q(x) - W x over samples and positions is subtracted from the bias.  A layer is linear:
the mean of its output is its output for the mean input, padding included.  Each layer takes back its own error alone,
so that all are measured in one pass.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from onnx import numpy_helper

from leanonnx.graph.formats import value_names
from leanonnx.graph.nodes import BIAS, BIASED, fresh_name, standard_name
from leanonnx.graph.view import GraphView
from leanonnx.numeric.arrays import Array, Floats
from leanonnx.quantization.kernels import KernelLayer
from leanonnx.quantization.simulation import simulation_of
from leanonnx.recovery.changes import set_constant
from leanonnx.runtime.probes import tensor_values
from leanonnx.runtime.sessions import Feed, run_node


@dataclass(frozen=True, kw_only=True)
class _Place:
    """A layer, the tensors of its input before and after rounding, and its rounded weight."""

    layer: KernelLayer
    before: str
    after: str
    weight: Array


def with_corrected_biases(
    proto: onnx.ModelProto,
    quantised: onnx.ModelProto,
    layers: Collection[KernelLayer],
    feeds: Iterable[Feed],
    libraries: Sequence[Path] = (),
) -> onnx.ModelProto:
    """A copy of a float model with corrected biases; layers without a slot for one, or with inputs of any size, stay.

    Args:
        proto: the float model.
        quantised: the same in integers.
        layers: its layers in integers.
        feeds: real inputs.
        libraries: hold its custom operators.

    Raises:
        RunFailed: a model cannot be run.
    """
    simulation = simulation_of(quantised)
    biased = [each for each in layers if standard_name(each.node) in BIASED]
    places = _places(proto, biased, quantised, simulation)
    names = [name for place in places for name in (place.before, place.after)]
    means = _means(names, tensor_values(simulation, names, feeds, libraries), places)
    result = onnx.ModelProto()
    result.CopyFrom(proto)
    for place in places:
        if place.before in means and place.after in means:
            shift = _shift(place, means, proto)
            if shift is not None and np.isfinite(shift).all():
                _lower_bias(result, place.layer, shift)
    return result


def _places(
    proto: onnx.ModelProto, layers: Iterable[KernelLayer], quantised: onnx.ModelProto, simulation: onnx.ModelProto
) -> list[_Place]:
    """The places of layers; activations that the integers have swallowed, as they clip alike, join the simulation."""
    view, nodes = GraphView(quantised), {node.name: node for node in quantised.graph.node}
    floats, rounded, taken = GraphView(proto), GraphView(simulation), value_names(simulation.graph)
    places = []
    for each in layers:
        node = nodes[each.layer.name]
        after, before = node.input[0], _before_rounding(view, node.input[0])
        source = floats.producer(each.node.input[0])
        if source is not None and before != after and source.name not in nodes:
            swallowed = simulation.graph.node.add()
            swallowed.CopyFrom(source)
            swallowed.name, swallowed.input[0] = "", before
            _add_missing(simulation, floats, swallowed.input[1:])
            before = swallowed.output[0] = fresh_name(taken, f"{before}_clipped")
        weight = np.asarray(rounded.constant(node.input[1]))
        places.append(_Place(layer=each, before=before, after=after, weight=weight))
    return places


def _add_missing(simulation: onnx.ModelProto, floats: GraphView, names: Iterable[str]) -> None:
    """Add constants of the float model that the simulation lacks."""
    present = {tensor.name for tensor in simulation.graph.initializer}
    for name in names:
        if name and name not in present:
            simulation.graph.initializer.append(numpy_helper.from_array(floats.constant(name), name))
            present.add(name)


def _before_rounding(view: GraphView, name: str) -> str:
    """The tensor that integers stand for when they are read as ``name``; the same if none do."""
    reader = view.producer(name)
    if reader is None or reader.op_type != "DequantizeLinear":
        return name
    writer = view.producer(reader.input[0])
    return writer.input[0] if writer is not None and writer.op_type == "QuantizeLinear" else name


def _means(
    names: Collection[str], runs: Iterable[Mapping[str, Array]], places: Collection[_Place]
) -> dict[str, Floats]:
    """Mean over the samples of tensors whose samples all have the same size, with one sample left."""
    rows = {name for place in places if place.layer.window is None for name in (place.before, place.after)}
    sums: dict[str, Floats] = {}
    counts = dict.fromkeys(names, 0)
    varied: set[str] = set()
    for values in runs:
        for name in counts:
            array = values[name].astype(np.float64)
            samples = array.reshape(-1, array.shape[-1]) if name in rows else array
            total = samples.sum(0, keepdims=True)
            if name in sums and sums[name].shape != total.shape:
                varied.add(name)
            else:
                sums[name] = sums.get(name, 0.0) + total
                counts[name] += len(samples)
    return {name: total / max(counts[name], 1) for name, total in sums.items() if name not in varied}


def _shift(place: _Place, means: Mapping[str, Floats], proto: onnx.ModelProto) -> Floats | None:
    """Mean error of each output; None if the node cannot be run alone."""
    node, axis = onnx.NodeProto(), 1 if place.layer.window is not None else -1
    node.CopyFrom(place.layer.node)
    del node.input[BIAS:]
    sides = []
    for name, weight in ((place.after, place.weight), (place.before, place.layer.weight)):
        feed = {node.input[0]: means[name].astype(np.float32)}
        output = run_node(node, feed, {node.input[1]: weight.astype(np.float32)}, proto, frozenset())
        if output is None:
            return None
        rows = np.moveaxis(output.astype(np.float64), axis, -1)
        sides.append(rows.reshape(-1, rows.shape[-1]).mean(0))
    return np.asarray(sides[0] - sides[1])


def _lower_bias(proto: onnx.ModelProto, layer: KernelLayer, shift: Floats) -> None:
    """Subtract numbers from the bias of a layer, which gets one if it has none."""
    node = next(each for each in proto.graph.node if each.name == layer.layer.name)
    if len(node.input) > BIAS and node.input[BIAS]:
        old = GraphView(proto).constant(node.input[BIAS]).astype(np.float64)
        set_constant(proto, node.input[BIAS], old - shift.reshape(old.shape))
        return
    name = fresh_name(value_names(proto.graph), f"{node.output[0]}_bias")
    del node.input[BIAS:]
    node.input.append(name)
    proto.graph.initializer.append(numpy_helper.from_array((-shift).astype(np.float32), name))

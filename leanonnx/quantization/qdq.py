"""Write a model in 8-bit integers, as pairs of QuantizeLinear and DequantizeLinear, with onnxruntime's quantiser."""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterator
from contextlib import contextmanager

import numpy as np
import onnx
from onnx import numpy_helper
from onnxruntime.quantization import CalibrationMethod, QuantType
from onnxruntime.quantization.calibrate import TensorsData
from onnxruntime.quantization.qdq_quantizer import QDQQuantizer

from leanonnx.graph.formats import value_names
from leanonnx.graph.model import first_line, raise_if_machine_failed
from leanonnx.graph.nodes import fresh_name, holder_array
from leanonnx.graph.view import GraphView
from leanonnx.operators.facts import Trait
from leanonnx.operators.table import names_with
from leanonnx.quantization.formats import Int8Format
from leanonnx.quantization.kernels import KernelLayer, kernel_layers
from leanonnx.quantization.layers import CARRIERS, WEIGHTED_OPERATORS, Layer
from leanonnx.quantization.ranges import Ranges
from leanonnx.quantization.weights import RoundWeights, nearest_weights
from leanonnx.runtime.sessions import RunFailed

REQUANTISED = names_with(Trait.PUT_INTO_INTEGERS)
"""Layers that onnxruntime puts into integers by itself."""


def quantised_model(
    proto: onnx.ModelProto,
    layers: Collection[Layer],
    carriers: Collection[str],
    ranges: Ranges,
    kind: Int8Format,
    round_weights: RoundWeights = nearest_weights,
) -> onnx.ModelProto:
    """The model with some nodes in integers.

    Args:
        proto: a prepared float model, which is not changed.
        layers: the layers to quantise.
        carriers: names of the nodes between them that pass integers on.
        ranges: range of each float tensor that one of these nodes reads or writes.
        kind: the integer formats.
        round_weights: rounds the weights of a layer.

    Raises:
        RunFailed: onnxruntime's quantiser fails.
    """
    copy = onnx.ModelProto()
    copy.CopyFrom(proto)
    noted = {value.name for value in (*copy.graph.input, *copy.graph.output)}
    inner = (name for name in ranges if name not in noted)  # the quantiser leaves out tensors of unknown type
    del copy.graph.value_info[:]  # the shapes that a file notes are not always right
    copy.graph.value_info.extend(
        onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None) for name in inner
    )
    numbers = {name: tuple(np.array(end, np.float32) for end in ends) for name, ends in ranges.items()}
    activations = QuantType.QInt8 if kind.signed_activations else QuantType.QUInt8
    with _silent():
        try:
            quantiser = QDQQuantizer(
                copy,
                True,
                kind.reduced_weights,
                QuantType.QInt8,
                activations,
                TensorsData(CalibrationMethod.MinMax, numbers),
                [*(layer.name for layer in layers), *carriers],
                [],
                sorted(WEIGHTED_OPERATORS | CARRIERS),
                {
                    "ActivationSymmetric": kind.signed_activations,
                    "WeightSymmetric": True,
                    "QuantizeBias": not kind.signed_activations,
                },
            )
            quantiser.quantize_model()
            quantiser.model.topological_sort()
        except Exception as error:  # the quantiser raises many types
            raise_if_machine_failed(error)
            raise RunFailed(f"onnxruntime's quantiser fails: {first_line(error)}") from error
    result: onnx.ModelProto = quantiser.model.model
    _clean(proto, result)
    if round_weights is not nearest_weights:
        for layer in kernel_layers(proto, layers):
            _round_layer(result, layer, kind.weight_bits, round_weights)
    _guard_floats(result)
    return result


def _guard_floats(result: onnx.ModelProto) -> None:
    """Keep onnxruntime from computing float layers between integers in integers, in place.

    Its optimiser (``WeightBiasQuantization``, since 1.21) gives such a layer integer weights of one scale for all
    channels.  A LeakyRelu that changes nothing ends the pattern, and is fused into the layer.
    """
    view, taken = GraphView(result), value_names(result.graph)
    nodes: list[onnx.NodeProto] = []
    for node in result.graph.node:
        nodes.append(node)
        if node.op_type not in REQUANTISED or not _is_between_integers(node, view):
            continue
        if node.input[1] not in view.holders:
            continue  # in integers
        inner, name = fresh_name(taken, node.output[0]), fresh_name(taken, f"{node.name}_stays_float")
        nodes.append(onnx.helper.make_node("LeakyRelu", [inner], [node.output[0]], name, alpha=1.0))
        node.output[0] = inner
    kept = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del result.graph.node[:]
    result.graph.node.extend(kept)


def _is_between_integers(node: onnx.NodeProto, view: GraphView) -> bool:
    """True if a layer reads dequantised numbers, and only a QuantizeLinear reads its own.

    Between them may be nodes of which one input depends on data: onnxruntime fuses paddings, bounds and factors into
    the layer, and moves conversions past nodes that move data.
    """
    source = view.producer(node.input[0])
    while source is not None and source.op_type != "DequantizeLinear":
        if source.op_type in REQUANTISED or len(computed := [*view.free & set(source.input)]) != 1:
            return False
        source = view.producer(computed[0])
    while source is not None:
        readers = view.consumers.get(node.output[0], [])
        if len(readers) != 1 or readers[0] < 0:
            return False
        node = view.nodes[readers[0]]
        if node.op_type == "QuantizeLinear":
            return True
        if node.op_type in REQUANTISED or len(view.free & set(node.input)) != 1:
            return False
    return False


def _round_layer(result: onnx.ModelProto, layer: KernelLayer, bits: int, round_weights: RoundWeights) -> None:
    """Replace the integers of a layer's weight by those of ``round_weights``."""
    view = GraphView(result)
    node = next((each for each in result.graph.node if each.name == layer.layer.name), None)
    source = None if node is None else view.producer(node.input[1])
    if source is None or source.op_type != "DequantizeLinear" or source.input[0] not in view.holders:
        return
    groups, outputs, _ = layer.kernels.shape
    scales = np.asarray(holder_array(view.holders[source.input[1]]), np.float64).reshape(-1)
    integers = round_weights(layer, np.broadcast_to(scales, (groups * outputs,)).reshape(groups, outputs), bits)
    stored = next(tensor for tensor in result.graph.initializer if tensor.name == source.input[0])
    stored.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(integers, np.int8), stored.name))


def _clean(proto: onnx.ModelProto, result: onnx.ModelProto) -> None:
    """Restore what the quantiser adds beside nodes and constants: inferred shapes, metadata, producer."""
    result.producer_name, result.producer_version = proto.producer_name, proto.producer_version
    del result.metadata_props[:]
    result.metadata_props.extend(proto.metadata_props)
    present = {name for node in result.graph.node for name in (*node.input, *node.output)}
    noted = [value for value in proto.graph.value_info if value.name in present]
    del result.graph.value_info[:]
    result.graph.value_info.extend(noted)


@contextmanager
def _silent() -> Iterator[None]:
    """Keep the quantiser's advice from the terminal."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        yield
    finally:
        logging.disable(before)

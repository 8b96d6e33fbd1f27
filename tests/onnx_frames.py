"""ONNX's test models between two layers that mix channels, to have removable channels, at free sizes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from tests.at_sizes import Shapes, runs_at

RANDOM = {"Bernoulli", "Dropout", "RandomUniformLike", "RandomNormalLike", "Multinomial"}
RANKS = (2, 3, 4, 5)
LARGEST = 1 << 13
COUNT = 3
IR_VERSION = 10


class Frame(NamedTuple):
    """A model whose one input leaves every axis free but that of its channels, and sizes that it runs at."""

    proto: onnx.ModelProto
    sizes: list[Shapes]


def framed(proto: onnx.ModelProto, data: Sequence[Any]) -> Frame | None:
    """The model with a layer before its first input and one after its first output, and all else constant.

    None if the first input has no channels, or nothing runs.
    """
    arrays = [None if array is None else np.asarray(array) for array in data]
    first = arrays[0] if arrays else None
    if first is None or first.dtype != np.float32 or first.ndim not in RANKS or first.shape[1] < 2:
        return None
    dims = proto.graph.output[0].type.tensor_type.shape.dim
    empty = any(dim.HasField("dim_value") and not dim.dim_value for dim in dims)
    if empty or any(array is not None and array.dtype.kind == "O" for array in arrays):
        return None
    if first.size > LARGEST or RANDOM & {node.op_type for node in proto.graph.node}:
        return None
    model = between_layers(proto, first.shape, arrays)
    sizes = running_sizes(model, first.shape)
    return Frame(model, sizes) if sizes else None


def between_layers(proto: onnx.ModelProto, shape: tuple[int, ...], arrays: Sequence[Any]) -> onnx.ModelProto:
    """The model with a layer before it and, if its output is a float tensor, one after it."""
    rng, graph = np.random.default_rng(0), proto.graph
    values = zip(list(graph.input)[1:], arrays[1:], strict=False)
    constants = [numpy_helper.from_array(array, value.name) for value, array in values if array is not None]
    nodes = [_layer(rng, ("entry", graph.input[0].name), (shape[1], shape[1]), len(shape), constants), *graph.node]
    result = graph.output[0].type.tensor_type
    kind, rank, last = result.elem_type, len(result.shape.dim), graph.output[0].name
    if kind == TensorProto.FLOAT and rank in RANKS:
        width = result.shape.dim[1].dim_value
        nodes.append(_layer(rng, (last, "exit"), (width, 3), rank, constants))
        last = "exit"
    free = [n if axis == 1 else f"axis_{axis}" for axis, n in enumerate(shape)]
    framed_graph = helper.make_graph(
        nodes,
        "framed",
        [helper.make_tensor_value_info("entry", TensorProto.FLOAT, free)],
        [helper.make_tensor_value_info(last, kind, [None] * rank)],
        constants,
    )
    return helper.make_model(framed_graph, opset_imports=list(proto.opset_import), ir_version=IR_VERSION)


def _layer(
    rng: np.random.Generator, names: tuple[str, str], widths: tuple[int, int], rank: int, constants: list[TensorProto]
) -> onnx.NodeProto:
    """A layer from one number of channels to another on axis 1: a matrix, or a convolution of one pixel."""
    (source, target), (inputs, out) = names, widths
    shape = (inputs, out) if rank == 2 else (out, inputs, *[1] * (rank - 2))
    constants.append(numpy_helper.from_array(rng.standard_normal(shape).astype(np.float32), f"weight_of_{target}"))
    return helper.make_node("MatMul" if rank == 2 else "Conv", [source, f"weight_of_{target}"], [target])


def running_sizes(model: onnx.ModelProto, shape: tuple[int, ...]) -> list[Shapes]:
    """Up to three sizes that a model runs at: all axes changed where it can, else the batch alone."""
    tried = [shape, *(tuple(n + more * (axis != 1) for axis, n in enumerate(shape)) for more in (1, 2))]
    tried += [(batch, *shape[1:]) for batch in (1, 2, 3, 4)]
    return runs_at(model, model.graph.input, [{"entry": sizes} for sizes in dict.fromkeys(tried)])[:COUNT]

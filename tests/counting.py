"""Kernels, multiply-adds and parameters of a model file, counted without the package under test."""

from __future__ import annotations

import math
from pathlib import Path
from typing import NamedTuple

import numpy as np
import onnx
import onnxruntime as ort
from onnx import helper, numpy_helper

Shape = tuple[int, ...]
RECURRENT = ("LSTM", "GRU", "RNN")
COUNTED = ("Conv", "ConvTranspose", "Gemm", "MatMul")


class Count(NamedTuple):
    """Counts of a model file."""

    kernels: int
    macs: int
    params: int


def constants(model: onnx.ModelProto) -> dict[str, tuple[Shape, np.dtype]]:
    """Shape and type of each constant in the file, by name."""
    found = {t.name: (tuple(t.dims), helper.tensor_dtype_to_np_dtype(t.data_type)) for t in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type == "Constant":
            value = helper.get_attribute_value(node.attribute[0])
            if node.attribute[0].name == "value":
                array = numpy_helper.to_array(value)
            else:
                array = np.asarray(value, np.int64 if "int" in node.attribute[0].name else np.float32)
            found[node.output[0]] = array.shape, array.dtype
    return found


def fixed(model: onnx.ModelProto) -> set[str]:
    """Names of the constants and of all that is computed from nothing else."""
    names = set(constants(model))
    for node in model.graph.node:
        if node.input and names.issuperset(name for name in node.input if name):
            names |= set(node.output)
    return names


def shapes_of(model: onnx.ModelProto) -> dict[str, Shape]:
    """Shape of every computed tensor when the model runs on inputs of its declared sizes (1 where free)."""
    tapped = onnx.ModelProto.FromString(model.SerializeToString())
    names = sorted({name for node in model.graph.node for name in node.output if name})
    del tapped.graph.output[:]
    tapped.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    session = ort.InferenceSession(tapped.SerializeToString(), providers=["CPUExecutionProvider"])
    feed = {
        v.name: np.ones([d if isinstance(d, int) else 1 for d in v.shape], np.float32) for v in session.get_inputs()
    }
    found = {name: value.shape for name, value in zip(names, session.run(names, feed), strict=True)}
    return found | {name: value.shape for name, value in feed.items()}


def counted(path: Path) -> Count:
    """Count a file: kernels are rows × columns of Conv, ConvTranspose, Gemm and MatMul with a constant weight.

    Weights may be computed from constants, on either side of a MatMul. All products count as multiply-adds, of computed
    tensors too; nodes that no graph output needs, or that depend on no input, count for nothing.
    """
    model = onnx.load(path)
    still, shapes = fixed(model), shapes_of(model)
    shapes |= {name: shape for name, (shape, _) in constants(model).items()}
    kernels = macs = 0
    for node in needed(model):
        if still.issuperset(node.output):
            continue
        if node.op_type in COUNTED:
            weight = next((name for name in (node.input[1], node.input[0]) if name in still), None)
            if weight is not None:
                kernels += math.prod(shapes[weight][:2] if "Conv" in node.op_type else shapes[weight])
            macs += _macs(node, shapes)
        elif node.op_type in RECURRENT:
            steps = math.prod(shapes[node.input[0]][:2])
            macs += steps * sum(math.prod(shapes[name]) for name in node.input[1:3])
        elif node.op_type == "Einsum":
            macs += _contracted(node, shapes)
        elif node.op_type == "Attention":
            length = shapes[node.input[1]][-2]
            macs += length * (math.prod(shapes[node.input[0]]) + math.prod(shapes[node.output[0]]))
    params = sum(
        math.prod(shape) for shape, kind in constants(model).values() if kind.name not in ("int64", "bool", "object")
    )
    return Count(kernels, macs, params)


def needed(model: onnx.ModelProto) -> list[onnx.NodeProto]:
    """The nodes from which a path leads to a graph output."""
    wanted, found = {v.name for v in model.graph.output}, []
    for node in reversed(model.graph.node):
        if wanted & set(node.output):
            wanted |= set(node.input)
            found.append(node)
    return found


def _macs(node: onnx.NodeProto, shapes: dict[str, Shape]) -> int:
    """Each element of a kernel is used once per output position (ConvTranspose: per input position)."""
    left, right, output = (shapes[name] for name in (node.input[0], node.input[1], node.output[0]))
    if "Conv" in node.op_type:
        moving = left if node.op_type == "ConvTranspose" else output
        return math.prod(right) * moving[0] * math.prod(moving[2:])
    turned = any(a.name == "transA" and a.i for a in node.attribute)
    return math.prod(output) * left[-2 if turned else -1]


def _contracted(node: onnx.NodeProto, shapes: dict[str, Shape]) -> int:
    """One multiply-add for each combination of all indices of two operands."""
    equation = node.attribute[0].s.decode()
    sizes: dict[str, int] = {}
    for name, term in zip(node.input, equation.split("->")[0].split(","), strict=True):
        sizes |= dict(zip(term, shapes[name], strict=True))
    return math.prod(sizes.values())


def reached(model: onnx.ModelProto) -> dict[str, set[str]]:
    """For each graph output, the graph inputs whose data (not merely whose shape) it depends on."""
    fixed = {t.name for t in model.graph.initializer}
    sources = {v.name: {v.name} for v in model.graph.input if v.name not in fixed}
    for node in model.graph.node:
        found = set() if node.op_type == "Shape" else set().union(*(sources.get(name, set()) for name in node.input))
        sources |= dict.fromkeys(node.output, found)
    return {v.name: sources[v.name] for v in model.graph.output}

"""Networks that are large in one way: gigabytes of weights in external data, or many thousands of nodes.

    python -m benchmarks.giants PATH KIND NODES

Weights of the first are streamed to the disk, so that the process that builds them stays small.
"""

from __future__ import annotations

import math
import sys
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

Nodes = list[onnx.NodeProto]
GIGABYTE = 10**9
FLOAT = 4
OPSETS = [helper.make_opsetid("", 17)]
IR_VERSION = 8
WIDTH, DENSE = 1024, 4096
"""Channels of a convolution and of a dense layer of a heavy network."""
DENSE_SHARE = 0.25
SMALL = 8
"""Channels of a deep network."""
GAIN = 0.5
"""Of one layer of a deep network: with the shifts of its normalisations, no depth lets its values die or overflow."""
BLOCK = 16
"""Layers of a dense block."""


def heavy(path: Path, gigabytes: float, dense_share: float = DENSE_SHARE) -> int:
    """Write a network with so many GB of fp32 weights, 3×3 convolutions followed by dense layers; bytes of weights."""
    conv_bytes, dense_bytes = WIDTH * WIDTH * 9 * FLOAT, DENSE * DENSE * FLOAT
    dense_count = round(gigabytes * GIGABYTE * dense_share / dense_bytes)
    conv_count = max(round((gigabytes * GIGABYTE - dense_count * dense_bytes) / conv_bytes), 0)
    rng = np.random.default_rng(0)
    nodes: Nodes = []
    constants: list[TensorProto] = []
    data = path.with_name(f"{path.stem}.weights")

    def layer(op: str, source: str, shape: tuple[int, ...], **attributes: Any) -> str:
        name = f"layer_{len(constants)}"
        constants.append(_streamed(file, f"{name}_weight", shape, rng, data.name))
        nodes.append(helper.make_node(op, [source, f"{name}_weight"], [name], name=name, **attributes))
        nodes.append(helper.make_node("Relu", [name], [f"{name}_relu"], name=f"{name}_relu"))
        return f"{name}_relu"

    with data.open("wb") as file:
        value = layer("Conv", "image", (WIDTH, 3, 3, 3), pads=[1] * 4)
        for _ in range(conv_count):
            value = layer("Conv", value, (WIDTH, WIDTH, 3, 3), pads=[1] * 4)
        nodes.append(helper.make_node("GlobalAveragePool", [value], ["pooled"], name="pool"))
        nodes.append(helper.make_node("Flatten", ["pooled"], ["flat"], name="flatten"))
        value = layer("Gemm", "flat", (DENSE, WIDTH), transB=1)
        for _ in range(dense_count):
            value = layer("Gemm", value, (DENSE, DENSE), transB=1)
        layer("Gemm", value, (10, DENSE), transB=1)
    nodes.pop()
    _write(path, nodes, constants, (1, 3, 8, 8), nodes[-1].output[0])
    return data.stat().st_size


def _streamed(
    file: BinaryIO, name: str, shape: tuple[int, ...], rng: np.random.Generator, location: str
) -> TensorProto:
    """A constant whose values have been appended to the data file."""
    array = rng.standard_normal(shape, np.float32)
    array *= math.sqrt(2 / math.prod(shape[1:]))
    tensor = TensorProto(name=name, data_type=TensorProto.FLOAT, dims=shape, data_location=TensorProto.EXTERNAL)
    for key, value in (("location", location), ("offset", str(file.tell())), ("length", str(array.nbytes))):
        tensor.external_data.add(key=key, value=value)
    array.tofile(file)
    return tensor


def _write(
    path: Path, nodes: Nodes, constants: list[TensorProto], shape: tuple[int, ...], output: str
) -> onnx.ModelProto:
    source = helper.make_tensor_value_info("image", TensorProto.FLOAT, shape)
    rank = 2 if nodes[-1].op_type == "Gemm" else 4
    result = helper.make_tensor_value_info(output, TensorProto.FLOAT, [None] * rank)
    graph = helper.make_graph(nodes, "giant", [source], [result], constants)
    model = helper.make_model(graph, opset_imports=OPSETS, ir_version=IR_VERSION)
    path.write_bytes(model.SerializeToString(deterministic=True))
    return model


class _Deep:
    """A deep network under construction."""

    def __init__(self, seed: int) -> None:
        self.rng = np.random.default_rng(seed)
        self.nodes: Nodes = []
        self.constants: list[TensorProto] = []

    def node(self, op: str, inputs: list[str], **attributes: Any) -> str:
        name = f"{op.lower()}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, inputs, [name], name=name, **attributes))
        return name

    def constant(self, array: np.ndarray[tuple[int, ...], np.dtype[np.floating]]) -> str:
        name = f"constant_{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(array.astype(np.float32), name))
        return name

    def conv(self, source: str, out: int, width: int, kernel: int = 1) -> str:
        """Conv, BatchNormalization and Relu: three nodes."""
        weight = self.rng.standard_normal((out, width, kernel, kernel)) * GAIN / math.sqrt(width * kernel**2)
        y = self.node("Conv", [source, self.constant(weight)], pads=[kernel // 2] * 4)
        scale, shift = (self.rng.uniform(0.5, high, out) for high in (1.5, 1.0))
        parameters = [self.constant(value) for value in (scale, shift, np.zeros(out), np.ones(out))]
        return self.node("Relu", [self.node("BatchNormalization", [y, *parameters])])


def deep(path: Path, kind: str, count: int) -> int:
    """Write a ``chain``, ``residual`` or ``dense`` network of about so many nodes; how many it has."""
    d = _Deep(0)
    grow = {"chain": _chain, "residual": _residual, "dense": _dense}[kind]
    value, width = d.conv("image", SMALL, 3, 3), SMALL
    while len(d.nodes) < count - 2:
        value, width = grow(d, value, width)
    last = d.node("Conv", [d.node("GlobalAveragePool", [value]), d.constant(d.rng.standard_normal((4, width, 1, 1)))])
    _write(path, d.nodes, d.constants, (1, 3, 8, 8), last)
    return len(d.nodes)


def _chain(d: _Deep, value: str, width: int) -> tuple[str, int]:
    return d.conv(value, SMALL, width, 3), SMALL


def _residual(d: _Deep, value: str, width: int) -> tuple[str, int]:
    """A bottleneck with its Add, and now and then a layer that ends the stage."""
    if len(d.nodes) % 12 == 0:
        value = d.conv(value, SMALL, width)
    branch = d.conv(d.conv(value, SMALL, width, 3), width, SMALL)
    half = d.constant(np.full((1,), 0.5))
    return d.node("Mul", [d.node("Add", [value, branch]), half]), width


def _dense(d: _Deep, value: str, width: int) -> tuple[str, int]:
    """A dense block: every layer reads all before it; then a transition."""
    parts = [value]
    for _ in range(BLOCK):
        joined = d.node("Concat", list(parts), axis=1) if len(parts) > 1 else parts[0]
        parts.append(d.conv(joined, 4, width + 4 * (len(parts) - 1)))
    joined = d.node("Concat", parts, axis=1)
    return d.conv(joined, SMALL, width + 4 * BLOCK), SMALL


if __name__ == "__main__":
    deep(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]))

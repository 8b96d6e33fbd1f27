"""Networks timed by a calibration: chains of equal layers, in floats and in integers, and small held-out networks.

Weights are random numbers of a fixed seed, scaled to keep activations at a constant magnitude.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from leanonnx.quantization.agreement import LEVEL_COUNT
from leanonnx.quantization.formats import AUTO_TARGET, int8_format
from leanonnx.quantization.layers import weighted_layers
from leanonnx.quantization.qdq import quantised_model

ProbeLayer = Literal["conv", "pointwise", "depthwise", "grouped", "gemm", "elementwise"]
OPSET, IR_VERSION = 17, 8
TAPS_BY_LAYER = {"conv": 9, "pointwise": 1, "depthwise": 9, "grouped": 9, "gemm": 1, "elementwise": 0}
GROUP_WIDTH = 16
"""Channels of each conv group of grouped convolutions."""
ACTIVATION_RANGE = -4.0, 4.0
"""Numbers that 8 bits span, of activations with a standard deviation of about 1."""


@dataclass(frozen=True, kw_only=True)
class Probe:
    """A chain of equal layers of ``width`` channels on an image of ``side`` × ``side``; a gemm has that many rows.

    With ``integers`` the layers are computed in 8-bit integers; elementwise ones, which are not, read numbers that were
    converted to integers and back.
    """

    layer: ProbeLayer
    width: int
    layers: int
    side: int
    integers: bool = False

    @property
    def numbers(self) -> int:
        """Number of elements that one layer writes."""
        return self.width * self.side**2

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the input and of every other tensor."""
        return (self.side**2, self.width) if self.layer == "gemm" else (1, self.width, self.side, self.side)

    @property
    def multiply_adds(self) -> int:
        """Multiply-adds of one run."""
        return self.layers * self.numbers * self.width // self.groups * TAPS_BY_LAYER[self.layer]

    @property
    def groups(self) -> int:
        """Number of conv groups of a layer."""
        return {"depthwise": self.width, "grouped": self.width // GROUP_WIDTH}.get(self.layer, 1)

    @property
    def conversions(self) -> int:
        """Number of nodes that convert numbers between floats and integers, once onnxruntime has fused the others."""
        return 0 if not self.integers else 2 * self.layers if self.layer == "elementwise" else 2


def probe_network(probe: Probe) -> onnx.ModelProto:
    """Build the network of a probe, in integers as ``compress`` writes them."""
    proto = _float_network(probe)
    if not probe.integers or probe.layer == "elementwise":
        return proto
    kind = int8_format("cpu", AUTO_TARGET)
    names = ["x", *(name for node in proto.graph.node for name in node.output)]
    return quantised_model(proto, weighted_layers(proto), (), dict.fromkeys(names, ACTIVATION_RANGE), kind)


def _float_network(probe: Probe) -> onnx.ModelProto:
    b = _Builder()
    value = "x"
    for index in range(probe.layers):
        if probe.layer == "elementwise":
            value = b.through_integers(value) if probe.integers else value
            value = b.node("Neg" if index % 2 else "Abs", value)  # onnxruntime fuses neither
        elif probe.layer == "gemm":
            value = b.node("MatMul", value, b.weight(probe.width, probe.width))
        else:
            size = 1 if probe.layer == "pointwise" else 3
            value = b.conv(value, probe.width, probe.width, size, groups=probe.groups)
    return b.model(value, probe.shape, probe.shape)


def residual_network(stem: int, inner: int, side: int) -> onnx.ModelProto:
    """Build four residual blocks of two 3×3 convolutions: ``stem`` channels between blocks, ``inner`` within."""
    b = _Builder()
    value = b.node("Relu", b.conv("x", 3, stem, 3, stride=2))
    for _ in range(4):
        branch = b.conv(b.node("Relu", b.conv(value, stem, inner, 3)), inner, stem, 3)
        value = b.node("Relu", b.node("Add", value, branch))
    return _with_classifier(b, value, stem, side)


def mobile_network(stem: int, inner: int, side: int) -> onnx.ModelProto:
    """Build four inverted bottlenecks: 1×1 from ``stem`` to ``inner`` channels, depthwise 3×3, 1×1 back."""
    b = _Builder()
    value = b.node("Relu", b.conv("x", 3, stem, 3, stride=2))
    for _ in range(4):
        wide = b.node("Relu", b.conv(value, stem, inner, 1))
        deep = b.node("Relu", b.conv(wide, inner, inner, 3, groups=inner))
        value = b.node("Add", value, b.conv(deep, inner, stem, 1))
    return _with_classifier(b, value, stem, side)


def _with_classifier(b: _Builder, value: str, width: int, side: int) -> onnx.ModelProto:
    pooled = b.node("Flatten", b.node("GlobalAveragePool", value))
    return b.model(b.node("MatMul", pooled, b.weight(width, 10)), (1, 3, 2 * side, 2 * side), (1, 10))


def held_out_networks(side: int) -> Iterator[tuple[str, onnx.ModelProto, onnx.ModelProto]]:
    """Held-out networks, to which no entry is fitted: description, network, the same with fewer channels."""
    yield "residual, 64 and 64 channels → 48 and 28", residual_network(64, 64, side), residual_network(48, 28, side)
    yield "mobile, 32 and 192 channels → 24 and 100", mobile_network(32, 192, side), mobile_network(24, 100, side)


class _Builder:
    """Builder of a network: its nodes and weights so far."""

    def __init__(self) -> None:
        self.rng = np.random.default_rng(0)
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []

    def node(self, operator: str, *inputs: str, **attributes: Any) -> str:
        """Add a node; return the name of its output."""
        output = f"t{len(self.nodes)}"
        self.nodes.append(helper.make_node(operator, inputs, [output], name=output, **attributes))
        return output

    def weight(self, *shape: int) -> str:
        """Add a weight, scaled by its fan-in: the first axis of a MatMul's, all but the first of a convolution's."""
        fan = shape[0] if len(shape) == 2 else int(np.prod(shape[1:]))
        array: NDArray[np.float32] = self.rng.standard_normal(shape, np.float32) / np.float32(np.sqrt(fan))
        self.weights.append(numpy_helper.from_array(array, f"w{len(self.weights)}"))
        return self.weights[-1].name

    def through_integers(self, value: str) -> str:
        """Convert numbers to integers and back."""
        low, high = ACTIVATION_RANGE
        scale, zero = np.float32((high - low) / LEVEL_COUNT), np.uint8(LEVEL_COUNT // 2)
        names = []
        for number in (scale, zero):
            names.append(f"w{len(self.weights)}")
            self.weights.append(numpy_helper.from_array(np.array(number), names[-1]))
        return self.node("DequantizeLinear", self.node("QuantizeLinear", value, *names), *names)

    def conv(self, value: str, reads: int, writes: int, size: int, groups: int = 1, stride: int = 1) -> str:
        """Add a convolution; the image size is kept, or divided by the stride."""
        weight = self.weight(writes, reads // groups, size, size)
        pads = [size // 2] * 4
        return self.node("Conv", value, weight, group=groups, pads=pads, strides=[stride, stride])

    def model(self, output: str, reads: tuple[int, ...], writes: tuple[int, ...]) -> onnx.ModelProto:
        """The model with one of the values as its output."""
        values = [
            helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape)
            for name, shape in (("x", reads), (output, writes))
        ]
        graph = helper.make_graph(self.nodes, "probe", values[:1], values[1:], self.weights)
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION)

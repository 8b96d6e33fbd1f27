"""Small models around one operator, the subject: layers that produce its channels, and layers that read them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

Array = NDArray[Any]
Choose = Callable[[int], int]
T = TypeVar("T")
SUBJECT = "subject"
IR_VERSIONS = {**dict.fromkeys((4, 7, 9), 4), 10: 5, 11: 6, 12: 7, 13: 7, **dict.fromkeys((14, 15, 16, 17, 18), 8)}
IR_VERSIONS |= {19: 9, 20: 9, 21: 10, 22: 10, 23: 11, 24: 12}
OUTPUTS = 3


@dataclass(frozen=True)
class Probe:
    """A tensor whose channel c, on one axis, is moved as a whole by adding to element c of a bias."""

    tensor: str
    bias: str
    axis: int


@dataclass(frozen=True)
class Sample:
    """A finished model, its subject, and the probes before it."""

    proto: onnx.ModelProto
    subject: onnx.NodeProto
    probes: tuple[Probe, ...]


class ModelBuilder:
    """Build a model node by node.  Weights are drawn from a seed, everything else from ``choose``.

    ``reads`` names the tensors that the last layers read, if not the subject's outputs; ``whole`` says that their
    first axis may hold channels.
    """

    def __init__(self, choose: Choose, opset: int, stem: bool = False) -> None:
        self.choose = choose
        self.opset = opset
        self.stem = stem
        self.rng = np.random.default_rng(choose(1 << 12))
        self.free = self.chance(4)
        self.batch = 1 if self.free else self.between(1, 2)
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: list[TensorProto] = []
        self.inputs: dict[tuple[int, ...], str] = {}
        self.probes: list[Probe] = []
        self.reads: list[str] = []
        self.whole = False
        self.count = 0

    # Draws.

    def chance(self, n: int) -> bool:
        """True once in n draws."""
        return self.choose(n) == n - 1

    def one_of(self, items: Sequence[T]) -> T:
        """One of some items."""
        return items[self.choose(len(items))]

    def between(self, low: int, high: int) -> int:
        """An integer from low to high."""
        return low + self.choose(high - low + 1)

    # Constants.

    def name(self, stem: str) -> str:
        """An unused name."""
        self.count += 1
        return f"{stem}{self.count}"

    def initializer(self, array: Array, stem: str = "k") -> str:
        """A constant in an initializer."""
        name = self.name(stem)
        self.initializers.append(numpy_helper.from_array(np.asarray(array, order="C"), name))
        return name

    def const(self, array: Array) -> str:
        """A constant, in an initializer or in a Constant node."""
        if not self.chance(4):
            return self.initializer(array)
        return self.node("Constant", [], value=numpy_helper.from_array(np.asarray(array, order="C")))

    def ints(self, *values: int) -> str:
        """A vector of 64-bit integers."""
        return self.const(np.array(values, np.int64))

    def scalar(self, value: float, kind: Any = np.float32) -> str:
        """A constant of rank 0."""
        return self.const(np.array(value, kind))

    def floats(self, *values: float) -> str:
        """A vector of float32 numbers."""
        return self.const(np.array(values, np.float32))

    def normal(self, *shape: int, scale: float = 1.0) -> Array:
        """Random float32 numbers."""
        return (self.rng.standard_normal(shape) * scale).astype(np.float32)

    def positive(self, *shape: int) -> Array:
        """Random float32 numbers from 0.5 to 1.5."""
        return (0.5 + self.rng.random(shape)).astype(np.float32)

    # Nodes.

    def node(self, op: str, inputs: Sequence[str], outputs: int = 1, domain: str = "", **attributes: Any) -> str:
        """Add a node that is not the subject; returns its first output."""
        names = [self.name("t") for _ in range(outputs)]
        self.nodes.append(_node(op, inputs, names, names[0].upper(), domain, attributes))
        return names[0]

    def subject(
        self, op: str, inputs: Sequence[str], outputs: int | Sequence[str] = 1, domain: str = "", **attributes: Any
    ) -> list[str]:
        """Add the operator under test; returns its outputs."""
        names = [f"{SUBJECT}_{k}" for k in range(outputs)] if isinstance(outputs, int) else list(outputs)
        self.nodes.append(_node(op, inputs, names, SUBJECT, domain, attributes))
        return names

    def source(self, *shape: int) -> str:
        """A graph input [batch, *shape], created on first use."""
        return self.inputs.setdefault(shape, f"x{len(self.inputs)}")

    def image(self, channels: int, *tail: int, width: int = 2) -> str:
        """Output of a Conv [batch, channels, *tail]."""
        kernel = [1] * len(tail)
        data = self.source(width, *tail)
        if self.stem:
            data = self.node("Conv", [data, self.initializer(self.normal(4, width, *kernel), "stem")])
            width = 4
        weight = self.initializer(self.normal(channels, width, *kernel), "w")
        bias = self.initializer(self.normal(channels), "b")
        return self.probe(self.node("Conv", [data, weight, bias]), bias, 1)

    def tokens(self, channels: int, *lead: int) -> str:
        """Output of MatMul and Add [batch, *lead, channels]."""
        width = 2
        data = self.source(*lead, width)
        if self.stem:
            data = self.node("MatMul", [data, self.initializer(self.normal(width, 4), "stem")])
            width = 4
        product = self.node("MatMul", [data, self.initializer(self.normal(width, channels), "w")])
        bias = self.initializer(self.normal(channels), "b")
        return self.probe(self.node("Add", [product, bias]), bias, 1 + len(lead))

    def rows(self, channels: int) -> str:
        """Output of a Gemm [batch, channels]."""
        width = 2
        data = self.source(width)
        if self.stem:
            data = self.node("Gemm", [data, self.initializer(self.normal(width, 4), "stem")])
            width = 4
        weight = self.initializer(self.normal(width, channels), "w")
        bias = self.initializer(self.normal(channels), "b")
        return self.probe(self.node("Gemm", [data, weight, bias]), bias, 1)

    def ranked(self, channels: int, *ranks: int) -> str:
        """Channels on axis 1 of a tensor of one of these ranks."""
        rank = self.one_of(ranks)
        return self.rows(channels) if rank == 2 else self.image(channels, *(2, 3, 2)[: rank - 2])

    def plain(self, *shape: int) -> str:
        """[batch, *shape] without channels: a graph input moved by a bias of one element."""
        bias = self.initializer(self.normal(1), "b")
        return self.probe(self.node("Add", [self.source(*shape), bias]), bias, 0)

    def headed(self, heads: int, width: int, length: int, order: Sequence[int] | None = None) -> str:
        """[batch, length, heads, width], channels on the last two axes; in another order if one is given."""
        folded = self.node("Reshape", [self.tokens(heads * width, length), self.ints(0, length, heads, width)])
        return self.node("Transpose", [folded], perm=list(order)) if order else folded

    def places(self, tensor: str) -> str:
        """Integers 0 and 1 made from a tensor."""
        return self.node("Cast", [self.node("Round", [self.node("Sigmoid", [tensor])])], to=TensorProto.INT64)

    def quantised(self, tensor: str, scale: float = 0.05, zero: int = 128) -> str:
        """The tensor as 8-bit integers."""
        return self.node("QuantizeLinear", [tensor, self.scalar(scale), self.scalar(zero, np.uint8)])

    def bent(self, tensor: str) -> str:
        """Softplus of the tensor, so that a uniform shift of a channel does not cancel; all positive."""
        return self.node("Softplus", [tensor])

    def number(self, low: float = 0.0) -> str:
        """A number that is computed from a graph input, above ``low``."""
        largest = self.node("ReduceMax", [self.node("Sigmoid", [self.plain(3)])], keepdims=0)
        return self.node("Add", [largest, self.scalar(low)])

    def probe(self, tensor: str, bias: str, axis: int) -> str:
        """Note that a bias moves the channels of a tensor."""
        self.probes.append(Probe(tensor, bias, axis))
        return tensor

    # The end of the model.

    def finish(self) -> Sample:
        """Add a layer to each output of the subject (or each tensor of ``reads``), and return the model."""
        subject = next(node for node in self.nodes if node.name == SUBJECT)
        reads = self.reads or [name for name in subject.output if name]
        outputs = [self._read(name, value) for name, value in zip(reads, self._run(reads), strict=True)]
        infos = [
            helper.make_tensor_value_info(name, TensorProto.FLOAT, [None] * len(shape) if self.free else shape)
            for name, *shape in outputs
        ]
        return Sample(self._model(infos), subject, tuple(self.probes))

    def _run(self, names: Sequence[str]) -> list[Array]:
        """Values of some tensors; no form has to work out its shapes."""
        proto = self._model([onnx.ValueInfoProto(name=name) for name in names])
        session = ort.InferenceSession(proto.SerializeToString(), _options(), providers=["CPUExecutionProvider"])
        feed = {name: self.normal(self.batch, *shape) for shape, name in self.inputs.items()}
        return [np.asarray(value) for value in session.run(list(names), feed)]

    def _read(self, name: str, value: Array) -> tuple[Any, ...]:
        """A layer that mixes all channels of a tensor; its name and shape."""
        if value.dtype != np.float32:
            name = self.node("Cast", [name], to=TensorProto.FLOAT)
        first = all(probe.axis == 1 for probe in self.probes) and not self.whole
        if first and 3 <= value.ndim <= 5 and self.chance(3):
            kernel = [1] * (value.ndim - 2)
            weight = self.initializer(self.normal(OUTPUTS, value.shape[1], *kernel), "v")
            return self.node("Conv", [name, weight]), value.shape[0], OUTPUTS, *value.shape[2:]
        lead = 1 if self.whole or value.ndim < 2 else value.shape[0]
        if value.ndim < 2 or self.whole:
            name = self._reshaped(name, [1, -1])
        elif value.ndim > 2:
            name = self.node("Flatten", [name], axis=1)
        width = math.prod(value.shape) // lead
        weight = self.initializer(self.normal(width, OUTPUTS, scale=width**-0.5), "v")
        return self.node("Gemm" if self.opset > 10 else "MatMul", [name, weight]), lead, OUTPUTS

    def _reshaped(self, name: str, shape: list[int]) -> str:
        if self.opset < 5:
            return self.node("Reshape", [name], shape=shape)
        return self.node("Reshape", [name, self.ints(*shape)])

    def _model(self, outputs: list[onnx.ValueInfoProto]) -> onnx.ModelProto:
        batch = "n" if self.free else self.batch
        inputs = [
            helper.make_tensor_value_info(name, TensorProto.FLOAT, [batch, *shape])
            for shape, name in self.inputs.items()
        ]
        graph = helper.make_graph(self.nodes, "bench", inputs, outputs, self.initializers)
        domains = {node.domain for node in self.nodes} - {""}
        imports = [helper.make_opsetid("", self.opset), *(helper.make_opsetid(d, 1) for d in sorted(domains))]
        return helper.make_model(graph, opset_imports=imports, ir_version=IR_VERSIONS[self.opset])


def _node(
    op: str, inputs: Sequence[str], outputs: Sequence[str], name: str, domain: str, attributes: dict[str, Any]
) -> onnx.NodeProto:
    given = {key: value for key, value in attributes.items() if value is not None}
    return helper.make_node(op, list(inputs), list(outputs), name=name, domain=domain, **given)


def _options() -> ort.SessionOptions:
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    return options

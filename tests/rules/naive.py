"""The effect of an operator on channels, observed by running it; independent of the rules.

``moved``: positions of its outputs that change when one channel of an operand changes.
``carried``: destination of each element, observed by running the operator on the numbers of the channels.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from leanonnx.analysis.dag import ChannelDag
from leanonnx.numeric.channel_ids import ChannelIds, Mask
from leanonnx.rules.call import KernelBlock
from tests.rules.model_builder import SUBJECT, Probe, Sample

Array = NDArray[Any]
STEPS = (0.7, -9.3, 9.1)
"""Changes of a channel: several quantisation steps, and of either sign."""
CLOSE = 1e-3


@dataclass(frozen=True)
class Moved:
    """One channel of an operand, and the effect of each of ``STEPS`` on each output of the subject.

    ``before`` has the unchanged outputs.
    """

    probe: Probe
    channel: int
    outputs: Mapping[str, list[Array]]
    before: Mapping[str, Array]

    def where(self, name: str) -> Mask:
        """Positions of an output that any change of the channel moves."""
        return np.asarray(np.any([delta != 0 for delta in self.outputs[name]], axis=0))


def moved(sample: Sample) -> Iterator[Moved]:
    """Change each channel of each probe, one after the other."""
    names = [name for name in sample.subject.output if name]
    session = _session(_open_to_change(sample, names))
    feed = _inputs(sample.proto, np.random.default_rng(1))
    before = session.run(names, feed)
    biases = {t.name: numpy_helper.to_array(t) for t in sample.proto.graph.initializer}
    for probe in sample.probes:
        for channel in range(biases[probe.bias].size):
            outputs: dict[str, list[Array]] = {name: [] for name in names}
            for step in STEPS:
                bias = biases[probe.bias].copy()
                bias[channel] += step
                after = session.run(names, {**feed, probe.bias: bias})
                for name, old, new in zip(names, before, after, strict=True):
                    outputs[name].append(_difference(old, new))
            yield Moved(probe, channel, outputs, dict(zip(names, before, strict=True)))


def _difference(old: Array, new: Array) -> Array:
    """new - old as float64; 1 where only one of them is no number, 0 where both are none."""
    a, b = (np.asarray(x).astype(np.float64) for x in (old, new))
    with np.errstate(invalid="ignore"):
        delta = np.asarray(b - a)
    same = (a == b) | (np.isnan(a) & np.isnan(b))
    return np.where(same, 0.0, np.where(np.isfinite(delta), delta, 1.0))


def _open_to_change(sample: Sample, names: list[str]) -> onnx.ModelProto:
    """The model with the probes' biases as inputs and the subject's outputs as outputs."""
    proto = onnx.ModelProto.FromString(sample.proto.SerializeToString())
    sizes = {t.name: list(t.dims) for t in proto.graph.initializer}
    for probe in sample.probes:
        proto.graph.input.append(helper.make_tensor_value_info(probe.bias, TensorProto.FLOAT, sizes[probe.bias]))
    del proto.graph.output[:]
    proto.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    return proto


def _session(proto: onnx.ModelProto) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    return ort.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])


def _inputs(proto: onnx.ModelProto, rng: np.random.Generator) -> dict[str, Array]:
    """Random values for the graph inputs; free axes are 1."""
    fixed = {t.name for t in proto.graph.initializer}
    return {
        v.name: rng.standard_normal([d.dim_value or 1 for d in v.type.tensor_type.shape.dim]).astype(np.float32)
        for v in proto.graph.input
        if v.name not in fixed
    }


# Predictions of the channel ids.


def reached(dag: ChannelDag, channel_ids: ChannelIds) -> NDArray[np.float64]:
    """Product of the fixed gains from any of ``labels`` to each channel id [channels]; 0 if there is no path.

    Kernels count as 1.
    """
    found = np.zeros(dag.count)
    found[channel_ids] = 1.0
    edges: list[tuple[int, ChannelIds, ChannelIds, Any]] = [
        (k, np.repeat(row, to.size), np.tile(to, row.size), 1.0)
        for k, mix in dag.kernel_blocks
        for row, to in zip(mix.sources, mix.destinations, strict=True)
    ]
    edges += [
        (k, link.sources, link.destinations, 1.0 if link.gains is None else link.gains) for k, link in dag.fixed_edges
    ]
    for _, sources, targets, gains in sorted(edges, key=lambda edge: edge[0]):
        np.maximum.at(found, targets, found[sources] * gains)
    return found


def label_of(dag: ChannelDag, probe: Probe, channel: int) -> ChannelIds:
    """The channel id of a probe's channel."""
    channel_ids = dag.channel_ids[probe.tensor]
    line = channel_ids.take([channel if channel_ids.shape[probe.axis] > 1 else 0], probe.axis)
    assert line.size == 1, f"channels of '{probe.tensor}' lie on several axes"
    return line.reshape(-1)


def laid_out(dag: ChannelDag, name: str) -> ChannelIds:
    """Labels of a tensor, one for each position."""
    return np.broadcast_to(dag.channel_ids[name], dag.shapes[name])


# Movements.


def carried(dag: ChannelDag, sample: Sample) -> dict[str, Array]:
    """Outputs of the subject on operands whose elements are the numbers of their channels."""
    subject = sample.subject
    computed = [name for name in dict.fromkeys(subject.input) if name in dag.channel_ids]
    nodes = [n for n in sample.proto.graph.node if n.name == SUBJECT or n.op_type == "Constant"]
    names = [name for name in subject.output if name]
    graph = helper.make_graph(
        nodes,
        "movement",
        [helper.make_tensor_value_info(n, TensorProto.FLOAT, list(dag.shapes[n])) for n in computed],
        [onnx.ValueInfoProto(name=name) for name in names],
        sample.proto.graph.initializer,
    )
    imports = sample.proto.opset_import
    proto = helper.make_model(graph, opset_imports=list(imports), ir_version=sample.proto.ir_version)
    feed = {name: laid_out(dag, name).astype(np.float32) for name in computed}
    return dict(zip(names, _session(proto).run(names, feed), strict=True))


def node_of(dag: ChannelDag, sample: Sample) -> int:
    """Index of the subject."""
    return next(k for k, node in enumerate(dag.model.proto.graph.node) if node.name == sample.subject.name)


def fixed_edges(dag: ChannelDag, node: int) -> set[tuple[int, int]]:
    """Pairs of channel ids that the fixed edges of one node join."""
    found: set[tuple[int, int]] = set()
    for k, link in dag.fixed_edges:
        if k == node:
            found |= set(zip(link.sources.tolist(), link.destinations.tolist(), strict=True))
    return found


# Kernels.


def kernel_in_weight(dag: ChannelDag, node: int, mix: KernelBlock, source: int, target: int) -> Array | None:
    """The numbers of a weight that lead from one channel to another, by how the weight is sliced.

    None if that axis does not separate the channels.
    """
    use = next(
        (u for u in dag.constant_uses if u.node == node and u.slot == mix.slot and u.input_channel_ids is not None),
        None,
    )
    if use is None or use.input_channel_ids is None:
        return None
    array = use.computed if use.computed is not None else dag.model.constant(use.constant)
    outward = next((f for f in use.factors if not np.array_equal(f, use.input_channel_ids)), None)
    if outward is None:
        return None
    chosen = np.broadcast_to(use.input_channel_ids == source, array.shape) & np.broadcast_to(
        outward == target, array.shape
    )
    return np.asarray(array[chosen])


# Multiply-adds.

WEIGHTS = {"QLinearConv": 3, "QLinearMatMul": 3, "QGemm": 3, "LSTM": 1, "GRU": 1, "RNN": 1}
OUTWARD = ("Conv", "ConvInteger", "QLinearConv", "FusedConv", "DeformConv")
DENSE = ("MatMul", "MatMulInteger", "QLinearMatMul", "FusedMatMul", "Gemm", "FusedGemm", "QGemm")
KERNELS = (*OUTWARD, *DENSE, "ConvTranspose")
"""Operators whose numbers count as kernels."""
MACS = (*KERNELS, "LSTM", "GRU", "RNN", "Einsum")


def macs(dag: ChannelDag, node: onnx.NodeProto) -> int:
    """Multiply-adds of one run: every number of a constant weight, as often as it is used; products by their length."""
    data = dag.shapes[node.input[0]] if node.input[0] in dag.shapes else dag.model.constant(node.input[0]).shape
    if node.op_type == "Einsum":
        terms = node.attribute[0].s.decode().replace(" ", "").split("->")[0].split(",")
        shapes = [dag.shapes[n] if n in dag.shapes else dag.model.constant(n).shape for n in node.input]
        return math.prod(
            {letter: n for pair in zip(terms, shapes, strict=True) for letter, n in zip(*pair, strict=True)}.values()
        )
    if node.op_type in DENSE:
        turned = any(a.name == "transA" and a.i for a in node.attribute)
        return int(np.prod(dag.shapes[node.output[0]])) * data[-2 if turned else -1]
    weight = node.input[WEIGHTS.get(node.op_type, 1)]
    size = int(np.prod(dag.model.constant(weight).shape if weight in dag.model.origins else dag.shapes[weight]))
    if node.op_type in ("LSTM", "GRU", "RNN"):
        return data[0] * data[1] * (size + int(np.prod(dag.model.constant(node.input[2]).shape)))
    pixels = data if node.op_type == "ConvTranspose" else dag.shapes[node.output[0]]
    return pixels[0] * int(np.prod(pixels[2:])) * size

"""Layers that stay in floats between integers: onnxruntime's optimiser would put them into integers by itself."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

from leanonnx.quantization import qdq
from leanonnx.quantization.formats import Int8Format, sums_saturate
from leanonnx.quantization.layers import carriers_between, weighted_layers
from leanonnx.quantization.preparation import prepare, relative_difference
from leanonnx.quantization.qdq import quantised_model
from leanonnx.quantization.ranges import observe_activations, ranges_by
from leanonnx.quantization.simulation import simulation_of
from leanonnx.runtime.sessions import run
from tests.calibrated import analysed, net, normal_feeds

BOUNDS = {
    "plain": "m = Conv (r, b, c)",
    "Relu": "n = Conv (r, b, c) m = Relu (n)",
    "Clip": "low = Constant <value = float {0}> () high = Constant <value = float {1e6}> () "
    "n = Conv (r, b, c) m = Clip (n, low, high)",
    "ConvTranspose": "m = ConvTranspose (r, b, c)",
    "Pad": "table = Reshape (border, shape) all = Reshape (table, flat) p = Pad (r, all) "
    "n = Conv (p, b, c) m = Slice (n, one, nine, two)",
    "Transpose": "t = Transpose <perm = [0,1,3,2]> (r) n = Conv (t, b, c) m = Transpose <perm = [0,1,3,2]> (n)",
}
ROUNDING, LOST = 0.02, 0.5
"""Error of rounding once instead of twice; one of a layer that computes something else."""


def outputs(bound: str) -> tuple[onnx.ModelProto, list[np.ndarray], list[np.ndarray]]:
    """A network whose second layer of three stays float, its simulation's output, and that of fused kernels.

    The float layer's largest kernels read a channel that is next to zero: with one scale for all, others are lost.
    """
    proto = net(
        "(float[1,3,8,8] x) => (float[1,4,8,8] y)",
        "float[8,3,3,3] a, float[8,8,1,1] b, float[8] c, float[4,8,3,3] d, "
        "int64[2] shape = {2, 4}, int64[1] flat = {-1}, "
        "int64[8] border = {0,0,1,0,0,0,1,0}, int64[1] one = {1}, int64[1] nine = {9}, int64[1] two = {2}",
        f"h = Conv <pads = [1,1,1,1]> (x, a) r = Relu (h) {BOUNDS[bound]} y = Conv <pads = [1,1,1,1]> (m, d)",
    )
    for tensor in proto.graph.initializer:
        values = onnx.numpy_helper.to_array(tensor).copy()
        if tensor.name == "a":
            values[0] *= 1e-6
        if tensor.name == "b":
            values[(slice(None),) * (bound != "ConvTranspose") + (0,)] *= 1e3
        tensor.CopyFrom(onnx.numpy_helper.from_array(values, tensor.name))
    feeds = normal_feeds(analysed(proto), 4)
    prepared = prepare(proto, Path("m.onnx"), feeds).proto
    first, *_, last = weighted_layers(prepared)
    names = {name for node in prepared.graph.node for name in (*node.input, *node.output)}
    names -= {tensor.name for tensor in prepared.graph.initializer}
    kind = Int8Format(reduced_weights=sums_saturate())
    ranges = ranges_by("minmax", observe_activations(prepared, names, feeds), kind)
    carriers = carriers_between(prepared, {first.name, last.name})
    made = quantised_model(prepared, [first, last], carriers, ranges, kind)
    return made, *([row[0] for row in run(each, feeds)] for each in (simulation_of(made), made))


@pytest.mark.parametrize("bound", BOUNDS)
def test_float_layers_stay_float_in_fused_kernels(bound: str) -> None:
    made, wanted, fused = outputs(bound)
    assert [node.op_type for node in made.graph.node].count("LeakyRelu") == 1
    onnx.checker.check_model(made, full_check=True)
    assert max(relative_difference(*pair) for pair in zip(wanted, fused, strict=True)) < ROUNDING


@pytest.mark.parametrize("bound", BOUNDS)
def test_without_the_guard_they_do_not(bound: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(qdq, "_guard_floats", lambda result: None)
    made, wanted, fused = outputs(bound)
    assert "LeakyRelu" not in {node.op_type for node in made.graph.node}
    assert max(relative_difference(*pair) for pair in zip(wanted, fused, strict=True)) > LOST

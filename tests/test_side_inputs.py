"""Layers whose only output steers another operator, as an index or a size, stay: nothing else would tell it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

from tests.calibrated import analysed, net
from tests.helpers import called_json, constant_shapes, saved

CONSTANTS = (
    "float[8,3,1,1] a, float[1,3,1,1] k, float[2,8,1,1] o, int64[1] flat = {-1}, int64[2] column = {-1, 1}, "
    "int64[1] none = {0}, int64[1] one = {1}, int64[1] two = {2}, int64[1] six = {6}, int64[3] ones = {1, 1, 1}"
)
STEERING = """h = Conv (x, a) i = Conv (x, k) s = Sigmoid (i) r = Round (s) f = Reshape (r, flat) q = Cast <to = 7> (f)
              m = ReduceMax <keepdims = 0> (f) t = Cast <to = 7> (m) w = Reshape (t, one) v = Add (w, two)"""
USES = {
    "Gather": ("g = Gather <axis = 2> (h, q)", "1, 2, M, 6"),
    "GatherND": (
        """p = Transpose <perm = [2, 3, 0, 1]> (h) c = Reshape (q, column) d = GatherND (p, c)
           g = Transpose <perm = [2, 3, 0, 1]> (d)""",
        "1, 2, M, 6",
    ),
    "ScatterND": (
        """p = Transpose <perm = [2, 3, 0, 1]> (h) c = Reshape (q, column) e = Slice (c, none, two, none)
           u = Slice (p, one, two, none) b = Concat <axis = 0> (u, u) d = ScatterND (p, e, b)
           g = Transpose <perm = [2, 3, 0, 1]> (d)""",
        "1, 2, 6, 6",
    ),
    "Split": ("c = Sub (six, v) d = Concat <axis = 0> (v, c) g, e = Split <axis = 3> (h, d)", "1, 2, 6, M"),
    "Expand": ("c = Concat <axis = 0> (ones, v) d = ReduceMax <axes = [3]> (h) g = Expand (d, c)", "1, 2, 6, M"),
    "TopK": ("g, e = TopK <axis = 3> (h, v)", "1, 2, 6, M"),
}


def network(operator: str) -> onnx.ModelProto:
    """A layer of one channel, which steers the operator, beside a layer of eight, which it reads."""
    body, shape = USES[operator]
    proto = net(f"(float[1, 3, 6, 6] x) => (float[{shape}] y)", CONSTANTS, f"{STEERING} {body} y = Conv (g, o)")
    for tensor in proto.graph.initializer:
        if tensor.name == "k":
            tensor.CopyFrom(onnx.numpy_helper.from_array(np.full((1, 3, 1, 1), 0.5, np.float32), "k"))
    return proto


@pytest.mark.parametrize("operator", USES)
def test_what_steers_an_operator_stays(operator: str, tmp_path: Path) -> None:
    source = saved(network(operator), tmp_path / "m.onnx")
    row = called_json("compress", source, tmp_path / "o.onnx", "--keep", 0.5, "--align", 1)
    assert row["proof"]["status"] == "passed"
    shapes = constant_shapes(tmp_path / "o.onnx")
    assert shapes["k"] == [1, 3, 1, 1]
    assert shapes["a"][0] < 8


@pytest.mark.parametrize("operator", ["Gather", "GatherND", "ScatterND"])
def test_computed_indices_are_pinned_with_the_reason(operator: str) -> None:
    dag = analysed(network(operator))
    (pin,) = (pin for pin in dag.pins if pin.reason.startswith(operator))
    assert "takes its indices or sizes from it" in pin.reason
    assert set(pin.channel_ids.tolist()) == set(np.unique(dag.channel_ids[pin.tensor]).tolist())
    assert set(dag.channel_ids["i"].ravel().tolist()) <= set(pin.channel_ids.tolist())

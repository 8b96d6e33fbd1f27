"""Matrix products whose weight is on the left, or whose data are turned: all that reads layers sees their channels."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from tests.calibrated import analysed, deviation, keep, net, normal_feeds
from tests.helpers import compressed, constant_shapes, saved
from tests.soft_pruned import edited, gone, minimal, put
from tests.test_recovery import mended, tensors, with_values

CLOUD = (
    "(float[N,5,L] x) => (float[N,3] y)",
    "float[9,5] a, float[9,1] b, float[1,8,9] c, float[1,8,1] d, float[8,3] e",
    "h = MatMul (a, x) i = Add (h, b) r = Relu (i) m = MatMul (c, r) n = Add (m, d) s = Relu (n) "
    "p = ReduceMax <axes = [2], keepdims = 0> (s) y = Gemm (p, e)",
)
TURNED = (
    "(float[5,6] x) => (float[6,4] y)",
    "float[9,5] a, float[9,1] b, float[9,8] c, float[8,1] d, float[8,4] e",
    "h = Gemm (a, x, b) r = Relu (h) m = Gemm <transA = 1> (c, r, d) s = Relu (m) y = Gemm <transA = 1> (s, e)",
)


def test_layers_of_a_point_cloud_network_shrink(tmp_path: Path) -> None:
    source = saved(net(*CLOUD, opset=13), tmp_path / "in.onnx")
    result = compressed(source, tmp_path / "out.onnx", 0.5)
    assert result.proof.passed
    shapes = constant_shapes(tmp_path / "out.onnx")
    assert shapes["a"][0] == shapes["b"][0] == shapes["c"][2] < 9
    assert shapes["c"][1] == shapes["d"][1] == shapes["e"][0] < 8
    rows, inner = shapes["a"][0], shapes["c"][1]
    assert rows * 5 + inner * rows + inner * 3 <= 0.5 * (9 * 5 + 8 * 9 + 8 * 3)


def test_scaled_channels_of_a_left_product_are_compensated() -> None:
    proto = net(*CLOUD, opset=13)
    constants = tensors(proto)
    weight, bias = constants["a"].copy(), constants["b"].copy()
    weight[-4:], bias[-4:] = 2 * weight[:4], 2 * bias[:4]
    dag = analysed(with_values(proto, {"a": weight, "b": bias}))
    before, found = mended(dag, keep(dag, "h", range(5)), count=60)
    unseen = normal_feeds(dag, 10, 5)
    assert deviation(dag, before, unseen) > 0.1
    assert deviation(dag, found.proto, unseen) < 1e-3


@pytest.mark.parametrize("cut", ["h", "m"])
def test_recovery_of_turned_products(cut: str) -> None:
    dag = analysed(net(*TURNED))
    alive = keep(dag, cut, range(5), axis=0)
    before, found = mended(dag, alive, count=120)
    unseen = normal_feeds(dag, 20, 77)
    assert deviation(dag, found.proto, unseen) < 0.95 * deviation(dag, before, unseen)
    assert all(layer.reason == "" for layer in found.layers), found.layers


def test_a_row_that_is_added_is_no_bias_of_the_rows() -> None:
    """W x + c with c [L], where there are as many rows as columns."""
    proto = net(
        "(float[5,6] x) => (float[6,4] y)",
        "float[6,5] a, float[6] b, float[6,4] e",
        "h = Gemm (a, x, b) r = Relu (h) y = Gemm <transA = 1> (r, e)",
    )
    dag = analysed(proto)
    _, found = mended(dag, keep(dag, "r", range(4), axis=0), count=60)
    reasons = {layer.name: layer.reason for layer in found.layers}
    assert reasons == {"H": "its bias is shared or computed", "Y": ""}
    assert constant(found.proto, "b").tolist() == constant(proto, "b").tolist()


def constant(proto: onnx.ModelProto, name: str) -> np.ndarray:
    return next(numpy_helper.to_array(t) for t in proto.graph.initializer if t.name == name)


def test_rows_of_zeros_of_a_left_product_are_removed(tmp_path: Path) -> None:
    proto = edited(net(*CLOUD, opset=13), a=put(0, [1, 4]), b=put(0, [1, 4]))
    result, after = minimal(proto, tmp_path)
    assert constant(after, "a").shape == (7, 5)
    assert gone(result) == (0, 2)


def test_constant_rows_of_a_left_gemm_are_reported_correctly(tmp_path: Path) -> None:
    """A constant row cannot be added to the bias of a Gemm that has one number per column."""
    proto = edited(net(*TURNED), a=put(0, [1, 4]), b=lambda array: array.__setitem__([1, 4], [[-1.0], [2.0]]))
    _, after = minimal(proto, tmp_path)
    assert constant(after, "a").shape == (8, 5)

"""Float networks made ready for 8-bit integers: operator sets, biases, products and sums."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from leanonnx.errors import ModelError
from leanonnx.quantization import preparation
from leanonnx.quantization.layers import carriers_between, weighted_layers
from leanonnx.quantization.preparation import LEAST_OPSET, MAX_FLOAT_ERROR, prepare, relative_difference
from leanonnx.runtime.sessions import run
from tests.calibrated import analysed, net, normal_feeds
from tests.helpers import saved
from tests.test_int8 import int8_row, samples_for


@pytest.mark.parametrize("opset", [9, 11, 13])
def test_older_operator_sets_are_raised(tmp_path: Path, opset: int) -> None:
    body = "h = Conv <pads = [1,1,1,1]> (x, w) n = BatchNormalization (h, g, b, m, v) r = Relu (n) y = Conv (r, w2)"
    constants = "float[4,3,3,3] w, float[4] g, float[4] b, float[4] m, float[4] v = {1, 1, 1, 1}, float[2,4,1,1] w2"
    proto = net("(float[1, 3, 8, 8] x) => (float[1, 2, 8, 8] y)", constants, body, opset=opset, ir=4)
    saved(proto, tmp_path / "m.onnx")
    np.savez(tmp_path / "x.npz", **samples_for(proto))
    row = int8_row(tmp_path)
    assert row["kept"] and row["opset_raised_from"] == (opset if opset < LEAST_OPSET else None)
    written = onnx.load(tmp_path / "o.onnx")
    assert "BatchNormalization" not in {node.op_type for node in written.graph.node}
    assert run(tmp_path / "o.onnx", [{"x": np.ones((1, 3, 8, 8), np.float32)}])


def scaled(proto: onnx.ModelProto) -> None:
    """Spoil a network: one of its weights is half as large again."""
    weight = next(tensor for tensor in proto.graph.initializer if len(tensor.dims) == 4)
    weight.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(weight) * np.float32(1.5), weight.name))


def test_outputs_as_small_as_their_rounding(monkeypatch: pytest.MonkeyPatch) -> None:
    """Far below zero, Sigmoid gives a few units of its last place: networks are compared before it."""
    body = """h = Conv <pads = [1,1,1,1]> (x, w) n = BatchNormalization (h, g, b, m, v) y0 = Conv (n, w2)
              c = Constant <value = float {-15.0}> () s = Add (y0, c) y = Sigmoid (s)"""
    constants = "float[4,3,3,3] w, float[4] g, float[4] b, float[4] m, float[4] v = {1, 1, 1, 1}, float[2,4,1,1] w2"
    proto = net("(float[1, 3, 8, 8] x) => (float[1, 2, 8, 8] y)", constants, body)
    feeds = normal_feeds(analysed(proto), 4, 0)
    prepared = prepare(proto, Path("m.onnx"), feeds).proto
    outputs = zip(run(proto, feeds), run(prepared, feeds), strict=True)
    assert max(relative_difference(before[0], after[0]) for before, after in outputs) > MAX_FLOAT_ERROR
    monkeypatch.setattr(preparation, "_name_nodes", scaled)
    with pytest.raises(ModelError, match="its outputs differ by"):
        prepare(proto, Path("m.onnx"), feeds)


@pytest.mark.parametrize("opset", [11, 17])
@pytest.mark.parametrize("domains", [["", ""], ["ai.onnx"], ["ai.onnx", ""]])
def test_domains_that_are_imported_in_other_ways(tmp_path: Path, domains: list[str], opset: int) -> None:
    body = "h = Conv <pads = [1,1,1,1]> (x, w) r = Relu (h) y = Conv (r, v)"
    proto = net(
        "(float[1,3,8,8] x) => (float[1,2,8,8] y)", "float[4,3,3,3] w, float[2,4,1,1] v", body, opset=opset, ir=6
    )
    del proto.opset_import[:]
    proto.opset_import.extend(onnx.helper.make_opsetid(domain, opset) for domain in domains)
    saved(proto, tmp_path / "m.onnx")
    np.savez(tmp_path / "x.npz", **samples_for(proto))
    assert int8_row(tmp_path, "--no-measure")["kept"]


@pytest.mark.parametrize("mode", ["linear", "nearest"])
@pytest.mark.parametrize(
    ("opset", "resize"),
    [(7, "Upsample <mode = 'M', scales = [1.0, 1.0, 2.0, 2.0]> (h)"), (9, "Upsample <mode = 'M'> (h, s)")]
    + [(10, f"Resize <mode = 'M'> (h, {scales})") for scales in "st"],
)
def test_a_resize_that_is_raised_keeps_its_positions(opset: int, resize: str, mode: str) -> None:
    constants = "float[3,2,1,1] w, float[4] s = {1, 1, 2, 2}, float[4] t = {1, 1, 0.4, 0.4}"
    body = f"h = Conv (x, w) y = {resize}".replace("'M'", f'"{mode}"')
    proto = net("(float[1,2,9,9] x) => (float[1,3,H,W] y)", constants, body, opset=opset, ir=4)
    feeds = normal_feeds(analysed(proto), 2)
    raised = prepare(proto, Path("m.onnx"), feeds).proto
    assert raised.opset_import[0].version == LEAST_OPSET
    for old, new in zip(run(proto, feeds), run(raised, feeds), strict=True):
        np.testing.assert_allclose(new[0], old[0], rtol=1e-5, atol=1e-6)


def test_a_product_and_a_sum_become_one_layer() -> None:
    constants = "float[8,5] w1, float[5] b1, float[5,4] w2, float[1,4] b2, float[4,3] w3, float[3] b3"
    body = "a = MatMul (x, w1) b = Add (a, b1) r = Relu (b) c = MatMul (r, w2) d = Add (b2, c) s = Relu (d)"
    proto = net(
        "(float[N,8] x) => (float[N,3] y)", constants, f"{body} e = MatMul (s, w3) f = Add (e, b3) y = Mul (f, e)"
    )
    prepared = prepare(proto, Path("m.onnx"), normal_feeds(analysed(proto), 2)).proto
    assert [node.op_type for node in prepared.graph.node] == ["Gemm", "Relu", "Gemm", "Relu", "MatMul", "Add", "Mul"]
    assert [len(node.input) for node in prepared.graph.node if node.op_type == "Gemm"] == [3, 3]


@pytest.mark.parametrize("shape", ["N,7,8", "2,3,7,8"])
def test_products_of_more_axes_stay(shape: str) -> None:
    constants, body = "float[8,5] w, float[5] b", "a = MatMul (x, w) y = Add (a, b)"
    proto = net(f"(float[{shape}] x) => (float[{shape[:-1]}5] y)", constants, body)
    prepared = prepare(proto, Path("m.onnx"), normal_feeds(analysed(proto), 2)).proto
    assert [node.op_type for node in prepared.graph.node] == ["MatMul", "Add"]


def test_biases_that_layers_share_become_their_own() -> None:
    body = "h = Conv (x, w1, b) r = Relu (h) y = Conv (r, w2, b)"
    proto = net("(float[1,4,5,5] x) => (float[1,4,5,5] y)", "float[4,4,1,1] w1, float[4,4,1,1] w2, float[4] b", body)
    feeds = normal_feeds(analysed(proto), 2)
    prepared = prepare(proto, Path("m.onnx"), feeds)
    biases = [node.input[2] for node in prepared.proto.graph.node if node.op_type == "Conv"]
    assert len(set(biases)) == 2 and not any(layer.reason for layer in weighted_layers(prepared.proto))


@pytest.mark.parametrize("end", ["scale", "zero_point", "quantized", "QuantizeLinear_Output"])
def test_names_of_the_quantiser_are_taken_by_none(tmp_path: Path, end: str) -> None:
    body = f"a = Mul (x, x_{end}) h = Conv (a, w1) h_{end} = Relu (h) y = Conv (h_{end}, w2)"
    proto = net(
        "(float[1,4,9,9] x) => (float[1,4,9,9] y)", f"float[4,1,1] x_{end}, float[4,4,1,1] w1, float[4,4,1,1] w2", body
    )
    saved(proto, tmp_path / "m.onnx")
    np.savez(tmp_path / "x.npz", **samples_for(proto))
    assert int8_row(tmp_path)["kept"]
    written = onnx.load(tmp_path / "o.onnx")
    onnx.checker.check_model(written, full_check=True)
    names = [name for node in written.graph.node for name in node.output]
    assert len(set(names)) == len(names) and f"h_{end}" not in names


def test_inputs_with_names_of_the_quantiser_are_refused() -> None:
    proto = net("(float[1,4] x, float[1,4] x_scale) => (float[1,4] y)", "", "y = Mul (x, x_scale)")
    with pytest.raises(ModelError, match="'x_scale' is a name that onnxruntime's quantiser makes of 'x'; rename one"):
        prepare(proto, Path("m.onnx"), normal_feeds(analysed(proto), 1))


def test_integers_begin_and_end_with_layers() -> None:
    """Heads of a detector, joined: their numbers have scales of their own, and no layer reads them."""
    proto = net(
        "(float[1,3,8,8] x) => (float[1,6,3,4] y)",
        "float[4,3,3,3] a, float[4,4,3,3] b, float[3,4,1,1] c, float[3,4,1,1] d",
        """z = Constant <value = int64[1] {0}> () e = Constant <value = int64[1] {7}> ()
           t = Constant <value = int64[1] {2}> () s = Slice (x, z, e, t)
           h = Conv <pads = [1,1,1,1]> (s, a) r = Relu (h) p = MaxPool <kernel_shape = [2,2], strides = [2,2]> (r)
           m = Conv <pads = [1,1,1,1]> (p, b) j = Add (m, p) boxes = Conv (j, c)
           k = Conv (j, d) bound = Relu (k) scores = Sigmoid (bound) y = Concat <axis = 1> (boxes, scores)""",
    )
    prepared = prepare(proto, Path("m.onnx"), normal_feeds(analysed(proto), 2)).proto
    carriers = carriers_between(prepared, {layer.name for layer in weighted_layers(prepared)})
    operators = {node.name: node.op_type for node in prepared.graph.node}
    assert [operators[name] for name in carriers] == ["Relu", "MaxPool", "Add", "Relu"]

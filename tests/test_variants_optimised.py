"""Graphs that onnxruntime has saved after its own optimisations, with the operators that it fuses."""

from __future__ import annotations

from pathlib import Path

import onnx
import onnxruntime as ort
import pytest

from leanonnx.errors import BudgetUnreachable
from leanonnx.rules import advice
from tests.helpers import saved
from tests.test_variants_attention import fused_by_split
from tests.test_variants_numbers import cnn
from tests.test_variants_quantised import quantised
from tests.variants import assert_pins, checked, compress, kernels, network

NORM = {"it takes mean and variance over the channels": advice.PRUNE_BESIDE_STREAM}
PRODUCT = {"it multiplies two computed tensors over their channels": advice.NO_EXACT_FORM}


def transformer() -> onnx.ModelProto:
    """Gelu as exporters decompose it, residual and normalisation, a scaled product: what 'extended' fuses."""
    return network(
        "(float[N, 6, 16] x) => (float[N, 6, 4] y)",
        """float[16, 24] w0, float[24] b0, float[24] g1, float[24] h1, float[24, 48] w1, float[48] b1, float[48, 24] w2,
        float[24] b2, float[24] g2, float[24] h2, float[24, 4] w3, float root = {1.4142135}, float one = {1.0},
        float half = {0.5}, float[24, 24] wq, float[24, 24] wk, float by = {0.25}""",
        """e0 = MatMul (x, w0) e = Add (e0, b0) n = LayerNormalization (e, g1, h1)
        u0 = MatMul (n, w1) u = Add (u0, b1) d = Div (u, root) f = Erf (d) a = Add (f, one) m = Mul (u, a)
        g = Mul (m, half) v0 = MatMul (g, w2) v = Add (v0, b2) r = Add (v, e) k = LayerNormalization (r, g2, h2)
        q0 = MatMul (k, wq) k0 = MatMul (k, wk) kt = Transpose <perm = [0, 2, 1]> (k0) s0 = MatMul (q0, kt)
        s = Mul (s0, by) p = Softmax (s) o = MatMul (p, k) y = MatMul (o, w3)""",
    )


def dense() -> onnx.ModelProto:
    """Layers of Gemm with activations, alone and decomposed."""
    return network(
        "(float[N, 20] x) => (float[N, 4] y)",
        """float[32, 20] w1, float[32] b1, float[24, 32] w2, float[24] b2, float[16, 24] w3, float[4, 16] w4,
        float root = {1.4142135}, float one = {1.0}, float half = {0.5}, float slope = {1.702}""",
        """a = Gemm <transB = 1> (x, w1, b1) b = Relu (a) c = Gemm <transB = 1> (b, w2, b2)
        d0 = Div (c, root) d1 = Erf (d0) d2 = Add (d1, one) d3 = Mul (c, d2) d = Mul (d3, half)
        e = Gemm <transB = 1> (d, w3) g0 = Mul (e, slope) g1 = Sigmoid (g0) g = Mul (e, g1) y = Gemm <transB = 1> (g,
        w4)""",
    )


def optimised(proto: onnx.ModelProto, folder: Path, level: str) -> onnx.ModelProto:
    """The model that onnxruntime saves at an optimisation level."""
    options = ort.SessionOptions()
    options.graph_optimization_level = getattr(ort.GraphOptimizationLevel, f"ORT_ENABLE_{level}")
    options.optimized_model_filepath = str(folder / "optimised.onnx")
    options.log_severity_level = 4
    ort.InferenceSession(str(saved(proto, folder / "plain.onnx")), options, providers=["CPUExecutionProvider"])
    return onnx.load(folder / "optimised.onnx")


MODELS = {
    "cnn": (cnn, {}, {"FusedConv"}),
    "dense": (dense, {}, {"FusedGemm", "Gelu", "QuickGelu"}),
    "transformer": (transformer, NORM | PRODUCT, {"BiasGelu", "FusedMatMul", "SkipLayerNormalization"}),
    "attention": (fused_by_split, NORM, {"FusedMatMul"}),
}
"""Model name → its builder, its pins, and its operators after 'extended' optimisation."""


@pytest.mark.parametrize("level", ["BASIC", "EXTENDED"])
@pytest.mark.parametrize("name", MODELS)
def test_optimised(name: str, level: str, tmp_path: Path) -> None:
    make, pins, fused = MODELS[name]
    proto = optimised(make(), tmp_path, level)
    assert (fused <= {node.op_type for node in proto.graph.node}) == (level == "EXTENDED")
    done = checked(proto, tmp_path, [{"N": 1}, {"N": 2}], keep=0.7)
    assert_pins(done, pins)
    assert done.result.before.kernels == kernels(make())


@pytest.mark.parametrize("level", ["BASIC", "EXTENDED"])
def test_optimised_integers(level: str, tmp_path: Path) -> None:
    proto = optimised(quantised(tmp_path, "QDQ", per_channel=True), tmp_path, level)
    fused = "QLinearConv" in {node.op_type for node in proto.graph.node}
    assert fused == (level == "EXTENDED")
    done = checked(proto, tmp_path, [{"N": 2}], unit="macs", keep=0.7)
    assert_pins(done, {"a quantised Gemm is not pruned": advice.COMPRESS_FLOAT} if fused else {})


def test_layout_of_one_machine_is_refused(tmp_path: Path) -> None:
    """Level 'all' stores channels in blocks that suit the machine which saved the file."""
    proto = optimised(cnn(), tmp_path, "ALL")
    assert "com.microsoft.nchwc" in {node.domain for node in proto.graph.node}
    with pytest.raises(BudgetUnreachable, match=r"of domain 'com.microsoft.nchwc'.*'basic'"):
        compress(proto, tmp_path)

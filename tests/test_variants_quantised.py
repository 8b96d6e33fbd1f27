"""Integers of 8 and 4 bits: weights per tensor, channel and block, integer operators, onnxruntime's quantisers."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from onnxruntime import quantization

from leanonnx.errors import BudgetUnreachable, ProofFailed
from leanonnx.rules import advice, convolution
from leanonnx.rules.call import Call, Effect
from leanonnx.rules.table import DEFAULT_RULES
from tests.helpers import saved
from tests.test_variants_numbers import cnn
from tests.variants import Array, assert_pins, checked, compress, given, network

MICROSOFT = ', "com.microsoft" : 1'


def int4() -> onnx.ModelProto:
    """A dense layer of 4-bit weights [24, 16], with one scale per output channel."""
    proto = network(
        "(float[N, 3, 8, 8] x) => (float[N, 5] y)",
        "float[16, 3, 3, 3] w1, float[16] b1, float[12, 24] w3, float[5, 12] w4",
        """a = Conv <pads = [1, 1, 1, 1]> (x, w1, b1) r = Relu (a) p = GlobalAveragePool (r) f = Flatten (p)
        wd = DequantizeLinear <axis = 0> (wq, ws, wz) d = Gemm <transB = 1> (f, wd) e = Relu (d)
        g = Gemm <transB = 1> (e, w3) h = Relu (g) y = Gemm <transB = 1> (h, w4)""",
        21,
    )
    rng = np.random.default_rng(0)
    for name, data in (("wq", rng.integers(-8, 8, (24, 16))), ("wz", rng.integers(-2, 3, 24))):
        values = data.reshape(-1).tolist()
        proto.graph.initializer.append(helper.make_tensor(name, TensorProto.INT4, data.shape, values))
    return given(proto, ws=rng.uniform(0.05, 0.15, 24).astype(np.float32))


def test_four_bits_per_channel(tmp_path: Path) -> None:
    done = checked(int4(), tmp_path, [{"N": 2}])
    assert_pins(done, {})
    out = done.shapes["wq"][0]
    assert (done.shapes["ws"], done.shapes["wz"]) == ([out], [out])
    assert out < 24
    assert next(t.data_type for t in done.target.graph.initializer if t.name == "wq") == TensorProto.INT4


def integers() -> onnx.ModelProto:
    """QLinearConv per tensor and per channel, QLinearAdd, QLinearConcat, QLinearGlobalAveragePool, QLinearMatMul."""
    proto = network(
        "(float[N, 3, 8, 8] x) => (float[N, 5] y)",
        "float xs = {0.03}, uint8 xz = {128}, float as = {0.05}, uint8 az = {100}, int8 zero = {0}, float ws1 = {0.01}",
        """x0 = QuantizeLinear (x, xs, xz)
        a = QLinearConv <pads = [1, 1, 1, 1]> (x0, xs, xz, w1, ws1, zero, as, az, b1)
        b = QLinearConv <pads = [1, 1, 1, 1]> (a, as, az, w2, ws2, wz2, as, az)
        c = com.microsoft.QLinearAdd (a, as, az, b, as, az, as, az)
        d = com.microsoft.QLinearConcat <axis = 1> (as, az, a, as, az, c, as, az)
        e = QLinearConv <pads = [1, 1, 1, 1]> (d, as, az, w3, ws1, zero, as, az)
        p = com.microsoft.QLinearGlobalAveragePool <channels_last = 0> (e, as, az, as, az) f = Flatten (p)
        g = QLinearMatMul (f, as, az, w4, ws4, wz4, as, az) y = DequantizeLinear (g, as, az)""",
        domains=MICROSOFT,
    )
    rng = np.random.default_rng(0)
    return given(
        proto,
        **integer_weights(rng, w1=(8, 3, 3, 3), w2=(8, 8, 3, 3), w3=(12, 16, 3, 3), w4=(12, 5)),
        b1=rng.integers(-500, 500, 8).astype(np.int32),
        ws2=rng.uniform(0.005, 0.02, 8).astype(np.float32),
        wz2=rng.integers(-3, 4, 8).astype(np.int8),
        ws4=rng.uniform(0.005, 0.02, 5).astype(np.float32),
        wz4=rng.integers(-3, 4, 5).astype(np.int8),
    )


def integer_products() -> onnx.ModelProto:
    """ConvInteger and MatMulInteger with zero points, scaled to floats and back in between."""
    proto = network(
        "(uint8[N, 3, 8, 8] x) => (float[N, 5] y)",
        "float s2 = {0.02}, float as = {0.05}, uint8 az = {128}, float[5] s3",
        """a0 = ConvInteger <pads = [1, 1, 1, 1]> (x, w1, az, z1) a1 = Cast <to = 1> (a0) a2 = Mul (a1, s1)
        a = Relu (a2) q = QuantizeLinear (a, as, az) b0 = ConvInteger <pads = [1, 1, 1, 1]> (q, w2, az, z2) b1 = Cast
        <to = 1> (b0)
        b2 = Mul (b1, s2) b = Relu (b2) p = GlobalAveragePool (b) f = Flatten (p) fq = QuantizeLinear (f, as, az)
        g0 = MatMulInteger (fq, w3, az, z3) g1 = Cast <to = 1> (g0) y = Mul (g1, s3)""",
    )
    rng = np.random.default_rng(0)
    zeros = {name: np.array(value, np.int8) for name, value in (("z1", 2), ("z2", -1), ("z3", 0))}
    weights = integer_weights(rng, w1=(12, 3, 3, 3), w2=(10, 12, 3, 3), w3=(10, 5))
    return given(proto, **weights, **zeros, s1=rng.uniform(0.001, 0.002, (12, 1, 1)).astype(np.float32))


def integer_weights(rng: np.random.Generator, **shapes: tuple[int, ...]) -> dict[str, Array]:
    return {name: rng.integers(-60, 60, shape).astype(np.int8) for name, shape in shapes.items()}


@pytest.mark.parametrize("make", [integers, integer_products])
def test_integer_operators(make: object, tmp_path: Path) -> None:
    done = checked(make(), tmp_path, [{"N": 2}], unit="macs")
    assert_pins(done, {})


def rolled_zero_points(call: Call) -> Effect:
    """A wrong rule: scales and zero points per channel are sliced a channel off."""
    effect = convolution.qlinear_conv(call)
    weight, *rest = effect.slices
    return replace(effect, slices=(weight, *(replace(s, factors=(np.roll(s.factors[0], 1),)) for s in rest)))


def test_wrong_surgery_on_integers_is_caught(tmp_path: Path) -> None:
    with pytest.raises(ProofFailed, match="differs from the masked original"):
        compress(integers(), tmp_path, unit="macs", rules={**DEFAULT_RULES, ("", "QLinearConv"): rolled_zero_points})


class Images(quantization.CalibrationDataReader):
    """A few random images."""

    def __init__(self) -> None:
        rng = np.random.default_rng(0)
        self.feeds = iter([{"x": rng.standard_normal((1, 3, 8, 8)).astype(np.float32)} for _ in range(4)])

    def get_next(self) -> dict[str, Array] | None:
        return next(self.feeds, None)


def quantised(folder: Path, form: str, per_channel: bool, kind: str = "QInt8") -> onnx.ModelProto:
    """The float network quantised by onnxruntime's static quantiser."""
    target = folder / "int8.onnx"
    quantization.quantize_static(
        saved(cnn(), folder / "float.onnx"),
        target,
        Images(),
        quant_format=quantization.QuantFormat[form],
        per_channel=per_channel,
        weight_type=quantization.QuantType[kind],
        activation_type=quantization.QuantType.QUInt8,
    )
    return onnx.load(target)


@pytest.mark.parametrize("kind", ["QInt8", "QUInt8"])
@pytest.mark.parametrize("per_channel", [False, True])
def test_static_with_quantise_nodes(per_channel: bool, kind: str, tmp_path: Path) -> None:
    done = checked(quantised(tmp_path, "QDQ", per_channel, kind), tmp_path, [{"N": 2}])
    assert_pins(done, {})
    assert {t.data_type for t in done.target.graph.initializer} & {TensorProto.INT8, TensorProto.UINT8}


@pytest.mark.parametrize("per_channel", [False, True])
def test_static_with_integer_operators(per_channel: bool, tmp_path: Path) -> None:
    proto = quantised(tmp_path, "QOperator", per_channel)
    assert {"QLinearConv", "QLinearAdd", "QLinearMul", "QGemm"} <= {node.op_type for node in proto.graph.node}
    done = checked(proto, tmp_path, [{"N": 2}], unit="macs")
    assert_pins(done, {"a quantised Gemm is not pruned": advice.COMPRESS_FLOAT})


def test_dynamic_is_refused_with_advice(tmp_path: Path) -> None:
    """A dynamically quantised tensor has one scale for all its channels: none can be removed."""
    quantization.quantize_dynamic(saved(cnn(), tmp_path / "float.onnx"), tmp_path / "int8.onnx")
    proto = onnx.load(tmp_path / "int8.onnx")
    with pytest.raises(BudgetUnreachable, match=f"its scale is taken over all channels.*{advice.COMPRESS_FLOAT}"):
        compress(proto, tmp_path, unit="macs")
    assert not (tmp_path / "out.onnx").exists()

"""The same network in every number format: floats of 64, 32 and 16 bits, bfloat16, mixed; wrong surgery is caught."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, numpy_helper

from leanonnx.commands.compress import proving
from leanonnx.errors import ProofFailed
from leanonnx.proof.proof import Proof
from leanonnx.rules import convolution, normalization, pointwise
from leanonnx.rules.call import Call, Effect, Rule
from leanonnx.rules.table import DEFAULT_RULES
from tests.helpers import called, saved
from tests.variants import assert_pins, checked, compress, distance, given, masked, network, random_feed, run

FLOATS = {"float": 17, "float16": 17, "double": 17, "bfloat16": 22}


def cnn(kind: str = "float", opset: int = 17) -> onnx.ModelProto:
    """Convolutions, batch normalisation, a residual, a squeeze-excite gate and a dense layer."""
    proto = network(
        f"({kind}[N, 3, 8, 8] x) => ({kind}[N, 5] y)",
        f"""{kind}[16, 3, 3, 3] w1, {kind}[16] b1, {kind}[16] g, {kind}[16] h, {kind}[16] m, {kind}[16, 16, 3, 3] w2,
        {kind}[8, 16, 1, 1] s1, {kind}[16, 8, 1, 1] s2, {kind}[24, 16, 3, 3] w3, {kind}[5, 24] w4, {kind}[5] b4""",
        """a = Conv <pads = [1, 1, 1, 1]> (x, w1, b1) n = BatchNormalization (a, g, h, m, v) r = Relu (n)
        b = Conv <pads = [1, 1, 1, 1]> (r, w2) t = Add (b, r) p0 = GlobalAveragePool (t) q0 = Conv (p0, s1)
        q1 = Relu (q0) q2 = Conv (q1, s2) q3 = Sigmoid (q2) u = Mul (t, q3)
        c = Conv <pads = [1, 1, 1, 1], strides = [2, 2]> (u, w3) d = Relu (c) p = GlobalAveragePool (d)
        f = Flatten (p) y = Gemm <transB = 1> (f, w4, b4)""",
        opset,
    )
    dtype = numpy_helper.to_array(proto.graph.initializer[0]).dtype
    return given(proto, v=np.linspace(0.5, 1.5, 16).astype(dtype))


def widened(proto: onnx.ModelProto) -> onnx.ModelProto:
    """The same network in float32."""
    copy = onnx.ModelProto.FromString(proto.SerializeToString())
    for tensor in copy.graph.initializer:
        if tensor.data_type in (TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.DOUBLE):
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float32), tensor.name))
    for value in (*copy.graph.input, *copy.graph.output):
        value.type.tensor_type.elem_type = TensorProto.FLOAT
    return copy


@pytest.mark.parametrize("kind", FLOATS)
def test_float_formats(kind: str, tmp_path: Path) -> None:
    """The proof's bound is that of float32 for all, since half precision is not accurate below a percent."""
    proto = cnn(kind, FLOATS[kind])
    done = compress(proto, tmp_path)
    assert_pins(done, {})
    assert done.result.proof.bound <= 1e-4
    reference, target = widened(masked(proto, done.tensors)), widened(done.target)
    feed = random_feed(reference, {"N": 2})
    assert distance(run(reference, feed)[0], run(target, feed)[0]) < 1e-5


@pytest.mark.parametrize("kind", FLOATS)
def test_all_formats_give_the_same_widths_within_a_channel(kind: str, tmp_path: Path) -> None:
    """Rounding of the weights may move a channel in the ranking, but not more."""
    found = [compress(cnn(k, FLOATS[k]), tmp_path).shapes for k in ("float", kind)]
    widths = np.array([[shapes[name][0] for name in ("w1", "w2", "w3")] for shapes in found])
    assert np.abs(widths[0] - widths[1]).max() <= 1


@pytest.mark.parametrize("kind", ["float16", "bfloat16"])
def test_command_line(kind: str, tmp_path: Path) -> None:
    source = saved(cnn(kind, FLOATS[kind]), tmp_path / "in.onnx")
    done = called("compress", source, tmp_path / "out.onnx", "--macs", 0.5, "--json")
    assert done.returncode == 0, done.stderr
    row = json.loads(done.stdout)
    assert row["proof"]["status"] == "passed"
    assert row["macs"]["fraction"] <= 0.5


def mixed() -> onnx.ModelProto:
    """Half precision between casts, a normalisation in float32 within, an output in each type."""
    return network(
        "(float[N, 3, 8, 8] x) => (float[N, 4, h, w] y, float16[N, 6] z)",
        """float16[16, 3, 3, 3] w1, float[16] s, float[16] o, float16[12, 16, 3, 3] w2, float[4, 12, 1, 1] w3,
        float16[6, 12] w4""",
        """xh = Cast <to = 10> (x) a = Conv <pads = [1, 1, 1, 1]> (xh, w1) af = Cast <to = 1> (a)
        n = InstanceNormalization (af, s, o) nh = Cast <to = 10> (n) r = Relu (nh)
        b = Conv <pads = [1, 1, 1, 1]> (r, w2) c = Relu (b) cf = Cast <to = 1> (c) y = Conv (cf, w3)
        p = GlobalAveragePool (c) f = Flatten (p) z = Gemm <transB = 1> (f, w4)""",
    )


def test_casts_within(tmp_path: Path) -> None:
    done = checked(mixed(), tmp_path, [{"N": 2}], bound=5e-3)
    assert_pins(done, {})
    assert done.result.proof.bound <= 1e-4


def rolled_statistics(call: Call) -> Effect:
    """A wrong rule: one vector of a BatchNormalization is sliced a channel off."""
    effect = normalization.batch_normalization(call)
    first, *rest = effect.slices
    return replace(effect, slices=(replace(first, factors=(np.roll(first.factors[0], 1),)), *rest))


def rolled_bias(call: Call) -> Effect:
    """A wrong rule: the bias of a Conv is sliced a channel off."""
    effect = convolution.conv(call)
    weight, *rest = effect.slices
    rolled = (replace(s, factors=(np.roll(s.factors[0], 1),)) for s in rest)
    return replace(effect, slices=(weight, *rolled))


def rolled_addition(call: Call) -> Effect:
    """A wrong rule: the channels of a sum are tied to their neighbours."""
    effect = pointwise.elementwise(call)
    return replace(effect, outputs=(np.roll(effect.outputs[0], 1, 1),))


WRONG: dict[str, Rule] = {"BatchNormalization": rolled_statistics, "Conv": rolled_bias, "Add": rolled_addition}


@pytest.mark.parametrize("op", WRONG)
@pytest.mark.parametrize("kind", FLOATS)
def test_wrong_surgery_is_caught(kind: str, op: str, tmp_path: Path) -> None:
    with pytest.raises(ProofFailed, match="differs from the masked original"):
        compress(cnn(kind, FLOATS[kind]), tmp_path, rules={**DEFAULT_RULES, ("", op): WRONG[op]})
    assert not (tmp_path / "out.onnx").exists()


@pytest.mark.parametrize("op", WRONG)
def test_the_reference_of_these_tests_catches_it_too(op: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        proving,
        "compare_with_original",
        lambda *_: Proof(status="passed", max_relative_error=0.0, bound=1e-4, inputs=1, outputs={}),
    )
    with pytest.raises(AssertionError, match="differs from the reference"):
        checked(cnn(), tmp_path, [{"N": 2}], rules={**DEFAULT_RULES, ("", op): WRONG[op]})

"""Stand-ins for integer operators: the sums of the integers themselves, whatever kernels the processor has."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from leanonnx.graph.exact_integers import with_exact_sums
from leanonnx.graph.model import load
from leanonnx.operators.integer_forms import INTEGER_FORMS
from leanonnx.quantization.formats import sums_saturate
from leanonnx.quantization.saturation import fused_difference
from leanonnx.runtime import sessions
from leanonnx.runtime.sessions import run
from tests.calibrated import Array
from tests.helpers import saved

RNG = np.random.default_rng(3)
DATA = RNG.integers(0, 256, (1, 6, 5, 5), dtype=np.uint8)
ROWS = RNG.integers(0, 256, (4, 6), dtype=np.uint8)


def holding(interface: str, body: str, opset: int = 17, **values: Array | np.generic) -> onnx.ModelProto:
    """A model from its parts in ONNX text, with constants by name."""
    proto = onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["" : {opset}]> m {interface} {{ {body} }}')
    proto.graph.initializer.extend(numpy_helper.from_array(np.asarray(value), name) for name, value in values.items())
    return proto


def integer_conv(
    per_channel: bool, zero: int, kind: type[np.generic] = np.int8, opset: int = 17
) -> tuple[onnx.ModelProto, Array]:
    """A QLinearConv with padding and a bias, and the numbers that it outputs for ``DATA``."""
    count, shape = (4, (4,)) if per_channel else (1, ())
    limits = np.iinfo(np.dtype(kind).name)
    weight = RNG.integers(limits.min, limits.max + 1, (4, 3, 3, 3)).astype(kind)
    scales = RNG.uniform(0.01, 0.02, count).astype(np.float32)
    zeros = RNG.integers(0, 5, count).astype(kind)
    bias = RNG.integers(-500, 500, 4).astype(np.int32)
    centred = np.pad(DATA.astype(np.int64) - zero, ((0, 0), (0, 0), (1, 1), (1, 1)))
    windows = np.lib.stride_tricks.sliding_window_view(centred, (3, 3), (2, 3)).reshape(2, 3, 5, 5, 3, 3)
    kernels = (weight.astype(np.int64) - zeros.astype(np.int64).reshape(-1, 1, 1, 1)).reshape(2, 2, 3, 3, 3)
    sums = np.einsum("gcxyuv,gocuv->goxy", windows, kernels).reshape(4, 5, 5) + bias.reshape(4, 1, 1)
    steps = np.rint(sums * (0.03 * scales.astype(np.float64) / 2.5).reshape(-1, 1, 1)) + 120
    proto = holding(
        "(uint8[1,6,5,5] x) => (uint8[1,4,5,5] y)",
        "y = QLinearConv <pads = [1, 1, 1, 1], group = 2> (x, s, z, w, t, u, o, p, b)",
        opset,
        w=weight,
        s=np.float32(0.03),
        z=np.uint8(zero),
        t=scales.reshape(shape),
        u=zeros.reshape(shape),
        o=np.float32(2.5),
        p=np.uint8(120),
        b=bias,
    )
    return proto, np.clip(steps, 0, 255).astype(np.uint8)[None]


def integer_product(operator: str) -> tuple[onnx.ModelProto, Array]:
    """MatMulInteger or QLinearMatMul with numbers per column, and what it outputs for ``ROWS``."""
    weight, zeros = RNG.integers(-128, 128, (6, 3)).astype(np.int8), np.array([0, 3, -2], np.int8)
    sums = (ROWS.astype(np.int64) - 7) @ (weight.astype(np.int64) - zeros)
    values = {"w": weight, "z": np.uint8(7), "u": zeros}
    if operator == "MatMulInteger":
        proto = holding("(uint8[4,6] x) => (int32[4,3] y)", "y = MatMulInteger (x, w, z, u)", **values)
        return proto, sums.astype(np.int32)
    scales = np.array([0.01, 0.02, 0.015], np.float32)
    values |= {"s": np.float32(0.1), "t": scales, "o": np.float32(0.7), "p": np.uint8(100)}
    proto = holding("(uint8[4,6] x) => (uint8[4,3] y)", "y = QLinearMatMul (x, s, z, w, t, u, o, p)", **values)
    return proto, np.clip(np.rint(sums * (0.1 * scales / 0.7)) + 100, 0, 255).astype(np.uint8)


def integer_sums() -> tuple[onnx.ModelProto, Array]:
    """A ConvInteger without zero points whose pairs of products do not fit into 16 bits."""
    weight = np.full((2, 6, 1, 1), 127, np.int8)
    weight[1] = -128
    proto = holding("(uint8[1,6,5,5] x) => (int32[1,2,5,5] y)", "y = ConvInteger (x, w)", w=weight)
    return proto, np.einsum("bchw,ocxy->bohw", DATA.astype(np.int32), weight.astype(np.int32))


def off_by(computed: Array, wanted: Array) -> int:
    assert (computed.dtype, computed.shape) == (wanted.dtype, wanted.shape)
    return int(np.abs(computed.astype(np.int64) - wanted.astype(np.int64)).max())


@pytest.mark.parametrize(("kind", "opset"), [(np.int8, 10), (np.int8, 21), (np.uint8, 17)])
@pytest.mark.parametrize("zero", [0, 9])
@pytest.mark.parametrize("per_channel", [True, False])
def test_convolutions_are_summed_exactly(per_channel: bool, zero: int, kind: type[np.generic], opset: int) -> None:
    proto, wanted = integer_conv(per_channel, zero, kind, opset)
    assert len(np.unique(wanted)) > 1, "the outputs tell something"
    assert off_by(run(proto, [{"x": DATA}], optimise=False)[0][0], wanted) <= 1


@pytest.mark.parametrize("operator", ["MatMulInteger", "QLinearMatMul"])
def test_products_are_summed_exactly(operator: str) -> None:
    proto, wanted = integer_product(operator)
    assert off_by(run(proto, [{"x": ROWS}], optimise=False)[0][0], wanted) <= (operator == "QLinearMatMul")


def test_plain_sums_of_integers_are_exact() -> None:
    proto, wanted = integer_sums()
    assert off_by(run(proto, [{"x": DATA}], optimise=False)[0][0], wanted) == 0


@pytest.mark.parametrize("from_file", [True, False])
def test_no_integer_kernel_runs_without_optimisations(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, from_file: bool
) -> None:
    """Also where the processor's own kernels are exact, so that all processors compare the same."""
    opened: list[onnx.ModelProto] = []

    def watched(source: Any, *others: Any, **more: Any) -> Any:
        opened.append(onnx.load(source) if isinstance(source, str) else onnx.load_from_string(source))
        return session(source, *others, **more)

    session = sessions.Session
    monkeypatch.setattr(sessions, "Session", watched)
    proto, _ = integer_conv(True, 9)
    model = saved(proto, tmp_path / "m.onnx") if from_file else proto
    for optimise in (False, True):
        run(model, [{"x": DATA}], optimise)
    kinds = [{node.op_type for node in each.graph.node} & set(INTEGER_FORMS) for each in opened]
    assert kinds == [set(), {"QLinearConv"}]


def test_tensors_keep_their_names_and_weights_stay_constants() -> None:
    proto, _ = integer_conv(True, 9)
    after = with_exact_sums(proto)
    onnx.checker.check_model(after, full_check=True)
    assert list(after.graph.output) == list(proto.graph.output)
    assert list(after.graph.initializer) == list(proto.graph.initializer)


def test_what_cannot_be_stood_in_for_stays() -> None:
    computed = holding("(uint8[1,6,5,5] x, int8[2,6,1,1] w) => (int32[1,2,5,5] y)", "y = ConvInteger (x, w)")
    floats = holding("(float[1,6,5,5] x) => (float[1,6,5,5] y)", "y = Relu (x)")
    assert with_exact_sums(computed) == computed
    assert with_exact_sums(floats) is floats


@pytest.mark.skipif(not sums_saturate(), reason="the integer kernels of this processor sum exactly")
def test_the_user_is_told_of_sums_that_saturate(tmp_path: Path) -> None:
    body = "q = QuantizeLinear (x, s, z) m = MatMulInteger (q, w, z) y = Cast <to = 1> (m)"
    weight = np.full((6, 4), 127, np.int8)
    proto = holding("(float[1,6] x) => (float[1,4] y)", body, s=np.float32(1 / 255), z=np.uint8(0), w=weight)
    model = load(saved(proto, tmp_path / "m.onnx"))
    assert fused_difference(model, model.path, [{"x": np.ones((1, 6), np.float32)}]) > 0.2

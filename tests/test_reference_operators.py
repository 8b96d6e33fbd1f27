"""Operators in place of those that the reference evaluator lacks or computes wrongly: as onnxruntime computes them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

from leanonnx.commands.compress.pipeline import compress_file
from leanonnx.proof.proof import PASSED
from leanonnx.proof.reference_operators import SUBSTITUTES, reference_evaluator
from leanonnx.proof.runtimes import REFERENCE
from leanonnx.runtime.sessions import run
from leanonnx.selection.metrics import Budget
from tests.helpers import Options, build, saved

VECTORS = "float[4] scale, float[4] bias, float[4] mean, float[4] var = {1, 4, 0.25, 2}"
QUANTISED = (
    "float t = {0.5}, uint8 u = {7}, float[4] s = {0.5, 2, 1.5, 0.25}, int8[4] z = {1, -2, 3, 0}, "
    "uint8[3, 4] v = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 200, 255}, "
    "int8[3, 4] q = {1, 2, 3, 4, -5, 6, -7, 8, 9, 0, -11, 12}, "
    "int32[3, 4] i = {1, 2, 3, 4, -5, 6, -7, 8, 9, 10, -1100, 12000}"
)
WEIGHTS = "float[4, 2, 3, 2] w, float[4] b"
NEVER = 1 << 30
"""An operator set that no version reaches."""
CASES: dict[str, tuple[tuple[int, str, str, str], ...]] = {
    "DequantizeLinear": (
        (10, "3, 4", QUANTISED, "DequantizeLinear (v, t, u) y = Add (x, r)"),
        (13, "3, 4", QUANTISED, "DequantizeLinear (i, t) y = Add (x, r)"),
        (13, "3, 4", QUANTISED, "DequantizeLinear (q, s, z) y = Add (x, r)"),
        (18, "3, 4", QUANTISED, "DequantizeLinear <axis = -1> (q, s) y = Add (x, r)"),
    ),
    "BatchNormalization": tuple(
        (opset, shape, VECTORS, "BatchNormalization <epsilon = 0.01> (x, scale, bias, mean, var) y = Identity (r)")
        for opset in (7, 9, 13)
        for shape in ("3, 4, 5, 2", "2, 4, 3", "3, 4")
    ),
    "LRN": tuple(
        (opset, "2, 7, 3, 2", "", f"LRN <alpha = 0.3, beta = 0.6, bias = 1.5, size = {size}> (x) y = Identity (r)")
        for opset in (7, 13)
        for size in (1, 3, 5)
    ),
    "GlobalMaxPool": tuple(
        (13, shape, "", "GlobalMaxPool (x) y = Identity (r)") for shape in ("2, 3, 4", "2, 3, 4, 5", "2, 3, 4, 3, 2")
    ),
    "ConvTranspose": tuple(
        (13, "2, 4, 5, 6", WEIGHTS, f"ConvTranspose <group = {groups}, {more}> ({names}) y = Identity (r)")
        for groups, names in ((1, "x, w"), (2, "x, w, b"), (4, "x, w"))
        for more in ("strides = [2, 1]", "pads = [1, 0, 1, 1], dilations = [1, 2]", 'auto_pad = "SAME_UPPER"')
    ),
    **{
        op: tuple((opset, "2, 3, 4", "", f"{op} {axis} (x) y = Identity (r)") for opset in (7, 11) for axis in AXES)
        for AXES in (("", "<axis = 0>", "<axis = 1>", "<axis = 2>"),)
        for op in ("Softmax", "LogSoftmax", "Hardmax")
    },
}
"""Operator → operator set, shape of the input, constants, and the nodes."""


def model(opset: int, shape: str, constants: str, nodes: str) -> onnx.ModelProto:
    rank = shape.count(",") + 1
    return build(
        f'<ir_version: 8, opset_import: ["" : {opset}]> one (float[{shape}] x) => '
        f"(float[{', '.join('abcde'[:rank])}] y) <{constants}> {{ r = {nodes} }}"
    )


def test_every_operator_has_cases() -> None:
    until = {each.op: each.until or NEVER for each in SUBSTITUTES}
    assert until.keys() == CASES.keys()
    assert all(case[0] < until[op] for op, cases in CASES.items() for case in cases)


@pytest.mark.parametrize(("op", "case"), [(op, case) for op, cases in CASES.items() for case in cases])
def test_as_onnxruntime_computes_it(op: str, case: tuple[int, str, str, str]) -> None:
    proto = model(*case)
    feed = {"x": np.random.default_rng(0).standard_normal([int(n) for n in case[1].split(",")]).astype(np.float32)}
    ((wanted,),) = run(proto, [feed], optimise=False)
    (computed,) = reference_evaluator(proto).run(None, feed)
    assert computed.dtype == wanted.dtype
    np.testing.assert_allclose(computed, wanted, rtol=1e-5, atol=1e-5)


INTEGER_WEIGHTS = """
<ir_version: 8, opset_import: ["" : 13]>
integers (float[2, 3, 6, 6] x) => (float[2, 4, 1, 1] y)
<float s = {0.02}, float[4, 8, 3, 3] w2,
 float[8] scale, float[8] bias, float[8] mean, float[8] var = {1, 1, 2, 2, 3, 3, 4, 4}>
{
    w1 = DequantizeLinear (q1, s)
    c = Conv (x, w1)
    n = BatchNormalization (c, scale, bias, mean, var)
    r = Relu (n)
    d = Conv (r, w2)
    y = GlobalMaxPool (d)
}
"""


def test_networks_with_integer_weights_are_proven_by_the_reference(tmp_path: Path) -> None:
    proto = build(INTEGER_WEIGHTS)
    weights = np.random.default_rng(1).integers(-100, 100, (8, 3, 3, 3)).astype(np.int8)
    proto.graph.initializer.append(onnx.numpy_helper.from_array(weights, "q1"))
    options = Options(Budget("kernels", 0.5), prove_twice=True)
    result = compress_file(saved(proto, tmp_path / "in.onnx"), tmp_path / "out.onnx", options)
    assert {row.runtimes[1]: row.status for row in result.runtimes}[REFERENCE] == PASSED

"""Equalised networks compute the same, with channels of equal range."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import numpy_helper

from leanonnx.operators.facts import Trait
from leanonnx.operators.table import names_with
from leanonnx.recovery.equalise import LARGEST_EXPONENT, equalise
from tests.calibrated import Array, net

IMAGE = "(float[N,3,9,9] x) => (float[N,M,H,W] y)"
ROWS = "(float[N,7] x) => (float[N,5] y)"
A = "float[6,3,3,3] a, float[6] b"

JOINED = {
    "relu": (IMAGE, f"{A}, float[4,6,3,3] c", "h = Conv (x, a, b) r = Relu (h) y = Conv (r, c)"),
    "leaky": (IMAGE, f"{A}, float[4,6,1,1] c", "h = Conv (x, a, b) r = LeakyRelu <alpha=0.2> (h) y = Conv (r, c)"),
    "slopes": (IMAGE, f"{A}, float[6,1,1] s, float[4,6,1,1] c", "h = Conv (x, a) r = PRelu (h, s) y = Conv (r, c)"),
    "direct": (IMAGE, f"{A}, float[4,6,1,1] c", "h = Conv (x, a, b) r = Identity (h) y = Conv (r, c)"),
    "depthwise": (
        *(IMAGE, f"{A}, float[6,1,3,3] d, float[6] e, float[4,6,1,1] c"),
        "h = Conv (x, a, b) r = Relu (h) g = Conv <group=6> (r, d, e) s = Relu (g) y = Conv (s, c)",
    ),
    "multiplied": (
        *(IMAGE, f"{A}, float[12,1,3,3] d, float[12] e, float[4,12,1,1] c"),
        "h = Conv (x, a, b) r = Relu (h) g = Conv <group=6> (r, d, e) s = Relu (g) y = Conv (s, c)",
    ),
    "groups": (IMAGE, f"{A}, float[4,3,3,3] c", "h = Conv (x, a, b) r = Relu (h) y = Conv <group=2> (r, c)"),
    "transposed": (
        *(IMAGE, f"{A}, float[6,2,3,3] c, float[4] e, float[4,3,3,3] f"),
        """h = Conv (x, a, b) r = Relu (h) g = ConvTranspose <group=2, strides=[2,2]> (r, c, e) s = Relu (g)
           y = ConvTranspose (s, f)""",
    ),
    "pools": (
        *(IMAGE, f"{A}, float[4,6,1,1] c"),
        """h = Conv (x, a, b) r = Relu (h) p = MaxPool <kernel_shape=[2,2]> (r)
           q = AveragePool <kernel_shape=[2,2], pads=[1,1,1,1]> (p) y = Conv (q, c)""",
    ),
    "bias": (IMAGE, f"{A}, float[1,6,1,1] e, float[4,6,1,1] c", "h = Conv (x, a) g = Add (e, h) y = Conv (g, c)"),
    "flat": (
        *("(float[N,3,9,9] x) => (float[N,5] y)", f"{A}, float[5,294] c, float[5] d"),
        "h = Conv (x, a, b) r = Relu (h) f = Flatten (r) y = Gemm <transB=1> (f, c, d)",
    ),
    "head": (
        *("(float[N,3,9,9] x) => (float[N,5] y)", f"{A}, float[6,5] c"),
        "h = Conv (x, a, b) r = Relu (h) p = GlobalAveragePool (r) f = Flatten (p) y = MatMul (f, c)",
    ),
    "gemm": (
        *(ROWS, "float[7,6] a, float[1,6] b, float[5,6] c"),
        "h = Gemm <alpha=0.5, beta=2.0> (x, a, b) r = Relu (h) y = Gemm <transB=1> (r, c)",
    ),
    "matmul": (
        *("(float[N,4,7] x) => (float[N,4,5] y)", "float[7,6] a, float[6] b, float[6,5] c"),
        "h = MatMul (x, a) g = Add (h, b) r = Relu (g) y = MatMul (r, c)",
    ),
}
APART = {
    "clip": (
        *(IMAGE, f"{A}, float l, float u, float[4,6,1,1] c"),
        "h = Conv (x, a, b) r = Clip (h, l, u) y = Conv (r, c)",
    ),
    "sigmoid": (IMAGE, f"{A}, float[4,6,1,1] c", "h = Conv (x, a, b) r = Sigmoid (h) y = Conv (r, c)"),
    "two readers": (IMAGE, f"{A}, float[6,6,1,1] c", "h = Conv (x, a, b) g = Conv (h, c) y = Add (g, h)"),
    "read twice": (IMAGE, f"{A}, float[4,6,1,1] c", "h = Conv (x, a, b) r = Mul (h, h) y = Conv (r, c)"),
    "output": (
        *("(float[N,3,9,9] x) => (float[N,M,H,W] y, float[N,6,7,7] h)", f"{A}, float[4,6,1,1] c"),
        "h = Conv (x, a, b) y = Conv (h, c)",
    ),
    "shared weight": (
        *(IMAGE, "float[3,3,3,3] a"),
        "h = Conv (x, a) r = Relu (h) y = Conv (r, a)",
    ),
    "shared bias": (IMAGE, "float[6,3,3,3] a, float[6] b, float[6,6,1,1] c", "h = Conv (x, a, b) y = Conv (h, c, b)"),
    "computed weight": (
        *(IMAGE, f"{A}, float[4,6,1,1] c"),
        "h = Conv (x, a, b) k = Abs (c) y = Conv (h, k)",
    ),
    "one number": (IMAGE, f"{A}, float[1] e, float[4,6,1,1] c", "h = Conv (x, a) g = Add (h, e) y = Conv (g, c)"),
    "map added": (IMAGE, f"{A}, float[6,7,7] e, float[4,6,1,1] c", "h = Conv (x, a) g = Add (h, e) y = Conv (g, c)"),
    "last axis": (
        "(float[N,3,9,9] x) => (float[N,M,H,W] y)",
        f"{A}, float[7,5] c",
        "h = Conv (x, a, b) y = MatMul (h, c)",
    ),
    "pool over rows": (
        *("(float[N,4,8,7] x) => (float[N,M,H,W] y)", "float[7,6] a, float[6,5] c"),
        "h = MatMul (x, a) p = MaxPool <kernel_shape=[3,3], pads=[1,1,1,1]> (h) y = MatMul (p, c)",
    ),
    "transposed data": (
        *("(float[6,7] x) => (float[M,H] y)", "float[7,6] a, float[6,5] c"),
        "h = MatMul (x, a) y = Gemm <transA=1> (h, c)",
    ),
}


def spread(parts: tuple[str, str, str], seed: int = 0) -> onnx.ModelProto:
    """A network whose first layer has outputs of very different sizes."""
    proto = net(*parts, seed=seed)
    rng = np.random.default_rng(seed)
    for tensor in proto.graph.initializer:
        array = numpy_helper.to_array(tensor)
        kind = array.dtype
        if array.ndim >= 2:
            array = array * np.exp(2 * rng.standard_normal((array.shape[0], *[1] * (array.ndim - 1))))
        if array.ndim == 0:
            array = np.float32(-1 if tensor.name == "l" else 1)
        tensor.CopyFrom(numpy_helper.from_array(np.asarray(array, kind), tensor.name))
    return proto


def outputs(proto: onnx.ModelProto, seed: int = 5) -> list[Array]:
    session = ort.InferenceSession(proto.SerializeToString())
    rng = np.random.default_rng(seed)
    feeds = {
        one.name: rng.standard_normal([d if isinstance(d, int) else 2 for d in one.shape]).astype(np.float32)
        for one in session.get_inputs()
    }
    return session.run(None, feeds)


def constants(proto: onnx.ModelProto) -> dict[str, Array]:
    return {t.name: numpy_helper.to_array(t) for t in proto.graph.initializer}


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("name", JOINED)
def test_outputs_stay_the_same_and_constants_change(name, seed):
    proto = spread(JOINED[name], seed)
    before = proto.SerializeToString()
    new = equalise(proto)
    assert proto.SerializeToString() == before
    for old, now in zip(outputs(proto), outputs(new), strict=True):
        assert np.array_equal(old, now)
    old, now = constants(proto), constants(new)
    kept = {key for key in old if np.array_equal(old[key], now[key])}
    read = {name for node in proto.graph.node for name in node.input}
    last = proto.graph.node[-1].input
    assert kept == (old.keys() - read) | {"s", *last[2:]} & old.keys()


@pytest.mark.parametrize("name", APART)
def test_nothing_changes_where_scaling_is_not_exact(name):
    proto = spread(APART[name])
    assert outputs(proto)
    assert equalise(proto).SerializeToString() == proto.SerializeToString()


def largest(array: Array, axis: int) -> Array:
    return np.abs(array).max(tuple(k for k in range(array.ndim) if k != axis))


@pytest.mark.parametrize("name", ["relu", "leaky", "slopes", "direct", "pools", "bias"])
def test_rows_and_columns_become_equally_large(name):
    proto = spread(JOINED[name])
    old, new = constants(proto), constants(equalise(proto))
    assert np.abs(np.log2(largest(old["a"], 0) / largest(old["c"], 1))).max() > 2
    assert np.abs(np.log2(largest(new["a"], 0) / largest(new["c"], 1))).max() <= 1


def test_chains_become_equally_large_as_a_whole():
    new = constants(equalise(spread(JOINED["depthwise"])))
    first, second, third = largest(new["a"], 0), largest(new["d"], 0), largest(new["c"], 1)
    assert np.abs(np.log2(first / second)).max() <= 2
    assert np.abs(np.log2(second / third)).max() <= 2


def test_activations_take_the_place_of_the_weights_of_the_first_layer():
    proto = spread(JOINED["relu"])
    for kind in ("a", "b"):
        tensor = next(t for t in proto.graph.initializer if t.name == kind)
        tensor.CopyFrom(numpy_helper.from_array(np.abs(numpy_helper.to_array(tensor)), kind))
    known = np.geomspace(1, 1e3, 6)
    old, new = constants(proto), constants(equalise(proto, {"r": known}))
    factors = largest(old["a"], 0) / largest(new["a"], 0)
    assert np.abs(np.log2(known / factors / largest(new["c"], 1))).max() <= 1
    assert factors.max() / factors.min() > 8


def test_channels_of_zeros_stay():
    proto = spread(JOINED["relu"])
    for kind, place in (("a", np.s_[2]), ("c", np.s_[:, 3])):
        tensor = next(t for t in proto.graph.initializer if t.name == kind)
        array = numpy_helper.to_array(tensor).copy()
        array[place] = 0
        tensor.CopyFrom(numpy_helper.from_array(array, kind))
    old, new = constants(proto), constants(equalise(proto))
    assert np.array_equal(old["c"][:, 2:4], new["c"][:, 2:4])
    assert np.array_equal(old["a"][2:4], new["a"][2:4])
    assert np.array_equal(outputs(proto)[0], outputs(equalise(proto))[0])


def test_factors_have_a_bound():
    proto = spread(JOINED["relu"])
    tensor = next(t for t in proto.graph.initializer if t.name == "a")
    tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) * np.float32(1e-30), "a"))
    new = constants(equalise(proto))
    assert np.log2(new["a"] / numpy_helper.to_array(tensor)).max() == LARGEST_EXPONENT


def test_equalised_networks_stay():
    for name in ("relu", "depthwise", "flat"):
        once = equalise(spread(JOINED[name]))
        exponents = [
            np.log2(np.abs(a[a != 0] / b[a != 0])).max(initial=0)
            for a, b in zip(constants(once).values(), constants(equalise(once)).values(), strict=True)
        ]
        assert max(exponents) <= 1


def test_half_precision_stays_half_precision():
    parts = (JOINED["relu"][0].replace("float", "float16"), JOINED["relu"][1].replace("float", "float16"))
    proto = spread((*parts, JOINED["relu"][2]))
    new = equalise(proto)
    assert constants(new)["a"].dtype == np.float16
    assert not np.array_equal(constants(new)["a"], constants(proto)["a"])
    session = [ort.InferenceSession(each.SerializeToString()) for each in (proto, new)]
    x = np.random.default_rng(0).standard_normal((2, 3, 9, 9)).astype(np.float16)
    old, now = (each.run(None, {"x": x})[0].astype(np.float32) for each in session)
    assert np.abs(old - now).max() <= 2e-3 * np.abs(old).max()


@pytest.mark.parametrize("name", sorted(names_with(Trait.HOMOGENEOUS)))
def test_homogeneous_operators_multiply_each_channel(name):
    """onnxruntime agrees with the table: channels times powers of two give outputs times the same, to the bit."""
    schema = onnx.defs.get_schema(name, 17)
    given = {"kernel_shape": [2, 2]} if "kernel_shape" in schema.attributes else {}
    extra = ["s"] if schema.min_input > 1 else []
    node = onnx.helper.make_node(name, ["x", *extra], ["y"], **given)
    value = onnx.helper.make_tensor_value_info
    constant = numpy_helper.from_array(np.array([[[0.3]], [[-0.2]], [[1.5]]], np.float32), "s")
    graph = onnx.helper.make_graph(
        *([node], "g", [value("x", 1, [2, 3, 6, 6])], [value("y", 1, None)], [constant] if extra else [])
    )
    proto = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8)
    session = ort.InferenceSession(proto.SerializeToString())
    x = np.random.default_rng(0).standard_normal((2, 3, 6, 6)).astype(np.float32)
    factors = np.array([0.25, 2, 64], np.float32)[:, None, None]
    old, new = (session.run(None, {"x": each})[0] for each in (x, x * factors))
    assert np.array_equal(old * factors, new)

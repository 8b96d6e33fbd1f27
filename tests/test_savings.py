"""Milliseconds that layers save in 8-bit integers, by the hardware table; the layers that are worth it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx
import pytest

from leanonnx.hardware.costs import conversion_ms
from leanonnx.hardware.targets import Hardware, builtin_hardware
from leanonnx.quantization.formats import Int8Format
from leanonnx.quantization.layers import COMPUTED_WEIGHT
from leanonnx.quantization.savings import (
    by_loss_per_ms,
    conversions,
    layer_costs,
    observed_shapes,
    priced_layers,
    saved_ms,
)
from tests.calibrated import net

TABLE = replace(
    builtin_hardware()["cpu-avx2"],
    conv=1.0,
    pointwise=2.0,
    depthwise=4.0,
    gemm=8.0,
    slow=1.5,
    slow_depthwise=3.0,
    node=0.0,
    int8_conv=16.0,
    int8_pointwise=32.0,
    int8_depthwise=64.0,
    int8_grouped=128.0,
    int8_gemm=256.0,
)
"""Blocks of 8 channels in floats and of 16 in integers, with a rate of its own for each kind of layer."""

LAYERS = {
    "3×3": ("x[1,16,6,8]", "w[24,16,3,3]", "Conv <pads = [1,1,1,1]> (x, w)", 24 * 16 * 9 * 48, 32 * 16 * 9 * 48 / 16),
    "no multiple of 4": ("x[1,18,4,4]", "w[16,18,3,3]", "Conv (x, w)", 1.5 * 16 * 18 * 9 * 4, 16 * 18 * 9 * 4 / 16),
    "1×1, stride 2": ("x[2,16,6,6]", "w[16,16,1,1]", "Conv <strides = [2,2]> (x, w)", 256 * 18 / 2, 256 * 18 / 32),
    "one dimension": ("x[1,16,10]", "w[16,16,3]", "Conv (x, w)", 16 * 16 * 3 * 8, 16 * 16 * 3 * 8 / 16),
    "three dimensions": ("x[1,8,4,4,4]", "w[8,8,3,3,3]", "Conv (x, w)", 8 * 8 * 27 * 8, 16 * 8 * 27 * 8 / 16),
    "depthwise": ("x[1,12,5,5]", "w[12,1,3,3]", "Conv <group = 12> (x, w)", 16 * 9 * 9 / 4, 12 * 9 * 9 / 64),
    "grouped": ("x[1,16,3,3]", "w[16,8,3,3]", "Conv <group = 2> (x, w)", 2 * 8 * 8 * 9, 2 * 16 * 8 * 9 / 128),
    "narrow groups": ("x[1,8,3,3]", "w[8,2,1,1]", "Conv <group = 4> (x, w)", 1.5 * 16 * 9, 4 * 16 * 2 * 9 / 128),
    "Gemm": ("x[3,20]", "w[10,20]", "Gemm <transB = 1> (x, w)", 3 * 20 * 10 / 8, 3 * 20 * 16 / 256),
    "MatMul": ("x[2,5,20]", "w[20,10]", "MatMul (x, w)", 10 * 20 * 10 / 8, 10 * 20 * 16 / 256),
}
"""Input, weight, node, and the ms of 10⁶ runs in floats and in integers."""


def only(source: str, weight: str, node: str) -> tuple[onnx.ModelProto, dict[str, tuple[int, ...]]]:
    """A network of one layer, and its shapes."""
    name, _, shape = source.partition("[")
    proto = net(f"(float[{shape} {name}) => (float y)", "float" + weight[1:] + " w", f"y = {node}")
    del proto.graph.output[0].type.tensor_type.shape.dim[:]
    proto.graph.node[0].name = "layer"
    sizes = [dim.dim_value for dim in proto.graph.input[0].type.tensor_type.shape.dim]
    return proto, observed_shapes(proto, {"x": np.zeros(sizes, np.float32)})


@pytest.mark.parametrize(("source", "weight", "node", "floats", "integers"), LAYERS.values(), ids=LAYERS)
def test_a_layer_saves_the_difference_of_its_two_costs(
    source: str, weight: str, node: str, floats: float, integers: float
) -> None:
    proto, shapes = only(source, weight, node)
    times = layer_costs(proto, shapes, TABLE)["layer"]
    assert (times.floats, times.integers) == (pytest.approx(floats / 1e6), pytest.approx(integers / 1e6))
    assert saved_ms(proto, shapes, TABLE) == {"layer": pytest.approx((floats - integers) / 1e6)}


@pytest.mark.parametrize("kind", ["conv", "pointwise", "depthwise", "gemm"])
def test_layers_that_are_slower_in_integers_save_less_than_nothing(kind: str) -> None:
    slow = replace(TABLE, **{f"int8_{kind}": 0.1})
    names = {"conv": "3×3", "pointwise": "1×1, stride 2", "depthwise": "depthwise", "gemm": "MatMul"}
    proto, shapes = only(*LAYERS[names[kind]][:3])
    assert saved_ms(proto, shapes, slow)["layer"] < 0 < saved_ms(proto, shapes, TABLE)["layer"]


def test_layers_of_unknown_size_have_no_price() -> None:
    proto, shapes = only(*LAYERS["3×3"][:3])
    assert saved_ms(proto, {}, TABLE) == {}
    assert saved_ms(proto, {**shapes, "y": (24, 48)}, TABLE) == {}
    kind = Int8Format(table=replace(TABLE, int8_conv=0.1))
    assert [layer.reason for layer in priced_layers(proto, kind, {})] == [""]


# Conversions


CHAIN = net(
    "(float[1,16,8,8] x) => (float[1,16,8,8] y, float[1,16,8,8] e)",
    "float[16,16,3,3] w1, float[16,1,3,3] w2, float[16,16,3,3] w3, float[16,16,1,1] w4",
    "a = Conv <pads = [1,1,1,1]> (x, w1) b = Relu (a) c = Conv <group = 16, pads = [1,1,1,1]> (b, w2) d = Relu (c) "
    "f = Conv <pads = [1,1,1,1]> (d, w3) e = Erf (f) y = Conv (f, w4)",
)
"""Dense, depthwise and dense convolution; the last is read by a layer, and by a node that no integers pass."""
COUNT = 16 * 8 * 8


def named(proto: onnx.ModelProto) -> onnx.ModelProto:
    """The network with each node named after its output."""
    copy = onnx.ModelProto.FromString(proto.SerializeToString())
    for node in copy.graph.node:
        node.name = node.output[0]
    return copy


def shapes_of(proto: onnx.ModelProto) -> dict[str, tuple[int, ...]]:
    return observed_shapes(proto, {"x": np.ones((1, 16, 8, 8), np.float32)})


@pytest.mark.parametrize(
    ("layers", "count"),
    [("acfy", 1), ("afy", 3), ("a", 1), ("c", 2), ("f", 2), ("fy", 2), ("y", 1), ("", 0), ("ac", 1), ("af", 3)],
)
def test_numbers_are_converted_where_integers_meet_floats(layers: str, count: int) -> None:
    """Relu passes integers on beside a layer in integers; a tensor is converted once for all that read it."""
    proto, target = named(CHAIN), replace(TABLE, node=0.5)
    converted = conversions(proto, list("acfy"), shapes_of(proto), target)
    assert converted(list(layers)) == pytest.approx(count * conversion_ms(target, COUNT))
    assert conversion_ms(target, COUNT) == pytest.approx(COUNT * target.int8_convert * 1e-6 + 0.5e-3)


def float_layers(target: Hardware | None) -> dict[str, str]:
    """Layers of the chain that stay float, with the reason."""
    proto = named(CHAIN)
    layers = priced_layers(proto, Int8Format(table=target), shapes_of(proto))
    assert [layer.name for layer in layers] == list("acfy")
    return {layer.name: layer.reason for layer in layers if layer.reason}


def test_a_slower_layer_stays_float_if_that_is_worth_the_conversions() -> None:
    slow = replace(TABLE, name="mine", int8_depthwise=2.0, int8_convert=1e-6)
    assert float_layers(slow) == {"c": "slower in integers by the table of mine: 0.5 of the float speed"}
    assert float_layers(replace(slow, int8_convert=10.0)) == {}
    assert float_layers(None) == {}


def test_a_layer_between_floats_stays_float_if_it_saves_less_than_its_conversions() -> None:
    lonely = replace(TABLE, name="mine", int8_depthwise=0.004, int8_conv=0.5, int8_pointwise=2.1, int8_convert=1.0)
    reasons = float_layers(lonely)
    assert set(reasons) == set("acfy")
    assert reasons["y"].startswith("by the table of mine its integers save 0.0")
    assert set(float_layers(replace(lonely, int8_pointwise=200.0))) == set("acf")


def test_layers_that_cannot_be_in_integers_keep_their_reason() -> None:
    proto = net("(float[1,16,8,8] x) => (float[1,4,8,8] y)", "float[4,16,1,1] w", "v = Abs (w) y = Conv (x, v)")
    (layer,) = priced_layers(named(proto), Int8Format(table=TABLE), {"y": (1, 4, 8, 8)})
    assert layer.reason == COMPUTED_WEIGHT


def test_layers_are_ordered_by_the_squared_error_per_ms() -> None:
    added = {"cheap": 0.1, "dear": 0.1, "exact": 0.0, "slower": 0.01, "bad": 0.4}
    saved = {"cheap": 4.0, "dear": 1.0, "exact": 0.001, "slower": -1.0, "bad": 8.0}
    assert by_loss_per_ms(added, saved) == ["slower", "bad", "dear", "cheap", "exact"]
    assert by_loss_per_ms({"a": 0.1, "b": 0.2}, {}) == ["b", "a"]
    assert by_loss_per_ms({"a": 0.1, "b": 0.2, "c": 0.3}, {"a": 1.0, "c": 100.0}) == ["a", "c", "b"]

"""The values that a convolution reads at its output positions, times its weights, equal onnxruntime's output."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from leanonnx.graph.positions import features, rows_at, spread_positions, window_of
from leanonnx.recovery.layers import LinearLayer, linear_layers
from leanonnx.recovery.rows import LayerSite
from tests.calibrated import Array, Feed, analysed, values

Case = tuple[onnx.ModelProto, Feed]


@st.composite
def convolutions(draw: st.DrawFn) -> Case:
    """A Conv or ConvTranspose of any geometry that onnxruntime takes, on 1 to 3 axes, and an input."""
    rank = draw(st.integers(1, 3))
    turned = draw(st.booleans())
    groups, into, out = draw(st.sampled_from([(1, 3, 2), (1, 1, 2), (2, 2, 3), (3, 1, 1), (3, 1, 2)]))
    kernel, strides, dilations = (draw(st.tuples(*[st.integers(1, most)] * rank)) for most in (3, 3, 2))
    attributes: dict[str, Any] = {"group": groups, "strides": strides, "dilations": dilations}
    automatic = draw(st.sampled_from(["NOTSET", "NOTSET", "VALID", "SAME_UPPER", "SAME_LOWER"]))
    if automatic.startswith("SAME"):
        attributes["dilations"] = (1,) * rank  # onnxruntime takes no others, nor steps wider than the window
        attributes["strides"] = tuple(map(min, strides, kernel))
    if automatic == "NOTSET":
        attributes["pads"] = [draw(st.integers(0, k - 1)) for _ in range(2) for k in kernel]
    else:
        attributes["auto_pad"] = automatic
    if turned and automatic == "NOTSET":
        attributes["output_padding"] = [draw(st.integers(0, step - 1)) for step in strides]
    shape = (groups * into, groups * out)
    sizes = draw(st.tuples(*[st.integers(5, 7)] * rank))
    weight = (shape[0], out, *kernel) if turned else (shape[1], into, *kernel)
    op = "ConvTranspose" if turned else "Conv"
    proto = single(op, [2, shape[0], *sizes], weight, shape[1], attributes)
    x = np.random.default_rng(draw(st.integers(0, 1000))).standard_normal((2, shape[0], *sizes)).astype(np.float32)
    return proto, {"x": x}


def single(
    op: str, shape: Sequence[int], weight: Sequence[int], out: int, attributes: dict[str, Any]
) -> onnx.ModelProto:
    """A model of one operator with a bias."""
    rng = np.random.default_rng(0)
    tensors = [
        numpy_helper.from_array(rng.standard_normal(size).astype(np.float32), name)
        for name, size in (("w", weight), ("b", [out]))
    ]
    node = helper.make_node(op, ["x", "w", "b"], ["y"], name="Y", **attributes)
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, [None] * len(shape))
    graph = helper.make_graph([node], "g", [x], [y], tensors)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def made(proto: onnx.ModelProto, feed: Feed, size: Sequence[int]) -> Array:
    """The output by features times weights."""
    weight, bias = (numpy_helper.to_array(tensor) for tensor in proto.graph.initializer)
    window = window_of(proto.graph.node[0], weight.shape[2:])
    grouped = weight.reshape(window.groups, -1, *weight.shape[1:])
    kernels = (grouped.swapaxes(1, 2) if window.turned else grouped).reshape(window.groups, -1, *weight.shape[2:])
    samples = len(feed["x"])
    read = features(window, feed["x"], size, np.arange(samples * int(np.prod(size))))
    flat = kernels.reshape(window.groups, -1, read.shape[1] * read.shape[2])
    rows = (flat @ read.reshape(window.groups, flat.shape[2], -1)).reshape(len(bias), -1) + bias[:, None]
    return rows.reshape(len(bias), samples, *size).swapaxes(0, 1)


def judge(case: Case) -> None:
    proto, feed = case
    (wanted,) = values(proto, ["y"], [feed])
    np.testing.assert_allclose(made(proto, feed, wanted.shape[2:]), wanted, rtol=1e-3, atol=1e-4)


@settings(max_examples=120)
@given(convolutions())
def test_features_times_weights_equal_the_output_of_onnxruntime(case: Case) -> None:
    judge(case)


def test_chosen_positions_are_rows_in_their_order() -> None:
    proto = single("Conv", [1, 2, 6, 5], (3, 2, 3, 3), 3, {"strides": [2, 1], "pads": [1, 0, 1, 0]})
    window = window_of(proto.graph.node[0], (3, 3))
    x = np.random.default_rng(0).standard_normal((3, 2, 6, 5)).astype(np.float32)
    everything = features(window, x, (3, 3), np.arange(27))
    chosen = np.array([0, 3, 7, 7, 19, 26])
    np.testing.assert_array_equal(features(window, x, (3, 3), chosen), everything[..., chosen])
    assert everything.shape == (1, 2, 9, 27)


def test_rows_of_a_tensor_at_chosen_positions() -> None:
    value = np.random.default_rng(0).standard_normal((3, 4, 5))
    chosen = np.array([0, 6, 14])
    for axis in (0, 1, 2, -1):
        wanted = np.moveaxis(value, axis, -1).reshape(-1, value.shape[axis])
        picked = chosen % len(wanted)
        np.testing.assert_array_equal(rows_at(value, axis, picked), wanted[picked])
    np.testing.assert_array_equal(rows_at(value[0, 0], 0, np.array([0])), value[:1, 0])


def place_of(proto: onnx.ModelProto) -> LayerSite:
    """The only layer of a network, seen in it and in itself."""
    dag = analysed(proto)
    (layer,), _ = linear_layers(dag, np.ones(dag.count, bool), dag.model)
    assert isinstance(layer, LinearLayer)
    return LayerSite(dag=dag, alive=np.ones(dag.count, bool), layer=layer, x="x", y="y", x_hat="x", other=None, rows=30)


@settings(max_examples=40)
@given(convolutions())
def test_a_layer_that_is_understood_has_rows_that_its_own_weights_fit(case: Case) -> None:
    """A layer with padding peculiar to onnxruntime must be refused, any other must fit."""
    place = place_of(case[0])
    x = case[1]["x"]
    (y,) = values(case[0], ["y"], [case[1]])
    kernels = place.kernels.reshape(*place.kernels.shape[:2], -1)
    bias = place.original_bias
    assert bias is not None
    assert place.explains_output(x, y)
    chosen = spread_positions(place.positions(y.shape), 30, np.random.default_rng(0))
    rows = kernels @ place.features(x, y.shape, chosen) + bias.reshape(len(kernels), -1, 1)
    np.testing.assert_allclose(rows.reshape(y.shape[1], -1), place.targets(y, chosen), rtol=1e-3, atol=1e-4)


def test_a_layer_with_other_numbers_than_its_weights_make_is_refused() -> None:
    proto = single("Conv", [1, 2, 6, 5], (3, 2, 3, 3), 3, {"pads": [1, 1, 1, 1]})
    feed = {"x": np.random.default_rng(0).standard_normal((1, 2, 6, 5)).astype(np.float32)}
    (y,) = values(proto, ["y"], [feed])
    place = place_of(proto)
    assert place.explains_output(feed["x"], y)
    mix = replace(place.layer.block, kernels=lambda: np.ones((1, 3, 2, 3, 3), np.float32))
    assert not replace(place, layer=replace(place.layer, block=mix)).explains_output(feed["x"], y)


@pytest.mark.parametrize("dilation", [1, 2])
@pytest.mark.parametrize("automatic", ["SAME_UPPER", "SAME_LOWER"])
@pytest.mark.parametrize("stride", [1, 2, 3])
def test_transposed_ones_that_pad_themselves_fit_or_are_refused(automatic: str, stride: int, dilation: int) -> None:
    attributes = {"auto_pad": automatic, "strides": [stride] * 2, "dilations": [dilation] * 2}
    proto = single("ConvTranspose", [1, 2, 6, 5], (2, 3, 3, 3), 3, attributes)
    feed = {"x": np.random.default_rng(0).standard_normal((1, 2, 6, 5)).astype(np.float32)}
    (wanted,) = values(proto, ["y"], [feed])
    fits = np.allclose(made(proto, feed, wanted.shape[2:]), wanted, atol=1e-3)
    assert place_of(proto).explains_output(feed["x"], wanted) == fits

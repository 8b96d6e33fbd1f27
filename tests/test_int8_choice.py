"""Ranges, rounding and biases of integers: each is kept only where it lowers the error on held-out samples."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, numpy_helper

from leanonnx.data.samples import open_data
from leanonnx.hardware.targets import builtin_hardware
from leanonnx.quantization import choice
from leanonnx.quantization.biases import with_corrected_biases
from leanonnx.quantization.choice import COMPENSATED, CORRECTED, EQUALISED, MIXED, Int8Choice, choose_int8
from leanonnx.quantization.formats import Int8Format
from leanonnx.quantization.kernels import kernel_layers, patch_runs
from leanonnx.quantization.layers import carriers_between, weighted_layers
from leanonnx.quantization.preparation import prepare
from leanonnx.quantization.qdq import quantised_model
from leanonnx.quantization.ranges import RANGE_METHODS, nearest_ranges, observe_activations, ranges_by
from leanonnx.quantization.simulation import simulation_of
from leanonnx.quantization.weights import MAX_ROUNDED_FEATURES, compensated_weights, nearest_weights
from leanonnx.runtime.sessions import run
from tests.calibrated import analysed, net, normal_feeds
from tests.made_up_times import comparison

FORMAT = Int8Format(reduced_weights=True)
LAYERS = net(
    "(float[N,4,9,9] x) => (float[N,6] y)",
    "float[8,4,3,3] w1, float[8] b1, float[8,2,3,3] w2, float[10,8] w3, float[10] b3, float[10,6] w4, "
    "float zero = {0.0}, float[2] flat = {0, -1}",
    "a = Conv <pads = [1,1,1,1]> (x, w1, b1) b = Relu (a) c = Conv <group = 4, strides = [2,2]> (b, w2) "
    "d = GlobalAveragePool (c) e = Flatten (d) f = Gemm <transB = 1> (e, w3, b3) g = Relu (f) y = MatMul (g, w4)",
)
"""Convolutions with and without groups, and matrix products in both layouts."""


def layers_of(proto: onnx.ModelProto) -> Any:
    return kernel_layers(proto, [layer for layer in weighted_layers(proto) if not layer.reason])


@pytest.fixture
def prepared() -> onnx.ModelProto:
    """The network, prepared."""
    return prepare(LAYERS, Path("m.onnx"), feeds_of(LAYERS, 2)).proto


def feeds_of(proto: onnx.ModelProto, count: int) -> list[dict[str, Any]]:
    return normal_feeds(analysed(proto), count)


def chosen(
    proto: onnx.ModelProto, feeds: list[dict[str, Any]], kind: Int8Format = FORMAT, time: Any = None
) -> Int8Choice:
    """The choice for a network whose input is x."""
    dag = analysed(proto)
    data = open_data({"x": np.concatenate([feed["x"] for feed in feeds])}, dag.model, dag.shapes)
    fitted, held = data.part(held_out=False, every=3), data.part(held_out=True, every=3)
    return choose_int8(dag, prepare(proto, Path("m.onnx"), feeds[:2]), fitted, held, kind, lambda *_: None, time)


# Kernels and patches


def test_kernels_on_patches_are_the_output(prepared: onnx.ModelProto) -> None:
    layers, feeds = layers_of(prepared), feeds_of(LAYERS, 1)
    assert [each.layer.operator for each in layers] == ["Conv", "Conv", "Gemm", "MatMul"]
    (patches,) = patch_runs(prepared, layers, feeds, {each.layer.name: 10**6 for each in layers})
    for each in layers:
        alone = onnx.ModelProto()
        alone.CopyFrom(prepared)
        del alone.graph.output[:]
        alone.graph.output.append(onnx.ValueInfoProto(name=each.node.output[0]))
        wanted = run(alone, feeds)[0][0]
        bias = {"w1": "b1", "w3": "b3"}.get(each.layer.weight)
        if bias:
            array = next(numpy_helper.to_array(t) for t in prepared.graph.initializer if t.name == bias)
            wanted = wanted - array.reshape((-1, 1, 1) if wanted.ndim == 4 else -1)
        axis = 1 if wanted.ndim == 4 else -1
        rows = np.moveaxis(wanted, axis, 0).reshape(wanted.shape[axis], -1)
        made = each.kernels @ patches[each.layer.name]
        np.testing.assert_allclose(made.reshape(rows.shape), rows, atol=1e-4)
        np.testing.assert_array_equal(each.in_weight_layout(each.kernels), each.weight)


# Ranges


def test_integers_and_what_is_not_finite_are_not_observed() -> None:
    body = "h = Div (x, z) s = Shape (x) y = Conv (x, w)"
    constants = "float[2,1,1,1] w, float z = {0.0}"
    proto = net("(float[1,1,4,4] x) => (float[1,2,4,4] y, float[1,1,4,4] h, int64[4] s)", constants, body)
    feeds = [{"x": np.full((1, 1, 4, 4), value, np.float32)} for value in (2.0, -3.0)]
    observed = observe_activations(proto, ["x", "h", "s", "y"], feeds)
    assert set(observed.histograms) == set(observed.peaks) == {"x", "y"}
    assert (observed.histograms["x"].low, observed.histograms["x"].high) == (-3.0, 2.0)
    assert observed.peaks["x"].tolist() == [3.0] and observed.peaks["y"].shape == (2,)


def test_the_range_of_a_tensor_is_the_best_for_the_layers_that_read_it(prepared: onnx.ModelProto) -> None:
    feeds, layers = feeds_of(LAYERS, 12), layers_of(prepared)
    read = [each.node.input[0] for each in layers]
    good = ranges_by("minmax", observe_activations(prepared, read, feeds), FORMAT)
    narrow = {name: (low / 20, high / 20) for name, (low, high) in good.items()}
    wide = {name: (low * 20, high * 20) for name, (low, high) in good.items()}
    ways = [{**narrow, "unread": (0.0, 1.0)}, {**good, "unread": (0.0, 2.0)}, {**wide, "unread": (0.0, 3.0)}]
    ranges = nearest_ranges(prepared, layers, ways, FORMAT, feeds, len(feeds))
    assert ranges == {**good, "unread": (0.0, 1.0)}


# Weights


def weight_errors(proto: onnx.ModelProto, rounding: Any, feeds: list[dict[str, Any]]) -> dict[str, float]:
    """Mean squared error of the outputs of each layer with rounded weights, by name of the weight."""
    layers = layers_of(proto)
    rows = {each.layer.name: 10**6 for each in layers}
    errors = dict.fromkeys((each.layer.weight for each in layers), 0.0)
    for patches in patch_runs(proto, layers, feeds, rows):
        for each in layers:
            scales = np.abs(each.kernels).max(2) / 64
            rounded = rounding(each, scales, 7).astype(np.float64).reshape(each.weight.shape)
            changed = replace(each, weight=rounded).kernels * scales[:, :, None] - each.kernels
            errors[each.layer.weight] += float(np.square(changed @ patches[each.layer.name]).mean())
    return errors


def test_weights_make_up_for_each_other(prepared: onnx.ModelProto) -> None:
    feeds, unseen = feeds_of(LAYERS, 60)[:40], feeds_of(LAYERS, 60)[40:]
    rounding = compensated_weights(prepared, layers_of(prepared), lambda: feeds, len(feeds))
    nearest, compensated = (weight_errors(prepared, each, unseen) for each in (nearest_weights, rounding))
    assert all(compensated[name] < 0.7 * nearest[name] for name in ("w3", "w4"))  # they read correlated numbers
    assert all(compensated[name] < 1.05 * nearest[name] for name in nearest)


def test_very_wide_layers_take_the_nearest_integers(prepared: onnx.ModelProto, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("leanonnx.quantization.weights.MAX_ROUNDED_FEATURES", 20)
    feeds, layers = feeds_of(LAYERS, 4), layers_of(prepared)
    rounding = compensated_weights(prepared, layers, lambda: feeds, len(feeds))
    widths = {each.layer.name: each.features for each in layers}
    assert set(rounding.moments) == {name for name, width in widths.items() if width <= 20}
    wide = next(each for each in layers if each.features > 20)
    scales = np.abs(wide.kernels).max(2) / 64
    np.testing.assert_array_equal(rounding(wide, scales, 7), nearest_weights(wide, scales, 7))
    assert max(widths.values()) < MAX_ROUNDED_FEATURES


def test_moments_are_measured_in_parts_that_fit_into_memory(
    prepared: onnx.ModelProto, monkeypatch: pytest.MonkeyPatch
) -> None:
    feeds, layers = feeds_of(LAYERS, 4), layers_of(prepared)
    whole = compensated_weights(prepared, layers, lambda: feeds, len(feeds)).moments
    monkeypatch.setattr("leanonnx.quantization.weights.MAX_MOMENT_NUMBERS", 1)
    parts = compensated_weights(prepared, layers, lambda: feeds, len(feeds)).moments
    assert parts.keys() == whole.keys()
    assert all(np.allclose(parts[name], whole[name], rtol=1e-6) for name in whole)


# Biases


def test_biases_take_back_the_mean_error_of_each_layer(prepared: onnx.ModelProto) -> None:
    feeds, layers = feeds_of(LAYERS, 30), layers_of(prepared)
    names = {name for node in prepared.graph.node for name in (*node.input, *node.output)}
    names -= {tensor.name for tensor in prepared.graph.initializer}
    ranges = ranges_by("minmax", observe_activations(prepared, names, feeds), FORMAT)
    plain = [each.layer for each in layers]
    carriers = carriers_between(prepared, {layer.name for layer in plain})

    def lowered(each: Any, scales: Any, bits: int) -> Any:
        """Integers that are too small by one, which shifts all means, in layers that can have a bias."""
        if each.layer.operator == "MatMul":
            return nearest_weights(each, scales, bits)
        return np.maximum(nearest_weights(each, scales, bits).astype(int) - 1, -64).astype(np.int8)

    def made(proto: onnx.ModelProto) -> onnx.ModelProto:
        return quantised_model(proto, plain, carriers, ranges, FORMAT, lowered)

    corrected = with_corrected_biases(prepared, made(prepared), layers, feeds)
    biases = {node.name: len(node.input) for node in corrected.graph.node}
    assert [biases[each.layer.name] for each in layers] == [3, 3, 3, 2]  # a product has no bias, a convolution gets one
    means = [
        np.concatenate([outputs[0] for outputs in run(each, feeds)]).mean(0)
        for each in (prepared, simulation_of(made(prepared)), simulation_of(made(corrected)))
    ]
    shifted, restored = (float(np.linalg.norm(mean - means[0])) for mean in means[1:])
    assert restored < 0.5 * shifted


# The choice


def test_a_choice_is_never_worse_than_the_nearest_integers() -> None:
    feeds = feeds_of(LAYERS, 90)
    choice = chosen(LAYERS, feeds)
    assert choice.proto is not None and choice.error <= choice.nearest
    assert COMPENSATED in choice.corrections
    assert choice.method in (*RANGE_METHODS, MIXED)


@pytest.mark.parametrize("name", ["compensate", "correct_biases", "equalise_channels", "mix_ranges"])
def test_what_does_not_lower_the_error_is_left_out(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    step = getattr(choice._Search, name)

    def spoilt(self: Any, recipe: Any) -> Any:
        """The step with ranges that clip nearly everything."""
        narrow = {key: (low / 50, high / 50) for key, (low, high) in recipe.ranges.items()}
        return [replace(each, ranges=narrow) for each in step(self, recipe)]

    monkeypatch.setattr(choice._Search, name, spoilt)
    result = chosen(LAYERS, feeds_of(LAYERS, 30))
    noted = {
        "compensate": COMPENSATED,
        "correct_biases": CORRECTED,
        "equalise_channels": EQUALISED,
        "mix_ranges": MIXED,
    }[name]
    assert noted not in (*result.corrections, result.method)


def test_unequal_channels_are_equalised() -> None:
    body = "a = Conv (x, w1, b1) r = Relu (a) y = Conv (r, w2, b2)"
    constants = "float[16,3,1,1] w1, float[16] b1, float[4,16,1,1] w2, float[4] b2"
    proto = net("(float[N,3,6,6] x) => (float[N,4,6,6] y)", constants, body)
    factors = np.exp2(np.arange(16) % 8 - 4).astype(np.float32)
    scaled = {"w1": factors.reshape(-1, 1, 1, 1), "b1": factors, "w2": 1 / factors.reshape(1, -1, 1, 1)}
    for tensor in proto.graph.initializer:
        array = numpy_helper.to_array(tensor) * scaled.get(tensor.name, np.float32(1))
        tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
    result = chosen(proto, feeds_of(proto, 60), Int8Format())
    assert EQUALISED in result.corrections
    assert result.error < 0.7 * result.nearest


# The layers by time


SLOW_GROUPS = Int8Format(
    table=replace(builtin_hardware()["cpu-avx512"], int8_grouped=0.1, int8_convert=1e-6, node=1e-6)
)
"""A table by which the grouped convolution is slower in integers, and conversions cost nothing."""


def timer(seen: list[int], *fractions: float) -> Any:
    """A timer that notes the numbers of integer weights, and tells these fractions of the float time in turn."""

    def time(proto: onnx.ModelProto) -> Any:
        weights = [t for t in proto.graph.initializer if t.data_type == TensorProto.INT8 and len(t.dims) > 1]
        seen.append(len(weights))
        return comparison(fractions[len(seen) - 1])

    return time


@pytest.mark.parametrize(("fractions", "floats"), [((0.6, 0.4), 0), ((0.4, 0.6), 1), ((1.2, 0.9), 0)])
def test_measured_times_overrule_the_table(fractions: tuple[float, float], floats: int) -> None:
    feeds, seen = feeds_of(LAYERS, 30), list[int]()
    assert [layer.is_slower for layer in chosen(LAYERS, feeds, SLOW_GROUPS).layers] == [False, True, False, False]
    choice = chosen(LAYERS, feeds, SLOW_GROUPS, timer(seen, *fractions))
    assert seen == [3, 4]
    assert choice.proto is not None and sum(bool(layer.reason) for layer in choice.layers) == floats


def test_what_is_slower_with_any_layers_is_not_refined(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choice._Search, "compensate", None)
    seen: list[int] = []
    result = chosen(LAYERS, feeds_of(LAYERS, 30), SLOW_GROUPS, timer(seen, 1.3, 1.2))
    assert result.proto is None and result.reason == "it is not faster"
    assert result.comparison is not None and result.comparison.speedup == pytest.approx(1 / 1.2)


def test_one_choice_is_timed_where_the_table_wants_all_layers() -> None:
    seen: list[int] = []
    assert chosen(LAYERS, feeds_of(LAYERS, 30), FORMAT, timer(seen, 0.5)).proto is not None
    assert seen == [4]

"""Biases that restore means, against layers that are run."""

from __future__ import annotations

import numpy as np
import onnxruntime as ort
import pytest

from leanonnx.graph.positions import coverage, window_of
from leanonnx.numeric.bias_correction import ChannelMeans, corrected_bias, mean_change, mean_patches
from tests.calibrated import Array, net

CONVOLUTIONS = {
    "plain": ("Conv <pads = [1, 1, 1, 1]>", (6, 4, 3, 3), 1),
    "steps": ("Conv <pads = [1, 0, 0, 2], strides = [2, 2]>", (6, 4, 3, 3), 1),
    "groups": ("Conv <pads = [1, 1, 1, 1], group = 2>", (6, 2, 3, 3), 2),
    "depthwise": ("Conv <pads = [2, 2, 2, 2], dilations = [2, 2], group = 4>", (4, 1, 3, 3), 4),
    "automatic": ('Conv <auto_pad = "SAME_UPPER", strides = [2, 2]>', (6, 4, 3, 3), 1),
}


def run(call: str, weight: Array, bias: Array, x: Array) -> Array:
    constants = f"float[{','.join(map(str, weight.shape))}] w, float[{bias.size}] b"
    proto = net("(float[N,4,9,9] x) => (float[N,M,H,W] y)", constants, f"y = {call} (x, w, b)")
    for tensor, array in zip(proto.graph.initializer, (weight, bias), strict=True):
        tensor.raw_data = array.astype(np.float32).tobytes()
    return ort.InferenceSession(proto.SerializeToString()).run(None, {"x": x})[0]


def setting(kind: str, same_everywhere: bool = False):
    call, shape, groups = CONVOLUTIONS[kind]
    rng = np.random.default_rng(0)
    weight, bias = rng.standard_normal(shape), rng.standard_normal(shape[0])
    change = 0.1 * rng.standard_normal(shape)
    x = (rng.standard_normal((20, 4, 9, 9)) + np.arange(1, 5)[:, None, None]).astype(np.float32)
    if same_everywhere:
        x = x - x.mean(0) + np.arange(1, 5, dtype=np.float32)[:, None, None]
    return call, groups, weight, bias, change, x


@pytest.mark.parametrize("kind", CONVOLUTIONS)
def test_the_corrected_layer_has_the_wanted_means_and_no_bias_is_better(kind):
    call, _, weight, bias, change, x = setting(kind)
    y = run(call, weight, bias, x)
    wanted, obtained = ChannelMeans(), ChannelMeans()
    for start in range(0, 20, 7):
        wanted.add(y[start : start + 7])
        obtained.add(run(call, weight + change, bias, x[start : start + 7]))
    new = corrected_bias(bias, wanted.means, obtained.means)
    result = run(call, weight + change, new, x)
    assert result.mean((0, 2, 3)) == pytest.approx(y.mean((0, 2, 3)), abs=1e-5)
    least = np.square(result - y).sum()
    for step in (-1e-2, 1e-2):
        assert np.square(run(call, weight + change, new + step, x) - y).sum() > least


@pytest.mark.parametrize("kind", CONVOLUTIONS)
def test_the_mean_change_is_known_from_the_mean_patch(kind):
    call, groups, weight, bias, change, x = setting(kind, same_everywhere=True)
    before, after = run(call, weight, bias, x), run(call, weight + change, bias, x)
    proto = net("(float[N,4,9,9] x) => (float[N,M,H,W] y)", "float[1] w", f"y = {call} (x, w)")
    shares = coverage(window_of(proto.graph.node[0], (3, 3)), (9, 9), before.shape[2:])
    patches = mean_patches(x.mean((0, 2, 3)), groups, shares)
    kernels = change.reshape(groups, change.shape[0] // groups, -1)
    assert (after - before).mean((0, 2, 3)) == pytest.approx(mean_change(kernels, patches), abs=1e-4)


def test_channels_may_lie_on_any_axis():
    rng = np.random.default_rng(0)
    means = ChannelMeans()
    values = rng.standard_normal((5, 7, 3))
    means.add(values, -1)
    assert means.rows == 35
    assert means.means == pytest.approx(values.mean((0, 1)))
    with pytest.raises(ValueError, match="4 channels, expected 3"):
        means.add(np.zeros((2, 4)), -1)


def test_a_layer_without_bias_gets_the_difference():
    assert corrected_bias(None, np.array([1.0, 2]), np.array([0.5, 3])) == pytest.approx([0.5, -1])
    assert corrected_bias(np.array([[1.0, 1]]), np.array([1.0, 2]), np.array([0.5, 3])) == pytest.approx([1.5, 0])

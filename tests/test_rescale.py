"""Refitted BatchNormalizations: scale and shift of channels that no refitted layer outputs."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from leanonnx.analysis.dag import ChannelDag
from leanonnx.recovery import recover as recovery
from leanonnx.recovery.layers import linear_layers
from leanonnx.recovery.recover import RecoveryResult, recover
from leanonnx.recovery.rescale import norms
from tests.calibrated import Array, analysed, deviation, draft, keep, net, normal_feeds, values

BEHIND = (
    "(float[N,3,8,8] x) => (float[N,6,4,4] y)",
    """float[8,3,3,3] a, float[8] b, float[6,8,3,3] c, float[6] d, float[6] gamma, float[6] beta, float[6] mean,
       float[6] variance""",
    """h = Conv (x, a, b) r = Relu (h) m = Conv (r, c, d) s = Relu (m)
       y = BatchNormalization (s, gamma, beta, mean, variance)""",
)
DIRECT = (BEHIND[0], BEHIND[1], BEHIND[2].replace("s = Relu (m)", "").replace("(s, ", "(m, "))
TWICE = (
    "(float[N,3,8,8] x) => (float[N,6,4,4] y, float[N,6,4,4] z)",
    BEHIND[1],
    BEHIND[2] + " t = Sigmoid (m) z = BatchNormalization (t, gamma, beta, mean, variance)",
)


def positive(proto: onnx.ModelProto) -> onnx.ModelProto:
    """The model with variances that are none below 0.2."""
    for tensor in proto.graph.initializer:
        if tensor.name == "variance":
            array = np.abs(numpy_helper.to_array(tensor)) + np.float32(0.2)
            tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
    return proto


def network(parts: tuple[str, str, str], seed: int = 0) -> ChannelDag:
    return analysed(positive(net(*parts, seed=seed)))


def recovered(dag: ChannelDag) -> tuple[onnx.ModelProto, RecoveryResult]:
    alive = keep(dag, "h", range(3))
    bare = draft(dag, alive)
    return bare, recover(dag, alive, bare, normal_feeds(dag, 40, 1), normal_feeds(dag, 10, 2))


def moments(proto: onnx.ModelProto, dag: ChannelDag) -> tuple[Array, Array]:
    """Mean and standard deviation of each channel of the first output on inputs of their own."""
    (found,) = values(proto, ["y"], normal_feeds(dag, 40, 3))
    return found.mean((0, 2, 3)), found.std((0, 2, 3))


@pytest.mark.parametrize("seed", range(4))
def test_it_comes_nearer_to_the_original_than_without(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    dag = network(BEHIND, seed)
    _, found = recovered(dag)
    mended = found.layers[-1]
    assert mended.name.lower() == "y"
    assert mended.after is not None
    assert mended.before is not None
    assert mended.after < mended.before
    monkeypatch.setattr(recovery, "norms", lambda *_: [])
    _, without = recovered(dag)
    unseen = normal_feeds(dag, 40, 4)
    assert deviation(dag, found.proto, unseen) < deviation(dag, without.proto, unseen)


def test_means_come_back() -> None:
    dag = network(BEHIND)
    bare, found = recovered(dag)
    wanted = moments(dag.model.proto, dag)[0]
    distances = [np.abs(moments(proto, dag)[0] - wanted).max() for proto in (bare, found.proto)]
    assert distances[1] < 0.1 * distances[0]


def test_only_scale_and_shift_change() -> None:
    dag = network(BEHIND)
    bare, found = recovered(dag)
    old, new = ({t.name: numpy_helper.to_array(t) for t in p.graph.initializer} for p in (bare, found.proto))
    assert {name for name in old if not np.array_equal(old[name], new[name])} == {"c", "d", "gamma", "beta"}


@pytest.mark.parametrize("parts", [DIRECT, TWICE])
def test_none_behind_a_fitted_layer_or_with_shared_constants(parts: tuple[str, str, str]) -> None:
    dag = network(parts)
    alive = keep(dag, "h", range(3))
    compressed = analysed(draft(dag, alive)).model
    linear, _ = linear_layers(dag, alive, compressed)
    fitted = {compressed.proto.graph.node[layer.after].output[0] for layer in linear}
    assert norms(dag, alive, compressed, fitted) == []


def test_a_channel_that_is_constant_keeps_its_scale() -> None:
    proto = positive(net(*BEHIND))
    for tensor in proto.graph.initializer:
        if tensor.name in ("c", "d"):
            array = numpy_helper.to_array(tensor).copy()
            array[0] = 0
            tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
    dag = analysed(proto)
    bare, found = recovered(dag)
    old, new = ({t.name: numpy_helper.to_array(t) for t in p.graph.initializer} for p in (bare, found.proto))
    assert new["gamma"][0] == old["gamma"][0]
    assert np.isfinite(new["beta"]).all()


def test_with_too_few_positions_nothing_changes() -> None:
    dag = network(BEHIND)
    alive = keep(dag, "h", range(3))
    bare = draft(dag, alive)
    found = recover(dag, alive, bare, normal_feeds(dag, 2, 1), normal_feeds(dag, 1, 2))
    old, new = ({t.name: numpy_helper.to_array(t) for t in p.graph.initializer} for p in (bare, found.proto))
    assert np.array_equal(old["gamma"], new["gamma"])

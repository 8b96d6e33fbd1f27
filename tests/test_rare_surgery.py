"""Rare cases of surgery and of its plans: layers that vanish, shuffles that turn pixels, half precision."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest

from leanonnx.analysis.closure import Closure
from leanonnx.analysis.cost import cost_model
from leanonnx.analysis.dag import ChannelDag
from leanonnx.errors import PlanError
from leanonnx.numeric.channel_ids import Mask
from leanonnx.rules.call import Pin
from leanonnx.surgery.plan import make_plan, replay_plan
from leanonnx.surgery.recipe import ARRAYS_NAME, Recipe
from tests.rules.harness import check
from tests.shortened import observed
from tests.test_masked_equals_compact import compacted
from tests.variants import given, network

BASE = "(float[1, 3, 5, 5] x) => (float[N, M, H, W] y)"


def without(dag: ChannelDag, *channels: tuple[str, int]) -> Mask:
    """Closed keep mask after the removal of channels, each given by a tensor and its number."""
    keep = np.ones(int(dag.groups.max()) + 1, bool)
    for name, channel in channels:
        keep[dag.groups[dag.channel_ids[name].reshape(-1)[channel]]] = False
    return Closure(dag, dag.groups).alive_channels(keep)


def vanishing(folder: Path) -> ChannelDag:
    """Two layers of one channel, joined, feed a layer whose output is joined with that of another."""
    proto = network(
        BASE,
        """float[1, 3, 1, 1] w1, float[1, 3, 1, 1] w2, float[3, 2, 1, 1] w3, float[4, 3, 1, 1] w4,
        float[2, 7, 1, 1] w5""",
        """a = Conv (x, w1) b = Conv (x, w2) c = Concat <axis = 1> (a, b) d = Conv (c, w3) e = Conv (x, w4)
        f = Concat <axis = 1> (d, e) y = Conv (f, w5)""",
    )
    return observed(proto, folder)


def test_a_layer_that_reads_nothing_any_more_goes_too(tmp_path: Path) -> None:
    dag = vanishing(tmp_path)
    assert without(dag, ("a", 0))[dag.channel_ids["d"]].all()
    alive = without(dag, ("a", 0), ("b", 0))
    assert not alive[dag.channel_ids["d"]].any()
    assert alive[dag.channel_ids["e"]].all()
    assert {node.output[0] for node in compacted(dag, alive).graph.node if node.op_type == "Conv"} == {"e", "y"}
    check(dag, alive)


def test_a_plan_of_a_layer_that_is_gone(tmp_path: Path) -> None:
    dag = vanishing(tmp_path)
    alive = without(dag, ("a", 0), ("b", 0))
    plan = make_plan(dag, alive, {}, "0")
    assert plan.tensors["w3"]["after"] == [0, 0, 0, 0]
    np.testing.assert_array_equal(replay_plan(dag, plan), alive)
    one = without(dag, ("a", 0))
    np.testing.assert_array_equal(replay_plan(dag, make_plan(dag, one, {}, "0")), one)


def test_a_plan_that_removes_what_is_pinned(tmp_path: Path) -> None:
    dag = vanishing(tmp_path)
    plan = make_plan(dag, without(dag, ("e", 2)), {}, "0")
    pin = Pin(dag.channel_ids["e"].reshape(-1)[2:3], "e", "it is precious")
    with pytest.raises(PlanError, match="the plan removes channels that may not be removed"):
        replay_plan(replace(dag, pins=(*dag.pins, pin)), plan)
    other = replace(pin, channel_ids=dag.channel_ids["e"].reshape(-1)[1:2])
    assert replay_plan(replace(dag, pins=(*dag.pins, other)), plan).sum() == dag.count - 2


def test_words_for_samples_in_memory() -> None:
    recipe = Recipe(calib=ARRAYS_NAME, calib_sha256=None, seed=3)
    assert recipe.as_options() == "calib with the same arrays seed=3"


@pytest.mark.parametrize(
    ("order", "left"), [([0, 2, 1, 3, 4], 5), ([0, 2, 1, 4, 3], 0)], ids=["channels", "channels and pixels"]
)
def test_shuffle_of_channels_and_of_pixels(order: list[int], left: int, tmp_path: Path) -> None:
    """A Gather along the channels does the first; those of the second are tied."""
    proto = given(
        network(
            BASE,
            "float[6, 3, 1, 1] w, int64[5] fold, int64[4] flat, float[2, 6, 1, 1] v",
            f"""a = Conv (x, w) r = Relu (a) f = Reshape (r, fold) t = Transpose <perm = {order}> (f)
            s = Reshape (t, flat) y = Conv (s, v)""",
        ),
        fold=np.array([1, 2, 3, 5, 5]),
        flat=np.array([1, 6, 5, 5]),
    )
    dag = observed(proto, tmp_path)
    alive = without(dag, ("a", 1))
    assert alive[dag.channel_ids["a"]].sum() == left
    if left:
        check(dag, alive)
        assert "Gather" in {node.op_type for node in compacted(dag, alive).graph.node}


HALF = {
    "mean over channels": (
        17,
        "float16[6, 3, 1, 1] w, float16[2, 1, 1, 1] v",
        "a = Conv (x, w) r = Relu (a) m = ReduceMean <axes = [1]> (r) y = Conv (m, v)",
    ),
    "norm over channels": (
        23,
        "float16[3, 6] w, float16[6] scale, float16[6, 2] v",
        "a = MatMul (x, w) m = RMSNormalization <axis = -1> (a, scale) y = MatMul (m, v)",
    ),
}


@pytest.mark.parametrize("name", HALF)
def test_factors_in_half_precision(name: str, tmp_path: Path) -> None:
    """They are multiplied in float32: half precision does not represent them."""
    opset, constants, body = HALF[name]
    shape = "1, 3, 5, 5" if opset == 17 else "1, 5, 3"
    proto = network(f"(float16[{shape}] x) => (float16[N, M, K, L] y)", constants, body, opset)
    if opset > 17:
        del proto.graph.output[0].type.tensor_type.shape.dim[3]
    dag = observed(proto, tmp_path)
    alive = without(dag, ("a", 1), ("a", 4))
    check(dag, alive)
    made = compacted(dag, alive)
    scaled = next(node for node in made.graph.node if node.op_type == "Mul")
    factor = next(t for t in made.graph.initializer if t.name == scaled.input[1])
    assert factor.data_type == onnx.TensorProto.FLOAT
    assert cost_model(dag)(alive).kernels < cost_model(dag)(dag.all_alive).kernels

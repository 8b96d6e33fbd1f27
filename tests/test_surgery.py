"""A patch that does not fit the model is refused, and an error in a rule names its node."""

from __future__ import annotations

import numpy as np
import pytest

from leanonnx.analysis.dag import ChannelDag, build_channel_dag
from leanonnx.graph.model import Model, load
from leanonnx.rules.call import Call, Edit, Effect, KeptChannels
from leanonnx.rules.pointwise import unary
from leanonnx.rules.table import DEFAULT_RULES, Rules
from leanonnx.runtime.observation import observe
from leanonnx.surgery.operate import apply_patch
from leanonnx.surgery.patch import Patch, plan_patch
from tests.graphs import saved
from tests.variants import build

TEXT = """
<ir_version: 8, opset_import: ["" : 17]>
plain (float[1, 2, 4, 4] x) => (float[1, 3, 4, 4] y) <float[6, 2, 1, 1] w, float[3, 6, 1, 1] v>
{
    a = Conv (x, w)
    b = Relu (a)
    y = Conv (b, v)
}
"""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return load(saved(build(TEXT), tmp_path_factory.mktemp("model")))


def analysed(model: Model, rules: Rules = DEFAULT_RULES) -> ChannelDag:
    return build_channel_dag(model, observe(model, {}), rules)


ZEROS = np.zeros((4, 2, 1, 1), np.float32)
STRANGE = {
    "another type": (Patch(constants={(0, 1): lambda: ZEROS.astype(np.float64)}), "'w': got float64"),
    "another rank": (
        Patch(constants={(0, 1): lambda: ZEROS[..., 0]}),
        r"got float32 \[4, 2, 1\], expected float32 \[6, 2, 1, 1\]",
    ),
    "a higher rank": (
        Patch(constants={(0, 1): lambda: ZEROS[..., None]}),
        r"got float32 \[4, 2, 1, 1, 1\], expected float32 \[6, 2, 1, 1\]",
    ),
    "more channels": (Patch(constants={(0, 1): lambda: np.zeros((7, 2, 1, 1), np.float32)}), r"\[7, 2, 1, 1\]"),
    "constant of no node": (Patch(constants={(3, 1): lambda: ZEROS}), r"nodes \[3\], but the model has 3 nodes"),
    "attributes of no node": (Patch(attributes={99: {"group": 2}}), r"nodes \[99\]"),
}


@pytest.mark.parametrize("name", STRANGE)
def test_patch_that_does_not_fit(name: str, model: Model) -> None:
    patch, words = STRANGE[name]
    with pytest.raises(ValueError, match=words):
        apply_patch(model, patch)


def test_patch_that_fits(model: Model) -> None:
    made = apply_patch(model, Patch(constants={(0, 1): lambda: ZEROS}))
    assert {tuple(tensor.dims) for tensor in made.graph.initializer} == {(4, 2, 1, 1), (3, 6, 1, 1)}
    assert [tuple(tensor.dims) for tensor in model.proto.graph.initializer] == [(6, 2, 1, 1), (3, 6, 1, 1)]


def test_patch_lists_the_tensors_that_shrink(model: Model) -> None:
    dag = analysed(model)
    alive = np.ones(dag.count, bool)
    assert plan_patch(dag, alive).shrunk == set()
    alive[dag.channel_ids["a"].reshape(-1)[:2]] = False
    assert plan_patch(dag, alive).shrunk == {"a", "b"}


def test_error_in_a_rule_names_the_node(model: Model) -> None:
    def rule(call: Call) -> Effect:
        raise KeyError("scale")

    with pytest.raises(KeyError) as caught:
        analysed(model, {**DEFAULT_RULES, ("", "Relu"): rule})
    assert caught.value.__notes__ == ["in the rule of Relu 'B'"]


def test_error_in_a_rewrite_names_the_node(model: Model) -> None:
    def rewrite(kept: KeptChannels) -> Edit:
        raise KeyError("axis")

    def rule(call: Call) -> Effect:
        return Effect(unary(call).outputs, rewrite=rewrite)

    dag = analysed(model, {**DEFAULT_RULES, ("", "Relu"): rule})
    alive = np.ones(dag.count, bool)
    alive[dag.channel_ids["a"].reshape(-1)[:2]] = False
    with pytest.raises(KeyError) as caught:
        plan_patch(dag, alive)
    assert caught.value.__notes__ == ["while Relu 'B' was edited for the kept channels"]

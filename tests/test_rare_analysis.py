"""Forms of networks that the analysis meets rarely: values behind odd operators, edits that depend on sizes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest

from leanonnx.analysis.branch_costs import branch_costs
from leanonnx.analysis.branches import find_branches
from leanonnx.analysis.closure import Closure
from leanonnx.analysis.constant_channels import constant_channels
from leanonnx.analysis.dag import ChannelDag, build_channel_dag
from leanonnx.errors import ProofFailed
from leanonnx.graph.model import load
from leanonnx.rules.assembly import concat
from leanonnx.rules.call import Call, Edit, Effect, KeptChannels
from leanonnx.rules.pointwise import unary
from leanonnx.rules.table import DEFAULT_RULES, Rules
from leanonnx.runtime.observation import observe
from leanonnx.surgery.patch import plan_patch
from tests.blocks import framed
from tests.graphs import saved
from tests.helpers import build
from tests.rules.harness import check
from tests.shortened import branches_of, observed
from tests.test_masked_equals_compact import killed
from tests.variants import given, network

FREE = "(float[N, 3, H, W] x) => (float[N, M, K, L] y)"
FIXED = "(float[2, 3, 5, 7] x) => (float[N, M, K, L] y)"
LAYERS = "float[6, 3, 1, 1] w, float[2, 6, 1, 1] v"


def analysed(proto: onnx.ModelProto, folder: Path, rules: Rules) -> ChannelDag:
    model = load(saved(proto, folder))
    return build_channel_dag(model, observe(model, {}), rules)


def tensors(dag: ChannelDag, *names: str) -> list[bool]:
    """For each tensor, True if some of its channels can be removed."""
    return [not dag.pinned_groups[dag.groups[dag.channel_ids[name]]].all() for name in names]


# Constants behind other operators.


BEHIND: dict[str, tuple[onnx.ModelProto, bool]] = {
    "shape of a fixed input": (
        network(
            "(float[2, 3, 5, 3] x) => (float[N, M, K, L] y)",
            "float[3, 4] w, float[4, 2] v",
            "a = MatMul (x, w) s = Shape (x) b = Cast <to = 1> (s) c = Add (a, b) y = MatMul (c, v)",
        ),
        True,
    ),
    "one channel of a size at run time": (
        given(
            network(
                FREE,
                f"{LAYERS}, float[2, 7, 1, 1] u, int64[1] i0, int64[1] i1, int64[1] i2, int64[1] i4",
                """a = Conv (x, w) s = Shape (a) n = Slice (s, i0, i1) h = Slice (s, i2, i4)
                size = Concat <axis = 0> (n, i1, h) k = ConstantOfShape <value = float[1] {2}> (size)
                c = Concat <axis = 1> (a, k) y = Conv (c, u)""",
            ),
            i0=np.array([0]),
            i1=np.array([1]),
            i2=np.array([2]),
            i4=np.array([4]),
        ),
        True,
    ),
    "reshape to a computed shape": (
        given(
            network(
                FIXED,
                "float[36] flat, float[3, 6] w, int64[2] o, int64[2] i, float[6, 2] v",
                """t = Transpose <perm = [0, 2, 3, 1]> (x) a = MatMul (t, w) s = Concat <axis = 0> (o, i)
                k = Reshape (flat, s) c = Add (a, k) y = MatMul (c, v)""",
            ),
            flat=np.arange(6, dtype=np.float32),
            o=np.array([1, 1]),
            i=np.array([1, 6]),
        ),
        True,
    ),
    "sum with a tiled value": (
        given(
            network(
                FREE,
                f"float[1, 6, 1, 1] token, float[1, 6, 1, 1] other, int64[3] tail, int64[1] i0, int64[1] i1, {LAYERS}",
                """a = Conv (x, w) s = Shape (x) n = Slice (s, i0, i1, i0) size = Concat <axis = 0> (n, tail)
                e = Expand (token, size) t = Tile (other, size) k = Add (e, t) c = Add (a, k) y = Conv (c, v)""",
            ),
            tail=np.array([1, 1, 1]),
            i0=np.array([0]),
            i1=np.array([1]),
        ),
        False,
    ),
    "weight that is an output as well": (
        network(
            "(float[2, 3] x) => (float[N, M] y, float[6, 3] t)",
            "float[3, 6] k, float[6, 2] v",
            """t = Transpose (k) a = Gemm <transB = 1> (x, t) b = Gemm <transB = 1> (x, t) c = Add (a, b)
            y = MatMul (c, v)""",
        ),
        True,
    ),
}


@pytest.mark.parametrize("name", BEHIND)
def test_constants_behind_other_operators(name: str, tmp_path: Path) -> None:
    proto, removable = BEHIND[name]
    dag = observed(proto, tmp_path)
    assert tensors(dag, "a") == [removable]
    check(dag, killed(dag, np.random.default_rng(0)))


def test_quantised_weight_that_a_caller_may_replace(tmp_path: Path) -> None:
    proto = network(
        FIXED,
        f"float[6, 3, 1, 1] k, float scale = {{0.02}}, int8 zero = {{0}}, {LAYERS}",
        """a = Conv (x, w) q = QuantizeLinear (k, scale, zero) d = DequantizeLinear (q, scale, zero) b = Conv (x, d)
        c = Add (a, b) y = Conv (c, v)""",
    )
    free = onnx.ModelProto.FromString(proto.SerializeToString())
    free.graph.input.append(onnx.helper.make_tensor_value_info("k", onnx.TensorProto.FLOAT, [6, 3, 1, 1]))
    for model, removable in ((proto, True), (free, False)):
        dag = observed(model, tmp_path)
        assert tensors(dag, "c") == [removable]
        check(dag, killed(dag, np.random.default_rng(0)))


def test_weight_that_is_quantised_in_the_graph_for_two_layers(tmp_path: Path) -> None:
    """The masked original zeroes it once for both, behind the operators that compute it."""
    proto = network(
        "(float[1, 3, 5, 5] x, float[1, 3, 5, 5] z) => (float[N, M, K, L] y)",
        """float[6, 3, 1, 1] w, float[8, 6, 1, 1] k, float scale = {0.02}, int8 zero = {0}, float[2, 8, 1, 1] v,
        float[2, 8, 1, 1] u""",
        """a = Conv (x, w) b = Conv (z, w) q = QuantizeLinear (k, scale, zero) d = DequantizeLinear (q, scale, zero)
        e = Conv (a, d) f = Conv (b, d) g = Conv (e, v) h = Conv (f, u) y = Add (g, h)""",
    )
    dag = observed(proto, tmp_path)
    assert tensors(dag, "a", "b") == [True, True]
    alive = np.ones(dag.count, bool)
    alive[np.isin(dag.groups, dag.groups[dag.channel_ids["a"].reshape(-1)[:2]])] = False
    check(dag, Closure(dag, dag.groups).alive_channels(alive[np.unique(dag.groups, return_index=True)[1]]))


# Edits that depend on a size that the model leaves free.


def relu_of_size(edit: Callable[[Call, KeptChannels], Edit]) -> Rules:
    """Rules in which a Relu has an edit."""

    def rule(call: Call) -> Effect:
        return Effect(unary(call).outputs, rewrite=lambda kept: edit(call, kept))

    return {**DEFAULT_RULES, ("", "Relu"): rule}


CHAIN = network(FREE, LAYERS, "a = Conv (x, w) r = Relu (a) y = Conv (r, v)")


def test_an_edit_that_differs_between_sizes_pins_its_node(tmp_path: Path) -> None:
    rules = relu_of_size(lambda call, kept: Edit({"alpha": int(kept.alive.sum()) * call.shape(0)[2]}))
    dag = analysed(CHAIN, tmp_path, rules)
    assert tensors(dag, "a") == [False]
    assert any("Relu 'R'" in pin.reason for pin in dag.pins)
    same = analysed(CHAIN, tmp_path, relu_of_size(lambda call, kept: Edit({"alpha": int(kept.alive.sum())})))
    assert tensors(same, "a") == [True]


def test_an_edit_that_differs_for_one_keep_set_alone_is_refused(tmp_path: Path) -> None:
    """Random keep sets do not show it when the model is analysed."""

    def edit(call: Call, kept: KeptChannels) -> Edit:
        left = kept.mask(call.channel_ids(0)).reshape(-1).tolist()
        return Edit({"alpha": call.shape(0)[2]} if left == [True, False, False, False, False, False] else {})

    dag = analysed(CHAIN, tmp_path, relu_of_size(edit))
    alive = dag.all_alive
    alive[dag.channel_ids["a"].reshape(-1)[2:]] = False
    assert "a" in plan_patch(dag, alive).shrunk
    alive[dag.channel_ids["a"].reshape(-1)[1:]] = False
    with pytest.raises(ProofFailed, match="Relu 'R': its edit for the removed channels depends on a size"):
        plan_patch(dag, alive)


# Branches.


def test_normalisation_of_the_stream_itself_is_no_shortcut() -> None:
    body = "k = BatchNormalization (s, b4, b4, b4, c5)  a = Conv (s, v)  f = Relu (a)  z = Add (k, f)"
    (branch,) = branches_of(build(framed(body)))
    assert (branch.kind, branch.stream, branch.shortcut) == ("linear", "k", ())


def test_cost_of_products_within_a_branch(tmp_path: Path) -> None:
    """Rows of 6 pixels times a matrix of 6 by 6, in 4 channels of 6 rows, between two 1x1 convolutions."""
    dag = observed(build(framed("a = Conv (s, v)  m = MatMul (a, m6)  f = Conv (m, w)  z = Add (s, f)")), tmp_path)
    (cost,) = branch_costs(dag, find_branches(dag.model, dag.shapes))
    assert cost.macs == 36 * 4 * 4 + 4 * 6 * 6 * 6 + 36 * 4 * 4


def test_cost_of_a_branch_on_noise(tmp_path: Path) -> None:
    """Tensors that depend on no input have no channel ids."""
    body = (
        "n = RandomNormal <shape = [1, 4, 6, 6]> ()  a = Conv (n, v)  f = Conv (a, w)  k = Add (n, f)  z = Add (s, k)"
    )
    dag = observed(build(framed(body)), tmp_path)
    (branch,) = (branch for branch in find_branches(dag.model, dag.shapes) if branch.output == "k")
    assert "k" not in dag.channel_ids
    assert branch_costs(dag, [branch])[0].standin_macs == 36 * 4 * 4


# Channels that are constant.


def constants(proto: onnx.ModelProto, name: str, folder: Path, rules: Rules = DEFAULT_RULES) -> list[float] | None:
    """Numbers of the channels of a tensor; NaN where they vary, None if all do."""
    dag = analysed(proto, folder, rules)
    numbers = constant_channels(dag).numbers.get(name)
    return None if numbers is None else numbers.reshape(-1).round(4).tolist()


NONE = float("nan")
ZERO_WEIGHT = np.zeros((2, 3, 1, 1), np.float32)
"""Weight of a layer of 2 channels, of which the second is constant."""
ZERO_WEIGHT[0] = 1
BASE = "float[2, 3, 1, 1] w, float[2] b = {0, 8}, float[2, 2, 1, 1] v"


def still(body: str, more: str = "", **values: object) -> onnx.ModelProto:
    constants = f"{BASE}, {more}" if more else BASE
    return given(
        network(FIXED, constants, f"a = Conv (x, w, b) {body}", domains=', "com.microsoft" : 1'),
        w=ZERO_WEIGHT,
        **values,
    )


def test_constant_integers_are_not_divided(tmp_path: Path) -> None:
    """onnxruntime divides by zero where a channel is not known."""
    tail = "y = Cast <to = 1> (d)"
    made = still(f"i = Cast <to = 6> (a) d = Div (i, k) {tail}", "int32 k = {3}")
    assert constants(made, "i", tmp_path) == pytest.approx([NONE, 8], nan_ok=True)
    assert constants(made, "d", tmp_path) is None
    made = still(f"i = Cast <to = 6> (a) d = Mul (i, k) {tail}", "int32 k = {3}")
    assert constants(made, "d", tmp_path) == pytest.approx([NONE, 24], nan_ok=True)


def test_constant_operand_on_another_axis_ends_a_constant(tmp_path: Path) -> None:
    made = still("c = Concat <axis = 2> (a, k) y = Conv (c, v)", "float[2, 2, 5, 7] k")
    assert constants(made, "a", tmp_path) == pytest.approx([NONE, 8], nan_ok=True)
    assert constants(made, "c", tmp_path) is None


def test_constants_through_a_concat_without_edges(tmp_path: Path) -> None:
    """A rule of the user's own may leave out the edges from the operands."""
    made = still(
        "c = Concat <axis = 1> (a, k) r = Relu (c) y = Conv (r, u)", "float[2, 1, 5, 7] k, float[2, 3, 1, 1] u"
    )
    assert constants(made, "c", tmp_path) == pytest.approx([NONE, 8, NONE], nan_ok=True)
    rules = {**DEFAULT_RULES, ("", "Concat"): lambda call: replace(concat(call), fixed_edges=())}
    assert constants(made, "c", tmp_path, rules) is None


def test_fused_convolution_adds_a_tensor(tmp_path: Path) -> None:
    """Constant where both the convolution and what it adds are."""
    text = 'y = com.microsoft.FusedConv <activation = "Relu"> (a, u, c, {})'
    more = "float[2, 2, 1, 1] u = {1, 1, 0, 0.5}, float[2] c = {1, 1}"
    assert constants(still(text.format("a"), more), "y", tmp_path) == pytest.approx([NONE, 13], nan_ok=True)
    moving = still("s = Conv (x, t) " + text.format("s"), f"{more}, float[2, 3, 1, 1] t")
    assert constants(moving, "y", tmp_path) is None


def test_what_does_not_run_alone_is_not_called_constant(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    more = "float[2, 2, 1, 1] u = {1, 1, 0, 0.5}, float[2] c = {1, 1}"
    made = still('r = Relu (a) y = com.microsoft.FusedConv <activation = "Relu"> (r, u, c)', more)
    assert constants(made, "r", tmp_path) == pytest.approx([NONE, 8], nan_ok=True)
    assert constants(made, "y", tmp_path) == pytest.approx([NONE, 5], nan_ok=True)
    monkeypatch.setattr("leanonnx.analysis.constant_channels.run_node", lambda *_: None)
    assert [constants(made, name, tmp_path) for name in "ry"] == [None, None]

"""Budgets are of the whole network: every multiply-add and every weight of the file counts, prunable or not."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from leanonnx.analysis.cost import cost_model, count_params
from leanonnx.analysis.dag import ChannelDag, build_channel_dag
from leanonnx.analysis.product_costs import products
from leanonnx.commands.compress.pipeline import compress_file
from leanonnx.errors import BudgetUnreachable
from leanonnx.graph.model import load
from leanonnx.hardware.targets import builtin_hardware
from leanonnx.runtime.observation import observe
from leanonnx.selection.latency import latency_model, latency_rate
from leanonnx.selection.limits import kernels_held_by
from leanonnx.selection.metrics import Budget
from tests.counting import counted
from tests.helpers import Options, called, called_json, saved
from tests.variants import given, network

MICROSOFT = ', "com.microsoft" : 1'
ROWS = "(float[2, 6, 16] x) => (float[2, 6, 8] y)"
HEAD = "float[16, 32] w1, float[32, 8] w2"
HEADS = {"split": np.array([0, 0, 4, 8]), "joined": np.array([0, 0, 32])}

NETWORKS: dict[str, onnx.ModelProto] = {
    "attention": given(
        network(
            ROWS,
            "float[16, 32] wq, float[16, 32] wk, float[16, 32] wv, float[32, 8] wo",
            """q0 = MatMul (x, wq) q1 = Reshape (q0, split) q = Transpose <perm = [0, 2, 1, 3]> (q1)
            k0 = MatMul (x, wk) k1 = Reshape (k0, split) k = Transpose <perm = [0, 2, 3, 1]> (k1)
            v0 = MatMul (x, wv) v1 = Reshape (v0, split) v = Transpose <perm = [0, 2, 1, 3]> (v1)
            s = MatMul (q, k) a = Softmax <axis = -1> (s) o = MatMul (a, v)
            o1 = Transpose <perm = [0, 2, 1, 3]> (o) o2 = Reshape (o1, joined) y = MatMul (o2, wo)""",
        ),
        **HEADS,
    ),
    "stack of matrices": network(
        ROWS, f"float[2, 32, 32] stack, {HEAD}", "a = MatMul (x, w1) b = MatMul (a, stack) y = MatMul (b, w2)"
    ),
    "a vector": given(
        network(
            ROWS,
            f"float[32] vector, {HEAD}",
            """a = MatMul (x, w1) b = MatMul (a, vector) c = Unsqueeze (b, last) d = Add (a, c)
            y = MatMul (d, w2)""",
        ),
        last=np.array([-1]),
    ),
    "weight on the left": network(
        "(float[2, 16, 6] x) => (float[2, 8, 6] y)",
        "float[32, 16] w1, float[8, 32] w2",
        "a = MatMul (w1, x) r = Relu (a) y = MatMul (w2, r)",
    ),
    "inside each channel": network(
        "(float[1, 3, 8, 8] x) => (float[1, 5, 8, 4] y)",
        "float[16, 3, 1, 1] w1, float[8, 4] along, float[5, 16, 1, 1] w2",
        "a = Conv (x, w1) b = MatMul (a, along) y = Conv (b, w2)",
    ),
    "kernels mixed per image": given(
        network(
            "(float[1, 3, 8, 8] x) => (float[1, 5, 8, 8] y)",
            "float[16, 3, 3, 3] w1, float[4, 16] mixing, float[4, 2304] bank, float[5, 16, 1, 1] w3",
            """a = Conv <pads = [1, 1, 1, 1]> (x, w1) p = ReduceMean <axes = [2, 3], keepdims = 0> (a)
            g = Gemm <transB = 1> (p, mixing) s = Softmax (g) k = MatMul (s, bank) w = Reshape (k, shape)
            b = Conv <pads = [1, 1, 1, 1]> (a, w) y = Conv (b, w3)""",
        ),
        shape=np.array([16, 16, 3, 3]),
    ),
    "einsum of two": network(
        ROWS,
        f"float[16, 32] wk, {HEAD}",
        """a = MatMul (x, w1) k = MatMul (x, wk) s = Einsum <equation = "bic,bjc->bij"> (a, k)
        o = Einsum <equation = "bij,bjc->bic"> (s, a) y = MatMul (o, w2)""",
    ),
    "einsum within": network(
        ROWS,
        f"float[6, 6] places, {HEAD}",
        'a = MatMul (x, w1) b = Einsum <equation = "bic,ij->bjc"> (a, places) y = MatMul (b, w2)',
    ),
    "gated by a recurrent layer": network(
        ROWS,
        f"float[1, 64, 16] wr, float[1, 64, 16] rr, float[16, 32] after, {HEAD}",
        """h, g = LSTM <hidden_size = 16> (x, wr, rr) l = Squeeze (g) c = MatMul (l, after) a = MatMul (x, w1)
        d = Add (a, c) y = MatMul (d, w2)""",
        opset=11,
    ),
    "noise": network(
        ROWS,
        f"float[32, 32] wn, {HEAD}",
        "n = RandomNormal <shape = [2, 6, 32], seed = 1.0> () m = MatMul (n, wn) a = MatMul (x, w1) b = Add (a, m)"
        "y = MatMul (b, w2)",
    ),
    "correlation": given(
        network(
            "(float[1, 3, 8, 8] x, float[1, 3, 4, 4] z) => (float[1, 1, 5, 5] y)",
            "float[16, 3, 1, 1] w",
            "a = Conv (x, w) b = Conv (z, w) y = Conv (a, b)",
        )
    ),
}


def dag_of(proto: onnx.ModelProto, folder: Path) -> ChannelDag:
    model = load(saved(proto, folder / "model.onnx"))
    return build_channel_dag(model, observe(model, {}))


@pytest.mark.parametrize("kind", NETWORKS)
@pytest.mark.parametrize("unit", ["macs", "params"])
def test_the_report_agrees_with_the_files(kind: str, unit: str, tmp_path: Path) -> None:
    source, target = saved(NETWORKS[kind], tmp_path / "in.onnx"), tmp_path / "out.onnx"
    result = compress_file(source, target, Options(Budget(unit, 0.6), best_effort=True))
    for found, path in ((result.before, source), (result.after, target)):
        assert (found.kernels, found.macs, found.params) == counted(path)
    reached = not any("over budget" in text for text in result.warnings)
    assert reached == (getattr(result.after, unit) <= 0.6 * getattr(result.before, unit))


@pytest.mark.parametrize("kind", ["attention", "inside each channel", "correlation", "einsum within"])
def test_products_get_smaller_with_their_channels(kind: str, tmp_path: Path) -> None:
    source, target = saved(NETWORKS[kind], tmp_path / "in.onnx"), tmp_path / "out.onnx"
    row = called_json("compress", source, target, "--keep", "0.6", "--align", "1")
    assert row["products"]
    assert all(after < before for before, after in (product["macs"] for product in row["products"]))
    reported = sum(layer["macs"][1] for layer in row["layers"]) + sum(p["macs"][1] for p in row["products"])
    assert reported == row["macs"]["after"] == counted(target).macs


def test_message_names_the_layers_with_the_multiply_adds(tmp_path: Path) -> None:
    """Products by their multiply-adds, not by the kernels that they do not have."""
    source = saved(NETWORKS["kernels mixed per image"], tmp_path / "in.onnx")
    with pytest.raises(BudgetUnreachable, match=r"147456 multiply-adds.*'B'"):
        compress_file(source, tmp_path / "out.onnx", Options(Budget("macs", 0.05)))


def test_message_names_layers_that_nothing_can_cut(tmp_path: Path) -> None:
    source = saved(NETWORKS["stack of matrices"], tmp_path / "in.onnx")
    for unit, text in (("kernels", "2048 kernels: MatMul 'B'"), ("macs", "12288 multiply-adds: MatMul 'B'")):
        with pytest.raises(BudgetUnreachable, match=f"{text} cannot be pruned"):
            compress_file(source, tmp_path / "out.onnx", Options(Budget(unit, 0.2)))


def packed(domain: str, op: str, **attributes: Any) -> onnx.ModelProto:
    """A network with an operator in the middle that has no rule."""
    proto = network(ROWS, HEAD, "a = MatMul (x, w1) b = Identity (a) y = MatMul (b, w2)", 17, f', "{domain}" : 1')
    node = helper.make_node(op, ["a", "q", "s"] if op == "MatMulNBits" else ["a"], ["b"], "B", domain=domain)
    node.attribute.extend(helper.make_attribute(name, value) for name, value in attributes.items())
    proto.graph.node[1].CopyFrom(node)
    rng = np.random.default_rng(0)
    if op == "MatMulNBits":
        data = rng.integers(0, 255, (32, 2, 8)).astype(np.uint8)
        scales = rng.uniform(0.01, 0.1, (32 * 2,)).astype(np.float32)
        proto.graph.initializer.extend(numpy_helper.from_array(v, n) for n, v in (("q", data), ("s", scales)))
    return proto


def test_operators_of_onnxruntime_are_counted(tmp_path: Path) -> None:
    dag = dag_of(packed("com.microsoft", "MatMulNBits", K=32, N=32, bits=4, block_size=16), tmp_path)
    found, unknown = products(dag)
    assert [(dag.model.proto.graph.node[p.node].name, p.macs) for p in found] == [("B", 2 * 6 * 32 * 32)]
    assert not unknown


SAME = "(float[6, 6, 16] x) => (float[N, M, K] y)"
NOT_PRUNED: dict[str, tuple[onnx.ModelProto, list[int] | None]] = {
    "batches transposed": (
        network(
            SAME,
            "float[16, 32] w1, float[6, 8] w2",
            "a = MatMul (x, w1) b = com.microsoft.FusedMatMul <transBatchA = 1, transB = 1> (a, a) y = MatMul (b, w2)",
            domains=MICROSOFT,
        ),
        None,
    ),
    "einsum of one": (
        network(SAME, HEAD, 'a = MatMul (x, w1) b = Einsum <equation = "ijc->jic"> (a) y = MatMul (b, w2)'),
        [],
    ),
    "einsum with an ellipsis": (
        network(SAME, HEAD, 'a = MatMul (x, w1) b = Einsum <equation = "...c,...c->...c"> (a, a) y = MatMul (b, w2)'),
        None,
    ),
    "einsum of three": (
        network(
            ROWS, HEAD, 'a = MatMul (x, w1) b = Einsum <equation = "bic,bjc,bjd->bid"> (a, a, a) y = MatMul (b, w2)'
        ),
        [2 * 6 * 6 * 32 + 2 * 6 * 6 * 32],
    ),
    "recurrent layer on a constant": (
        network(
            "(float[1, 1, 2] x) => (float[N, M, K] y)",
            "float[2, 6] w1, float[3, 1, 4] data, float[1, 24, 4] wr, float[1, 24, 6] rr, float[6, 8] w2",
            "a = MatMul (x, w1) all, b = LSTM <hidden_size = 6> (data, wr, rr, , , a) y = MatMul (b, w2)",
            opset=14,
        ),
        [3 * (24 * 4 + 24 * 6)],
    ),
    "attention on earlier keys as well": (
        network(
            ROWS,
            f"float[2, 4, 5, 8] keys, float[2, 4, 5, 8] values, {HEAD}",
            """a = MatMul (x, w1)
            b, k, v = com.microsoft.MultiHeadAttention <num_heads = 4> (a, a, a, , , , keys, values)
            y = MatMul (b, w2)""",
            domains=MICROSOFT,
        ),
        [2 * 6 * 32 * (6 + 5), 2 * 6 * 32 * (6 + 5)],
    ),
    "attention with its projections": (
        network(
            ROWS,
            "float[16, 32] w1, float[32, 72] q, float[72] c, float[24, 8] w2",
            "a = MatMul (x, w1) b = com.microsoft.Attention <num_heads = 4> (a, q, c) y = MatMul (b, w2)",
            domains=MICROSOFT,
        ),
        [2 * 6 * 32 * 72, 2 * 2 * 6 * 6 * 24],
    ),
}


@pytest.mark.parametrize("kind", NOT_PRUNED)
def test_multiply_adds_of_operators_that_are_not_pruned(kind: str, tmp_path: Path) -> None:
    """Counted by hand; None where they are not known."""
    proto, macs = NOT_PRUNED[kind]
    dag = dag_of(proto, tmp_path)
    counted_there, unknown = products(dag)
    names = [dag.model.proto.graph.node[k].name for k in unknown]
    assert ([p.macs for p in counted_there], names) == (macs or [], ["B"] if macs is None else [])


def test_attention_on_one_packed_tensor_is_not_counted(tmp_path: Path) -> None:
    """onnxruntime runs it on GPUs alone, so the operands are packed after the run that the shapes are from."""
    body = "a = MatMul (x, w1) b = com.microsoft.MultiHeadAttention <num_heads = 4> (a, a, a) y = MatMul (b, w2)"
    dag = dag_of(network(ROWS, HEAD, body, domains=MICROSOFT), tmp_path)
    assert [p.macs for p in products(dag)[0]] == [2 * 6 * 32 * 6] * 2
    del dag.model.proto.graph.node[1].input[1:]
    assert products(dag) == ((), (1,))


def test_harmless_operators_are_no_riddle(tmp_path: Path) -> None:
    assert products(dag_of(packed("com.microsoft", "FastGelu"), tmp_path)) == ((), ())


def test_uncountable_costs_are_reported(tmp_path: Path) -> None:
    """The number of iterations of a loop depends on its data."""
    body = helper.make_graph(
        [
            helper.make_node("Identity", ["go"], ["on"]),
            helper.make_node("MatMul", ["state", "inner"], ["next"]),
        ],
        "body",
        [helper.make_tensor_value_info(n, k, s) for n, k, s in (("i", 7, []), ("go", 9, []), ("state", 1, None))],
        [helper.make_tensor_value_info("on", 9, []), helper.make_tensor_value_info("next", 1, None)],
        [numpy_helper.from_array(np.eye(32, dtype=np.float32), "inner")],
    )
    proto = given(
        network(ROWS, HEAD, "a = MatMul (x, w1) b = Identity (a) y = MatMul (b, w2)"), times=np.array(2), go=np.True_
    )
    proto.graph.node[1].CopyFrom(helper.make_node("Loop", ["times", "go", "a"], ["b"], "B", body=body))
    source = saved(proto, tmp_path / "in.onnx")
    assert called_json("inspect", source)["uncounted"] == ["Loop 'B'"]
    assert called_json("inspect", source)["params"] == counted(source).params + 32 * 32
    done = called("compress", source, tmp_path / "out.onnx", "--keep", "0.9", "--best-effort")
    assert "not known: the multiply-adds of Loop 'B'" in " ".join(done.stdout.split())


def test_sparse_weights_are_stored_too(tmp_path: Path) -> None:
    proto = network(ROWS, HEAD, "a = MatMul (x, w1) y = MatMul (a, w2)")
    before = count_params(dag_of(proto, tmp_path).model)
    values = numpy_helper.from_array(np.ones(3, np.float32), "sparse")
    indices = numpy_helper.from_array(np.array([1, 2, 3]), "indices")
    proto.graph.sparse_initializer.append(helper.make_sparse_tensor(values, indices, [9]))
    model = load(saved(NETWORKS["stack of matrices"], tmp_path / "other.onnx"))
    model.proto.CopyFrom(proto)
    assert count_params(model) == before + 3


CONCAT = network(
    "(float[1, 3, 8, 8] x) => (float[1, 24, 8, 8] y)",
    "float[16, 3, 1, 1] w1, float[12, 16, 1, 1] w2, float[12, 16, 1, 1] w3",
    "a = Conv (x, w1) b = Conv (a, w2) c = Conv (a, w3) y = Concat <axis = 1> (b, c)",
)


def test_pins_reach_through_concat(tmp_path: Path) -> None:
    """A concatenated output keeps the kernels that compute its channels."""
    dag = dag_of(CONCAT, tmp_path)
    held = kernels_held_by(dag, cost_model(dag), dag.all_alive, dag.pins, by=lambda pin: pin.reason)
    assert held["graph output 'y'"] == 2 * 12 * 16


def test_unprunable_work_leaves_the_ranking_alone(tmp_path: Path) -> None:
    """It is part of the predicted time, and no kernel's share of it."""
    dag = dag_of(NETWORKS["stack of matrices"], tmp_path)
    target = builtin_hardware()["cpu-avx512"]
    predicted, rate = latency_model(dag, target), latency_rate(dag, target)
    fixed = [(node, mix) for node, mix in dag.kernel_blocks if mix.input_channel_ids is None]
    assert [rate(node, mix) for node, mix in fixed] == [0.0]
    assert all(rate(node, mix) > 0 for node, mix in dag.kernel_blocks if mix.input_channel_ids is not None)
    apart = predicted(dag.all_alive) - replace(predicted, products=())(dag.all_alive)
    assert apart == pytest.approx(2 * 6 * 32 * 32 / target.gemm * 1e-6)

"""Finding branches: residual blocks, blocks with a convolution as shortcut, gates; and what is none."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from leanonnx.analysis.branch_costs import branch_costs
from leanonnx.analysis.branches import Branch, compatible, find_branches
from leanonnx.graph.model import load
from leanonnx.runtime.observation import observe
from tests.blocks import BASIC, BOTTLENECK, GATE, NESTED, framed, inverted
from tests.helpers import build, saved
from tests.shortened import branches_of, observed

SAME = "<pads = [1, 1, 1, 1]>"
TRAINING = """
    p = Conv (s, w)
    k, mo, vo = BatchNormalization <training_mode = 1> (p, b4, b4, b4, c5)
    a = Conv (s, v)
    f = Relu (a)
    z = Add (k, f)
"""


def summary(text: str) -> list[tuple[str, str, str]]:
    """Kind, stream and output of each branch of a block."""
    return [(branch.kind, branch.stream, branch.output) for branch in branches_of(build(text))]


def names(proto: onnx.ModelProto, branch: Branch) -> list[str]:
    """Outputs of the nodes of a branch."""
    return [proto.graph.node[k].output[0] for k in branch.nodes]


def test_identity_shortcut() -> None:
    proto = build(BASIC)
    (branch,) = branches_of(proto)
    assert (branch.kind, branch.stream, branch.output, branch.channels, branch.rank) == ("linear", "s", "z", 4, 4)
    assert names(proto, branch) == ["a", "n", "r", branch.operand] == ["a", "n", "r", "f"]
    assert proto.graph.node[branch.join].output[0] == "z"
    assert branch.element_type == TensorProto.FLOAT


def test_convolution_as_shortcut() -> None:
    proto = build(BOTTLENECK)
    (branch,) = branches_of(proto)
    assert (branch.kind, branch.stream, branch.output, branch.channels) == ("shortcut", "s", "z", 6)
    assert [proto.graph.node[k].output[0] for k in branch.shortcut] == ["p", "k"]
    assert names(proto, branch) == ["a", "ra", "b", "rb", "c", "f"]


def test_gate_within_a_block() -> None:
    proto = build(NESTED)
    outer, inner = branches_of(proto)[::-1]
    assert (inner.kind, inner.stream, inner.output) == ("scale", "a", "g")
    assert (outer.kind, outer.stream, outer.output) == ("linear", "s", "z")
    assert inner.join in outer.nodes
    assert compatible([inner, outer]) == (outer,)
    assert compatible([outer, inner]) == (outer,)
    assert compatible([inner]) == (inner,)


def test_one_branch_for_each_join() -> None:
    both = branches_of(build(framed("p = Conv (s, v)  q = Conv (s, w)  z = Add (p, q)")))
    assert [branch.kind for branch in both] == ["shortcut", "shortcut"]
    assert compatible(both) == both[:1]


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ("f = Conv (s, v)  z = Add (f, s)", ("linear", "s", "z")),
        ("f = Conv (s, v)  z = Sub (f, s)", ("linear", "s", "z")),
        ("f = Conv (s, v)  z = Sum (s, f)", ("linear", "s", "z")),
        ("i = Identity (s)  f = Conv (s, v)  z = Add (i, f)", ("linear", "s", "z")),
        ("r = Relu (s)  f = Conv (s, v)  z = Add (r, f)", ("linear", "r", "z")),
        ("r = Relu (s)  f = Conv (r, v)  o = Add (r, f)  z = Add (o, s)", ("linear", "r", "o")),
        ("l = Sigmoid (s)  h = Mul (s, l)  f = Conv (h, v)  z = Add (s, f)", ("linear", "s", "z")),
        ("p = Conv (s, w)  f = Conv (s, v)  z = Sub (p, f)", ("shortcut", "s", "z")),
        (f"p = AveragePool <kernel_shape = [3, 3], pads = [1, 1, 1, 1]> (s)  k = Conv (p, w)  a = Conv {SAME} (s, u)"
         "  r = Relu (a)  f = Conv (r, v)  z = Add (k, f)", ("shortcut", "p", "z")),
        ("t = Relu (s)  a = Conv (t, v)  b = Conv (t, w)  d = Relu (a)  k = Conv (s, x2)  e = Add (k, d)"
         "  z = Add (e, b)", ("shortcut", "s", "e")),
        (GATE.format("Sigmoid (o)"), ("scale", "s", "z")),
        (GATE.format("HardSigmoid (o)"), ("scale", "s", "z")),
        (GATE.format("Clip (o, low, high)"), ("scale", "s", "z")),
        ("p = GlobalAveragePool (s)  k = Flatten (p)  q = Gemm (k, rows)  g = Sigmoid (q)  i = Reshape (g, four)"
         "  z = Mul (s, i)", ("scale", "s", "z")),
        (f"o = Conv {SAME} (s, one)  g = Sigmoid (o)  z = Mul (g, s)", ("scale", "s", "z")),
    ],
)  # fmt: skip
def test_other_forms(body: str, expected: tuple[str, str, str]) -> None:
    assert expected in summary(framed(body))


@pytest.mark.parametrize(
    "body",
    [
        "g = Sigmoid (s)  z = Mul (s, g)",
        "f = Conv (s, v)  z = Add (f, c4)",
        "f = Conv (s, v)  h = Relu (f)  e = Add (s, f)  z = Concat <axis = 1> (e, h)",
        "f = Conv (s, v)  e = Add (s, f)  i = Shape (f)  r = Reshape (e, i)  z = Relu (r)",
        "f = Conv (s, v)  d = Conv (s, w)  h = Mul (f, d)  q = Conv (x, w4)  e = Mul (h, q)  z = Add (s, e)",
        "f = BatchNormalization (s, b4, b4, b4, c5)  z = Add (s, f)",
        "f = Conv (s, v)  p = GlobalAveragePool (s)  z = Add (p, f)",
        "a = Conv (s, v)  r = Relu (a)  k = Conv (r, w)  f = Conv (s, v)  z = Sub (k, f)",
        "f = Conv (s, v)  e = Add (f, f)  z = Concat <axis = 1> (e, s)",
        "f = Conv (s, v)  z = Div (s, f)",
        "f = Conv (s, v)  dead = Add (s, f)  z = Relu (s)",
        TRAINING,
        "p = GlobalAveragePool (s)  k = Flatten (p)  q = Gemm (k, rows)  i = Reshape (q, four)  z = Add (s, i)",
        "o = MatMul (s, m6)  g = Sigmoid (o)  z = Mul (s, g)",
        "r = Reshape (s, flat)  d = Conv (r, v3)  i = Shape (s)  f = Reshape (d, i)  z = Add (s, f)",
    ],
)
def test_no_branches(body: str) -> None:
    """Products are missing, or other nodes read the branch, or it reads more than one tensor, or sizes differ."""
    assert summary(framed(body)) == []


def test_output_of_the_graph_within_a_branch() -> None:
    """What leads to it stays; what follows it is a branch of its own."""
    proto = build(BASIC)
    proto.graph.output.append(helper.make_tensor_value_info("r", TensorProto.FLOAT, [None] * 4))
    (branch,) = branches_of(proto)
    assert (branch.stream, names(proto, branch)) == ("s", ["f"])


@pytest.mark.parametrize(("inner", "expected"), [("s", [("linear", "s", "z")]), ("f", [])])
def test_subgraphs(inner: str, expected: list[tuple[str, str, str]]) -> None:
    """The subgraphs of an If may read tensors of the graph; branches within them are left alone."""
    body = f"""f = Conv (s, v)  z = Add (s, f)
        e = If (flag) <then_branch = t () => (float[n, m, h, w] i) {{ i = Relu ({inner}) }},
                       else_branch = o () => (float[n, m, h, w] j) {{ k = Conv (s, v)  j = Add (s, k) }}>"""
    text = framed(body).replace("framed (", "framed (bool flag, ").replace("z)\n<", "z, float[n, m, h, w] e)\n<")
    assert summary(text) == expected


def unknown_types(tail: str) -> str:
    """A block behind an operator of onnxruntime, whose output type ONNX cannot infer."""
    text = framed(f"k = com.microsoft.QuickGelu <alpha = 1.7> (s)  f = Conv (k, v)  e = Add (k, f)  {tail}")
    return text.replace('["" : 17]', '["" : 17, "com.microsoft" : 1]')


def test_types_that_are_not_inferred() -> None:
    """They are known only if all floats of the model have one type."""
    assert summary(unknown_types("z = Relu (e)")) == [("linear", "k", "e")]
    assert summary(unknown_types("d = Cast <to = 11> (e)  g = Relu (d)  z = Cast <to = 1> (g)")) == []


def test_stream_made_by_the_first_node() -> None:
    text = """
        <ir_version: 8, opset_import: ["" : 17]>
        first (float[1, 4, 6, 6] x) => (float[1, 4, 6, 6] z) <float[4, 4, 1, 1] v>
        { s = Relu (x)  f = Conv (x, v)  z = Add (s, f) }
    """
    assert summary(text) == [("linear", "s", "z")]


def test_dead_readers_do_not_count() -> None:
    assert summary(framed("f = Conv (s, v)  dead = Relu (f)  z = Add (s, f)")) == [("linear", "s", "z")]


def test_shapes_that_a_branch_reads_are_no_data() -> None:
    """A Reshape to the shape of another tensor, as exporters write it."""
    body = "f = Conv (s, v)  i = Shape (x)  j = Shape (s)  r = Reshape (f, j)  z = Add (s, r)"
    assert summary(framed(body)) == [("linear", "s", "z")]


def test_constants_that_a_caller_may_replace() -> None:
    """They are inputs of the graph: no branch reads them, and no shortcut is refitted that does."""
    for name in ("w1", "wk"):
        proto = build(BOTTLENECK)
        weight = next(t for t in proto.graph.initializer if t.name == name)
        proto.graph.input.append(helper.make_tensor_value_info(name, weight.data_type, weight.dims))
        assert branches_of(proto) == ()
        proto.ir_version = 3
        for tensor in proto.graph.initializer:
            if tensor.name != name:
                proto.graph.input.append(helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims))
        proto.opset_import[0].version = 8
        assert len(branches_of(proto)) == 1


def test_channels_on_the_last_axis_are_left_alone() -> None:
    text = """
        <ir_version: 8, opset_import: ["" : 17]>
        rows (float[1, 5, 4] x) => (float[1, 5, 4] z) <float[4, 8] w, float[8, 4] v>
        { a = MatMul (x, w)  r = Relu (a)  f = MatMul (r, v)  z = Add (x, f) }
    """
    assert summary(text) == []


def test_old_operator_sets_broadcast_by_attributes(tmp_path: Path) -> None:
    model = load(saved(build(inverted(7)), tmp_path / "m.onnx"))
    shapes = observe(model, {}).shapes
    assert len(find_branches(model, shapes)) == 1
    model.proto.opset_import[0].version = 6
    assert find_branches(replace(model), shapes) == ()


def test_costs(tmp_path: Path) -> None:
    """Multiply-adds of a 3×3 and a 1×1 convolution with 4 channels at 6×6 positions, and of one 4×4 matrix."""
    dag = observed(build(BASIC), tmp_path)
    found_there = find_branches(dag.model, dag.shapes)
    (cost,) = branch_costs(dag, found_there)
    assert cost.macs == 36 * (5 * 4 * 9 + 4 * 5)
    assert cost.nodes == 4
    assert cost.standin_macs == 36 * 4 * 4
    alive = ~np.isin(dag.groups, dag.groups[dag.channel_ids["a"].reshape(-1)[:2]])
    assert branch_costs(dag, found_there, alive)[0].macs == 36 * (3 * 4 * 9 + 4 * 3)
    assert branch_costs(dag, found_there, alive)[0].standin_macs == 36 * 4 * 4
    gate = observed(build(NESTED), tmp_path)
    assert [cost.standin_macs for cost in branch_costs(gate, find_branches(gate.model, gate.shapes))] == [0, 576]


def test_block_behind_a_global_pool() -> None:
    assert summary(framed("p = GlobalAveragePool (s)  f = Conv (p, v)  z = Add (p, f)")) == [("linear", "p", "z")]

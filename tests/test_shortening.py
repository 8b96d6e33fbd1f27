"""Branches replaced by stand-ins: what stays, what goes, number formats, and wrong edits that the proof catches."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from leanonnx.analysis.branches import Branch, find_branches
from leanonnx.analysis.dag import ChannelDag
from leanonnx.graph.model import Model, load
from leanonnx.proof.proof import FAILED
from leanonnx.runtime.observation import observe
from leanonnx.surgery.shortening import StandIn, graft, shorten
from tests.blocks import BASIC, BOTTLENECK, GATE, NESTED, framed, inverted
from tests.helpers import build, saved, saved_external
from tests.shortened import full_standin, observed, proof_of, without_branches

Operators = list[str]


def operators(proto: onnx.ModelProto) -> Operators:
    return [node.op_type for node in proto.graph.node]


def stored(proto: onnx.ModelProto) -> dict[str, tuple[int, ...]]:
    """Sizes of the initializers."""
    return {tensor.name: tuple(tensor.dims) for tensor in proto.graph.initializer}


def node(proto: onnx.ModelProto, output: str) -> onnx.NodeProto:
    return next(each for each in proto.graph.node if output in each.output)


@pytest.mark.parametrize("text", [BASIC, BOTTLENECK, inverted(17), NESTED, framed(GATE.format("Sigmoid (o)"))])
def test_hand_made_blocks_are_proven(text: str) -> None:
    without_branches(build(text))


@pytest.mark.parametrize(
    ("standin", "middle"),
    [
        (StandIn(np.ones((4, 4)), np.ones(4)), ["Conv"]),
        (StandIn(np.ones((4, 4))), ["Conv"]),
        (StandIn(np.ones(4), np.ones(4)), ["Mul", "Add"]),
        (StandIn(np.ones(4)), ["Mul"]),
        (StandIn(None, np.ones(4)), ["Add"]),
        (StandIn(), ["Identity"]),
    ],
)
def test_form_of_a_stand_in_for_a_residual_branch(standin: StandIn, middle: Operators) -> None:
    result = without_branches(build(BASIC), lambda *_: standin)
    assert operators(result) == ["Conv", "Relu", *middle, "Relu"]
    last = node(result, "z")
    assert (last.name, last.op_type) == ("Z", middle[-1])
    assert not {"w1", "w2", "b2", "ng", "nb", "nm", "nv"} & stored(result).keys()


def test_refitted_shortcut_takes_over_the_name() -> None:
    """Its batch normalisation goes, its strides stay."""
    result = without_branches(build(BOTTLENECK))
    assert operators(result) == ["Conv", "Relu", "Conv", "Relu", "Conv"]
    conv = node(result, "z")
    assert (conv.name, conv.input[0], helper.get_node_attr_value(conv, "strides")) == ("P", "s", [2, 2])
    assert [stored(result)[name] for name in conv.input[1:]] == [(6, 4, 1, 1), (6,)]
    assert stored(result).keys() == {"w0", "u", *conv.input[1:]}


def test_refitted_shortcut_without_bias() -> None:
    weight = np.random.default_rng(0).standard_normal((6, 4, 1, 1))
    conv = node(without_branches(build(BOTTLENECK), lambda *_: StandIn(weight)), "z")
    assert len(conv.input) == 2


def test_shortcut_that_stays_as_it_is() -> None:
    result = without_branches(build(BOTTLENECK), lambda *_: StandIn())
    assert operators(result) == ["Conv", "Relu", "Conv", "BatchNormalization", "Relu", "Conv"]
    assert node(result, "z").name == "K"


def test_gate_becomes_factors() -> None:
    result = without_branches(build(framed(GATE.format("Sigmoid (o)"))))
    assert operators(result) == ["Conv", "Relu", "Mul"]
    factors = node(result, "z").input[1]
    assert stored(result)[factors] == (1, 4, 1, 1)


SHARED = "a = Conv (s, v)  t = Add (s, a)  r = Relu (t)  b = Conv (r, v)  z = Add (r, b)"


def test_weights_that_another_branch_reads_stay(tmp_path: Path) -> None:
    dag = observed(build(framed(SHARED)), tmp_path)
    first, second = find_branches(dag.model, dag.shapes)
    for chosen, there in (([first], True), ([second], True), ([first, second], False)):
        replaced = {branch: full_standin(dag.model, branch) for branch in chosen}
        result = shorten(dag.model, replaced)
        assert ("v" in stored(result)) == there
        assert proof_of(result, dag, replaced).passed


def test_constants_behind_identity_and_in_nodes() -> None:
    """Nodes that only hold or copy a weight go with the last node that reads it."""
    body = "i = Identity (v)  k = Constant <value_floats = [1.0, 2.0, 3.0, 4.0]> ()  f = Conv (s, i, k)  z = Add (s, f)"
    result = without_branches(build(framed(body)))
    assert operators(result) == ["Conv", "Relu", "Conv"]
    assert "v" not in stored(result)
    shared = without_branches(build(framed(body.replace("z = Add (s, f)", "e = Add (s, f)  z = Conv (e, i, k)"))))
    assert operators(shared) == ["Conv", "Relu", "Identity", "Constant", "Conv", "Conv"]


def test_initializers_that_have_to_be_listed_as_inputs() -> None:
    proto = build(inverted(8))
    result = without_branches(proto)
    assert {value.name for value in result.graph.input} == {"x", *stored(result)}
    assert {"w1", "w2", "w3"}.isdisjoint(stored(result))


@pytest.mark.parametrize("opset", range(7, 23))
def test_operator_sets(opset: int) -> None:
    assert without_branches(build(inverted(opset))).opset_import[0].version == opset


@pytest.mark.parametrize("spatial", [(9,), (5, 6), (4, 3, 4)])
@pytest.mark.parametrize("text", [BASIC, BOTTLENECK])
def test_one_to_three_spatial_axes(text: str, spatial: tuple[int, ...]) -> None:
    rank = len(spatial)
    for two, many in (
        ("6, 6]", f"{', '.join(map(str, spatial))}]"),
        ("3, 3] y", f"{', '.join('abc'[:rank])}] y"),
        ("3, 3]", f"{', '.join(['3'] * rank)}]"),
        ("1, 1]", f"{', '.join(['1'] * rank)}]"),
        ("1, 1, 1, 1]", f"{', '.join(['1'] * 2 * rank)}]"),
        ("[2, 2]", f"[{', '.join(['2'] * rank)}]"),
    ):
        text = text.replace("pads = [1, 1, 1, 1]", "pads = PADS").replace(two, many)
    text = text.replace("PADS", f"[{', '.join(['1'] * 2 * rank)}]")
    without_branches(build(text))


def halved(proto: onnx.ModelProto) -> onnx.ModelProto:
    """The model in half precision."""
    for value in (*proto.graph.input, *proto.graph.output):
        value.type.tensor_type.elem_type = TensorProto.FLOAT16
    for tensor in proto.graph.initializer:
        tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float16), tensor.name))
    return proto


@pytest.mark.parametrize("text", [BASIC, BOTTLENECK])
def test_half_precision(text: str) -> None:
    result = without_branches(halved(build(text)))
    assert {tensor.data_type for tensor in result.graph.initializer} == {TensorProto.FLOAT16}


def test_all_else_stays(tmp_path: Path) -> None:
    """Doc strings, metadata, declared types and annotations of what is left; none of what is gone."""
    proto = onnx.shape_inference.infer_shapes(build(BASIC))
    proto.graph.doc_string, node(proto, "z").doc_string = "a network", "the join"
    helper.set_model_props(proto, {"key": "value"})
    for name in ("s", "r"):
        proto.graph.quantization_annotation.add(tensor_name=name)
    result = without_branches(proto)
    assert (result.graph.doc_string, node(result, "z").doc_string) == ("a network", "the join")
    assert result.metadata_props == proto.metadata_props
    assert {value.name for value in result.graph.value_info} == {"c", "s", "z"}
    assert [note.tensor_name for note in result.graph.quantization_annotation] == ["s"]
    assert result.graph.node[0] == proto.graph.node[0]
    assert list(result.graph.input) == list(proto.graph.input)
    assert list(result.graph.output) == list(proto.graph.output)


def test_joined_tensor_that_is_an_output() -> None:
    proto = build(framed("f = Conv (s, v)  z = Add (s, f)"))
    assert [value.name for value in without_branches(proto).graph.output] == ["z"]


def test_external_data(tmp_path: Path) -> None:
    model = load(saved_external(build(BASIC), tmp_path / "m.onnx"))
    (branch,) = find_branches(model, observe(model, {}).shapes)
    assert numpy_helper.to_array(shorten(model, {branch: StandIn()}).graph.initializer[0]).shape == (4, 3, 3, 3)


def test_what_does_not_fit_is_refused(tmp_path: Path) -> None:
    nested = observed(build(NESTED), tmp_path)
    gate, block = find_branches(nested.model, nested.shapes)
    with pytest.raises(ValueError, match="overlap"):
        shorten(nested.model, {gate: StandIn(np.ones(5)), block: StandIn()})
    for edit in (shorten, graft):
        for wrong in (StandIn(np.ones((4, 3))), StandIn(np.ones(3)), StandIn(None, np.ones(5))):
            with pytest.raises(ValueError, match="for 4 channels"):
                edit(nested.model, {block: wrong})
    beside = observed(build(BOTTLENECK), tmp_path)
    (branch,) = find_branches(beside.model, beside.shapes)
    for edit in (shorten, graft):
        for wrong in (StandIn(np.ones((6, 4))), StandIn(np.ones((6, 4, 1, 1)), np.ones(4)), StandIn(None, np.ones(6))):
            with pytest.raises(ValueError, match="the stand-in has"):
                edit(beside.model, {branch: wrong})


def test_reference_keeps_all_nodes(tmp_path: Path) -> None:
    """It computes the branch, whose join has another name, and reads the stand-in in its place."""
    model = load(saved(build(BASIC), tmp_path / "m.onnx"))
    (branch,) = find_branches(model, observe(model, {}).shapes)
    reference = graft(model, {branch: StandIn(np.ones((4, 4)))})
    assert [each.op_type for each in reference.graph.node].count("Conv") == 3
    assert node(reference, "z").op_type == "Reshape"
    assert stored(reference).keys() > stored(model.proto).keys()


Wrong = Callable[[Model, Branch, StandIn], onnx.ModelProto]


def with_arrays(change: Callable[[StandIn], StandIn]) -> Wrong:
    return lambda model, branch, standin: shorten(model, {branch: change(standin)})


def edited(change: Callable[[onnx.ModelProto, Branch], object]) -> Wrong:
    """A change of the shortened model."""

    def edit(model: Model, branch: Branch, standin: StandIn) -> onnx.ModelProto:
        proto = shorten(model, {branch: standin})
        change(proto, branch)
        return proto

    return edit


def first_node_kept(model: Model, branch: Branch, standin: StandIn) -> onnx.ModelProto:
    """The stand-in reads what the first node of the branch outputs."""
    shorter = replace(branch, nodes=branch.nodes[1:], stream=model.proto.graph.node[branch.nodes[0]].output[0])
    return shorten(model, {shorter: standin})


def one_reader_more(model: Model, branch: Branch, standin: StandIn) -> onnx.ModelProto:
    """A node before the branch is taken for one of its nodes."""
    return shorten(model, {replace(branch, nodes=(1, *branch.nodes)): standin})


MUTANTS: dict[str, tuple[str, Wrong]] = {
    "transposed matrix": (BASIC, with_arrays(lambda s: StandIn(s.weight.T, s.bias))),
    "no bias": (BASIC, with_arrays(lambda s: StandIn(s.weight))),
    "no matrix": (BASIC, with_arrays(lambda s: StandIn(None, s.bias))),
    "diagonal alone": (BASIC, with_arrays(lambda s: StandIn(np.diag(s.weight), s.bias))),
    "rolled factors": (framed(GATE.format("Sigmoid (o)")), with_arrays(lambda s: StandIn(np.roll(s.weight, 1)))),
    "no factors": (framed(GATE.format("Sigmoid (o)")), with_arrays(lambda s: StandIn())),
    "stream before its function": (BASIC, edited(lambda p, b: node(p, "z").input.__setitem__(0, "c"))),
    "first node kept": (BASIC.replace("float[5, 4, 3, 3] w1", "float[4, 4, 3, 3] w1").replace("[5", "[4")
                        .replace("{1, 1.5, 0.5, 1, 2}", "{1, 1.5, 0.5, 1}").replace("4, 5, 1", "4, 4, 1"),
                        first_node_kept),
    "node of others removed": (BASIC, one_reader_more),
    "branch kept": (BASIC, lambda model, branch, standin: model.proto),
    "shortcut not refitted": (BOTTLENECK, with_arrays(lambda s: StandIn())),
    "shortcut without strides": (BOTTLENECK, edited(lambda p, b: node(p, "z").ClearField("attribute"))),
    "shortcut without bias": (BOTTLENECK, with_arrays(lambda s: StandIn(s.weight))),
    "shortcut reads another tensor": (BOTTLENECK, edited(lambda p, b: node(p, "z").input.__setitem__(0, "t"))),
    "function behind the join lost": (BASIC, edited(lambda p, b: node(p, "y").__setattr__("op_type", "Identity"))),
}  # fmt: skip


def verdict(dag: ChannelDag, wrong: Wrong) -> str:
    """'passed', 'failed', or 'refused' by the surgery, the checker or onnxruntime."""
    (branch,) = find_branches(dag.model, dag.shapes)
    standin = full_standin(dag.model, branch)
    try:
        return proof_of(wrong(dag.model, branch, standin), dag, {branch: standin}).status
    except Exception:  # the checker and onnxruntime raise many unrelated types
        return "refused"


@pytest.mark.parametrize("name", MUTANTS)
def test_wrong_edits_are_caught(name: str, tmp_path: Path) -> None:
    text, wrong = MUTANTS[name]
    dag = observed(build(text), tmp_path)
    assert verdict(dag, lambda model, branch, standin: shorten(model, {branch: standin})) == "passed"
    refused = {"node of others removed", "shortcut without strides"}
    assert verdict(dag, wrong) == ("refused" if name in refused else FAILED)

"""Cleaning up the graph: what is removed, what stays, and that nothing visible to a caller changes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given
from onnx import TensorProto, helper

from leanonnx.commands.compress.pipeline import compress_file
from leanonnx.errors import ProofFailed
from leanonnx.graph import noops
from leanonnx.graph import tidy as tidies
from leanonnx.graph.model import load
from leanonnx.graph.tidy import tidy
from leanonnx.proof.proof import random_inputs, relative_error
from leanonnx.runtime.observation import observe
from leanonnx.runtime.sessions import run
from tests.graphs import models
from tests.helpers import Options, build, called, compressed, saved

FRAME = """
<ir_version: 8, opset_import: ["" : {opset}]>
small (float[{batch}, 2, 4, 4] x) => (float[n, c, h, w] y)
<float[4, 2, 3, 3] w, float[4, 4, 1, 1] v{constants}>
{{
    c = Conv <pads = [1, 1, 1, 1]> (x, w)
    {body}
    y = Conv (d, v)
}}
"""


def framed(body: str, constants: str = "", opset: int = 17, batch: int | str = 1) -> onnx.ModelProto:
    """A convolution with output ``c``, nodes from ``c`` to ``d``, and a convolution that reads ``d``."""
    more = f", {constants}" if constants else ""
    return build(FRAME.format(body=body, constants=more, opset=opset, batch=batch))


def operators(proto: onnx.ModelProto) -> list[str]:
    return [node.op_type for node in proto.graph.node]


def difference(one: onnx.ModelProto, other: onnx.ModelProto, folder: Path) -> float:
    """The largest relative difference of the outputs of two models; infinite if their shapes differ."""
    model = load(saved(one, folder / "one.onnx"))
    feeds = random_inputs(model, observe(model, {}).shapes)
    pairs = zip(run(one, feeds), run(other, feeds), strict=True)
    return max(relative_error(a, b) for rows in pairs for a, b in zip(*rows, strict=True))


GOES = {
    "Identity": "d = Identity (c)",
    "Identities in a row": "i = Identity (c) j = Identity (i) d = Identity (j)",
    "Dropout": "d, mask = Dropout (c)",
    "Slice": (
        "d = Slice (c, low, high, axes)",
        "int64[2] low = {0, 0}, int64[2] high = {4, 99}, int64[2] axes = {2, -1}",
    ),
    "Pad": ("d = Pad (c, none)", "int64[8] none = {0, 0, 0, 0, 0, 0, 0, 0}"),
    "Reshape to 0": ("d = Reshape (c, to)", "int64[4] to = {0, 0, 0, 0}"),
    "Reshape to its own sizes": ("d = Reshape (c, to)", "int64[4] to = {0, 4, -1, 4}"),
    "Expand": ("d = Expand (c, to)", "int64[3] to = {4, 1, 1}"),
    "Tile": ("d = Tile (c, once)", "int64[4] once = {1, 1, 1, 1}"),
    "Transpose": "d = Transpose <perm = [0, 1, 2, 3]> (c)",
    "two Transposes": "t = Transpose <perm = [0, 2, 3, 1]> (c) d = Transpose <perm = [0, 3, 1, 2]> (t)",
    "Cast": "d = Cast <to = 1> (c)",
    "Unsqueeze and Squeeze": ("u = Unsqueeze (c, at) d = Squeeze (u, at)", "int64[1] at = {-1}"),
    "Squeeze and Unsqueeze": ("u = Squeeze (c, at) d = Unsqueeze (u, at)", "int64[1] at = {0}"),
    "MaxPool": "d = MaxPool <kernel_shape = [1, 1]> (c)",
    "Concat": "d = Concat <axis = 1> (c)",
    "Sum": "d = Sum (c)",
    "Max": "d = Max (c)",
    "added zeros": ("d = Add (zeros, c)", "float[4, 1, 1] zeros = {0, 0, 0, 0}"),
    "subtracted zero": ("d = Sub (c, zero)", "float zero = {0}"),
    "ones": ("d = Mul (c, ones)", "float[1, 4, 1, 1] ones = {1, 1, 1, 1}"),
    "divided by one": ("d = Div (c, one)", "float[1] one = {1}"),
}
STAYS = {
    "a Slice that cuts": (
        "d = Slice (c, low, high, axes)",
        "int64[1] low = {0}, int64[1] high = {3}, int64[1] axes = {2}",
    ),
    "a Slice backwards": (
        "d = Slice (c, low, high, axes, step)",
        "int64[1] low = {3}, int64[1] high = {-99}, int64[1] axes = {2}, int64[1] step = {-1}",
    ),
    "a Reshape": ("d = Reshape (c, to)", "int64[4] to = {1, 4, 2, 8}"),
    "a Tile": ("d = Tile (c, twice)", "int64[4] twice = {1, 1, 2, 1}"),
    "a Transpose": "d = Transpose <perm = [0, 1, 3, 2]> (c)",
    "one minus": ("d = Sub (zero, c)", "float zero = {0}"),
    "one over": ("d = Div (one, c)", "float one = {1}"),
    "a sum that grows": ("d = Add (c, zeros)", "float[2, 1, 1, 1] zeros = {0, 0}"),
    "a sum of higher rank": (
        "s = Add (c, zeros) d = Reshape (s, to)",
        "float[1, 1, 1, 1, 1] zeros = {0}, int64[4] to = {1, 4, 4, 4}",
    ),
    "a Dropout whose mask is read": "k, mask = Dropout (c) e = Cast <to = 1> (mask) d = Mul (k, e)",
    "a window of more": "d = MaxPool <kernel_shape = [2, 2]> (c)",
}


@pytest.mark.parametrize("name", GOES)
def test_nodes_that_return_their_input_are_removed(name: str, tmp_path: Path) -> None:
    case = GOES[name]
    proto = framed(*(case if isinstance(case, tuple) else (case,)))
    before = proto.SerializeToString(deterministic=True)
    found = tidy(proto)
    assert operators(found.proto) == ["Conv", "Conv"]
    assert set(found.done) <= {"no-op", "unread"}
    assert [node.SerializeToString() for node in found.proto.graph.node[:1]] == [
        proto.graph.node[0].SerializeToString()
    ]
    assert {t.name for t in found.proto.graph.initializer} == {"w", "v"}
    assert difference(proto, found.proto, tmp_path) == 0
    assert proto.SerializeToString(deterministic=True) == before
    assert tidy(found.proto).proto is found.proto


@pytest.mark.parametrize("name", STAYS)
def test_nodes_that_do_something_stay(name: str) -> None:
    case = STAYS[name]
    proto = framed(*(case if isinstance(case, tuple) else (case,)))
    assert tidy(proto).proto is proto
    assert tidy(proto).done == {}


def test_sizes_of_a_single_run_are_not_trusted() -> None:
    """With a free batch, zeros of two samples may make two of one."""
    for batch, stays in (("N", True), (2, False)):
        proto = framed("d = Add (c, zeros)", "float[2, 1, 1, 1] zeros = {0, 0}", batch=batch)
        assert ("Add" in operators(tidy(proto).proto)) == stays


def test_transposes_become_one(tmp_path: Path) -> None:
    proto = framed("t = Transpose <perm = [0, 2, 3, 1]> (c) d = Transpose <perm = [0, 3, 2, 1]> (t)")
    found = tidy(proto).proto
    assert operators(found) == ["Conv", "Transpose", "Conv"]
    assert difference(proto, found, tmp_path) == 0


def test_outputs_keep_their_names(tmp_path: Path) -> None:
    """A tensor that a last node passes on takes the name of the output; a graph input does not."""
    proto = build("""
        <ir_version: 8, opset_import: ["" : 17]>
        ends (float[1, 2] x) => (float[1, 2] y, float[1, 2] z, float[1, 2] same)
        { r = Relu (x) s = Identity (r) t = Exp (s) y = Identity (s) z = Dropout (t) same = Identity (x) }""")
    found = tidy(proto).proto
    assert operators(found) == ["Relu", "Exp", "Identity"]
    assert list(found.graph.output) == list(proto.graph.output)
    assert difference(proto, found, tmp_path) == 0


def test_names_in_subgraphs_and_annotations_stay(tmp_path: Path) -> None:
    proto = build("""
        <ir_version: 8, opset_import: ["" : 17]>
        inner (float[2] x, bool cond) => (float[2] y)
        { i = Identity (x) j = Identity (x) k = Identity (x) s = Add (i, k)
          t = If (cond) <then_branch = g () => (float[2] a) { a = Add (i, i) },
                         else_branch = h () => (float[2] b) { b = Identity (i) }>
          u = Add (t, s) y = Add (u, j) }""")
    proto.graph.quantization_annotation.add(tensor_name="j")
    proto.graph.quantization_annotation.add(tensor_name="k_unknown")
    found = tidy(proto).proto
    assert [n.output[0] for n in found.graph.node] == ["i", "j", "s", "t", "u", "y"]
    assert list(found.graph.node[2].input) == ["i", "x"]
    assert list(found.graph.quantization_annotation) == list(proto.graph.quantization_annotation)
    assert difference(proto, found, tmp_path) == 0


@pytest.mark.parametrize(("version", "stays"), [(3, False), (8, True)])
def test_initializers_listed_as_inputs_may_be_overridden(version: int, stays: bool) -> None:
    proto = framed("d = Add (c, zeros)", "float[4, 1, 1] zeros = {0, 0, 0, 0}", opset=8 if version == 3 else 17)
    proto.ir_version = version
    for tensor in proto.graph.initializer:
        proto.graph.input.append(helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims))
    found = tidy(proto).proto
    assert ("Add" in operators(found)) == stays
    assert ("zeros" in {v.name for v in found.graph.input}) == stays
    onnx.checker.check_model(found)


def test_overridable_initializers_stay_listed() -> None:
    """A caller who sets one must still be able to, though nothing reads it any more."""
    proto = framed("z = Mul (scale, c) n = Mul (z, none) d = Add (c, n)", "float[4, 1, 1] scale, float none = {0}")
    proto.graph.input.append(helper.make_tensor_value_info("scale", TensorProto.FLOAT, [4, 1, 1]))
    found = tidy(proto, {"n": np.zeros(())}).proto
    assert operators(found) == ["Conv", "Conv"]
    assert list(found.graph.input) == list(proto.graph.input)
    assert "scale" in {t.name for t in found.graph.initializer}


def test_stale_records_are_removed() -> None:
    proto = framed("i = Identity (c) d = Relu (i)")
    proto.graph.value_info.extend([helper.make_tensor_value_info(n, TensorProto.FLOAT, [1, 4, 4, 4]) for n in "cid"])
    assert [v.name for v in tidy(proto).proto.graph.value_info] == ["c", "d"]


BRANCH = """
<ir_version: 8, opset_import: ["" : 17]>
residual (float[{batch}, 2, {size}, {size}] x, float[{batch}, 2, {size}, {size}] z) => (float[n, c, h, w] y)
<float[4, 2, 3, 3] w, float[4, 4, 3, 3] u, float[4, 4, 1, 1] v>
{{
    c = Conv <pads = [1, 1, 1, 1]> (x, w)
    r = Relu (c)
    a = Conv <pads = [{pad}, {pad}, {pad}, {pad}]> ({source}, {weight})
    d = Add (r, a)
    e = Conv (z, w)
    f = Conv (d, v)
    g = GlobalAveragePool (e)
    y = Add (f, g)
}}
"""


@pytest.mark.parametrize(
    ("batch", "size", "pad", "source", "goes"),
    [(1, 6, 1, "r", True), ("N", "S", 1, "r", True), (1, 3, 0, "r", True), ("N", "S", 0, "r", False)],
)
def test_branches_that_add_nothing_are_removed_if_sizes_are_certain(
    batch: object, size: object, pad: int, source: str, goes: bool
) -> None:
    """Sizes are sure where they are numbers, or where the branch is known to keep them; never by broadcasting."""
    proto = build(BRANCH.format(batch=batch, size=size, pad=pad, source=source, weight="u"))
    found = tidy(proto, {"a": np.zeros(())})
    assert ("u" not in {t.name for t in found.proto.graph.initializer}) == goes
    assert found.done.get("branch", 0) == goes


def test_a_branch_that_is_all_that_reads_an_input_stays() -> None:
    proto = build(BRANCH.format(batch=1, size=6, pad=1, source="z", weight="w"))
    assert tidy(proto, {"a": np.zeros(())}).proto is proto


LINEAR = {
    "BatchNormalization": ("y = BatchNormalization (c, g, b, b, s)", 1),
    "scale and shift": ("m = Mul (c, k) y = Add (m, o)", 2),
    "differences": ("m = Sub (c, o) y = Div (m, two)", 2),
    "a narrow convolution": ("y = Conv (c, v, b)", 1),
}
FIRST = ["Conv <pads = [1, 1, 1, 1]> (x, w)", "Conv <strides = [2, 2]> (x, w, a)", "ConvTranspose (x, t, a)"]


@pytest.mark.parametrize("name", LINEAR)
@pytest.mark.parametrize("first", FIRST)
def test_linear_layers_become_one(name: str, first: str, tmp_path: Path) -> None:
    body, count = LINEAR[name]
    proto = build(f"""
        <ir_version: 8, opset_import: ["" : 17]>
        linear (float[1, 2, 5, 5] x) => (float[n, c, h, w] y)
        <float[4, 2, 3, 3] w, float[2, 4, 3, 3] t, float[4] a, float[4] g, float[4] b, float[4] s = {{0.5, 1, 2, 3}},
         float[4, 1, 1] k, float[1, 4, 1, 1] o, float[1, 1] two = {{2}}, float[3, 4, 1, 1] v>
        {{ c = {first} {body.replace("v, b", "v")} }}""")
    found = tidy(proto, merge=True)
    if "Transpose" in first and "Conv" in body:
        assert found.done == {}
        return
    assert found.done == {"merged": count}
    assert [node.output[0] for node in found.proto.graph.node] == ["y"]
    assert difference(proto, found.proto, tmp_path) < 1e-6
    assert tidy(proto).done == {}


def test_dense_layers_absorb_following_nodes(tmp_path: Path) -> None:
    proto = build("""
        <ir_version: 8, opset_import: ["" : 17]>
        dense (float[2, 3] x) => (float[2, 5] y)
        <float[3, 5] w, float[5, 5] v, float[5] b, float[1, 5] g, float two = {2}>
        { c = Gemm <alpha = 0.5, beta = 2.0> (x, w, b) s = Mul (c, g) t = Sub (s, two) r = Relu (t)
          d = Gemm <transB = 1> (r, v) y = Add (d, b) }""")
    found = tidy(proto, merge=True)
    assert operators(found.proto) == ["Gemm", "Relu", "Gemm"]
    assert difference(proto, found.proto, tmp_path) < 1e-6


APART = {
    "read twice": ("s = Mul (c, g) e = Relu (c) d = Add (s, e)", "float[4, 1, 1] g"),
    "along the pixels": ("d = Mul (c, g)", "float[4] g"),
    "by the pixel": ("d = Mul (c, g)", "float[4, 4, 4] g"),
    "padded": ("r = Conv <pads = [1, 1, 1, 1]> (c, k) d = Relu (r)", "float[4, 4, 1, 1] k"),
    "grouped": ("r = Conv <group = 2> (c, k) d = Relu (r)", "float[4, 2, 1, 1] k"),
    "wider": (
        "e = Conv (c, k) r = Relu (e) d = Slice (r, low, high, at)",
        "float[99, 4, 1, 1] k, int64[1] low = {0}, int64[1] high = {4}, int64[1] at = {1}",
    ),
    "in half precision": (
        "h = Cast <to = 10> (c) s = Conv (h, k) t = Mul (s, g) d = Cast <to = 1> (t)",
        "float16[4, 4, 1, 1] k, float16[4, 1, 1] g",
    ),
}


@pytest.mark.parametrize("name", APART)
def test_layers_that_differ_in_anything_stay_separate(name: str) -> None:
    assert tidy(framed(*APART[name]), merge=True).done == {}


def test_shared_weights_are_not_merged() -> None:
    proto = framed("e = Conv <pads = [1, 1, 1, 1]> (x, w) s = Mul (c, g) d = Add (s, e)", "float[4, 1, 1] g")
    assert tidy(proto, merge=True).done == {}


@given(models())
def test_outputs_of_random_models_stay_the_same(proto: onnx.ModelProto) -> None:
    for merge in (False, True):
        found = tidy(proto, merge=merge)
        assert list(found.proto.graph.output) == list(proto.graph.output)
        assert tidy(found.proto, merge=merge).proto is found.proto
        if found.done:
            onnx.checker.check_model(found.proto, full_check=True)


def test_every_compression_ends_tidy(tmp_path: Path) -> None:
    source = saved(framed("i = Identity (c) d = Relu (i)"), tmp_path / "in.onnx")
    result = compressed(source, tmp_path / "out.onnx", 0.5)
    assert operators(onnx.load(tmp_path / "out.onnx")) == ["Conv", "Relu", "Conv"]
    assert result.tidied == {"no-op": 1}
    compressed(source, tmp_path / "same.onnx", 1.0)
    assert (tmp_path / "same.onnx").read_bytes() == source.read_bytes()


def test_floats_behind_decisions_stay(tmp_path: Path) -> None:
    """The proof compares what an ArgMax decides upon, under its name."""
    body = "i = Identity (c) d = Relu (i)"
    proto = framed(body)
    proto.graph.node.append(helper.make_node("Identity", ["y"], ["score"], "SCORE"))
    proto.graph.node.append(helper.make_node("ArgMax", ["score"], ["best"], "BEST", axis=1))
    del proto.graph.output[:]
    proto.graph.output.append(helper.make_tensor_value_info("best", TensorProto.INT64, [1, 1, 4, 4]))
    source = saved(proto, tmp_path / "in.onnx")
    compressed(source, tmp_path / "out.onnx", 0.5)
    nodes = onnx.load(tmp_path / "out.onnx").graph.node
    assert [node.op_type for node in nodes] == ["Conv", "Relu", "Conv", "ArgMax"]
    assert nodes[2].output[0] == "score"


@pytest.mark.parametrize("rule", ["covers", "number"])
def test_wrong_rules_are_caught_and_left_out(rule: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A broadcast overlooked, or a NaN taken for zero: the file is written without the clean-up, and says so."""
    proto = framed(
        "s = Add (c, zeros) d = ReduceSum <keepdims = 1> (s, at)",
        "float[3, 1, 1, 1] zeros = {0, 0, 0}, int64[1] at = {0}",
    )
    if rule == "number":
        proto = framed("d = Add (c, b)", "float[4, 1, 1] b = {0, 1, 2, 3}")
    source = saved(proto, tmp_path / "in.onnx")
    assert compressed(source, tmp_path / "right.onnx", 0.5).warnings == ()
    wrong = {"covers": lambda *_: True, "number": lambda self, name: None if self.constant(name) is None else 0.0}
    monkeypatch.setattr(noops.TidyContext, rule, wrong[rule])
    result = compressed(source, tmp_path / "out.onnx", 0.5)
    assert ["could not be proven" in text for text in result.warnings] == [True]
    assert "Add" in operators(onnx.load(tmp_path / "out.onnx"))
    with pytest.raises(ProofFailed):
        compress_file(source, tmp_path / "exact.onnx", Options(exact=True))
    assert not (tmp_path / "exact.onnx").exists()


def test_the_report_lists_the_clean_up(tmp_path: Path) -> None:
    source = saved(framed("i = Identity (c) d = Relu (i)"), tmp_path / "in.onnx")
    done = called("compress", source, tmp_path / "out.onnx", "--keep", "0.5")
    assert "Cleaned up: 1 node without effect" in done.stdout


def test_a_clean_up_that_loses_an_output_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """The input takes the name of the output, as if it could be renamed."""
    proto = build('<ir_version: 8, opset_import: ["" : 17]> g (float[2] x) => (float[2] y) { y = Identity (x) }')
    assert tidy(proto).proto is proto
    monkeypatch.setattr(tidies._Tidying, "_can_be_renamed", lambda *_: True)
    with pytest.raises(RuntimeError, match="lost the tensors y"):
        tidy(proto)


@given(models())
def test_only_affected_parts_change(proto: onnx.ModelProto) -> None:
    found = tidy(proto).proto
    old = {node.name: node for node in proto.graph.node}
    for node in found.graph.node:
        before = old[node.name]
        assert (node.op_type, node.doc_string) == (before.op_type, before.doc_string)
        if list(node.input) == list(before.input) and list(node.output) == list(before.output):
            assert node.SerializeToString() == before.SerializeToString() or node.op_type == "Transpose"
    tensors = {t.name: t for t in proto.graph.initializer}
    assert all(tensors[t.name] == t for t in found.graph.initializer)

"""Weights that the graph computes from constants: sliced at the source, or stored as values."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from leanonnx.analysis import dag as analysis
from leanonnx.commands.compress.pipeline import CompressResult, compress_file
from leanonnx.errors import ProofFailed
from leanonnx.selection.metrics import Budget
from leanonnx.surgery.plan import load_plan
from tests.counting import counted
from tests.helpers import Options, called_json, saved
from tests.variants import given, network

OUT, IN = 24, 16
SHAPE = (OUT, IN, 3, 3)
RNG = np.random.default_rng(0)
PLAIN = f"float[{OUT}, {IN}, 3, 3] v"
KEPT = (0.4, 0.5)
"""Between these shares of the kernels ends up what is asked for half of them."""


def cnn(constants: str, weight: str, *, opset: int = 17, **values: Any) -> onnx.ModelProto:
    """Three layers, of which ``weight`` computes the middle one's as ``w``."""
    proto = network(
        "(float[N, 3, 8, 8] x) => (float[N, 5] y)",
        f"float[16, 3, 3, 3] w1, float[5, 24] w3, float[5] b3, {constants}",
        f"""{weight}
        a = Conv <pads = [1, 1, 1, 1]> (x, w1) r = Relu (a) c = Conv <pads = [1, 1, 1, 1]> (r, w) s = Relu (c)
        p = GlobalAveragePool (s) f = Flatten (p) y = Gemm <transB = 1> (f, w3, b3)""",
        opset,
    )
    return given(proto, **values)


def in_blocks() -> onnx.ModelProto:
    proto = cnn(
        "float[1] unused",
        "d = DequantizeLinear <axis = 1, block_size = 16> (q, ws) w = Reshape (d, shape)",
        opset=21,
        ws=RNG.uniform(0.01, 0.1, (OUT, IN * 9 // 16)).astype(np.float32),
        shape=np.array(SHAPE),
    )
    numbers = RNG.integers(-8, 8, OUT * IN * 9).tolist()
    proto.graph.initializer.append(helper.make_tensor("q", TensorProto.INT4, [OUT, IN * 9], numbers))
    return proto


def spectral() -> onnx.ModelProto:
    return cnn(
        f"{PLAIN}, float[{IN * 9}] right, float[{OUT}] left",
        """m = Reshape (v, rows) mv = MatMul (m, right) sigma = MatMul (left, mv) w = Div (v, sigma)""",
        rows=np.array([OUT, IN * 9]),
    )


FOLDED: dict[str, tuple[Callable[[], onnx.ModelProto], str]] = {
    "weight norm": (
        lambda: cnn(
            f"{PLAIN}, float[{OUT}, 1, 1, 1] g",
            "n = ReduceL2 <axes = [1, 2, 3], keepdims = 1> (v) d = Div (v, n) w = Mul (d, g)",
        ),
        "w",
    ),
    "spectral norm": (spectral, "w"),
    "sum of kernels": (
        lambda: cnn(
            f"{PLAIN}, float[{OUT}, {IN}, 1, 1] u",
            "l = Pad (u, pads) w = Add (v, l)",
            pads=np.array([0, 0, 1, 1, 0, 0, 1, 1]),
        ),
        "w",
    ),
    "resized": (
        lambda: cnn(f"float[{OUT}, {IN}, 5, 5] v", 'w = Resize <mode = "linear"> (v, , , size)', size=np.array(SHAPE)),
        "w",
    ),
    "two halves": (lambda: cnn("float[12, 16, 3, 3] u, float[12, 16, 3, 3] v", "w = Concat <axis = 0> (u, v)"), "w"),
    "clipped": (
        lambda: cnn(PLAIN, "w = Clip (v, low, high)", low=np.float32(-0.1), high=np.float32(0.1)),
        "w",
    ),
    "masked": (lambda: cnn(f"{PLAIN}, float[1] zero", "b = Less (v, zero) w = Where (b, zero, v)"), "w"),
    "blocks": (in_blocks, "d"),
    "quantised and back": (
        lambda: cnn(
            PLAIN,
            "q = QuantizeLinear (v, qs, qz) w = DequantizeLinear (q, qs, qz)",
            qs=np.float32(0.01),
            qz=np.int8(7),
        ),
        "q",
    ),
}
HELD: dict[str, tuple[Callable[[], onnx.ModelProto], str, type]] = {
    "half precision": (lambda: cnn(f"float16[{OUT}, {IN}, 3, 3] v", "w = Cast <to = 1> (v)"), "v", np.float16),
    "half, turned": (
        lambda: cnn(f"float16[3, 3, {IN}, {OUT}] v", "h = Cast <to = 1> (v) w = Transpose <perm = [3, 2, 0, 1]> (h)"),
        "v",
        np.float16,
    ),
    "reshaped": (
        lambda: cnn(f"float[{OUT}, {IN}, 9] v", "w = Reshape (v, shape)", shape=np.array(SHAPE)),
        "v",
        np.float32,
    ),
}


def cut(proto: onnx.ModelProto, folder: Path, **settings: Any) -> tuple[CompressResult, onnx.ModelProto]:
    """The result of keeping half, whose counts are those of the files before and after."""
    source, target = saved(proto, folder / "in.onnx"), folder / "out.onnx"
    result = compress_file(source, target, Options(Budget("kernels", 0.5), **settings), folder / "plan.json")
    for found, path in ((result.before, source), (result.after, target)):
        assert (found.kernels, found.macs, found.params) == counted(path)
    assert KEPT[0] < result.after.kernels / result.before.kernels <= KEPT[1]
    return result, onnx.load(target)


def constants(proto: onnx.ModelProto) -> dict[str, onnx.TensorProto]:
    return {tensor.name: tensor for tensor in proto.graph.initializer}


def replayed(folder: Path) -> bool:
    """True if the plan alone gives the same file."""
    plan = load_plan(folder / "plan.json")
    compress_file(folder / "in.onnx", folder / "again.onnx", Options(plan=plan))
    return (folder / "again.onnx").read_bytes() == (folder / "out.onnx").read_bytes()


@pytest.mark.parametrize("kind", FOLDED)
def test_weights_that_cannot_be_followed_are_stored_under_the_computed_tensor(kind: str, tmp_path: Path) -> None:
    make, name = FOLDED[kind]
    result, written = cut(make(), tmp_path)
    assert result.folded == (name,)
    assert name in constants(written)
    assert name in load_plan(tmp_path / "plan.json").tensors
    assert replayed(tmp_path)


@pytest.mark.parametrize("kind", HELD)
def test_weights_that_can_be_followed_keep_their_form(kind: str, tmp_path: Path) -> None:
    make, name, dtype = HELD[kind]
    proto = make()
    result, written = cut(proto, tmp_path)
    assert result.folded == ()
    assert numpy_helper.to_array(constants(written)[name]).dtype == dtype
    assert [n.op_type for n in written.graph.node] == [n.op_type for n in proto.graph.node]
    assert name in load_plan(tmp_path / "plan.json").tensors
    assert replayed(tmp_path)


def test_computed_weights_that_grow_are_reported(tmp_path: Path) -> None:
    result, written = cut(in_blocks(), tmp_path)
    assert any("1 weight that the file computes from constants" in text for text in result.warnings)
    assert constants(written)["d"].data_type == TensorProto.FLOAT


def test_folding_is_reported(tmp_path: Path) -> None:
    source = saved(FOLDED["weight norm"][0](), tmp_path / "in.onnx")
    row = called_json("compress", source, tmp_path / "out.onnx", "--keep", "0.5")
    assert row["folded"] == ["w"]
    assert called_json("inspect", source)["folded"] == ["w"]
    whole = called_json("compress", source, tmp_path / "whole.onnx", "--keep", "1")
    assert whole["folded"] == []
    assert source.read_bytes() == (tmp_path / "whole.onnx").read_bytes()


def test_wrong_values_do_not_pass(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The proof's reference computes the weights as the file does."""
    fold = analysis.fold_values
    monkeypatch.setattr(
        analysis, "fold_values", lambda model, values: fold(model, {name: 1.01 * v for name, v in values.items()})
    )
    with pytest.raises(ProofFailed):
        cut(FOLDED["weight norm"][0](), tmp_path)


def twice(torn: bool) -> onnx.ModelProto:
    """Two layers that read one weight through one Cast; ``torn``: something else reads it whole."""
    more = "m = ReduceMean <keepdims = 0> (x) k = Mul (w, m) z = ReduceMax <keepdims = 0> (k)" if torn else ""
    return network(
        "(float[N, 3, 8, 8] x) => (float[N, 5] y)",
        "float[16, 3, 3, 3] w1, float16[16, 16, 3, 3] v, float[5, 16] w3, float[5] b3",
        f"""w = Cast <to = 1> (v) {more}
        a = Conv <pads = [1, 1, 1, 1]> (x, w1) r = Relu (a) c = Conv <pads = [1, 1, 1, 1]> (r, w) s = Relu (c)
        d = Conv <pads = [1, 1, 1, 1]> (s, w) t = Relu (d) {"u = Add (t, z)" if torn else "u = Identity (t)"}
        p = GlobalAveragePool (u) f = Flatten (p) y = Gemm <transB = 1> (f, w3, b3)""",
    )


@pytest.mark.parametrize("torn", [False, True])
def test_a_cast_that_several_read(torn: bool, tmp_path: Path) -> None:
    """Two layers slice it alike; if a third reader needs all of it, each gets its own."""
    result, written = cut(twice(torn), tmp_path)
    assert result.folded == (("w",) if torn else ())
    assert (constants(written)["v"].dims[0] < 16) if not torn else ("v" not in constants(written))


def overridden(proto: onnx.ModelProto) -> onnx.ModelProto:
    """The model with the weight listed among its inputs."""
    tensor = constants(proto)["v"]
    proto.graph.input.append(helper.make_tensor_value_info("v", tensor.data_type, tensor.dims))
    return proto


def test_overridable_constants_are_not_folded(tmp_path: Path) -> None:
    source = saved(overridden(FOLDED["clipped"][0]()), tmp_path / "in.onnx")
    options = Options(Budget("kernels", 0.5), best_effort=True)
    found = compress_file(source, tmp_path / "out.onnx", options)
    assert found.folded == ()
    assert any("a caller may override" in pin.reason for pin in found.dag.pins)
    assert (found.before.kernels, found.before.macs, found.before.params) == counted(source)
    frozen = compress_file(source, tmp_path / "frozen.onnx", replace(options, freeze=True))
    assert frozen.folded == ("w",)


@pytest.mark.parametrize(
    ("weight", "says"),
    [
        ("n = RandomNormal <shape = [24, 16, 3, 3], seed = 1.0> () w = Mul (v, n)", "or from random numbers"),
        ("t = Shape (x) i = Gather (t, zero) h = Cast <to = 1> (i) w = Mul (v, h)", "from sizes at run time"),
        ("m = ReduceMean <keepdims = 0> (x) w = Mul (v, m)", "graph input"),
    ],
    ids=["noise", "sizes", "input"],
)
def test_nondeterministic_nodes_are_not_folded(weight: str, says: str, tmp_path: Path) -> None:
    source = saved(cnn(PLAIN, weight, zero=np.array(0)), tmp_path / "in.onnx")
    row = called_json("inspect", source)
    assert row["folded"] == []
    assert any(says in pin["reason"] for pin in row["pins"]), row["pins"]
    count = counted(source)
    assert (row["kernels"], row["macs"], row["params"]) == count


def test_unread_constants_and_nodes_are_omitted(tmp_path: Path) -> None:
    """Constants and nodes that computed the weight are removed with it; those that others read stay."""
    proto = FOLDED["weight norm"][0]()
    _, written = cut(proto, tmp_path)
    assert not {"v", "g"} & constants(written).keys()
    assert not {"ReduceL2", "Div", "Mul"} & {node.op_type for node in written.graph.node}


@pytest.mark.parametrize("kind", [*FOLDED, *HELD])
def test_recovery_refits_computed_weights(kind: str, tmp_path: Path) -> None:
    """The layer is refitted in the type of its constant, and the report describes what is written."""
    make = (FOLDED | HELD)[kind][0]
    source, target = saved(make(), tmp_path / "in.onnx"), tmp_path / "out.onnx"
    np.savez(tmp_path / "data.npz", x=RNG.standard_normal((64, 3, 8, 8)).astype(np.float32))
    result = compress_file(source, target, Options(Budget("kernels", 0.5), calib=tmp_path / "data.npz"))
    assert result.recovery is not None
    reasons = {layer.name: layer.reason for layer in result.recovery.layers}
    assert reasons["C"] == ""
    assert (result.after.kernels, result.after.macs, result.after.params) == counted(target)
    if kind in HELD:
        name, dtype = HELD[kind][1:]
        assert numpy_helper.to_array(constants(onnx.load(target))[name]).dtype == dtype


def test_parameters_keep_to_the_budget_with_biases_that_recovery_adds(tmp_path: Path) -> None:
    source, target = saved(HELD["half precision"][0](), tmp_path / "in.onnx"), tmp_path / "out.onnx"
    np.savez(tmp_path / "data.npz", x=RNG.standard_normal((64, 3, 8, 8)).astype(np.float32))
    arguments = ("--params", "0.3", "--calib", tmp_path / "data.npz", "--align", "1")
    row = called_json("compress", source, target, *arguments)
    assert row["params"]["after"] == counted(target).params
    assert row["params"]["fraction"] <= 0.3


@pytest.mark.parametrize("kind", ["weight norm", "half precision"])
def test_exact_and_blind(kind: str, tmp_path: Path) -> None:
    make = FOLDED[kind][0] if kind in FOLDED else HELD[kind][0]
    source, target = saved(make(), tmp_path / "in.onnx"), tmp_path / "out.onnx"
    for options in (Options(exact=True), Options(Budget("kernels", 0.5), recover="auto")):
        result = compress_file(source, target, options)
        assert (result.after.kernels, result.after.macs, result.after.params) == counted(target)


def test_exact_removes_channels_that_a_computed_weight_ignores(tmp_path: Path) -> None:
    """Kernels that a mask makes zero carry nothing."""
    mask = np.ones((1, IN, 1, 1), np.float32)
    mask[:, 4:8] = 0
    source = saved(cnn(PLAIN, "w = Mul (v, mask)", mask=mask), tmp_path / "in.onnx")
    result = compress_file(source, tmp_path / "out.onnx", Options(exact=True))
    assert constants(onnx.load(tmp_path / "out.onnx"))["w"].dims[1] == IN - 4
    assert (result.after.kernels, result.after.macs, result.after.params) == counted(tmp_path / "out.onnx")


def test_plan_speaks_of_the_computed_tensor(tmp_path: Path) -> None:
    cut(FOLDED["weight norm"][0](), tmp_path)
    entry = json.loads((tmp_path / "plan.json").read_text())["tensors"]["w"]
    assert entry["before"] == list(SHAPE)
    assert entry["after"] == list(constants(onnx.load(tmp_path / "out.onnx"))["w"].dims)


def test_old_files_list_folded_constants(tmp_path: Path) -> None:
    """Before IR version 4 every initializer has to be among the graph inputs."""
    proto = FOLDED["two halves"][0]()
    proto.ir_version = 3
    proto.opset_import[0].version = 8
    for tensor in proto.graph.initializer:
        proto.graph.input.append(helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims))
    _, written = cut(proto, tmp_path)
    assert {t.name for t in written.graph.initializer} < {v.name for v in written.graph.input}

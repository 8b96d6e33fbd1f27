"""Bad input is refused with an exit code and one or two lines (what, where, fix), and nothing is written."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from tests.helpers import CNN, Done, build, called, called_json, cli, refused, saved, saved_external

Change = Callable[[onnx.ModelProto], Any]
NAME_LIMIT = 255
HEAD = '<ir_version: 8, opset_import: ["" : 17, "com.acme" : 1]>'


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return saved(build(CNN), tmp_path / "model.onnx")


def refused_model(path: Path, *says: str, run: Callable[..., Done] = called) -> None:
    """``compress`` and ``inspect`` both refuse the model, naming it."""
    refused(path.parent, "compress", path, "out.onnx", "--keep", "0.5", says=(str(path), *says), run=run)
    refused(path.parent, "inspect", path, says=(str(path), *says))


def changed(folder: Path, change: Change) -> Path:
    proto = build(CNN)
    change(proto)
    return saved(proto, folder / "changed.onnx")


# The file


def test_missing(tmp_path: Path) -> None:
    refused_model(tmp_path / "nothing.onnx", "no such file", run=cli)


def test_folder_as_input(tmp_path: Path) -> None:
    refused(tmp_path, "compress", tmp_path, "out.onnx", "--keep", "0.5", says=(str(tmp_path), "not a file"))
    refused(tmp_path, "inspect", tmp_path, says=(str(tmp_path), "not a file"))


def test_name_too_long(model: Path) -> None:
    name = "o" * NAME_LIMIT + ".onnx"
    refused(model.parent, "compress", model, name, "--keep", "0.5", says=("name is too long",))
    refused(model.parent, "inspect", name)


RAW = build(CNN).SerializeToString()
NOT_MODELS = {
    "empty": (b"", "empty"),
    "cut in half": (RAW[: len(RAW) // 2], "cut short"),
    "last byte lost": (RAW[:-1], "cut short"),
    "two bytes": (RAW[:2], "no ONNX model"),
    "bytes behind the end": (RAW + b"garbage", "not an ONNX model"),
    "random": (np.random.default_rng(0).bytes(4096), "not an ONNX model"),
    "text": (b"version https://git-lfs.github.com/spec/v1\n", "not an ONNX model"),
    "bare graph": (build(CNN).graph.SerializeToString(), "no ONNX model"),
    "bare function": (onnx.FunctionProto(name="f").SerializeToString(), "no ONNX model"),
}


@pytest.mark.parametrize("kind", NOT_MODELS)
def test_no_model(tmp_path: Path, kind: str) -> None:
    content, says = NOT_MODELS[kind]
    path = tmp_path / "input.onnx"
    path.write_bytes(content)
    refused_model(path, says, run=cli if kind == "cut in half" else called)


# The graph


def dangling(proto: onnx.ModelProto) -> None:
    proto.graph.node[1].input[0] = "ghost"


def cyclic(proto: onnx.ModelProto) -> None:
    proto.graph.node[0].input[0] = "r2"


def unknown_operator(proto: onnx.ModelProto) -> None:
    proto.graph.node[1].op_type = "Releu"


def unknown_attribute(proto: onnx.ModelProto) -> None:
    proto.graph.node[0].attribute[0].name = "padz"


def wrong_output_size(proto: onnx.ModelProto) -> None:
    proto.graph.output[0].type.tensor_type.shape.dim[1].dim_value = 7


def future_opset(proto: onnx.ModelProto) -> None:
    proto.opset_import[0].version = 99


def no_outputs(proto: onnx.ModelProto) -> None:
    del proto.graph.output[:]


def nameless_part(proto: onnx.ModelProto) -> None:
    proto.graph.node[1].CopyFrom(onnx.helper.make_node("Split", ["c1"], ["r1", ""], "PARTS", axis=2))


def nameless_branch(proto: onnx.ModelProto) -> None:
    """Within a subgraph."""
    inner = onnx.helper.make_node("Split", ["c1"], ["", "part"], "PARTS", axis=2)
    result = onnx.helper.make_tensor_value_info("part", onnx.TensorProto.FLOAT, None)
    branch = onnx.helper.make_graph([inner], "branch", [], [result])
    choice = onnx.helper.make_node("If", ["yes"], ["r1"], "CHOICE", then_branch=branch, else_branch=branch)
    proto.graph.node[1].CopyFrom(choice)
    proto.graph.initializer.append(numpy_helper.from_array(np.array(True), "yes"))


def nameless_summand(proto: onnx.ModelProto) -> None:
    """A Sum with a gap: onnxruntime crashes when it runs it."""
    proto.graph.node[1].CopyFrom(onnx.helper.make_node("Sum", ["c1", "", "c1"], ["r1"], "SUM"))


def short_weight(proto: onnx.ModelProto) -> None:
    weight = proto.graph.initializer[2]
    array = np.ascontiguousarray(numpy_helper.to_array(weight)[:, :7])
    weight.CopyFrom(numpy_helper.from_array(array, weight.name))


def wrong_dims(proto: onnx.ModelProto) -> None:
    proto.graph.initializer[2].dims[1] = 7


BROKEN: dict[Change, tuple[str, ...]] = {
    dangling: ("checker", "ghost", "R1"),
    cyclic: ("checker", "r2", "C1"),
    unknown_operator: ("checker", "Releu", "R1"),
    unknown_attribute: ("checker", "padz", "C1"),
    wrong_output_size: ("checker", "Gemm", "Y"),
    future_opset: ("operator set 99 is newer than", "export it with operator set"),
    no_outputs: ("output",),
    nameless_part: ("an output of Split 'PARTS' has no name",),
    nameless_branch: ("an output of Split 'PARTS' has no name",),
    nameless_summand: ("an input of Sum 'SUM' has no name",),
    short_weight: ("onnxruntime cannot", "C2"),
    wrong_dims: ("w2",),
}


IN_A_PROCESS = {nameless_part, nameless_branch, nameless_summand, short_weight}
"""onnxruntime writes of its own, or crashes where the file is not refused before."""


@pytest.mark.parametrize("change", BROKEN, ids=lambda change: change.__name__)
def test_broken_graph(tmp_path: Path, change: Change) -> None:
    refused_model(changed(tmp_path, change), *BROKEN[change], run=cli if change in IN_A_PROCESS else called)


def test_unknown_domain(tmp_path: Path) -> None:
    text = f"""{HEAD} g (float[1, 3, 8, 8] x) => (float[1, 8, 8, 8] y) <float[8, 3, 1, 1] w>
    {{ c = Conv (x, w) y = com.acme.Magic (c) }}"""
    path = saved(build(text), tmp_path / "acme.onnx")
    refused_model(path, "onnxruntime cannot load", "com.acme", "Magic")


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_weights_that_are_no_numbers(tmp_path: Path, value: float) -> None:
    def spoil(proto: onnx.ModelProto) -> None:
        weight = proto.graph.initializer[2]
        array = numpy_helper.to_array(weight).copy()
        array[1, 2, 0, 0] = value
        weight.CopyFrom(numpy_helper.from_array(array, weight.name))

    path = changed(tmp_path, spoil)
    refused(tmp_path, "compress", path, "out.onnx", "--keep", "0.5", says=(str(path), "w2", "NaN"))


@pytest.mark.parametrize("place", ["model", "graph"])
def test_text_that_is_not_utf8(tmp_path: Path, place: str) -> None:
    """Old exporters write doc strings in the code page of their machine: kept as they are, or refused."""
    proto = build(CNN)
    (proto if place == "model" else proto.graph).doc_string = "Netz fur Bilder"
    path = tmp_path / "latin.onnx"
    path.write_bytes(proto.SerializeToString().replace(b"fur", b"f\xfcr"))
    done = called("compress", path, tmp_path / "out.onnx", "--keep", "0.5")
    assert done.returncode in (0, 2), done.stderr
    assert (tmp_path / "out.onnx").exists() == (done.returncode == 0)
    assert done.returncode == 2 or b"Netz f\xfcr Bilder" in (tmp_path / "out.onnx").read_bytes()


def test_no_kernels(tmp_path: Path) -> None:
    text = f"{HEAD} g (float[1, 3, 8, 8] x) => (float[1, 3, 8, 8] y) {{ y = Relu (x) }}"
    path = saved(build(text), tmp_path / "relu.onnx")
    says = ("no kernels", "--best-effort")
    refused(tmp_path, "compress", path, "out.onnx", "--keep", "0.5", code=1, says=says)


def test_nothing_prunable(tmp_path: Path) -> None:
    text = f"{HEAD} g (float[1, 3, 8, 8] x) => (float[1, 4, 8, 8] y) <float[4, 3, 1, 1] w> {{ y = Conv (x, w) }}"
    path = saved(build(text), tmp_path / "one.onnx")
    says = ("1.0000 (12 of 12, where 6 was asked for)", "graph input 'x'", "graph output 'y'", "--best-effort")
    refused(tmp_path, "compress", path, "out.onnx", "--keep", "0.5", code=1, says=says, run=cli)


def test_unknown_standard_operator_pins(tmp_path: Path) -> None:
    """Det has no rule: its channels stay, the reason names the node and the operator, the rest is pruned."""
    text = f"""{HEAD} g (float[1, 3, 8, 8] x) => (float[1, 6] y)
    <float[8, 3, 3, 3] w1, float[6, 8, 3, 3] w2>
    {{ a = Conv <pads = [1, 1, 1, 1]> (x, w1) b = Conv <pads = [1, 1, 1, 1]> (a, w2) y = Det (b) }}"""
    path = saved(build(text), tmp_path / "det.onnx")
    row = called_json("compress", path, tmp_path / "out.onnx", "--keep", "0.6")
    assert row["kernels"]["fraction"] <= 0.6
    assert row["proof"]["status"] == "passed"
    assert any(pin["channels"] == 6 and "Det" in pin["reason"] and "'Y'" in pin["reason"] for pin in row["pins"])


def free_channels(folder: Path, channels: int) -> Path:
    """A model whose input declares no size at all, though its first layer reads so many channels."""
    text = CNN.replace("float[1, 3, 8, 8]", "float[N, C, H, W]").replace("[8, 3, 3, 3] w1", f"[8, {channels}, 3, 3] w1")
    return saved(build(text), folder / "free.onnx")


def test_free_channel_axis_of_an_image(tmp_path: Path) -> None:
    path = free_channels(tmp_path, 3)
    row = called_json("compress", path, tmp_path / "out.onnx", "--keep", "0.5")
    assert row["inputs"]["x"][:2] == [1, 3]
    before, after = (onnx.load(p).graph.input[0] for p in (path, tmp_path / "out.onnx"))
    assert before == after


def test_free_channel_axis_that_cannot_be_guessed(tmp_path: Path) -> None:
    """No size tried fits 5 channels: the message asks for --shape, which then works."""
    path = free_channels(tmp_path, 5)
    refused_model(path, "--shape", "x['N', 'C', 'H', 'W']")
    row = called_json("compress", path, tmp_path / "out.onnx", "--keep", "0.5", "--shape", "x=1,5,8,8")
    assert row["inputs"] == {"x": [1, 5, 8, 8]}


# External data


def test_external_data_missing(tmp_path: Path) -> None:
    path = saved_external(build(CNN), tmp_path / "model.onnx")
    (tmp_path / "weights.bin").unlink()
    refused_model(path, "'weights.bin'", "missing")


@pytest.mark.parametrize("length", [0, 100])
def test_external_data_cut_short(tmp_path: Path, length: int) -> None:
    path = saved_external(build(CNN), tmp_path / "model.onnx")
    data = tmp_path / "weights.bin"
    data.write_bytes(data.read_bytes()[:length])
    refused_model(path, "external data")


@pytest.mark.parametrize("absolute", [False, True])
def test_external_data_outside_the_folder(tmp_path: Path, absolute: bool) -> None:
    inner = tmp_path / "inner"
    inner.mkdir()
    proto = onnx.load(saved_external(build(CNN), tmp_path / "model.onnx"), load_external_data=False)
    place = str(tmp_path / "weights.bin") if absolute else "../weights.bin"
    for tensor in proto.graph.initializer:
        tensor.external_data[0].value = place
    refused_model(saved(proto, inner / "model.onnx"), "outside", place)


# Where to write


def test_output_is_the_input(model: Path) -> None:
    folder = model.parent
    (folder / "inner").mkdir()
    (folder / "soft.onnx").symlink_to(model)
    (folder / "hard.onnx").hardlink_to(model)
    for target in (model, "model.onnx", "inner/../model.onnx", "soft.onnx", "hard.onnx"):
        refused(folder, "compress", model, target, "--keep", "0.5", says=("the input",))
    refused(folder, "compress", "soft.onnx", model, "--keep", "0.5", says=("the input",))


@pytest.mark.parametrize(
    ("data", "args"),
    [
        ("weights.bin", ("weights.bin",)),
        ("out.onnx.data", ("out.onnx",)),
        ("weights.bin", ("out.onnx", "--plan-out", "weights.bin")),
        ("weights.bin", ("out.onnx", "--report", "weights.bin")),
        ("weights.bin", ("out.onnx", "--plan-out", "out.onnx.data")),
    ],
    ids=["output is the data", "new data is the data", "plan is the data", "page is the data", "plan is the new data"],
)
def test_output_is_external_data(tmp_path: Path, data: str, args: tuple[str, ...]) -> None:
    path = saved_external(build(CNN), tmp_path / "model.onnx", data)
    refused(tmp_path, "compress", path, *args, "--keep", "0.5", says=("data",))


def test_target_folder_missing(model: Path) -> None:
    refused(model.parent, "compress", model, "no/out.onnx", "--keep", "0.5", says=("'no'", "does not exist"))


def test_target_is_a_folder(model: Path) -> None:
    """The result is written into it under the model's name, which may be taken by the model, or by a folder."""
    refused(model.parent, "compress", model, model.parent, "--keep", "0.5", says=("the output is the input file",))
    (model.parent / "out" / model.name).mkdir(parents=True)
    refused(model.parent, "compress", model, "out", "--keep", "0.5", says=("path of the file to write",))


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")
def test_target_is_a_pipe(model: Path) -> None:
    """Neither a pipe nor a device such as /dev/null is replaced by a file."""
    pipe = model.parent / "pipe"
    os.mkfifo(pipe)
    for args in (("pipe",), ("out.onnx", "--plan-out", "pipe")):
        refused(model.parent, "compress", model, *args, "--keep", "0.5", says=("pipe",))
        assert pipe.is_fifo()
    refused(model.parent, "inspect", pipe, says=("pipe",))


def test_target_below_a_file(model: Path) -> None:
    refused(model.parent, "compress", model, "model.onnx/out.onnx", "--keep", "0.5", says=("'model.onnx'",))


def unwritable(folder: Path) -> Path:
    """A folder where nobody, or at least not this user, can make a file."""
    locked = folder / "locked"
    locked.mkdir(mode=0o555)
    if not os.access(locked, os.W_OK):
        return locked
    if Path("/proc/self").exists():
        return Path("/proc")
    pytest.skip("this user may write everywhere, and there is no /proc")


def test_unwritable_folder(model: Path) -> None:
    folder = unwritable(model.parent)
    refused(model.parent, "compress", model, folder / "out.onnx", "--keep", "0.5", says=(str(folder),))


@pytest.mark.parametrize("option", ["--plan-out", "--report"])
def test_unwritable_beside(model: Path, option: str) -> None:
    """Refused as a whole: where the plan or the page cannot be written, the model is not either."""
    for path in (unwritable(model.parent) / "it", model.parent, model.parent / "no" / "it"):
        refused(model.parent, "compress", model, "out.onnx", "--keep", "0.5", option, path, says=(str(path.parent),))


def test_refused_plan_leaves_an_older_output_alone(tmp_path: Path) -> None:
    path = saved_external(build(CNN), tmp_path / "model.onnx")
    plan = unwritable(tmp_path) / "plan.json"
    (tmp_path / "out.onnx").write_bytes(b"older")
    refused(tmp_path, "compress", path, "out.onnx", "--keep", "0.5", "--plan-out", plan, says=(str(plan.parent),))


@pytest.mark.parametrize("option", ["--plan-out", "--report"])
def test_beside_is_the_model(model: Path, option: str) -> None:
    for path in ("model.onnx", "out.onnx"):
        refused(model.parent, "compress", model, "out.onnx", "--keep", "0.5", option, path, says=(path,))


def test_plan_and_page_in_one_file(model: Path) -> None:
    refused(
        model.parent,
        "compress",
        model,
        "out.onnx",
        "--keep",
        "0.5",
        "--plan-out",
        "a",
        "--report",
        "a",
        says=("a: two",),
    )

"""Files that ``compress`` writes: plans, the model's bytes, and everything that stays unchanged."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest

from tests.helpers import (
    CNN,
    TOTAL,
    build,
    called,
    called_json,
    cli,
    compressed,
    constant_shapes,
    kernels,
    outputs,
    saved,
    saved_external,
)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return saved(build(CNN), tmp_path / "model.onnx")


# compress: plans


def test_replay_of_a_plan_gives_the_same_bytes(model: Path) -> None:
    folder = model.parent
    args = ("compress", model, folder / "a.onnx", "--keep", "0.5", "--plan-out", folder / "a.json")
    first = called_json(*args)
    again = called_json(
        "compress", model, folder / "b.onnx", "--plan", folder / "a.json", "--plan-out", folder / "b.json"
    )
    assert (folder / "a.onnx").read_bytes() == (folder / "b.onnx").read_bytes()
    assert first["kernels"] == again["kernels"]
    plans = [json.loads((folder / name).read_text()) for name in ("a.json", "b.json")]
    assert plans[0]["tensors"] == plans[1]["tensors"]
    assert {"input_sha256", "options", "tensors"} <= set(plans[0])


def test_plan_describes_the_slices(model: Path) -> None:
    """The kept indices, applied to the input's constants, give the output's constants."""
    folder = model.parent
    called_json("compress", model, folder / "out.onnx", "--keep", "0.5", "--plan-out", folder / "plan.json")
    before, after = (
        {t.name: onnx.numpy_helper.to_array(t) for t in onnx.load(path).graph.initializer}
        for path in (model, folder / "out.onnx")
    )
    for name, entry in json.loads((folder / "plan.json").read_text())["tensors"].items():
        array = before[name]
        assert list(array.shape) == entry["before"]
        for axis, kept in enumerate(entry["kept"]):
            array = array if kept is None else np.take(array, kept, axis)
        assert list(array.shape) == entry["after"]
        np.testing.assert_array_equal(array, after[name])


def test_same_request_same_bytes(model: Path) -> None:
    """In another process, where Python orders its sets otherwise, too."""
    folder = model.parent
    for name, run in (("a", cli), ("b", called)):
        args = ("--keep", "0.5", "--plan-out", folder / f"{name}.json")
        assert run("compress", model, folder / f"{name}.onnx", *args).returncode == 0
    for suffix in ("onnx", "json"):
        assert (folder / f"a.{suffix}").read_bytes() == (folder / f"b.{suffix}").read_bytes()


# compress: unchanged parts


def test_external_data_stay_external(tmp_path: Path) -> None:
    """The data lie in OUT.data beside OUT, also where OUT is in another folder, and both can be moved together."""
    source = saved_external(build(CNN), tmp_path / "model.onnx")
    plain = saved(build(CNN), tmp_path / "plain.onnx")
    compressed(plain, tmp_path / "plain_out.onnx")
    for folder in (tmp_path / "there", tmp_path / "moved"):
        folder.mkdir()
    row = called_json("compress", source, tmp_path / "there" / "out.onnx", "--keep", "0.5", "--align", 1)
    assert {p.name for p in (tmp_path / "there").iterdir()} == {"out.onnx", "out.onnx.data"}
    assert row["bytes"]["after"] == sum(p.stat().st_size for p in (tmp_path / "there").iterdir())
    assert row["bytes"]["before"] == source.stat().st_size + (tmp_path / "weights.bin").stat().st_size
    for file in ("out.onnx", "out.onnx.data"):
        shutil.move(tmp_path / "there" / file, tmp_path / "moved" / file)
    np.testing.assert_array_equal(outputs(tmp_path / "moved" / "out.onnx"), outputs(tmp_path / "plain_out.onnx"))


def test_external_data_of_an_unchanged_model(tmp_path: Path) -> None:
    source = saved_external(build(CNN), tmp_path / "model.onnx")
    there = tmp_path / "there"
    there.mkdir()
    (there / "weights.bin").write_bytes(b"of another model")
    compressed(source, there / "out.onnx", keep=1.0)
    assert (there / "weights.bin").read_bytes() == b"of another model"
    np.testing.assert_array_equal(outputs(there / "out.onnx"), outputs(source))


def test_older_output_is_replaced(tmp_path: Path) -> None:
    source = saved_external(build(CNN), tmp_path / "model.onnx")
    out = tmp_path / "out.onnx"
    compressed(source, out, keep=0.9)
    compressed(source, out, keep=0.3)
    assert kernels(out) <= 0.3 * TOTAL
    assert len(outputs(out)) == 1
    assert not list(tmp_path.glob(".*"))


def test_constants_listed_as_inputs(tmp_path: Path) -> None:
    """Before IR version 4 every initializer was a graph input too; the real input stays the only one to feed."""
    proto = build(CNN.replace("ir_version: 8", "ir_version: 3").replace('"" : 17', '"" : 7'))
    for tensor in proto.graph.initializer:
        proto.graph.input.append(onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims))
    out = tmp_path / "out.onnx"
    compressed(saved(proto, tmp_path / "model.onnx"), out)
    after = onnx.load(out)
    declared = {v.name: [d.dim_value for d in v.type.tensor_type.shape.dim] for v in after.graph.input}
    assert declared == {"x": [1, 3, 8, 8], **constant_shapes(out)}
    assert after.ir_version == 3
    onnx.checker.check_model(after, full_check=True)
    assert len(outputs(out)) == 1


def test_interface_and_metadata_are_kept(tmp_path: Path) -> None:
    proto = build(CNN.replace("float[1, 3, 8, 8]", "float[N, 3, 8, 8]").replace("float[1, 5]", "float[N, 5]"))
    onnx.helper.set_model_props(proto, {"author": "someone", "classes": "a,b"})
    proto.producer_name, proto.doc_string, proto.graph.doc_string = "exporter", "about the model", "about the graph"
    out = tmp_path / "out.onnx"
    compressed(saved(proto, tmp_path / "model.onnx"), out)
    after = onnx.load(out)
    for name in ("ir_version", "producer_name", "doc_string", "opset_import", "metadata_props"):
        assert getattr(after, name) == getattr(proto, name), name
    for name in ("name", "doc_string", "input", "output"):
        assert getattr(after.graph, name) == getattr(proto.graph, name), name
    assert [n.name for n in after.graph.node] == [n.name for n in proto.graph.node]


def test_paths_with_blanks_and_umlauts(tmp_path: Path) -> None:
    folder = tmp_path / "größe 2"
    folder.mkdir()
    saved(build(CNN), folder / "mein netz.onnx")
    done = cli("compress", "mein netz.onnx", "klein 😀.onnx", "--keep", "0.5", cwd=folder)
    assert done.returncode == 0, done.stderr
    assert kernels(folder / "klein 😀.onnx") <= TOTAL / 2

"""Plans with the weights that recovery changed: the same result without data, or a clear refusal."""

from __future__ import annotations

import json
import shutil
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

import leanonnx
from leanonnx.errors import OptionError, PlanError
from leanonnx.graph.model import load
from leanonnx.graph.storage import digest
from leanonnx.recovery.changes import add_bias, set_constant
from leanonnx.recovery.weights import changed_weights, insert_weights, read_weights
from leanonnx.surgery.plan import load_plan
from leanonnx.surgery.recipe import WeightsFile
from tests.helpers import ANY, called, called_json, refused, saved, saved_external
from tests.replays import MODEL, NETS, PLAN, WEIGHTS, inputs, made, replayed, same


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    saved(MODEL, tmp_path / "m.onnx")
    np.savez(tmp_path / "x.npz", x=inputs())
    return tmp_path


@pytest.mark.parametrize("kind", NETS)
def test_a_plan_with_weights_gives_the_same_bytes_without_data(folder: Path, kind: str) -> None:
    saved(NETS[kind], folder / "m.onnx")
    assert made(folder, "--calib", "x.npz", *WEIGHTS)["recovery"]["kept"]
    with np.load(folder / "w.npz") as file:
        left = {t.name: numpy_helper.to_array(t) for t in onnx.load(folder / "out.onnx").graph.initializer}
        assert all(np.array_equal(left[name], file[name]) for name in left if name in file.files and left)
    (folder / "x.npz").unlink()
    row = called_json("compress", folder / "m.onnx", folder / "again.onnx", "--plan", folder / "p.json")
    assert same(folder)
    assert row["warnings"] == []
    assert row["weights_from"] == str(folder / "w.npz")


def test_weights_of_recovery_without_data(folder: Path) -> None:
    saved(NETS["norms"], folder / "m.onnx")
    made(folder, "--recover", "auto", *WEIGHTS)
    assert replayed(folder) == []
    assert same(folder)


def test_weights_beside_external_data(folder: Path) -> None:
    saved_external(MODEL, folder / "m.onnx")
    made(folder, "--calib", "x.npz", *WEIGHTS)
    first = (folder / "out.onnx.data").read_bytes()
    assert replayed(folder) == []
    assert (folder / "again.onnx.data").read_bytes() == first


def test_the_report_names_the_source_of_weights(folder: Path) -> None:
    made(folder, "--calib", "x.npz", *WEIGHTS)
    done = called("compress", "m.onnx", "again.onnx", "--plan", "p.json", cwd=folder)
    text = " ".join(done.stdout.split())
    assert "Weights restored as they were when the plan was made, from " in text
    assert "before its weights were changed" in text


def test_plan_and_weights_move_together(folder: Path) -> None:
    (folder / "plans").mkdir()
    made(folder, "--calib", "x.npz", "--plan-out", "plans/p.json", "--plan-weights", "w.npz")
    assert json.loads((folder / "plans" / "p.json").read_text())["recovery"]["weights"]["file"] == "../w.npz"
    (folder / "moved" / "deep").mkdir(parents=True)
    shutil.move(folder / "w.npz", folder / "moved" / "w.npz")
    shutil.move(folder / "plans" / "p.json", folder / "moved" / "deep" / "p.json")
    done = called("compress", "m.onnx", "again.onnx", "--plan", "moved/deep/p.json", cwd=folder)
    assert done.returncode == 0, done.stderr
    assert same(folder)


def test_the_plan_of_a_replay_refers_to_the_same_weights(folder: Path) -> None:
    made(folder, "--calib", "x.npz", *WEIGHTS)
    (folder / "below").mkdir()
    assert replayed(folder, "--plan-out", "below/q.json") == []
    first, second = load_plan(folder / "p.json").recovery, load_plan(folder / "below" / "q.json").recovery
    assert first == second
    assert first is not None
    assert replayed(folder, "--plan-out", "q.json", "--plan-weights", "v.npz") == []
    assert (folder / "v.npz").read_bytes() == (folder / "w.npz").read_bytes()


def test_asking_for_recovery_comes_before_stored_weights(folder: Path) -> None:
    made(folder, "--calib", "x.npz", *WEIGHTS)
    (folder / "w.npz").unlink()
    assert replayed(folder, "--calib", "x.npz") == []
    assert same(folder)
    assert replayed(folder, "--recover", "none") == []
    assert not same(folder)


def test_from_python(folder: Path) -> None:
    first = leanonnx.compress(folder / "m.onnx", keep=0.5, calib={"x": inputs()}, plan_weights=folder / "w.npz", **ANY)
    (folder / "below").mkdir()
    first.plan.save(folder / "below" / "p.json")
    for plan in (first.plan, folder / "below" / "p.json"):
        again = leanonnx.compress(folder / "m.onnx", plan=plan)
        assert again.model == first.model
        assert again.warnings == ()
    bare = leanonnx.compress(folder / "m.onnx", plan=first.plan, recover="none")
    assert bare.model != first.model


# inconsistent plans


def test_the_file_of_weights_is_missing(folder: Path) -> None:
    made(folder, "--calib", "x.npz", *WEIGHTS)
    (folder / "w.npz").unlink()
    refused(folder, "compress", "m.onnx", "again.onnx", "--plan", "p.json", says=("p.json", "w.npz", "--recover none"))


def test_the_file_of_weights_is_another(folder: Path) -> None:
    made(folder, "--calib", "x.npz", *WEIGHTS)
    content = (folder / "w.npz").read_bytes()
    (folder / "w.npz").write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    says = ("w.npz", "not the weights that p.json was written with", "--plan-weights")
    refused(folder, "compress", "m.onnx", "again.onnx", "--plan", "p.json", says=says)


UNFIT: dict[str, Callable[[dict[str, Any]], object]] = {
    "another shape": lambda arrays: arrays.update(c=arrays["c"][..., :1]),
    "another type": lambda arrays: arrays.update(c=arrays["c"].astype(np.float64)),
    "integers": lambda arrays: arrays.update(c=arrays["c"].astype(np.int32)),
    "unknown": lambda arrays: arrays.update(ghost=arrays["c"]),
}


@pytest.mark.parametrize("kind", UNFIT)
def test_weights_that_do_not_fit(folder: Path, kind: str) -> None:
    made(folder, "--calib", "x.npz", *WEIGHTS)
    with np.load(folder / "w.npz") as file:
        arrays = dict(file)
    UNFIT[kind](arrays)
    np.savez(folder / "w.npz", **arrays)
    note_digest(folder)
    with pytest.raises(PlanError, match=r"the weights of '(c|ghost)' are "):
        leanonnx.compress(folder / "m.onnx", plan=folder / "p.json")


def note_digest(folder: Path) -> None:
    """Write the digest of the changed file of weights into the plan."""
    plan = json.loads((folder / "p.json").read_text())
    plan["recovery"]["weights"]["sha256"] = digest(folder / "w.npz").hex()
    (folder / "p.json").write_text(json.dumps(plan))


@pytest.mark.parametrize("content", [b"", b"no archive", b"{'descr': 1, 2: 3}"], ids=["empty", "text", "header"])
def test_damaged_weights_of_the_right_digest(folder: Path, content: bytes) -> None:
    made(folder, "--calib", "x.npz", *WEIGHTS)
    (folder / "w.npz").write_bytes(content)
    if content.startswith(b"{"):
        with zipfile.ZipFile(folder / "w.npz", "w") as archive:
            archive.writestr("c.npy", b"\x93NUMPY\x01\x00" + len(content).to_bytes(2, "little") + content)
    note_digest(folder)
    says = ("w.npz: not a whole file of weights", "--plan-weights")
    refused(folder, "compress", "m.onnx", "again.onnx", "--plan", "p.json", says=says)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (("--keep", 0.5, "--calib", "x.npz", "--plan-weights", "w.npz"), ("--plan-weights w.npz", "--plan-out")),
        (("--keep", 0.5, *WEIGHTS), ("--plan-weights w.npz", "--calib")),
        (("--exact", *WEIGHTS), ("--plan-weights w.npz",)),
        (("--keep", 0.5, "--calib", "x.npz", *PLAN, "--plan-weights", "x.npz"), ("x.npz", "overwrite")),
        (("--keep", 0.5, "--calib", "x.npz", *PLAN, "--plan-weights", "p.json"), ("p.json", "two files")),
    ],
)
def test_options_that_contradict(folder: Path, options: tuple[object, ...], says: tuple[str, ...]) -> None:
    refused(folder, "compress", "m.onnx", "out.onnx", *options, says=says)


def test_no_weights_were_changed(folder: Path) -> None:
    assert (
        "no weights were changed: --plan-weights was not written"
        in made(folder, "--recover", "auto", *WEIGHTS, budget=("--exact",))["warnings"]
    )
    assert not (folder / "w.npz").exists()
    with pytest.raises(OptionError, match="plan_weights="):
        leanonnx.compress(folder / "m.onnx", keep=0.5, plan_weights=folder / "w.npz")


def test_bfloat16_is_kept(folder: Path) -> None:
    """A number format unknown to numpy survives the file unchanged, in weights and in added biases."""
    kind = onnx.helper.tensor_dtype_to_np_dtype(onnx.TensorProto.BFLOAT16)
    bare = onnx.ModelProto.FromString(NETS["biases added"].SerializeToString())
    for tensor in bare.graph.initializer:
        tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(kind), tensor.name))
    draft = onnx.ModelProto.FromString(bare.SerializeToString())
    set_constant(draft, "c", 2 * numpy_helper.to_array(bare.graph.initializer[1]))
    add_bias(draft, draft.graph.node[0], "h_bias", np.arange(16).astype(kind))
    model = replace(load(folder / "m.onnx"), proto=bare)
    found = changed_weights(model, draft)
    assert found.biases == {"h_bias": "h"}
    (folder / "w.npz").write_bytes(found.to_bytes())
    file = WeightsFile(folder / "w.npz", digest(folder / "w.npz").hex(), found.biases)
    assert insert_weights(model, read_weights(file, "p.json"), "p.json") == draft

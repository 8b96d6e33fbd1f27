"""Mistakes of people who are new to it: each gets the right exit code, and a message that names the remedy."""

from __future__ import annotations

import json
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx
import onnxruntime as ort
import pytest

import leanonnx
from tests.helpers import ANY, CALIBRATION, CNN, build, called, cli, refused, saved, saved_external

COMPRESS = ("compress", "m.onnx", "o.onnx")
HALF = (*COMPRESS, "--keep", "0.5", "--align", 1)
LFS = f"version https://git-lfs.github.com/spec/v1\noid sha256:{64 * '0'}\nsize 1234\n"
KINDS = 5
"""Classes of the network."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A network whose decisions differ, and data of all kinds."""
    made = tmp_path_factory.mktemp("newcomer")
    rng, proto = np.random.default_rng(0), build(CNN)
    x = rng.standard_normal((60, 3, 8, 8)).astype(np.float32)
    path = saved(proto, made / "m.onnx")
    session = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    outputs = np.concatenate([session.run(None, {"x": row[None]})[0] for row in x])
    (bias,) = (each for each in proto.graph.initializer if each.name == "b3")
    centred = (onnx.numpy_helper.to_array(bias) - outputs.mean(0)).astype(np.float32)
    bias.CopyFrom(onnx.numpy_helper.from_array(centred, "b3"))
    saved(proto, path)
    labels = (outputs - outputs.mean(0)).argmax(1)
    pixels = rng.integers(0, 256, x.shape)
    with_nan = x.copy()
    with_nan[-1, 0, 0, 0] = np.nan
    arrays: dict[str, dict[str, np.ndarray]] = {
        "x": {"x": x, "labels": labels},
        "one_hot": {"x": x, "labels": np.eye(KINDS, dtype=np.float32)[labels]},
        "off_by_one": {"x": x, "labels": labels + 1},
        "raw": {"x": pixels.astype(np.float32), "labels": (labels + 1) % KINDS},
        "bytes": {"x": pixels.astype(np.uint8)},
        "target": {"x": x, "target": labels},
        "more": {"x": x, "weights": labels, "ids": labels},
        "nan": {"x": with_nan},
        "named": {"image": x, "depth": x},
        "last": {"x": x.transpose(0, 2, 3, 1)},
        "text": {"x": np.full(x.shape, "a")},
    }
    for name, members in arrays.items():
        np.savez(made / f"{name}.npz", **members)
    np.save(made / "x.npy", x)
    saved_external(proto, made / "external.onnx")
    (made / "weights.bin").unlink()
    proto.opset_import[0].version = 40
    saved(proto, made / "opset.onnx")
    (made / "lfs.onnx").write_text(LFS)
    (made / "notes.txt").write_text("no model")
    (made / "notes.toml").write_text("[compress]\nkeeep = 0.5\n")
    (made / "empty").mkdir()
    return made


# refused, with exit code 2 or 1


class Mistake(NamedTuple):
    """A command that is refused: its words, what the message says, its exit code."""

    words: tuple[object, ...]
    says: tuple[str, ...]
    code: int = 2


REFUSED = {
    "milliseconds": Mistake((*COMPRESS, "--latency", "20ms"), ("expected a fraction", "leanonnx bench", "0.25")),
    "decimal comma": Mistake((*COMPRESS, "--macs=0,5"), ("decimal comma as a point: --macs 0.5",)),
    "decimal comma in percent": Mistake((*COMPRESS, "--keep", "12,5%"), ("decimal comma as a point: --keep 0.125",)),
    "no number at all": Mistake((*COMPRESS, "--keep", "nan"), ("above 0 and at most 1", "--keep 0.25")),
    "decimal comma of a gate": Mistake(
        ("check", "m.onnx", "m.onnx", "--max-deviation", "0,01"), ("--max-deviation 0,01: expected", "for example 0.01")
    ),
    "no such candidate": Mistake(("check", "m.onnx", "n.onnx"), ("n.onnx", "check the path")),
    "a model for a folder": Mistake(("compress", "*.onnx", "o.onnx", "--keep", "0.5"), ("o.onnx", "make that folder")),
    "a pattern without a match": Mistake(("inspect", "*.ONX"), ("no file matches this pattern",)),
    "an option that a file has not": Mistake((*HALF, "--config", "notes.toml"), ("keeep", "did you mean 'keep'?")),
    "percent sign left out": Mistake(
        (*COMPRESS, "--keep", "50"), ("above 0 and at most 1", "for 50\u00a0% give --keep 50% or --keep 0.5")
    ),
    "operator set of the future": Mistake(
        ("inspect", "opset.onnx"), ("operator set 40", "export it with operator set")
    ),
    "a sample with NaN": Mistake(
        (*HALF, "--calib", "nan.npz", "--recover", "none"), ("sample 59 of input 'x'", "leave the sample out")
    ),
    "mean without images": Mistake((*HALF, "--mean", "0.5"), ("--mean", "add --calib, or leave them out")),
    "mean with arrays": Mistake((*HALF, "--calib", "x.npz", "--mean", "0.5"), ("no images; leave out --mean",)),
    "no budget": Mistake(COMPRESS, ("give exactly one of --keep", "for example --keep 0.25")),
    "two budgets": Mistake((*HALF, "--macs", "0.5"), ("give exactly one of --keep",)),
    "no OUT": Mistake(("compress", "m.onnx", "--keep", "0.5"), ("OUT is missing", "give the file to write")),
    "OUT is IN": Mistake(("compress", "m.onnx", "m.onnx", "--keep", "0.5"), ("give another output path",)),
    "OUT in a folder that is not there": Mistake(
        ("compress", "m.onnx", "no/o.onnx", "--keep", "0.5"), ("the folder 'no' does not exist; make it first",)
    ),
    "no such model": Mistake(("inspect", "n.onnx"), ("n.onnx", "check the path")),
    "no model at all": Mistake(("inspect", "notes.txt"), ("not an ONNX model", "export or copy")),
    "a pointer of Git LFS": Mistake(("inspect", "lfs.onnx"), ("git lfs pull",)),
    "weights left behind": Mistake(("inspect", "external.onnx"), ("weights.bin", "copy it to")),
    "data named otherwise": Mistake(
        (*HALF, "--calib", "named.npz"), ("no array for input 'x'", "name each array after")
    ),
    "channels last": Mistake((*HALF, "--calib", "last.npz"), ("[60, 8, 8, 3]", "[samples, 3, 8, 8]")),
    "text for numbers": Mistake((*HALF, "--calib", "text.npz"), ("input 'x' takes float32; convert the array",)),
    "no such data": Mistake((*HALF, "--calib", "n.npz"), ("no such file or folder; give an .npz",)),
    "an empty folder of data": Mistake((*HALF, "--calib", "empty"), ("neither arrays", "give a folder that holds")),
    "a tolerance without data": Mistake((*COMPRESS, "--min-agreement", "0.9"), ("add --calib",)),
    "an input that there is not": Mistake((*HALF, "--shape", "input=1,3,8,8"), ("the inputs are x",)),
    "a layer that there is not": Mistake((*HALF, "--pin", "conv1"), ("--pin conv1", "see `leanonnx inspect`")),
    "more than can be removed": Mistake((*COMPRESS, "--keep", "0.0001", "--align", 1), ("ask for at least",), code=1),
}


def test_samples_among_the_models(folder: Path) -> None:
    np.savez(folder / "samples.npz", x=CALIBRATION)
    words = ("compress", "m.onnx", "samples.npz", "o.onnx", "--int8")
    refused(folder, *words, says=("samples.npz: holds arrays, no model", "give them with --calib"))


@pytest.mark.parametrize("name", REFUSED)
def test_refused(folder: Path, name: str) -> None:
    mistake = REFUSED[name]
    refused(folder, *mistake.words, code=mistake.code, says=mistake.says)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ((*HALF, "--provider", "gpu"), ("'gpu' is not one of 'cpu', 'cuda', 'tensorrt'",)),
        ((*HALF, "--frobnicate"), ("--frobnicate",)),
        (("finetune", "m.onnx", "o.onnx"), ("Missing option '--data'",)),
        (("squash", "m.onnx"), ("No such command 'squash'; the commands are ", "compress", "inspect")),
    ],
    ids=lambda value: str(value[-1]),
)
def test_refused_by_the_parser(folder: Path, words: tuple[object, ...], says: tuple[str, ...]) -> None:
    done = called(*words, cwd=folder)
    assert (done.returncode, done.stdout) == (2, "")
    last = done.stderr.strip().splitlines()[-1]
    assert [text for text in says if text not in last] == []
    assert "Value error" not in done.stderr


# done, with a warning that names the remedy


WARNED = {
    "labels off by one": ("off_by_one", ("no better than by chance", "count its classes from 0")),
    "raw pixels": ("raw", ("no better than by chance", "whole numbers up to 255", "scale them as in training")),
    "uint8 for floats": ("bytes", ("whole numbers up to 255", "scale them as in training")),
    "labels called target": ("target", ("arrays of the data are not used: 'target'; name labels 'labels'",)),
    "other arrays": ("more", ("arrays of the data are not used: 'weights', 'ids'",)),
}


@pytest.mark.parametrize("name", WARNED)
def test_warned(folder: Path, tmp_path: Path, name: str) -> None:
    data, says = WARNED[name]
    done = called("compress", "m.onnx", tmp_path / "o.onnx", *HALF[3:], "--calib", f"{data}.npz", "--json", cwd=folder)
    assert done.returncode == 0, done.stderr
    text = "\n".join(json.loads(done.stdout)["warnings"])
    assert [each for each in says if each not in text] == []


# taken as it is meant


def test_percent(folder: Path, tmp_path: Path) -> None:
    target = tmp_path / "o.onnx"
    assert called("compress", "m.onnx", target, "--keep", "50%", "--align", 1, cwd=folder).returncode == 0


def test_npy(folder: Path, tmp_path: Path) -> None:
    done = called("compress", "m.onnx", tmp_path / "o.onnx", *HALF[3:], "--calib", "x.npy", cwd=folder)
    assert done.returncode == 0, done.stderr


def test_one_hot_labels(folder: Path, tmp_path: Path) -> None:
    """The accuracy that the same labels as numbers give."""
    scores = []
    for data in ("one_hot", "x"):
        words = ("compress", "m.onnx", tmp_path / "o.onnx", *HALF[3:], "--calib", f"{data}.npz", "--json")
        scores.append(json.loads(called(*words, cwd=folder).stdout)["recovery"]["deviation"]["metric"])
    assert scores[0] == scores[1]
    assert scores[0]["name"] == "top-1 accuracy"


def test_why_a_layer(folder: Path) -> None:
    done = called("inspect", "m.onnx", "--why", "C1", cwd=folder)
    assert (done.returncode, "'c1'" in done.stdout) == (0, True)


def test_run_as_a_module(folder: Path) -> None:
    done = cli("inspect", "m.onnx", cwd=folder, command=[sys.executable, "-m", "leanonnx"])
    assert done.returncode == 0, done.stderr


def zipped(path: Path, name: str) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(name, "x")


FOREIGN: dict[str, tuple[Callable[[Path], object], str]] = {
    "f.npz": (lambda path: np.savez(path, x=CALIBRATION), "arrays, not a model; give the .onnx file here"),
    "f.npy": (lambda path: np.save(path, CALIBRATION), "and the arrays with --calib or --data"),
    "f.pt": (lambda path: zipped(path, "archive/data.pkl"), "export the model with torch.onnx.export"),
    "f.keras": (lambda path: zipped(path, "model.weights.h5"), "convert the model with tf2onnx"),
    "f.h5": (lambda path: path.write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(90)), "a file of Keras"),
    "f.tflite": (lambda path: path.write_bytes(b"\x1c\0\0\0TFL3" + bytes(90)), "convert the model with tf2onnx"),
    "f.zip": (lambda path: zipped(path, "x.txt"), "not an ONNX model (not a protobuf"),
}


@pytest.mark.parametrize("name", FOREIGN)
def test_other_files_in_place_of_a_model(folder: Path, tmp_path: Path, name: str) -> None:
    write, says = FOREIGN[name]
    write(tmp_path / name)
    refused(folder, "inspect", tmp_path / name, says=(says,))


def test_a_candidate_that_is_not_there(folder: Path) -> None:
    done = called("check", "m.onnx", "none.onnx", cwd=folder)
    assert done.stderr.strip() == "leanonnx: none.onnx: no such file; check the path of the model"


# in Python


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"macs": "half"}, "macs='half': expected a fraction above 0 and at most 1, for example macs=0.25"),
        ({"keep": 50}, "at most 1; for 50\N{NO-BREAK SPACE}% give keep='50%' or keep=0.5"),
        ({"keep": 0.5, "calib": iter(())}, "gives no sample; a generator can be read once"),
    ],
    ids=("a word", "percent", "nothing"),
)
def test_refused_in_python(folder: Path, given: dict[str, Any], says: str) -> None:
    with pytest.raises(leanonnx.UserError) as error:
        leanonnx.compress(folder / "m.onnx", **given)
    assert says in str(error.value)


def loader() -> list[list[np.ndarray]]:
    """Batches as a DataLoader of torch gives them: lists of inputs and labels."""
    return [[CALIBRATION[k : k + 10], np.arange(10)[: len(CALIBRATION[k : k + 10])] % KINDS] for k in range(0, 24, 10)]


@pytest.mark.parametrize("calib", [loader, lambda: ({"x": row} for row in CALIBRATION)], ids=["loader", "generator"])
def test_taken_in_python(folder: Path, calib: Callable[[], Any]) -> None:
    result = leanonnx.compress(folder / "m.onnx", keep=0.5, calib=calib(), **ANY)
    assert result.report.recovery is not None
    assert result.report.recovery.samples + result.report.recovery.held_out == len(CALIBRATION)


def test_a_plan_without_its_inputs(folder: Path, tmp_path: Path) -> None:
    """The plan of a run on inputs says how they were used; without them a warning says how to get the same weights."""
    plan, target = tmp_path / "p.json", tmp_path / "o.onnx"
    words = ("compress", "m.onnx", target)
    done = called(*words, *HALF[3:], "--calib", "x.npz", "--plan-out", plan, cwd=folder)
    assert done.returncode == 0, done.stderr
    again = called(*words, "--plan", plan, "--json", cwd=folder)
    assert "--calib x.npz" in "\n".join(json.loads(again.stdout)["warnings"])

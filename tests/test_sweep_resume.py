"""``leanonnx sweep`` resumes where it stopped, for the same request only."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from leanonnx.commands.sweep.driver import WORK_FOLDER
from leanonnx.commands.sweep.journal import JOURNAL
from tests.helpers import CNN, build, refused, saved
from tests.sweeps import QUICK, lasting, points, run

pytestmark = pytest.mark.usefixtures("points_made_within", "undrawn")


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return saved(build(CNN), tmp_path / "net.onnx")


def test_finished_points_are_taken_over(model: Path) -> None:
    """Also those of another list of fractions."""
    first = run(model.parent, model, "--keep", "0.75,0.5", *QUICK)
    again = run(model.parent, model, "--keep", "0.5,0.001,0.25", *QUICK, code=1)
    assert points(again)[0] == points(first)[1]
    assert points(again)[1]["made"][0] > points(first)[0]["made"][1]
    assert run(model.parent, model, "--keep", "0.5,0.001,0.25", *QUICK, code=1) == again


@pytest.mark.parametrize("change", [("--method", "norm"), ("--seed", 1), ("--pin", "c1"), ("--save-models",)])
def test_other_options_are_refused(model: Path, change: tuple[object, ...]) -> None:
    run(model.parent, model, "--keep", "0.5", *QUICK)
    says = (str(change[0]).removeprefix("--").partition("-")[0], "--restart")
    refused(model.parent, "sweep", model, "--keep", "0.5", *QUICK, *change, says=says)


def test_other_content_is_refused_or_begun_anew(model: Path) -> None:
    np.savez(model.parent / "x.npz", x=np.ones((5, 3, 8, 8), np.float32))
    args = ("--keep", "0.5", *QUICK, "--calib", "x.npz", "--recover", "none", "--save-models")
    run(model.parent, model, *args)
    raw = model.read_bytes()
    saved(build(CNN, seed=1), model)
    refused(model.parent, "sweep", model, *args, says=("sha256 of the model 'net' was", "--restart"))
    model.write_bytes(raw)
    np.savez(model.parent / "x.npz", x=np.zeros((5, 3, 8, 8), np.float32))
    refused(model.parent, "sweep", model, *args, says=("calib_sha256 was", "--restart"))
    row = run(model.parent, model, "--keep", "0.75", *QUICK, "--save-models", "--restart")
    assert [path.name for path in (model.parent / "net-sweep" / "models").iterdir()] == ["net-keep-0.75.onnx"]
    assert [point["asked"] for point in points(row)] == [0.75]


def test_missing_saved_models_are_recomputed(model: Path) -> None:
    first = run(model.parent, model, "--keep", "0.5,0.25", *QUICK, "--save-models")
    files = [model.parent / "net-sweep" / point["file"] for point in points(first)]
    raw = files[0].read_bytes()
    files[0].unlink()
    again = run(model.parent, model, "--keep", "0.5,0.25", *QUICK, "--save-models")
    assert files[0].read_bytes() == raw
    assert lasting(again) == lasting(first)
    assert points(again)[1] == points(first)[1]


def test_a_line_that_was_cut_short_is_passed_over(model: Path) -> None:
    first = run(model.parent, model, "--keep", "0.75,0.5", *QUICK)
    journal = model.parent / "net-sweep" / JOURNAL
    whole = journal.read_bytes()
    journal.write_bytes(whole[:-5])
    again = run(model.parent, model, "--keep", "0.75,0.5", *QUICK)
    assert lasting(again) == lasting(first)
    assert len(journal.read_bytes().splitlines()) == len(whole.splitlines())
    journal.write_bytes(whole.replace(b'"asked"', b'"baked"', 1))
    refused(model.parent, "sweep", model, "--keep", "0.75,0.5", *QUICK, says=("line 2 is damaged", "--restart"))


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        (b'{"header": {', b'{"header": 5, "rest": {', "line 1 is damaged"),
        (b'"models": {"net"', b'"models": [], "rest": {"net"', "line 1 is damaged"),
        (b'"models": {"net": {', b'"models": {"net": 5, "rest": {', "line 1 is damaged"),
        (b'"sha256": ', b'"sha512": ', "sha512 of the model"),
        (b'{"header": ', b"[" * 100_000 + b'{"header": ', "line 1 is damaged"),
        (b'"code": 0', b'"code": 1', "line 2 is damaged"),
    ],
    ids=["header", "models", "model", "key", "nested", "code"],
)
def test_a_damaged_line_is_refused(model: Path, old: bytes, new: bytes, says: str) -> None:
    run(model.parent, model, "--keep", "0.5", *QUICK)
    journal = model.parent / "net-sweep" / JOURNAL
    raw = journal.read_bytes()
    assert raw.count(old) == 1
    journal.write_bytes(raw.replace(old, new))
    refused(model.parent, "sweep", model, "--keep", "0.5", *QUICK, says=(says, "--restart"))


def test_a_removal_that_fails_once_leaves_nothing(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    remove, failed = os.rmdir, list[str]()

    def fail_once(path: str, **settings: Any) -> None:
        if Path(path).name == WORK_FOLDER and not failed:
            failed.append(path)
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        remove(path, **settings)

    monkeypatch.setattr(os, "rmdir", fail_once)
    run(model.parent, model, "--keep", "0.5", *QUICK)
    assert failed and not (model.parent / "net-sweep" / WORK_FOLDER).exists()

"""``leanonnx sweep``: what it writes and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from tests.helpers import CNN, build, called, outputs, refused, saved, saved_external
from tests.sweeps import QUICK, points, run
from tests.test_timing import NO_GPU

pytestmark = pytest.mark.usefixtures("points_made_within")


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return saved(build(CNN), tmp_path / "net.onnx")


# What is written


def test_json_agrees_with_the_written_file(model: Path) -> None:
    row = run(model.parent, model, "--macs", "0.5", *QUICK, "--out", "here")
    assert row == json.loads((model.parent / "here" / "sweep.json").read_text())
    assert (row["unit"], row["measured"], row["about"]["budget"]) == ("macs", False, "macs")
    assert points(row)[0]["file"] is None
    assert not (model.parent / "here" / "models").exists()


def test_several_models_with_one_that_fails(model: Path) -> None:
    """Files of the same name get names of their own; one that is no model stops no other."""
    (model.parent / "more").mkdir()
    other = saved_external(build(CNN, seed=1), model.parent / "more" / "net.onnx")
    done = called("sweep", model, "none.onnx", other, "--keep", "0.5", *QUICK, "--save-models", cwd=model.parent)
    assert done.returncode == 2
    assert "none.onnx: no such file" in done.stdout
    folder = model.parent / "net-and-2-more-sweep"
    row = json.loads((folder / "sweep.json").read_text())
    assert [each["name"] for each in row["models"]] == ["net", "none", "net-2"]
    assert [point["code"] for each in row["models"] for point in each["points"]] == [0, 2, 0]
    first, second = (folder / points(row, which)[0]["file"] for which in (0, 2))
    assert second.with_name(f"{second.name}.data").is_file()
    assert [value.shape for value in outputs(second)] == [(1, 5)]
    assert first.read_bytes() != second.read_bytes()


def test_unreachable_budgets_are_reported(model: Path) -> None:
    row = run(model.parent, model, "--keep", "0.5,0.001", *QUICK, code=1)
    good, bad = points(row)
    assert (good["code"], bad["code"], bad["kernels"]) == (0, 1, None)
    assert "0.001 of the kernels was asked for" in bad["message"]
    best = run(model.parent, model, "--keep", "0.5,0.001", *QUICK, "--best-effort", "--out", "best")
    assert "over budget" in points(best)[1]["warnings"][0]


def test_inputs_affect_the_deviation(model: Path) -> None:
    rng = np.random.default_rng(0)
    np.savez(model.parent / "x.npz", x=rng.standard_normal((40, 3, 8, 8)).astype(np.float32), labels=np.arange(40) % 5)
    row = run(model.parent, model, "--keep", "1,0.5", *QUICK, "--calib", "x.npz")
    whole, half = (point["deviation"] for point in points(row))
    assert (half["on"], half["samples"], half["metric"]["name"]) == ("held-out samples", 40, "top-1 accuracy")
    assert half["relative_l2"] > 0
    assert (whole["on"], whole["relative_l2"]) == ("nothing: it is the original", 0)
    assert "not accuracy" not in " ".join(row["warnings"])


def test_without_matplotlib(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("leanonnx.commands.sweep.extras.find_spec", lambda name: None)
    row = run(model.parent, model, "--keep", "0.5", *QUICK)
    assert "pip install matplotlib" in row["warnings"][-1]
    assert row["files"].keys() == {"csv", "json"}
    done = called(
        "sweep", model, "--keep", "0.5", *QUICK, "--dask", "tcp://127.0.0.1:1", "--out", "d", cwd=model.parent
    )
    assert (done.returncode, "pip install distributed" in done.stderr) == (2, True)


# What is refused


@pytest.mark.parametrize(
    ("args", "says"),
    [
        ((), "exactly one of --keep, --macs, --params, --latency or --bytes"),
        (("--keep", "0.5", "--macs", "0.5"), "exactly one of --keep"),
        (("--keep", "0.5,,0.1"), "--keep 0.5,,0.1: expected fractions"),
        (("--keep", "0.5,2"), "--keep 2: expected a fraction above 0 and at most 1"),
        (("--macs", "half"), "--macs half"),
        (("--latency", "0.5", "--no-measure"), "leave out --no-measure"),
        (("--latency", "0.5", "--jobs", "2"), "leave out --dask and --jobs"),
        (("--latency", "0.5", "--dask", "tcp://127.0.0.1:1"), "leave out --dask and --jobs"),
        (("--keep", "0.5", "--dask", "tcp://127.0.0.1:1", "--jobs", "2"), "leave out --jobs"),
        (("--keep", "0.5", "--pin", "ghost"), "--pin ghost"),
        (("--keep", "0.5", "--shape", "y=1,3,8,8"), "--shape y"),
        (("--keep", "0.5", "--target", "toaster"), "--target toaster"),
        (("--keep", "0.5", "--calib", "none.npz"), "none.npz"),
        (("--keep", "0.5", "--library", "none.so"), "--library none.so"),
        (("--keep", "0.5", "--out", "no/such"), "the folder 'no' does not exist"),
        (("--keep", "0.5", "--out", "."), "holds other files and no sweep"),
        (("--keep", "0.5", "--out", "net.onnx"), "net.onnx"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_wrong_requests(model: Path, args: tuple[str, ...], says: str) -> None:
    refused(model.parent, "sweep", model, *args, says=(says,))


@pytest.mark.skipif(not NO_GPU, reason="this machine has an NVIDIA driver")
def test_a_provider_that_is_not_there(model: Path) -> None:
    """Known before anything is compressed."""
    refused(model.parent, "sweep", model, "--keep", "0.5", "--provider", "cuda", says=("--provider cuda",))


def test_no_model_at_all(tmp_path: Path) -> None:
    refused(tmp_path, "sweep", "none.onnx", "--keep", "0.5", says=("none.onnx: no such file",))

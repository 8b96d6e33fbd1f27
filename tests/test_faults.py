"""The n-th file operation fails, for every n: the old result or the whole new one, a message, nothing left behind."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from tests.faults import COMPILER, FAULTS, KILLED, Fault, Run, build_library, faults_of, runs
from tests.faults.runner import folder_hashes
from tests.helpers import CALIBRATION, CNN, build, saved

pytestmark = [
    pytest.mark.skipif(not sys.platform.startswith("linux"), reason="faults are put in as Linux loads libraries"),
    pytest.mark.skipif(COMPILER is None, reason="there is no C compiler"),
]
MODEL, OUT = "model.onnx", "out.onnx"
INPUTS = (MODEL, "inputs.npz")
COMMAND = (
    *("compress", MODEL, OUT, "--keep", "0.5", "--align", "1", "--no-measure", "--calib", "inputs.npz"),
    *("--plan-out", "plan.json", "--recover", "none"),
)
STRIDE = 3
"""One operation in so many fails here; all of them in benchmarks/faults.py."""


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The compiled library of faults."""
    return build_library(tmp_path_factory.mktemp("faults") / "faults.so")


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model, samples, and an older result with its plan."""
    folder = tmp_path_factory.mktemp("prepared")
    saved(build(CNN), folder / MODEL)
    np.savez(folder / "inputs.npz", x=CALIBRATION)
    (folder / OUT).write_bytes(b"an older result")
    (folder / "plan.json").write_bytes(b"an older plan")
    return folder


@pytest.fixture(scope="module")
def clean(library: Path, prepared: Path) -> Run:
    """A run without a fault."""
    (done,) = runs(library, prepared, COMMAND, Fault(0))
    assert done.code == 0, done.message
    return done


@pytest.mark.parametrize("name", FAULTS)
def test_nothing_is_lost(name: str, library: Path, prepared: Path, clean: Run) -> None:
    old, first = folder_hashes(prepared), 1 + list(FAULTS).index(name) % STRIDE
    done = [run for run in runs(library, prepared, COMMAND, FAULTS[name], first, step=STRIDE) if run.fired]
    assert done
    assert {run.number: wrong for run in done if (wrong := faults_of(run, old, clean.folder, INPUTS))} == {}
    assert all(run.code == KILLED for run in done) == name.startswith("killed")


def test_broken_promises_are_seen(prepared: Path, clean: Run) -> None:
    old = folder_hashes(prepared)
    lost = {name: content for name, content in old.items() if name != OUT}
    failed = clean._replace(code=2, message="leanonnx: no", fired=1, operation="write", folder=old)
    assert faults_of(failed, old, clean.folder, INPUTS) == []
    for run, text in (
        (failed._replace(folder=lost), "neither the old files nor the new: out.onnx is missing, plan.json is old"),
        (failed._replace(folder=old | {MODEL: "x"}), f"input {MODEL} changed"),
        (failed._replace(folder=old | {".leanonnx-1": None}), "left behind: .leanonnx-1"),
        (failed._replace(message=" "), "no message"),
        (failed._replace(message="Traceback (most recent call last)"), "a traceback"),
        (failed._replace(code=3), "exit code 3"),
        (failed._replace(code=0), "exit code 0, but not the whole result"),
    ):
        assert text in faults_of(run, old, clean.folder, INPUTS)

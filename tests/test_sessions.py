"""Runs of a session that are watched over."""

from __future__ import annotations

import errno
import time

import numpy as np
import pytest
import typer

from leanonnx.cli.terminal import exit_codes
from leanonnx.runtime import sessions
from leanonnx.runtime.sessions import RunFailed, open_session, session_runner, translate_errors
from tests.helpers import build


def test_time_between_runs_counts_for_none_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    model = build('<ir_version: 8, opset_import: ["" : 17]> g (float[2] x) => (float[2] y) { y = Relu (x) }')
    monkeypatch.setattr(sessions, "MAX_RUN_SECONDS", 0.3)
    with open_session(model) as session, session_runner(session) as run_once:
        run_once({"x": np.ones(2, np.float32)})
        time.sleep(0.6)
        (found,) = run_once({"x": np.ones(2, np.float32)})
    assert np.array_equal(found, [1, 1])


@pytest.mark.parametrize(("number", "kind"), [(errno.EIO, OSError), (errno.EACCES, OSError), (errno.ENOENT, RunFailed)])
def test_a_failing_disk_is_not_blamed_on_the_model(number: int, kind: type[Exception]) -> None:
    text = f"[ONNXRuntimeError] : 1 : FAIL : Load model from m.onnx failed:system error number {number}"
    with pytest.raises(kind), translate_errors():
        raise RuntimeError(text)


def test_a_model_that_cannot_be_run_any_more_is_no_bug(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(typer.Exit) as stopped, exit_codes():
        raise RunFailed("Protobuf parsing failed.")
    assert stopped.value.exit_code == 2
    assert "Protobuf parsing failed.; check the disk" in capsys.readouterr().err

"""Runs of a session that are watched over."""

from __future__ import annotations

import errno
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import typer

from leanonnx.cli.terminal import exit_codes
from leanonnx.errors import NO_MEMORY
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


STOPPED = """
import sys
import time

from leanonnx.runtime import sessions


class Slow:
    def run(self, names, feed, limits):
        print("begun", flush=True)
        sys.stdin.readline()
        time.sleep(0.3)
        return [limits.terminate]


sessions.MAX_RUN_SECONDS = 2
with sessions.session_runner(Slow()) as run_once:
    print(run_once({}))
"""


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no signal that stops a process")
def test_time_in_which_the_process_is_stopped_does_not_count() -> None:
    """Ctrl-Z, and fg some minutes later."""
    with subprocess.Popen(
        [sys.executable, "-c", STOPPED], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "begun\n"
        process.send_signal(signal.SIGSTOP)
        time.sleep(2.5)
        process.send_signal(signal.SIGCONT)
        out, _ = process.communicate("\n", timeout=60)
    assert out == "[False]\n"


def test_a_run_without_end_is_stopped_and_said_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sessions, "MAX_RUN_SECONDS", 0.3)
    model = build(
        '<ir_version: 8, opset_import: ["" : 17]> g (float[2] x) => (float[2] y) <bool go = {1}> {'
        " y = Loop (, go, x) <body = b (int64 i, bool c, float[2] p) => (bool d, float[2] q)"
        " { d = Identity (c) q = Relu (p) }> }"
    )
    with pytest.raises(RunFailed, match=r"^a run did not end within 0\.3 seconds$"):
        sessions.run(model, [{"x": np.ones(2, np.float32)}])


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


@pytest.mark.parametrize(
    ("text", "code", "said"),
    [
        ("std::bad_alloc", 2, NO_MEMORY),
        ("DefaultCPUAllocator: can't allocate memory: you tried to allocate 4000000000 bytes", 2, NO_MEMORY),
        ("CUDA out of memory. Tried to allocate 2.00 GiB", 2, NO_MEMORY),
        ("Sizes of tensors must match", 3, "a bug in leanonnx"),
    ],
)
def test_a_library_without_memory_is_no_bug(
    text: str, code: int, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """PyTorch raises what its C++ raises as a RuntimeError, also while it is imported."""
    with pytest.raises(typer.Exit) as stopped, exit_codes():
        raise RuntimeError(text)
    assert stopped.value.exit_code == code
    assert said in capsys.readouterr().err

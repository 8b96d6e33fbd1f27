"""Stopped at any moment, by whatever: no output and nothing left, or the whole output; the input never changes."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import onnx
import pytest

from leanonnx.commands.compress import pipeline
from leanonnx.errors import OutputError
from leanonnx.selection.metrics import Budget
from tests.helpers import CNN, COMMAND, Done, Options, build, cli, compressed, refused, saved, saved_external, tree

pytest.importorskip("resource", reason="limits and signals of processes as Unix has them")
PATIENCE = 60
WIDTH, DEPTH = 192, 8
INTERRUPTED = (1, 130)
STAGES = ("load", "observe", "analyse", "select", "operate", "prove")


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return saved(build(CNN), tmp_path / "model.onnx")


@pytest.fixture(scope="module")
def slow(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose compression takes seconds, most of them between the draft and the end of the proof."""
    weights = ", ".join(f"float[{WIDTH}, {WIDTH}, 3, 3] w{k}" for k in range(1, DEPTH))
    layers = "\n".join(f"c{k} = Conv <pads = [1, 1, 1, 1]> (c{k - 1}, w{k})" for k in range(1, DEPTH))
    text = f"""<ir_version: 8, opset_import: ["" : 17]>
    slow (float[1, 3, 64, 64] x) => (float[1, 4, 64, 64] y)
    <float[{WIDTH}, 3, 3, 3] w0, {weights}, float[4, {WIDTH}, 1, 1] last>
    {{ c0 = Conv <pads = [1, 1, 1, 1]> (x, w0)
    {layers}
    y = Conv (c{DEPTH - 1}, last) }}"""
    return saved(build(text), tmp_path_factory.mktemp("slow") / "slow.onnx")


# A full disk


@pytest.mark.parametrize("size", [100, 2000])
def test_disk_full(model: Path, size: int) -> None:
    """A limit on the size of files stops the write as a full disk does."""

    limit = f"import resource; resource.setrlimit(resource.RLIMIT_FSIZE, ({size}, {size}))"
    command = [sys.executable, "-c", f"{limit}; from leanonnx.cli.main import main; main()"]

    def limited(*args: object, cwd: Path) -> Done:
        return cli(*args, cwd=cwd, command=command)

    refused(model.parent, "compress", model, "out.onnx", "--keep", "0.5", says=("out.onnx",), run=limited)


def test_disk_full_leaves_an_older_output_alone(model: Path) -> None:
    (model.parent / "out.onnx").write_bytes(b"older")
    test_disk_full(model, 100)


def test_disk_full_while_writing_external_data(tmp_path: Path) -> None:
    test_disk_full(saved_external(build(CNN), tmp_path / "model.onnx"), 1000)


def test_disk_full_while_copying(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing to remove: the copy of the input fails just so."""

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("shutil.copyfile", full)
    before = tree(model.parent)
    with pytest.raises(OutputError, match="No space left on device"):
        compressed(model, model.parent / "out.onnx", keep=1.0)
    assert tree(model.parent) == before


# Ctrl-C


@pytest.mark.parametrize("stage", STAGES)
def test_interrupted_at_each_stage(model: Path, stage: str) -> None:
    seen = []

    def listener(name: str, done: float | None = None) -> None:
        seen.append(name)
        if name == stage:
            raise KeyboardInterrupt

    before = tree(model.parent)
    with pytest.raises(KeyboardInterrupt):
        pipeline.compress_file(model, model.parent / "out.onnx", Options(Budget("kernels", 0.5)), progress=listener)
    assert seen[-1] == stage
    assert tree(model.parent) == before


def started(source: Path, folder: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [*COMMAND, "compress", str(source), str(folder / "out.onnx"), "--keep", "0.5", "--no-measure", "--json"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


@pytest.fixture
def drafting(slow: Path, tmp_path: Path, interruptible: None) -> Iterator[subprocess.Popen[str]]:
    """A process whose draft lies in its temporary folder beside the output."""
    process = started(slow, tmp_path)
    limit = time.monotonic() + PATIENCE
    while not any(tmp_path.glob(".leanonnx-*/*/out.onnx")):
        assert process.poll() is None
        assert time.monotonic() < limit
        time.sleep(0.005)
    yield process
    process.communicate()


@pytest.mark.parametrize("delay", [0.0, 0.1, 0.3])
def test_interrupted_while_proving(drafting: subprocess.Popen[str], slow: Path, tmp_path: Path, delay: float) -> None:
    raw = slow.read_bytes()
    time.sleep(delay)
    os.killpg(drafting.pid, signal.SIGINT)
    out, err = drafting.communicate(timeout=PATIENCE)
    assert "Traceback" not in err
    assert slow.read_bytes() == raw
    if drafting.returncode == 0:  # it was just done
        onnx.checker.check_model(onnx.load(tmp_path / "out.onnx"))
        return
    assert drafting.returncode in INTERRUPTED
    assert out == ""
    assert err == "leanonnx: interrupted; nothing was written\n"
    assert tree(tmp_path) == {}


def test_terminated_while_proving(drafting: subprocess.Popen[str], tmp_path: Path) -> None:
    """A time limit of a job server sends SIGTERM."""
    drafting.terminate()
    out, err = drafting.communicate(timeout=PATIENCE)
    assert drafting.returncode not in (0, 2, 3)
    assert "Traceback" not in err
    assert out == ""
    assert tree(tmp_path) == {}


def test_killed_while_proving(drafting: subprocess.Popen[str], slow: Path, tmp_path: Path, model: Path) -> None:
    """Nobody can clean up after SIGKILL: no output, and the next run is not disturbed by what lies there."""
    raw = slow.read_bytes()
    drafting.kill()
    drafting.communicate(timeout=PATIENCE)
    assert drafting.returncode == -signal.SIGKILL
    assert not (tmp_path / "out.onnx").exists()
    assert slow.read_bytes() == raw
    assert compressed(model, tmp_path / "out.onnx").proof.passed


# no reader of the output


def test_closed_pipe(model: Path) -> None:
    """As in ``leanonnx inspect … | head``: no error and no warning."""
    read, write = os.pipe()
    os.close(read)
    command = [*COMMAND, "inspect", str(model), "--json"]
    done = subprocess.run(command, stdout=write, stderr=subprocess.PIPE, text=True, timeout=PATIENCE, check=False)
    os.close(write)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("rest", [">&-", "> /dev/full"])
def test_closed_standard_output(model: Path, rest: str) -> None:
    """A closed stdout or a full disk: at most a message, no internal error."""
    if "/dev/full" in rest and not Path("/dev/full").exists():
        pytest.skip("no /dev/full")
    script = f"{shlex.join(COMMAND)} inspect {shlex.quote(str(model))} {rest}"
    done = subprocess.run(["sh", "-c", script], capture_output=True, text=True, timeout=PATIENCE, check=False)
    assert done.returncode in (0, 2)
    assert "Traceback" not in done.stderr
    assert "bug" not in done.stderr
    assert "ignored" not in done.stderr
    assert ("No space left" in done.stderr) == ("/dev/full" in rest)

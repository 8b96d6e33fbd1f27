"""Small ONNX models as text, and the command line as a user runs it."""

from __future__ import annotations

import contextlib
import io
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import numpy_helper

from leanonnx.cli.main import app
from leanonnx.commands.compress import options, pipeline
from leanonnx.selection.metrics import Budget
from tests.schemas import follow_schema, schema_of

ort.set_default_logger_severity(4)
SCRIPT = shutil.which("leanonnx", path=str(Path(sys.executable).parent))
COMMAND = [SCRIPT] if SCRIPT else [sys.executable, "-c", "from leanonnx.cli.main import main; main()"]
TIMEOUT = 120
SHORT = 0.02
"""Seconds that a measurement may take where its numbers do not matter."""
Done = subprocess.CompletedProcess[str]
RUNS: deque[Done] = deque(maxlen=1)
"""The last command that a test ran."""

CNN = """
<ir_version: 8, opset_import: ["" : 17]>
cnn (float[1, 3, 8, 8] x) => (float[1, 5] y)
<float[8, 3, 3, 3] w1, float[8] b1, float[12, 8, 3, 3] w2, float[5, 12] w3, float[5] b3>
{
    c1 = Conv <pads = [1, 1, 1, 1]> (x, w1, b1)
    r1 = Relu (c1)
    c2 = Conv <pads = [1, 1, 1, 1]> (r1, w2)
    r2 = Relu (c2)
    p2 = GlobalAveragePool (r2)
    f2 = Flatten (p2)
    y = Gemm <transB = 1> (f2, w3, b3)
}
"""


KERNELS = {"w1": 8 * 3, "w2": 12 * 8, "w3": 5 * 12}
TOTAL = sum(KERNELS.values())
"""Kernels of ``CNN``."""
CALIBRATION = np.random.default_rng(0).standard_normal((24, 3, 8, 8)).astype(np.float32)
"""Inputs of ``CNN``."""


def build(text: str, seed: int = 0) -> onnx.ModelProto:
    """A model from ONNX text; names declared in ``<…>`` that no node outputs become random constants.

    Nodes get the name of their first output in capitals.
    """
    proto = onnx.parser.parse_model(text)
    rng = np.random.default_rng(seed)
    made = {name for node in proto.graph.node for name in node.output}
    for value in [v for v in proto.graph.value_info if v.name not in made]:
        kind = value.type.tensor_type
        shape = [d.dim_value for d in kind.shape.dim]
        scale = 1 / np.sqrt(max(np.prod(shape[1:]), 1))
        array = np.asarray(rng.standard_normal(shape) * scale, onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type))
        proto.graph.initializer.append(numpy_helper.from_array(array, value.name))
        proto.graph.value_info.remove(value)
    for node in proto.graph.node:
        node.name = node.output[0].upper()
    return proto


def saved(proto: onnx.ModelProto, path: Path) -> Path:
    """Write a model; returns its path."""
    path.write_bytes(proto.SerializeToString())
    return path


def saved_external(proto: onnx.ModelProto, path: Path, data: str = "weights.bin") -> Path:
    """Write a model whose constants lie in a file of their own."""
    copy = onnx.ModelProto.FromString(proto.SerializeToString())
    onnx.save_model(copy, str(path), save_as_external_data=True, location=data, size_threshold=0)
    return path


WHOLE = Budget("kernels", 1.0)


def Options(
    budget: Budget = WHOLE, method: Any = "auto", chains: Any = "cover", **others: Any
) -> options.CompressOptions:
    """Options for the networks of tests, which are too small to gain speed: any width, nothing measured."""
    return options.CompressOptions(**{"budget": budget, "method": method, "chains": chains, "align": 1, **others})


ANY = {"align": 1}
"""The same as keywords of ``leanonnx.compress``."""


def _unmeasured(args: tuple[object, ...], measure: bool) -> list[str]:
    """The arguments, those of ``compress`` with ``--no-measure``."""
    return [*map(str, args), *(["--no-measure"] if args[:1] == ("compress",) and not measure else [])]


def cli(
    *args: object,
    cwd: Path | None = None,
    command: Sequence[str] = COMMAND,
    measure: bool = False,
    env: Mapping[str, str] | None = None,
) -> Done:
    """Run the installed ``leanonnx`` command, or another one; ``compress`` measures only if ``measure`` is set.

    ``env`` is added to the environment.
    """
    done = subprocess.run(
        [*command, *_unmeasured(args, measure)],
        capture_output=True,
        text=True,
        encoding="utf-8",
        timeout=TIMEOUT,
        cwd=cwd,
        env={**os.environ, **(env or {})},
        check=False,
    )
    RUNS.append(done)
    return done


@contextlib.contextmanager
def _redirect(*numbers: int) -> Iterator[list[str]]:
    """Capture what native libraries and other programs write to file descriptors, past Python's streams."""
    found: list[str] = []
    with contextlib.ExitStack() as stack:
        files = [stack.enter_context(tempfile.TemporaryFile()) for _ in numbers]
        for number, file in zip(numbers, files, strict=True):
            usual = os.dup(number)
            stack.callback(os.close, usual)
            stack.callback(os.dup2, usual, number)
            os.dup2(file.fileno(), number)
        try:
            yield found
        finally:
            for file in files:
                file.seek(0)
                found.append(file.read().decode(errors="replace"))


def within(
    call: Callable[[], object], words: Sequence[str], cwd: Path | None = None, env: Mapping[str, str] | None = None
) -> Done:
    """Run a command in this process, with ``env`` added to the environment; returns its output and exit code."""
    out, err, code = io.StringIO(), io.StringIO(), 0
    with (
        _redirect(1, 2) as native,
        contextlib.chdir(cwd or "."),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
        pytest.MonkeyPatch.context() as patch,
    ):
        for name, value in (env or {}).items():
            patch.setenv(name, value)
        try:
            call()
        except SystemExit as stop:
            code = stop.code if isinstance(stop.code, int) else 1
    done = subprocess.CompletedProcess(list(words), code, out.getvalue() + native[0], err.getvalue() + native[1])
    RUNS.append(done)
    return done


def called(*args: object, cwd: Path | None = None, measure: bool = False, env: Mapping[str, str] | None = None) -> Done:
    """Run the command in this process: ten times faster than ``cli``, for variants of what a ``cli`` test covers.

    As from the entry point, output of native libraries is sent to stderr.
    """
    words = _unmeasured(args, measure)

    def command() -> None:
        os.dup2(2, 1)
        app(words, prog_name="leanonnx")

    return within(command, ["leanonnx", *words], cwd, env)


@contextlib.contextmanager
def brief() -> Iterator[None]:
    """Shorten the measurements of commands that run in this process."""
    with pytest.MonkeyPatch.context() as patch:
        for place in ("selection.search", "commands.compress.timing", "commands.sweep.driver"):
            patch.setattr(f"leanonnx.{place}.SECONDS", SHORT)
        patch.setattr("leanonnx.page.times.PROFILE_SECONDS", SHORT)
        patch.setattr("leanonnx.selection.search.MAX_TIMINGS", 2)
        patch.setattr("leanonnx.commands.compress.timing.LONG_TIMING_SECONDS", SHORT)
        yield


def run_text(done: Done) -> str:
    """The full text of a run, for the report of a failing test."""
    command = shlex.join(map(str, done.args))
    return f"{command}\nexit code {done.returncode}\nstdout:\n{done.stdout}\nstderr:\n{done.stderr}"


PROGRESS_LINE = re.compile(r"\[\d+:\d\d:\d\d\] ")
"""Start of what a slow machine is told on the way."""


def without_progress(text: str) -> str:
    """Standard error without the lines that tell a slow machine's user how far a command is."""
    return "".join(line for line in text.splitlines(keepends=True) if not PROGRESS_LINE.match(line))


def refused(
    folder: Path, *args: object, code: int = 2, says: tuple[str, ...] = (), run: Callable[..., Done] = called
) -> None:
    """Run the command in a folder; check that it is refused in one or two lines and leaves the folder unchanged."""
    before = tree(folder)
    done = run(*args, cwd=folder)
    assert done.returncode == code
    assert done.stdout == ""
    lines = without_progress(done.stderr).strip().splitlines()
    assert lines[0].startswith("leanonnx: ")
    assert len(lines) <= 2
    assert "Traceback" not in done.stderr
    assert [text for text in says if text not in done.stderr] == []
    after = tree(folder)
    changed = sorted({name for name, _ in before.items() ^ after.items()})
    assert changed == [], "refused, but these files changed"


def cli_json(*args: object, measure: bool = False) -> dict[str, Any]:
    """Run the command with ``--json``; its stdout must be one JSON object that follows its schema, its exit code 0."""
    return _json_object(cli(*args, "--json", measure=measure), *args)


def called_json(*args: object, measure: bool = False) -> dict[str, Any]:
    """The same in this process."""
    return _json_object(called(*args, "--json", measure=measure), *args)


def _json_object(done: Done, *args: object) -> dict[str, Any]:
    assert done.returncode == 0
    row = follow_schema(schema_of(*args), done.stdout)
    assert isinstance(row, dict)
    return row


def compressed(source: Path, target: Path, keep: float = 0.5, **settings: Any) -> pipeline.CompressResult:
    """``leanonnx compress`` in this process, budget in kernels."""
    return pipeline.compress_file(source, target, Options(Budget("kernels", keep), **settings))


def tree(folder: Path) -> dict[str, bytes | None]:
    """Everything under a folder: relative path → bytes, None for a folder."""
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None
        for path in sorted(folder.rglob("*"))
    }


def outputs(path: Path, seed: int = 0) -> list[np.ndarray[Any, Any]]:
    """Outputs of a model file in onnxruntime on random inputs of its declared sizes (1 where free)."""
    session = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    rng = np.random.default_rng(seed)
    feed = {
        value.name: rng.standard_normal([d if isinstance(d, int) else 1 for d in value.shape]).astype(np.float32)
        for value in session.get_inputs()
    }
    return [np.asarray(value) for value in session.run(None, feed)]


def constant_shapes(path: Path) -> dict[str, list[int]]:
    """Sizes of the constants of a model file."""
    return {t.name: list(t.dims) for t in onnx.load(path, load_external_data=False).graph.initializer}


def kernels(path: Path) -> int:
    """Kernels of a compressed ``CNN``, counted on the file."""
    shapes = constant_shapes(path)
    return sum(shapes[name][0] * shapes[name][1] for name in KERNELS)

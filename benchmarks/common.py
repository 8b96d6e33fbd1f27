"""What the measurements share: fresh processes with their cost, the machine's description, result files and tables."""

from __future__ import annotations

import json
import os
import platform
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from itertools import dropwhile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
DOCS = ROOT / "docs"
PACKAGES = ("leanonnx", "onnx", "onnxruntime", "numpy")
COMMAND = Path(sys.executable).with_name("leanonnx")
FOLDER_OF_MODEL = re.compile(r"/\S*/(?=[^/\s]+\.onnx)")
Row = dict[str, Any]


@dataclass(frozen=True)
class Finished:
    """A process that has ended: exit code, what it wrote, seconds on the clock and of processor time, peak bytes."""

    code: int
    output: str
    errors: str
    seconds: float
    cpu: float
    peak: int

    @property
    def report(self) -> Row:
        """The JSON object that ends its standard output, after warnings of libraries; empty where there is none."""
        lines = dropwhile(lambda line: not line.startswith("{"), self.output.splitlines())
        return dict(json.loads("\n".join(lines) or "{}"))

    @property
    def message(self) -> str:
        """The last line that it wrote to standard error."""
        lines = [line for line in self.errors.splitlines() if line.strip()]
        return lines[-1].strip() if lines else ""


def run(arguments: Sequence[str | Path], folder: Path | None = None) -> Finished:
    """Run a command to its end, in ``folder`` where one is given.

    The peak is the child's own (``wait4``). The kernel counts the memory of the process that started it as well,
    so a benchmark itself must stay small: it never loads a model.
    """
    with tempfile.TemporaryFile() as output, tempfile.TemporaryFile() as errors:
        start = time.perf_counter()
        child = subprocess.Popen([str(a) for a in arguments], stdout=output, stderr=errors, cwd=folder)
        _, status, usage = os.wait4(child.pid, 0)
        seconds = time.perf_counter() - start
        child.returncode = os.waitstatus_to_exitcode(status)
        texts = [_text(output), _text(errors)]
    scale = 1 if sys.platform == "darwin" else 1024
    cpu = usage.ru_utime + usage.ru_stime
    return Finished(child.returncode, texts[0], texts[1], seconds, cpu, usage.ru_maxrss * scale)


def without_folders(message: str) -> str:
    """A message, models named without the folders that they are in."""
    return FOLDER_OF_MODEL.sub("", message)


def _text(file: Any) -> str:
    file.seek(0)
    return str(file.read().decode(errors="replace"))


def compress(source: Path, target: Path, *options: str | Path) -> Finished:
    """``leanonnx compress`` in a fresh process, with its report as JSON."""
    return run([COMMAND, "compress", source, target, "--no-measure", "--json", *options])


def build(name: str, folded: bool, target: Path) -> Path:
    """Write one network of ``benchmarks.networks``, in a process of its own."""
    module = [sys.executable, "-m", "benchmarks.networks", name, str(target), *(["--folded"] if folded else [])]
    subprocess.run(module, check=True, cwd=ROOT)
    return target


def environment() -> Row:
    """Date, processor, cores and versions of a measurement."""
    return {
        "date": datetime.now(UTC).date().isoformat(),
        "cpu": _processor(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "python": platform.python_version(),
        "versions": {name: found for name in PACKAGES if (found := _version(name))},
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def _version(name: str) -> str:
    for candidate in (name, f"{name}-gpu"):
        try:
            return version(candidate)
        except ModuleNotFoundError:
            continue
    return ""


def save(name: str, data: Mapping[str, Any]) -> Path:
    """Write ``benchmarks/results/NAME.json``."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    path.write_text(json.dumps(data, indent=1) + "\n")
    return path


def load(name: str) -> Row:
    """Read ``benchmarks/results/NAME.json``."""
    return dict(json.loads((RESULTS / f"{name}.json").read_text()))


def publish(name: str, title: str, sections: Iterable[str]) -> Path:
    """Write ``docs/NAME.md``."""
    DOCS.mkdir(exist_ok=True)
    path = DOCS / f"{name}.md"
    path.write_text("\n\n".join([f"# {title}", *sections]) + "\n")
    return path


def measured_by(name: str, environment: Mapping[str, Any]) -> str:
    """How a page was made: the script, its results, the machine."""
    versions = ", ".join(f"{package} {number}" for package, number in environment["versions"].items())
    return (
        f"Made by `python -m benchmarks.{name}` from [`{name}.json`](../benchmarks/results/{name}.json), "
        f"{environment['date']}: {environment['cpu']}, {environment['cores']} core{'s' * (environment['cores'] != 1)}, "
        f"Python {environment['python']}, {versions}."
    )


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table; the first column is text, the others are numbers."""
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "\n".join(f"| {' | '.join(cell.replace('|', '/') for cell in line)} |" for line in lines)


def progress(text: str) -> None:
    """Tell a person who waits what is being done."""
    print(text, file=sys.stderr, flush=True)

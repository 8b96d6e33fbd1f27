"""The smoke tests, and one network in every operator set, under the oldest and the newest packages that are allowed.

    python -m benchmarks.versions [--rows NAME …] [--folder DIR]

Each row of the table is a virtual environment of its own, which needs uv (``pip install uv``) and a package index:
uv's ``lowest-direct`` installs exactly the lower bounds of ``pyproject.toml``.  Results are saved after each row; rows
that are not asked for stay as they were.  Nothing is timed.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.common import RESULTS, ROOT, Finished, Row, environment, load, progress, run, save

NAME = "versions"
TESTING = ("hypothesis", "jsonschema", "pillow", "pytest", "pytest-xdist")
"""Packages that the smoke tests need, always the newest: they are no part of what is tested."""
RUNTIME = "onnxruntime"
REPORTED = ("numpy", "onnx", "onnx-graphsurgeon", "onnxruntime", "onnxruntime-gpu", "protobuf", "scipy", "typer")
COUNTED = re.compile(r"(\d+) (passed|failed|error|skipped)")
FAILED_TEST = re.compile(r"^(?:FAILED|ERROR) (\S+)", re.MULTILINE)
FAILURE, USER_ERROR = 1, 2
"""Exit codes: a row is not sound, uv is missing."""


@dataclass(frozen=True, kw_only=True)
class Environment:
    """The way in which the packages of a row are chosen.

    Attributes:
        resolution: uv's word for the versions that it prefers.
        runtime: requirement in the place of onnxruntime's own; empty to keep that.
        python: version of Python.
    """

    resolution: str = "highest"
    runtime: str = ""
    python: str = "3.11"


ENVIRONMENTS = {
    "oldest": Environment(resolution="lowest-direct"),
    "newest": Environment(),
    "newest for CPUs": Environment(runtime=RUNTIME),
    "newest, Python 3.13": Environment(runtime=RUNTIME, python="3.13"),
}


def requirements(pyproject: Path, runtime: str = "") -> list[str]:
    """The requirements of the project, ``runtime`` in the place of every package of onnxruntime."""
    needs: list[str] = tomllib.loads(pyproject.read_text(encoding="utf-8"))["project"]["dependencies"]
    if runtime:
        needs = [runtime, *(need for need in needs if not re.match(rf"{RUNTIME}\b(?!_)", need))]
    return needs


def install(chosen: Environment, folder: Path) -> Path:
    """A virtual environment with the packages of a row; returns its Python.

    Raises:
        CalledProcessError: uv cannot make it.
    """
    uv = [shutil.which("uv") or "uv"]
    python = folder / ("Scripts" if os.name == "nt" else "bin") / "python"
    subprocess.run([*uv, "venv", "--quiet", "--clear", "--python", chosen.python, str(folder)], check=True)
    add = [*uv, "pip", "install", "--quiet", "--python", str(python)]
    wanted = requirements(ROOT / "pyproject.toml", chosen.runtime)
    subprocess.run([*add, "--resolution", chosen.resolution, *wanted], check=True)
    frozen = folder / "frozen.txt"
    frozen.write_text("\n".join(f"{name}=={number}" for name, number in installed(python).items()))
    subprocess.run([*add, "--constraint", str(frozen), *TESTING], check=True)
    subprocess.run([*add, "--no-deps", "--editable", str(ROOT)], check=True)
    return python


def installed(python: Path) -> dict[str, str]:
    """Versions of the packages beside a Python, by name."""
    uv = shutil.which("uv") or "uv"
    words = [uv, "pip", "freeze", "--exclude-editable", "--python", str(python)]
    text = subprocess.run(words, check=True, capture_output=True, text=True).stdout
    return dict(line.split("==", 1) for line in text.split() if "==" in line)


def smoke_row(done: Finished) -> Row:
    """Numbers of tests by outcome, and the names of those that failed."""
    counts = {word: int(number) for number, word in COUNTED.findall(done.output.strip().rpartition("\n")[2])}
    return {"exit_code": done.code, **counts, "failures": FAILED_TEST.findall(done.output)}


def measured(chosen: Environment, folder: Path) -> Row:
    """One row: the packages, the smoke tests, the operator sets."""
    python = install(chosen, folder)
    every = installed(python)
    words: list[str | Path] = [python, "-m", "pytest", "-m", "smoke", "-q", "-p", "no:cacheprovider", "-W", "ignore"]
    smoke = smoke_row(run(words, ROOT))
    opsets = run([python, "-m", "benchmarks.opsets"], ROOT)
    return {
        "python": run([python, "-c", "import platform; print(platform.python_version())"]).output.strip(),
        "packages": {name: every[name] for name in REPORTED if name in every},
        "smoke": smoke,
        "opsets": opsets.report or {"error": opsets.message},
    }


def is_sound(row: Mapping[str, Row]) -> bool:
    """True if no test failed, and each operator set that onnxruntime runs was proven."""
    smoke, opsets = row["smoke"], row["opsets"]
    return smoke["exit_code"] == 0 and bool(opsets.get("proven")) and not opsets["failed"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Make the rows; exit code 1 if one is not sound."""
    parser = argparse.ArgumentParser(prog=f"python -m benchmarks.{NAME}", description=__doc__)
    parser.add_argument("--rows", nargs="+", choices=ENVIRONMENTS, default=list(ENVIRONMENTS))
    parser.add_argument("--folder", type=Path, help="folder that keeps the environments")
    asked = parser.parse_args(arguments)
    if not shutil.which("uv"):
        progress("uv is missing: pip install uv")
        return USER_ERROR
    known = load(NAME)["rows"] if (RESULTS / f"{NAME}.json").is_file() else {}
    with tempfile.TemporaryDirectory() as temporary:
        for name in asked.rows:
            progress(name)
            place = (asked.folder or Path(temporary)) / re.sub(r"\W+", "-", name)
            known[name] = measured(ENVIRONMENTS[name], place)
            progress(f"{name}: {known[name]['smoke']} {known[name]['opsets']}")
            rows = {each: known[each] for each in ENVIRONMENTS if each in known}
            save(NAME, {"environment": environment(), "rows": rows})
    return 0 if all(is_sound(known[name]) for name in asked.rows) else FAILURE


if __name__ == "__main__":
    sys.exit(main())

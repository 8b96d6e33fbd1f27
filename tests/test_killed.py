"""Killed between any two changes of the results: what is there is the older result, the new one, or no model."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers import CNN, TIMEOUT, build, cli, saved, saved_external, tree

pytest.importorskip("resource", reason="signals of processes as Unix has them")

DEADLY = """
import os, signal, sys
from pathlib import Path
from leanonnx.cli.main import main

left = [int(sys.argv.pop(1))]

def deadly(method):
    def call(*args, **kwargs):
        if not left[0]:
            os.kill(os.getpid(), signal.SIGKILL)
        left[0] -= 1
        return method(*args, **kwargs)
    return call

Path.replace, Path.unlink = deadly(Path.replace), deadly(Path.unlink)
main()
"""
"""The command line, but killed before the n-th time that a file is renamed or removed."""
MOST = 8
"""More changes than any run makes."""


def published(folder: Path, source: Path, *options: object) -> dict[str, bytes | None]:
    """The files of a whole run."""
    folder.mkdir()
    done = cli("compress", source, folder / "out.onnx", *options, cwd=folder)
    assert done.returncode == 0, done.stderr
    return tree(folder)


def killed(change: int, source: Path, folder: Path, *options: str) -> int:
    """Run in a folder; the exit code."""
    command = [sys.executable, "-c", DEADLY, str(change), "compress", str(source), "out.onnx", *options]
    return subprocess.run(command, cwd=folder, capture_output=True, timeout=TIMEOUT, check=False).returncode


@pytest.mark.parametrize("external", [False, True], ids=["one file", "external data"])
@pytest.mark.parametrize("plan", [False, True], ids=["no plan", "plan"])
def test_killed_between_changes(tmp_path: Path, external: bool, plan: bool) -> None:
    source = (saved_external if external else saved)(build(CNN), tmp_path / "model.onnx")
    given = tree(tmp_path)
    options = ("--no-measure", "--plan-out", "plan.json") if plan else ("--no-measure",)
    old = published(tmp_path / "old", source, "--keep", "0.8", *options)
    new = published(tmp_path / "new", source, "--keep", "0.5", *options)
    assert old != new
    codes = []
    for change in range(MOST):
        folder = tmp_path / f"killed{change}"
        shutil.copytree(tmp_path / "old", folder)
        codes.append(killed(change, source, folder, "--keep", "0.5", *options))
        found = {name: content for name, content in tree(folder).items() if not name.startswith(".leanonnx-")}
        whole = old if found.get("out.onnx") == old["out.onnx"] else new
        assert "out.onnx" not in found or found == whole, f"killed before change {change}"
        if codes[-1] == 0:
            break
    assert codes == [-signal.SIGKILL] * (len(codes) - 1) + [0]
    assert len(codes) > 1
    assert {name: content for name, content in tree(tmp_path).items() if name in given} == given

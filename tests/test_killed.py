"""Killed between any two changes of the results: what is there is the older result, the new one, or no model."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers import CNN, TIMEOUT, build, called, saved, saved_external, tree

pytest.importorskip("resource", reason="signals of processes as Unix has them")

DEADLY = """
import json, os, signal, sys
from pathlib import Path
import leanonnx.cli.compress
from leanonnx.cli.main import main

most, *sys.argv[1:] = sys.argv[1:]
left = []

def deadly(method):
    def call(*args, **kwargs):
        if not left[0]:
            os.kill(os.getpid(), signal.SIGKILL)
        left[0] -= 1
        return method(*args, **kwargs)
    return call

Path.replace, Path.unlink = deadly(Path.replace), deadly(Path.unlink)
codes = []
while len(codes) < int(most) and codes[-1:] != [0]:
    child = os.fork()
    if not child:
        os.chdir(f"killed{len(codes)}")
        left.append(len(codes))
        try:
            main()
        except SystemExit as stop:
            os._exit(stop.code or 0)
    codes.append(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
print(json.dumps(codes))
"""
"""The command line again and again, each in a folder of its own, killed before the n-th rename or removal of a file."""
MOST = 8
"""More changes than any run makes."""


def published(folder: Path, source: Path, *options: object) -> dict[str, bytes | None]:
    """The files of a whole run."""
    folder.mkdir()
    done = called("compress", source, folder / "out.onnx", *options, cwd=folder)
    assert done.returncode == 0, done.stderr
    return tree(folder)


def killed(source: Path, folder: Path, *options: str) -> list[int]:
    """Run in the folders ``killed0``, ``killed1`` … below a folder until a run completes; returns the exit codes."""
    command = [sys.executable, "-c", DEADLY, str(MOST), "compress", str(source), "out.onnx", *options]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=TIMEOUT, check=True)
    codes: list[int] = json.loads(done.stdout.splitlines()[-1])
    return codes


@pytest.mark.parametrize("external", [False, True], ids=["one file", "external data"])
@pytest.mark.parametrize("plan", [False, True], ids=["no plan", "plan"])
def test_killed_between_changes(tmp_path: Path, external: bool, plan: bool) -> None:
    source = (saved_external if external else saved)(build(CNN), tmp_path / "model.onnx")
    given = tree(tmp_path)
    options = ("--no-measure", "--plan-out", "plan.json") if plan else ("--no-measure",)
    old = published(tmp_path / "old", source, "--keep", "0.8", *options)
    new = published(tmp_path / "new", source, "--keep", "0.5", *options)
    assert old != new
    for change in range(MOST):
        shutil.copytree(tmp_path / "old", tmp_path / f"killed{change}")
    codes = killed(source, tmp_path, "--keep", "0.5", *options)
    for change in range(len(codes)):
        files = tree(tmp_path / f"killed{change}")
        found = {name: content for name, content in files.items() if not name.startswith(".leanonnx-")}
        whole = old if found.get("out.onnx") == old["out.onnx"] else new
        assert "out.onnx" not in found or found == whole, f"killed before change {change}"
    assert codes == [-signal.SIGKILL] * (len(codes) - 1) + [0]
    assert len(codes) > 1
    assert {name: content for name, content in tree(tmp_path).items() if name in given} == given

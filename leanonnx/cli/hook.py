"""``leanonnx-hook [OPTIONS OF CHECK] FILE.onnx …``: what pre-commit runs with the models that have changed.

Each is held against its version in the last commit, or in the one that pre-commit compares with.  A model that has none
is held against itself, so that validity and absolute limits count.
"""

from __future__ import annotations

import os
import subprocess
import sys

REVISION = "PRE_COMMIT_FROM_REF"
"""The variable in which pre-commit names the commit it compares with, where that is not the last one."""
CHECK = "from leanonnx.cli.main import main; main()"


def main() -> None:
    """Run ``leanonnx check`` on each model; exit with the highest of its exit codes."""
    options = sys.argv[1:]
    files: list[str] = []
    while options and options[-1].endswith(".onnx"):
        files.insert(0, options.pop())
    raise SystemExit(max((_checked(file, options) for file in files), default=0))


def _checked(file: str, options: list[str]) -> int:
    before = f"{os.environ.get(REVISION, 'HEAD')}:./{file}"
    known = subprocess.run(["git", "cat-file", "-e", before], capture_output=True, check=False).returncode == 0
    if not known:
        sys.stderr.write(f"{file} is new: held against itself\n")
        sys.stderr.flush()
    command = [sys.executable, "-P", "-c", CHECK, "check", *options, "--", before if known else file, file]
    return subprocess.run(command, check=False).returncode

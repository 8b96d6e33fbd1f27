"""``leanonnx-hook [OPTIONS OF CHECK] FILE.onnx …``: the pre-commit hook for changed models.

Compares each model with its version in the last commit, or in the one that pre-commit compares with.  A new model is
compared with itself, so that validity and absolute limits count.
"""

from __future__ import annotations

import os
import subprocess
import sys

REVISION = "PRE_COMMIT_FROM_REF"
"""Environment variable in which pre-commit names the commit to compare with, if not the last one."""
CHECK = "from leanonnx.cli.main import main; main()"


def hook_main() -> None:
    """Run ``leanonnx check`` on each model; exit with the highest of its exit codes."""
    options = sys.argv[1:]
    files: list[str] = []
    while options and options[-1].endswith(".onnx"):
        files.insert(0, options.pop())
    raise SystemExit(max((_check(file, options) for file in files), default=0))


def _check(file: str, options: list[str]) -> int:
    before = f"{os.environ.get(REVISION, 'HEAD')}:./{file}"
    known = subprocess.run(["git", "cat-file", "-e", before], capture_output=True, check=False).returncode == 0
    if not known:
        sys.stderr.write(f"{file} is new: held against itself\n")
        sys.stderr.flush()
    command = [sys.executable, "-P", "-c", CHECK, "check", *options, "--", before if known else file, file]
    return subprocess.run(command, check=False).returncode

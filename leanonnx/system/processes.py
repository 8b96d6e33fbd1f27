"""Child processes of leanonnx: each shares a folder with its parent and ends with it.

A child holds the reading end of a pipe; whatever ends the parent, even SIGKILL, closes the other end, and that ends the
child at once.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

from leanonnx.spelling import option_list

CHILD_CODE = """
import json, os, sys, threading

def follow():
    os.read(0, 1)
    os._exit(1)

threading.Thread(target=follow, daemon=True).start()
path, entry, folder, threads = sys.argv[1:]
sys.path[:] = json.loads(path)
if threads != "0":
    names = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "VECLIB_MAXIMUM_THREADS")
    os.environ.update(dict.fromkeys(names, threads))

from importlib import import_module
from pathlib import Path

module, _, name = entry.partition(":")
getattr(import_module(module), name)(Path(folder))
"""
PRINTED_FILE = "said.txt"
"""File in the folder of a process that collects its stdout and stderr."""
Process = subprocess.Popen[bytes]


def start_process(entry: str, folder: Path, threads: int = 0) -> Process:
    """Start a fresh Python process that calls ``entry``, "module:function", with a folder.

    Its linear algebra uses at most ``threads`` threads; 0 keeps the default.
    """
    command = [sys.executable, "-P", "-c", CHILD_CODE, json.dumps(sys.path), entry, str(folder), str(threads)]
    with (folder / PRINTED_FILE).open("w") as said:
        return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=said, stderr=said)


def run_process(entry: str, folder: Path, limit: float | None = None, threads: int = 0) -> str:
    """Start such a process, wait at most ``limit`` seconds for its end, and describe how it ended."""
    process = start_process(entry, folder, threads)
    try:
        process.wait(limit)
    except subprocess.TimeoutExpired:
        sizes = option_list("shape", "batch", last="or")
        return f"did not end within {limit:.0f} seconds; give smaller inputs with {sizes}"
    finally:
        stop_process(process)
    return describe_exit(process, folder)


def stop_process(process: Process) -> None:
    """Kill a process, if it is still running, and release its resources."""
    process.kill()
    process.wait()
    if process.stdin is not None:
        process.stdin.close()


def describe_exit(process: Process, folder: Path) -> str:
    """Describe in words how a process ended."""
    if process.returncode < 0:
        return f"was killed by {signal.Signals(-process.returncode).name}; it may need more memory than there is"
    lines = (folder / PRINTED_FILE).read_text(errors="replace").split("\n")
    return f"ended with exit code {process.returncode}: {''.join([line for line in lines if line.strip()][-1:])}"

"""Importing leanonnx and analysing a model changes nothing in the process that does so; the command line may."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from tests.helpers import CNN, build, saved

SPY = """
import json, logging, os, signal, sys, warnings
import numpy as np, onnx, onnxruntime as ort, onnx_graphsurgeon as gs, scipy.optimize  # what these change is theirs

calls = []
for name in ("set_default_logger_severity", "set_default_logger_verbosity", "create_and_register_allocator"):
    setattr(ort, name, lambda *args, name=name: calls.append(name))

def state():
    return {
        "graphsurgeon": gs.logger.G_LOGGER.severity,
        "loggers": [logging.root.level, len(logging.root.handlers), *(
            [name, log.level, len(log.handlers)] for name, log in sorted(logging.root.manager.loggerDict.items())
            if isinstance(log, logging.Logger) and (log.level or log.handlers)
        )],
        "filters": [str(each) for each in warnings.filters],
        "hooks": [sys.excepthook is sys.__excepthook__, sys.stdout is sys.__stdout__, sys.stderr is sys.__stderr__],
        "signals": [str(signal.getsignal(number)) for number in (signal.SIGINT, signal.SIGTERM)],
        "errors": np.geterr(),
        "environment": dict(os.environ),
    }

before = state()
"""


def spied(code: str, *args: str) -> list[object]:
    """The settings of onnxruntime's that code calls in a fresh process, and the names of other settings it changes."""
    ending = "print(json.dumps([calls, [key for key, value in state().items() if value != before[key]]]))"
    done = subprocess.run(
        [sys.executable, "-c", f"{SPY}\n{code}\n{ending}", *args], capture_output=True, text=True, check=True
    )
    assert done.stderr == ""
    return list(json.loads(done.stdout.splitlines()[-1]))


def test_import_and_analysis_change_nothing(tmp_path: Path) -> None:
    path = saved(build(CNN), tmp_path / "model.onnx")
    code = "import leanonnx, leanonnx.api.verbs, leanonnx.runtime.subprocess_timing\nleanonnx.analyse(sys.argv[1])"
    assert spied(code, str(path)) == [[], []]


def test_the_command_line_caps_memory_and_is_quiet(tmp_path: Path) -> None:
    path = saved(build(CNN), tmp_path / "model.onnx")
    code = (
        "from typer.testing import CliRunner\nfrom leanonnx.cli.main import app\n"
        "assert CliRunner().invoke(app, ['inspect', sys.argv[1]]).exit_code == 0"
    )
    calls, _ = spied(code, str(path))
    assert calls == ["set_default_logger_severity", "create_and_register_allocator"]


def test_the_spy_sees_changes() -> None:
    """A spy that sees nothing would make the first test pass."""
    code = "gs.logger.G_LOGGER.severity = 50\nwarnings.simplefilter('ignore')\nort.set_default_logger_severity(4)"
    assert spied(code) == [["set_default_logger_severity"], ["graphsurgeon", "filters"]]

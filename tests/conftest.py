"""Hypothesis profiles and fixtures that all tests share.

``ci`` runs the same examples every time, ``long`` looks for new ones: python -m pytest --hypothesis-profile=long
"""

from __future__ import annotations

import os

WORKER = "PYTEST_XDIST_WORKER" in os.environ
if WORKER:  # before numpy is imported
    # Workers share the cores; BLAS threads that wait for each other in a loop would take them from the others.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import signal
from collections.abc import Generator, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import onnx
import pytest
from hypothesis import HealthCheck, settings

pytest.register_assert_rewrite("tests")  # a failure within a helper shows its values too

from leanonnx.cli import terminal
from leanonnx.runtime.sessions import open_session, thread_limit
from tests.helpers import RUNS, brief, run_text
from tests.pages import Found, images, page_of, parsed, residual
from tests.smoke import SMOKE
from tests.sweeps import made_within

COMMON = {"deadline": None, "suppress_health_check": [HealthCheck.too_slow, HealthCheck.data_too_large]}

settings.register_profile("ci", derandomize=True, max_examples=75, database=None, **COMMON)
settings.register_profile("long", max_examples=2000, print_blob=True, **COMMON)
settings.load_profile("ci")
terminal.LINE_SECONDS = float("inf")  # however slow the machine, stderr has messages only
HERE = Path(__file__).parent
PLAIN = onnx.parser.parse_model(
    '<ir_version: 8, opset_import: ["" : 17]> plain (float[1] x) => (float[1] y) { y = Relu (x) }'
)
TOGETHER = ("test_corrupted.py", "test_onnx_nodes.py", "test_report_browser.py", "test_sweep_cluster.py")
"""Files whose tests share an expensive fixture; each file runs on one worker."""


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Import only the files of the smoke subset if only that is run."""
    if config.option.markexpr != "smoke" or collection_path.suffix != ".py":
        return None
    return None if collection_path.relative_to(HERE).as_posix() in SMOKE else True


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the smoke subset, and the tests that share one worker."""
    for item in items:
        file = item.path.relative_to(HERE).as_posix()
        if item.name.startswith(SMOKE.get(file, ())):
            item.add_marker("smoke")
        if file in TOGETHER:
            item.add_marker(pytest.mark.xdist_group(file))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(call: pytest.CallInfo[None]) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Show the last command that a failing test ran, in full."""
    report = yield
    if report.failed and RUNS:
        report.sections.append(("Last command", run_text(RUNS[-1])))
    if call.when == "teardown":
        RUNS.clear()
    return report


@pytest.fixture(scope="session", autouse=True)
def _sessions() -> Iterator[None]:
    """Open a session that does not flush denormal numbers: the first session of a process decides.

    Sessions of a worker keep to one thread, as its BLAS does.
    """
    with open_session(PLAIN), thread_limit(1) if WORKER else nullcontext():
        yield


@pytest.fixture
def points_made_within(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let sweeps compute their candidates in this process."""
    monkeypatch.setattr("leanonnx.commands.sweep.extras.make_locally", made_within)


@pytest.fixture
def briefly() -> Iterator[None]:
    """Keep the measurements of in-process commands short."""
    with brief():
        yield


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep sweeps from drawing curves."""
    monkeypatch.setattr("leanonnx.cli.sweep.plotter", lambda: lambda row, folder: {})


@pytest.fixture(scope="session")
def page_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with the model, the data and the plan of ``calibrated``."""
    return tmp_path_factory.mktemp("page")


@pytest.fixture(scope="session")
def calibrated(page_folder: Path) -> tuple[Found, str, dict[str, Any]]:
    """The page of a compression with data: as parsed, as text, and the JSON object."""
    calib, plan = images(page_folder / "x.npz", 30), page_folder / "plan.json"
    page, row = page_of(page_folder, residual(), "--keep", 0.5, "--calib", calib, "--plan-out", plan)
    return parsed(page), page, row


@pytest.fixture
def interruptible() -> Iterator[None]:
    """Let subprocesses of a test react to SIGINT, which background jobs and their children ignore."""
    usual = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, usual)

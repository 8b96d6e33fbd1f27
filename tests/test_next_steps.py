"""The first line, the next step and the last line of ``check``, ``bench`` and ``sweep``."""

from __future__ import annotations

import io
import re
import shlex
from collections.abc import Sequence
from typing import Any

import pytest
from rich.console import Console

from leanonnx.commands.bench.rows import BenchReport, CaseRow, FixedRow, TimingRow
from leanonnx.commands.bench.tables import bench_tables
from leanonnx.commands.check.rows import CheckReport, GateRow
from leanonnx.commands.check.tables import check_tables
from leanonnx.commands.sweep.rows import ConditionsRow, CurveRow, KneeRow, LeastRow, PointRow, SweepReport
from leanonnx.commands.sweep.tables import sweep_tables
from leanonnx.data.images import ImageFormat
from leanonnx.reporting.rows import ComparisonRow
from leanonnx.spelling import spelled_for
from tests.test_report_page import report_of
from tests.test_summary import CLI

TIMES = TimingRow(
    p10_ms=1.9, median_ms=2.0, p90_ms=2.1, session_ms=9.0, first_ms=3.0, runs=9, memory_bytes=None, convolutions=None
)
FIXED = FixedRow(
    onnxruntime="1",
    processor="any",
    inter_op_threads=1,
    execution="",
    optimisation="",
    denormals="",
    spinning="",
    io_binding=False,
    gpu=None,
    input_values="",
    seconds=5.0,
    seed=0,
)


def printed(tables: Any) -> list[str]:
    """The lines of a report, as on a command line."""
    console = Console(width=200, record=True, file=io.StringIO())
    console.print(tables, crop=False)
    return console.export_text().rstrip().splitlines()


def steps(lines: Sequence[str]) -> str:
    """The only next step, which is the last line but one, and taken by the parser where it is a command."""
    (step,) = (line for line in lines if line.startswith("Next: "))
    assert step == lines[-2]
    at = re.search(r"leanonnx (\w+) ", step)
    if at is not None and "`" not in step:
        _, verb, *words = shlex.split(step[at.start() :])
        CLI.commands[verb].make_context(verb, words)
    return step.removeprefix("Next: ").rstrip()


# check


@pytest.mark.parametrize(
    ("failed", "gates", "says"),
    [
        (("valid",), ("valid",), "export or compress NEW again"),
        (("interface", "max-deviation"), ("interface", "max-deviation"), "export or compress NEW again"),
        (
            ("max-deviation", "max-bytes"),
            ("max-deviation", "max-bytes"),
            "train NEW on more data with `leanonnx finetune`",
        ),
        (("min-speedup",), ("min-speedup",), "time them again while nothing else runs, with --seconds 20"),
        (("max-bytes",), ("max-bytes",), "remove more, or allow more: max-bytes"),
        ((), ("valid",), "set a limit, such as --max-deviation 0.01"),
        ((), ("valid", "max-bytes"), "keep this check in CI, which reads what --junit writes"),
    ],
)
def test_check(failed: tuple[str, ...], gates: tuple[str, ...], says: str) -> None:
    rows = tuple(
        GateRow(
            gate=name, status="failed" if name in failed else "passed", measured=1.0, limit=2.0, base=None, detail=""
        )
        for name in gates
    )
    report = CheckReport(
        base="a.onnx",
        new="b.onnx",
        passed=not failed,
        failed=failed,
        gates=rows,
        notes=(),
        seed=0,
        deviation=(),
        sizes=(),
        latency=None,
        seconds={},
    )
    with spelled_for("command line"):
        lines = printed(check_tables(report))
    assert steps(lines).startswith(says)
    assert lines[0] == lines[-1] and lines[0].startswith("FAILED: " if failed else "PASSED: ")


# bench


def case(speedup: float | None, verdict: str = "faster") -> CaseRow:
    comparison = None
    if speedup is not None:
        ends = 0.9 * speedup, 1.1 * speedup
        comparison = ComparisonRow(speedup=speedup, interval=ends, noise=0.0, rounds=9, lots=1, verdict=verdict)
    after = None if speedup is None else TIMES
    return CaseRow(
        batch=None, threads=1, inputs={"x": (1, 3)}, before=TIMES, after=after, comparison=comparison, warnings=()
    )


@pytest.mark.parametrize(
    ("cases", "first", "says"),
    [
        ([case(None)], "2.000 ms, 10th to 90th percentile 1.900 to 2.100", "make it faster: leanonnx compress a.onnx"),
        ([case(2.0)], "2.00 times as fast (1.80 to 2.20)", "compare what both compute: leanonnx check a.onnx b.onnx"),
        (
            [case(2.0), case(0.5, "slower")],
            "Slower: 0.50 times as fast (0.45 to 0.55), in the worst of 2 cases",
            "let `leanonnx calibrate-device` measure",
        ),
        (
            [case(1.0, "no significant difference")],
            "No significant difference: 1.00 times as fast (0.90 to 1.10)",
            "time them while nothing else runs, and longer: --seconds 20",
        ),
    ],
)
def test_bench(cases: list[CaseRow], first: str, says: str) -> None:
    after = None if cases[0].after is None else "b.onnx"
    report = BenchReport(before="a.onnx", after=after, provider="cpu", fixed=FIXED, results=tuple(cases))
    with spelled_for("command line"):
        lines = printed(bench_tables(report))
    assert lines[0] == first
    assert lines[-1].lower() == f"a.onnx{' → b.onnx' if after else ''}: {first}".lower()
    assert steps(lines).startswith(says)


# sweep


def point(asked: float, code: int = 0) -> PointRow:
    empty: dict[str, Any] = dict.fromkeys(PointRow.__dataclass_fields__)
    costs = report_of().costs if code == 0 else None
    known = {"costs": costs, "warnings": (), "hints": (), "code": code, "message": "no", "asked": asked, "seconds": 1.0}
    return PointRow(**empty | known)


@pytest.mark.parametrize(
    ("points", "knee", "least", "first", "says"),
    [
        (
            [point(0.5), point(0.25), point(0.1, 1)],
            0.5,
            None,
            "2 of 3 points reached; knee at --macs: a 0.5",
            "compress to it: leanonnx compress a.onnx OUT.onnx --macs 0.5 --calib photos --mean 0.5 "
            "--std 1 --scale 255 --layout auto",
        ),
        (
            [point(0.5), point(0.25)],
            0.5,
            LeastRow(asked=0.25, axis="macs"),
            "2 of 2 points reached; knee at --macs: a 0.5",
            "compress to it: leanonnx compress a.onnx OUT.onnx --macs 0.25 --calib photos",
        ),
        ([point(0.5)], None, None, "1 of 1 point reached; no knee", "sweep more fractions, such as --macs 0.9,0.75"),
        ([point(0.1, 1)], None, None, "0 of 1 point reached; no knee", "ask for more of the model, such as --macs 0.9"),
    ],
)
def test_sweep(points: list[PointRow], knee: float | None, least: LeastRow | None, first: str, says: str) -> None:
    curve = CurveRow(
        model="a.onnx",
        name="a",
        sha256="",
        points=tuple(points),
        knee=KneeRow(asked=knee, axis="macs", sure=None, reason="few"),
        least=least,
    )
    empty: dict[str, Any] = dict.fromkeys(ConditionsRow.__dataclass_fields__)
    about = ConditionsRow(**empty | {"options": {"calib": "photos"}, "images": ImageFormat(mean=(0.5,))})
    report = SweepReport(
        headline=None, unit="macs", measured=False, about=about, models=(curve,), warnings=(), files={"csv": "c.csv"}
    )
    with spelled_for("command line"):
        lines = printed(sweep_tables(report))
    assert lines[0] == lines[-1] == first
    assert steps(lines).startswith(says)

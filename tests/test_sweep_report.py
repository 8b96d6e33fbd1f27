"""Reports of a sweep: the knee, CSV and JSON rows, the table and the plot.  No model is compressed."""

from __future__ import annotations

import csv
import importlib
import io
import json
import math
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from leanonnx.commands.sweep.files import CSV_COLUMNS, csv_text, json_text
from leanonnx.commands.sweep.knee import knee
from leanonnx.commands.sweep.report import curve_row, point_row, random_inputs_warning, sweep_report
from leanonnx.commands.sweep.rows import (
    CandidateRow,
    ConditionsRow,
    KneeRow,
    OutcomeRow,
    SourcedFidelity,
    SweepReport,
)
from leanonnx.commands.sweep.tables import sweep_tables
from leanonnx.reporting.costs import CostChange, CostChanges
from leanonnx.reporting.encoding import to_json
from leanonnx.reporting.rows import (
    ComparisonRow,
    FidelityRow,
    LatencyRow,
    LayoutChange,
    MetricChange,
    OutputDeviation,
    ProofRow,
)

Point = tuple[float, OutcomeRow]
"""The fraction asked for, and the outcome."""

# The knee


def test_knee_of_a_bent_curve() -> None:
    """Two straight lines that meet at one point."""
    assert knee([0.8, 0.6, 0.4, 0.3, 0.2], [0.02, 0.04, 0.06, 0.5, 0.9]) == 2


def test_knee_is_the_highest_point_above_the_diagonal() -> None:
    """Cost = gain³ on [0, 1]: gain - cost is greatest at gain = √(1/3)."""
    left = np.linspace(0.99, 0, 100)
    found = knee(list(left), list((1 - left) ** 3))
    assert found is not None
    assert 1 - left[found] == pytest.approx(math.sqrt(1 / 3), abs=0.01)


@pytest.mark.parametrize(
    ("left", "deviation"),
    [
        ([0.5, 0.1], [0.01, 0.9]),
        ([], []),
        ([0.8, 0.6, 0.4, 0.2], [0.1, 0.2, 0.3, 0.4]),
        ([0.8, 0.6, 0.4, 0.2], [0.3, 0.4, 0.45, 0.46]),
        ([0.8, 0.6, 0.4, 0.2], [0.12, 0.18, 0.31, 0.4]),
        ([1.0, 1.0, 1.0], [0.0, 0.0, 0.0]),
        ([0.5, 0.5, 0.5], [0.1, 0.1, 0.1]),
        ([1.4, 1.2, 1.1], [0.1, 0.2, 0.3]),
    ],
    ids=["two", "none", "straight", "bent the other way", "nearly straight", "still", "one place", "slower"],
)
def test_no_knee(left: list[float], deviation: list[float]) -> None:
    assert knee(left, deviation) is None


HUNDREDTH = (0.01).__mul__
"""Whole numbers make floats: other tests may have turned subnormal ones off in this process."""


@given(
    st.lists(st.tuples(st.integers(1, 100).map(HUNDREDTH), st.integers(0, 900).map(HUNDREDTH)), min_size=3, max_size=9),
    st.integers(10, 1000).map(HUNDREDTH),
    st.randoms(use_true_random=False),
)
def test_knee_knows_no_units_and_no_order(points: list[tuple[float, float]], factor: float, random: Any) -> None:
    """Deviations in other units, and points in another order, give the same knee."""
    left, deviation = [a for a, _ in points], [b for _, b in points]
    found = knee(left, deviation)
    order = list(range(len(points)))
    random.shuffle(order)
    again = knee([left[k] for k in order], [deviation[k] for k in order])
    if len(set(left)) == len(left):
        assert (None if again is None else order[again]) == found
    scaled = knee(left, [factor * value for value in deviation])
    assert scaled is None or found is None or left[scaled] == pytest.approx(left[found], abs=1e-6)


# JSON, CSV and tables


def made(asked: float, relative: float | None, speedup: float | None = None, busy: bool = False) -> Point:
    """A point that was reached."""
    costs = CostChanges(*[CostChange(1000, round(1000 * asked), asked)] * 4)
    latency = None
    if speedup:
        verdict = "faster" if speedup > 1.15 else "no difference shown"
        comparison = ComparisonRow(
            speedup=speedup, interval=(speedup * 0.9, speedup * 1.1), noise=0.01, rounds=15, lots=1, verdict=verdict
        )
        latency = LatencyRow(
            provider="cpu",
            threads=1,
            before_ms=2.0,
            after_ms=2.0 / speedup,
            comparison=comparison,
            busy=busy,
            convolutions=LayoutChange(None, None),
        )
    output = OutputDeviation(
        relative_l2=relative,
        psnr=None,
        top1=None if relative is None else 1 - relative / 2,
        top5=None,
        worst_channel=None,
        vacuous=None,
    )
    deviation = SourcedFidelity("held-out samples", FidelityRow(20, {"y": output}, None))
    proof = ProofRow(status="passed", max_relative_error=1e-6, bound=1e-4, inputs=3, sizes=1, outputs={"y": 1e-6})
    texts = {"headline": None, "warnings": (), "hints": (), "judgement": None, "tolerance": None}
    candidate = CandidateRow(costs=costs, proof=proof, latency=latency, deviation=deviation, **texts)
    return asked, OutcomeRow(0, "", candidate, seconds=1.5, made=(0.0, 1.0), measured=(2.0, 3.0))


def between(point: Point, low: float, high: float) -> Point:
    """A point whose speed-up lies in an interval."""
    asked, outcome = point
    assert outcome.candidate and outcome.candidate.latency
    latency = outcome.candidate.latency
    latency = replace(latency, comparison=replace(latency.comparison, interval=(low, high)))
    return asked, replace(outcome, candidate=replace(outcome.candidate, latency=latency))


def deviating(point: Point, on: str = "held-out samples", metric: MetricChange | None = None, **outputs: Any) -> Point:
    """A point with changes to its deviation: measures of outputs by name."""
    asked, outcome = point
    assert outcome.candidate and outcome.candidate.deviation
    fidelity = outcome.candidate.deviation.fidelity
    rows = dict(fidelity.outputs)
    for name, measures in outputs.items():
        rows[name] = replace(
            rows.get(
                name,
                OutputDeviation(relative_l2=None, psnr=None, top1=None, top5=None, worst_channel=None, vacuous=None),
            ),
            **measures,
        )
    deviation = SourcedFidelity(on, replace(fidelity, outputs=rows, metric=metric))
    return asked, replace(outcome, candidate=replace(outcome.candidate, deviation=deviation))


BENT = [(0.9, 0.02, 1.1), (0.6, 0.04, 1.6), (0.3, 0.08, 3.0), (0.2, 0.5, 4.0), (0.1, 0.9, 5.0)]
REFUSED = OutcomeRow(1, "0.01 of the kernels was asked for, but …", seconds=0.4)
CONDITIONS = ConditionsRow(
    leanonnx="1",
    budget="kernels",
    options={"method": "auto"},
    recover=False,
    measured=True,
    models_saved=False,
    provider="cpu",
    threads=1,
    processor="P",
    images=None,
    calib_sha256=None,
    rules_sha256=None,
    libraries_sha256="0",
    targets_sha256=None,
)


def swept(rows: list[Point], unit: str = "kernels", measured: bool = True, models: int = 1) -> SweepReport:
    """The report of a sweep."""
    points = [point_row(asked, outcome) for asked, outcome in rows]
    curves = [curve_row(f"m{k}.onnx", f"m{k}", "0", unit, points) for k in range(models)]
    return sweep_report(unit, measured, curves, CONDITIONS)


def printed(report: SweepReport) -> str:
    console = Console(width=140, file=io.StringIO())
    with console.capture() as capture:
        console.print(sweep_tables(report))
    return capture.get()


def lines(report: SweepReport) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(csv_text(report))))


def test_knee_is_marked_everywhere() -> None:
    report = swept([made(*point) for point in BENT])
    assert report.models[0].knee == KneeRow(asked=0.3, axis="latency", sure=1.0, reason=None)
    assert [point.asked for point in report.points if point.knee] == [0.3]
    assert [line["asked"] for line in lines(report) if line["knee"] == "1"] == ["0.3"]
    text = printed(report)
    assert [line.split()[0] for line in text.splitlines() if "◄ knee" in line] == ["0.3"]
    assert "Knee at keep 0.3: time left" in text


def test_certainty_of_a_knee() -> None:
    """Times that may be anything within their intervals move it."""
    rows = [made(*point) for point in BENT]
    rows[2], rows[3] = between(rows[2], 1.0, 6.0), between(rows[3], 1.0, 6.0)
    report = swept(rows)
    found = report.models[0].knee
    assert found.asked == 0.3
    assert found.sure is not None
    assert 0.5 < found.sure < 1
    assert f"it is there or at a neighbour in {found.sure:.0%} of draws" in " ".join(printed(report).split())
    assert [text.get_text() for text in picture(report).axes[0].get_legend().get_texts()][2].startswith("knee (in ")
    found = swept([between(row, 0.0, math.inf) for row in rows]).models[0].knee
    assert found.asked is None
    assert found.sure is not None
    assert 0 < found.sure < 0.5
    assert found.reason == f"the times are too uncertain, it would be near 0.3 in {found.sure:.0%} of draws"


def test_no_knee_is_said_and_why() -> None:
    few, straight = swept([made(*p) for p in BENT[:2]]), swept([made(a, 1 - a, 1 / a) for a in (0.8, 0.6, 0.4, 0.2)])
    assert few.models[0].knee.reason == "fewer than 3 points"
    assert "No knee: fewer than 3 points." in printed(few)
    assert straight.models[0].knee.asked is None
    assert "No knee: the curve has no bend that stands out." in printed(straight)


def test_without_times_the_knee_is_that_of_the_size() -> None:
    report = swept([made(asked, relative) for asked, relative, _ in BENT], measured=False)
    assert report.models[0].knee == KneeRow(asked=0.3, axis="kernels", sure=1.0, reason=None)
    assert "Latency was not measured." in printed(report)


def test_unreachable_points_are_reported() -> None:
    report = swept([*(made(*p) for p in BENT), (0.01, REFUSED)])
    point = to_json(report)["models"][0]["points"][-1]
    assert (point["code"], point["message"], point["kernels"], point["latency"]) == (1, REFUSED.message, None, None)
    line = lines(report)[-1]
    assert (line["code"], line["message"], line["speedup"], line["relative_l2"]) == ("1", REFUSED.message, "", "")
    assert f"keep 0.01: {REFUSED.message}" in printed(report)
    assert "1 of 6 points could not be reached" in report.warnings[1]
    assert report.exit_code == 1


@pytest.mark.parametrize("codes", [(0, 0), (0, 1), (1, 2), (2, 3, 0)])
def test_exit_code_is_the_gravest(codes: tuple[int, ...]) -> None:
    rows = [(0.1 * (k + 1), replace(REFUSED, code=code)) if code else made(0.5, 0.1) for k, code in enumerate(codes)]
    assert swept(rows).exit_code == max(codes)


def test_a_model_that_is_not_faster_is_reported_first() -> None:
    text = printed(swept([made(0.9, 0.02, 1.0), made(0.5, 0.04, 1.9), made(1.0, 0.0, 1.0)]))
    assert text.splitlines()[1].startswith("Warning: 1 of 3 points are not faster than the original, as far as")
    (warning,) = swept([made(0.9, 0.02, 1.5), made(0.5, 0.04, 1.9, busy=True)]).warnings
    assert warning.startswith("1 of 2 points were timed while the machine was busy: trust the ratios")


def test_random_inputs_are_no_accuracy() -> None:
    assert random_inputs_warning() in swept([deviating(made(0.5, 0.1), on="random inputs")]).warnings
    assert random_inputs_warning() not in swept([made(0.5, 0.1)]).warnings


def test_lines_of_csv() -> None:
    (line,) = lines(swept([made(0.5, 0.25, 2.0)]))
    assert tuple(line) == CSV_COLUMNS
    assert {
        "model": "m0.onnx",
        "asked": "0.5",
        "code": "0",
        "kernels": "500",
        "bytes_fraction": "0.5",
        "before_ms": "2.0",
        "after_ms": "1.0",
        "speedup": "2.0",
        "speedup_low": "1.8",
        "speedup_high": "2.2",
        "verdict": "faster",
        "relative_l2": "0.25",
        "psnr": "",
        "top1": "0.875",
        "samples": "20",
        "inputs": "held-out samples",
        "proof": "passed",
        "seconds": "1.5",
    }.items() <= line.items()


def test_means_over_outputs_and_infinite_deviations() -> None:
    point = deviating(made(0.5, 0.2), z={"relative_l2": 0.4, "psnr": 30.0})
    mean = point_row(*point).deviation
    assert mean is not None
    assert (mean.relative_l2, mean.psnr, mean.top1) == (pytest.approx(0.3), 30.0, 0.9)
    report = swept([deviating(point, z={"relative_l2": None}), made(0.4, 0.1), made(0.3, 0.2)])
    infinite = report.points[0].deviation
    assert infinite is not None
    assert infinite.relative_l2 is None
    assert lines(report)[0]["relative_l2"] == "inf"
    assert "∞" in printed(report)
    assert report.models[0].knee.reason == "fewer than 3 points"
    assert json.loads(json_text(report)) == to_json(report)


# The picture


def drawing() -> ModuleType:
    pytest.importorskip("matplotlib", reason="matplotlib is an extra: pip install matplotlib")
    return importlib.import_module("leanonnx.commands.sweep.plot")


def picture(report: SweepReport) -> Any:
    return drawing().picture(report)


def test_the_picture_has_units_and_the_knee() -> None:
    deviation, agreement = picture(swept([made(*p) for p in BENT])).axes
    assert deviation.get_xlabel() == "time left (fraction of the original's)"
    assert deviation.get_ylabel() == "deviation on 20 held-out samples\n(relative L2 error, 0 = the original)"
    assert agreement.get_ylabel() == "share of equal top-1 choices\non 20 held-out samples"
    knees = [line for line in deviation.lines if line.get_label() == "knee"]
    assert [tuple(line.get_xydata()[0]) for line in knees] == [(pytest.approx(1 / 3), 0.08)]
    assert [text.get_text() for text in deviation.texts] == ["0.9", "0.6", "0.3", "0.2", "0.1"]
    assert "knee" in [text.get_text() for text in deviation.get_legend().get_texts()]
    markers = {line.get_marker() for line in deviation.lines} - {"None"}
    assert len(markers) >= 3, "shapes tell points, original and knee apart without colours"


def test_the_picture_says_that_there_is_no_knee() -> None:
    axes = picture(swept([made(a, 1 - a) for a in (0.8, 0.6, 0.4, 0.2)], measured=False)).axes[0]
    assert axes.get_title() == "m0\nno knee: the curve has no bend that stands out"
    assert axes.get_xlabel() == "kernels left (fraction)"


@pytest.mark.parametrize("count", [1, 5])
def test_plotted_fidelity(count: int) -> None:
    """Accuracy where there are labels, else agreement, else PSNR, which is infinite for the original."""
    rows = [deviating(made(asked, *rest), y={"psnr": 20.0 + asked, "top1": None}) for asked, *rest in BENT[:count]]
    axes = picture(swept(rows)).axes[1]
    assert axes.get_ylabel() == "PSNR (dB) on 20 held-out samples"
    assert [list(line.get_ydata()) for line in axes.lines if line.get_marker() == "o"] == [
        [20.0 + asked for asked, _ in rows]
    ]
    metric = MetricChange(name="pixel accuracy", better="higher", before=0.9, after=0.8)
    axes = picture(swept([deviating(row, metric=metric) for row in rows])).axes[1]
    assert axes.get_ylabel() == "pixel accuracy on 20 held-out samples"
    assert [list(line.get_ydata()) for line in axes.lines if line.get_marker() == "s"] == [[0.9]]
    assert len(picture(swept([deviating(row, y={"psnr": None}) for row in rows])).axes) == 1


def test_a_row_for_each_model() -> None:
    figure = picture(swept([made(*p) for p in BENT], models=3))
    assert [axes.get_title() for axes in figure.axes[::2]] == ["m0", "m1", "m2"]


def test_nothing_to_draw(tmp_path: Path) -> None:
    plot = drawing()
    assert plot.draw(swept([(0.1, REFUSED)]), tmp_path) == {}
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("seed", range(8))
def test_names_of_points_do_not_overlap(seed: int) -> None:
    rng = np.random.default_rng(seed)
    asked = np.sort(rng.choice(np.arange(0.05, 1, 0.05), 7, replace=False))[::-1]
    relative = np.cumsum(rng.random(7))
    rows = [made(round(float(a), 2), float(r), float(1 / a**0.8)) for a, r in zip(asked, relative, strict=True)]
    figure = picture(swept(rows))
    figure.canvas.draw()
    for axes in figure.axes[:2]:
        boxes = [text.get_window_extent() for text in axes.texts]
        assert not any(a.overlaps(b) for a, b in combinations(boxes, 2))
        frame = axes.get_window_extent()
        assert all(frame.x0 <= box.x0 and box.x1 <= frame.x1 for box in boxes)


def test_the_same_picture_has_the_same_bytes(tmp_path: Path) -> None:
    plot = drawing()
    report = swept([made(*p) for p in BENT])
    found = []
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        files = plot.draw(report, tmp_path / name)
        found.append([Path(file).read_bytes() for file in files.values()])
    assert found[0] == found[1]
    assert found[0][0].startswith(b"\x89PNG")
    assert found[0][1].lstrip().startswith(b"<?xml")

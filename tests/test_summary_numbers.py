"""The first line of a compression, and the next step, for any numbers."""

from __future__ import annotations

import shlex
from dataclasses import replace
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from leanonnx.reporting.reports import CompressionReport
from leanonnx.reporting.rows import MetricChange
from leanonnx.reporting.summary import MOODS, SummaryContext, summarise
from tests.test_report_page import report_of
from tests.test_summary import (
    FAST,
    LOSSLESS,
    SLOW,
    TOLERANCE,
    UNTIMED,
    assert_taken,
    channel_of,
    context,
    judged,
    output,
    step,
)

SHARES = st.floats(0, 1)
ENDS = st.none() | st.tuples(SHARES, SHARES).map(lambda pair: (min(pair), max(pair)))
OUTPUTS = st.builds(
    output,
    st.none() | st.floats(0, 1e9),
    st.none() | SHARES,
    ends=ENDS,
    channel=st.none() | st.builds(channel_of, st.none() | st.floats(0, 1e9), ENDS),
    vacuous=st.none() | st.just("constant"),
)
METRICS = st.builds(
    MetricChange,
    name=st.just("score"),
    better=st.sampled_from(["higher", "lower"]),
    before=SHARES,
    after=st.none() | SHARES,
    after_interval=ENDS,
    by_chance=st.sampled_from([None, True]),
)
NAMES = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=1).map(
    lambda s: s + ".onnx"
)


@st.composite
def reports(draw: st.DrawFn) -> CompressionReport:
    report = judged(
        *draw(st.lists(OUTPUTS, min_size=1, max_size=3)),
        samples=draw(st.integers(10, 2000)),
        metric=draw(st.none() | METRICS),
        headline=draw(st.sampled_from([None, "ruined"])),
        latency=draw(st.sampled_from([None, FAST, SLOW, UNTIMED])),
        costs=report_of(after=draw(st.integers(1, 120))).costs,
        tolerance=draw(st.sampled_from([None, TOLERANCE, replace(TOLERANCE, met=False)])),
    )
    lossless = draw(st.sampled_from([None, None, LOSSLESS]))
    return replace(report, lossless=lossless, recovery=None if lossless else report.recovery)


@given(
    report=reports(),
    options=st.fixed_dictionaries(
        {},
        optional={
            "calib": NAMES,
            "macs": st.floats(0.01, 1),
            "kernels": st.floats(0.01, 1),
            "recover": st.sampled_from(["none", "auto"]),
            "teacher": NAMES,
        },
    ),
    places=st.tuples(NAMES, NAMES),
)
def test_moods_and_steps(report: CompressionReport, options: dict[str, Any], places: tuple[str, str]) -> None:
    given = SummaryContext(options=options, source=places[0], output=places[1], timed={"threads": 2})
    summary = summarise(report, given)
    assert MOODS.index(summary.mood) == max(
        2 if summary.alarm else 0, *(MOODS.index(part.mood) for part in (summary.speed, summary.size, summary.accuracy))
    )
    if report.deviation and (report.headline or (report.tolerance and not report.tolerance.met)):
        assert summary.accuracy.mood == "bad"
    for part in summary.parts:
        assert part.text.lower() in summary.verdict.lower()
    assert_taken(step(report, given))


@given(numbers=st.lists(st.floats(0, 1e6), min_size=1, max_size=3))
def test_a_gate_is_one_that_the_result_keeps(numbers: list[float]) -> None:
    outputs = [output(0.0, ends=(0.0, 0.0), channel=channel_of(one, (one, one))) for one in numbers]
    words = shlex.split(step(judged(*outputs), context()).partition(": ")[2])
    assert float(words[words.index("--max-deviation") + 1]) >= max(numbers) * (1 - 1e-6)

"""The first line of a compression, its mood, and the next step: a plain instruction, or a command that is taken."""

from __future__ import annotations

import math
import re
import shlex
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
import typer

from leanonnx.cli.main import app
from leanonnx.commands.check.gates import read_limit
from leanonnx.data.images import ImageFormat
from leanonnx.reporting.reports import (
    CompressionReport,
    JudgementRow,
    LosslessRow,
    QuantisationRow,
    RecoveryRow,
    ToleranceRow,
)
from leanonnx.reporting.rows import FidelityRow, IntervalsRow, MetricChange, OutputDeviation, WorstChannel
from leanonnx.reporting.summary import SummaryContext, summarise
from leanonnx.spelling import spelled_for
from tests.test_report_page import report_of, timed

FAST = timed(2.0, 1.9, 2.1)
SLOW = timed(0.8, 0.7, 0.9, "slower")
UNTIMED = timed(1.0, 0.5, 2.0, "no difference shown", busy=True)
COMMAND = re.compile(r"leanonnx (inspect|bench|check|finetune) ")
TRAIN = "train it on more data (DATA), with PyTorch:"
CLI: Any = typer.main.get_command(app)


def channel_of(relative: float | None, interval: tuple[float, float] | None) -> WorstChannel:
    return WorstChannel(axis=1, index=2, relative_l2=relative, interval=interval)


def output(
    relative: float | None = 0.01,
    top1: float | None = None,
    *,
    ends: tuple[float, float] | None = None,
    channel: WorstChannel | None = None,
    vacuous: str | None = None,
) -> OutputDeviation:
    """The deviation of an output; ``ends`` are those of its agreement, or else of its error."""
    return OutputDeviation(
        relative_l2=relative,
        psnr=None,
        top1=top1,
        top5=None,
        worst_channel=channel,
        vacuous=vacuous,
        intervals=IntervalsRow(top1=ends) if top1 is not None else IntervalsRow(relative_l2=ends),
    )


SURE = output(top1=0.97, ends=(0.94, 0.99))
UNSURE = output(top1=0.92, ends=(0.7, 0.99))
WRONG = output(top1=0.5, ends=(0.4, 0.6))


def judged(
    *outputs: OutputDeviation,
    samples: int = 1000,
    effort: str = "normal",
    metric: MetricChange | None = None,
    **changes: Any,
) -> CompressionReport:
    """A report on outputs that were measured on real inputs."""
    deviation = FidelityRow(samples // 5, {f"y{k}": each for k, each in enumerate(outputs)}, metric)
    recovery = RecoveryRow(
        samples=samples - samples // 5,
        held_out=samples // 5,
        parts=0,
        effort=effort,
        minutes=None,
        kept=True,
        deviation=deviation,
        removed=deviation,
        layers=(),
    )
    return replace(report_of(latency=FAST), recovery=recovery, **changes)


def context(**options: Any) -> SummaryContext:
    return SummaryContext(options={"calib": "x.npz", **options}, source="a.onnx", output="b.onnx", timed={"threads": 1})


def step(report: CompressionReport, given: SummaryContext | None = None) -> str:
    with spelled_for("command line"):
        return summarise(report, given or context(macs=0.5)).next_step


def score(before: float, after: float, low: float, **other: Any) -> MetricChange:
    ends = {"after_interval": (low, 1.0), **other}
    return MetricChange(name="top-1 accuracy", better="higher", before=before, after=after, **ends)


def squares(before: float, after: float, high: float) -> MetricChange:
    return replace(score(before, after, 0), name="mean squared error", better="lower", after_interval=(0.0, high))


LOSSLESS = LosslessRow({"unread": 3}, ())
TOLERANCE = ToleranceRow(unit="macs", samples=99, confidence=0.95, allowed=3, met=True, chosen=0, looks=())
JUDGEMENT = JudgementRow(
    kind="sound",
    output="y0",
    samples=200,
    on="samples",
    agreement=None,
    agreement_bound=None,
    chance=None,
    relative_l2=0.2,
    mean_l2=0.5,
)
INTEGERS = QuantisationRow(
    **{
        **dict.fromkeys(QuantisationRow.__dataclass_fields__),
        "kept": True,
        "held_out": 200,
        "after": FidelityRow(200, {"y0": UNSURE}, None),
    }
)


ACCURACIES: Mapping[str, tuple[CompressionReport, str, str]] = {
    "not known": (report_of(latency=FAST), "accuracy not known", "plain"),
    "unchanged": (replace(report_of(latency=FAST), lossless=LOSSLESS), "outputs unchanged", "good"),
    "decisions agree": (judged(SURE), "the same decision in 97.0 % of the cases (94.0 % to 99.0 %)", "good"),
    "decisions are few": (judged(UNSURE), "the same decision in 92.0 % of the cases (70.0 % to 99.0 %)", "plain"),
    "decisions differ": (judged(WRONG), "the same decision in 50.0 % of the cases (40.0 % to 60.0 %)", "bad"),
    "numbers agree": (judged(output(0.05, ends=(0.04, 0.07))), "outputs off by 5.0 % (4.0 % to 7.0 %)", "good"),
    "numbers are few": (judged(output(0.05)), "outputs off by 5.0 %", "plain"),
    "numbers differ": (judged(output(0.4)), "outputs off by 40.0 %", "bad"),
    "near the mean": (judged(output(0.2), judgement=JUDGEMENT), "outputs off by 20.0 %", "bad"),
    "infinite": (judged(output(None)), "outputs not finite", "bad"),
    "says nothing": (
        judged(output(0.0, 1.0, ends=(0.9, 1.0), vacuous="constant")),
        "accuracy not known, as the outputs are the same on all samples",
        "plain",
    ),
    "worst of two": (
        judged(output(0.5, 0.99, ends=(0.97, 1.0)), output(0.1, 0.3, ends=(0.2, 0.4))),
        "output 'y1': the same decision in 30.0 % of the cases (20.0 % to 40.0 %)",
        "bad",
    ),
    "score kept": (
        judged(WRONG, metric=score(0.76, 0.75, 0.7)),
        "top-1 accuracy 76.0 % → 75.0 % (70.0 % to 100 %)",
        "good",
    ),
    "score unsure": (
        judged(SURE, metric=score(0.76, 0.75, 0.4)),
        "top-1 accuracy 76.0 % → 75.0 % (40.0 % to 100 %)",
        "plain",
    ),
    "score lost": (
        judged(SURE, metric=score(0.76, 0.6, 0.5)),
        "top-1 accuracy 76.0 % → 60.0 % (50.0 % to 100 %)",
        "bad",
    ),
    "score unknown": (
        judged(SURE, metric=replace(score(0.7, 0.7, 0.7), after=None)),
        "top-1 accuracy 70.0 % → ∞ (70.0 % to 100 %)",
        "bad",
    ),
    "error kept": (judged(SURE, metric=squares(1.0, 1.05, 1.2)), "mean squared error 1 → 1.05 (0 to 1.2)", "good"),
    "error grown": (judged(SURE, metric=squares(1.0, 1.6, 1.7)), "mean squared error 1 → 1.6 (0 to 1.7)", "bad"),
    "score of one output": (
        judged(SURE, WRONG, metric=score(0.76, 0.76, 0.7)),
        "output 'y1': the same decision in 50.0 % of the cases (40.0 % to 60.0 %)",
        "bad",
    ),
    "labels are wrong": (
        judged(WRONG, metric=score(0.0, 0.08, 0.0, by_chance=True)),
        "the same decision in 50.0 % of the cases (40.0 % to 60.0 %)",
        "bad",
    ),
    "within tolerances": (
        judged(UNSURE, tolerance=TOLERANCE),
        "the same decision in 92.0 % of the cases (70.0 % to 99.0 %)",
        "good",
    ),
    "beyond tolerances": (
        judged(SURE, tolerance=replace(TOLERANCE, met=False)),
        "the same decision in 97.0 % of the cases (94.0 % to 99.0 %)",
        "bad",
    ),
    "another shape": (judged(replace(output(None), reshaped=True)), "outputs of another shape", "bad"),
    "not finite": (judged(output(None)), "outputs not finite", "bad"),
    "ruined": (judged(SURE, headline="ruined"), "the same decision in 97.0 % of the cases (94.0 % to 99.0 %)", "bad"),
}


@pytest.mark.parametrize("name", ACCURACIES)
def test_accuracy(name: str) -> None:
    report, text, mood = ACCURACIES[name]
    accuracy = summarise(report, context(macs=0.5)).accuracy
    assert (accuracy.text.replace("\N{NO-BREAK SPACE}", " "), accuracy.mood) == (text, mood)


STEPS: Mapping[str, tuple[CompressionReport, SummaryContext, str]] = {
    "nothing removed": (
        report_of(after=100),
        context(),
        "see what may not be removed, and why: leanonnx inspect a.onnx",
    ),
    "within the budget": (
        report_of(after=100),
        context(macs=1.5),
        "nothing, as the model is within the budget; --exact removes what contributes nothing",
    ),
    "no samples": (report_of(), context(), "give 128 real inputs or more"),
    "labels": (judged(WRONG, metric=score(0.0, 0.1, 0.0, by_chance=True)), context(macs=0.5), "correct the labels"),
    "samples alike": (
        judged(output(0.0, 1.0, vacuous="constant")),
        context(macs=0.5),
        "give samples with --calib on which",
    ),
    "no recovery": (judged(WRONG), context(macs=0.5, recover="none"), "let --recover auto fit the weights"),
    "few samples": (
        judged(UNSURE, samples=60),
        context(macs=0.5),
        "give 128 samples or more with --calib (there were 60)",
    ),
    "quick": (judged(WRONG, effort="quick"), context(macs=0.5), "give recovery more time: --effort normal"),
    "too much": (judged(WRONG), context(macs=0.5), "remove less: --macs 0.75 in place of --macs 0.5"),
    "too much of kernels": (judged(WRONG), context(kernels=0.3), "remove less: --keep 0.65 in place of --keep 0.3"),
    "hardly anything": (
        judged(WRONG, latency=FAST),
        context(macs=0.99),
        f"{TRAIN} leanonnx finetune b.onnx b-tuned.onnx --data DATA --teacher a.onnx",
    ),
    "unsure": (
        judged(UNSURE),
        context(macs=0.5),
        f"{TRAIN} leanonnx finetune b.onnx b-tuned.onnx --data DATA --teacher a.onnx",
    ),
    "a teacher": (
        judged(UNSURE),
        context(macs=0.5, teacher="t.onnx"),
        f"{TRAIN} leanonnx finetune b.onnx b-tuned.onnx --data DATA --teacher t.onnx",
    ),
    "integers": (
        judged(UNSURE, quantisation=INTEGERS),
        context(macs=0.5),
        "leave out --int8, then train the result on more data: training needs floats",
    ),
    "over budget": (
        judged(SURE),
        context(macs=0.1),
        "see what keeps the model from becoming smaller: leanonnx inspect a.onnx",
    ),
    "slow": (
        judged(SURE, latency=SLOW),
        context(macs=0.5),
        "time it again while nothing else runs: leanonnx bench a.onnx b.onnx --threads 1",
    ),
    "not timed, and unsure": (
        judged(UNSURE, latency=UNTIMED),
        context(macs=0.5),
        "time it again while nothing else runs: leanonnx bench a.onnx b.onnx --threads 1",
    ),
    "agreement": (
        judged(SURE),
        context(macs=0.5),
        "check it in your tests, on inputs that were not used here (DATA): "
        "leanonnx check a.onnx b.onnx --data DATA --min-agreement 0.94",
    ),
    "error": (
        judged(output(0.05, ends=(0.04, 0.0712))),
        context(macs=0.5),
        "check it in your tests, on inputs that were not used here (DATA): "
        "leanonnx check a.onnx b.onnx --data DATA --max-deviation 0.072",
    ),
    "error of a channel": (
        judged(output(0.05, ends=(0.04, 0.07), channel=channel_of(0.3, (0.2, 0.41)))),
        context(macs=0.5),
        "check it in your tests, on inputs that were not used here (DATA): "
        "leanonnx check a.onnx b.onnx --data DATA --max-deviation 0.41",
    ),
    "nothing changed": (
        replace(report_of(latency=FAST), lossless=LOSSLESS),
        SummaryContext(options={"exact": True}, source="a.onnx", output="b.onnx"),
        "check it in your tests: leanonnx check a.onnx b.onnx --max-deviation 0.001",
    ),
}


@pytest.mark.parametrize("name", STEPS)
def test_next_step(name: str) -> None:
    report, given, text = STEPS[name]
    assert step(report, given).startswith(text)
    assert_taken(step(report, given))


def test_weights_that_were_changed_are_a_change() -> None:
    """A network that was fitted to its teacher has the costs of its input, and is another one."""
    summary = summarise(judged(SURE, costs=report_of(after=100).costs), context(teacher="t.onnx"))
    assert not summary.alarm


def test_commands_say_how_images_become_inputs() -> None:
    images = ImageFormat(mean=(0.4, 0.5, 0.6), scale=1, size=(32, 48))
    given = replace(context(macs=0.5, shapes={"x": [1, 3, 8, 8]}), images=images, libraries=("l.so", "k.so"))
    words = shlex.split(step(judged(SURE), given).partition(": ")[2])
    for option, value in (
        ("--mean", "0.4,0.5,0.6"),
        ("--size", "32x48"),
        ("--shape", "x=1,3,8,8"),
        ("--library", "k.so"),
    ):
        assert words[words.index(value) - 1] == option
    assert_taken(step(judged(SURE), given))
    python = summarise(judged(SURE), given).next_step
    assert "images=ImageFormat(mean=(0.4, 0.5, 0.6)" in python and "library=['l.so', 'k.so']" in python


def assert_taken(text: str) -> None:
    """A step holds no command, or one that the parser takes, with limits that ``check`` reads."""
    at = COMMAND.search(text)
    if at is None:
        return
    _, verb, *words = shlex.split(text[at.start() :])
    read = CLI.commands[verb].make_context(verb, words).params
    for name, value in read.items():
        if name in ("max_deviation", "min_agreement", "min_psnr") and value is not None:
            limit = read_limit(name.replace("_", "-"), value, "")
            assert 0 <= limit.number < math.inf


def test_a_model_within_the_budget_needs_nothing_removed() -> None:
    summary = summarise(report_of(after=100), context(bytes=2.0))
    assert summary.alarm == "Nothing had to be removed: the output equals the input."
    assert summarise(report_of(after=100), context(bytes=0.5)).alarm.startswith("Nothing could be removed")


def test_integers_that_were_left_out() -> None:
    report = replace(report_of(after=100), quantisation=replace(INTEGERS, kept=False))
    assert summarise(report, context(kernels=1.0)).alarm == "8-bit integers were left out: the output equals the input."
    assert step(report, context(kernels=1.0)).startswith("give a budget, such as --macs 0.75")

"""Deviation of each output from the original on real inputs, before and after recovery."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from leanonnx.formatting import UNIT_SPACE, count_text, percent_text
from leanonnx.reporting.remarks import cross_fit_text, interval_text, metric_text, percent_interval
from leanonnx.reporting.reports import CompressionReport
from leanonnx.reporting.rows import OutputDeviation, WorstChannel

MAX_DRAWN_OUTPUTS = 24


@dataclass(frozen=True, kw_only=True)
class OutputBars:
    """One output: its relative deviations (None: infinite), as shares of the largest, and other measures in words."""

    name: str
    removed: float | None
    final: float | None
    removed_share: float
    final_share: float
    measures: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Deviations:
    """All outputs, the furthest off first.

    Attributes:
        outputs: those that are drawn; ``missing`` others are not.
        before: all of them before the steps.
        steps: what changed them, in words.
        samples: the samples, in words.
        metric: the score by the labels, in words.
    """

    outputs: tuple[OutputBars, ...]
    before: Mapping[str, OutputDeviation]
    steps: str
    samples: str
    metric: str
    missing: int


def deviations(report: CompressionReport) -> Deviations | None:
    """The deviation of the outputs; None where none was measured."""
    row, final, integers = report.recovery, report.deviation, report.quantisation
    start = row.removed if row is not None else None if integers is None else integers.before
    if final is None or start is None:
        return None
    steps = ["the remaining weights were fitted to the original"] if row is not None and row.kept else []
    steps += ["the network was put into 8-bit integers"] if integers is not None and integers.kept else []
    first, now = start.outputs, final.outputs
    sizes = [one.relative_l2 for side in (first, now) for one in side.values()]
    largest = max((size for size in sizes if size), default=1.0)
    outputs = [
        OutputBars(
            name=name,
            removed=first[name].relative_l2,
            final=now[name].relative_l2,
            removed_share=_share(first[name].relative_l2, largest),
            final_share=_share(now[name].relative_l2, largest),
            measures=_measures(first[name], now[name], bool(steps)),
        )
        for name in now
    ]
    outputs.sort(key=lambda output: (-output.final_share, output.name))
    metric = final.metric
    return Deviations(
        outputs=tuple(outputs[:MAX_DRAWN_OUTPUTS]),
        before=first,
        steps=" and ".join(steps),
        samples=_samples(report, final.samples),
        metric=f"By the labels, {metric_text(metric)}" if metric else "",
        missing=max(0, len(outputs) - MAX_DRAWN_OUTPUTS),
    )


def _samples(report: CompressionReport, count: int) -> str:
    """The samples that the deviation was measured on."""
    if report.parts:
        return f"{cross_fit_text(count, report.parts)} (each part by weights that were fitted to the others)"
    return count_text(count, "held-out sample" if report.is_held_out else "sample")


def _share(value: float | None, largest: float) -> float:
    return 1.0 if value is None else value / largest


def _measures(first: OutputDeviation, now: OutputDeviation, kept: bool) -> tuple[str, ...]:
    """The channel that is furthest off, PSNR and agreement in words."""
    texts = [_worst_channel_text(now.worst_channel)] if now.worst_channel else []
    known = now.known
    for name, before, after, interval, form in (
        ("PSNR", first.psnr, now.psnr, known.psnr, f"{{:.1f}}{UNIT_SPACE}dB".format),
        ("same decision", first.top1, now.top1, known.top1, percent_text),
        ("in the top 5", first.top5, now.top5, known.top5, percent_text),
    ):
        if after is not None:
            start = f"{form(before)} → " if kept and before is not None else ""
            texts.append(f"{name} {start}{form(after)}{interval_text(interval, form)}")
    if known.relative_l2 is not None:
        texts.insert(0, f"95 % interval{percent_interval(known.relative_l2)}")
    return tuple(texts)


def _worst_channel_text(worst: WorstChannel) -> str:
    """The channel that is furthest off, in words."""
    return f"channel {worst.index} {'∞' if worst.relative_l2 is None else percent_text(worst.relative_l2)}"

"""Deviation of each output from the original on real inputs, before and after recovery."""

from __future__ import annotations

from dataclasses import dataclass

from leanonnx.formatting import UNIT_SPACE, percent_text
from leanonnx.reporting.remarks import metric_text, sample_text
from leanonnx.reporting.reports import RecoveryRow
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
    """All outputs, the furthest off first; ``kept``: recovery changed the weights; ``missing``: outputs not drawn."""

    outputs: tuple[OutputBars, ...]
    kept: bool
    samples: str
    metric: str
    missing: int


def deviations(row: RecoveryRow | None) -> Deviations | None:
    """The deviation of the outputs; None where none was measured."""
    if row is None:
        return None
    first, now = row.removed.outputs, row.deviation.outputs
    sizes = [one.relative_l2 for side in (first, now) for one in side.values()]
    largest = max((size for size in sizes if size), default=1.0)
    outputs = [
        OutputBars(
            name=name,
            removed=first[name].relative_l2,
            final=now[name].relative_l2,
            removed_share=_share(first[name].relative_l2, largest),
            final_share=_share(now[name].relative_l2, largest),
            measures=_measures(first[name], now[name], row.kept),
        )
        for name in now
    ]
    outputs.sort(key=lambda output: (-output.final_share, output.name))
    metric = row.deviation.metric
    return Deviations(
        outputs=tuple(outputs[:MAX_DRAWN_OUTPUTS]),
        kept=row.kept,
        samples=sample_text(row),
        metric=f"By the labels, {metric_text(metric)}" if metric else "",
        missing=max(0, len(outputs) - MAX_DRAWN_OUTPUTS),
    )


def _share(value: float | None, largest: float) -> float:
    return 1.0 if value is None else value / largest


def _measures(first: OutputDeviation, now: OutputDeviation, kept: bool) -> tuple[str, ...]:
    """The channel that is furthest off, PSNR and agreement in words."""
    texts = [_worst_channel_text(now.worst_channel)] if now.worst_channel else []
    for name, before, after, form in (
        ("PSNR", first.psnr, now.psnr, f"{{:.1f}}{UNIT_SPACE}dB".format),
        ("same decision", first.top1, now.top1, percent_text),
        ("in the top 5", first.top5, now.top5, percent_text),
    ):
        if after is not None:
            start = f"{form(before)} → " if kept and before is not None else ""
            texts.append(f"{name} {start}{form(after)}")
    return tuple(texts)


def _worst_channel_text(worst: WorstChannel) -> str:
    """The channel that is furthest off, in words."""
    return f"channel {worst.index} {'∞' if worst.relative_l2 is None else percent_text(worst.relative_l2)}"

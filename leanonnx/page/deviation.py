"""How far each output is from the original's on real inputs, before and after recovery."""

from __future__ import annotations

from dataclasses import dataclass

from leanonnx.formatting import BLANK, counted, metric_text, percent
from leanonnx.reporting.report import Row

MOST = 24
"""Outputs that are drawn."""


@dataclass(frozen=True)
class Output:
    """One output: its relative deviations (None: infinite) and the other measures in words."""

    name: str
    removed: float | None
    final: float | None
    removed_share: float
    final_share: float
    measures: tuple[str, ...]


@dataclass(frozen=True)
class Deviations:
    """All outputs, the furthest off first; ``kept``: recovery changed the weights."""

    outputs: tuple[Output, ...]
    kept: bool
    samples: str
    metric: str
    missing: int


def deviations(found: Row | None) -> Deviations | None:
    """The deviation of the outputs from the ``recovery`` of the JSON object; None where none was measured."""
    if found is None:
        return None
    first, now = found["removed"]["outputs"], found["deviation"]["outputs"]
    largest = max((v for side in (first, now) for o in side.values() if (v := o["relative_l2"])), default=1.0)
    outputs = [
        Output(
            name,
            first[name]["relative_l2"],
            now[name]["relative_l2"],
            _share(first[name]["relative_l2"], largest),
            _share(now[name]["relative_l2"], largest),
            _measures(first[name], now[name], found["kept"]),
        )
        for name in now
    ]
    outputs.sort(key=lambda output: (-output.final_share, output.name))
    samples = counted(found["deviation"]["samples"], f"{'held-out ' if found['held_out'] else ''}sample")
    return Deviations(tuple(outputs[:MOST]), found["kept"], samples, _metric(found), max(0, len(outputs) - MOST))


def _share(value: float | None, largest: float) -> float:
    return 1.0 if value is None else value / largest


def _measures(first: Row, now: Row, kept: bool) -> tuple[str, ...]:
    """The channel that is furthest off, PSNR and agreement in words."""
    words = {
        "psnr": ("PSNR", f"{{:.1f}}{BLANK}dB".format),
        "top1": ("same decision", percent),
        "top5": ("in the top 5", percent),
    }
    worst = now["worst_channel"]
    found = [worst_channel_text(worst)] if worst else []
    for key, (name, written) in words.items():
        if now[key] is not None:
            before = f"{written(first[key])} → " if kept and first[key] is not None else ""
            found.append(f"{name} {before}{written(now[key])}")
    return tuple(found)


def worst_channel_text(worst: Row) -> str:
    """The channel that is furthest off, in words."""
    lost = "∞" if worst["relative_l2"] is None else percent(worst["relative_l2"])
    return f"channel {worst['index']} {lost}"


def _metric(found: Row) -> str:
    metric = found["deviation"]["metric"]
    return f"By the labels, {metric_text(metric)}" if metric else ""

"""The limits that ``check`` is suggested with after a compression."""

from __future__ import annotations

import math
from collections.abc import Sequence

from leanonnx.reporting.reports import CompressionReport
from leanonnx.reporting.rows import IntervalRow, OutputDeviation

SAME = 0.001
"""Limit of the deviation of a network whose outputs are those of the original."""
LEAST_LIMIT, ROUNDING = 1e-6, 1e-9
"""Limit of a deviation that is zero, and the share by which floats may miss a decimal."""


def suggested_limits(report: CompressionReport, keeps_outputs: bool) -> dict[str, object]:
    """Limits that a result keeps, and a worse one would not, as options of ``check``: by its worst output and channel.

    ``keeps_outputs``: its outputs are those of the original, though no samples have shown it.
    """
    if report.deviation is None:
        return {"max_deviation": SAME} if keeps_outputs else {}
    outputs = [output for output in report.deviation.outputs.values() if not output.vacuous]
    if all(output.top1 is not None or output.psnr is not None for output in outputs):
        shares = [output.known.top1 for output in outputs if output.top1 is not None]
        decibels = [output.known.psnr for output in outputs if output.psnr is not None]
        limits = {"min_agreement": _least(shares, 100), "min_psnr": _least(decibels, 10)}
        if all(limit > 0 for limit in limits.values()):
            return {name: limit for name, limit in limits.items() if limit < math.inf}
    highs = [high for output in outputs for high in _largest_errors(output)]
    known = [high for high in highs if high is not None]
    return {"max_deviation": _rounded_up(max(known))} if known and len(known) == len(highs) else {}


def _least(intervals: Sequence[IntervalRow | None], parts: int) -> float:
    """The least of the lower ends, rounded down to one in ``parts``; 0 if one is unknown, infinite without any."""
    least = min((interval[0] or 0.0 if interval else 0.0 for interval in intervals), default=math.inf)
    return least if math.isinf(least) else math.floor(parts * least) / parts


def _largest_errors(output: OutputDeviation) -> list[float | None]:
    """Upper ends of the relative errors of an output and of its worst channel; None is infinite."""
    worst = output.worst_channel
    sides = [(output.relative_l2, output.known.relative_l2)]
    sides += [] if worst is None else [(worst.relative_l2, worst.interval)]
    return [interval[1] if interval else value for value, interval in sides]


def _rounded_up(number: float) -> float:
    """A number with two digits, not smaller."""
    if number <= LEAST_LIMIT:
        return LEAST_LIMIT
    unit = 10.0 ** (math.floor(math.log10(number)) - 1)
    return float(f"{math.ceil(number / unit * (1 - ROUNDING)) * unit:.2g}")

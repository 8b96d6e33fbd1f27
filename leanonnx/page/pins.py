"""The pinned channels, and the kernels that they keep."""

from __future__ import annotations

from dataclasses import dataclass

from leanonnx.reporting.reports import CompressionReport
from leanonnx.reporting.rows import PinRow

MAX_DRAWN_PINS = 10


@dataclass(frozen=True)
class PinBars:
    """Pins, the costliest first, of which the first ``drawn`` are drawn; ``kernels``: all that are kept."""

    rows: tuple[PinRow, ...]
    drawn: int
    kernels: int

    def share(self, row: PinRow) -> float:
        """Share of the kept kernels that touch a pinned channel."""
        return row.kernels / self.kernels if self.kernels else 0.0


def pin_bars(report: CompressionReport) -> PinBars:
    """The pins of a compression; one more is drawn rather than a remainder of one."""
    rows = report.pins
    drawn = len(rows) if len(rows) <= MAX_DRAWN_PINS + 1 else MAX_DRAWN_PINS
    return PinBars(rows, drawn, report.costs.kernels.after)

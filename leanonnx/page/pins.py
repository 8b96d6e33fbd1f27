"""What may not be removed, and what that costs."""

from __future__ import annotations

from dataclasses import dataclass

from leanonnx.reporting.report import Row

MOST = 10
"""Pins that are drawn."""


@dataclass(frozen=True)
class Pins:
    """Rows of the JSON object, the costliest first; ``kernels``: all that are left."""

    rows: tuple[Row, ...]
    drawn: int
    kernels: int

    def share(self, row: Row) -> float:
        """Share of the kernels left that touch a pinned channel."""
        return float(row["kernels"] / self.kernels) if self.kernels else 0.0


def pins(row: Row) -> Pins:
    """The pins of a compression, from its JSON object."""
    found = row["pins"]
    return Pins(tuple(found), len(found) if len(found) <= MOST + 1 else MOST, row["kernels"]["after"])

"""Costs of a network before and after, by metric: the rows, how they are made, and what the metrics mean."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields

from leanonnx.analysis.cost import Cost
from leanonnx.selection.metrics import COUNTED_METRICS


@dataclass(frozen=True)
class CostChange:
    """A cost of the original and of the result, and the ``fraction`` that is left."""

    before: int
    after: int
    fraction: float


@dataclass(frozen=True)
class CostChanges:
    """Each cost of a network before and after compression.

    Attributes:
        kernels: pairs of input and output channel.
        macs: multiply-adds of one run.
        params: numbers stored as weights.
        bytes: of the file with its external data.
    """

    kernels: CostChange
    macs: CostChange
    params: CostChange
    bytes: CostChange

    def items(self) -> Iterator[tuple[str, CostChange]]:
        """The name of each metric with its change."""
        for one in fields(self):
            yield one.name, getattr(self, one.name)


@dataclass(frozen=True)
class CostCounts:
    """Each cost of one network; fields are those of ``CostChanges``."""

    kernels: int
    macs: int
    params: int
    bytes: int

    def items(self) -> Iterator[tuple[str, int]]:
        """The name of each metric with its count."""
        for one in fields(self):
            yield one.name, getattr(self, one.name)


def cost_counts(cost: Cost) -> CostCounts:
    """The costs of a network, metric by metric."""
    return CostCounts(**{metric.name: metric.count(cost) for metric in COUNTED_METRICS})


def cost_changes(before: CostCounts, after: CostCounts) -> CostChanges:
    """The costs of two networks side by side."""
    return CostChanges(**{name: _change(count, getattr(after, name)) for name, count in before.items()})


def _change(before: int, after: int) -> CostChange:
    return CostChange(before, after, round(after / before, 6) if before else 1.0)

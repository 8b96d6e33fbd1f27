"""The journal and the report of ``leanonnx sweep``: frozen data with the keys of their JSON."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated

from leanonnx.data.images import ImageFormat
from leanonnx.reporting.costs import CostChanges
from leanonnx.reporting.encoding import INLINE, OPTIONAL, OPTIONAL_INLINE
from leanonnx.reporting.reports import JudgementRow, LookRow, ToleranceRow
from leanonnx.reporting.rows import (
    REPORT_SCHEMA,
    FidelityRow,
    IntervalsRow,
    LatencyRow,
    MetricChange,
    OutputDeviation,
    ProofRow,
)

PointKey = tuple[str, float]
"""A point: the model's name in the sweep, the fraction asked for."""
TimeSpan = tuple[float, float]
"""Start and end, in seconds since the epoch."""


@dataclass(frozen=True)
class SourcedFidelity:
    """Deviation from the original, and ``on`` what inputs it was measured."""

    on: str
    fidelity: Annotated[FidelityRow, INLINE]


@dataclass(frozen=True, kw_only=True)
class CandidateRow:
    """A compressed model; ``latency`` and ``deviation`` are None where they were not measured.

    ``headline``: the warning that it is ruined.
    """

    headline: str | None
    costs: Annotated[CostChanges, INLINE]
    proof: ProofRow
    latency: LatencyRow | None
    warnings: tuple[str, ...]
    hints: tuple[str, ...]
    deviation: SourcedFidelity | None
    judgement: JudgementRow | None
    tolerance: ToleranceRow | None


@dataclass(frozen=True)
class OutcomeRow:
    """Outcome of a compression: the candidate, or exit code and message of the error.

    ``made`` and ``measured`` say when that was done, None where it was not, ``seconds`` how long the compression took.
    """

    code: int
    message: str
    candidate: Annotated[CandidateRow | None, OPTIONAL_INLINE] = None
    seconds: Annotated[float | None, OPTIONAL] = None
    made: Annotated[TimeSpan | None, OPTIONAL] = None
    measured: Annotated[TimeSpan | None, OPTIONAL] = None


@dataclass(frozen=True)
class JournalRow:
    """A line of the journal: the outcome of a point; ``done``: it is not to be measured any more."""

    outcome: Annotated[OutcomeRow, INLINE]
    model: str
    asked: float
    done: bool

    @property
    def key(self) -> PointKey:
        """The point."""
        return self.model, self.asked


@dataclass(frozen=True)
class ConditionsRow:
    """All that the points of a folder have in common; ``options`` are those that plans record."""

    leanonnx: str
    budget: str
    options: Annotated[Mapping[str, object], INLINE]
    recover: bool
    measured: bool
    models_saved: bool
    provider: str
    threads: int
    processor: str
    images: ImageFormat | None
    calib_sha256: str | None
    rules_sha256: str | None
    libraries_sha256: str
    targets_sha256: str | None


@dataclass(frozen=True)
class SubjectRow:
    """A model of a sweep: digest of its file, and the hardware that widths are chosen for."""

    sha256: str
    target: str


@dataclass(frozen=True)
class HeaderRow:
    """The header of the journal."""

    conditions: Annotated[ConditionsRow, INLINE]
    models: Mapping[str, SubjectRow]


@dataclass(frozen=True)
class PointDeviation:
    """Deviation of a point from the original.

    ``relative_l2``, ``psnr`` and ``top1`` are means over the outputs that have a number; None where none has, and where
    a relative error is infinite.  ``intervals`` are theirs, wide enough for any dependence between the outputs.
    """

    on: str
    samples: int
    outputs: Mapping[str, OutputDeviation]
    metric: MetricChange | None
    relative_l2: float | None
    psnr: float | None
    top1: float | None
    intervals: IntervalsRow


@dataclass(frozen=True)
class PointRow:
    """A point of a curve; all but its outcome and the fraction asked for is None where it was not reached.

    ``headline``: the warning that it is ruined; ``tolerance``: how it was judged by the tolerances that were asked for;
    ``knee``: the curve has its knee here;
    ``file``: the candidate, where it is kept.
    """

    headline: str | None
    costs: Annotated[CostChanges | None, INLINE]
    proof: ProofRow | None
    latency: LatencyRow | None
    deviation: PointDeviation | None
    judgement: JudgementRow | None
    tolerance: LookRow | None
    seconds: float | None
    made: TimeSpan | None
    measured: TimeSpan | None
    file: str | None
    warnings: tuple[str, ...]
    hints: tuple[str, ...]
    knee: bool
    code: int
    message: str
    asked: float


@dataclass(frozen=True, kw_only=True)
class KneeRow:
    """The knee of a curve.

    Attributes:
        asked: the fraction of its point; None where there is no knee.
        axis: what is left of the original along it: ``latency``, or the metric of the budget.
        sure: share of draws of the times from their intervals that have the knee there or at a neighbour.
        reason: the reason where there is no knee.
    """

    asked: float | None
    axis: str
    sure: float | None
    reason: str | None


@dataclass(frozen=True, kw_only=True)
class LeastRow:
    """The point with the least that is within the tolerances.

    Attributes:
        asked: the fraction of its point; None where none is.
        axis: the metric that it has least of.
    """

    asked: float | None
    axis: str


@dataclass(frozen=True, kw_only=True)
class CurveRow:
    """The curve of a model: its path, its name in the sweep, its points and the knee.

    ``least``: the point with the least that is within the tolerances; None if there are none.
    """

    model: str
    name: str
    sha256: str
    points: tuple[PointRow, ...]
    knee: KneeRow
    least: LeastRow | None


@dataclass(frozen=True, kw_only=True)
class SweepReport:
    """The report of ``leanonnx sweep``.

    ``headline`` is the warning that points are ruined, ``unit`` the metric of the budget; ``files``
    are written by kind.
    """

    schema: int = REPORT_SCHEMA
    headline: str | None
    unit: str
    measured: bool
    about: ConditionsRow
    models: tuple[CurveRow, ...]
    warnings: tuple[str, ...]
    files: Mapping[str, str]

    @property
    def points(self) -> list[PointRow]:
        """The points of all curves."""
        return [point for curve in self.models for point in curve.points]

    @property
    def exit_code(self) -> int:
        """0 if all points were reached, else the gravest of their codes."""
        return max((point.code for point in self.points), default=0)

"""The report of ``leanonnx finetune``: frozen data with the keys of its JSON."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated

from leanonnx.reporting.encoding import INLINE, OPTIONAL
from leanonnx.reporting.rows import REPORT_SCHEMA, IntervalRow, OutputDeviation


@dataclass(frozen=True)
class EpochLoss:
    """The losses of one epoch; None where they are infinite."""

    train: float | None
    held_out: float | None


@dataclass(frozen=True)
class LossChange:
    """The held-out loss before and after training; None where it is infinite."""

    before: float | None
    after: float | None


@dataclass(frozen=True)
class TrainedFidelityRow:
    """Deviation of each output, and the ``value`` of the metric where there are labels, with its interval (95 %)."""

    outputs: Mapping[str, OutputDeviation]
    value: float | None
    interval: Annotated[IntervalRow | None, OPTIONAL] = None


@dataclass(frozen=True)
class HeldOutRow:
    """Loss, metric and deviation from ``reference`` on held-out samples, before and after training."""

    samples: int
    loss: LossChange
    reference: str
    metric: str | None
    before: TrainedFidelityRow
    after: TrainedFidelityRow


@dataclass(frozen=True)
class ParityRow:
    """Deviation of torch from onnxruntime, with its bound and the number of inputs."""

    max_relative_error: float
    bound: float
    inputs: int


@dataclass(frozen=True)
class ParityRows:
    """Deviation of torch from onnxruntime before and after training."""

    before: ParityRow
    after: ParityRow


@dataclass(frozen=True)
class HeldWeightsRow:
    """Constants that are held, and the reason."""

    reason: str
    names: tuple[str, ...]


@dataclass(frozen=True)
class TrainingRow:
    """One training.

    Attributes:
        headline: the warning that the result is ruined; None if it is not.
        epochs: number of epochs done.
        best_epoch: the one whose weights were written; 0 for those of the input.
        resumed_epoch: the one of the checkpoint that was resumed.
        loss: by epoch.
        samples: number of samples trained on.
        parameters: number of weights trained.
        trained: names of the constants that hold them.
        held: the float constants that are not trained.
        batches: how the network takes a batch.
        round_trip: deviation of torch from onnxruntime.
        seconds: by stage.
    """

    headline: str | None
    strategy: str
    epochs: int
    best_epoch: int
    resumed_epoch: int
    loss: tuple[EpochLoss, ...]
    held_out: HeldOutRow
    samples: int
    parameters: int
    trained: tuple[str, ...]
    held: tuple[HeldWeightsRow, ...]
    batches: str
    round_trip: ParityRows
    seconds: Mapping[str, float]
    warnings: tuple[str, ...]


@dataclass(frozen=True)
class StepShare:
    """Fraction of the original's cost that a step was to keep, and that it kept."""

    wanted: float
    reached: float


@dataclass(frozen=True)
class StepRow:
    """One step of compression and training; ``shares`` has the metric of the budget as its only key."""

    step: int
    shares: Annotated[Mapping[str, StepShare], INLINE]
    file: str | None
    training: Annotated[TrainingRow, INLINE]


@dataclass(frozen=True, kw_only=True)
class FinetuneReport:
    """The report of ``leanonnx finetune``: the last training; after ``--steps``, all steps."""

    schema: int = REPORT_SCHEMA
    training: Annotated[TrainingRow, INLINE]
    steps: Annotated[tuple[StepRow, ...] | None, OPTIONAL] = None

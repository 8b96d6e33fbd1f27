"""Build the report of ``leanonnx finetune`` from its result."""

from __future__ import annotations

from leanonnx.commands.finetune.driver import FinetuneResult
from leanonnx.commands.finetune.parity import RoundTrip
from leanonnx.commands.finetune.rows import (
    EpochLoss,
    FinetuneReport,
    HeldOutRow,
    HeldWeightsRow,
    LossChange,
    ParityRow,
    ParityRows,
    StepRow,
    StepShare,
    TrainedFidelityRow,
    TrainingRow,
)
from leanonnx.commands.finetune.steps import PruningStep, PruningSteps
from leanonnx.evaluation.deviation import Fidelity
from leanonnx.formatting import json_value
from leanonnx.reporting.builders import interval_row, output_rows


def finetune_report(result: FinetuneResult) -> FinetuneReport:
    """The report of ``leanonnx finetune``."""
    return FinetuneReport(training=_training_row(result))


def finetune_steps_report(result: PruningSteps) -> FinetuneReport:
    """The report of ``leanonnx finetune --steps``: the training of the last step, and all steps."""
    steps = tuple(_step_row(number, step, result.unit) for number, step in enumerate(result.steps, 1))
    return FinetuneReport(training=_training_row(result.steps[-1].result), steps=steps)


def _step_row(number: int, step: PruningStep, metric: str) -> StepRow:
    return StepRow(
        step=number,
        shares={metric: StepShare(step.fraction, step.reached)},
        file=None if step.path is None else str(step.path),
        training=_training_row(step.result),
    )


def _training_row(result: FinetuneResult) -> TrainingRow:
    trained = result.training
    return TrainingRow(
        headline=result.headline,
        strategy=result.strategy,
        epochs=len(trained.history),
        best_epoch=trained.best_epoch,
        resumed_epoch=trained.resumed,
        loss=tuple(EpochLoss(json_value(train), json_value(held_out)) for train, held_out in trained.history),
        held_out=HeldOutRow(
            samples=result.samples[1],
            loss=LossChange(json_value(trained.before), json_value(trained.after)),
            reference=str(result.reference),
            metric=result.after.metric,
            before=_fidelity_row(result.before),
            after=_fidelity_row(result.after),
        ),
        samples=result.samples[0],
        parameters=result.parameters,
        trained=result.weights.trained,
        held=tuple(HeldWeightsRow(reason, names) for reason, names in result.weights.held.items()),
        batches=result.batch_mode,
        round_trip=ParityRows(_parity_row(result.round_trips[0]), _parity_row(result.round_trips[1])),
        seconds=dict(result.seconds),
        warnings=tuple(result.warnings),
    )


def _parity_row(trip: RoundTrip) -> ParityRow:
    return ParityRow(trip.error, trip.bound, trip.inputs)


def _fidelity_row(fidelity: Fidelity) -> TrainedFidelityRow:
    return TrainedFidelityRow(output_rows(fidelity), json_value(fidelity.after), interval_row(fidelity.after_interval))

"""Compress and train in turns: the schedule of the LEAN paper (Schoonhoven et al. 2022, arXiv 2011.06923).

After step i of N the network holds F^(i/N) of the original's cost, each step a like share of what was left.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

from leanonnx.analysis.cost import cost_model
from leanonnx.commands.compress import pipeline
from leanonnx.commands.compress.options import CompressOptions
from leanonnx.commands.compress.pipeline import inspect
from leanonnx.commands.finetune import driver
from leanonnx.commands.finetune.process_group import ProcessGroup, join
from leanonnx.errors import OptionError
from leanonnx.selection.metrics import Budget, Metric
from leanonnx.system.clock import Progress, quiet
from leanonnx.system.outputs import check_writable, publish, temporary_beside


@dataclass(frozen=True)
class Schedule:
    """How to get to ``compression.budget`` (of the original) in ``count`` steps; ``folder`` keeps the steps' files."""

    count: int
    compression: CompressOptions
    folder: Path | None = None


@dataclass(frozen=True)
class PruningStep:
    """One step: the share of the original's cost that was wanted and reached, its file where kept, its training."""

    fraction: float
    reached: float
    path: Path | None
    result: driver.FinetuneResult


@dataclass(frozen=True)
class PruningSteps:
    """All steps; shares are of ``unit``."""

    unit: str
    steps: tuple[PruningStep, ...]


def finetune_in_steps(
    source: Path,
    target: Path,
    teacher: Path | None,
    data: Path,
    options: driver.FinetuneOptions,
    schedule: Schedule,
    progress: Progress = quiet,
) -> PruningSteps | None:
    """Compress a model step by step, training it after each; None where another process writes it.

    Args:
        source: what is compressed, the original itself as a rule.
        target: where the last step's model is written.
        teacher: the original, by whose cost the steps are measured; by default ``source``.
        data: inputs, with labels for ``supervised``.
        options: how to train, ``settings.epochs`` after each step; a checkpoint is kept for each step.
        schedule: how far and in how many steps to compress.
        progress: told of steps, stages and epochs.

    Raises:
        UserError: bad model, option, data or output path.
        Refusal: a step's budget cannot be reached, or what it made is not proven; nothing is written.
    """
    check_writable(source, target)
    if schedule.folder is not None and not schedule.folder.is_dir():
        raise OptionError(f"--keep-steps {schedule.folder}: no such folder; make it first")
    world = join(options.device)
    try:
        with ExitStack() as stack:
            folder = stack.enter_context(temporary_beside(target))
            draft = folder / target.name
            steps = _taken(source, draft, teacher or source, data, options, schedule, world, progress)
            if not world.leads:
                return None
            if schedule.folder is not None:
                for file in sorted(folder.glob("step-*")):
                    shutil.copyfile(file, schedule.folder / file.name)
            publish(draft, target)
    finally:
        world.leave()
    unit = schedule.compression.budget.unit
    return PruningSteps(unit, tuple(replace(step, path=_place(schedule, step.path, draft, target)) for step in steps))


def _taken(
    source: Path,
    draft: Path,
    teacher: Path,
    data: Path,
    options: driver.FinetuneOptions,
    schedule: Schedule,
    world: ProcessGroup,
    progress: Progress,
) -> list[PruningStep]:
    """All steps, the last one's file being the draft, the others beside it."""
    compression = replace(schedule.compression, measure=False, shapes=options.shapes, libraries=options.libraries)
    metric, goal = compression.budget.metric, compression.budget.fraction
    whole = _cost(teacher, options, metric)
    have, current, steps = _cost(source, options, metric) / whole, source, list[PruningStep]()
    for k in range(1, schedule.count + 1):
        wanted = goal ** (k / schedule.count)
        told = _told(progress, f"step {k}/{schedule.count}")
        if wanted < have:
            compact = draft.with_name(f"compressed-{k:02}.onnx")
            asked = replace(compression, budget=Budget(metric.name, min(wanted / have, 1.0)))
            made = pipeline.compress(current, compact, asked, progress=told)
            have, current = have * metric.count(made.after) / max(metric.count(made.before), 1), compact
        trained = draft if k == schedule.count else draft.with_name(f"step-{k:02}.onnx")
        result = driver.finetune(current, trained, teacher, data, _for_step(options, k), told, world)
        assert result is not None  # all processes want the file
        steps.append(PruningStep(wanted, have, trained, result))
        current = trained
    return steps


def _cost(path: Path, options: driver.FinetuneOptions, metric: Metric) -> float:
    dag = inspect(path, options.shapes, libraries=options.libraries)
    return float(metric.count(cost_model(dag)(dag.whole)))


def _for_step(options: driver.FinetuneOptions, number: int) -> driver.FinetuneOptions:
    """The same options with a checkpoint of the step's own."""
    path = options.settings.checkpoint
    if path is None:
        return options
    own = path.with_name(f"{path.name}.step{number:02}")
    return replace(options, settings=replace(options.settings, checkpoint=own))


def _told(progress: Progress, step: str) -> Callable[..., None]:
    """A listener that hears which step a stage belongs to."""

    def tell(stage: str, done: float | None = None) -> None:
        progress(f"{step}, {stage}", done)

    return tell


def _place(schedule: Schedule, path: Path | None, draft: Path, target: Path) -> Path | None:
    """Where a step's file is in the end."""
    if path == draft:
        return target
    return None if schedule.folder is None or path is None else schedule.folder / path.name

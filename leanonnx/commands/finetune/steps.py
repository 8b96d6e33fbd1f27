"""Compress and train in turns: the schedule of the LEAN paper (Schoonhoven et al. 2022, arXiv 2011.06923).

After step i of N the cost is F^(i/N) of the original's, so each step removes the same share of the rest.
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
from leanonnx.commands.compress.pipeline import load_dag
from leanonnx.commands.finetune import driver
from leanonnx.commands.finetune.options import FinetuneOptions
from leanonnx.commands.finetune.process_group import ProcessGroup, join_processes
from leanonnx.data.splits import split_means
from leanonnx.errors import OptionError
from leanonnx.graph.model import load
from leanonnx.runtime.observation import observe
from leanonnx.selection.metrics import Budget, Metric
from leanonnx.spelling import option
from leanonnx.system.clock import Progress, ignore_progress, with_item
from leanonnx.system.outputs import check_no_overwrites, check_writable, publish, temporary_folder_beside


@dataclass(frozen=True)
class PruningSchedule:
    """``count`` steps to ``compression.budget`` (of the original); ``folder``: where the steps' files are kept."""

    count: int
    compression: CompressOptions
    folder: Path | None = None


@dataclass(frozen=True, kw_only=True)
class PruningStep:
    """One step: wanted and reached share of the original's cost, its file if it is kept, its training."""

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
    options: FinetuneOptions,
    schedule: PruningSchedule,
    progress: Progress = ignore_progress,
) -> PruningSteps | None:
    """Compress a model step by step and train it after each step; None if another process writes it.

    Args:
        source: the model to compress, usually the original itself.
        target: path of the last step's model.
        teacher: the original, to whose cost the shares refer; by default ``source``.
        data: inputs, with labels for ``supervised``.
        options: training options; ``settings.epochs`` epochs follow each step, each with a checkpoint of its own.
        schedule: budget and number of steps.
        progress: called on each step, stage and epoch.

    Raises:
        UserError: bad model, option, data or output path.
        Refusal: a step's budget cannot be reached, or its model is not proven; nothing is written.
    """
    check_writable(source, target)
    check_no_overwrites((source,), target, given=options.signal.files)
    if schedule.folder is not None and not schedule.folder.is_dir():
        raise OptionError(f"{option('keep_steps', str(schedule.folder))}: no such folder; make it first")
    group = join_processes(options.device)
    try:
        with ExitStack() as stack:
            folder = stack.enter_context(temporary_folder_beside(target))
            draft = folder / target.name
            steps = _run_steps(source, draft, teacher or source, data, options, schedule, group, progress)
            if not group.is_leader:
                return None
            if schedule.folder is not None:
                for file in sorted(folder.glob("step-*")):
                    shutil.copyfile(file, schedule.folder / file.name)
            publish(draft, target)
    finally:
        group.leave()
    unit = schedule.compression.budget.unit
    return PruningSteps(
        unit, tuple(replace(step, path=_final_path(schedule, step.path, draft, target)) for step in steps)
    )


def _run_steps(
    source: Path,
    draft: Path,
    teacher: Path,
    data: Path,
    options: FinetuneOptions,
    schedule: PruningSchedule,
    group: ProcessGroup,
    progress: Progress,
) -> list[PruningStep]:
    """Run all steps; the last one writes the draft, the others write files beside it."""
    compression = replace(schedule.compression, measure=False, shapes=options.shapes, libraries=options.libraries)
    if options.strategy == "noise2inverse":
        model = load(source, options.libraries)
        compression = replace(compression, calib=split_means(data, model, observe(model, options.shapes).shapes))
    metric, goal = compression.budget.metric, compression.budget.fraction
    original_cost = _cost(teacher, options, metric)
    share, current, steps = _cost(source, options, metric) / original_cost, source, list[PruningStep]()
    for k in range(1, schedule.count + 1):
        wanted = goal ** (k / schedule.count)
        step_progress = _step_progress(progress, f"step {k}/{schedule.count}")
        if wanted < share:
            compact = draft.with_name(f"compressed-{k:02}.onnx")
            step_options = replace(compression, budget=Budget(metric.name, min(wanted / share, 1.0)))
            compressed = pipeline.compress_file(current, compact, step_options, progress=step_progress)
            share *= metric.count(compressed.after) / max(metric.count(compressed.before), 1)
            current = compact
        trained = draft if k == schedule.count else draft.with_name(f"step-{k:02}.onnx")
        result = driver.run_finetune(current, trained, teacher, data, _for_step(options, k), step_progress, group)
        assert result is not None  # every process of the group gets a result
        steps.append(PruningStep(fraction=wanted, reached=share, path=trained, result=result))
        current = trained
    return steps


def _cost(path: Path, options: FinetuneOptions, metric: Metric) -> float:
    dag = load_dag(path, options.shapes, libraries=options.libraries)
    return float(metric.count(cost_model(dag)(dag.all_alive)))


def _for_step(options: FinetuneOptions, number: int) -> FinetuneOptions:
    """The options with a checkpoint path of the step's own."""
    path = options.settings.checkpoint
    if path is None:
        return options
    own = path.with_name(f"{path.name}.step{number:02}")
    return replace(options, settings=replace(options.settings, checkpoint=own))


def _step_progress(progress: Progress, step: str) -> Callable[..., None]:
    """A progress callback that prefixes each stage with its step."""

    whole = with_item(progress)

    def report(stage: str, done: float | None = None, item: str = "") -> None:
        whole(f"{step}, {stage}", done, item)

    return report


def _final_path(schedule: PruningSchedule, path: Path | None, draft: Path, target: Path) -> Path | None:
    """Final path of a step's file; None if it is not kept."""
    if path == draft:
        return target
    return None if schedule.folder is None or path is None else schedule.folder / path.name

"""One point of a sweep: a compression that is not measured, in a process of its own."""

from __future__ import annotations

import filecmp
import gc
import json
import pickle
import tempfile
import time
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from leanonnx.commands.compress import pipeline
from leanonnx.commands.compress.options import CompressOptions
from leanonnx.commands.compress.report import compression_report
from leanonnx.commands.sweep.report import RANDOM_INPUTS
from leanonnx.commands.sweep.rows import CandidateRow, OutcomeRow, SourcedFidelity
from leanonnx.data.samples import made_data
from leanonnx.errors import BUG, NO_MEMORY, USER_ERROR, DataError, LeanOnnxError
from leanonnx.evaluation.deviation import Fidelity, compare
from leanonnx.evaluation.slices import channel_axes
from leanonnx.evaluation.tally import Deviation
from leanonnx.inputs.synthetic import smooth_inputs
from leanonnx.reporting.builders import fidelity_row
from leanonnx.reporting.encoding import from_json, to_json
from leanonnx.rules.table import DEFAULT_RULES
from leanonnx.rules.user import read_rules
from leanonnx.runtime.sessions import RunFailed, limited
from leanonnx.system import processes

ENTRY = "leanonnx.commands.sweep.worker:answer"
TASK, ANSWER, MADE = "task.pickle", "answer.json", "made"
DRAWS = 16
"""Random inputs on which the deviation is told where there are no data."""
TICK = 0.02
"""Seconds between looks at the processes that run."""


@dataclass(frozen=True)
class Task:
    """A compression to be made.

    ``name`` is the file name of what comes of it, ``external`` where weights of the source lie, ``rules`` a file of the
    user's.
    """

    source: Path
    name: str
    options: CompressOptions
    external: tuple[Path, ...] = ()
    rules: Path | None = None


def calibration(options: CompressOptions) -> Path | None:
    """The calibration data of a sweep, which processes elsewhere read too: a file or a folder, nothing in memory."""
    if options.calib is None or isinstance(options.calib, Path):
        return options.calib
    raise TypeError("a sweep takes calibration data from files only")


Answers = Generator[tuple[int, OutcomeRow], None, None]
"""The index of each task when it is done, with its outcome."""
Make = Callable[[Sequence[Task], Path], Answers]
"""Carries out tasks; see ``made_here``."""


def made(task: Task, folder: Path) -> OutcomeRow:
    """Compress into a folder; what came of it.

    ``code`` and ``message`` are those of ``leanonnx compress``: 0 and nothing, or why there is no model.
    """
    began, target = time.time(), folder / task.name
    try:
        rules = DEFAULT_RULES if task.rules is None else read_rules(task.rules)
        result = pipeline.compress(task.source, target, task.options, None, rules)
        outcome = OutcomeRow(0, "", _candidate(task, target, result))
    except LeanOnnxError as error:
        outcome = OutcomeRow(error.code, str(error))
    except MemoryError:
        outcome = OutcomeRow(USER_ERROR, NO_MEMORY)
    ended = time.time()
    return replace(outcome, seconds=round(ended - began, 3), made=(began, ended))


def _candidate(task: Task, target: Path, result: pipeline.CompressResult) -> CandidateRow:
    """The candidate that was written to ``target``."""
    report = compression_report(result)
    warnings = list(report.warnings)
    deviation = _deviation(task, target, result, warnings)
    return CandidateRow(report.costs, report.proof, report.latency, tuple(warnings), report.hints, deviation)


def _deviation(
    task: Task, target: Path, result: pipeline.CompressResult, warnings: list[str]
) -> SourcedFidelity | None:
    """How far a candidate is from the original, and ``on`` what inputs; None, and a warning, if that cannot be told."""
    found = result.recovery
    if found is not None:
        source = "held-out samples" if found.held_out else "calibration samples"
        return SourcedFidelity(source, fidelity_row(found.final))
    model = result.dag.model
    if filecmp.cmp(task.source, target, shallow=False):
        same = tuple(Deviation(value.name, 0.0) for value in model.proto.graph.output)
        return SourcedFidelity("nothing: it is the original", fidelity_row(Fidelity(0, same)))
    dag, name = result.dag, RANDOM_INPUTS
    data = made_data(name, model, dag.shapes, smooth_inputs(model, dag.shapes, task.options.seed, DRAWS))
    try:
        (told,) = compare(model, model.path, [target], data, replaced=dag.observation.replaced, axes=channel_axes(dag))
    except (RunFailed, DataError) as error:
        warnings.append(f"the deviation could not be told: {error}")
        return None
    return SourcedFidelity(name, fidelity_row(told))


def made_here(tasks: Sequence[Task], work: Path, jobs: int = 1, threads: int = 0) -> Answers:
    """Carry out tasks in so many processes at once, each task in one of its own.

    Files of task ``k`` lie in ``work``/k/made.  A process that dies takes no other with it: its code is that of a bug.

    Args:
        tasks: what to make.
        work: a folder for files on the way.
        jobs: processes at once.
        threads: of linear algebra and onnxruntime, in each process; 0 is as many as there are cores.
    """
    waiting = list(enumerate(tasks))[::-1]
    running: dict[int, processes.Process] = {}
    try:
        while waiting or running:
            while waiting and len(running) < jobs:
                index, task = waiting.pop()
                running[index] = _started(task, work / str(index), threads)
            for index in [index for index, process in running.items() if process.poll() is not None]:
                processes.stop(running[index])
                yield index, _answered(running.pop(index), work / str(index))
            time.sleep(TICK)
    finally:
        for process in running.values():
            processes.stop(process)


def _started(task: Task, folder: Path, threads: int) -> processes.Process:
    (folder / MADE).mkdir(parents=True)
    (folder / TASK).write_bytes(pickle.dumps((task, threads)))
    return processes.start(ENTRY, folder, threads)


def _answered(process: processes.Process, folder: Path) -> OutcomeRow:
    """What a process that has ended found."""
    if process.returncode == 0:
        return from_json(OutcomeRow, json.loads((folder / ANSWER).read_text()))
    return OutcomeRow(BUG, f"the process that compresses {processes.ending(process, folder)}")


def answer(folder: Path) -> None:
    """Carry out the task in a folder (the fresh process's part).

    Temporary files go there too: the process that asks removes them, even if it kills this one.
    """
    tempfile.tempdir = str(folder)
    gc.disable()  # as for any run of the command line: it makes no garbage worth looking for
    task, threads = pickle.loads((folder / TASK).read_bytes())
    with limited(threads):
        outcome = made(task, folder / MADE)
    (folder / ANSWER).write_text(json.dumps(to_json(outcome)))

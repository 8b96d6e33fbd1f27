"""Make one point of a sweep: a compression without measurement, in a process of its own."""

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
from leanonnx.commands.compress.judging import RANDOM_INPUTS, compare_on_random_inputs, inputs_name
from leanonnx.commands.compress.options import CompressOptions
from leanonnx.commands.compress.report import compression_report
from leanonnx.commands.sweep.rows import CandidateRow, OutcomeRow, SourcedFidelity
from leanonnx.errors import BUG, NO_MEMORY, USER_ERROR, DataError, LeanOnnxError
from leanonnx.evaluation.deviation import Fidelity
from leanonnx.evaluation.tally import Deviation
from leanonnx.reporting.builders import fidelity_row
from leanonnx.reporting.encoding import from_json, to_json
from leanonnx.rules.table import DEFAULT_RULES
from leanonnx.rules.user import read_rules
from leanonnx.runtime.sessions import RunFailed, claim_process, thread_limit
from leanonnx.spelling import Spelling, spelled_for
from leanonnx.system import processes

WORKER_ENTRY = "leanonnx.commands.sweep.worker:run_task"
TASK, ANSWER, MADE = "task.pickle", "answer.json", "made"
POLL_SECONDS = 0.02
"""Interval between checks of the running processes."""


@dataclass(frozen=True, kw_only=True)
class Task:
    """A compression to make.

    ``name``: file name of the result; ``external``: files of the source's external weights; ``rules``: file of user
    rules; ``caller``: reader of its messages.
    """

    source: Path
    name: str
    options: CompressOptions
    external: tuple[Path, ...] = ()
    rules: Path | None = None
    caller: Spelling = "python"


def calibration_path(options: CompressOptions) -> Path | None:
    """Path of a sweep's calibration data, which other processes read: a file or a folder."""
    if options.calib is None or isinstance(options.calib, Path):
        return options.calib
    raise TypeError("a sweep takes calibration data from files only")


Answers = Generator[tuple[int, OutcomeRow], None, None]
"""Index of each completed task, with its outcome."""
Make = Callable[[Sequence[Task], Path], Answers]
"""Carries out tasks; see ``make_locally``."""


def make_candidate(task: Task, folder: Path) -> OutcomeRow:
    """Compress a model into a folder and return the outcome.

    ``code`` and ``message`` are those of ``leanonnx compress``: 0 and empty, or why there is no model.
    """
    began, target = time.time(), folder / task.name
    try:
        with spelled_for(task.caller):
            rules = DEFAULT_RULES if task.rules is None else read_rules(task.rules)
            result = pipeline.compress_file(task.source, target, task.options, None, rules)
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
    return CandidateRow(
        headline=report.headline,
        costs=report.costs,
        proof=report.proof,
        latency=report.latency,
        warnings=tuple(warnings),
        hints=report.hints,
        deviation=deviation,
        judgement=report.judgement,
        tolerance=report.tolerance,
    )


def _deviation(
    task: Task, target: Path, result: pipeline.CompressResult, warnings: list[str]
) -> SourcedFidelity | None:
    """Deviation of a candidate from the original, with its inputs in ``on``; None and a warning if it cannot run."""
    if result.deviation is not None:
        on = inputs_name(result.recovery, result.quantisation)
        return SourcedFidelity(on, fidelity_row(result.deviation))
    model = result.dag.model
    if filecmp.cmp(task.source, target, shallow=False):
        same = tuple(Deviation(value.name, 0.0) for value in model.proto.graph.output)
        return SourcedFidelity("nothing: it is the original", fidelity_row(Fidelity(samples=0, outputs=same)))
    try:
        deviation = compare_on_random_inputs(result.dag, target, task.options.seed)
    except (RunFailed, DataError) as error:
        warnings.append(f"the deviation could not be measured: {error}")
        return None
    return SourcedFidelity(RANDOM_INPUTS, fidelity_row(deviation))


def make_locally(tasks: Sequence[Task], work: Path, jobs: int = 1, threads: int = 0) -> Answers:
    """Carry out tasks on this machine, each in a process of its own.

    Files of task ``k`` are in ``work``/k/made.  A process that dies affects no other; its row has the code of a bug.

    Args:
        tasks: the compressions to make.
        work: a folder for temporary files.
        jobs: number of processes at once.
        threads: threads of linear algebra and onnxruntime in each process; 0 for as many as there are cores.
    """
    waiting = list(enumerate(tasks))[::-1]
    running: dict[int, processes.Process] = {}
    try:
        while waiting or running:
            while waiting and len(running) < jobs:
                index, task = waiting.pop()
                running[index] = _start(task, work / str(index), threads)
            for index in [index for index, process in running.items() if process.poll() is not None]:
                processes.stop_process(running[index])
                yield index, _outcome(running.pop(index), work / str(index))
            time.sleep(POLL_SECONDS)
    finally:
        for process in running.values():
            processes.stop_process(process)


def _start(task: Task, folder: Path, threads: int) -> processes.Process:
    (folder / MADE).mkdir(parents=True)
    (folder / TASK).write_bytes(pickle.dumps((task, threads)))
    return processes.start_process(WORKER_ENTRY, folder, threads)


def _outcome(process: processes.Process, folder: Path) -> OutcomeRow:
    """The outcome of a process that has ended."""
    if process.returncode == 0:
        return from_json(OutcomeRow, json.loads((folder / ANSWER).read_text()))
    return OutcomeRow(BUG, f"the process that compresses {processes.describe_exit(process, folder)}")


def run_task(folder: Path) -> None:
    """Carry out the task in a folder; runs in the fresh process.

    Temporary files are in the folder too: the parent process removes them, even if it kills this one.
    """
    tempfile.tempdir = str(folder)
    claim_process()
    gc.disable()  # as in the command line: there is little garbage to collect
    task, threads = pickle.loads((folder / TASK).read_bytes())
    with thread_limit(threads):
        outcome = make_candidate(task, folder / MADE)
    (folder / ANSWER).write_text(json.dumps(to_json(outcome)))

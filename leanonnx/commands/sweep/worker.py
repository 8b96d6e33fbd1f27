"""One point of a sweep: a compression that is not measured, in a process of its own."""

from __future__ import annotations

import filecmp
import gc
import json
import pickle
import tempfile
import time
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from pathlib import Path

from leanonnx.commands.compress import pipeline
from leanonnx.commands.compress.options import CompressOptions
from leanonnx.data.samples import made_data
from leanonnx.errors import BUG, NO_MEMORY, USER_ERROR, DataError, LeanOnnxError
from leanonnx.evaluation.deviation import Fidelity, compare
from leanonnx.evaluation.slices import channel_axes
from leanonnx.evaluation.tally import Deviation
from leanonnx.inputs.synthetic import smooth_inputs
from leanonnx.reporting.report import Row, fidelity, summary
from leanonnx.rules.table import DEFAULT_RULES
from leanonnx.rules.user import read_rules
from leanonnx.runtime.sessions import RunFailed, limited
from leanonnx.selection.metrics import COUNTED_METRICS
from leanonnx.system import processes

ENTRY = "leanonnx.commands.sweep.worker:answer"
TASK, ANSWER, MADE = "task.pickle", "answer.json", "made"
DRAWS = 16
"""Random inputs on which the deviation is told where there are no data."""
TOLD = (*(metric.name for metric in COUNTED_METRICS), "proof", "latency", "warnings", "hints")
"""What of a compression's report is told of a point."""
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


Answers = Generator[tuple[int, Row], None, None]
"""The index of each task when it is done, with ``made``'s row."""
Make = Callable[[Sequence[Task], Path], Answers]
"""Carries out tasks; see ``made_here``."""


def made(task: Task, folder: Path) -> Row:
    """Compress into a folder; what came of it.

    ``code`` and ``message`` are those of ``leanonnx compress``: 0 and nothing, or why there is no model.
    """
    began, target = time.time(), folder / task.name
    row: Row = {"code": 0, "message": ""}
    try:
        rules = DEFAULT_RULES if task.rules is None else read_rules(task.rules)
        result = pipeline.compress(task.source, target, task.options, None, rules)
        told = summary(result)
        row |= {key: told[key] for key in TOLD}
        row["deviation"] = _deviation(task, target, result, row["warnings"])
    except LeanOnnxError as error:
        row = {"code": error.code, "message": str(error)}
    except MemoryError:
        row = {"code": USER_ERROR, "message": NO_MEMORY}
    ended = time.time()
    return {**row, "seconds": round(ended - began, 3), "made": [began, ended]}


def _deviation(task: Task, target: Path, result: pipeline.CompressResult, warnings: list[str]) -> Row | None:
    """How far a candidate is from the original, and ``on`` what inputs; None, and a warning, if that cannot be told."""
    found = result.recovery
    if found is not None:
        return {"on": "held-out samples" if found.held_out else "calibration samples", **fidelity(found.final)}
    model = result.dag.model
    if filecmp.cmp(task.source, target, shallow=False):
        same = tuple(Deviation(value.name, 0.0) for value in model.proto.graph.output)
        return {"on": "nothing: it is the original", **fidelity(Fidelity(0, same))}
    dag, name = result.dag, "random inputs"
    data = made_data(name, model, dag.shapes, smooth_inputs(model, dag.shapes, task.options.seed, DRAWS))
    try:
        (told,) = compare(model, model.path, [target], data, replaced=dag.observation.replaced, axes=channel_axes(dag))
    except (RunFailed, DataError) as error:
        warnings.append(f"the deviation could not be told: {error}")
        return None
    return {"on": name, **fidelity(told)}


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


def _answered(process: processes.Process, folder: Path) -> Row:
    """What a process that has ended found."""
    if process.returncode == 0:
        row: Row = json.loads((folder / ANSWER).read_text())
        return row
    return {"code": BUG, "message": f"the process that compresses {processes.ending(process, folder)}"}


def answer(folder: Path) -> None:
    """Carry out the task in a folder (the fresh process's part).

    Temporary files go there too: the process that asks removes them, even if it kills this one.
    """
    tempfile.tempdir = str(folder)
    gc.disable()  # as for any run of the command line: it makes no garbage worth looking for
    task, threads = pickle.loads((folder / TASK).read_bytes())
    with limited(threads):
        row = made(task, folder / MADE)
    (folder / ANSWER).write_text(json.dumps(row))

"""Run a sweep: make the missing candidates, measure them one by one, write the report.

On one machine, no two measurements run at once, and none runs during a compression of the same sweep: candidates are
first made, several at once, without measuring; then each is measured alone.  Points of a latency budget, whose search
measures, are made one by one.  A machine-wide lock makes other sweeps wait while one measures.
"""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import closing, contextmanager, nullcontext
from dataclasses import replace
from itertools import groupby
from pathlib import Path

from filelock import FileLock

from leanonnx.commands.sweep import report
from leanonnx.commands.sweep.journal import JOURNAL, Journal, PointKey, claimed
from leanonnx.commands.sweep.request import Subject, SweepRequest, header, subjects
from leanonnx.commands.sweep.worker import MADE, Make
from leanonnx.errors import USER_ERROR, UserError
from leanonnx.graph.model import Model, load
from leanonnx.reporting.report import Row, latency
from leanonnx.runtime.observation import observe
from leanonnx.runtime.providers import prepare
from leanonnx.runtime.sessions import Feed, RunFailed
from leanonnx.runtime.subprocess_timing import measured
from leanonnx.selection.search import SECONDS
from leanonnx.system.clock import Progress, quiet
from leanonnx.system.outputs import data_file, write_file

MODELS_FOLDER, WORK_FOLDER = "models", ".making"
MAKE, MEASURE, DONE = "make", "measure", "done"
"""Next step of a point."""
CSV_NAME, JSON_NAME = "sweep.csv", "sweep.json"
MACHINE_LOCK = "leanonnx-measuring.lock"
LOCK_MODE = 0o666
"""Permissions of the lock file, which all users of the machine share."""
Draw = Callable[[Row, Path], dict[str, str]]
"""Draws the curves of a report into a folder; returns the files by kind."""


def sweep(request: SweepRequest, make: Make, draw: Draw | None = None, progress: Progress = quiet) -> Row:
    """Write the trade-off curves of models to a folder; points that it contains already are kept.

    Args:
        request: what to sweep.
        make: makes candidates, several at once, but one at a time for a latency budget.
        draw: draws the curves; with None, the report says that none are drawn.
        progress: called with the current stage and its progress.

    Raises:
        UserError: wrong options, no point can be made with them, or the folder is in use or holds another sweep.
    """
    models = subjects(request)
    if request.options.measures and request.options.setting.on_device:
        prepare(request.options.setting)
    with claimed(request.folder):
        shutil.rmtree(request.folder / WORK_FOLDER, ignore_errors=True)
        if request.restart:
            _remove_sweep(request.folder)
        state = _Sweep(request, models, progress)
        try:
            state.make_all(make)
        finally:
            shutil.rmtree(request.folder / WORK_FOLDER, ignore_errors=True)
        state.measure_all()
        return state.write_report(draw)


class _Sweep:
    """State of a sweep in a folder; ``failed``: points that another run tries again."""

    def __init__(self, request: SweepRequest, models: list[Subject], progress: Progress) -> None:
        self.request, self.progress = request, progress
        self.models = {subject.name: subject for subject in models}
        self.keys = [(subject.name, asked) for subject in models for asked in request.fractions]
        self.journal = Journal(request.folder)
        self.journal.begin(header(request, models))
        errors = {subject.name: subject.error for subject in models if subject.error}
        self.failed: dict[PointKey, Row] = {
            key: {"code": errors[key[0]].code, "message": str(errors[key[0]])} for key in self.keys if key[0] in errors
        }

    def candidate(self, key: PointKey) -> Path:
        """Path of the candidate of a point."""
        name, asked = key
        return self.request.folder / MODELS_FOLDER / self.models[name].candidate(self.request, asked)

    def pending(self, step: str) -> list[PointKey]:
        """Points whose next step is the given one."""
        return [key for key in self.keys if key not in self.failed and self._next_step(key) == step]

    def _next_step(self, key: PointKey) -> str:
        row, there = self.journal.points.get(key), self.candidate(key).is_file()
        if row is None or (row["code"] == 0 and not there and (self.request.save_models or not row["done"])):
            return MAKE
        return DONE if row["done"] else MEASURE

    def make_all(self, make: Make) -> None:
        """Make the missing candidates.

        Raises:
            UserError: no point can be made with these options and models.
        """
        keys = self.pending(MAKE)
        measured_later = self.request.options.measures and not self.request.options.budget.metric.measured
        with closing(self._make(keys, make)) as rows:
            for number, (key, row) in enumerate(rows, 1):
                self.progress(f"make, {number} of {len(keys)}", number / len(keys))
                if row["code"] >= USER_ERROR:
                    self.failed[key] = row
                else:
                    self._note(key, row, done=not (row["code"] == 0 and measured_later))
        if len(self.failed) == len(self.keys) and all(row["code"] == USER_ERROR for row in self.failed.values()):
            raise UserError(next(iter(self.failed.values()))["message"])

    def _make(self, keys: list[PointKey], make: Make) -> Generator[tuple[PointKey, Row], None, None]:
        """Make candidates and move them into place, one at a time for a latency budget."""
        work, alone = self.request.folder / WORK_FOLDER, self.request.options.budget.metric.measured
        self.progress(f"make, 0 of {len(keys)}", 0.0)
        for batch in [[key] for key in keys] if alone else [keys]:
            tasks = [self.models[name].task(self.request, asked) for name, asked in batch]
            with machine_alone() if alone else nullcontext(), closing(make(tasks, work)) as rows:
                for index, row in rows:
                    if row["code"] == 0:
                        _move_candidate(work / str(index) / MADE, self.candidate(batch[index]))
                        row |= {"measured": row["made"]} if alone else {}
                    shutil.rmtree(work / str(index), ignore_errors=True)
                    yield batch[index], row

    def measure_all(self) -> None:
        """Measure the candidates one after the other, each against its original."""
        keys = self.pending(MEASURE)
        for name, batch in groupby(keys, key=lambda key: key[0]):
            model, feed = self._open_original(name)
            for key in batch:
                self.progress(f"measure, {keys.index(key)} of {len(keys)}", keys.index(key) / len(keys))
                self._note(key, {**self.journal.points[key], **self._measure(model, feed, key)}, done=True)
        if not self.request.save_models:
            shutil.rmtree(self.request.folder / MODELS_FOLDER, ignore_errors=True)

    def _open_original(self, name: str) -> tuple[Model, Feed]:
        """A model and the input for its measurement."""
        options = self.request.options
        model = load(self.models[name].path, options.libraries, options.freeze)
        return model, observe(model, options.shapes).feeds

    def _measure(self, model: Model, feed: Feed, key: PointKey) -> Row:
        """Measure a candidate against its original; returns the latency row and the time span."""
        options, warnings = self.request.options, self.journal.points[key]["warnings"]
        setting = replace(options.setting, libraries=model.libraries)
        with machine_alone():
            began = time.time()
            try:
                comparison = measured(model.path, self.candidate(key), feed, setting, SECONDS, options.seed)
            except RunFailed as error:
                return {"warnings": [*warnings, f"latency could not be measured: {error}"]}
            return {"latency": latency(comparison, setting.resolved), "measured": [began, time.time()]}

    def _note(self, key: PointKey, row: Row, done: bool) -> None:
        name, asked = key
        self.journal.note({**row, "model": name, "asked": asked, "done": done})

    def write_report(self, draw: Draw | None) -> Row:
        """Write the report of all points to its files and return it."""
        request = self.request
        curves = []
        for name, subject in self.models.items():
            points = [self._point((name, asked)) for asked in request.fractions]
            curves.append(report.curve(str(subject.path), name, subject.sha256, request.unit, points))
        about = {key: value for key, value in self.journal.header.items() if key != "models"}
        row = report.summary(request.unit, request.options.measures, curves, about)
        row["files"] = {"csv": str(request.folder / CSV_NAME), "json": str(request.folder / JSON_NAME)}
        write_file(request.folder / CSV_NAME, report.as_csv(row).encode())
        if draw is None:
            row["warnings"].append(report.NO_PLOT)
        else:
            row["files"] |= draw(row, request.folder)
        write_file(request.folder / JSON_NAME, report.as_json(row).encode())
        return row

    def _point(self, key: PointKey) -> Row:
        row = self.failed.get(key) or self.journal.points[key]
        there = self.candidate(key) if row["code"] == 0 and self.request.save_models else None
        return report.point(key[1], {**row, "file": there and str(there.relative_to(self.request.folder))})


@contextmanager
def machine_alone() -> Iterator[None]:
    """Hold the machine-wide lock of measurements, which one process of any user has at a time."""
    with FileLock(Path(tempfile.gettempdir()) / MACHINE_LOCK, mode=LOCK_MODE):
        yield


def _move_candidate(made: Path, candidate: Path) -> None:
    """Move the files of a candidate into place, the model last."""
    candidate.parent.mkdir(exist_ok=True)
    for file in (data_file(made / candidate.name), made / candidate.name):
        if file.exists():
            file.replace(candidate.with_name(file.name))


def _remove_sweep(folder: Path) -> None:
    """Remove the files of an earlier sweep, its journal last."""
    shutil.rmtree(folder / MODELS_FOLDER, ignore_errors=True)
    for path in (*folder.glob("sweep.*"), folder / JOURNAL):
        path.unlink(missing_ok=True)

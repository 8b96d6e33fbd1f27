"""Run a sweep: make the missing candidates, measure them one by one, write the report.

On one machine, no two measurements run at once, and none runs during a compression of the same sweep: candidates are
first made, several at once, without measuring; then each is measured alone.  Points of a latency budget, whose search
measures, are made one by one.  A machine-wide lock makes other sweeps wait while one measures.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import closing, contextmanager, nullcontext
from dataclasses import replace
from itertools import groupby
from pathlib import Path

from filelock import FileLock

from leanonnx.commands.sweep.files import csv_text, json_text
from leanonnx.commands.sweep.journal import JOURNAL, Journal, claim_folder
from leanonnx.commands.sweep.report import curve_row, point_row, sweep_report
from leanonnx.commands.sweep.request import Subject, SweepRequest, header, subjects
from leanonnx.commands.sweep.rows import JournalRow, OutcomeRow, PointKey, PointRow, SweepReport
from leanonnx.commands.sweep.worker import MADE, Make
from leanonnx.errors import USER_ERROR, UserError
from leanonnx.graph.model import Model, load
from leanonnx.reporting.builders import latency_row
from leanonnx.runtime.observation import observe
from leanonnx.runtime.providers import prepare_provider
from leanonnx.runtime.sessions import Feed, RunFailed
from leanonnx.runtime.subprocess_timing import compare_in_subprocess
from leanonnx.selection.search import SECONDS
from leanonnx.system.clock import Progress, ignore_progress, with_item
from leanonnx.system.outputs import data_file, remove_folder, write_file

MODELS_FOLDER, WORK_FOLDER = "models", ".making"
MAKE, MEASURE, DONE = "make", "measure", "done"
"""Next step of a point."""
CSV_NAME, JSON_NAME = "sweep.csv", "sweep.json"
NO_PLOT = "no plot was drawn: matplotlib is not installed; install it with pip install matplotlib"
MACHINE_LOCK = "leanonnx-measuring.lock"
LOCK_MODE = 0o666
"""Permissions of the lock file, which all users of the machine share."""
Draw = Callable[[SweepReport, Path], dict[str, str]]
"""Draws the curves of a report into a folder; returns the files by kind."""


def run_sweep(
    request: SweepRequest, make: Make, draw: Draw | None = None, progress: Progress = ignore_progress
) -> SweepReport:
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
    if request.options.measures and request.options.setting.uses_gpu:
        prepare_provider(request.options.setting)
    with claim_folder(request.folder):
        remove_folder(request.folder / WORK_FOLDER)
        if request.restart:
            _remove_sweep(request.folder)
        state = _Sweep(request, models, progress)
        try:
            state.make_all(make)
        finally:
            remove_folder(request.folder / WORK_FOLDER)
        state.measure_all()
        return state.write_report(draw)


class _Sweep:
    """State of a sweep in a folder; ``failed``: points that another run tries again."""

    def __init__(self, request: SweepRequest, models: list[Subject], progress: Progress) -> None:
        self.request, self.progress = request, with_item(progress)
        self.models = {subject.name: subject for subject in models}
        self.keys = [(subject.name, asked) for subject in models for asked in request.fractions]
        self.journal = Journal(request.folder)
        head = header(request, models)
        self.journal.begin(head)
        self.conditions = head.conditions
        errors = {subject.name: subject.error for subject in models if subject.error}
        self.failed = {
            key: OutcomeRow(errors[key[0]].code, str(errors[key[0]])) for key in self.keys if key[0] in errors
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
        if row is None or (row.outcome.code == 0 and not there and (self.request.save_models or not row.done)):
            return MAKE
        return DONE if row.done else MEASURE

    def make_all(self, make: Make) -> None:
        """Make the missing candidates.

        Raises:
            UserError: no point can be made with these options and models.
        """
        keys = self.pending(MAKE)
        measured_later = self.request.options.measures and not self.request.options.budget.metric.measured
        with closing(self._make(keys, make)) as rows:
            for number, (key, outcome) in enumerate(rows, 1):
                self.progress("make", number / len(keys), f"{number} of {len(keys)}")
                if outcome.code >= USER_ERROR:
                    self.failed[key] = outcome
                else:
                    self._note(key, outcome, done=not (outcome.code == 0 and measured_later))
        if len(self.failed) == len(self.keys) and all(one.code == USER_ERROR for one in self.failed.values()):
            raise UserError(next(iter(self.failed.values())).message)

    def _make(self, keys: list[PointKey], make: Make) -> Generator[tuple[PointKey, OutcomeRow], None, None]:
        """Make candidates and move them into place, one at a time for a latency budget."""
        work, alone = self.request.folder / WORK_FOLDER, self.request.options.budget.metric.measured
        self.progress("make", 0.0, f"0 of {len(keys)}")
        for batch in [[key] for key in keys] if alone else [keys]:
            tasks = [self.models[name].task(self.request, asked) for name, asked in batch]
            with machine_alone() if alone else nullcontext(), closing(make(tasks, work)) as rows:
                for index, outcome in rows:
                    if outcome.code == 0:
                        _move_candidate(work / str(index) / MADE, self.candidate(batch[index]))
                        outcome = replace(outcome, measured=outcome.made if alone else None)
                    remove_folder(work / str(index))
                    yield batch[index], outcome

    def measure_all(self) -> None:
        """Measure the candidates one after the other, each against its original."""
        keys = self.pending(MEASURE)
        for name, batch in groupby(keys, key=lambda key: key[0]):
            model, feed = self._open_original(name)
            for key in batch:
                number = keys.index(key)
                self.progress("measure", number / len(keys), f"{number} of {len(keys)}")
                self._note(key, self._measure(model, feed, key), done=True)
        if not self.request.save_models:
            remove_folder(self.request.folder / MODELS_FOLDER)

    def _open_original(self, name: str) -> tuple[Model, Feed]:
        """A model and the input for its measurement."""
        options = self.request.options
        model = load(self.models[name].path, options.libraries, options.freeze)
        return model, observe(model, options.shapes).feeds

    def _measure(self, model: Model, feed: Feed, key: PointKey) -> OutcomeRow:
        """Measure a candidate against its original; returns the outcome with its latency, or with a warning."""
        options, outcome = self.request.options, self.journal.points[key].outcome
        candidate = outcome.candidate
        assert candidate is not None
        setting = replace(options.setting, libraries=model.libraries)
        with machine_alone():
            began = time.time()
            try:
                comparison = compare_in_subprocess(
                    model.path, self.candidate(key), feed, setting, SECONDS, options.seed
                )
            except RunFailed as error:
                warnings = (*candidate.warnings, f"latency could not be measured: {error}")
                return replace(outcome, candidate=replace(candidate, warnings=warnings))
            candidate = replace(candidate, latency=latency_row(comparison, setting.with_thread_count))
            return replace(outcome, candidate=candidate, measured=(began, time.time()))

    def _note(self, key: PointKey, outcome: OutcomeRow, done: bool) -> None:
        self.journal.note(JournalRow(outcome, *key, done))

    def write_report(self, draw: Draw | None) -> SweepReport:
        """Write the report of all points to its files and return it."""
        request = self.request
        curves = []
        for name, subject in self.models.items():
            points = [self._point((name, asked)) for asked in request.fractions]
            minimised = request.options.minimise
            curves.append(curve_row(str(subject.path), name, subject.sha256, request.unit, points, minimised))
        report = sweep_report(request.unit, request.options.measures, curves, self.conditions)
        files = {"csv": str(request.folder / CSV_NAME), "json": str(request.folder / JSON_NAME)}
        write_file(request.folder / CSV_NAME, csv_text(report).encode())
        if draw is None:
            report = replace(report, warnings=(*report.warnings, NO_PLOT))
        else:
            files |= draw(report, request.folder)
        report = replace(report, files=files)
        write_file(request.folder / JSON_NAME, json_text(report).encode())
        return report

    def _point(self, key: PointKey) -> PointRow:
        outcome = self.failed.get(key) or self.journal.points[key].outcome
        there = self.candidate(key) if outcome.code == 0 and self.request.save_models else None
        return point_row(key[1], outcome, None if there is None else str(there.relative_to(self.request.folder)))


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
    remove_folder(folder / MODELS_FOLDER)
    for path in (*folder.glob("sweep.*"), folder / JOURNAL):
        path.unlink(missing_ok=True)

"""A sweep from beginning to end: make what is missing, measure it point by point, tell of all.

The measurements of two candidates never run at once on one machine, and none runs beside a compression of the same
sweep.  Candidates are made first, several at once, without measuring; then each is measured alone.  Points of a latency
budget, where measuring is part of the search, are made one by one.  A lock of the whole machine makes sweeps in other
folders wait while one measures.
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

from leanonnx.commands.sweep.files import csv_text, json_text
from leanonnx.commands.sweep.journal import JOURNAL, Journal, claimed
from leanonnx.commands.sweep.report import curve_row, point_row, sweep_report
from leanonnx.commands.sweep.request import Subject, SweepRequest, header, subjects
from leanonnx.commands.sweep.rows import JournalRow, OutcomeRow, PointKey, PointRow, SweepReport
from leanonnx.commands.sweep.worker import MADE, Make
from leanonnx.errors import USER_ERROR, UserError
from leanonnx.graph.model import Model, load
from leanonnx.reporting.builders import latency_row
from leanonnx.runtime.observation import observe
from leanonnx.runtime.providers import prepare
from leanonnx.runtime.sessions import Feed, RunFailed
from leanonnx.runtime.subprocess_timing import measured
from leanonnx.selection.search import SECONDS
from leanonnx.selection.selector import LATENCY
from leanonnx.system.clock import Progress, quiet
from leanonnx.system.outputs import data_file, write_file

MODELS, MAKING = "models", ".making"
MAKE, MEASURE, DONE = "make", "measure", "done"
"""What is next for a point."""
TABLE, RESULT = "sweep.csv", "sweep.json"
NO_PLOT = "no plot was drawn: matplotlib is not installed; install it with pip install 'leanonnx[sweep]'"
MACHINE_LOCK = "leanonnx-measuring.lock"
EVERYONE = 0o666
Draw = Callable[[SweepReport, Path], dict[str, str]]
"""Draws the curves of a report into a folder; the files, by their kind."""


def sweep(request: SweepRequest, make: Make, draw: Draw | None = None, progress: Progress = quiet) -> SweepReport:
    """The trade-off curves of models, written to a folder; what was done there before is taken over.

    Args:
        request: what to sweep.
        make: makes candidates, several at once; for a latency budget it gets one at a time.
        draw: draws the curves; None leaves them undrawn, which the report says.
        progress: is told how far it is.

    Raises:
        UserError: wrong options, or no point can be made because of them; the folder is in use, or holds another sweep.
    """
    models = subjects(request)
    if request.options.measure and request.options.setting.on_device:
        prepare(request.options.setting)
    with claimed(request.folder):
        shutil.rmtree(request.folder / MAKING, ignore_errors=True)
        if request.restart:
            _forget(request.folder)
        work = _Work(request, models, progress)
        try:
            work.make_all(make)
        finally:
            shutil.rmtree(request.folder / MAKING, ignore_errors=True)
        work.measure_all()
        return work.told(draw)


class _Work:
    """What is to be done in a folder; ``failed`` holds the points that another run would try again."""

    def __init__(self, request: SweepRequest, models: list[Subject], progress: Progress) -> None:
        self.request, self.progress = request, progress
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
        """Where the candidate of a point lies."""
        name, asked = key
        return self.request.folder / MODELS / self.models[name].candidate(self.request, asked)

    def lacking(self, step: str) -> list[PointKey]:
        """The points that have yet to be made, or to be measured."""
        return [key for key in self.keys if key not in self.failed and self._next_step(key) == step]

    def _next_step(self, key: PointKey) -> str:
        row, there = self.journal.points.get(key), self.candidate(key).is_file()
        if row is None or (row.outcome.code == 0 and not there and (self.request.save_models or not row.done)):
            return MAKE
        return DONE if row.done else MEASURE

    def make_all(self, make: Make) -> None:
        """Make what is missing.

        Raises:
            UserError: no point can be made, as options or models are.
        """
        keys = self.lacking(MAKE)
        measured_later = self.request.options.measure and self.request.unit != LATENCY
        with closing(self._made(keys, make)) as rows:
            for number, (key, outcome) in enumerate(rows, 1):
                self.progress(f"make, {number} of {len(keys)}", number / len(keys))
                if outcome.code >= USER_ERROR:
                    self.failed[key] = outcome
                else:
                    self._note(key, outcome, done=not (outcome.code == 0 and measured_later))
        if len(self.failed) == len(self.keys) and all(one.code == USER_ERROR for one in self.failed.values()):
            raise UserError(next(iter(self.failed.values())).message)

    def _made(self, keys: list[PointKey], make: Make) -> Generator[tuple[PointKey, OutcomeRow], None, None]:
        """Make candidates and put them into their place; those of a latency budget one at a time."""
        work, alone = self.request.folder / MAKING, self.request.unit == LATENCY
        self.progress(f"make, 0 of {len(keys)}", 0.0)
        for lot in [[key] for key in keys] if alone else [keys]:
            tasks = [self.models[name].task(self.request, asked) for name, asked in lot]
            with machine_alone() if alone else nullcontext(), closing(make(tasks, work)) as rows:
                for index, outcome in rows:
                    if outcome.code == 0:
                        _put(work / str(index) / MADE, self.candidate(lot[index]))
                        outcome = replace(outcome, measured=outcome.made if alone else None)
                    shutil.rmtree(work / str(index), ignore_errors=True)
                    yield lot[index], outcome

    def measure_all(self) -> None:
        """Measure what has been made, one candidate after the other, each against its original."""
        keys = self.lacking(MEASURE)
        for name, lot in groupby(keys, key=lambda key: key[0]):
            model, feed = self._original(name)
            for key in lot:
                self.progress(f"measure, {keys.index(key)} of {len(keys)}", keys.index(key) / len(keys))
                self._note(key, self._measured(model, feed, key), done=True)
        if not self.request.save_models:
            shutil.rmtree(self.request.folder / MODELS, ignore_errors=True)

    def _original(self, name: str) -> tuple[Model, Feed]:
        """A model, and the input that it is measured on."""
        options = self.request.options
        model = load(self.models[name].path, options.libraries, options.freeze)
        return model, observe(model, options.shapes).feeds

    def _measured(self, model: Model, feed: Feed, key: PointKey) -> OutcomeRow:
        """The outcome of a point with its latency, or with a warning that it could not be measured."""
        options, outcome = self.request.options, self.journal.points[key].outcome
        candidate = outcome.candidate
        assert candidate is not None
        setting = replace(options.setting, libraries=model.libraries)
        with machine_alone():
            began = time.time()
            try:
                found = measured(model.path, self.candidate(key), feed, setting, SECONDS, options.seed)
            except RunFailed as error:
                warnings = (*candidate.warnings, f"latency could not be measured: {error}")
                return replace(outcome, candidate=replace(candidate, warnings=warnings))
            candidate = replace(candidate, latency=latency_row(found, setting.resolved))
            return replace(outcome, candidate=candidate, measured=(began, time.time()))

    def _note(self, key: PointKey, outcome: OutcomeRow, done: bool) -> None:
        self.journal.note(JournalRow(outcome, *key, done))

    def told(self, draw: Draw | None) -> SweepReport:
        """The report of all points, written to its files."""
        request = self.request
        curves = []
        for name, subject in self.models.items():
            points = [self._point((name, asked)) for asked in request.fractions]
            curves.append(curve_row(str(subject.path), name, subject.sha256, request.unit, points))
        report = sweep_report(request.unit, request.options.measure, curves, self.conditions)
        files = {"csv": str(request.folder / TABLE), "json": str(request.folder / RESULT)}
        write_file(request.folder / TABLE, csv_text(report).encode())
        if draw is None:
            report = replace(report, warnings=(*report.warnings, NO_PLOT))
        else:
            files |= draw(report, request.folder)
        report = replace(report, files=files)
        write_file(request.folder / RESULT, json_text(report).encode())
        return report

    def _point(self, key: PointKey) -> PointRow:
        outcome = self.failed.get(key) or self.journal.points[key].outcome
        there = self.candidate(key) if outcome.code == 0 and self.request.save_models else None
        return point_row(key[1], outcome, None if there is None else str(there.relative_to(self.request.folder)))


@contextmanager
def machine_alone() -> Iterator[None]:
    """The right to measure on this machine, which one process has at a time, whoever runs it."""
    with FileLock(Path(tempfile.gettempdir()) / MACHINE_LOCK, mode=EVERYONE):
        yield


def _put(made: Path, candidate: Path) -> None:
    """Rename the files of a candidate into place, the model last."""
    candidate.parent.mkdir(exist_ok=True)
    for file in (data_file(made / candidate.name), made / candidate.name):
        if file.exists():
            file.replace(candidate.with_name(file.name))


def _forget(folder: Path) -> None:
    """Remove what an earlier sweep left, what it had done last."""
    shutil.rmtree(folder / MODELS, ignore_errors=True)
    for path in (*folder.glob("sweep.*"), folder / JOURNAL):
        path.unlink(missing_ok=True)

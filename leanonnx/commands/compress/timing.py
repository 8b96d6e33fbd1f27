"""Time candidates against the original: drafts for the search, and the file that is written."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from leanonnx.commands.compress.candidate import Candidate, CompressJob
from leanonnx.commands.compress.notes import not_faster
from leanonnx.commands.compress.pruning import written_draft
from leanonnx.errors import CouldNotTell, ModelError, NotFaster
from leanonnx.graph.storage import digest
from leanonnx.runtime.profiling import NodeTime
from leanonnx.runtime.sessions import RunFailed
from leanonnx.runtime.subprocess_timing import compare_in_subprocess, profile_in_subprocess
from leanonnx.selection.metrics import Budget
from leanonnx.selection.search import LONG_TIMING_SECONDS, MAX_TIMINGS, SECONDS, Trial, undecided_advice
from leanonnx.selection.selector import Selection
from leanonnx.spelling import option
from leanonnx.system.outputs import data_file

PRICING_PROFILE_SECONDS = 1.0
"""Seconds for which the original is profiled."""


def profile_original(job: CompressJob) -> tuple[NodeTime, ...]:
    """Time of each node of the original, by which predicted times are corrected.

    Empty if nothing is to be measured, if it cannot be profiled, and on a GPU, where a profile shows the start of the
    work only.
    """
    options, model = job.options, job.dag.model
    if not options.measure or options.setting.uses_gpu:
        return ()
    setting = replace(options.setting, libraries=model.libraries)
    with job.clock.stage("measure"):
        try:
            return profile_in_subprocess([model.path], job.dag.observation.feeds, setting, PRICING_PROFILE_SECONDS)[0]
        except RunFailed:
            return ()


def time_draft(original: Candidate, numbers: Iterator[int], selection: Selection, seconds: float) -> Trial:
    """Time a keep mask, pruned and tidied, in files that are removed afterwards.

    Args:
        original: the candidate that the search began with.
        numbers: yields the number of the draft.
        selection: the keep mask.
        seconds: seconds of the measurement.

    Raises:
        ModelError: a latency budget, but the model cannot be timed.
    """
    job = original.job
    if not job.options.measures:
        return Trial(selection, None)
    with written_draft(original, selection) as draft:
        searches = job.options.budget.metric.measured and not draft.is_original
        return _time_file(draft, seconds, next(numbers) / MAX_TIMINGS if searches else None)


def time_candidate(candidate: Candidate) -> Candidate | NotFaster:
    """Time the file as it will be written and refuse one that is not faster; a lossless one only if it is slower.

    The timing of the search is kept if it timed the same file.  If the file does worse than that, or the machine is
    busy, it is timed longer before it is refused.

    Raises:
        ModelError: a latency budget, but the model cannot be timed.
    """
    options, earlier = candidate.job.options, candidate.trial

    def is_refused(trial: Trial) -> bool:
        return trial.slower if options.exact else not trial.faster

    untimed = earlier is not None and earlier.comparison is None and not candidate.is_quantised
    if earlier is not None and (untimed or earlier.sha256 == _sha256(candidate.path)):
        trial = earlier
    else:
        trial = _time_file(candidate, SECONDS)
        worse = earlier is not None and _is_worse(trial, earlier, options.budget)
        if worse or (trial.busy and is_refused(trial)):
            trial = _time_file(candidate, LONG_TIMING_SECONDS)
        trial = replace(trial, instead_of=None if earlier is None else earlier.instead_of)
    if is_refused(trial) and not options.best_effort:
        if trial.busy:
            advice = undecided_advice(options.budget.metric.measured)
            return CouldNotTell(f"{not_faster(trial)}; nothing written; {advice}")
        return NotFaster(
            f"{not_faster(trial)}; nothing written; ask for less of the model, or add "
            f"{option('best_effort', True)} to write it anyway"
        )
    return replace(candidate, trial=trial)


def _is_worse(trial: Trial, earlier: Trial, budget: Budget) -> bool:
    """Return True if a timing contradicts an earlier one by which a model was faster, or within a latency budget."""
    over = budget.metric.measured and earlier.fraction <= budget.fraction < trial.fraction
    return over or (earlier.faster and not trial.faster)


def _time_file(candidate: Candidate, seconds: float, done: float | None = None) -> Trial:
    """Time a candidate; without a comparison if it is the original, should not be timed, or cannot be.

    Raises:
        ModelError: it cannot be timed, but the budget is one of latency.
    """
    job, selection = candidate.job, candidate.removal.selection
    options, model = job.options, job.original.model
    if not options.measures or candidate.is_original:
        return Trial(selection, None)
    setting = replace(options.setting, libraries=model.libraries)
    with job.clock.stage("measure", done):
        try:
            comparison = compare_in_subprocess(
                model.path, candidate.path, job.dag.observation.feeds, setting, seconds, options.seed
            )
        except RunFailed as error:
            if options.budget.metric.measured:
                raise ModelError(
                    f"{model.path}: {option('latency')}: the model cannot be measured: {error}; "
                    f"give a budget of {option('macs')}"
                ) from error
            return Trial(selection, None, failure=str(error))
    return Trial(selection, comparison, _sha256(candidate.path))


def _sha256(path: Path) -> bytes:
    """SHA-256 of a model file, followed by that of its external data."""
    return b"".join(digest(file) for file in (path, data_file(path)) if file.exists())

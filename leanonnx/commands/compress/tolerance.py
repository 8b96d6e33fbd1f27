"""The stage that looks for the least of a model that is within tolerances, and the one that only tells if it is.

A look makes a whole candidate: channels chosen for a fraction, removed, proven, weights recovered, and judged on
held-out samples that nothing else has seen.  ``selection.descent`` proposes the fractions.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import count
from pathlib import Path

import numpy as np

from leanonnx.commands.compress.branch_removal import may_remove_branches, remove_branches
from leanonnx.commands.compress.candidate import Candidate, CompressJob
from leanonnx.commands.compress.cautions import Caution
from leanonnx.commands.compress.choosing import choose_channels, selector_for
from leanonnx.commands.compress.judges import Judge
from leanonnx.commands.compress.refitting import recover_weights
from leanonnx.commands.compress.stage import Stage, run_stages
from leanonnx.commands.compress.timing import time_draft
from leanonnx.errors import BudgetUnreachable, Refusal, ToleranceMissed
from leanonnx.evaluation.deviation import Fidelity
from leanonnx.evaluation.tolerances import Look, ToleranceCurve, reading_text
from leanonnx.selection.descent import FIRST_FRACTION, Descent
from leanonnx.selection.metrics import METRICS, Budget
from leanonnx.selection.search import LONG_TIMING_SECONDS, SECONDS
from leanonnx.selection.selector import unreachable_message
from leanonnx.spelling import option

SHORTENED_LOOKS = 2
"""Number of looks at the network without the branches that are worth removing."""
SMALLEST_FRACTION = 1e-6
"""Fraction at which the smallest keep set is chosen."""
FRACTION_ROUNDING = 1 + 1e-9
"""Factor for the rounding error of a fraction that was computed from a price."""
ALL_TAKEN = "all looks were taken"
BUDGET_STEPS = 10
"""Halvings in the search for the largest fraction within a budget in another metric."""


@dataclass(frozen=True)
class _Seen:
    """A candidate that was looked at, its deviation on the samples that judge, and its file before recovery."""

    candidate: Candidate
    look: Look
    fidelity: Fidelity
    pruned: Path

    def with_evidence(self, judge: Judge) -> Candidate:
        """The candidate, its recovery judged by the samples that nothing else has seen."""
        refit = self.candidate.refit
        if refit.recovery is None:
            return self.candidate
        removed = judge.compare(self.pruned) if refit.recovery.kept else self.fidelity
        recovered = self.fidelity if refit.recovery.kept else refit.recovery.recovered
        recovery = replace(refit.recovery, removed=removed, recovered=recovered, held_out=judge.held_out.count)
        return replace(self.candidate, refit=replace(refit, evidence=recovery))


def within_tolerances(making: Sequence[Stage]) -> Stage:
    """A stage that finds the candidate with the least of what is minimised among those within the tolerances.

    Args:
        making: the stages from chosen channels to a proven candidate whose weights can be recovered.
    """
    return lambda original: _search(original, (choose_channels, *making))


def recover_and_compare(candidate: Candidate) -> Candidate | Refusal:
    """Recover the weights of a proven candidate, and tell if it is within the tolerances, as one of several points.

    Raises:
        DataError, OptionError: the samples or the tolerances do not fit the model.
    """
    options, began = candidate.job.options, time.monotonic()
    judge = Judge(candidate.job, options.points)
    seen = _recover_and_judge(candidate, judge, options.budget.fraction, began)
    return replace(seen.with_evidence(judge), curve=_curve(options.budget.unit, judge, [seen], seen, ""))


def _search(original: Candidate, making: Sequence[Stage]) -> Candidate | Refusal:
    """Look at candidates until the bracket is small, then take the best."""
    job = original.job
    more = SHORTENED_LOOKS if may_remove_branches(job) else 0
    judge, unit = Judge(job, job.effort.looks + more), job.options.least_metric
    descent = _descent(job, unit)
    if isinstance(descent, Refusal):
        return descent
    seen = list[_Seen]()
    ended = _look_down(original, descent, making, judge, seen, job.effort.looks)
    if isinstance(ended, Refusal):
        return ended
    best = _best(seen)
    if more and best.look.met and not job.deadline.has_passed:
        shortened = remove_branches(_at_fraction(original, unit, best.look.fraction, len(seen)))
        if shortened.job.dag is not job.dag:
            start = Descent(descent.lowest, best.look.fraction, ((best.look.fraction, best.look.spent),))
            further = _look_down(shortened, start, making, judge, seen, judge.allowed)
            ended = ended if isinstance(further, Refusal) else further
            best = _best(seen)
    curve = _curve(unit, judge, seen, best, ended)
    if not best.look.met and not job.options.best_effort:
        return ToleranceMissed(
            f"{nearest_text(curve)}; nothing written; ask for less, give more samples (there are {curve.samples} to "
            f"judge by), or add {option('best_effort', True)} to write that"
        )
    notes = () if best.look.met else (Caution("missed", nearest_text(curve)),)
    candidate = best.with_evidence(judge)
    chosen = replace(candidate, curve=curve, warnings=(*candidate.warnings, *notes))
    return _with_timing(original, chosen, best.look)


def _look_down(
    original: Candidate,
    descent: Descent,
    making: Sequence[Stage],
    judge: Judge,
    seen: list[_Seen],
    allowed: int,
) -> Refusal | str:
    """Look at candidates of a network until the bracket is small; what was seen is appended to ``seen``.

    Returns:
        Why no more were looked at; a refusal if a candidate was refused.
    """
    job, unit, longest = original.job, original.job.options.least_metric, 0.0
    while len(seen) < allowed:
        fraction, began = descent.next(), time.monotonic()
        if fraction is None:
            return descent.ending
        if seen and job.deadline.left() <= longest:
            return f"too little time was left for another look; give more with {option('minutes')}"
        made = run_stages(making, _at_fraction(original, unit, fraction, len(seen)))
        if isinstance(made, Refusal):
            return made
        if any(np.array_equal(made.alive, each.candidate.alive) for each in seen):
            return "another look would judge the same channels again"
        seen.append(_recover_and_judge(made, judge, fraction, began))
        longest = max(longest, seen[-1].look.seconds)
        descent = descent.with_look(fraction, seen[-1].look.spent)
        _forget_files(seen)
    return ALL_TAKEN


def _at_fraction(original: Candidate, unit: str, fraction: float, number: int) -> Candidate:
    """The original with the job of one look: its budget is a fraction that nothing has to confirm."""
    job = original.job
    folder = job.folder / f"look-{number}"
    folder.mkdir(exist_ok=True)
    options = replace(job.options, budget=Budget(unit, fraction), best_effort=True)
    return replace(original, job=replace(job, options=options, folder=folder, predicts=True))


def _recover_and_judge(proven: Candidate, judge: Judge, fraction: float, began: float) -> _Seen:
    """A candidate with its weights recovered, and its readings."""
    candidate = recover_weights(proven)
    fidelity, readings = judge.read(candidate.path)
    selection = candidate.removal.selection
    macs = selection.after.macs / max(selection.before.macs, 1)
    look = Look(fraction=fraction, macs=macs, readings=readings, seconds=time.monotonic() - began)
    return _Seen(candidate, look, fidelity, proven.path)


def _curve(unit: str, judge: Judge, seen: Sequence[_Seen], best: _Seen, ended: str) -> ToleranceCurve:
    return ToleranceCurve(
        unit=unit,
        samples=judge.held_out.count,
        allowed=judge.allowed,
        looks=tuple(each.look for each in seen),
        chosen=next(k for k, each in enumerate(seen) if each is best),
        ended=ended,
    )


def _forget_files(seen: Sequence[_Seen]) -> None:
    """Remove the files of candidates that are not the best so far."""
    best = _best(seen)
    for each in seen:
        if each is not best:
            shutil.rmtree(each.candidate.job.folder, ignore_errors=True)


def _best(seen: Sequence[_Seen]) -> _Seen:
    """The candidate within the tolerances of the smallest fraction; the nearest to them if none is."""
    return min(seen, key=lambda each: (not each.look.met, each.look.fraction if each.look.met else each.look.spent))


def _descent(job: CompressJob, unit: str) -> Descent | BudgetUnreachable:
    """The search between the smallest keep set and the largest within the budget that was asked for as well."""
    budget = job.options.budget
    first = Budget(unit, min(FIRST_FRACTION, budget.fraction))
    with job.clock.stage("select"):
        selector = selector_for(replace(job, options=replace(job.options, budget=first)))
        price = selector.price if budget.unit == unit else budget.metric.price(selector.inputs)
        smallest, total = selector.within(SMALLEST_FRACTION), price(job.dag.all_alive)
        limit = budget.fraction * total
        lowest = selector.price(smallest) / selector.total if selector.total else 1.0
        if lowest >= 1 or not total:
            text = unreachable_message(first, selector.limits(smallest), selector.price(smallest), selector.total)
            return BudgetUnreachable(text)
        if price(smallest) > limit:
            return BudgetUnreachable(unreachable_message(budget, selector.limits(smallest), price(smallest), total))
        low, high = lowest, 1.0
        if budget.unit == unit:
            high = max(low, budget.fraction)
        elif budget.fraction < 1:
            for _ in range(BUDGET_STEPS):
                middle = (low + high) / 2
                low, high = (middle, high) if price(selector.within(middle)) <= limit else (low, middle)
            high = low
    return Descent(min(lowest * FRACTION_ROUNDING, 1.0), high)


def _with_timing(original: Candidate, chosen: Candidate, look: Look) -> Candidate | BudgetUnreachable:
    """The candidate that was chosen, under the options that were given, with a first timing of its network."""
    options, selection = original.job.options, chosen.removal.selection
    if options.budget.fraction >= 1:
        options = replace(options, budget=Budget("macs", min(look.macs, 1.0)))
    chosen = replace(chosen, job=replace(chosen.job, options=options, predicts=False))
    attempt = partial(time_draft, replace(original, job=chosen.job), count(1), selection)
    trial = attempt(SECONDS)
    if not trial.faster and trial.fraction < 1:
        trial = attempt(LONG_TIMING_SECONDS)
    budget = options.budget
    if budget.metric.measured and trial.fraction > budget.fraction and not options.best_effort:
        return BudgetUnreachable(
            f"the least that is within the tolerances takes {trial.fraction:.3f} of the time, {budget.fraction:g} was "
            f"asked for; nothing written; ask for more, allow a larger loss, or add {option('best_effort', True)}"
        )
    return replace(chosen, trial=trial)


def nearest_text(curve: ToleranceCurve) -> str:
    """A sentence on the candidate that is nearest to the tolerances, if none is within them."""
    look = curve.looks[curve.chosen]
    texts = "; ".join(reading_text(reading) for reading in look.readings if not reading.met)
    return (
        f"nothing pruned was shown to be within the tolerances: the nearest has {look.fraction:.3f} of the "
        f"{METRICS[curve.unit].noun}, {texts}{_others_text(curve)}"
        + (f"; the search ended as {curve.ended}" if curve.ended else "")
    )


def _others_text(curve: ToleranceCurve) -> str:
    """The fractions of the other looks, each with the number that is furthest from its limit."""
    others = [look for k, look in enumerate(curve.looks) if k != curve.chosen and look.readings]
    worst = [(look.fraction, max(look.readings, key=lambda reading: reading.spent)) for look in others]
    if not worst:
        return ""
    texts = (f"{fraction:.3f}: {reading.value:.4g} (bound {reading.bound:.4g})" for fraction, reading in sorted(worst))
    return f"; others looked at: {', '.join(texts)}"

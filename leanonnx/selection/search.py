"""Search for a keep mask that runs as fast as requested: propose, measure, correct."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import numpy as np

from leanonnx.errors import BudgetUnreachable, CouldNotTell
from leanonnx.numeric.channel_ids import Mask
from leanonnx.runtime.timing import TimingComparison
from leanonnx.selection.metrics import Price, bias_bytes
from leanonnx.selection.selector import Selection, Selector, unreachable_message
from leanonnx.spelling import option

SECONDS = 2.0
"""Seconds of one measurement."""
LONG_TIMING_SECONDS = 8.0
"""Seconds of a measurement that repeats an inconclusive one."""
LEANER_SHARES = (0.95, 0.85, 0.7)
"""Shares of the predicted time to which a keep mask that is no faster is reduced, in order."""
MAX_TIMINGS = 9
"""Most measurements of a search for a latency budget."""
AIMED_SHARE = 0.97
"""Share of a latency budget that the search aims at, as a margin for noise."""
USED_UP_SHARE = 0.93
"""Share of a latency budget from which it counts as used up."""
MAX_WRITES = 6
"""Most files written to meet a budget of bytes."""
USED_UP_SIZE = 0.995
"""Share of a budget of bytes from which it counts as used up."""
MIN_BRACKET_WIDTH = 0.004
"""Width of the bracket of predicted fractions at which the search ends."""


@dataclass(frozen=True)
class Trial:
    """A keep mask and its timing against the original.

    Attributes:
        selection: the keep mask.
        comparison: the timing; None if there is none.
        sha256: digest of the file that was timed.
        failure: why it could not be timed; empty otherwise.
        instead_of: what the budget alone had chosen, if that was measured not to be faster and this was taken instead.
    """

    selection: Selection
    comparison: TimingComparison | None
    sha256: bytes = b""
    failure: str = ""
    instead_of: Trial | None = None

    @property
    def fraction(self) -> float:
        """Measured time as a fraction of the original's; 1 without a measurement."""
        return 1.0 if self.comparison is None else 1 / self.comparison.speedup

    @property
    def slower(self) -> bool:
        """True if it is slower than the original by more than noise."""
        return self.comparison is not None and self.comparison.is_slower

    @property
    def faster(self) -> bool:
        """True if it is faster than the original by more than noise, or nothing was measured."""
        return self.comparison is None or self.comparison.is_faster

    @property
    def busy(self) -> bool:
        """True if the machine was busy when it was timed."""
        return self.comparison is not None and self.comparison.is_busy


Attempt = Callable[[Selection, float], Trial]
"""Time a keep mask for a number of seconds."""


Write = Callable[[Mask], int]
"""Write the network of a keep mask; returns the bytes of the file."""


def within_budget(selector: Selector, predicted: Price, attempt: Attempt, write: Write | None = None) -> Trial:
    """Find a keep mask within the budget that is faster than the original; that of the budget alone if none is.

    One that is not faster is measured for longer; if it is not faster then either, and the machine is not busy, it is
    reduced to ever smaller shares of its predicted time.  With ``write``, a budget of bytes is met by the file as
    written.

    Raises:
        BudgetUnreachable: see ``Selector.select``.
        CouldNotTell: nothing was faster, and the machine was busy, unless ``best_effort``.
    """
    budget = selector.request.budget
    if write is None or budget.fraction >= 1:
        fraction, selection = budget.fraction, selector.select()
    else:
        fraction, selection = _within_size(selector, write)
    first = attempt(selection, SECONDS)
    if not first.faster and (first.fraction < 1 or first.busy):
        first = attempt(selection, LONG_TIMING_SECONDS)
    if first.faster:
        return first
    trials = [first]
    base = predicted(selection.alive)
    for share in LEANER_SHARES:
        if trials[-1].busy:
            return _without_verdict(selector, trials[-1], first)
        alive = selector.within(fraction, partial(_share, predicted, share * base))
        if not _is_leaner(selector, alive, trials):
            continue
        trials.append(attempt(selector.selection(alive, reached=True), SECONDS))
        if trials[-1].faster:
            return replace(trials[-1], instead_of=first)
    return _without_verdict(selector, trials[-1], first) if trials[-1].busy else first


def _is_leaner(selector: Selector, alive: Mask, trials: list[Trial]) -> bool:
    """True if a keep mask has less of what the budget is about than all that were tried."""
    return selector.price(alive) < min(selector.price(trial.selection.alive) for trial in trials)


def _without_verdict(selector: Selector, busy: Trial, answer: Trial) -> Trial:
    """The answer where a measurement on a busy machine showed nothing.

    Raises:
        CouldNotTell: best effort was not requested.
    """
    if selector.request.best_effort:
        return answer
    advice = undecided_advice(selector.request.budget.metric.measured)
    raise CouldNotTell(f"{undecided_text(busy)}; nothing written; {advice}")


def undecided_text(trial: Trial) -> str:
    """A measurement on a busy machine that showed nothing, in words."""
    timing = trial.comparison
    assert timing is not None  # nothing else is busy
    return f"could not tell if the result is faster, as the machine was busy: {timing.busy_signs}; {ratio_text(timing)}"


def undecided_advice(measured: bool) -> str:
    """The remedy after a measurement on a busy machine; ``measured``: the budget is one of latency."""
    others = (
        f"give a budget of {option('macs')}" if measured else f"leave out measuring with {option('measure', False)}"
    )
    return f"wait until nothing else runs, measure with fewer {option('threads')}, or {others}"


def ratio_text(timing: TimingComparison) -> str:
    """The measured ratio in words."""
    low, high = timing.interval
    return f"{timing.speedup:.3f} times the speed (95 % interval {low:.3f} to {high:.3f})"


def within_latency(selector: Selector, attempt: Attempt) -> Trial:
    """Find the keep mask that uses up a latency budget; ``selector`` prices by predicted time.

    Raises:
        BudgetUnreachable: no keep mask is as fast, unless ``best_effort``.
        CouldNotTell: the machine was busy, unless ``best_effort``.
    """
    limit = selector.request.budget.fraction
    if limit >= 1:
        return Trial(selector.select(), None)
    bracket = _Bracket(limit)
    trials: list[Trial] = []
    aimed = limit * AIMED_SHARE
    for _ in range(MAX_TIMINGS):
        alive = selector.within(aimed)
        share = selector.price(alive) / selector.total
        repeated = [trial for trial in trials if np.array_equal(trial.selection.alive, alive)]
        trial = repeated[0] if repeated else _calm_trial(selector, attempt, alive)
        trials.append(trial)
        bracket.narrow(aimed if repeated else share, trial.fraction)
        if (
            USED_UP_SHARE * limit <= trial.fraction <= limit
            or bracket.is_closed
            or (share > aimed and trial.fraction > limit)
        ):
            break
        aimed = bracket.next()
    fitting = [trial for trial in trials if trial.fraction <= limit]
    if fitting:
        return max(fitting, key=lambda trial: trial.fraction)
    best = min(trials, key=lambda trial: trial.fraction)
    return _best_effort(selector, best)


def _calm_trial(selector: Selector, attempt: Attempt, alive: Mask) -> Trial:
    """Time a keep mask, for longer if the machine is busy.

    Raises:
        CouldNotTell: it is busy still, and best effort was not requested.
    """
    selection = selector.selection(alive, reached=True)
    trial = attempt(selection, SECONDS)
    if trial.busy:
        trial = attempt(selection, LONG_TIMING_SECONDS)
    return _without_verdict(selector, trial, trial) if trial.busy else trial


def _within_size(selector: Selector, write: Write) -> tuple[float, Selection]:
    """A keep set whose file uses up a budget of bytes, after the fraction of predicted bytes that it was selected for.

    Each aim is corrected by the error of the last prediction.

    Raises:
        BudgetUnreachable: no file is as small, unless best effort is enough.
    """
    budget, total = selector.request.budget, int(selector.total)
    limit, aimed, worst = budget.limit(total), budget.fraction, 0.0
    files: list[tuple[int, float, Mask]] = []
    for _ in range(MAX_WRITES):
        alive = selector.within(aimed)
        if any(np.array_equal(alive, earlier) for _, _, earlier in files):
            break
        size = write(alive) + bias_bytes(selector.inputs, alive)
        files.append((size, aimed, alive))
        if USED_UP_SIZE * limit <= size <= limit:
            break
        error = size - selector.price(alive)
        worst = error if size <= limit else max(worst, error)
        aimed = max((limit - worst) / total, 1 / total)
    fitting = [file for file in files if file[0] <= limit]
    if fitting:
        _, aimed, alive = max(fitting, key=lambda file: file[0])
        return aimed, selector.selection(alive, reached=True)
    size, aimed, alive = min(files, key=lambda file: file[0])
    selection = selector.selection(alive, reached=False)
    if not selector.request.best_effort:
        raise BudgetUnreachable(unreachable_message(budget, selection.limits, size, total))
    return aimed, selection


def _share(price: Price, limit: float, alive: Mask) -> float:
    return price(alive) / limit


class _Bracket:
    """Predicted fractions between which the measured one crosses the limit."""

    def __init__(self, limit: float) -> None:
        self.limit = limit
        self.low, self.high = (0.0, 0.0), (1.0, 1.0)

    def narrow(self, predicted: float, measured: float) -> None:
        """Narrow the bracket by one measurement."""
        if measured <= self.limit:
            self.low = max(self.low, (predicted, measured))
        else:
            self.high = min(self.high, (predicted, measured))

    @property
    def is_closed(self) -> bool:
        """True if nothing is left to try between the ends."""
        return self.high[0] - self.low[0] < MIN_BRACKET_WIDTH

    def next(self) -> float:
        """The predicted fraction at which a line through both ends crosses the aim, well inside the bracket."""
        (left, below), (right, above) = self.low, self.high
        share = (AIMED_SHARE * self.limit - below) / (above - below) if above > below else 0.5
        return left + min(max(share, 0.1), 0.9) * (right - left)


def _best_effort(selector: Selector, best: Trial) -> Trial:
    """The closest trial to a latency budget that was not reached.

    Raises:
        BudgetUnreachable: best effort was not requested.
    """
    limits = selector.limits(best.selection.alive)
    if not selector.request.best_effort:
        raise BudgetUnreachable(
            f"{selector.request.budget.fraction:g} of the latency was asked for, but {best.fraction:.3f} is the lowest "
            f"that was measured: {'; '.join(limits) or 'every layer is at its last channel'}; ask for at least "
            f"{np.ceil(100 * best.fraction) / 100:g}, or add {option('best_effort', True)} to write that"
        )
    return replace(best, selection=selector.selection(best.selection.alive, reached=False))

"""The search for a keep set that runs as fast as asked for: propose, measure, correct."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np

from leanonnx.errors import BudgetUnreachable
from leanonnx.numeric.channel_ids import Mask
from leanonnx.runtime.timing import TimingComparison
from leanonnx.selection.metrics import Price, bias_bytes
from leanonnx.selection.selector import Selection, Selector, unreachable_message

SECONDS = 2.0
"""Seconds of one measurement; ``LONG`` where it did not tell."""
LONG = 8.0
LEANER = (0.95, 0.85, 0.7)
"""Shares of its predicted time to which a keep set that turned out no faster is brought down."""
TRIES = 9
AIM = 0.97
"""Share of a latency budget that is aimed at, so that noise does not break it."""
CLOSE = 0.93
"""Share of a latency budget from which on it counts as used up."""
MAX_WRITES = 6
"""Files that are written at most to meet a budget of bytes."""
CLOSE_SIZE = 0.995
"""Share of a budget of bytes from which on it counts as used up."""
NARROW = 0.004
"""Predicted fractions this close to each other are not told apart."""


@dataclass(frozen=True)
class Trial:
    """A keep set and how it did against the original; None if it was not measured."""

    selection: Selection
    comparison: TimingComparison | None

    @property
    def fraction(self) -> float:
        """Measured time as a fraction of the original's."""
        return 1.0 if self.comparison is None else 1 / self.comparison.speedup

    @property
    def slower(self) -> bool:
        """Slower than the original by more than noise."""
        return self.comparison is not None and self.comparison.slower

    @property
    def faster(self) -> bool:
        """The interval of the ratio lies above 1, or there was nothing to measure."""
        return self.comparison is None or self.comparison.interval[0] > 1


Attempt = Callable[[Selection, float], Trial]
"""Write a keep set and measure it for so many seconds."""


Write = Callable[[Mask], int]
"""Write the network of a keep set; returns the bytes of the file."""


def within_budget(selector: Selector, predicted: Price, attempt: Attempt, write: Write | None = None) -> Trial:
    """A keep set within the budget that is faster than the original; the fastest tried if none is.

    One that is not faster is measured for longer, and then made leaner, until its predicted time falls.  With
    ``write``, a budget of bytes is met by the file as written.

    Raises:
        BudgetUnreachable: see ``Selector.select``.
    """
    budget = selector.request.budget
    if write is None or budget.fraction >= 1:
        fraction, selection = budget.fraction, selector.select()
    else:
        fraction, selection = _within_size(selector, write)
    first = attempt(selection, SECONDS)
    if first.faster:
        return first
    trials = [attempt(first.selection, LONG)] if first.fraction < 1 else [first]
    base = predicted(first.selection.alive)
    for share in LEANER:
        if trials[-1].faster:
            break
        limit = share * base
        alive = selector.within(fraction, partial(_share, predicted, limit))
        if not any(np.array_equal(alive, trial.selection.alive) for trial in trials):
            trials.append(attempt(selector.selection(alive, reached=True), SECONDS))
    return min(trials, key=lambda trial: (not trial.faster, trial.fraction))


def within_latency(selector: Selector, attempt: Attempt) -> Trial:
    """The keep set that uses up a latency budget; ``selector`` prices by predicted time.

    Raises:
        BudgetUnreachable: no keep set is as fast, unless best effort is enough.
    """
    limit = selector.request.budget.fraction
    if limit >= 1:
        return Trial(selector.select(), None)
    bracket = _Bracket(limit)
    trials: list[Trial] = []
    aimed = limit * AIM
    for _ in range(TRIES):
        alive = selector.within(aimed)
        share = selector.price(alive) / selector.total
        known = [trial for trial in trials if np.array_equal(trial.selection.alive, alive)]
        trial = known[0] if known else attempt(selector.selection(alive, reached=True), SECONDS)
        trials.append(trial)
        bracket.tell(share if not known else aimed, trial.fraction)
        if CLOSE * limit <= trial.fraction <= limit or bracket.closed or (share > aimed and trial.fraction > limit):
            break
        aimed = bracket.next()
    fitting = [trial for trial in trials if trial.fraction <= limit]
    if fitting:
        return max(fitting, key=lambda trial: trial.fraction)
    best = min(trials, key=lambda trial: trial.fraction)
    return _best_effort(selector, best)


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
        if CLOSE_SIZE * limit <= size <= limit:
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
    """The predicted fractions between which the measured one passes the limit."""

    def __init__(self, limit: float) -> None:
        self.limit = limit
        self.low, self.high = (0.0, 0.0), (1.0, 1.0)

    def tell(self, predicted: float, measured: float) -> None:
        """Narrow the bracket by one measurement."""
        if measured <= self.limit:
            self.low = max(self.low, (predicted, measured))
        else:
            self.high = min(self.high, (predicted, measured))

    @property
    def closed(self) -> bool:
        """Nothing lies between."""
        return self.high[0] - self.low[0] < NARROW

    def next(self) -> float:
        """Where a straight line through both ends passes the aim, well inside the bracket."""
        (left, below), (right, above) = self.low, self.high
        share = (AIM * self.limit - below) / (above - below) if above > below else 0.5
        return left + min(max(share, 0.1), 0.9) * (right - left)


def _best_effort(selector: Selector, best: Trial) -> Trial:
    """What is reached where the latency budget is not.

    Raises:
        BudgetUnreachable: best effort was not asked for.
    """
    limits = selector.limits(best.selection.alive)
    if not selector.request.best_effort:
        raise BudgetUnreachable(
            f"{selector.request.budget.fraction:g} of the latency was asked for, but {best.fraction:.3f} is the lowest "
            f"that was measured: {'; '.join(limits) or 'every layer is at its last channel'}; ask for at least "
            f"{np.ceil(100 * best.fraction) / 100:g}, or add --best-effort to write that"
        )
    return Trial(selector.selection(best.selection.alive, reached=False), best.comparison)

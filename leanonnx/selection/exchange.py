"""Widths traded between layers: a budget in few large steps is used up better where one layer gives what another gets.

Widths chosen by one threshold over all layers are the best for what they cost, but rounded to steps they leave some of
the budget. Local search starts from there (as OSSCAR's does from its greedy choice: Meng et al., arXiv 2403.12983).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from leanonnx.numeric.arrays import Floats, Ints
from leanonnx.selection.widths import Grid, replaced

Worth = Callable[[Ints], Floats]
Spent = Callable[[Ints], float]
MOST = 100
"""Exchanges that are made at most."""
BACK = 8
"""Steps that a layer gives in one exchange at most."""


def exchanged(grid: Grid, widths: Ints, least: Ints, step: int, worth: Worth, spent: Spent) -> Ints:
    """Widen one layer by a step and narrow others for it, as long as what is kept becomes worth more.

    Args:
        grid: the widths that layers may have.
        widths: those to start from [layers].
        least: the narrowest that they may become [layers].
        step: the finest step.
        worth: what is kept in each layer is worth [layers], by the widths.
        spent: the share of the budget that widths spend (1: all).
    """
    for _ in range(MOST):
        rivals = _exchanges(grid, widths, least, step, worth, spent)
        better = (r for r in rivals if (worth(r) - worth(widths)).sum() > 0 and spent(r) <= 1)
        found = next(better, None)
        if found is None:
            break
        widths = found
    return widths


def _exchanges(grid: Grid, widths: Ints, least: Ints, step: int, worth: Worth, spent: Spent) -> Iterator[Ints]:
    """Widths with one layer a step wider and others narrower, the most promising first.

    What is narrowed loses least for what it frees, as if layers did not depend on each other.
    """
    wider, backward = grid.wider(widths, step), [widths]
    for _ in range(BACK):
        backward.append(grid.narrower(backward[-1], step, least))
    now = spent(widths)
    taken = -np.diff(backward, axis=0)
    freed = -_dearer(widths, backward[1], now, spent) / np.maximum(taken[0], 1) * taken
    lost = -np.diff([worth(each) for each in backward], axis=0)
    place, layers = np.nonzero(freed > 0)
    cheapest = np.argsort(lost[place, layers] / freed[place, layers], kind="stable")
    place, layers = place[cheapest], layers[cheapest]
    needed, gained = now + _dearer(widths, wider, now, spent) - 1, worth(wider) - worth(widths)
    found: list[tuple[float, Ints]] = []
    for layer in np.flatnonzero(wider > widths).tolist():
        steps, payers = place[layers != layer], layers[layers != layer]
        enough = np.concatenate([[0.0], np.cumsum(freed[steps, payers])]) >= needed[layer]
        count = int(np.argmax(enough))
        steps, payers = steps[:count], payers[:count]
        promise = gained[layer] - lost[steps, payers].sum()
        if promise > 0 and enough.any():
            rival = replaced(widths, wider, [layer])
            np.subtract.at(rival, payers, taken[steps, payers])
            found.append((promise, rival))
    return (rival for _, rival in sorted(found, key=lambda pair: -pair[0]))


def _dearer(widths: Ints, other: Ints, now: float, spent: Spent) -> Floats:
    """What each layer alone spends more at another width [layers]."""
    found = np.zeros(len(widths))
    for layer in np.flatnonzero(other != widths).tolist():
        found[layer] = spent(replaced(widths, other, [layer])) - now
    return found

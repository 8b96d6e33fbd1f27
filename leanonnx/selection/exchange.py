"""Exchange of widths between layers: with few large steps, a budget is better used if layers trade channels.

Widths chosen by one threshold over all layers are optimal for their cost, but rounded to steps they leave part of the
budget unspent. A local search starts from them (as OSSCAR does from its greedy choice: Meng et al., arXiv 2403.12983).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from leanonnx.numeric.arrays import Floats, Ints
from leanonnx.selection.widths import WidthGrid, replace_widths

Worth = Callable[[Ints], Floats]
Spent = Callable[[Ints], float]
MAX_EXCHANGES = 100
"""Largest number of exchanges."""
MAX_STEPS_BACK = 8
"""Largest number of steps by which an exchange narrows a layer."""


def exchange_widths(grid: WidthGrid, widths: Ints, least: Ints, step: int, worth: Worth, spent: Spent) -> Ints:
    """Repeatedly widen one layer by a step and narrow others in exchange, while the total worth increases.

    Args:
        grid: the widths that layers may have.
        widths: initial widths [layers].
        least: smallest widths [layers].
        step: the finest step.
        worth: maps widths to the worth of the kept channels of each layer [layers].
        spent: maps widths to the share of the budget that they spend (1: all).
    """
    for _ in range(MAX_EXCHANGES):
        rivals = _exchanges(grid, widths, least, step, worth, spent)
        better = (r for r in rivals if (worth(r) - worth(widths)).sum() > 0 and spent(r) <= 1)
        improved = next(better, None)
        if improved is None:
            break
        widths = improved
    return widths


def _exchanges(grid: WidthGrid, widths: Ints, least: Ints, step: int, worth: Worth, spent: Spent) -> Iterator[Ints]:
    """Yield widths with one layer a step wider and others narrower, the most promising first.

    The narrowed layers lose least for the cost that they free, assuming that layers are independent.
    """
    wider, backward = grid.widen(widths, step), [widths]
    for _ in range(MAX_STEPS_BACK):
        backward.append(grid.narrow(backward[-1], step, least))
    now = spent(widths)
    taken = -np.diff(backward, axis=0)
    freed = -_extra_spending(widths, backward[1], now, spent) / np.maximum(taken[0], 1) * taken
    lost = -np.diff([worth(each) for each in backward], axis=0)
    place, layers = np.nonzero(freed > 0)
    cheapest = np.argsort(lost[place, layers] / freed[place, layers], kind="stable")
    place, layers = place[cheapest], layers[cheapest]
    needed, gained = now + _extra_spending(widths, wider, now, spent) - 1, worth(wider) - worth(widths)
    exchanges: list[tuple[float, Ints]] = []
    for layer in np.flatnonzero(wider > widths).tolist():
        steps, payers = place[layers != layer], layers[layers != layer]
        enough = np.concatenate([[0.0], np.cumsum(freed[steps, payers])]) >= needed[layer]
        count = int(np.argmax(enough))
        steps, payers = steps[:count], payers[:count]
        promise = gained[layer] - lost[steps, payers].sum()
        if promise > 0 and enough.any():
            rival = replace_widths(widths, wider, [layer])
            np.subtract.at(rival, payers, taken[steps, payers])
            exchanges.append((promise, rival))
    return (rival for _, rival in sorted(exchanges, key=lambda pair: -pair[0]))


def _extra_spending(widths: Ints, other: Ints, now: float, spent: Spent) -> Floats:
    """Additional spending of each layer alone at another width [layers]."""
    extra = np.zeros(len(widths))
    for layer in np.flatnonzero(other != widths).tolist():
        extra[layer] = spent(replace_widths(widths, other, [layer])) - now
    return extra

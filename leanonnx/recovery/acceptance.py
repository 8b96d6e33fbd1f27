"""The policy for changes of a model: try one, keep it if it brings the outputs nearer to the original's."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from math import isfinite
from typing import TypeVar

Network = TypeVar("Network")
"""A model, in memory or as a file."""
Evidence = TypeVar("Evidence")
"""The result of comparing one model with the original."""


def is_improvement(before: float, after: float, at_most: float | None = 1.0) -> bool:
    """Return True if a change lowers the distance to the original far enough; never if an output becomes infinite.

    ``at_most`` is the share of the distance that may be left (exclusive); None accepts any finite distance.
    """
    return isfinite(after) and (at_most is None or after < at_most * before)


def first_improvement(
    current: Network,
    changes: Iterable[tuple[Network, float | None]],
    compare: Callable[[Sequence[Network]], Sequence[Evidence]],
    distance: Callable[[Evidence], float],
) -> tuple[int | None, list[Evidence]]:
    """Try changes in order and take the first that is an improvement.

    Args:
        current: the model as it is.
        changes: changed models, each with ``at_most`` of ``is_improvement``; one is requested only if those before it
            were declined.
        compare: compares models with the original.
        distance: the distance of a model's outputs to the original's, by that comparison.

    Returns:
        The index of the accepted change (None if there is none), and the comparisons of the current model and of each
        change tried; no comparison if there is no change.
    """
    evidence: list[Evidence] = []
    for index, (changed, at_most) in enumerate(changes):
        evidence += compare([changed] if evidence else [current, changed])
        if is_improvement(distance(evidence[0]), distance(evidence[-1]), at_most):
            return index, evidence
    return None, evidence

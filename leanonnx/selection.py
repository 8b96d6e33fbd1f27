"""Ranking + budget → keep set: the longest prefix of the ranking whose physical cost fits."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from leanonnx.analysis import ChannelDag
from leanonnx.closure import closed
from leanonnx.cost import Cost, cost_model
from leanonnx.criteria import Chains, Method, Ranking, rank
from leanonnx.errors import BudgetUnreachable
from leanonnx.labels import Mask
from leanonnx.limits import what_holds
from leanonnx.rules.call import Pin
from leanonnx.weigh import Weights

Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Budget:
    """At most ``fraction`` of the original's ``unit`` ('kernels', 'macs', 'params')."""

    unit: str
    fraction: float


@dataclass(frozen=True)
class Request:
    """What is asked of a selection; ``pinned`` holds labels, ``ignored`` node indices."""

    budget: Budget
    method: Method = "auto"
    chains: Chains = "cover"
    pinned: tuple[Pin, ...] = ()
    ignored: frozenset[int] = frozenset()
    seed: int = 0
    best_effort: bool = False


@dataclass(frozen=True)
class Selection:
    """The keep set as labels [labels], with its cost and that of the original.

    ``reached`` tells if it fits the budget; if not, ``limits`` says what holds it up.
    """

    alive: Mask
    before: Cost
    after: Cost
    reached: bool
    limits: tuple[str, ...] = ()


def select(dag: ChannelDag, request: Request) -> Selection:
    """Choose the channels to keep.

    Raises:
        BudgetUnreachable: what may not be removed is larger than the budget, unless ``best_effort``.
    """
    cost = cost_model(dag, request.ignored)
    before = cost(np.ones(dag.count, bool))
    total = getattr(before, request.budget.unit)
    limit = request.budget.fraction * total
    if request.budget.fraction >= 1:
        return Selection(np.ones(dag.count, bool), before, before, reached=True)

    def fits(alive: Mask) -> bool:
        return bool(getattr(cost(alive), request.budget.unit) <= limit)

    def enough(ranking: Ranking) -> bool:
        return not fits(_Keeper(weights, request, ranking).prefix(len(ranking.order)))

    weights = Weights(dag, request.ignored)
    ranking = rank(weights, request.method, request.chains, request.seed, enough)
    keeper = _Keeper(weights, request, ranking)
    low, high = 0, len(ranking.order)
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if fits(keeper.prefix(middle)) else (low, middle - 1)
    alive = keeper.prefix(low)
    reached = fits(alive) and total > 0
    limits = () if reached else what_holds(dag, cost, alive, request.pinned)
    if not reached and not request.best_effort:
        raise BudgetUnreachable(_unreachable(request.budget, limits, getattr(cost(alive), request.budget.unit), total))
    return Selection(alive, before, cost(alive), reached, limits)


class _Keeper:
    """Turns a prefix of a ranking into a keep set that surgery can carry out."""

    def __init__(self, weights: Weights, request: Request, ranking: Ranking) -> None:
        self.weights, self.dag, self.ranking = weights, weights.dag, ranking
        self.classes = ranking.classes
        self.readers = [pair for _, pair in self.dag.implied if not _tied(self.classes, pair)]
        self.protected = self._protected(request)

    def prefix(self, count: int) -> Mask:
        """Labels that live when the first ``count`` classes of the ranking are kept."""
        keep = self.protected.copy()
        keep[self.ranking.order[:count]] = True
        return closed(self.dag, self.classes, keep)

    def _protected(self, request: Request) -> Mask:
        """Classes that live in any case: pins, one class for every tensor, one chain for every output and input."""
        keep = np.zeros(self.ranking.scores.size, bool)
        keep[self.classes[0]] = True
        for pin in (*self.dag.pins, *request.pinned):
            keep[self.classes[pin.labels]] = True
        if self.readers:
            for chain in self.weights.connections:
                keep[self.classes[list(chain)]] = True
        keep = self._with_sources(keep)
        for members in self._tensor_classes():
            if not keep[members].any():
                keep[members[np.argmax(self.ranking.scores[members])]] = True
                keep = self._with_sources(keep)
        return keep

    def _tensor_classes(self) -> list[Ints]:
        """The classes of each tensor, small tensors first."""
        found = {np.unique(self.classes[labels]).tobytes() for labels in self.dag.labels.values()}
        return sorted((np.frombuffer(raw, np.int64) for raw in found), key=lambda m: (m.size, m.tolist()))

    def _with_sources(self, keep: Mask) -> Mask:
        """A reader cannot outlive its channel: protect the channels of protected readers, and what is tied to them."""
        while True:
            before = keep.copy()
            for channels, readers in reversed(self.readers):
                keep[self.classes[channels[keep[self.classes[readers]]]]] = True
            if np.array_equal(before, keep):
                return keep


def _tied(classes: Ints, pair: tuple[Ints, Ints]) -> bool:
    return bool(np.array_equal(classes[pair[0]], classes[pair[1]]))


def _unreachable(budget: Budget, limits: tuple[str, ...], lowest: int, total: int) -> str:
    """Why a budget cannot be reached: the lowest value and what holds it up."""
    if total == 0:
        return (
            f"there are no {budget.unit} to remove: the model has no Conv, ConvTranspose, Gemm or MatMul with constant "
            "weights in its main graph that is not ignored; add --best-effort to write it as it is"
        )
    share = lowest / total
    return (
        f"{budget.fraction:g} of the {budget.unit} was asked for, but {share:.4f} ({lowest} of {total}) is the "
        f"lowest that can be reached: {'; '.join(limits) or 'every layer is at its last channel'}; "
        f"ask for at least {np.ceil(1e4 * share) / 1e4:g}, or add --best-effort to write that"
    )

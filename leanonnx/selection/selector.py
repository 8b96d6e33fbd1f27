"""Ranking + budget → keep set: the longest prefix of the ranking whose physical cost fits, at widths that run fast."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property, partial

import numpy as np

from leanonnx.analysis.cost import RATES, Cost, CostModel, Rate, by_kernels, cost_model
from leanonnx.analysis.dag import ChannelDag
from leanonnx.checks import check_fraction
from leanonnx.errors import BudgetUnreachable
from leanonnx.graph.nodes import BIAS, BIASED, standard
from leanonnx.numeric.channel_ids import ChannelIds, Mask
from leanonnx.ranking.criteria import Chains, Importance, Method, Ranking, RankingInputs, rank
from leanonnx.ranking.elimination import DEFAULT_EXPONENTS, Exponents
from leanonnx.ranking.weighting import WeightedDag
from leanonnx.rules.call import KernelBlock, Pin
from leanonnx.selection.allocator import WidthAllocator
from leanonnx.selection.limits import what_holds
from leanonnx.selection.widths import NATURAL, Alignment
from leanonnx.spelling import option
from leanonnx.statistics.moments import Statistics

Price = Callable[[Mask], float]
LATENCY = "latency"


@dataclass(frozen=True)
class Budget:
    """At most ``fraction`` of the original's ``unit`` ('kernels', 'macs', 'params', 'latency').

    Raises:
        OptionError: the fraction is not above 0 and at most 1.
    """

    unit: str
    fraction: float

    def __post_init__(self) -> None:
        check_fraction(self.option, self.fraction)

    @classmethod
    def asked(cls, option: str, fraction: float) -> Budget:
        """What an option of the command line asks for: ``keep`` for kernels, all others are called as their unit."""
        return cls("kernels" if option == "keep" else option, fraction)

    @property
    def option(self) -> str:
        """The option that asks for it."""
        return "keep" if self.unit == "kernels" else self.unit


@dataclass(frozen=True)
class SelectionRequest:
    """What is asked of a selection; ``pinned`` holds labels, ``ignored`` node indices.

    ``statistics`` of the activations, where real inputs were given; ``rate``: what a kernel costs (None: one),
    ``terms`` how much of that counts; ``mended``: weights are fitted afterwards, and layers without a bias get one.
    """

    budget: Budget
    method: Method | Importance = "auto"
    chains: Chains = "cover"
    pinned: tuple[Pin, ...] = ()
    ignored: frozenset[int] = frozenset()
    seed: int = 0
    best_effort: bool = False
    alignment: Alignment = NATURAL
    statistics: Statistics | None = None
    rate: Rate | None = None
    exponents: Exponents = DEFAULT_EXPONENTS
    refits: bool = False


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


class Selector:
    """Ranks the channels of a DAG once, and gives the keep set for any fraction of its cost.

    ``price`` tells what a keep set costs in the unit of the budget, ``weights`` what rankings are made of.
    """

    def __init__(
        self, dag: ChannelDag, request: SelectionRequest, price: Price | None = None, weights: WeightedDag | None = None
    ) -> None:
        self.dag, self.request = dag, request
        self.weighted = weights or WeightedDag(dag, request.ignored, request.statistics)
        self.cost = cost_model(dag, request.ignored)
        biases = _biases_to_come(dag, request.ignored) if request.refits and request.budget.unit == "params" else ()
        self.price: Price = price or partial(_counted, self.cost, request.budget.unit, biases)
        everything = dag.whole
        self.before, self.total = self.cost(everything), self.price(everything)

    def with_exponents(self, terms: Exponents) -> Selector:
        """One that counts the cost saved and the path mass otherwise."""
        return Selector(self.dag, replace(self.request, exponents=terms), self.price, self.weighted)

    def within(self, fraction: float, other: Price | None = None) -> Mask:
        """The keep set for a fraction of the original's cost; the cheapest where none fits.

        ``other`` is a second budget: the share of it that a keep set spends.
        """

        def spent(alive: Mask) -> float:
            return max(self._spent(alive, fraction), other(alive) if other else 0.0)

        return self.allocator.largest(spent)

    @cached_property
    def allocator(self) -> WidthAllocator:
        """The ranking, ready to be cut off."""
        request = self.request

        def enough(ranking: Ranking) -> bool:
            keeper = WidthAllocator(self.weighted, ranking, request.pinned, NATURAL)
            return self._spent(keeper.prefix(len(ranking.order)), request.budget.fraction) > 1

        rate = partial(_saved, request.rate or RATES.get(request.budget.unit, by_kernels), request.ignored)
        question = RankingInputs(
            weighted=self.weighted,
            chains=request.chains,
            seed=request.seed,
            enough=enough,
            rate=rate,
            exponents=request.exponents,
        )
        ranking = rank(question, request.method)
        return WidthAllocator(self.weighted, ranking, request.pinned, request.alignment)

    def _spent(self, alive: Mask, fraction: float) -> float:
        return self.price(alive) / (fraction * self.total) if self.total else 0.0

    def select(self) -> Selection:
        """Choose the channels to keep.

        Raises:
            BudgetUnreachable: what may not be removed is larger than the budget, unless ``best_effort``.
        """
        budget = self.request.budget
        if budget.fraction >= 1:
            return Selection(self.dag.whole, self.before, self.before, reached=True)
        found = self.selection(self.within(budget.fraction))
        if not found.reached and not self.request.best_effort:
            lowest = self.price(found.alive)
            raise BudgetUnreachable(_unreachable(budget, found.limits, lowest, self.total))
        return found

    def selection(self, alive: Mask, reached: bool | None = None) -> Selection:
        """A keep set with its cost; ``reached``: whether it fits the budget, where measuring told."""
        if reached is None:
            reached = self._spent(alive, self.request.budget.fraction) <= 1 and self.total > 0
        return Selection(alive, self.before, self.cost(alive), reached, () if reached else self.limits(alive))

    def limits(self, alive: Mask) -> tuple[str, ...]:
        """What keeps a keep set from getting smaller."""
        return what_holds(self.dag, self.cost, alive, self.request.pinned, self.request.budget.unit)


def select(dag: ChannelDag, request: SelectionRequest) -> Selection:
    """Choose the channels to keep.

    Raises:
        BudgetUnreachable: what may not be removed is larger than the budget, unless ``best_effort``.
    """
    return Selector(dag, request).select()


def _saved(rate: Rate, ignored: frozenset[int], node: int, mix: KernelBlock) -> float:
    """What a kernel costs; nothing in layers that are not counted."""
    return 0.0 if node in ignored else rate(node, mix)


def _counted(cost: CostModel, unit: str, biases: tuple[ChannelIds, ...], alive: Mask) -> float:
    """What a keep set costs in kernels, multiply-adds or parameters, with biases that are added where anything goes."""
    added = 0 if alive.all() else sum(int(np.count_nonzero(alive[channel_ids])) for channel_ids in biases)
    return float(getattr(cost(alive), unit) + added)


def _biases_to_come(dag: ChannelDag, ignored: frozenset[int]) -> tuple[ChannelIds, ...]:
    """Output channels of the layers that have no bias and may get one."""
    nodes = dag.model.proto.graph.node
    return tuple(
        mix.destinations
        for node, mix in dag.kernel_blocks
        if node not in ignored and standard(nodes[node]) in BIASED and not any(nodes[node].input[BIAS:])
    )


def _unreachable(budget: Budget, limits: tuple[str, ...], lowest: float, total: float) -> str:
    """Why a budget cannot be reached: the lowest value and what holds it up."""
    if total == 0:
        return (
            f"there are no {budget.unit} to remove: the model has no Conv, ConvTranspose, Gemm or MatMul with constant "
            f"weights in its main graph that is not ignored; add {option('best_effort', True)} to write it as it is"
        )
    share = lowest / total
    return (
        f"{budget.fraction:g} of the {budget.unit} was asked for, but {share:.4f} ({lowest:.12g} of {total:.12g}) is "
        f"the lowest that can be reached: {'; '.join(limits) or 'every layer is at its last channel'}; "
        f"ask for at least {np.ceil(1e4 * share) / 1e4:g}, or add {option('best_effort', True)} to write that"
    )

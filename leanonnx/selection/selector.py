"""Ranking + budget → keep set: the longest prefix of the ranking whose physical cost fits, at widths that run fast."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property, partial

import numpy as np

from leanonnx.analysis.cost import Cost, Rate, cost_model
from leanonnx.analysis.dag import ChannelDag
from leanonnx.errors import BudgetUnreachable
from leanonnx.hardware.targets import Hardware
from leanonnx.numeric.channel_ids import Mask
from leanonnx.ranking.criteria import Chains, Importance, Method, Ranking, RankingInputs, rank
from leanonnx.ranking.elimination import DEFAULT_EXPONENTS, Exponents
from leanonnx.ranking.weighting import WeightedDag
from leanonnx.rules.call import KernelBlock, Pin
from leanonnx.runtime.profiling import NodeTime
from leanonnx.selection.allocator import WidthAllocator
from leanonnx.selection.limits import limiting_factors
from leanonnx.selection.metrics import Budget, Price, PricingInputs
from leanonnx.selection.widths import ANY_WIDTH, Alignment
from leanonnx.spelling import option
from leanonnx.statistics.moments import Statistics


@dataclass(frozen=True, kw_only=True)
class SelectionRequest:
    """Options of a selection; ``pinned`` holds channels, ``ignored`` node indices.

    ``statistics``: those of the activations on real inputs, where there are some; ``hardware``: where the network is to
    run, which a latency budget needs, and ``profile``: the times of the network's nodes there, if they were measured;
    ``exponents``: how much the cost of a kernel weighs in rankings by path mass; ``refits``: weights are refitted
    afterwards, and layers without a bias get one.
    """

    budget: Budget
    method: Method | Importance = "auto"
    chains: Chains = "cover"
    pinned: tuple[Pin, ...] = ()
    ignored: frozenset[int] = frozenset()
    seed: int = 0
    best_effort: bool = False
    alignment: Alignment = ANY_WIDTH
    statistics: Statistics | None = None
    hardware: Hardware | None = None
    profile: tuple[NodeTime, ...] = ()
    exponents: Exponents = DEFAULT_EXPONENTS
    refits: bool = False


@dataclass(frozen=True, kw_only=True)
class Selection:
    """A keep set [channels], with its cost and that of the original.

    ``reached``: it fits the budget; if it does not, ``limits`` names what keeps it from shrinking further.
    """

    alive: Mask
    before: Cost
    after: Cost
    reached: bool
    limits: tuple[str, ...] = ()


class Selector:
    """Ranks the channels of a DAG once, and selects the keep set for any fraction of its cost.

    ``price``: prices keep sets in the unit of the budget; ``weighted``: the weighted DAG that rankings read; ``whole``:
    the selector of the network that this one was made from, whose cost fractions refer to.
    """

    def __init__(
        self,
        dag: ChannelDag,
        request: SelectionRequest,
        price: Price | None = None,
        weights: WeightedDag | None = None,
        whole: Selector | None = None,
    ) -> None:
        self.dag, self.request = dag, request
        self.weighted = weights or WeightedDag(dag, request.ignored, request.statistics)
        self.cost = cost_model(dag, request.ignored)
        self.inputs = PricingInputs(
            dag=dag,
            cost=self.cost,
            ignored=request.ignored,
            hardware=request.hardware,
            profile=request.profile,
            refits=request.refits,
        )
        self.price: Price = price or request.budget.metric.price(self.inputs)
        everything = dag.all_alive
        self.whole = whole
        self.before: Cost = self.cost(everything) if whole is None else whole.before
        self.total: float = self.price(everything) if whole is None else whole.total

    def with_exponents(self, exponents: Exponents) -> Selector:
        """The same with other exponents of saved cost and path mass."""
        return Selector(self.dag, replace(self.request, exponents=exponents), self.price, self.weighted, self.whole)

    def with_budget(self, budget: Budget) -> Selector:
        """The same for another budget in the same metric; a smaller one shares the ranking."""
        if budget == self.request.budget:
            return self
        other = Selector(self.dag, replace(self.request, budget=budget), self.price, self.weighted, self.whole)
        if budget.fraction <= self.request.budget.fraction:
            other.allocator = self.allocator
        return other

    def within(self, fraction: float, other: Price | None = None) -> Mask:
        """The keep set for a fraction of the original's cost; the cheapest where none fits.

        ``other``: a second budget, as the share of it that a keep set spends.
        """

        def spent(alive: Mask) -> float:
            return max(self._spent(alive, fraction), other(alive) if other else 0.0)

        return self.allocator.keep_largest(spent)

    @cached_property
    def allocator(self) -> WidthAllocator:
        """Allocates widths by the ranking."""
        request = self.request

        def enough(ranking: Ranking) -> bool:
            allocator = WidthAllocator(self.weighted, ranking, request.pinned, ANY_WIDTH)
            return self._spent(allocator.keep_prefix(len(ranking.order)), request.budget.fraction) > 1

        rate = partial(_counted_rate, request.budget.metric.rate(self.inputs), request.ignored)
        inputs = RankingInputs(
            weighted=self.weighted,
            chains=request.chains,
            seed=request.seed,
            enough=enough,
            rate=rate,
            exponents=request.exponents,
        )
        ranking = rank(inputs, request.method)
        return WidthAllocator(self.weighted, ranking, request.pinned, request.alignment)

    def _spent(self, alive: Mask, fraction: float) -> float:
        return self.price(alive) / (fraction * self.total) if self.total else 0.0

    def select(self) -> Selection:
        """Select the channels to keep.

        Raises:
            BudgetUnreachable: what may not be removed exceeds the budget, unless ``best_effort``.
        """
        budget = self.request.budget
        if budget.fraction >= 1:
            return Selection(alive=self.dag.all_alive, before=self.before, after=self.before, reached=True)
        selection = self.selection(self.within(budget.fraction))
        if not selection.reached and not self.request.best_effort:
            lowest = self.price(selection.alive)
            raise BudgetUnreachable(unreachable_message(budget, selection.limits, lowest, self.total))
        return selection

    def selection(self, alive: Mask, reached: bool | None = None) -> Selection:
        """A keep set with its cost; ``reached``: it fits the budget (None: by its price)."""
        if reached is None:
            reached = self._spent(alive, self.request.budget.fraction) <= 1 and self.total > 0
        return Selection(
            alive=alive,
            before=self.before,
            after=self.cost(alive),
            reached=reached,
            limits=() if reached else self.limits(alive),
        )

    def limits(self, alive: Mask) -> tuple[str, ...]:
        """The limits that keep a keep set from shrinking further."""
        macs = self.request.budget.metric.counts_macs
        return limiting_factors(self.dag, self.cost, alive, self.request.pinned, macs)


def select(dag: ChannelDag, request: SelectionRequest) -> Selection:
    """Select the channels to keep.

    Raises:
        BudgetUnreachable: what may not be removed exceeds the budget, unless ``best_effort``.
    """
    return Selector(dag, request).select()


def _counted_rate(rate: Rate, ignored: frozenset[int], node: int, mix: KernelBlock) -> float:
    """Cost of a kernel; zero in layers that are not counted."""
    return 0.0 if node in ignored else rate(node, mix)


def unreachable_message(budget: Budget, limits: tuple[str, ...], lowest: float, total: float) -> str:
    """Message of a budget that cannot be reached: the lowest value, and what keeps it there."""
    if total == 0:
        return (
            f"there are no {budget.unit} to remove: the model has no Conv, ConvTranspose, Gemm or MatMul with constant "
            f"weights in its main graph that is not ignored; add {option('best_effort', True)} to write it as it is"
        )
    share = lowest / total
    return (
        f"{budget.fraction:g} of the {budget.unit} was asked for, but {share:.4f} ({lowest:.12g} of {total:.12g}, "
        f"where {budget.fraction * total:.12g} was asked for) is the lowest that can be reached: "
        f"{'; '.join(limits) or 'every layer is at its last channel'}; "
        f"ask for at least {np.ceil(1e4 * share) / 1e4:g}, or add {option('best_effort', True)} to write that"
    )

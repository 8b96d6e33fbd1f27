"""Price the removal of whole branches beside that of channels: loss for each unit of the budget.

The loss of a stand-in is the path mass of the joined channels times the share of their variance that it does not
explain, in the unit of ``elimination``; less what the removal of channels inside the branch has cost already.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from leanonnx.analysis.branch_costs import branch_costs
from leanonnx.analysis.branches import Branch
from leanonnx.numeric.arrays import Floats
from leanonnx.numeric.channel_ids import Mask
from leanonnx.recovery.standins import FittedStandIn
from leanonnx.selection.selector import Selector

MARGINS = (0.95, 0.9, 0.8, 0.6)
"""Shares of a budget; the channels between one and the whole budget tell what its last unit is worth."""
MIN_SAVING_SHARE = 1e-3
"""Share of the cost that a branch has to save at least."""


@dataclass(frozen=True, kw_only=True)
class BranchStep:
    """Removal of a branch: its loss, the cost that it saves, and the rate at which channels lose at this budget."""

    branch: Branch
    loss: float
    saving: float
    channel_rate: float

    @property
    def gain(self) -> float:
        """Loss that channels need not bear if the branch goes in their place, less its own."""
        return self.saving * self.channel_rate - self.loss


def branch_steps(selector: Selector, fits: Mapping[Branch, FittedStandIn], alive: Mask) -> list[BranchStep]:
    """The steps that remove a branch of a network from a keep mask within the budget, the largest gain first.

    Args:
        selector: selects the channels, by the elimination of ``path-mass``.
        fits: branches with their stand-ins.
        alive: its keep mask [channels].
    """
    elimination, losses = selector.weighted.elimination, selector.allocator.ranking.losses
    if elimination is None or losses is None:
        return []
    rate = _channel_rate(selector, losses, alive)
    dag, mass = selector.dag, elimination.masses**selector.request.exponents.mass
    groups, total = selector.allocator.ranking.groups, selector.price(alive)
    macs = max(selector.cost(alive).macs, 1)
    steps = []
    for (branch, fit), cost in zip(fits.items(), branch_costs(dag, fits, alive), strict=True):
        joined = dag.channel_ids[branch.output].reshape(-1)
        loss = float((mass[joined] * np.minimum(fit.unexplained, 1.0))[alive[joined]].sum())
        inner = np.isin(dag.producer, branch.nodes)
        outside = np.unique(groups[~inner])
        own = np.setdiff1d(np.unique(groups[inner & ~alive]), outside)
        booked = float(losses[own][np.isfinite(losses[own])].sum())
        apart = alive & ~(inner & ~np.isin(groups, outside))
        saving = max(total - selector.price(apart), total * cost.macs / macs) - total * cost.standin_macs / macs
        if saving > MIN_SAVING_SHARE * total:
            steps.append(BranchStep(branch=branch, loss=max(loss - booked, 0.0), saving=saving, channel_rate=rate))
    return sorted(steps, key=lambda step: -step.gain)


def _channel_rate(selector: Selector, losses: Floats, alive: Mask) -> float:
    """Loss for each unit of cost of the channels that would be removed next."""
    groups = selector.allocator.ranking.groups
    for margin in MARGINS:
        fewer = selector.within(margin * selector.request.budget.fraction)
        gone = np.setdiff1d(groups[alive & ~fewer], groups[fewer])
        saved = selector.price(alive) - selector.price(fewer)
        if gone.size and saved > 0:
            return float(losses[gone][np.isfinite(losses[gone])].sum()) / saved
    return np.inf

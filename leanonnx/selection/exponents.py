"""Search for the exponents of the channel ranking: try each, recovered, on held-out samples.

The value of a channel depends on the weight of the cost that it saves, on the weight of its path mass and on the
contrast between layers; no choice is best for every network.  A trial prunes, refits each layer and measures the
outputs, so that errors which add up over the layers count.
"""

from __future__ import annotations

from time import monotonic

from leanonnx.analysis.cost import cost_model
from leanonnx.data.samples import Dataset
from leanonnx.effort import Deadline, Effort
from leanonnx.numeric.channel_ids import Mask
from leanonnx.ranking.elimination import EXPONENT_CANDIDATES
from leanonnx.recovery.draft import calibration_batch, distance, split_held_out
from leanonnx.recovery.recover import recover
from leanonnx.runtime.sessions import RunFailed
from leanonnx.selection.selector import Selector
from leanonnx.surgery.operate import apply_patch
from leanonnx.surgery.patch import plan_patch
from leanonnx.system.clock import StageProgress

MAX_TRIAL_SAMPLES = 320
"""Largest number of samples that a trial uses."""
MIN_TRIAL_SAMPLES = 128
"""Smallest number of samples that tell candidates apart; with fewer affordable ones exponents are not searched."""
CLEARLY_LESS = 0.98
"""Share of the deviation of the default that another candidate may leave at most: smaller differences are noise."""
MAX_TRIAL_MACS = 1e10
"""Multiply-adds of the original on the samples of a trial, for normal effort; larger efforts take more."""
MAX_SEARCH_LAYERS = 100
"""Largest number of layers for which exponents are searched: every trial refits each layer."""


def search_exponents(
    selector: Selector,
    data: Dataset,
    effort: Effort,
    deadline: Deadline,
    seed: int,
    on_progress: StageProgress,
) -> Selector:
    """Find the selector whose keep mask deviates least after recovery.

    Args:
        selector: ranks by path mass, for the budget of its request.
        data: real inputs.
        effort: bounds the number of trials.
        deadline: no trial is started that would not end before it.
        seed: seed of sampling.
        on_progress: called with the share of trials done (0 to 1) and the name of the next.
    """
    dag = selector.dag
    candidates = EXPONENT_CANDIDATES[: effort.trials]
    count = affordable_samples(selector, data.count, effort)
    if len(candidates) < 2 or count < MIN_TRIAL_SAMPLES:
        return selector
    if sum(block.input_channel_ids is not None for _, block in dag.kernel_blocks) > MAX_SEARCH_LAYERS:
        return selector
    fitted, spared = split_held_out(data.subsample(count))
    tried: list[tuple[float, Selector]] = []
    deviations: dict[bytes, float] = {}
    longest = 0.0
    for done, exponents in enumerate(candidates):
        if tried and deadline.left() < 2 * longest:
            break
        on_progress(done / len(candidates), f"candidate {done + 1} of {len(candidates)}")
        start, rival = monotonic(), selector.with_exponents(exponents)
        alive = rival.within(selector.request.budget.fraction)
        if alive.tobytes() not in deviations:
            deviations[alive.tobytes()] = _deviation(rival, alive, fitted, spared or fitted, effort, seed)
        tried.append((deviations[alive.tobytes()], rival))
        longest = max(longest, monotonic() - start)
    best, rival = min(tried, key=lambda pair: pair[0])
    return rival if best < CLEARLY_LESS * tried[0][0] else tried[0][1]


def affordable_samples(selector: Selector, available: int, effort: Effort) -> int:
    """Number of samples for each trial, within the multiply-adds that it may take."""
    macs = cost_model(selector.dag)(selector.dag.all_alive).macs
    affordable = int(effort.trial_work * MAX_TRIAL_MACS / max(macs, 1))
    return min(available, affordable, MAX_TRIAL_SAMPLES)


def _deviation(selector: Selector, alive: Mask, fitted: Dataset, held: Dataset, effort: Effort, seed: int) -> float:
    """Relative deviation of the outputs of a recovered keep mask; infinite if it cannot be run."""
    dag = selector.dag
    batch = calibration_batch(dag, fitted)
    try:
        bare = apply_patch(dag.model, plan_patch(dag, alive))
        recovered = recover(dag, alive, bare, fitted.feeds(batch), held.feeds(batch), seed, effort=effort)
        return distance(dag, recovered.proto, held)
    except RunFailed:
        return float("inf")

"""Search for the exponents of the channel ranking: try each, recovered, on held-out samples.

The value of a channel depends on the weight of the cost that it saves, on the weight of its path mass and on the
contrast between layers; no choice is best for every network.  A trial prunes, refits each layer and measures the
outputs, so that errors which add up over the layers count.
"""

from __future__ import annotations

from dataclasses import dataclass
from time import monotonic

import numpy as np

from leanonnx.analysis.cost import cost_model
from leanonnx.data.samples import Dataset
from leanonnx.effort import Deadline, Effort
from leanonnx.graph.formats import Source
from leanonnx.numeric.arrays import Floats
from leanonnx.numeric.channel_ids import Mask
from leanonnx.ranking.elimination import EXPONENT_CANDIDATES
from leanonnx.recovery.draft import calibration_batch, paired_distances, split_held_out
from leanonnx.recovery.recover import recover
from leanonnx.runtime.sessions import RunFailed
from leanonnx.selection.selector import Selector
from leanonnx.surgery.operate import apply_patch
from leanonnx.surgery.patch import plan_patch
from leanonnx.system.clock import StageProgress

FITTED_TRIAL_SAMPLES = 320
"""Number of samples that trials are fitted to where there are twice as many; they are judged by all others."""
MIN_TRIAL_SAMPLES = 128
"""Smallest number of samples that tell candidates apart; with fewer affordable ones exponents are not searched."""
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
    trial = TrialData.of(data.subsample(count))
    rivals: list[tuple[Selector, Source]] = []
    seen: set[bytes] = set()
    longest = 0.0
    for done, exponents in enumerate(candidates):
        if done and deadline.left() < 2 * longest:
            break
        on_progress(done / len(candidates), f"candidate {done + 1} of {len(candidates)}")
        start, rival = monotonic(), selector.with_exponents(exponents)
        alive = rival.within(selector.request.budget.fraction)
        network = None if alive.tobytes() in seen else recover_choice(rival, alive, trial, effort, seed)
        if network is not None:
            rivals.append((rival, network))
        elif not done:
            return selector
        seen.add(alive.tobytes())
        longest = max(longest, monotonic() - start)
    try:
        distances = paired_distances(dag, [model for _, model in rivals], trial.judged)
    except RunFailed:
        return selector
    return rivals[clearly_best(distances)][0]


def clearly_best(distances: Floats) -> int:
    """Index of the candidate to take, from distances [candidates, parts]; the first is the default.

    A rival is taken only if its distance is less than the default's by more than one standard error of the difference
    over the parts, paired; of several such rivals the one with the least distance.
    """
    bounded = np.nan_to_num(distances, posinf=1.0)
    gains = bounded[0] - bounded
    mean = gains.mean(1)
    noise = gains.std(1, ddof=1) / np.sqrt(gains.shape[1]) if gains.shape[1] > 1 else np.full(len(gains), np.inf)
    clear = np.where(mean > noise, mean, 0.0)
    return int(clear.argmax())


@dataclass(frozen=True)
class TrialData:
    """Samples to fit weights to, to choose the strengths of the fits by, and to judge the result by."""

    fitted: Dataset
    spared: Dataset
    judged: Dataset

    @classmethod
    def of(cls, data: Dataset) -> TrialData:
        """Divide samples among the three; few samples serve the last two together."""
        every = data.count // FITTED_TRIAL_SAMPLES
        pool = data.part(held_out=True, every=every) if every >= 2 else data
        fitted, held = split_held_out(pool)
        spared = held or fitted
        return cls(fitted, spared, data.part(held_out=False, every=every) if every >= 2 else spared)


def affordable_samples(selector: Selector, available: int, effort: Effort, work: float | None = None) -> int:
    """Number of samples for each trial, within the multiply-adds that it may take.

    ``work``: these, as a multiple of those of a trial with normal effort; None stands for those of the effort.
    """
    macs = cost_model(selector.dag)(selector.dag.all_alive).macs
    affordable = int((effort.trial_work if work is None else work) * MAX_TRIAL_MACS / max(macs, 1))
    return min(available, affordable, effort.max_samples)


def recover_choice(selector: Selector, alive: Mask, trial: TrialData, effort: Effort, seed: int) -> Source | None:
    """The pruned network of a keep mask, recovered; None if it cannot be run."""
    dag, batch = selector.dag, calibration_batch(selector.dag, trial.fitted)
    try:
        bare = apply_patch(dag.model, plan_patch(dag, alive))
        feeds, spared = trial.fitted.feeds(batch), trial.spared.feeds(batch)
        return recover(dag, alive, bare, feeds, spared, seed, effort=effort).proto
    except RunFailed:
        return None

"""Search for the exponents of the channel ranking: try each, recovered, on held-out samples.

The value of a channel depends on the weight of the cost that it saves and on the weight of its path mass; no choice is
best for every network.  All of ``EXPONENT_CANDIDATES`` are tried on networks that recover quickly.
"""

from __future__ import annotations

from collections.abc import Callable

from leanonnx.analysis.cost import cost_model
from leanonnx.data.samples import Dataset, batch_size
from leanonnx.numeric.channel_ids import Mask
from leanonnx.ranking.elimination import EXPONENT_CANDIDATES
from leanonnx.recovery.draft import distance, split_held_out
from leanonnx.recovery.recover import recover
from leanonnx.runtime.sessions import RunFailed
from leanonnx.selection.selector import Selector
from leanonnx.surgery.operate import apply_patch
from leanonnx.surgery.patch import plan_patch

MAX_SEARCH_SAMPLES = 320
"""Largest number of samples that a trial uses."""
MAX_SEARCH_MACS = 5e10
"""Largest number of multiply-adds of the original on these samples for which exponents are searched."""
MAX_SEARCH_LAYERS = 32
"""Largest number of layers for which exponents are searched: every trial refits each layer."""


def search_exponents(selector: Selector, data: Dataset, seed: int, on_progress: Callable[[float], None]) -> Selector:
    """Find the selector whose keep mask deviates least after recovery.

    Args:
        selector: ranks by path mass, for the budget of its request.
        data: real inputs.
        seed: seed of sampling.
        on_progress: called with the share of trials done (0 to 1).
    """
    dag, request, some = selector.dag, selector.request, data.subsample(MAX_SEARCH_SAMPLES)
    fitted, spared = split_held_out(some)
    held = spared or fitted
    macs = cost_model(dag)(dag.all_alive).macs
    if (
        macs * some.count > MAX_SEARCH_MACS
        or sum(mix.input_channel_ids is not None for _, mix in dag.kernel_blocks) > MAX_SEARCH_LAYERS
    ):
        return selector
    tried: list[tuple[float, Selector]] = []
    deviations: dict[bytes, float] = {}
    for count, terms in enumerate(EXPONENT_CANDIDATES):
        on_progress(count / len(EXPONENT_CANDIDATES))
        rival = selector.with_exponents(terms)
        alive = rival.within(request.budget.fraction)
        if alive.tobytes() not in deviations:
            deviations[alive.tobytes()] = _deviation(rival, alive, fitted, held, seed)
        tried.append((deviations[alive.tobytes()], rival))
    return min(tried, key=lambda pair: pair[0])[1]


def _deviation(selector: Selector, alive: Mask, fitted: Dataset, held: Dataset, seed: int) -> float:
    """Relative deviation of the outputs of a recovered keep mask; infinite if it cannot be run."""
    dag = selector.dag
    batch = batch_size(fitted)
    try:
        bare = apply_patch(dag.model, plan_patch(dag, alive))
        recovered = recover(dag, alive, bare, fitted.feeds(batch), held.feeds(batch), seed)
        return distance(dag, recovered.proto, held)
    except RunFailed:
        return float("inf")

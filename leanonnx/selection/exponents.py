"""Several ways to weigh the same activations against each other: each is tried out, recovered, on held-out samples.

What a channel is worth depends on how much of the cost it saves counts, and on how far path masses are to be trusted;
no choice is best for every network.  On networks that are quick to recover all of ``TERMS`` are tried.
"""

from __future__ import annotations

from collections.abc import Callable

from leanonnx.analysis.cost import cost_model
from leanonnx.data.samples import Data, batch_size
from leanonnx.numeric.channel_ids import Mask
from leanonnx.ranking.elimination import EXPONENT_CANDIDATES
from leanonnx.recovery.draft import distance, split
from leanonnx.recovery.recover import recover
from leanonnx.runtime.sessions import RunFailed
from leanonnx.selection.selector import Selector
from leanonnx.surgery.operate import apply
from leanonnx.surgery.patch import plan_patch

SAMPLES = 320
"""Samples that a trial uses at most."""
WORK = 5e10
"""Multiply-adds of the original on these samples up to which trials are made."""
LAYERS = 32
"""Layers up to which they are: each of them is fitted anew in every trial."""


def search_exponents(selector: Selector, data: Data, seed: int, told: Callable[[float], None]) -> Selector:
    """The selector whose keep set deviates least once it has been recovered.

    Args:
        selector: ranks by path mass; its request says for which budget.
        data: real inputs.
        seed: of what is sampled.
        told: is told what share of the trials is done (0 to 1).
    """
    dag, request, some = selector.dag, selector.request, data.first(SAMPLES)
    fitted, spared = split(some)
    held = spared or fitted
    macs = cost_model(dag)(dag.whole).macs
    if macs * some.count > WORK or sum(mix.inward is not None for _, mix in dag.kernel_blocks) > LAYERS:
        return selector
    tried: list[tuple[float, Selector]] = []
    known: dict[bytes, float] = {}
    for count, terms in enumerate(EXPONENT_CANDIDATES):
        told(count / len(EXPONENT_CANDIDATES))
        rival = selector.with_exponents(terms)
        alive = rival.within(request.budget.fraction)
        if alive.tobytes() not in known:
            known[alive.tobytes()] = _deviation(rival, alive, fitted, held, seed)
        tried.append((known[alive.tobytes()], rival))
    return min(tried, key=lambda pair: pair[0])[1]


def _deviation(selector: Selector, alive: Mask, fitted: Data, held: Data, seed: int) -> float:
    """Relative deviation of the outputs of a recovered keep set; infinite where it cannot be run."""
    dag = selector.dag
    batch = batch_size(fitted)
    try:
        bare = apply(dag.model, plan_patch(dag, alive))
        found = recover(dag, alive, bare, fitted.feeds(batch), held.feeds(batch), seed)
        return distance(dag, found.proto, held)
    except RunFailed:
        return float("inf")

"""Several passes of recovery, where layers share weights: each begins with the weights of the pass before.

A pass fits a shared weight to rows that earlier weights gave.  Others follow as long as the outputs on held-out inputs
come nearer to the original's; without shared weights, one pass is all.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import closing
from dataclasses import replace
from functools import partial

import onnx

from leanonnx.analysis.dag import ChannelDag
from leanonnx.effort import Deadline, Effort
from leanonnx.numeric.channel_ids import Mask
from leanonnx.recovery.acceptance import is_improvement
from leanonnx.recovery.recover import RecoveryResult, RefitLayer, recover
from leanonnx.recovery.shared import SharedFits
from leanonnx.runtime.sessions import Feed
from leanonnx.system.clock import StageProgress

CLEARLY_NEARER = 0.99
"""Share of the distance that a pass may leave at most, for one more to follow."""


def recover_in_passes(
    dag: ChannelDag,
    alive: Mask,
    proto: onnx.ModelProto,
    feeds: Callable[[], Iterable[Feed]],
    held: Callable[[], Iterable[Feed]],
    distance: Callable[[onnx.ModelProto], float],
    seed: int,
    on_progress: StageProgress,
    *,
    effort: Effort,
    deadline: Deadline,
) -> RecoveryResult:
    """Refit the weights of a compressed network, as ``recover`` does, in as many passes as help.

    Args:
        dag, alive, proto, seed, effort, deadline: as for ``recover``.
        feeds: returns the inputs.
        held: returns the held-out inputs.
        distance: distance of a network's outputs to the original's, on held-out inputs.
        on_progress: called with the progress (0 to 1) of each pass and the name of the layer.

    Raises:
        DataError: a network cannot be run on these inputs.
    """
    with closing(SharedFits()) as shared:
        run = partial(recover, dag, alive, seed=seed, effort=effort, deadline=deadline, shared=shared)
        best = run(proto=proto, feeds=feeds(), held=held(), on_progress=on_progress)
        if not any(fit.has_changed for fit in shared.fits.values()):
            return best
        least = distance(best.proto)
        for _ in range(1, effort.passes):
            if deadline.has_passed:
                break
            rival = run(proto=best.proto, feeds=feeds(), held=held(), on_progress=on_progress)
            now = distance(rival.proto)
            if not is_improvement(least, now):
                break
            is_last = not is_improvement(least, now, CLEARLY_NEARER)
            best, least = replace(rival, layers=_since_the_first(best.layers, rival.layers)), now
            if is_last:
                break
    return best


def _since_the_first(earlier: Iterable[RefitLayer], later: Iterable[RefitLayer]) -> tuple[RefitLayer, ...]:
    """The layers of a pass, with their errors before the first one."""
    pairs = zip(earlier, later, strict=True)
    return tuple(old if new.reason else replace(new, before=old.before) for old, new in pairs)

"""The draft of a result, recovered without data where that can be expected to bring its outputs nearer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import isfinite
from pathlib import Path

import onnx

from leanonnx.errors import ProofFailed
from leanonnx.graph.model import check
from leanonnx.graph.storage import write_model
from leanonnx.inputs.synthetic import distances, smooth_inputs
from leanonnx.numeric.channel_ids import Mask
from leanonnx.recovery.data_free import WAYS, DataFreeFit, recover
from leanonnx.runtime.sessions import RunFailed
from leanonnx.statistics.propagation import PropagatedMoments
from leanonnx.system.clock import Clock

CLEARLY = 0.75
"""Share of the distance on noise that is left at most if what rests on an assumption does good."""
NOTHING = dict.fromkeys(WAYS, 0)


@dataclass(frozen=True)
class DataFreeRecovery:
    """How many removed channels were made up for in which way, counted at each layer that read them.

    ``declined``: what rests on an assumption on the inputs was left out, since noise told that it does no good.
    """

    counts: Mapping[str, int]
    declined: bool = False

    def row(self) -> dict[str, int | bool]:
        """The JSON object."""
        return {**self.counts, "declined": self.declined}


def data_free_draft(known: PropagatedMoments, alive: Mask, draft: Path, seed: int, clock: Clock) -> DataFreeRecovery:
    """Change the weights of a draft without data, on its file.

    Args:
        known: what is known of the original.
        alive: its channels that are left [labels].
        draft: the proven network; replaced where there is anything to make up for.
        seed: of the noise.
        clock: is told how long it takes.

    Raises:
        ProofFailed: what came of it is not valid.
    """
    external = bool(known.dag.model.external_files)
    with clock.stage("recover"):
        bare = onnx.load(draft)
        try:
            found, declined = _better(known, alive, bare, seed)
        except RunFailed as error:
            raise ProofFailed(f"the recovered model is not valid ({error}); nothing written") from error
        if not any(found.counts.values()):
            return DataFreeRecovery(NOTHING, declined)
        write_model(found.proto, draft, external=external)
        check(draft)
    return DataFreeRecovery(found.counts, declined)


def _better(known: PropagatedMoments, alive: Mask, bare: onnx.ModelProto, seed: int) -> tuple[DataFreeFit, bool]:
    """The network recovered, and whether some of that was declined; what cannot be run or overflows is no better."""
    dag, found = known.dag, recover(known, alive, bare)
    if not any(found.counts.values()):
        return found, False
    feeds = smooth_inputs(dag.model, dag.shapes, seed)
    before, after = distances(dag.model, [bare, found.proto], feeds)
    if isfinite(after) and (not found.assumed or after < CLEARLY * before):
        return found, False
    found = recover(known, alive, bare, assume=False)
    (after,) = distances(dag.model, [found.proto], feeds)
    return (found, True) if isfinite(after) else (DataFreeFit(bare, NOTHING, assumed=False), True)

"""Recovery without data: refit a pruned model by its own statistics; synthetic inputs decide if that is kept."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import onnx

from leanonnx.errors import ProofFailed
from leanonnx.graph.model import check_model
from leanonnx.graph.storage import write_model
from leanonnx.inputs.synthetic import output_distances, smooth_inputs
from leanonnx.numeric.channel_ids import Mask
from leanonnx.recovery.acceptance import first_improvement
from leanonnx.recovery.data_free import COMPENSATIONS, fit_without_data
from leanonnx.runtime.sessions import RunFailed
from leanonnx.statistics.propagation import PropagatedMoments
from leanonnx.system.clock import Clock

ASSUMED_AT_MOST = 0.75
"""Share of the distance on synthetic inputs that a change which rests on an assumption may leave."""
NO_COUNTS = dict.fromkeys(COMPENSATIONS, 0)


@dataclass(frozen=True)
class DataFreeRecovery:
    """Numbers of removed channels that were compensated, by way, counted at each layer that read them.

    ``declined``: changes that rest on an assumption on the inputs were left out, as synthetic inputs showed no gain.
    """

    counts: Mapping[str, int]
    declined: bool = False

    @property
    def kept(self) -> bool:
        """True if any weight was changed."""
        return any(self.counts.values())

    def row(self) -> dict[str, int | bool]:
        """The JSON object."""
        return {**self.counts, "declined": self.declined}


def recover_without_data(
    known: PropagatedMoments, alive: Mask, pruned: Path, target: Path, seed: int, clock: Clock
) -> DataFreeRecovery:
    """Refit the weights of a pruned model without data.

    Args:
        known: moments of the original's activations.
        alive: the keep mask [channels].
        pruned: the pruned model's file.
        target: where to write the recovered model; it is written only if ``kept``.
        seed: seed of the synthetic inputs.
        clock: times the stage.

    Raises:
        ProofFailed: the recovered model is not valid.
    """
    with clock.stage("recover"):
        try:
            counts, declined = _best_fit(known, alive, pruned, target, seed)
        except RunFailed as error:
            raise ProofFailed(f"the recovered model is not valid ({error}); nothing written") from error
        if any(counts.values()):
            check_model(target)
    return DataFreeRecovery(counts, declined)


def _best_fit(
    known: PropagatedMoments, alive: Mask, pruned: Path, target: Path, seed: int
) -> tuple[Mapping[str, int], bool]:
    """Write the best fit; returns its counts, and True if one with more changes was declined."""
    model, counts = known.dag.model, list[Mapping[str, int]]()

    def write_fit(assume: bool) -> bool:
        """Write a fit, and return True if it rests on an assumption."""
        fit = fit_without_data(known, alive, onnx.load(pruned), assume=assume)
        counts.append(fit.counts)
        if any(fit.counts.values()):
            write_model(fit.proto, target, external=bool(model.external_files))
        return fit.assumed

    assumed = write_fit(True)
    if not any(counts[0].values()):
        return NO_COUNTS, False

    def changes() -> Iterator[tuple[Path, float | None]]:
        yield target, ASSUMED_AT_MOST if assumed else None
        write_fit(False)
        yield target if any(counts[-1].values()) else pruned, None

    feeds = smooth_inputs(model, known.dag.shapes, seed)
    accepted, _ = first_improvement(pruned, changes(), lambda models: output_distances(model, models, feeds), float)
    return NO_COUNTS if accepted is None else counts[accepted], accepted != 0

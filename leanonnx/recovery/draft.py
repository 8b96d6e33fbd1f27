"""Recovery from data: refit a pruned model; the deviation on held-out samples decides if that is kept."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import onnx

from leanonnx.analysis.dag import ChannelDag
from leanonnx.data.samples import Dataset, batch_size
from leanonnx.effort import DEFAULT_EFFORT, EFFORTS, NO_DEADLINE, Deadline, Effort
from leanonnx.errors import ModelError, ProofFailed
from leanonnx.evaluation.deviation import DeviationSums, Fidelity, compare_outputs, run_side_by_side
from leanonnx.evaluation.slices import bound_errors, channel_axes
from leanonnx.evaluation.tally import Deviation
from leanonnx.graph.formats import Source
from leanonnx.graph.model import check_model
from leanonnx.graph.storage import write_model
from leanonnx.numeric.arrays import Floats
from leanonnx.numeric.channel_ids import Mask
from leanonnx.recovery.acceptance import first_improvement, is_improvement
from leanonnx.recovery.crossfit import cross_fit, cross_fit_parts
from leanonnx.recovery.passes import recover_in_passes
from leanonnx.recovery.recover import RecoveryResult, RefitLayer
from leanonnx.recovery.targets import FLOAT_BYTES
from leanonnx.runtime.sessions import RunFailed
from leanonnx.system.clock import Clock, StageProgress

ADVISED_SAMPLES = 128
"""Number of samples below which more would improve the accuracy much."""
HOLD_OUT_RATES = ((400, 10), (5, 5), (0, 0))
"""Pairs (samples, n): from that number of samples on, every n-th is held out."""
MAX_PAIRED_PARTS = 16
"""Largest number of parts of the samples on which candidates are compared with each other."""
MAX_ACTIVATION_BYTES = 1 << 33
"""Bytes of activations on disk at once; samples beyond that are left out."""
MAX_BATCH_BYTES = 1 << 26
"""Bytes of all activations of one run, which limit its batch."""


@dataclass(frozen=True, kw_only=True)
class Recovery:
    """The deviation of a compressed network from the original on real inputs.

    Attributes:
        samples: number of samples that weights were fitted to.
        held_out: number of other samples, which the deviation was measured on.
        removed: deviation of the pruned network.
        recovered: deviation after recovery; None if no recovery was asked for.
        kept: True if the recovered weights were kept.
        layers: changes by layer.
        parts: number of parts of all samples on which the deviations were measured instead, each part after a recovery
            without it; 0 for the samples held out.
    """

    samples: int
    held_out: int
    removed: Fidelity
    recovered: Fidelity | None
    kept: bool
    layers: tuple[RefitLayer, ...]
    parts: int = 0

    @property
    def final(self) -> Fidelity:
        """The deviation of the written model."""
        return self.recovered if self.recovered and self.kept else self.removed


def split_held_out(data: Dataset) -> tuple[Dataset, Dataset | None]:
    """Split samples into those to fit weights to and those held out; None if they are too few to hold any out."""
    every = next(every for least, every in HOLD_OUT_RATES if data.count >= least)
    if not every:
        return data, None
    held = data.part(held_out=True, every=every)
    return (data.part(held_out=False, every=every), held) if held.count > held.dropped_count else (data, None)


def split_within_memory(
    dag: ChannelDag, data: Dataset, effort: Effort = EFFORTS[DEFAULT_EFFORT]
) -> tuple[Dataset, Dataset | None]:
    """``split_held_out`` of the samples that the effort allows, evenly spaced; fewer if the activations take much."""
    return split_held_out(_samples_within_memory(dag, data, effort))


def _samples_within_memory(dag: ChannelDag, data: Dataset, effort: Effort) -> Dataset:
    fixed = data.fixed_batch or 1
    room = max(1, MAX_ACTIVATION_BYTES // peak_activation_bytes(dag)) * fixed
    return data.subsample(max(min(room, effort.max_samples), fixed))


def calibration_batch(dag: ChannelDag, data: Dataset) -> int:
    """Number of samples per run: the model's own, or as many as have activations of at most ``MAX_BATCH_BYTES``."""
    if data.fixed_batch:
        return data.fixed_batch
    per_sample = FLOAT_BYTES * sum(
        math.prod(shape[1:]) for name, shape in dag.shapes.items() if name in dag.channel_ids
    )
    return max(1, min(batch_size(data), MAX_BATCH_BYTES // max(per_sample, 1)))


def recover_from_data(
    dag: ChannelDag,
    alive: Mask,
    pruned: Path,
    target: Path,
    data: Dataset,
    refit: bool,
    seed: int,
    clock: Clock,
    *,
    effort: Effort = EFFORTS[DEFAULT_EFFORT],
    deadline: Deadline = NO_DEADLINE,
    cross_fits: bool = False,
) -> Recovery:
    """Refit the weights of a pruned model to data.

    Args:
        dag: the original.
        alive: the keep mask [channels].
        pruned: the pruned model's file.
        target: where to write the recovered model; it is the result only if ``kept``.
        data: real inputs.
        refit: False only measures the deviation.
        seed: seed of sampling.
        clock: times the stages.
        effort: bounds the samples and the rows of regressions.
        deadline: no layer is refitted after it.
        cross_fits: where few samples are held out, measure the deviation on all of them (``crossfit``).

    Raises:
        DataError: a network cannot be run on the data.
        ProofFailed: the pruned network does not run on the data, or the recovered one is not valid.
    """
    samples = _samples_within_memory(dag, data, effort)
    fitted, held = split_held_out(samples)
    parts = cross_fit_parts(dag, samples, effort) if cross_fits and held and not deadline.has_passed else ()
    if not refit:
        held = samples if parts else held
        with clock.stage("compare"):
            (removed,) = _deviations(dag, held or data, [pruned])
        spared = held.count if held else 0
        return Recovery(samples=0, held_out=spared, removed=removed, recovered=None, kept=False, layers=())
    fit = partial(_refit, dag, alive, pruned, seed, effort, deadline)
    begin = deadline.now()
    with clock.stage("recover") as on_progress:
        result = fit(samples, on_progress)
        write_model(result.proto, target, external=bool(dag.model.external_files))
    seconds = deadline.now() - begin
    with clock.stage("compare"):
        try:
            check_model(target)
        except ModelError as error:
            raise ProofFailed(f"the recovered model is not valid ({error}); nothing written") from error
        compare_on = partial(_deviations, dag, held or data)
        accepted, (removed, recovered) = first_improvement(pruned, [(target, 1.0)], compare_on, _distance)
    recovery = Recovery(
        samples=fitted.count,
        held_out=held.count if held else 0,
        removed=removed,
        recovered=recovered,
        kept=accepted is not None,
        layers=result.layers,
    )
    if not parts or len(parts) * seconds > deadline.left():
        return recovery
    with clock.stage("recover") as on_progress, _runs_on_data():
        by_parts = cross_fit(dag, pruned, parts, lambda *args: fit(*args).proto, deadline, on_progress)
    return _judged_by_parts(recovery, by_parts, len(parts))


def _refit(
    dag: ChannelDag,
    alive: Mask,
    pruned: Path,
    seed: int,
    effort: Effort,
    deadline: Deadline,
    samples: Dataset,
    on_progress: StageProgress,
) -> RecoveryResult:
    """Refit the weights of a pruned model to samples, some of which are held out; arguments as above."""
    fitted, held = split_held_out(samples)
    batch = calibration_batch(dag, fitted)
    return recover_in_passes(
        dag,
        alive,
        onnx.load(pruned),
        lambda: fitted.feeds(batch),
        lambda: held.feeds(batch) if held else (),
        lambda proto: _distance(_deviations(dag, held or samples, [proto])[0]),
        seed,
        on_progress,
        effort=effort,
        deadline=deadline,
    )


def _judged_by_parts(recovery: Recovery, deviations: Sequence[Fidelity] | None, parts: int) -> Recovery:
    """A recovery with the deviations of cross-fitting, which decide if it is kept, unless its own is infinite."""
    if deviations is None or recovery.recovered is None:
        return recovery
    removed, recovered = deviations
    is_finite = math.isfinite(_distance(recovery.recovered))
    kept = is_finite and is_improvement(_distance(removed), _distance(recovered))
    return replace(recovery, removed=removed, recovered=recovered, kept=kept, parts=parts)


def _deviations(dag: ChannelDag, data: Dataset, models: Sequence[Source]) -> list[Fidelity]:
    """Deviations of compressed models from the original, which have to run."""
    with _runs_on_data():
        return deviations_from_teacher(dag, data, models)


@contextmanager
def _runs_on_data() -> Iterator[None]:
    """Turn the failure of a compressed model into one of the proof."""
    try:
        yield
    except RunFailed as error:
        raise ProofFailed(f"the compressed model does not run on the data ({error}); nothing written") from error


def deviations_from_teacher(dag: ChannelDag, data: Dataset, models: Sequence[Source]) -> list[Fidelity]:
    """Deviations of models from the original, or from the network that it came from.

    Raises:
        DataError: the samples cannot be read, or the original cannot run on them.
        RunFailed: a model cannot run on them.
    """
    teacher, replaced = dag.taught_by, dag.observation.replaced_formats
    return compare_outputs(teacher, teacher.path, models, data, batch_size(data), replaced, channel_axes(dag))


def peak_activation_bytes(dag: ChannelDag) -> int:
    """Largest number of bytes that a run of both networks keeps: three tensors each of the largest size, in float32."""
    largest = max((math.prod(shape) for name, shape in dag.shapes.items() if name in dag.channel_ids), default=1)
    return 2 * 3 * FLOAT_BYTES * max(1, largest)


def paired_distances(
    dag: ChannelDag,
    candidates: Sequence[Source],
    data: Dataset,
    reference: Source | None = None,
    distance: Callable[[Fidelity], float] | None = None,
) -> Floats:
    """Distances of candidates' outputs to those of the original, on the same parts of the samples [candidates, parts].

    There are at most ``MAX_PAIRED_PARTS`` parts.

    Args:
        dag: the original.
        candidates: the models.
        data: the samples.
        reference: a model with the same outputs in place of the original.
        distance: the distance of one part; by default each channel counts by its own scale.

    Raises:
        RunFailed: a candidate cannot be run.
    """
    model, axes = dag.taught_by, channel_axes(dag)
    batch = data.fixed_batch or max(1, min(batch_size(data), data.count // MAX_PAIRED_PARTS))
    parts: list[list[DeviationSums]] = []
    original, replaced = model.path if reference is None else reference, dag.observation.replaced_formats
    runs = run_side_by_side(model, original, candidates, data, batch, replaced)
    for k, (feed, _, wanted, others) in enumerate(runs):
        if k < MAX_PAIRED_PARTS:
            parts.append([DeviationSums(model, axes) for _ in candidates])
        for sums, computed in zip(parts[k % MAX_PAIRED_PARTS], others, strict=True):
            sums.add(feed, wanted, computed)
    measure = distance or _distance
    return np.array([[measure(sums.fidelity(batch)) for sums in part] for part in parts]).T


def larger_distance(fidelity: Fidelity) -> float:
    """Mean over the outputs of the larger of two errors: of its channels, each by its own scale, and of the whole.

    The first overlooks rare large numbers, such as the scores of what a detector finds; the second overlooks channels
    of small numbers.  Infinite if an output is not finite.
    """
    return _mean_share(fidelity, lambda one: max(_whole_share(one), _balanced_share(one)))


def _distance(fidelity: Fidelity) -> float:
    """Mean over the outputs of ``Channels.balanced``, an output without channels counting as one channel.

    Infinite if an output is not finite.
    """
    return _mean_share(fidelity, _balanced_share)


def _mean_share(fidelity: Fidelity, share: Callable[[Deviation], float]) -> float:
    if any(math.isinf(one.relative_l2) for one in fidelity.outputs):
        return math.inf
    return sum(map(share, fidelity.outputs)) / max(len(fidelity.outputs), 1)


def _balanced_share(one: Deviation) -> float:
    return one.channels.balanced if one.channels else _whole_share(one)


def _whole_share(one: Deviation) -> float:
    return float(bound_errors(np.array(one.relative_l2)))

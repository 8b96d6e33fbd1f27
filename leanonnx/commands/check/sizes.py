"""Compare NEW with BASE at further sizes of BASE's free axes, and batches with their single samples.

A model that is right at one size can be silently wrong at another: with an observed size stored as a constant, it runs
at every size but rearranges its data wrongly.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from leanonnx.commands.check.gates import BATCHES
from leanonnx.commands.check.verdicts import FAILED, PASSED, SKIPPED, Verdict, status_of
from leanonnx.evaluation.deviation import DeviationSums, Fidelity, OutputAxes, open_sessions, outputs_of
from leanonnx.evaluation.kinds import channels_last, sample_count
from leanonnx.evaluation.tally import tally_of
from leanonnx.formatting import percent_text, shape_text
from leanonnx.graph.formats import ElementTypes, convert_feed, is_float
from leanonnx.graph.model import Model
from leanonnx.numeric.arrays import Array
from leanonnx.runtime.free_axes import InputShapes
from leanonnx.runtime.sessions import Feed, RunFailed, Session
from leanonnx.runtime.trials import UNNAMED_AXIS, declared_sizes

BATCH_SIZES = (2, 3)
"""Numbers of samples in the batches that are compared with single samples."""
MIN_SAMPLES = 4
"""Least number of samples that are run at each further size."""
BATCH_TOLERANCE = 1e-3
"""Relative difference allowed between a batch and its samples: the order of sums depends on the batch size."""
BATCH_NOISE_FACTOR = 10
"""Allowed difference of NEW as a multiple of BASE's, beyond ``BATCH_TOLERANCE``."""
InputAxis = tuple[str, int]
"""An axis of an input, by name and index."""


@dataclass(frozen=True)
class InputSource:
    """Source of inputs at further sizes.

    Attributes:
        name: description of the inputs.
        samples: inputs of the first size, from which batches are made.
        at: maps sizes and a draw number to inputs.
    """

    name: str
    samples: Sequence[Feed]
    at: Callable[[InputShapes, int], Feed]


@dataclass(frozen=True)
class SizeComparison:
    """Comparison at further sizes.

    ``fault``: why NEW fails at a size where BASE runs, empty if it does not; ``batches``: the verdict on batches;
    ``fidelities``: deviation of NEW from BASE by the source of the inputs.
    """

    fault: str
    batches: Verdict
    fidelities: Mapping[str, Fidelity]


_Run = tuple[Feed, list[Array], list[Array]]
"""Inputs, and the outputs of BASE and of NEW."""


@dataclass(frozen=True)
class _BatchDifference:
    """Difference of a batch from its samples in one output, for BASE and for NEW, and the latter in words."""

    before: float
    after: float
    words: str

    @property
    def limit(self) -> float:
        """Largest difference allowed in NEW."""
        return max(BATCH_TOLERANCE, BATCH_NOISE_FACTOR * self.before)


@dataclass(frozen=True, kw_only=True)
class _Sessions:
    """Sessions of both models, BASE itself, channel axes of its outputs and replaced number formats."""

    model: Model
    base: Session
    new: Session
    axes: OutputAxes
    replaced: ElementTypes

    def run(self, given: Feed) -> _Run | str | None:
        """Run both models: inputs and outputs, or why NEW does not run, or None if BASE does not."""
        feed = convert_feed(given, self.replaced)
        try:
            wanted = outputs_of(self.base, feed)
        except RunFailed:
            return None
        try:
            return feed, wanted, outputs_of(self.new, feed)
        except RunFailed as error:
            return f"does not run at {_feed_text(given)}, where BASE does: {error}"


def compare_at_sizes(
    base: Model,
    new: Model,
    sizes: Iterable[InputShapes],
    inputs: InputSource,
    known: Fidelity,
    axes: OutputAxes,
    replaced: ElementTypes,
) -> SizeComparison:
    """Compare NEW with BASE at other sizes.

    Sizes that change only the batch are omitted if batches agree with their samples.

    Args:
        base: the reference model.
        new: the model to compare, of the same interface.
        sizes: shapes of the graph inputs that BASE runs at.
        inputs: source of inputs at these sizes.
        known: deviation of NEW from BASE on all such inputs at the first size.
        axes: channel axes of the outputs.
        replaced: number formats that onnxruntime cannot run, replaced by float32.
    """
    places = batch_axes(base)
    with open_sessions(base, (base.path, new.path), replaced) as (one, other):
        sides = _Sessions(model=base, base=one, new=other, axes=axes, replaced=replaced)
        fault, verdict, proven = "", Verdict(gate=BATCHES, status=PASSED, detail="the batch of BASE is fixed"), False
        if places:
            fault, verdict, proven = _compare_batches(sides, inputs, places)
        if fault:
            return SizeComparison(fault, verdict, {})
        first = _sizes_but_batch({name: value.shape for name, value in inputs.samples[0].items()}, places)
        further_sizes = [each for each in sizes if not proven or _sizes_but_batch(each, places) != first]
        fault, fidelities = _compare_further(sides, further_sizes, inputs, known)
    return SizeComparison(fault, verdict, fidelities)


def _compare_further(
    sides: _Sessions, sizes: Iterable[InputShapes], inputs: InputSource, known: Fidelity
) -> tuple[str, dict[str, Fidelity]]:
    """The first fault of NEW at further sizes, and its deviation from BASE there."""
    fidelities: dict[str, Fidelity] = {}
    first = sides.run(inputs.samples[0])
    names = [value.name for value in sides.model.proto.graph.output]
    fits = [a.shape == b.shape for a, b in zip(*first[1:], strict=True)] if isinstance(first, tuple) else []
    for each in sizes:
        sums, rows = DeviationSums(sides.model, sides.axes), 0
        for draw in range(MIN_SAMPLES):
            ran = sides.run(inputs.at(each, draw))
            if isinstance(ran, str):
                return ran, fidelities
            if ran is None or rows >= MIN_SAMPLES:
                break
            feed, wanted, other = ran
            for name, fit, a, b in zip(names, fits, wanted, other, strict=False):
                if fit and a.shape != b.shape:
                    shapes = f"[{shape_text(b.shape)}], BASE [{shape_text(a.shape)}]"
                    return (
                        f"at {_feed_text(feed)} outputs '{name}' {shapes}; at the first size the shapes are the same",
                        fidelities,
                    )
            sums.add(feed, wanted, other)
            rows += sample_count(feed)
        if rows:
            fidelities[f"{inputs.name} at {sizes_text(each)}"] = sums.fidelity(rows, known=known)
    return "", fidelities


def _compare_batches(sides: _Sessions, inputs: InputSource, places: Sequence[InputAxis]) -> tuple[str, Verdict, bool]:
    """Compare batches with their single samples, in the outputs where BASE's agree.

    Returns:
        A fault of NEW, the verdict, and True if all outputs were compared and agree.
    """
    samples = [inputs.samples[k % len(inputs.samples)] for k in range(max(BATCH_SIZES))]
    alone: list[_Run] = []
    rows: list[_BatchDifference] = []
    for each in samples:
        ran = sides.run(each)
        if not isinstance(ran, tuple):
            return (
                ran or "",
                Verdict(gate=BATCHES, status=SKIPPED, detail="BASE does not run on the samples one by one"),
                False,
            )
        alone.append(ran)
    for count in BATCH_SIZES:
        together = sides.run(join_samples(samples[:count], places))
        if isinstance(together, str):
            return together, Verdict(gate=BATCHES, status=FAILED), False
        rows += _batch_differences(sides, alone[:count], together, places) if together else []
    if not rows:
        return (
            "",
            Verdict(gate=BATCHES, status=SKIPPED, detail="BASE does not give a batch what it gives its samples either"),
            False,
        )
    worst = max(rows, key=lambda row: row.after / row.limit)
    passed = worst.after <= worst.limit
    text = "" if passed else f"{worst.words}; of BASE by {worst.before:.1e}"
    everything = len(rows) == len(BATCH_SIZES) * len(sides.model.proto.graph.output)
    verdict = Verdict(
        gate=BATCHES, status=status_of(passed), detail=text, measured=worst.after, limit=worst.limit, base=worst.before
    )
    return "", verdict, passed and everything


def _batch_differences(
    sides: _Sessions, alone: Sequence[_Run], together: _Run, places: Sequence[InputAxis]
) -> list[_BatchDifference]:
    """Compare a batch of both models with its samples, in the outputs where BASE's agree."""
    rows = []
    for k, value in enumerate(sides.model.proto.graph.output):
        axis, channel_axes = _batch_axis(declared_sizes(value), sides.model, places), sides.axes.get(value.name, ())
        pairs = ([each[1][k] for each in alone], together[1][k]), ([each[2][k] for each in alone], together[2][k])
        before, after = (_batch_difference(parts, whole, axis, together[0], channel_axes) for parts, whole in pairs)
        if before <= BATCH_TOLERANCE:
            words = f"'{value.name}' of a batch of {len(alone)} differs from that of its samples one by one by "
            words += percent_text(after) if after < float("inf") else "its shape, or in what is no number"
            rows.append(_BatchDifference(before, after, words))
    return rows


def _batch_difference(
    parts: Sequence[Array], whole: Array, axis: int, feed: Feed, channel_axes: Sequence[int]
) -> float:
    """Difference of a batch's output from its samples' outputs; infinite if their shapes do not match."""
    if axis >= whole.ndim or any(part.ndim != whole.ndim for part in parts):
        return float("inf")
    if len({(*part.shape[:axis], *part.shape[axis + 1 :]) for part in parts}) > 1:
        return float("inf")
    stacked = np.concatenate(parts, axis)
    if stacked.shape != whole.shape:
        return float("inf")
    difference = tally_of(stacked, whole, sample_count(feed), channels_last(feed), channel_axes)[0].deviation("")
    return difference.worst if difference.top1 is None or is_float(whole) else 1 - difference.top1


def batch_axes(model: Model) -> list[InputAxis]:
    """The batch axes of the inputs, as far as they are declared free.

    These are axis 0 of the first input whose axis 0 is free, and all axes of the same name; if it has no name, every
    free axis 0 without a name.
    """
    axes = {value.name: declared_sizes(value) for value in model.inputs}
    free = [name for name, sizes in axes.items() if sizes and not isinstance(sizes[0], int)]
    if not free:
        return []
    name = axes[free[0]][0]
    if name == UNNAMED_AXIS:
        return [(each, 0) for each in free if axes[each][0] == UNNAMED_AXIS]
    return [(each, axis) for each, sizes in axes.items() for axis, size in enumerate(sizes) if size == name]


def _batch_axis(sizes: Sequence[int | str], model: Model, places: Sequence[InputAxis]) -> int:
    """The axis of an output that has the name of the inputs' batch axis, else axis 0."""
    first, axis = places[0]
    name = next(declared_sizes(value)[axis] for value in model.inputs if value.name == first)
    return sizes.index(name) if name != UNNAMED_AXIS and name in sizes else 0


def join_samples(samples: Sequence[Feed], places: Sequence[InputAxis]) -> Feed:
    """Join samples to a batch; inputs without a batch axis are taken from the first sample."""
    axes = dict(places)
    return {
        name: np.concatenate([each[name] for each in samples], axes[name]) if name in axes else value
        for name, value in samples[0].items()
    }


def fit_samples(samples: Sequence[Feed], sizes: InputShapes, places: Sequence[InputAxis], first: int = 0) -> Feed:
    """Fit real samples to other sizes: batches start at sample ``first``; other axes are truncated or repeated."""
    start = first % len(samples)
    feed = join_samples([*samples[start:], *samples[:start]], places)
    for name, shape in sizes.items():
        for axis, size in enumerate(shape):
            feed[name] = np.take(feed[name], np.arange(size) % feed[name].shape[axis], axis)
    return feed


def _feed_text(feed: Feed) -> str:
    """The shapes of inputs, as ``--shape`` takes them."""
    return sizes_text({name: value.shape for name, value in feed.items()})


def sizes_text(sizes: InputShapes) -> str:
    """Shapes by name, as ``--shape`` takes them."""
    return " ".join(f"{name}={shape_text(shape)}" for name, shape in sizes.items())


def _sizes_but_batch(sizes: InputShapes, places: Sequence[InputAxis]) -> dict[InputAxis, int]:
    """The size of each axis but the batch axes."""
    every = {(name, axis): size for name, shape in sizes.items() for axis, size in enumerate(shape)}
    return {place: size for place, size in every.items() if place not in places}

"""NEW beside BASE at further sizes of the axes that BASE leaves free, and a batch beside its samples one by one.

What is right at one size can be wrong at another, silently: a size that was seen once and written down as a constant
makes a network that runs at every size and mixes up what it reads.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from leanonnx.commands.check.gates import BATCHES
from leanonnx.commands.check.verdicts import FAILED, PASSED, SKIPPED, Verdict, status_of
from leanonnx.evaluation.deviation import Axes, Fidelity, Sums, all_opened, outputs_of
from leanonnx.evaluation.kinds import channels_last, rows_of
from leanonnx.evaluation.tally import tally_of
from leanonnx.formatting import percent, shape_text
from leanonnx.graph.formats import Kinds, fed_in_float32, is_float
from leanonnx.graph.model import Model
from leanonnx.numeric.arrays import Array
from leanonnx.runtime.free_axes import Sizes
from leanonnx.runtime.observation import UNKNOWN, declared
from leanonnx.runtime.sessions import Feed, RunFailed, Session

COUNTS = (2, 3)
"""Samples in the batches that are compared with them."""
ROWS = 4
"""Samples that are run at each further size at least."""
ALIKE = 1e-3
"""Relative difference up to which a batch is what its samples are: kernels sum in other orders in other batches."""
NOISY = 10
"""How many times as far as BASE's a batch of NEW may be from its samples, beyond ``ALIKE``."""
Place = tuple[str, int]
"""An axis of an input or an output."""


@dataclass(frozen=True)
class Inputs:
    """Where inputs at further sizes come from.

    Attributes:
        name: what they are.
        samples: some inputs of the first size; batches are made of them.
        at: the inputs for other sizes, others for each number given.
    """

    name: str
    samples: Sequence[Feed]
    at: Callable[[Sizes, int], Feed]


@dataclass(frozen=True)
class Sized:
    """What came of it: why NEW does not do at a size what BASE does (empty: it does), the verdict on batches, and how
    far NEW is from BASE by what the inputs were.
    """

    fault: str
    batches: Verdict
    fidelities: Mapping[str, Fidelity]


_Run = tuple[Feed, list[Array], list[Array]]
"""Inputs, and the outputs of BASE and of NEW."""


@dataclass(frozen=True)
class _Apart:
    """How far a batch is from its samples in one output of BASE and of NEW, and the latter in words."""

    before: float
    after: float
    words: str

    @property
    def limit(self) -> float:
        """How far it may be in NEW."""
        return max(ALIKE, NOISY * self.before)


@dataclass(frozen=True)
class _Sides:
    """Sessions of both models."""

    model: Model
    base: Session
    new: Session
    axes: Axes
    replaced: Kinds

    def run(self, given: Feed) -> _Run | str | None:
        """What both read and put out; why NEW does not run, None where BASE does not."""
        feed = fed_in_float32(given, self.replaced)
        try:
            wanted = outputs_of(self.base, feed)
        except RunFailed:
            return None
        try:
            return feed, wanted, outputs_of(self.new, feed)
        except RunFailed as error:
            return f"does not run at {_at(given)}, where BASE does: {error}"


def at_sizes(
    base: Model, new: Model, sizes: Iterable[Sizes], inputs: Inputs, known: Fidelity, axes: Axes, replaced: Kinds
) -> Sized:
    """Hold NEW against BASE at other sizes.

    Sizes of the batch alone are left out where batches give what their samples give: they tell nothing new.

    Args:
        base: the model that tells what is right.
        new: the other one, of the same interface.
        sizes: shapes of the graph inputs that BASE runs at.
        inputs: what to run them on.
        known: how far NEW is from BASE on all such inputs at the first size.
        axes: the axes of the outputs that channel labels tell apart.
        replaced: number formats that onnxruntime cannot run, to be seen as float32.
    """
    places = batch_places(base)
    with all_opened(base, (base.path, new.path), replaced) as (one, other):
        sides = _Sides(base, one, other, axes, replaced)
        fault, verdict, proven = "", Verdict(BATCHES, PASSED, "the batch of BASE is fixed"), False
        if places:
            fault, verdict, proven = _batches(sides, inputs, places)
        if fault:
            return Sized(fault, verdict, {})
        first = _rest({name: value.shape for name, value in inputs.samples[0].items()}, places)
        wanted = [each for each in sizes if not proven or _rest(each, places) != first]
        fault, fidelities = _further(sides, wanted, inputs, known)
    return Sized(fault, verdict, fidelities)


def _further(sides: _Sides, sizes: Iterable[Sizes], inputs: Inputs, known: Fidelity) -> tuple[str, dict[str, Fidelity]]:
    """What NEW fails to do at further sizes, and how far it is from BASE there."""
    found: dict[str, Fidelity] = {}
    first = sides.run(inputs.samples[0])
    names = [value.name for value in sides.model.proto.graph.output]
    fits = [a.shape == b.shape for a, b in zip(*first[1:], strict=True)] if isinstance(first, tuple) else []
    for each in sizes:
        sums, rows = Sums(sides.model, sides.axes), 0
        for draw in range(ROWS):
            ran = sides.run(inputs.at(each, draw))
            if isinstance(ran, str):
                return ran, found
            if ran is None or rows >= ROWS:
                break
            feed, wanted, other = ran
            for name, fit, a, b in zip(names, fits, wanted, other, strict=False):
                if fit and a.shape != b.shape:
                    shapes = f"[{shape_text(b.shape)}], BASE [{shape_text(a.shape)}]"
                    return (
                        f"at {_at(feed)} puts out '{name}' {shapes}; at the first size the shapes are the same",
                        found,
                    )
            sums.add(feed, wanted, other)
            rows += rows_of(feed)
        if rows:
            found[f"{inputs.name} at {sizes_text(each)}"] = sums.fidelity(rows, known=known)
    return "", found


def _batches(sides: _Sides, inputs: Inputs, places: Sequence[Place]) -> tuple[str, Verdict, bool]:
    """Whether a batch gives what its samples give one by one, wherever it does so in BASE; and whether that was shown
    of all outputs.
    """
    samples = [inputs.samples[k % len(inputs.samples)] for k in range(max(COUNTS))]
    alone: list[_Run] = []
    rows: list[_Apart] = []
    for each in samples:
        ran = sides.run(each)
        if not isinstance(ran, tuple):
            return ran or "", Verdict(BATCHES, SKIPPED, "BASE does not run on the samples one by one"), False
        alone.append(ran)
    for count in COUNTS:
        together = sides.run(joined(samples[:count], places))
        if isinstance(together, str):
            return together, Verdict(BATCHES, FAILED), False
        rows += _compared(sides, alone[:count], together, places) if together else []
    if not rows:
        return "", Verdict(BATCHES, SKIPPED, "BASE does not give a batch what it gives its samples either"), False
    worst = max(rows, key=lambda row: row.after / row.limit)
    passed = worst.after <= worst.limit
    text = "" if passed else f"{worst.words}; of BASE by {worst.before:.1e}"
    everything = len(rows) == len(COUNTS) * len(sides.model.proto.graph.output)
    verdict = Verdict(BATCHES, status_of(passed), text, worst.after, worst.limit, worst.before)
    return "", verdict, passed and everything


def _compared(sides: _Sides, alone: Sequence[_Run], together: _Run, places: Sequence[Place]) -> list[_Apart]:
    """A batch of both models beside its samples, by the outputs in which it is the same to BASE."""
    rows = []
    for k, value in enumerate(sides.model.proto.graph.output):
        axis, labelled = _batch_axis(declared(value), sides.model, places), sides.axes.get(value.name, ())
        pairs = ([each[1][k] for each in alone], together[1][k]), ([each[2][k] for each in alone], together[2][k])
        before, after = (_apart(parts, whole, axis, together[0], labelled) for parts, whole in pairs)
        if before <= ALIKE:
            words = f"'{value.name}' of a batch of {len(alone)} differs from that of its samples one by one by "
            words += percent(after) if after < float("inf") else "its shape, or in what is no number"
            rows.append(_Apart(before, after, words))
    return rows


def _apart(parts: Sequence[Array], whole: Array, axis: int, feed: Feed, labelled: Sequence[int]) -> float:
    """How far the output of a batch is from those of its samples; infinite where these do not make it up."""
    if axis >= whole.ndim or any(part.ndim != whole.ndim for part in parts):
        return float("inf")
    if len({(*part.shape[:axis], *part.shape[axis + 1 :]) for part in parts}) > 1:
        return float("inf")
    stacked = np.concatenate(parts, axis)
    if stacked.shape != whole.shape:
        return float("inf")
    told = tally_of(stacked, whole, rows_of(feed), channels_last(feed), labelled)[0].deviation("")
    return told.worst if told.top1 is None or is_float(whole) else 1 - told.top1


def batch_places(model: Model) -> list[Place]:
    """The axes of the inputs along which samples follow each other, as far as they are declared free.

    These are axis 0 of the first input whose axis 0 is free, and all axes of its name; where it has none, axis 0 of
    every input.
    """
    axes = {value.name: declared(value) for value in model.inputs}
    free = [name for name, sizes in axes.items() if sizes and not isinstance(sizes[0], int)]
    if not free:
        return []
    name = axes[free[0]][0]
    if name == UNKNOWN:
        return [(each, 0) for each in free if axes[each][0] == UNKNOWN]
    return [(each, axis) for each, sizes in axes.items() for axis, size in enumerate(sizes) if size == name]


def _batch_axis(sizes: Sequence[int | str], model: Model, places: Sequence[Place]) -> int:
    """The axis of an output that is declared as the batch of the inputs, else axis 0."""
    first, axis = places[0]
    name = next(declared(value)[axis] for value in model.inputs if value.name == first)
    return sizes.index(name) if name != UNKNOWN and name in sizes else 0


def joined(samples: Sequence[Feed], places: Sequence[Place]) -> Feed:
    """A batch of samples; inputs that have no axis for it are those of the first."""
    axes = dict(places)
    return {
        name: np.concatenate([each[name] for each in samples], axes[name]) if name in axes else value
        for name, value in samples[0].items()
    }


def fitted(samples: Sequence[Feed], sizes: Sizes, places: Sequence[Place], first: int = 0) -> Feed:
    """Real inputs at other sizes: as many samples as are asked for, from the ``first`` on in turn, cut off or repeated
    along other axes.
    """
    start = first % len(samples)
    feed = joined([*samples[start:], *samples[:start]], places)
    for name, shape in sizes.items():
        for axis, size in enumerate(shape):
            feed[name] = np.take(feed[name], np.arange(size) % feed[name].shape[axis], axis)
    return feed


def _at(feed: Feed) -> str:
    """The shapes of inputs as ``--shape`` takes them."""
    return sizes_text({name: value.shape for name, value in feed.items()})


def sizes_text(sizes: Sizes) -> str:
    """Shapes by name, as ``--shape`` takes them."""
    return " ".join(f"{name}={shape_text(shape)}" for name, shape in sizes.items())


def _rest(sizes: Sizes, places: Sequence[Place]) -> dict[Place, int]:
    """The size of each axis but those of the batch."""
    every = {(name, axis): size for name, shape in sizes.items() for axis, size in enumerate(shape)}
    return {place: size for place, size in every.items() if place not in places}

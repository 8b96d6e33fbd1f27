"""How far a compressed model is from the original on real inputs, output by output, and from labels where there are.

Both run side by side in onnxruntime on the CPU; of all samples only sums are kept.  What an output is follows from
its shape alone, n being the size of axis 0 of the first graph input:

1. *Classes*: floats [n, K], [n, K, 1, 1] or [n, 1, 1, K], K ≥ 2.  Top-1: share of samples in which both models
   choose the same class; top-5, for K > 5: in which the original's class is among the other's best five.
2. *Image*: floats [n, C, H, W] or [n, H, W, C], C being 1, 3 or 4, H and W at least 8.  PSNR, the peak being the range
   of the original's output over all samples.  What sums to one over C > 1 channels everywhere is no image but 3.
3. *Class map*: other floats [n, K, H, W], K ≥ 2, H and W at least 8.  Top-1: share of pixels that get the same class.
   Classes are on the last axis where that is the shortest, both here and in a graph input.
4. *Whole numbers*, booleans, text of any shape.  Top-1: share of equal elements.
5. Anything else has a relative error alone.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace

import numpy as np

from leanonnx.data.images import COLOURS
from leanonnx.data.samples import Data
from leanonnx.errors import DataError
from leanonnx.graph.formats import Kinds, Source, fed_in_float32, is_float, stand_in
from leanonnx.graph.model import Model
from leanonnx.numeric.arrays import Array
from leanonnx.proof.proof import MANY_NODES
from leanonnx.proof.scores import LOWER, Score, scored
from leanonnx.runtime.sessions import Feed, RunFailed, Session, failing, finished, opened

CLASSES, IMAGE, MAP, DISCRETE, OTHER = "classes", "image", "class map", "whole numbers", "other"
MAP_RANK = 4
SMALLEST = 8
"""Height and width from which on an output is taken as an image or a map."""
BEST = 5
PROBABILITY = 1e-3
"""How far from one probabilities may sum up to."""


@dataclass(frozen=True)
class Deviation:
    """How far one output is from the original's; ``relative_l2`` = ‖difference‖ / ‖original‖ over all samples.

    ``psnr`` is in dB; ``top1`` and ``top5`` are shares 0 … 1.  None: does not apply to this output.  An output that is
    NaN or infinite where the original is not deviates infinitely; ``broken`` counts such elements.  An output of floats
    of which the original's hold no finite number is ``silent``: nothing can be told of it.  One that is ``reshaped``
    had another shape than the original's on some sample, and deviates infinitely too.
    """

    output: str
    relative_l2: float
    psnr: float | None = None
    top1: float | None = None
    top5: float | None = None
    broken: int = 0
    silent: bool = False
    reshaped: bool = False


@dataclass(frozen=True)
class Fidelity:
    """Deviation of all outputs over so many samples; with labels, the ``metric`` of both models.

    ``unused`` says why there is no metric although there are labels.
    """

    samples: int
    outputs: tuple[Deviation, ...]
    metric: str | None = None
    before: float | None = None
    after: float | None = None
    unused: str | None = None

    @property
    def better(self) -> str | None:
        """Whether a ``higher`` or a ``lower`` metric is better; None without one."""
        return None if self.metric is None else "lower" if self.metric in LOWER else "higher"


@dataclass(frozen=True)
class Tally:
    """Sums over samples of one output: squares, the original's range, and choices that agree out of ``choices``."""

    error: float = 0.0
    power: float = 0.0
    low: float = math.inf
    high: float = -math.inf
    elements: int = 0
    choices: int = 0
    same: int = 0
    near: int | None = None
    sums_to_one: bool = True
    kinds: frozenset[str] = frozenset()
    broken: int = 0
    reshaped: bool = False

    def plus(self, other: Tally) -> Tally:
        """The sums over the samples of both."""
        return Tally(
            self.error + other.error,
            self.power + other.power,
            min(self.low, other.low),
            max(self.high, other.high),
            self.elements + other.elements,
            self.choices + other.choices,
            self.same + other.same,
            other.near if self.near is None else self.near + (other.near or 0),
            self.sums_to_one and other.sums_to_one,
            self.kinds | other.kinds,
            self.broken + other.broken,
            self.reshaped or other.reshaped,
        )

    def deviation(self, output: str) -> Deviation:
        """What the sums say."""
        relative = math.sqrt(self.error / self.power) if self.power else math.inf if self.error else 0.0
        kind = next(iter(self.kinds)) if len(self.kinds) == 1 else OTHER
        top1 = self.same / self.choices if self.choices else None
        if kind == DISCRETE:
            return Deviation(output, relative, top1=top1, reshaped=self.reshaped)
        silent = self.elements > 0 and self.low > self.high and not self.error
        found = Deviation(output, relative, broken=self.broken, silent=silent, reshaped=self.reshaped)
        if kind == IMAGE and not (self.choices and self.sums_to_one):
            return replace(found, psnr=self._psnr())
        if kind == OTHER:
            return found
        top5 = self.near / self.choices if self.near is not None and self.choices else None
        return replace(found, top1=top1, top5=top5)

    def _psnr(self) -> float | None:
        if not self.elements:
            return None
        peak = max(self.high - self.low, 0.0)
        if not self.error:
            return math.inf
        return 10 * math.log10(peak**2 * self.elements / self.error) if peak and self.error < math.inf else -math.inf


def compare(
    model: Model,
    original: Source,
    candidates: Sequence[Source],
    data: Data,
    batch: int = 1,
    replaced: Kinds = frozenset(),
) -> list[Fidelity]:
    """Run the original and some candidates on all samples and compare the outputs of each with the original's.

    Args:
        model: the original, for the names of its outputs and its libraries.
        original: what to compare with.
        candidates: models of the same interface.
        data: real inputs, with or without labels.
        batch: samples in one run, where the model leaves that free.
        replaced: number formats that onnxruntime cannot run, to be seen as float32.

    Raises:
        DataError: the data hold no sample, cannot be read, or the original cannot run on them.
        RunFailed: a candidate cannot run on what the original runs on.
    """
    samples = data.count - data.dropped
    if not samples:
        raise DataError(f"{data.files[0].title}: no samples to compare on; give more data")
    names = [value.name for value in model.proto.graph.output]
    tallies, scores = [[Tally() for _ in names] for _ in candidates], [Score() for _ in candidates]
    for feed, label, wanted, others in side_by_side(model, original, candidates, data, batch, replaced):
        rows, last = rows_of(feed), channels_last(feed)
        kinds = [kind_of(value, rows, last) for value in wanted]
        axes = [axis if kind == CLASSES else None for kind, axis in kinds]
        for k, found in enumerate(others):
            parts = zip(tallies[k], wanted, found, kinds, strict=True)
            tallies[k] = [tally.plus(_tally(a, b, kind)) for tally, a, b, kind in parts]
            if label is not None:
                scores[k] = scores[k].plus(scored(label, wanted, found, axes))
    return [_fidelity(names, samples, data.labels, *sums) for sums in zip(tallies, scores, strict=True)]


def _fidelity(names: list[str], samples: int, labels: str | None, tallies: list[Tally], score: Score) -> Fidelity:
    """What the sums of one candidate say."""
    outputs = tuple(tally.deviation(name) for tally, name in zip(tallies, names, strict=True))
    if labels is None:
        return Fidelity(samples, outputs)
    metric, before, after = score.result()
    unused = None if metric else f"the labels '{labels}' fit no output of the model: no metric is told"
    return Fidelity(samples, outputs, metric, before, after, unused)


def side_by_side(
    model: Model, original: Source, candidates: Sequence[Source], data: Data, batch: int, replaced: Kinds
) -> Iterator[tuple[Feed, Array | None, list[Array], list[list[Array]]]]:
    """Inputs, labels, outputs of the original and of each candidate, run by run; arguments are those of ``compare``.

    Raises:
        DataError: the data cannot be read, or the original cannot run on them.
        RunFailed: a candidate cannot run on what the original runs on.
    """
    optimise = len(model.proto.graph.node) <= MANY_NODES
    with ExitStack() as stack:
        with failing():
            sides = [stand_in(source, replaced) for source in (original, *candidates)]
            sessions = [stack.enter_context(opened(side, optimise, model.libraries)) for side in sides]
        del sides
        for given, label in data.labelled(batch):
            feed = fed_in_float32(given, replaced)
            try:
                wanted = _outputs(sessions[0], feed)
            except RunFailed as error:
                shapes = ", ".join(f"'{name}' {list(value.shape)}" for name, value in feed.items())
                raise DataError(
                    f"{data.files[0].title}: the model cannot run on the data ({shapes}): {error}; "
                    "give samples of a shape that it takes"
                ) from error
            yield feed, label, wanted, [_outputs(session, feed) for session in sessions[1:]]


def _outputs(session: Session, feed: Feed) -> list[Array]:
    with failing():
        return [np.asarray(value) for value in finished(session, feed)]


def rows_of(feed: Feed) -> int:
    """Size of axis 0 of the first input that has one."""
    return next((value.shape[0] for value in feed.values() if value.ndim), 1)


def channels_last(feed: Feed) -> bool:
    """Whether an input is shortest along its last axis."""
    return any(_last_is_shortest(value.shape) for value in feed.values() if value.ndim == MAP_RANK)


def _last_is_shortest(shape: Sequence[int]) -> bool:
    return shape[3] < min(shape[1:3])


def kind_of(value: Array, rows: int, channels_last: bool) -> tuple[str, int]:
    """What an output is, and its axis of classes or colours."""
    shape = value.shape
    if not is_float(value):
        return DISCRETE, 0
    if not shape or shape[0] != rows or len(shape) not in (2, MAP_RANK):
        return OTHER, 0
    long = [axis for axis, size in enumerate(shape) if axis and size > 1]
    if len(long) == 1 and long[0] in (1, MAP_RANK - 1):
        return CLASSES, long[0]
    if len(shape) != MAP_RANK:
        return OTHER, 0
    for axis, sides in ((1, shape[2:]), (3, shape[1:3])):
        if shape[axis] in COLOURS and min(sides) >= SMALLEST:
            return IMAGE, axis
    axis = 3 if channels_last and _last_is_shortest(shape) else 1
    if min(shape[2:] if axis == 1 else shape[1:3]) < SMALLEST:
        return OTHER, 0
    return MAP, axis


def _tally(wanted: Array, found: Array, kind: tuple[str, int]) -> Tally:
    """The sums of one run."""
    name, axis = kind
    if wanted.shape != found.shape:
        worst = Tally(error=math.inf, elements=wanted.size, choices=1, sums_to_one=False, kinds=frozenset({name}))
        return replace(worst, reshaped=True)
    if name == DISCRETE:
        return _discrete(wanted, found)
    a, b = wanted.astype(np.float64), found.astype(np.float64)
    with np.errstate(all="ignore"):
        alike = (a == b) | (np.isnan(a) & np.isnan(b))
        error = float(np.sum(np.where(alike, 0.0, a - b) ** 2))
    living = a[np.isfinite(a)]
    sums = Tally(
        error if math.isfinite(error) else math.inf,
        float(np.sum(living**2)),
        float(living.min(initial=math.inf)),
        float(living.max(initial=-math.inf)),
        a.size,
        kinds=frozenset({name}),
        broken=int(np.sum(np.isfinite(a) & ~np.isfinite(b))),
    )
    return sums if name == OTHER or a.shape[axis] < 2 or not a.size else sums.plus(_choices(a, b, kind))


def _discrete(wanted: Array, found: Array) -> Tally:
    """Sums of whole numbers, booleans or text; text that differs counts as a difference of one."""
    same = int(np.sum(wanted == found))
    if wanted.dtype.kind in "biu":
        a, b = wanted.astype(np.float64), found.astype(np.float64)
        error, power = float(np.sum((a - b) ** 2)), float(np.sum(a**2))
    else:
        error, power = float(wanted.size - same), float(wanted.size)
    return Tally(error, power, elements=wanted.size, choices=wanted.size, same=same, kinds=frozenset({DISCRETE}))


def _choices(wanted: Array, found: Array, kind: tuple[str, int]) -> Tally:
    """Which classes both choose along an axis; a choice among NaN is no choice."""
    name, axis = kind
    first = np.argmax(wanted, axis, keepdims=True)
    sound = ~np.isnan(found).any(axis, keepdims=True)
    same = int(np.sum((first == np.argmax(found, axis, keepdims=True)) & sound))
    near = None
    if name == CLASSES and wanted.shape[axis] > BEST:
        better = np.sum(found > np.take_along_axis(found, first, axis), axis, keepdims=True)
        near = int(np.sum((better < BEST) & sound))
    with np.errstate(all="ignore"):
        sums_to_one = bool((np.abs(wanted.sum(axis) - 1) <= PROBABILITY).all())
    return Tally(choices=first.size, same=same, near=near, sums_to_one=sums_to_one, kinds=frozenset({name}))

"""Deviation of a compressed model from the original on real inputs, output by output, and scores on labels if given.

Both models run side by side in onnxruntime on the CPU; only sums over the samples are kept (``tally``).  The kind of an
output follows from its shape alone (``kinds``):

1. *Classes*.  Top-1: share of samples for which both models choose the same class; top-5, for K > 5: for which the
   original's class is among the candidate's best five.
2. *Image*.  PSNR, the peak being the range of the original's output over all samples.  An output that sums to one over
   C > 1 channels everywhere is treated as 3.
3. *Class map*.  Top-1: share of pixels that get the same class.  Two channels may be either (``kinds``): both.
4. *Integers*, booleans, text.  Top-1: share of equal elements.
5. Any other output has a relative error only.

The relative error is given for the whole tensor, and for the channel in which it is largest (``slices``).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field

import numpy as np

from leanonnx.data.samples import Dataset
from leanonnx.errors import DataError
from leanonnx.evaluation.intervals import IntervalEnds
from leanonnx.evaluation.kinds import CLASSES, channels_last, has_complex_image, sample_count
from leanonnx.evaluation.scores import LOWER_IS_BETTER, Score, score_outputs
from leanonnx.evaluation.tally import Deviation, Tally, tally_of
from leanonnx.formatting import count_text
from leanonnx.graph.formats import ElementTypes, Source, convert_feed, stand_in
from leanonnx.graph.model import Model
from leanonnx.numeric.arrays import Array
from leanonnx.proof.proof import is_optimised
from leanonnx.runtime.sessions import Feed, RunFailed, Session, open_session, run_session, translate_errors
from leanonnx.system.notebook import (
    Estimate,
    ResultTable,
    View,
    measures_of,
    result_csv,
    result_frame,
    result_html,
)

OutputAxes = Mapping[str, tuple[int, ...]]
"""For each graph output, the axes along which channel ids differ."""
ComparedRuns = Iterator[tuple[Feed, Array | None, list[Array], list[list[Array]]]]


@dataclass(frozen=True, kw_only=True)
class Fidelity:
    """Deviation of all outputs over ``samples`` samples; with labels, the ``metric`` of both models.

    ``before_interval``, ``after_interval``: 95 % intervals of the metric over other samples.
    ``unused``: the reason if labels are given but no metric applies.
    """

    samples: int
    outputs: tuple[Deviation, ...]
    metric: str | None = None
    before: float | None = None
    after: float | None = None
    unused: str | None = None
    before_interval: IntervalEnds | None = field(default=None, compare=False)
    after_interval: IntervalEnds | None = field(default=None, compare=False)

    @property
    def better_direction(self) -> str | None:
        """Direction in which the metric improves, ``higher`` or ``lower``; None without a metric."""
        return None if self.metric is None else "lower" if self.metric in LOWER_IS_BETTER else "higher"

    def rows(self) -> tuple[dict[str, object], ...]:
        """The deviation of each output, as rows of a table."""
        return tuple(
            {"output": one.output, **measures_of(one, one.intervals), "vacuous": one.vacuous or None}
            for one in self.outputs
        )

    def metric_rows(self) -> tuple[dict[str, object], ...]:
        """The metric of both models as a row of a table; none without a metric."""
        if self.metric is None:
            return ()
        ends = {"before": self.before_interval, "after": self.after_interval}
        values = {name: Estimate(getattr(self, name), interval) for name, interval in ends.items()}
        return ({"metric": self.metric, "better": self.better_direction, **values},)

    def _view(self) -> View:
        tables = (ResultTable("deviation", self.rows()), ResultTable("metric", self.metric_rows()))
        line = f"Deviation from the original on {count_text(self.samples, 'sample')}"
        return View(line=line, tables=tables, notes=(self.unused,) if self.unused else ())

    _repr_html_ = result_html
    to_pandas = result_frame
    to_csv = result_csv


def compare_outputs(
    model: Model,
    original: Source,
    candidates: Sequence[Source],
    data: Dataset,
    batch: int = 1,
    replaced: ElementTypes = frozenset(),
    axes: OutputAxes | None = None,
) -> list[Fidelity]:
    """Run the original and candidates on all samples and compare the outputs of each candidate with the original's.

    Args:
        model: the original, for the names of its outputs and its libraries.
        original: the model to compare with.
        candidates: models of the same interface.
        data: real inputs, with or without labels.
        batch: samples per run, if the model leaves the batch size free.
        replaced: number formats that onnxruntime cannot run, replaced by float32.
        axes: the axes of the outputs along which channel ids differ, if known (``slices.channel_axes``).

    Raises:
        DataError: the data contain no sample, cannot be read, or the original cannot run on them.
        RunFailed: a candidate cannot run on inputs that the original runs on.
    """
    samples = data.count - data.dropped_count
    if not samples:
        raise DataError(f"{data.files[0].title}: no samples to compare on; give more data")
    sums = [DeviationSums(model, axes or {}) for _ in candidates]
    add_deviations(sums, model, original, candidates, data, batch, replaced)
    return [one.fidelity(samples, data.label_name) for one in sums]


class DeviationSums:
    """Sums over the runs of one candidate compared with the original."""

    def __init__(self, model: Model, axes: OutputAxes) -> None:
        self.model, self.axes = model, axes
        self.names = [value.name for value in model.proto.graph.output]
        self.tallies, self.score = [Tally() for _ in self.names], Score()

    def add(self, feed: Feed, wanted: Sequence[Array], computed: Sequence[Array], label: Array | None = None) -> None:
        """Add one run: inputs, outputs of the original (``wanted``) and of the candidate (``computed``), labels."""
        rows, last, paired = sample_count(feed), channels_last(feed), has_complex_image(feed)
        classes: list[int | None] = []
        for k, name in enumerate(self.names):
            axes = self.axes.get(name, ())
            tally, (kind, axis) = tally_of(wanted[k], computed[k], rows, last, axes, paired)
            self.tallies[k] = self.tallies[k].plus(tally)
            classes.append(axis if kind == CLASSES else None)
        if label is not None:
            self.score = self.score.plus(score_outputs(label, wanted, computed, classes))

    def fidelity(self, samples: int, labels: str | None = None, known: Fidelity | None = None) -> Fidelity:
        """Return the deviation that the sums amount to.

        Args:
            samples: number of samples.
            labels: name of the labels, if any.
            known: deviation of the same outputs over more samples.
        """
        free, channels = self.model.free, {one.output: one.channels for one in known.outputs} if known else {}
        outputs = tuple(
            tally.deviation(name, name in free, channels.get(name))
            for tally, name in zip(self.tallies, self.names, strict=True)
        )
        if labels is None:
            return Fidelity(samples=samples, outputs=outputs)
        metric, before, after = self.score.result()
        unused = None if metric else f"the labels '{labels}' fit no output of the model: there is no metric"
        first, second = self.score.intervals()
        return Fidelity(
            samples=samples,
            outputs=outputs,
            metric=metric,
            before=before,
            after=after,
            unused=unused,
            before_interval=first,
            after_interval=second,
        )


def add_deviations(
    sums: Sequence[DeviationSums],
    model: Model,
    original: Source,
    candidates: Sequence[Source],
    data: Dataset,
    batch: int,
    replaced: ElementTypes,
) -> None:
    """Add the runs on all samples to the sums of each candidate; arguments and errors as in ``compare_outputs``."""
    for feed, label, wanted, others in run_side_by_side(model, original, candidates, data, batch, replaced):
        for one, computed in zip(sums, others, strict=True):
            one.add(feed, wanted, computed, label)


def run_side_by_side(
    model: Model, original: Source, candidates: Sequence[Source], data: Dataset, batch: int, replaced: ElementTypes
) -> ComparedRuns:
    """Yield inputs, labels, outputs of the original and of each candidate, run by run; arguments as in ``compare``.

    Raises:
        DataError: the data cannot be read, or the original cannot run on them.
        RunFailed: a candidate cannot run on inputs that the original runs on.
    """
    with open_sessions(model, (original, *candidates), replaced) as sessions:
        for given, label in data.labelled_feeds(batch):
            feed = convert_feed(given, replaced)
            try:
                wanted = outputs_of(sessions[0], feed)
            except RunFailed as error:
                shapes = ", ".join(f"'{name}' {list(value.shape)}" for name, value in feed.items())
                raise DataError(
                    f"{data.files[0].title}: the model cannot run on the data ({shapes}): {error}; "
                    "give samples of a shape that it accepts"
                ) from error
            yield feed, label, wanted, [outputs_of(session, feed) for session in sessions[1:]]


@contextmanager
def open_sessions(model: Model, sources: Sequence[Source], replaced: ElementTypes) -> Iterator[list[Session]]:
    """Open sessions of models that are compared with each other.

    Args:
        model: the original, for its size and its libraries.
        sources: the models.
        replaced: number formats that onnxruntime cannot run, replaced by float32.

    Raises:
        RunFailed: onnxruntime cannot load one of them.
    """
    optimise = is_optimised(model)
    with ExitStack() as stack:
        with translate_errors():
            sides = [stand_in(source, replaced) for source in sources]
            sessions = [stack.enter_context(open_session(side, optimise, model.libraries)) for side in sides]
        del sides
        yield sessions


def outputs_of(session: Session, feed: Feed) -> list[Array]:
    """Return the outputs of one run.

    Raises:
        RunFailed: onnxruntime cannot run the model on these inputs.
    """
    with translate_errors():
        return [np.asarray(value) for value in run_session(session, feed)]

"""Rows that reports share: layers, pins, proofs, deviations and times, as frozen data with the keys of their JSON."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, NamedTuple

from leanonnx.reporting.encoding import INLINE, OPTIONAL, JsonField
from leanonnx.runtime.fastpath import ConvolutionLayouts

REPORT_SCHEMA = 1
"""Version of the JSON objects, in each as ``schema``."""


class BeforeAfter(NamedTuple):
    """A number of the original and of the compressed network."""

    before: int
    after: int


@dataclass(frozen=True)
class LayerRow:
    """A layer with kernels: its convolution groups, channels read and output, kernels and multiply-adds."""

    name: str
    operator: str
    groups: BeforeAfter
    inputs: Annotated[BeforeAfter, JsonField("in")]
    outputs: Annotated[BeforeAfter, JsonField("out")]
    kernels: BeforeAfter
    macs: BeforeAfter


@dataclass(frozen=True)
class ProductRow:
    """A node without kernels that multiplies tensors, with its multiply-adds."""

    name: str
    operator: str
    macs: BeforeAfter


@dataclass(frozen=True, kw_only=True)
class PinRow:
    """Channels that may not be removed: the reason, how to change that, and the kept ``kernels`` that touch them."""

    tensor: str
    channels: int
    reason: str
    advice: str
    kernels: int


@dataclass(frozen=True)
class TieRow:
    """Layers whose output channels are kept or removed together, and the number of groups that tie them."""

    layers: tuple[str, ...]
    groups: Annotated[int, JsonField("classes")]


@dataclass(frozen=True, kw_only=True)
class ProofRow:
    """Result of a proof; see ``leanonnx.proof.proof.Proof``.

    Attributes:
        status: passed, failed, vacuous (the comparison says nothing) or random (so is the network).
        max_relative_error, bound: the largest relative error, and its limit.
        inputs, sizes: number of inputs, and of sizes of inputs, that both networks ran on.
        outputs: the largest error of each output.
    """

    status: str
    max_relative_error: float
    bound: float
    inputs: int
    sizes: int
    outputs: Mapping[str, float]


@dataclass(frozen=True, kw_only=True)
class RuntimesRow:
    """The written model in two runtimes; see ``leanonnx.proof.runtimes.RuntimeComparison``.

    Attributes:
        runtimes: the names of both.
        status: passed; "as the original": the two differ, but not because of what was removed; not run.
        output: the output with the largest error; None if it was not run.
        max_relative_error, bound: that error, and its limit; None if it was not run.
        original_error: the same on the original; None where that was not needed.
        inputs: number of inputs.
        reason: why it was not run; None if it was.
    """

    runtimes: tuple[str, str]
    status: str
    output: str | None
    max_relative_error: float | None
    bound: float | None
    original_error: float | None
    inputs: int
    reason: str | None


IntervalRow = tuple[float | None, float | None]
"""Ends of an interval; None where one is infinite."""


@dataclass(frozen=True, kw_only=True)
class WorstChannel:
    """The slice of an output along ``axis`` that deviates most; ``relative_l2`` is None where it is infinite.

    ``interval``: 95 % confidence interval over other samples; None where there is none.
    """

    axis: int
    index: int
    relative_l2: float | None
    interval: Annotated[IntervalRow | None, OPTIONAL] = None


@dataclass(frozen=True, kw_only=True)
class IntervalsRow:
    """95 % confidence intervals of the measures of a deviation, over other samples; None where there is none."""

    relative_l2: IntervalRow | None = None
    psnr: IntervalRow | None = None
    top1: IntervalRow | None = None
    top5: IntervalRow | None = None


@dataclass(frozen=True, kw_only=True)
class OutputDeviation:
    """Deviation of one output from the original; see ``leanonnx.evaluation.tally.Deviation``.

    ``relative_l2`` and ``psnr`` are None where they are infinite, all measures where they do not apply.

    Attributes:
        relative_l2: norm of the difference / norm of the original's output.
        psnr: in dB.
        top1: share of equal decisions.
        top5: share of the original's decisions among the best five.
        worst_channel: the slice that deviates most.
        vacuous: the reason if the comparison says nothing.
        intervals: of these measures.
        reshaped: True if it differs from the original in shape on some sample; None if it does not.
    """

    relative_l2: float | None
    psnr: float | None
    top1: float | None
    top5: float | None
    worst_channel: WorstChannel | None
    vacuous: str | None
    intervals: Annotated[IntervalsRow | None, OPTIONAL] = None
    reshaped: Annotated[bool | None, OPTIONAL] = None

    @property
    def known(self) -> IntervalsRow:
        """The intervals that are known."""
        return self.intervals or IntervalsRow()


@dataclass(frozen=True, kw_only=True)
class MetricChange:
    """The metric that labels give, of the original and of the compressed model; ``better``: higher or lower.

    ``before_interval``, ``after_interval``: 95 % confidence intervals over other samples; None where there are none.
    ``by_chance``: True if the original scores no better than by chance; None if it does.
    """

    name: str
    better: str | None
    before: float | None
    after: float | None
    before_interval: Annotated[IntervalRow | None, OPTIONAL] = None
    after_interval: Annotated[IntervalRow | None, OPTIONAL] = None
    by_chance: Annotated[bool | None, OPTIONAL] = None


@dataclass(frozen=True)
class FidelityRow:
    """Deviation of each output on so many samples, and the metric where there are labels."""

    samples: int
    outputs: Mapping[str, OutputDeviation]
    metric: MetricChange | None


@dataclass(frozen=True, kw_only=True)
class ComparisonRow:
    """The ratio of two models' times; see ``leanonnx.runtime.timing.TimingComparison``.

    Attributes:
        speedup, interval: time before / after, with its 95 % interval.
        noise: the same for a model against itself, as a distance from 1.
        rounds, lots: number of blocks timed of each model, and of sets of sessions.
        verdict: faster, slower, or no difference shown.
    """

    speedup: float
    interval: tuple[float, float]
    noise: float
    rounds: int
    lots: int
    verdict: str


@dataclass(frozen=True)
class LayoutChange:
    """Convolutions in onnxruntime's blocked layout and not; None on a GPU."""

    before: ConvolutionLayouts | None
    after: ConvolutionLayouts | None


@dataclass(frozen=True, kw_only=True)
class LatencyRow:
    """Measured time of one run before and after."""

    provider: str
    threads: int
    before_ms: float
    after_ms: float
    comparison: Annotated[ComparisonRow, INLINE]
    busy: bool
    convolutions: LayoutChange


@dataclass(frozen=True, kw_only=True)
class RemovedBranch:
    """A branch that was removed, and what took its place.

    Attributes:
        tensor: the tensor at which it was joined.
        kind: "linear": a matrix takes its place; "shortcut": the convolution beside it; "scale": a factor by channel.
        nodes: number of nodes that are gone.
        macs: multiply-adds that this saves in the original.
        unexplained: share of the variance of that tensor that the stand-in does not explain, held out.
    """

    tensor: str
    kind: str
    nodes: int
    macs: int
    unexplained: float

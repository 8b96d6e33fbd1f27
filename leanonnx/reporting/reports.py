"""The reports of ``leanonnx compress`` and ``leanonnx inspect``: frozen data with the keys of their JSON."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated

from leanonnx.analysis.cost import CopiedConstants
from leanonnx.recovery.recover import RefitLayer
from leanonnx.reporting.costs import CostChanges, CostCounts
from leanonnx.reporting.encoding import INLINE, OPTIONAL, JsonField
from leanonnx.reporting.rows import (
    REPORT_SCHEMA,
    ComparisonRow,
    FidelityRow,
    LatencyRow,
    LayerRow,
    PinRow,
    ProductRow,
    ProofRow,
    RemovedBranch,
    RuntimesRow,
    TieRow,
)


@dataclass(frozen=True, kw_only=True)
class JudgementRow:
    """The judgement on the worst output; see ``leanonnx.evaluation.judgement.Judgement``.

    ``relative_l2`` is None where it is infinite. ``on``: the inputs that it rests on, real samples or random ones.
    """

    kind: str
    output: str
    samples: int
    on: str
    agreement: float | None
    agreement_bound: float | None
    chance: float | None
    relative_l2: float | None
    mean_l2: float | None


@dataclass(frozen=True)
class RecoveryRow:
    """Deviation of the result on real inputs, and what was done to each layer.

    Attributes:
        samples: number of samples that weights were fitted to.
        held_out: number of other samples; the deviation was measured on these, if there are any and no ``parts``.
        parts: number of parts of all samples, if the deviation was measured on each after a fit to the others
            (cross-fitting); else 0.
        effort, minutes: the work that calibration might take, and the limit on its time.
        kept: the weights that were fitted are those of the result.
        deviation: of the result.
        removed: of the network before its weights were changed.
        layers: errors of the fits; None where they are infinite or nothing was done.
    """

    samples: int
    held_out: int
    parts: int
    effort: str
    minutes: float | None
    kept: bool
    deviation: FidelityRow
    removed: FidelityRow
    layers: tuple[RefitLayer, ...]


@dataclass(frozen=True, kw_only=True)
class ReadingRow:
    """A number that a tolerance limits: its value, its confidence bound and its limit; None where it is infinite."""

    value: float | None
    bound: float | None
    limit: float
    met: bool


@dataclass(frozen=True, kw_only=True)
class LookRow:
    """A candidate that was judged.

    Attributes:
        fraction: share of what is minimised, as predicted.
        macs: share of the multiply-adds.
        readings: by tolerance.
        met: all tolerances are met.
        seconds: that making and judging it took.
    """

    fraction: float
    macs: float
    readings: Mapping[str, ReadingRow]
    met: bool
    seconds: float


@dataclass(frozen=True, kw_only=True)
class ToleranceRow:
    """The candidates that were judged by tolerances.

    Attributes:
        unit: the metric that was minimised.
        samples: number of held-out samples, which nothing else has seen.
        confidence: level of the bounds of all looks together.
        allowed: number of looks that they allow for.
        met: the result is within the tolerances.
        chosen: index of its look.
        looks: in order.
        ended: why no more were judged; None for one of several points.
    """

    unit: str
    samples: int
    confidence: float
    allowed: int
    met: bool
    chosen: int
    looks: tuple[LookRow, ...]
    ended: str | None = None


@dataclass(frozen=True)
class DataFreeRow:
    """Number of removed channels that weights were changed for without data, by kind, at each layer that read them.

    ``declined``: changes that rest on an assumption about the inputs were left out.
    """

    constants: int
    means: int
    merged: int
    declined: bool

    @property
    def weights_changed(self) -> bool:
        """True if any weight was changed."""
        return bool(self.constants or self.means or self.merged)


@dataclass(frozen=True)
class LosslessRow:
    """Channels removed since they contribute nothing, counted by reason, and the layers that went with them."""

    channels: Mapping[str, int]
    layers: tuple[str, ...]


@dataclass(frozen=True)
class ReplacedRow:
    """The selection of the budget alone, where measuring replaced it by a leaner selection: its costs and its timing.

    ``costs`` are those of the draft that was timed; its bytes are predicted.
    """

    costs: Annotated[CostChanges, INLINE]
    comparison: Annotated[ComparisonRow, INLINE]


@dataclass(frozen=True)
class NumberFormatRow:
    """A layer that 8-bit integers were thought of for; ``reason``: why it stays float, None if it does not."""

    name: str
    operator: str
    format: str
    reason: str | None


@dataclass(frozen=True, kw_only=True)
class QuantisationRow:
    """A result in 8-bit integers, or the reason why the float one was kept.

    Attributes:
        kept: the result is in integers.
        reason: why it is not; None if it is.
        formats: of weights and activations, in words.
        ranges: the way in which ranges of activations were taken; None if it did not come to that.
        corrections: what else lowered the error that integers add.
        added_error: that error on held-out samples, as a share of the float network's output.
        opset_raised_from: the operator set of the float network, if it had to be raised.
        samples: number of samples that ranges were taken from.
        held_out: number of others, which the deviation was measured on.
        before, after: deviation from the original, of the float network and in integers.
        simulation_steps: distance from the simulation in floats, in steps of 8 bits.
        integer_nodes, conversions: layers that onnxruntime computes in integers, and conversions that it leaves.
        comparison: time in integers against the float one; None if it was not measured.
        layers: all layers with weights.
    """

    kept: bool
    reason: str | None
    formats: str
    ranges: str | None
    corrections: tuple[str, ...]
    added_error: float | None
    opset_raised_from: int | None
    samples: int
    held_out: int
    before: FidelityRow | None
    after: FidelityRow | None
    simulation_steps: float | None
    integer_nodes: int | None
    conversions: int | None
    comparison: ComparisonRow | None
    layers: tuple[NumberFormatRow, ...]


@dataclass(frozen=True, kw_only=True)
class CompressionReport:
    """The report of ``leanonnx compress``.

    Attributes:
        headline: the warning that the result is ruined; None if it is not.
        costs: kernels, multiply-adds, parameters and bytes.
        proof: equality with the masked original; after ``--exact``, with the original.
        pins, layers, products: rows of the network.
        branches: branches that were replaced.
        copied: constants copied for each of their readers; None if that was not asked for.
        folded: weights stored in place of the nodes that computed them.
        uncounted: operators whose multiply-adds are not known.
        latency: None if it was not measured.
        replaced: what the budget alone had chosen; None if that was written.
        recovery: None without real inputs.
        data_free: None where weights were not changed without data.
        judgement: judgement on the outputs; None without evidence for one.
        tolerance: the candidates that were judged by tolerances; None without any.
        quantisation: 8-bit integers; None if they were not asked for.
        weights_from: the file that a plan's weights were read from.
        tidied: nodes removed from the graph, counted by reason.
        lossless: None but after ``--exact``.
        inputs: sizes of the graph inputs.
        seconds: by stage.
        runtimes: the result in further runtimes; None if that was not asked for.
    """

    schema: int = REPORT_SCHEMA
    headline: str | None
    costs: Annotated[CostChanges, INLINE]
    proof: ProofRow
    pins: tuple[PinRow, ...]
    layers: tuple[LayerRow, ...]
    products: tuple[ProductRow, ...]
    branches: tuple[RemovedBranch, ...]
    copied: Annotated[CopiedConstants | None, JsonField("unshared")]
    folded: tuple[str, ...]
    uncounted: tuple[str, ...]
    latency: LatencyRow | None
    replaced: ReplacedRow | None
    recovery: RecoveryRow | None
    data_free: Annotated[DataFreeRow | None, JsonField("blind")]
    judgement: JudgementRow | None
    tolerance: ToleranceRow | None
    quantisation: Annotated[QuantisationRow | None, JsonField("int8")]
    weights_from: str | None
    tidied: Mapping[str, int]
    lossless: Annotated[LosslessRow | None, JsonField("exact")]
    inputs: Mapping[str, tuple[int, ...]]
    seconds: Mapping[str, float]
    warnings: tuple[str, ...]
    hints: tuple[str, ...]
    runtimes: Annotated[tuple[RuntimesRow, ...] | None, OPTIONAL] = None

    @property
    def deviation(self) -> FidelityRow | None:
        """Deviation of the result from the original on real inputs; None without any."""
        if self.quantisation is not None and self.quantisation.kept:
            return self.quantisation.after
        return None if self.recovery is None else self.recovery.deviation

    @property
    def is_held_out(self) -> bool:
        """True if the deviation was measured on samples that nothing was fitted to."""
        if self.quantisation is not None and self.quantisation.kept:
            return self.quantisation.held_out > 0
        return self.recovery is not None and self.recovery.held_out > 0

    @property
    def parts(self) -> int:
        """Number of parts of all samples, if the deviation was measured by cross-fitting; else 0."""
        is_integer = self.quantisation is not None and self.quantisation.kept
        return 0 if self.recovery is None or is_integer else self.recovery.parts

    @property
    def weights_changed(self) -> bool:
        """True if the result has other weights than the network that was proven."""
        if self.weights_from or (self.quantisation is not None and self.quantisation.kept):
            return True
        if self.recovery:
            return self.recovery.kept
        return self.data_free is not None and self.data_free.weights_changed


@dataclass(frozen=True)
class ChannelCounts:
    """Number of groups of tied channels, and of those that are pinned."""

    groups: Annotated[int, JsonField("classes")]
    pinned: int


@dataclass(frozen=True, kw_only=True)
class NetworkReport:
    """The report of ``leanonnx inspect``; fields are those of ``CompressionReport``."""

    schema: int = REPORT_SCHEMA
    costs: Annotated[CostCounts, INLINE]
    channels: ChannelCounts
    inputs: Mapping[str, tuple[int, ...]]
    layers: tuple[LayerRow, ...]
    products: tuple[ProductRow, ...]
    folded: tuple[str, ...]
    uncounted: tuple[str, ...]
    ties: tuple[TieRow, ...]
    pins: tuple[PinRow, ...]


@dataclass(frozen=True)
class PinReason:
    """A pin of a tensor: the reason, and how to change that."""

    tensor: str
    reason: str
    advice: str


@dataclass(frozen=True)
class TiedTensor:
    """A tensor with channels of the same groups: their number, and the index of the ``first`` ones."""

    tensor: str
    channels: int
    first: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class ChannelReport:
    """The report of ``leanonnx inspect --why``: a tensor's channels, or one of them.

    Attributes:
        channel_axes: axes along which the channels differ.
        channel: index of the one that was asked for.
        channels: number of groups of tied channels.
        removable: number of those that are not pinned.
        tied: other tensors with channels of these groups.
        consumers: nodes that read the tensor.
    """

    schema: int = REPORT_SCHEMA
    tensor: str
    shape: tuple[int, ...]
    channel_axes: tuple[int, ...]
    channel: Annotated[int | None, OPTIONAL] = None
    channels: int
    removable: int
    pins: tuple[PinReason, ...]
    tied: tuple[TiedTensor, ...]
    consumers: Annotated[tuple[str, ...], JsonField("read_by")]


@dataclass(frozen=True, kw_only=True)
class SeveralReports:
    """The object of several models in one command.

    Attributes:
        models: the report of each model, by its path.
        errors: the message on each model that has none.
    """

    schema: int = REPORT_SCHEMA
    models: Mapping[str, CompressionReport | NetworkReport | ChannelReport]
    errors: Mapping[str, str]

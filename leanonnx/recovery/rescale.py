"""Refit the scale and shift of BatchNormalizations whose statistics pruning has invalidated.

The targets are the outputs of the original BatchNormalization on the same inputs.  One that follows a refitted layer is
left alone: the output of that layer is already fitted.  Others follow additions, concatenations or activations, where
removed channels have shifted mean and variance.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np
import onnx

from leanonnx.analysis.dag import ChannelDag
from leanonnx.graph.formats import is_float
from leanonnx.graph.model import Model
from leanonnx.graph.nodes import attribute, scale_and_shift
from leanonnx.graph.positions import rows_at
from leanonnx.numeric.arrays import Array, Floats, Ints
from leanonnx.numeric.channel_ids import Mask
from leanonnx.recovery.changes import set_constant
from leanonnx.recovery.pair import NetworkPair, PairedRun
from leanonnx.recovery.partial_runner import ValueOf
from leanonnx.recovery.targets import TargetSampler

RESCALE_ROWS = 8_000
"""Number of positions of a fit."""
CHANNEL_AXIS = 1
MIN_RESCALE_ROWS = 64
FLAT_VARIANCE = 1e-6
"""Variance below which a channel counts as constant, as a share of the variance of the target channel."""


@dataclass(frozen=True, kw_only=True)
class BatchNorm:
    """A BatchNormalization in both networks: node ``before`` of the original, node ``after`` of the compressed one.

    ``constants`` name the stored γ, β, μ and σ² of the compressed network; ``kept`` [C] is the keep mask.
    """

    before: int
    after: int
    constants: tuple[str, str, str, str]
    epsilon: float
    kept: Mask


@dataclass(frozen=True)
class NormChange:
    """New γ and β [C] of a BatchNormalization."""

    norm: BatchNorm
    gamma: Floats
    beta: Floats

    def carry_out(self, proto: onnx.ModelProto, model: Model) -> None:
        """Write the values into a protobuf, from which ``model`` was made."""
        set_constant(proto, self.norm.constants[0], self.gamma)
        set_constant(proto, self.norm.constants[1], self.beta)


def norms(dag: ChannelDag, alive: Mask, compressed: Model, fitted: Collection[str]) -> list[BatchNorm]:
    """BatchNormalizations that can be refitted and do not read ``fitted``, the outputs of refitted layers."""
    result = []
    for after, node in enumerate(compressed.proto.graph.node):
        before = dag.model.producers.get(node.output[0], -1) if node.op_type == "BatchNormalization" else -1
        if before < 0 or node.input[0] in fitted or dag.model.proto.graph.node[before].op_type != node.op_type:
            continue
        holders = [compressed.origins.get(name, "") for name in node.input[1:]]
        if attribute(node, "training_mode", 0):
            continue
        own = all(holders) and all(compressed.use_counts.get(name, 0) == 1 for name in holders[:2])
        channel_ids = dag.channel_ids[node.output[0]].reshape(-1)
        if own and all(is_float(compressed.constant(name)) for name in holders):
            kept = np.asarray(alive[channel_ids])
            if int(kept.sum()) == compressed.constant(holders[0]).size:
                gamma, beta, mean, variance = holders
                epsilon = float(attribute(node, "epsilon", 1e-5))
                result.append(
                    BatchNorm(
                        before=before, after=after, constants=(gamma, beta, mean, variance), epsilon=epsilon, kept=kept
                    )
                )
    return result


@dataclass(frozen=True)
class NormSite:
    """A BatchNormalization with its output ``y`` in the original and its input ``x_hat`` in the compressed network."""

    norm: BatchNorm
    y: str
    x_hat: str
    rows: int = RESCALE_ROWS

    @property
    def key(self) -> int:
        """Node in the compressed network, which seeds the positions."""
        return self.norm.after

    @property
    def reads(self) -> tuple[str, ...]:
        """Tensors of the original that are sampled."""
        return (self.y,)

    @property
    def row_numbers(self) -> int:
        """Numbers that are stored for each row."""
        return int(self.norm.kept.sum())

    def positions(self, shape: Sequence[int]) -> int:
        """Number of positions of a run whose output has this shape."""
        return math.prod(shape) // shape[CHANNEL_AXIS]

    def sample(self, value: ValueOf, chosen: Ints, run: PairedRun) -> dict[str, Array] | None:
        """Kept channels of the output at the chosen positions ("y") [n, C]; None if they cannot be told apart."""
        y = value(self.y)
        if y.shape[CHANNEL_AXIS] != self.norm.kept.size:
            return None
        return {"y": rows_at(y, CHANNEL_AXIS, chosen)[:, self.norm.kept]}


def fit_norm(
    site: NormSite, compressed: Model, pair: NetworkPair, targets: TargetSampler, count: int
) -> tuple[NormChange | None, Floats]:
    """Return new values if they help on held-out positions, and the relative error before and after [2].

    A channel whose error does not fall keeps its values; None if no error falls.

    Args:
        site: the BatchNormalization.
        compressed: the network that holds its constants.
        pair: both networks; the compressed one is run as far as its input.
        targets: targets of the original.
        count: index of the BatchNormalization among them.

    Raises:
        DataError: a network cannot be run on the inputs.
    """
    norm = site.norm
    fit, judge = (_LineSums(int(norm.kept.sum())) for _ in range(2))
    unlike = []

    def visit(index: int, value: ValueOf) -> None:
        sample = targets.sample(count, index)
        x_hat = value(site.x_hat)
        if len(x_hat) != sample.shape[0] or x_hat.shape[2:] != sample.shape[2:]:
            unlike.append(index)
            return
        read = rows_at(x_hat, CHANNEL_AXIS, sample.chosen).astype(np.float64)
        wanted, held = sample.arrays["y"].astype(np.float64), sample.held
        fit.add(read[~held], wanted[~held])
        if not sample.run.mirrored:
            judge.add(read[held], wanted[held])

    pair.compressed.advance([site.x_hat], visit)
    if unlike:
        return None, np.zeros(2)
    gamma, beta, mean, variance = (np.asarray(compressed.constant(name), np.float64) for name in norm.constants)
    deviation = np.sqrt(variance + norm.epsilon)
    slope, shift = scale_and_shift(gamma, beta, mean, variance, norm.epsilon)
    if min(fit.rows, judge.rows) < MIN_RESCALE_ROWS:
        return None, np.zeros(2)
    new = fit.line(slope)
    before, after = judge.errors(slope, shift), judge.errors(*new)
    better = after < before
    errors = np.sqrt(
        np.array([before.sum(), np.where(better, after, before).sum()]) / max(judge.squares, FLAT_VARIANCE)
    )
    if not better.any():
        return None, errors
    slope, shift = np.where(better, new[0], slope), np.where(better, new[1], shift)
    gamma = np.where(better, slope * deviation, gamma)
    return NormChange(norm, gamma, np.where(better, shift + slope * mean, beta)), errors


class _LineSums:
    """Sums over positions for linear fits y = slope · x + shift, one per channel."""

    def __init__(self, channels: int) -> None:
        self.rows = 0
        self.sums = np.zeros((5, channels))

    def add(self, x: Floats, y: Floats) -> None:
        """Add rows [n, C]."""
        self.rows += len(x)
        self.sums += np.stack([x.sum(0), y.sum(0), (x * x).sum(0), (x * y).sum(0), (y * y).sum(0)])

    @property
    def squares(self) -> float:
        """Σ y² over channels."""
        return float(self.sums[4].sum())

    def line(self, slope: Floats) -> tuple[Floats, Floats]:
        """Least-squares slope and shift [C]; a constant channel keeps its slope."""
        x, y, xx, xy, yy = self.sums / self.rows
        spread = xx - x * x
        varies = spread * np.square(slope) > FLAT_VARIANCE * np.maximum(yy - y * y, 0)
        fit = np.where(varies, (xy - x * y) / np.where(varies, spread, 1), slope)
        return fit, y - fit * x

    def errors(self, slope: Floats, shift: Floats) -> Floats:
        """Σ (slope · x + shift − y)² of each channel [C]."""
        x, y, xx, xy, yy = self.sums
        errors: Floats = (
            slope**2 * xx + self.rows * shift**2 + yy + 2 * slope * shift * x - 2 * slope * xy - 2 * shift * y
        )
        return np.maximum(errors, 0)

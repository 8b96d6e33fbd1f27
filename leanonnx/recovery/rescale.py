"""Refit the scale and shift of BatchNormalizations whose statistics pruning has invalidated.

The targets are the outputs of the original BatchNormalization on the same inputs.  One that follows a refitted layer is
left alone: the output of that layer is already fitted.  Others follow additions, concatenations or activations, where
removed channels have shifted mean and variance.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import numpy as np
import onnx

from leanonnx.analysis.dag import ChannelDag
from leanonnx.graph.formats import is_float
from leanonnx.graph.model import Model
from leanonnx.graph.nodes import attribute, scale_and_shift
from leanonnx.numeric.arrays import Floats
from leanonnx.numeric.channel_ids import Mask
from leanonnx.recovery.layers import set_constant
from leanonnx.recovery.pair import NetworkPair

MAX_RESCALE_ROWS = 50_000
"""Largest number of positions of a fit."""
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


def fit_norm(
    norm: BatchNorm, dag: ChannelDag, compressed: Model, pair: NetworkPair, seed: int
) -> tuple[NormChange | None, Floats]:
    """Return new values if they help on held-out positions, and the relative error before and after [2].

    A channel whose error does not fall keeps its values; None if no error falls.

    Raises:
        DataError: a network cannot be run on the inputs.
    """
    source, node = dag.model.proto.graph.node[norm.before], pair.after.graph.node[norm.after]
    x, y, x_hat = source.input[0], source.output[0], node.input[0]
    pair.advance([x, y], [x_hat])
    fit, judge = (_LineSums(int(norm.kept.sum())) for _ in range(2))
    each = max(1, -(-MAX_RESCALE_ROWS // len(pair.runs)))
    for run in pair.runs:
        value = pair.compressed.value(x_hat, run.index)
        wanted = pair.original.value(y, run.index)
        if value.ndim != wanted.ndim or value.shape[2:] != wanted.shape[2:] or wanted.shape[1] != norm.kept.size:
            return None, np.zeros(2)
        rng = np.random.default_rng((seed, norm.after, run.index))
        read, targets = (np.moveaxis(v, 1, -1).reshape(-1, v.shape[1]) for v in (value, wanted))
        chosen = np.sort(rng.choice(len(read), min(each, len(read)), replace=False))
        held = pair.held_out_rows(run, len(chosen), rng)
        read, targets = read[chosen].astype(np.float64), targets[chosen][:, norm.kept].astype(np.float64)
        fit.add(read[~held], targets[~held])
        if not run.mirrored:
            judge.add(read[held], targets[held])
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

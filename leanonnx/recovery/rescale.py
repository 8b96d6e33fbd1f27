"""BatchNormalizations whose statistics hold no more: scale and shift of each channel are fitted to what the original's
puts out on the same inputs.

A BatchNormalization behind a layer that is fitted itself needs none of this: that layer puts out what it should.
Others stand behind additions, concatenations or activations, where removed channels have moved mean and variance.
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
from leanonnx.recovery.layers import hold
from leanonnx.recovery.pair import Pair

ROWS = 50_000
"""Positions that a fit sees, where there are as many."""
LEAST_ROWS = 64
FLAT = 1e-6
"""Variance, as a share of that of the channel put out, below which a channel counts as constant."""


@dataclass(frozen=True)
class Norm:
    """A BatchNormalization in both networks: node ``before`` of the original, node ``after`` of the compressed one.

    ``constants`` name what holds γ, β, μ and σ² in the compressed network; ``kept`` [C] its channels of the original.
    """

    before: int
    after: int
    constants: tuple[str, str, str, str]
    epsilon: float
    kept: Mask


@dataclass(frozen=True)
class Rescaled:
    """New γ and β [C] of a BatchNormalization."""

    norm: Norm
    gamma: Floats
    beta: Floats

    def carry_out(self, proto: onnx.ModelProto, model: Model) -> None:
        """Put the values into a protobuf, which ``model`` was made from."""
        hold(proto, self.norm.constants[0], self.gamma)
        hold(proto, self.norm.constants[1], self.beta)


def norms(dag: ChannelDag, alive: Mask, compressed: Model, fitted: Collection[str]) -> list[Norm]:
    """The BatchNormalizations that can be fitted and that do not stand behind a tensor that is ``fitted`` itself."""
    found = []
    for after, node in enumerate(compressed.proto.graph.node):
        before = dag.model.producers.get(node.output[0], -1) if node.op_type == "BatchNormalization" else -1
        if before < 0 or node.input[0] in fitted or dag.model.proto.graph.node[before].op_type != node.op_type:
            continue
        held = [compressed.origins.get(name, "") for name in node.input[1:]]
        if attribute(node, "training_mode", 0):
            continue
        own = all(held) and all(compressed.use_counts.get(name, 0) == 1 for name in held[:2])
        channel_ids = dag.channel_ids[node.output[0]].reshape(-1)
        if own and all(is_float(compressed.constant(name)) for name in held):
            kept = np.asarray(alive[channel_ids])
            if int(kept.sum()) == compressed.constant(held[0]).size:
                gamma, beta, mean, variance = held
                epsilon = float(attribute(node, "epsilon", 1e-5))
                found.append(Norm(before, after, (gamma, beta, mean, variance), epsilon, kept))
    return found


def rescaled(norm: Norm, dag: ChannelDag, compressed: Model, pair: Pair, seed: int) -> tuple[Rescaled | None, Floats]:
    """New values where they help on held-out positions, and the relative error before and after [2].

    A channel whose error does not fall keeps its values; where nothing falls, there are no new ones.

    Raises:
        DataError: a network cannot be run on the inputs.
    """
    source, node = dag.model.proto.graph.node[norm.before], pair.after.graph.node[norm.after]
    x, y, x_hat = source.input[0], source.output[0], node.input[0]
    pair.advance([x, y], [x_hat])
    fit, judge = (_Moments(int(norm.kept.sum())) for _ in range(2))
    each = max(1, -(-ROWS // len(pair.runs)))
    for run in pair.runs:
        value = pair.smaller.value(x_hat, run.index)
        wanted = pair.original.value(y, run.index)
        if value.ndim != wanted.ndim or value.shape[2:] != wanted.shape[2:] or wanted.shape[1] != norm.kept.size:
            return None, np.zeros(2)
        rng = np.random.default_rng((seed, norm.after, run.index))
        read, targets = (np.moveaxis(v, 1, -1).reshape(-1, v.shape[1]) for v in (value, wanted))
        chosen = np.sort(rng.choice(len(read), min(each, len(read)), replace=False))
        held = pair.held(run, len(chosen), rng)
        read, targets = read[chosen].astype(np.float64), targets[chosen][:, norm.kept].astype(np.float64)
        fit.add(read[~held], targets[~held])
        if not run.mirrored:
            judge.add(read[held], targets[held])
    gamma, beta, mean, variance = (np.asarray(compressed.constant(name), np.float64) for name in norm.constants)
    deviation = np.sqrt(variance + norm.epsilon)
    slope, shift = scale_and_shift(gamma, beta, mean, variance, norm.epsilon)
    if min(fit.rows, judge.rows) < LEAST_ROWS:
        return None, np.zeros(2)
    new = fit.line(slope)
    before, after = judge.errors(slope, shift), judge.errors(*new)
    better = after < before
    errors = np.sqrt(np.array([before.sum(), np.where(better, after, before).sum()]) / max(judge.squares, FLAT))
    if not better.any():
        return None, errors
    slope, shift = np.where(better, new[0], slope), np.where(better, new[1], shift)
    gamma = np.where(better, slope * deviation, gamma)
    return Rescaled(norm, gamma, np.where(better, shift + slope * mean, beta)), errors


class _Moments:
    """Sums over positions for lines y = slope · x + shift, one for each channel."""

    def __init__(self, channels: int) -> None:
        self.rows = 0
        self.sums = np.zeros((5, channels))

    def add(self, x: Floats, y: Floats) -> None:
        """Take in rows [n, C]."""
        self.rows += len(x)
        self.sums += np.stack([x.sum(0), y.sum(0), (x * x).sum(0), (x * y).sum(0), (y * y).sum(0)])

    @property
    def squares(self) -> float:
        """Σ y² over channels."""
        return float(self.sums[4].sum())

    def line(self, slope: Floats) -> tuple[Floats, Floats]:
        """Least squares; a channel that is constant keeps its slope."""
        x, y, xx, xy, yy = self.sums / self.rows
        spread = xx - x * x
        varies = spread * np.square(slope) > FLAT * np.maximum(yy - y * y, 0)
        found = np.where(varies, (xy - x * y) / np.where(varies, spread, 1), slope)
        return found, y - found * x

    def errors(self, slope: Floats, shift: Floats) -> Floats:
        """Σ (slope · x + shift − y)² of each channel [C]."""
        x, y, xx, xy, yy = self.sums
        found: Floats = (
            slope**2 * xx + self.rows * shift**2 + yy + 2 * slope * shift * x - 2 * slope * xy - 2 * shift * y
        )
        return np.maximum(found, 0)

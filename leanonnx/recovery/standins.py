"""Fit affine stand-ins of branches by least squares, each to the joined tensor of the original.

1. The stand-in of a residual branch is z = x + T x + b; beside a convolution, the correction of its weights; of a gate,
   one factor for each channel.
2. T = Σ_rx (Σ_xx + λ diag Σ_xx)⁻¹ for the residual r that is left without the branch; the ridge λ is the one with the
   least error on held-out rows.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import scipy

from leanonnx.analysis.branches import Branch
from leanonnx.analysis.dag import ChannelDag
from leanonnx.graph.nodes import bias_of, normalisation_of
from leanonnx.graph.positions import Window, features, rows_at, spread_positions, window_of
from leanonnx.numeric.arrays import Array, Floats, Ints
from leanonnx.numeric.obs import PRECISION_RIDGES
from leanonnx.runtime.probes import tensor_values
from leanonnx.runtime.sessions import Feed
from leanonnx.statistics.moments import HELD_OUT_RUN_STRIDE, Accumulator
from leanonnx.surgery.shortening import StandIn

ROWS_PER_FEATURE = 16
"""Rows that a stand-in is fitted to for each of its features."""
MIN_STAND_IN_ROWS = 4096
"""Smallest number of rows that a stand-in is fitted to, if there are as many."""
SMALLEST_DIVISOR = 1e-30
MIN_RIDGE_SHARE = 1e-9
"""Share of the mean variance that every feature counts as having, for the ridge."""
MAX_STAND_IN_FEATURES = 2304
"""Largest number of features of a stand-in: 256 channels in windows of 3 × 3."""
CHANNELS = 1
"""Channel axis of the tensors around a branch."""


@dataclass(frozen=True)
class FittedStandIn:
    """A stand-in, and the share of the variance of each joined channel that it does not explain, held out [C]."""

    stand_in: StandIn
    unexplained: Floats


def fit_stand_ins(
    dag: ChannelDag, branches: Sequence[Branch], feeds: Iterable[Feed], runs: int
) -> dict[Branch, FittedStandIn]:
    """Fit the stand-in of each branch, all other branches being there; those with too many features are left out.

    Args:
        dag: the network.
        branches: its branches.
        feeds: inputs.
        runs: number of feeds.

    Raises:
        RunFailed: the network cannot run on these inputs.
    """
    fits = [_GateFit(dag, each) if each.kind == "scale" else _LinearFit(dag, each) for each in branches]
    fits = [fit for fit in fits if fit.width <= MAX_STAND_IN_FEATURES]
    names = [name for fit in fits for name in fit.names]
    stride = max(2, min(HELD_OUT_RUN_STRIDE, runs))
    for done, values in enumerate(tensor_values(dag.model.proto, names, feeds, dag.model.libraries), 1):
        for fit in fits:
            joined = values[fit.branch.output]
            rng = np.random.default_rng((fit.branch.join, done))
            each = -(-max(ROWS_PER_FEATURE * fit.width, MIN_STAND_IN_ROWS) // max(runs, 1))
            chosen = spread_positions(joined.size // joined.shape[CHANNELS], each, rng)
            fit.add(values, chosen, done % stride == 0)
    return {fit.branch: fit.result() for fit in fits}


class _LinearFit:
    """Sums over rows [features, residual, joined tensor] for a matrix, or for the weights of a convolution."""

    def __init__(self, dag: ChannelDag, branch: Branch) -> None:
        nodes = dag.model.proto.graph.node
        self.branch, self.kept = branch, branch.stream
        self.window: Window | None = None
        self.weight, self.bias = np.eye(branch.channels), np.zeros(branch.channels)
        self.width = branch.channels
        if branch.kind == "shortcut":
            self.kept = nodes[branch.shortcut[-1]].output[0]
            self.weight, self.bias = _folded_weights(dag, branch)
            self.window = window_of(nodes[branch.shortcut[0]], self.weight.shape[2:])
            self.width = self.weight[0].size * self.window.groups
        self.names = [branch.stream, self.kept, branch.output]
        self.sums = tuple(Accumulator(self.width + 2 * branch.channels) for _ in range(2))

    def add(self, values: Mapping[str, Array], chosen: Ints, held_out: bool) -> None:
        """Add rows of one run."""
        stream, kept, joined = (values[name] for name in self.names)
        if self.window is None:
            read = rows_at(stream, CHANNELS, chosen)
        else:
            read = features(self.window, stream, joined.shape[2:], chosen).reshape(self.width, -1).T
        wanted = rows_at(joined, CHANNELS, chosen)
        self.sums[held_out].add(np.concatenate([read, wanted - rows_at(kept, CHANNELS, chosen), wanted], 1))

    def result(self) -> FittedStandIn:
        """The stand-in with the ridge that predicts held-out rows best."""
        size, channels = self.width, self.branch.channels
        inputs, residual, joined = slice(size), slice(size, size + channels), slice(size + channels, None)
        mean = self.sums[0].mean()
        counts = [max(one.rows, 1) for one in self.sums]
        fitted, apart = (
            np.asarray(one.take_products(mean), np.float64) / n for one, n in zip(self.sums, counts, strict=True)
        )
        if not self.sums[1].rows:
            apart = fitted
        variance = np.maximum(np.diag(apart)[joined], SMALLEST_DIVISOR)
        best, least = np.zeros((size, channels)), np.full(channels, np.inf)
        for ridge in (*PRECISION_RIDGES, np.inf):
            change = _ridge_regression(fitted[inputs, inputs], fitted[inputs, residual], ridge)
            error = np.diag(apart)[residual] - 2 * (change * apart[inputs, residual]).sum(0)
            error += (change * (apart[inputs, inputs] @ change)).sum(0)
            if (error / variance).sum() < (least / variance).sum():
                best, least = change, error
        bias = self.bias + mean[residual] - mean[inputs] @ best
        groups = 1 if self.window is None else self.window.groups
        change = best.T.reshape(channels, groups, -1)
        if groups > 1:  # each output reads the features of its own group
            change = change[np.arange(channels), np.arange(channels) // (channels // groups)]
        weight = self.weight + change.reshape(self.weight.shape)
        return FittedStandIn(StandIn(weight, bias), np.clip(least / variance, 0, None))


class _GateFit:
    """Sums over rows for one factor of each channel."""

    width = 1

    def __init__(self, dag: ChannelDag, branch: Branch) -> None:
        self.branch, self.names = branch, [branch.stream, branch.output]
        self.sums = np.zeros((2, 4, branch.channels))

    def add(self, values: Mapping[str, Array], chosen: Ints, held_out: bool) -> None:
        """Add rows of one run."""
        read, wanted = (rows_at(values[name], CHANNELS, chosen).astype(np.float64) for name in self.names)
        products = (read * read, read * wanted, wanted * wanted, np.ones_like(read))
        self.sums[int(held_out)] += [product.sum(0) for product in products]

    def result(self) -> FittedStandIn:
        """The factors by which the squared error is least."""
        fitted, apart = self.sums
        factor = fitted[1] / np.maximum(fitted[0], SMALLEST_DIVISOR)
        held = apart if apart[3].any() else fitted
        error = held[2] - 2 * factor * held[1] + factor**2 * held[0]
        return FittedStandIn(StandIn(factor), np.clip(error / np.maximum(held[2], SMALLEST_DIVISOR), 0, None))


def _ridge_regression(inputs: Floats, products: Floats, ridge: float) -> Floats:
    """Coefficients [K, C] from a covariance [K, K] and products [K, C]; an infinite ridge gives zeros."""
    if not np.isfinite(ridge):
        return np.zeros(products.shape)
    diagonal = np.diag(inputs)
    loaded = inputs + np.diag(ridge * np.maximum(diagonal, MIN_RIDGE_SHARE * float(diagonal.mean()) + SMALLEST_DIVISOR))
    try:
        return np.asarray(scipy.linalg.cho_solve(scipy.linalg.cho_factor(loaded), products))
    except scipy.linalg.LinAlgError:
        return np.zeros(products.shape)


def _folded_weights(dag: ChannelDag, branch: Branch) -> tuple[Floats, Floats]:
    """Weight and bias of the convolution beside a branch, its batch normalisation included."""
    model = dag.model
    conv, *norms = (model.proto.graph.node[index] for index in branch.shortcut)
    weight = np.asarray(model.constant(conv.input[1]), np.float64)
    bias = bias_of(conv, len(weight), model.constant)
    assert bias is not None  # branches lie beside convolutions of constants only
    for norm in norms:
        scale, shift = normalisation_of(norm, model.constant)
        weight, bias = weight * scale.reshape(-1, *[1] * (weight.ndim - 1)), bias * scale + shift
    return weight, bias

"""Least squares of one layer: rows of the compressed network against targets of the original."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from leanonnx.numeric.arrays import Array, Floats
from leanonnx.numeric.regression import LARGE_WIDTH, Fit, MomentSums, SampleRows, best_fit
from leanonnx.recovery.fold import ChannelRegression
from leanonnx.recovery.pair import NetworkPair
from leanonnx.recovery.partial_runner import ValueOf
from leanonnx.recovery.rows import LayerSite
from leanonnx.recovery.sampling import MAX_FEATURES
from leanonnx.recovery.shared import ROLES, SharedFit, SumsKind, can_shift
from leanonnx.recovery.targets import TargetSampler


class _Collected:
    """Rows to fit, rows of mirrored inputs, held-out rows; and the channel regression.

    ``offset`` [G, O] is subtracted from the targets.
    """

    def __init__(self, kind: SumsKind, fold: ChannelRegression | None, offset: Floats | None = None) -> None:
        self.kind, self.fold, self.offset = kind, fold, offset
        self.sums: list[MomentSums | SampleRows] = []

    def add(self, place: int, features: Array, targets: Array) -> None:
        """Add rows [G, K, n] and [G, O, n]; the first ones give the origins."""
        if self.offset is not None:
            targets = targets - self.offset[:, :, None].astype(targets.dtype)
        if not self.sums:
            origins = [side.mean(2, dtype=np.float64) for side in (features, targets)]
            self.sums = [self.kind(origins[0], origins[1]) for _ in range(ROLES)]
        self.sums[place].add(features, targets)


@dataclass(frozen=True, kw_only=True)
class LayerFit:
    """The best fit of a layer, the error before it, and the mean square of the targets, on held-out rows.

    ``rows`` are those that it was fitted to, and ``held`` those held out; None if there were not enough.
    """

    fit: Fit
    before: float
    scale: float
    rows: MomentSums | SampleRows | None = None
    held: MomentSums | SampleRows | None = None


def fit_layer(
    site: LayerSite, kernels: Floats, bias: Floats, pair: NetworkPair, targets: TargetSampler, count: int
) -> LayerFit:
    """Return the best fit of a layer.

    Args:
        site: the layer.
        kernels: its weights [G, O, I, taps].
        bias: its bias [G, O].
        pair: both networks; the compressed one is run as far as the input of the layer.
        targets: targets of the original.
        count: index of the layer among them.

    Raises:
        DataError: onnxruntime cannot run the network on the inputs.
    """
    groups, out = kernels.shape[:2]
    flat = kernels.reshape(groups, out, -1)
    collected = _Collected(sums_kind(site, targets.count(count)), ChannelRegression(site) if site.fold_rows else None)
    _visit(site, pair, targets, count, collected)
    if not _enough(collected.sums):
        return LayerFit(fit=Fit(flat, bias, np.zeros(groups)), before=0.0, scale=0.0)
    plain, mirror, held = collected.sums
    starts = [Fit(flat, bias, held.errors(flat, bias))]
    fold = collected.fold.fold() if collected.fold else None
    if fold is not None:
        starts.append(Fit(*fold, held.errors(*fold)))
    nothing = float(held.errors(np.zeros_like(flat), np.zeros_like(bias)).sum())
    fit = best_fit(plain, mirror, held, starts, site.layer.can_change_bias)  # type: ignore[type-var]
    return LayerFit(fit=fit, before=starts[0].error, scale=nothing, rows=plain, held=held)


def fit_shared(
    site: LayerSite, shared: SharedFit, use: int, pair: NetworkPair, targets: TargetSampler, count: int
) -> bool:
    """Fit a shared weight to the rows of all uses that are known, after those of one use; True if it changes.

    Args:
        site: the layer that is the use.
        shared: the regression of its weight, which takes the fit.
        use: index of the layer among those that share it.
        pair: both networks; the compressed one is run as far as the input of the layer.
        targets: targets of the original.
        count: index of the layer among them.

    Raises:
        DataError: onnxruntime cannot run the network on the inputs.
    """
    fold = ChannelRegression(site) if site.fold_rows else None
    collected = _Collected(shared.kind, fold, shared.offsets[use])
    collected.sums = shared.empty() if shared.origins else []
    _visit(site, pair, targets, count, collected)
    if not collected.sums:
        return False
    shared.origins = collected.sums[0].features_at, collected.sums[0].targets_at
    shared.store(use, collected.sums)
    plain, mirror, held = total = shared.sums(sorted(shared.seen))
    if not _enough(total):
        return False
    now, free = shared.now, can_shift(shared.layers)
    starts = [Fit(now.weights, now.bias, held.errors(now.weights, now.bias))]
    folded = fold.fold() if fold is not None else None
    if folded is not None:
        weights, bias = folded[0], folded[1] - shared.offsets[use] if free else now.bias
        starts.append(Fit(weights, bias, held.errors(weights, bias)))
    fit = best_fit(plain, mirror, held, starts, free)  # type: ignore[type-var]
    if fit.error >= starts[0].error:
        return False
    shared.now = fit
    return True


def sums_kind(site: LayerSite, rows: int) -> SumsKind:
    """The form of the regression of a layer with so many rows."""
    by_rows = site.layer.groups == 1 and (site.width > MAX_FEATURES or site.width > max(rows, LARGE_WIDTH))
    return SampleRows if by_rows else MomentSums


def _enough(sums: Sequence[MomentSums | SampleRows]) -> bool:
    """True if there are rows to fit to, and rows held out."""
    return bool(sums and sums[0].rows and sums[-1].rows)


def _visit(site: LayerSite, pair: NetworkPair, targets: TargetSampler, count: int, collected: _Collected) -> None:
    """Run the compressed network as far as a layer, and collect its rows."""
    read = [site.x_hat, *([site.other.compressed] if site.other else [])]
    pair.compressed.advance(read, lambda run, value: _collect(site, targets, count, run, value, collected))


def _collect(
    site: LayerSite, targets: TargetSampler, count: int, index: int, value: ValueOf, collected: _Collected
) -> None:
    """Add the rows of one run."""
    sample = targets.sample(count, index)
    x_hat = value(site.x_hat)
    wanted = sample.arrays["y"]
    if site.other and "wanted" in sample.arrays:
        missing = site.missing(sample.arrays["wanted"], value(site.other.compressed), sample.chosen)
        wanted = wanted if missing is None else wanted + missing
    features = site.features(x_hat, sample.shape, sample.chosen)
    wanted = wanted.reshape(len(features), -1, wanted.shape[1])
    run, held = sample.run, sample.held
    if held.any():
        if not run.mirrored:
            collected.add(2, features[:, :, held], wanted[:, :, held])
        features, wanted = features[:, :, ~held], wanted[:, :, ~held]
    if features.shape[2]:
        collected.add(int(run.mirrored), features, wanted)
    if collected.fold is not None and "x" in sample.arrays:
        collected.fold.add(sample.arrays["x"], x_hat, run)

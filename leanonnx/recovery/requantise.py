"""Fitted weights as the integers that a network stores: new scales, rounding, and the bias in its new unit.

Types, zero points and the scales of activations stay.  A scale per output channel, or one of the whole weight, is
chosen anew if nothing else reads it.  The integers come from ``round_compensated`` where the covariance of the features
is known; a channel whose integers do not fit in the range that the zero point leaves gets the nearest ones.  The bias
takes up the mean of what rounding changes.  The error on held-out rows, after rounding, decides if the fit is used.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx

from leanonnx.graph.model import Model
from leanonnx.numeric.arrays import Array, Floats, Ints
from leanonnx.numeric.regression import Fit, MomentSums
from leanonnx.numeric.rounding import LARGEST_INTEGERS, SMALLEST_SCALE, channel_scales, round_compensated
from leanonnx.recovery.changes import set_constant
from leanonnx.recovery.fitting import LayerFit
from leanonnx.recovery.integers import IntegerWeight
from leanonnx.recovery.layers import LinearLayer

LARGEST_BIAS = (1 << 31) - 1


@dataclass(frozen=True, kw_only=True)
class IntegerChange:
    """New integers of a layer as they are stored, with its scales, its bias and the units of that; None: as it was."""

    layer: LinearLayer
    weight: Array
    scales: Array | None
    bias: Array | None
    bias_units: Array | None

    def carry_out(self, proto: onnx.ModelProto, model: Model) -> None:
        """Write the values into a protobuf, from which ``model`` was made."""
        stored = self.layer.integers
        assert stored is not None  # made for such layers only
        values = (
            (stored.weight, self.weight),
            (stored.scale, self.scales),
            (stored.bias_scale, self.bias_units),
            (self.layer.bias, self.bias),
        )
        for name, value in values:
            if name and value is not None:
                set_constant(proto, name, value.reshape(model.constant(name).shape))


@dataclass(frozen=True, kw_only=True)
class _Grid:
    """The numbers that the integers of a layer can stand for.

    ``places`` [G, O]: index of the scale of each output channel; ``scales`` and ``zeros``: by that index.
    """

    stored: IntegerWeight
    places: Ints
    scales: Floats
    zeros: Floats

    @property
    def bits(self) -> int:
        """Bits of a weight."""
        return 8 if self.stored.highest - self.stored.lowest > (1 << 7) else 7

    @property
    def lowest(self) -> Floats:
        """Least integers without the zero point, by index of the scale."""
        return np.asarray(self.stored.lowest - self.zeros)

    @property
    def highest(self) -> Floats:
        """Largest integers without the zero point, by index of the scale."""
        return np.asarray(self.stored.highest - self.zeros)

    def rescaled(self, weights: Floats, importance: Floats | None) -> Floats:
        """The scales with the least error for weights [G, O, K], where columns count by importance [G, K]."""
        limit = LARGEST_INTEGERS[self.bits]
        cost = np.ones((len(weights), weights.shape[2])) if importance is None else importance
        scales = self.scales.copy()
        for place in np.unique(self.places):
            group, channel = np.nonzero(self.places == place)
            row = weights[group, channel].reshape(1, 1, -1)
            low, high = min(self.lowest[place], 0), max(self.highest[place], 0)
            if not row.any():
                continue
            if low <= -limit and high >= limit:
                scales[place] = channel_scales(row, self.bits, cost[group].reshape(1, -1))[0, 0]
            else:
                ends = [row.max() / high if high else 0.0, row.min() / low if low else 0.0]
                scales[place] = max(*ends, SMALLEST_SCALE)
        return np.asarray(scales.astype(np.float32), np.float64)

    def integers(self, weights: Floats, moment: Floats | None, scales: Floats) -> Floats:
        """Integers [G, O, K] without the zero point for weights; ``moment`` [G, K, K] is that of the features."""
        steps, low, high = (each[self.places][:, :, None] for each in (scales, self.lowest, self.highest))
        nearest = np.clip(np.rint(weights / steps), low, high)
        if moment is None:
            return np.asarray(nearest)
        rounded = np.asarray(round_compensated(weights, moment, steps[:, :, 0], self.bits), np.float64)
        limit = LARGEST_INTEGERS[self.bits]
        fits = ((rounded >= low) & (rounded <= high)).all(2) & (np.abs(nearest) <= limit).all(2)
        return np.asarray(np.where(fits[:, :, None], rounded, nearest))


def round_fit(layer: LinearLayer, now: Model, made: LayerFit) -> tuple[Fit, IntegerChange]:
    """Return the fit of a layer of stored integers as these can express it, and the change that stores it.

    Args:
        layer: the layer.
        now: the network with its present integers.
        made: the fit in floats.
    """
    stored, places = layer.integers, layer.scale_places(now)
    assert stored is not None and places is not None and made.held is not None  # see ``linear_layers``
    weights, fitted = made.fit.weights, made.fit
    mean, moment = _moments(layer, made)
    zeros = stored.zeros(now)
    grid = _Grid(stored=stored, places=places, scales=np.broadcast_to(stored.scales(now), zeros.shape), zeros=zeros)
    importance = None if moment is None else np.einsum("gkk->gk", moment)
    scales = grid.rescaled(weights, importance) if stored.rescales else grid.scales
    integers = grid.integers(weights, moment, scales)
    rounded = integers * scales[places][:, :, None]
    bias, units, bias_integers = fitted.bias, None, None
    if layer.can_change_bias:
        if mean is not None:
            bias = bias + np.einsum("gok,gk->go", weights - rounded, mean)
        bias_integers, units = bias, _bias_units(stored, now, scales / grid.scales)
        if units is not None:
            steps = np.broadcast_to(units, zeros.shape)[places] if units.size in (1, zeros.size) else units
            steps = steps.reshape(bias.shape)
            bias_integers = np.clip(np.rint(bias / steps), -LARGEST_BIAS, LARGEST_BIAS)
            bias = bias_integers * steps
    fit = Fit(rounded, bias, made.held.errors(rounded, bias))
    with_zeros = integers + zeros[places][:, :, None]
    kernels = layer.to_kernels(layer.weight_in(now)).shape
    return fit, IntegerChange(
        layer=layer,
        weight=layer.route.to_stored(layer.to_stored(with_zeros.reshape(kernels))),
        scales=scales if stored.rescales else None,
        bias=bias_integers,
        bias_units=units if stored.bias_scale and stored.rescales else None,
    )


def _bias_units(stored: IntegerWeight, now: Model, growth: Floats) -> Floats | None:
    """Units of the int32 bias after the scales of the weight have grown; None if the bias is none of integers."""
    units = stored.bias_units(now)
    if units is None or not stored.rescales:
        return units
    return np.asarray((units * growth).astype(np.float32), np.float64)


def _moments(layer: LinearLayer, made: LayerFit) -> tuple[Floats | None, Floats | None]:
    """Mean [G, K] of the features, and what rounding is to keep small by: their covariance, or second moment."""
    if not isinstance(made.rows, MomentSums):
        return None, None
    mean, covariance = made.rows.feature_moments()
    if layer.can_change_bias:
        return mean, covariance
    return mean, covariance + mean[:, :, None] * mean[:, None, :]

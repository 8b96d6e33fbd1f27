"""Normalisations.

Per channel (BatchNormalization, InstanceNormalization): a diagonal operator, its constants sliced.
Per group (GroupNormalization): whole groups live or die.
Over channels (LayerNormalization …): pinned, since the statistics are taken over all channels.
"""

from __future__ import annotations

import numpy as np

from leanonnx.numeric.arrays import Array
from leanonnx.numeric.labels import on_axis, varied
from leanonnx.rules import advice
from leanonnx.rules.call import Call, Edit, Effect, Kept, Link, Slice, Unsupported, taken_together
from leanonnx.rules.joins import joined


def batch_normalization(call: Call) -> Effect:
    """Shift and scale of each channel by fixed statistics.

    Flow: each channel is scaled by |γ| / √(σ² + ε).
    Ties: none.
    Pins: nothing.
    Limits: inference mode; statistics, scale and shift are constants.
    Specification: ONNX BatchNormalization-15.
    """
    if any(not call.is_constant(slot) for slot in range(1, 5)) or call.attribute("training_mode", 0):
        raise Unsupported("its statistics are computed at run time", advice.CONSTANT)
    if any(name for name in call.outputs[1:]):
        raise Unsupported("it puts out its statistics", "export it for inference")
    scale = np.abs(call.array(1).astype(np.float64))
    gains = scale / np.sqrt(np.maximum(call.array(4).astype(np.float64), 0) + call.attribute("epsilon", 1e-5))
    return _diagonal(call, (1, 2, 3, 4), gains)


def instance_normalization(call: Call) -> Effect:
    """Mean and variance of each channel by itself, then scale and shift.

    Flow: each channel is scaled by |scale|.
    Ties: none.
    Pins: nothing.
    Limits: scale and shift are constants.
    Specification: ONNX InstanceNormalization-22.
    """
    if not (call.is_constant(1) and call.is_constant(2)):
        raise Unsupported("its scale is computed at run time", advice.CONSTANT)
    return _diagonal(call, (1, 2), np.abs(call.array(1).astype(np.float64)))


def _diagonal(call: Call, slots: tuple[int, ...], gains: Array) -> Effect:
    vector, ties = call.slices(0, 1)
    unique, inverse = np.unique(vector, return_inverse=True)
    minted = call.mint(unique.size)
    labels = minted[inverse]
    rank = len(call.output_shape())
    strongest = np.zeros(unique.size)
    np.maximum.at(strongest, inverse, gains)
    link = Link(unique, minted, strongest.astype(np.float32))
    slices = tuple(Slice(slot, (labels,)) for slot in slots) if unique.size > 1 else ()
    output = on_axis(labels if unique.size > 1 else minted, 1, rank)
    return Effect((output,), (*ties, (unique, minted)), links=(link,), slices=slices)


def group_normalization(call: Call) -> Effect:
    """Mean and variance of groups of channels, then scale and shift.

    Flow: channels pass through.
    Ties: the channels of a group; ``num_groups`` shrinks.
    Pins: nothing.
    Limits: scale and shift are constants.
    Specification: ONNX GroupNormalization-21.
    """
    if not (call.is_constant(1) and call.is_constant(2)):
        raise Unsupported("its scale is computed at run time", advice.CONSTANT)
    vector, ties = call.slices(0, 1)
    groups = int(call.attribute("num_groups"))
    members = vector.reshape(groups, -1)
    ties.append((np.repeat(members[:, :1], members.shape[1] - 1, axis=1), members[:, 1:]))
    per_channel = call.shape(1)[0] == vector.size
    labels = vector if per_channel else members[:, 0].copy()

    def rewrite(kept: Kept) -> Edit:
        return Edit({"num_groups": int(kept.mask(members[:, 0]).sum())})

    slices = tuple(Slice(slot, (labels,)) for slot in (1, 2))
    output = on_axis(vector, 1, len(call.output_shape()))
    return Effect((output,), tuple(ties), slices=slices, rewrite=rewrite)


def layer_normalization(call: Call) -> Effect:
    """Mean and variance (or mean square) over the last axes.

    Flow: channels on other axes pass through.
    Ties: channels that are normalised together, where there are others (heads).
    Pins: channels on a normalised axis, where there are no others: every one of them takes part in the statistics,
        and the variance is not linear in them, so that no smaller network computes it (docs/decisions/0008).
    Limits: the statistics are not put out.
    Specification: ONNX LayerNormalization-17, RMSNormalization-23.
    """
    labels = call.labels(0)
    axis = int(call.attribute("axis", -1)) % labels.ndim
    if any(name for name in call.outputs[1:]):
        raise Unsupported("it puts out its statistics", "export it for inference")
    taken = set(range(axis, labels.ndim))
    return taken_together(call, taken, "it takes mean and variance over the channels", advice.STREAM)


def over_axes(call: Call) -> Effect:
    """Normalisation over named axes.

    Flow: channels on other axes pass through.
    Ties: channels that are normalised together, where there are others (heads).
    Pins: channels on a normalised axis, where there are no others.
    Limits: none.
    Specification: ONNX MeanVarianceNormalization-13, LpNormalization-22.
    """
    labels = call.labels(0)
    default = [0, 2, 3] if call.op == "MeanVarianceNormalization" else [-1]
    axes = call.attribute("axes", call.attribute("axis", default))
    taken = {int(a) % labels.ndim for a in np.atleast_1d(axes)}
    return taken_together(call, taken, "it normalises over the channels", advice.STREAM)


def skip_layer_normalization(call: Call) -> Effect:
    """A sum of tensors, then LayerNormalization over its last axis: input, skip, gamma, beta, bias.

    Flow: as LayerNormalization.
    Ties: as Add.
    Pins: as LayerNormalization.
    Limits: the last axis holds no channels; only the first output is read.
    Specification: com.microsoft.SkipLayerNormalization-1, SkipSimplifiedLayerNormalization-1.
    """
    if any(name for name in call.outputs[1:]):
        raise Unsupported("it puts out its statistics or its sum", advice.EXPORT)
    effect = joined(call, (0, 1), {k: call.shape(k) for k in (0, 1)})
    if effect.outputs[0].shape[-1] > 1:
        raise Unsupported("it takes mean and variance over the channels", advice.STREAM)
    return effect


def across(call: Call) -> Effect:
    """Normalisation by neighbouring channels.

    Flow: channels on other axes than 1 pass through.
    Ties: none.
    Pins: channels on axis 1, each of which is divided by its neighbours.
    Limits: none.
    Specification: ONNX LRN-13.
    """
    if 1 in varied(call.labels(0)):
        raise Unsupported("it divides each channel by its neighbours", advice.NONE)
    return Effect((call.labels(0),))


RULES = {
    ("", "BatchNormalization"): batch_normalization,
    ("", "InstanceNormalization"): instance_normalization,
    ("", "GroupNormalization"): group_normalization,
    ("", "LayerNormalization"): layer_normalization,
    ("", "RMSNormalization"): layer_normalization,
    ("", "LRN"): across,
    ("", "MeanVarianceNormalization"): over_axes,
    ("", "LpNormalization"): over_axes,
    ("com.microsoft", "SkipLayerNormalization"): skip_layer_normalization,
    ("com.microsoft", "SkipSimplifiedLayerNormalization"): skip_layer_normalization,
}

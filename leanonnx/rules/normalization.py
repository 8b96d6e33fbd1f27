"""Normalisations.

Per channel (BatchNormalization, InstanceNormalization): a diagonal operator; its constants are sliced.
Per group (GroupNormalization): the channels of a group are tied.
Over channels by a norm (RMSNormalization, LpNormalization): channels can be removed, and count as zeros.
Over channels by mean and variance (LayerNormalization …): pinned, since zeros would change the variance.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from leanonnx.numeric.arrays import Array
from leanonnx.numeric.channel_ids import any_along, on_axis, varied_axes
from leanonnx.rules import advice
from leanonnx.rules.call import (
    AttributeValue,
    Call,
    Edit,
    Effect,
    FixedEdges,
    KeptChannels,
    Reduction,
    Slice,
    Unsupported,
    combine_axes,
)
from leanonnx.rules.joins import broadcast_factor, join_operands
from leanonnx.rules.reduction import kept_share, require_zeros, sums_channels

FLOAT32_BYTES = 4
"""Bytes of the narrowest number format in which a scale is folded into a constant."""


def batch_normalization(call: Call) -> Effect:
    """Normalise each channel by fixed statistics, or (in training mode) by those of the batch.

    Flow: each channel is scaled by |γ| / √(σ² + ε), in training mode by |γ|.
    Ties: none.
    Pins: nothing.
    Limits: statistics, scale and shift are constants; statistics are outputs in training mode from opset 14 on.
    Specification: ONNX BatchNormalization-15.
    """
    if any(not call.is_constant(slot) for slot in range(1, 5)):
        raise Unsupported("its statistics are computed at run time", advice.MAKE_CONSTANT)
    scale = np.abs(call.array(1).astype(np.float64))
    if call.attribute("training_mode", 0):
        effect = _diagonal(call, (1, 2, 3, 4), scale)
        vector = effect.outputs[0].ravel()
        return replace(effect, outputs=(*effect.outputs, vector, vector)[: len(call.outputs)])
    if any(name for name in call.outputs[1:]):
        raise Unsupported("it outputs its statistics", "export it for inference")
    gains = scale / np.sqrt(np.maximum(call.array(4).astype(np.float64), 0) + call.attribute("epsilon", 1e-5))
    return _diagonal(call, (1, 2, 3, 4), gains)


def instance_normalization(call: Call) -> Effect:
    """Normalise each channel by its own mean and variance, then scale and shift it.

    Flow: each channel is scaled by |scale|.
    Ties: none.
    Pins: nothing.
    Limits: scale and shift are constants.
    Specification: ONNX InstanceNormalization-22.
    """
    if not (call.is_constant(1) and call.is_constant(2)):
        raise Unsupported("its scale is computed at run time", advice.MAKE_CONSTANT)
    return _diagonal(call, (1, 2), np.abs(call.array(1).astype(np.float64)))


def _diagonal(call: Call, slots: tuple[int, ...], gains: Array) -> Effect:
    vector, ties = call.channel_ids_along(0, 1)
    unique, inverse = np.unique(vector, return_inverse=True)
    minted = call.mint(unique.size)
    channel_ids = minted[inverse]
    rank = len(call.output_shape())
    strongest = np.zeros(unique.size)
    np.maximum.at(strongest, inverse, gains)
    edges = FixedEdges(unique, minted, strongest.astype(np.float32))
    slices = tuple(Slice(slot, (channel_ids,)) for slot in slots) if unique.size > 1 else ()
    output = on_axis(channel_ids if unique.size > 1 else minted, 1, rank)
    return Effect((output,), (*ties, (unique, minted)), fixed_edges=(edges,), slices=slices)


def group_normalization(call: Call) -> Effect:
    """Normalise groups of channels by their mean and variance, then scale and shift each channel.

    Flow: channels pass through.
    Ties: the channels of a group; ``num_groups`` shrinks.
    Pins: nothing.
    Limits: scale and shift are constants.
    Specification: ONNX GroupNormalization-21.
    """
    if not (call.is_constant(1) and call.is_constant(2)):
        raise Unsupported("its scale is computed at run time", advice.MAKE_CONSTANT)
    vector, ties = call.channel_ids_along(0, 1)
    groups = int(call.attribute("num_groups"))
    members = vector.reshape(groups, -1)
    ties.append((np.repeat(members[:, :1], members.shape[1] - 1, axis=1), members[:, 1:]))
    per_channel = call.shape(1)[0] == vector.size
    channel_ids = vector if per_channel else members[:, 0].copy()

    def rewrite(kept: KeptChannels) -> Edit:
        return Edit({"num_groups": int(kept.mask(members[:, 0]).sum())})

    slices = tuple(Slice(slot, (channel_ids,)) for slot in (1, 2))
    output = on_axis(vector, 1, len(call.output_shape()))
    return Effect((output,), tuple(ties), slices=slices, rewrite=rewrite)


def layer_normalization(call: Call) -> Effect:
    """Normalise by mean and variance over the last axes.

    Flow: channels on other axes pass through.
    Ties: channels that are normalised together, if other axes hold channels too (heads).
    Pins: channels on a normalised axis if no other axis holds channels: each of them contributes to the statistics,
        and removing one is not the same as setting it to zero (docs/decisions/0008).
    Limits: the statistics are not outputs.
    Specification: ONNX LayerNormalization-17.
    """
    channel_ids = call.channel_ids(0)
    axis = int(call.attribute("axis", -1)) % channel_ids.ndim
    if any(name for name in call.outputs[1:]):
        raise Unsupported("it outputs its statistics", "export it for inference")
    taken = set(range(axis, channel_ids.ndim))
    return combine_axes(call, taken, "it takes mean and variance over the channels", advice.PRUNE_BESIDE_STREAM)


def rms_normalization(call: Call) -> Effect:
    """Divide by the root mean square over the last axes, then scale.

    Flow: each channel is scaled by its element of the scale; channels on other axes pass through.
    Ties: channels that are normalised together, if other axes hold channels too (heads).
    Pins: channels on a normalised axis that would not be zero there when their layer outputs zeros.
    Limits: if channels are normalised, the scale is a constant; scale and ε change so that removed channels count as
        zeros.
    Specification: ONNX RMSNormalization-23.
    """
    channel_ids = call.channel_ids(0)
    axis = int(call.attribute("axis", -1)) % channel_ids.ndim
    taken = range(axis, channel_ids.ndim)
    if not sums_channels(call, taken):
        return combine_axes(call, set(taken), "it normalises over the channels")
    scale, epsilon = call.array(1), float(call.attribute("epsilon", 1e-5))
    wide = np.abs(scale.astype(np.float64)).reshape((1,) * (channel_ids.ndim - scale.ndim) + scale.shape)
    wide = wide.max(tuple(k for k, size in enumerate(channel_ids.shape) if size == 1), keepdims=True)
    effect = _by_norm(call, np.broadcast_to(wide, channel_ids.shape))
    factor, ties = broadcast_factor(effect.outputs[0], scale.shape)

    def rewrite(kept: KeptChannels) -> Edit:
        left = max(kept_share(kept, channel_ids), 1 / channel_ids.size)
        attributes: dict[str, AttributeValue] = {"epsilon": epsilon / left}
        if left == 1:
            return Edit()
        if scale.dtype.itemsize < FLOAT32_BYTES:
            return Edit(attributes, output_scales={0: left**-0.5})
        array = scale
        for place in varied_axes(factor):
            array = np.compress(any_along(kept.mask(factor), place), array, place)
        return Edit(attributes, {1: (array * left**-0.5).astype(scale.dtype)})

    slices = (Slice(1, (factor,)),) if varied_axes(factor) else ()
    return replace(effect, ties=(*effect.ties, *ties), slices=slices, rewrite=rewrite)


def _by_norm(call: Call, gains: Array) -> Effect:
    """Effect of a division by a norm over all channels, which zeros do not change; ``gains`` has the ids' shape.

    The norm itself is a channel that no tensor holds and that is always kept.

    Raises:
        Unsupported: removed channels would not be zero there.
    """
    require_zeros(call, "it normalises over the channels")
    channel_ids = call.channel_ids(0)
    channels, inverse = np.unique(channel_ids, return_inverse=True)
    norm, fresh = call.mint(1), call.mint(channels.size)
    strongest = np.zeros(channels.size)
    np.maximum.at(strongest, inverse.ravel(), gains.ravel())
    own, all_ = strongest.astype(np.float32), np.broadcast_to(norm, channels.shape)
    return Effect(
        (fresh[inverse].reshape(channel_ids.shape),),
        ((channels, fresh), (norm, np.zeros(1, np.int64))),
        fixed_edges=(
            FixedEdges(channels, all_),
            FixedEdges(channels, fresh, own),
            FixedEdges(all_, fresh, own / np.float32(channels.size)),
        ),
        reductions=(Reduction(0, channel_ids),),
    )


def mean_variance_normalization(call: Call) -> Effect:
    """Normalise by mean and variance over given axes.

    Flow: channels on other axes pass through.
    Ties: channels that are normalised together, if other axes hold channels too (heads).
    Pins: channels on a normalised axis if no other axis holds channels.
    Limits: none.
    Specification: ONNX MeanVarianceNormalization-13.
    """
    taken = {int(a) % call.channel_ids(0).ndim for a in np.atleast_1d(call.attribute("axes", [0, 2, 3]))}
    return combine_axes(call, taken, "it normalises over the channels", advice.PRUNE_BESIDE_STREAM)


def lp_normalization(call: Call) -> Effect:
    """Divide by the 1-norm or 2-norm along an axis.

    Flow: channels pass through.
    Ties: channels that are normalised together, if other axes hold channels too (heads).
    Pins: channels on that axis that would not be zero there when their layer outputs zeros.
    Limits: none; zeros do not change the norm.
    Specification: ONNX LpNormalization-22.
    """
    axis = int(call.attribute("axis", -1)) % call.channel_ids(0).ndim
    if sums_channels(call, (axis,)):
        return _by_norm(call, np.ones(call.channel_ids(0).shape))
    return combine_axes(call, {axis}, "it normalises over the channels")


def skip_layer_normalization(call: Call) -> Effect:
    """Sum of tensors, normalised over its last axis: input, skip, gamma, beta, bias.

    Flow: as LayerNormalization.
    Ties: as Add.
    Pins: as LayerNormalization.
    Limits: the last axis holds no channels; only the first output is used.
    Specification: com.microsoft.SkipLayerNormalization-1, SkipSimplifiedLayerNormalization-1.
    """
    if any(name for name in call.outputs[1:]):
        raise Unsupported("it outputs its statistics or its sum", advice.EXPORT_AGAIN)
    effect = join_operands(call, (0, 1), {k: call.shape(k) for k in (0, 1)})
    if effect.outputs[0].shape[-1] > 1:
        raise Unsupported("it takes mean and variance over the channels", advice.PRUNE_BESIDE_STREAM)
    return effect


def local_response_normalization(call: Call) -> Effect:
    """Local response normalisation over neighbouring channels.

    Flow: channels on axes other than 1 pass through.
    Ties: none.
    Pins: channels on axis 1, each of which is divided by its neighbours.
    Limits: none.
    Specification: ONNX LRN-13.
    """
    if 1 in varied_axes(call.channel_ids(0)):
        raise Unsupported("it divides each channel by its neighbours", advice.NO_EXACT_FORM)
    return Effect((call.channel_ids(0),))


NORMALIZATION_RULES = {
    ("", "BatchNormalization"): batch_normalization,
    ("", "InstanceNormalization"): instance_normalization,
    ("", "GroupNormalization"): group_normalization,
    ("", "LayerNormalization"): layer_normalization,
    ("", "RMSNormalization"): rms_normalization,
    ("", "LRN"): local_response_normalization,
    ("", "MeanVarianceNormalization"): mean_variance_normalization,
    ("", "LpNormalization"): lp_normalization,
    ("com.microsoft", "SkipLayerNormalization"): skip_layer_normalization,
    ("com.microsoft", "SkipSimplifiedLayerNormalization"): skip_layer_normalization,
}

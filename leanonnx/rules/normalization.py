"""Normalisations.

Per channel (BatchNormalization, InstanceNormalization): a diagonal operator, its constants sliced.
Per group (GroupNormalization): whole groups live or die.
Over channels (LayerNormalization …): pinned, since the statistics are taken over all channels.
"""

from __future__ import annotations

import numpy as np

from leanonnx.labels import on_axis, varied
from leanonnx.rules.call import Array, Call, Edit, Effect, Kept, Link, Slice, Unsupported


def batch_normalization(call: Call) -> Effect:
    """BatchNormalization-15 with fixed statistics; each channel is scaled by |γ| / √(σ² + ε)."""
    if any(not call.is_constant(slot) for slot in range(1, 5)) or call.attribute("training_mode", 0):
        raise Unsupported("its statistics are computed at run time")
    if any(name for name in call.outputs[1:]):
        raise Unsupported("it puts out its statistics")
    scale = np.abs(call.array(1).astype(np.float64))
    gains = scale / np.sqrt(np.maximum(call.array(4).astype(np.float64), 0) + call.attribute("epsilon", 1e-5))
    return _diagonal(call, (1, 2, 3, 4), gains)


def instance_normalization(call: Call) -> Effect:
    """InstanceNormalization-22: each channel by itself; its gain is |scale|."""
    if not (call.is_constant(1) and call.is_constant(2)):
        raise Unsupported("its scale is computed at run time")
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
    """GroupNormalization-21: scale and bias per channel; the groups' members are tied."""
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
    """LayerNormalization-17: free of channels only on the axes before ``axis``."""
    labels = call.labels(0)
    axis = int(call.attribute("axis", -1)) % labels.ndim
    if any(k >= axis for k in varied(labels)):
        raise Unsupported("it takes mean and variance over the channels")
    if any(name for name in call.outputs[1:]):
        raise Unsupported("it puts out its statistics")
    return Effect((labels,))


def over_axes(call: Call) -> Effect:
    """MeanVarianceNormalization-13 and LpNormalization-22: free where the axes hold no channels."""
    labels = call.labels(0)
    default = [0, 2, 3] if call.op == "MeanVarianceNormalization" else [-1]
    axes = call.attribute("axes", call.attribute("axis", default))
    if {int(a) % labels.ndim for a in np.atleast_1d(axes)} & set(varied(labels)):
        raise Unsupported("it normalises over the channels")
    return Effect((labels,))

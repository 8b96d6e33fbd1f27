"""Mistakes that are easily made in the rule of one operator.  The shapes agree: only numbers show them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from leanonnx.numeric.channel_ids import compact_ids, varied_axes
from leanonnx.rules.call import Call, Effect
from leanonnx.rules.table import DEFAULT_RULES


def _with(call: Call, name: str, value: object) -> Effect:
    """The right answer to a call with another attribute."""
    return DEFAULT_RULES[call.domain, call.op](replace(call, attributes={**call.attributes, name: value}))


def other_mode(call: Call, effect: Effect) -> Effect:
    """DepthToSpace: CRD mistaken for DCR and vice versa."""
    del effect
    return _with(call, "mode", "DCR" if call.attribute("mode", "DCR") == "CRD" else "CRD")


def inverse_order(call: Call, effect: Effect) -> Effect:
    """Transpose: the permutation read as destinations of axes, not as sources."""
    order = call.attribute("perm")
    return effect if order is None else _with(call, "perm", np.argsort(order).tolist())


def repeated(call: Call, effect: Effect) -> Effect:
    """Tile, SpaceToDepth: a, a, b, b instead of a, b, a, b."""
    channel_ids = call.channel_ids(0)
    axes = [a for a in varied_axes(channel_ids) if effect.outputs[0].shape[a] > channel_ids.shape[a]]
    for axis in axes:
        channel_ids = np.repeat(channel_ids, effect.outputs[0].shape[axis] // channel_ids.shape[axis], axis)
    return replace(effect, outputs=(channel_ids,)) if axes else effect


def pixels_first(call: Call, effect: Effect) -> Effect:
    """Flatten, Reshape: a, b, a, b instead of a, a, b, b."""
    channel_ids, (output,) = call.channel_ids(0), effect.outputs
    if channel_ids.ndim < 3 or output.ndim != 2 or output.shape[1] <= channel_ids.size:
        return effect
    return replace(effect, outputs=(np.tile(channel_ids.reshape(1, -1), (1, output.shape[1] // channel_ids.size)),))


def parts_swapped(call: Call, effect: Effect) -> Effect:
    """Split: the last part first."""
    del call
    turned = effect.outputs[::-1]
    fits = [a.shape == b.shape for a, b in zip(turned, effect.outputs, strict=True)]
    return replace(effect, outputs=turned) if all(fits) else effect


def interleaved(call: Call, effect: Effect) -> Effect:
    """Depthwise Conv with several outputs per channel: output k·C + c instead of c·m + k."""
    groups, channel_ids = int(call.attribute("group", 1)), effect.outputs[0].reshape(-1)
    turned = channel_ids.reshape(groups, -1).T.reshape(effect.outputs[0].shape)
    return replace(effect, outputs=(compact_ids(turned),)) if groups > 1 else effect

"""Reductions, softmax and the like: channels pass through where the axes taken together hold no channels.

Pins: reductions over the channel axis, whose result depends on the number of channels and on each of them.
"""

from __future__ import annotations

import math

from leanonnx.labels import Labels, varied
from leanonnx.rules.call import Call, Effect, Unsupported


def reduce(call: Call) -> Effect:
    """ReduceMean-18, ReduceSum-13 and their family; ``axes`` is an input or an attribute."""
    labels = call.labels(0)
    axes = call.ints(1, "axes")
    if axes is None or not axes:
        axes = [] if call.attribute("noop_with_empty_axes", 0) else list(range(labels.ndim))
    return Effect((_dropped(labels, axes, bool(call.attribute("keepdims", 1))),))


def arg_extremum(call: Call) -> Effect:
    """ArgMax-13 and ArgMin-13."""
    axis = int(call.attribute("axis", 0))
    return Effect((_dropped(call.labels(0), [axis], bool(call.attribute("keepdims", 1))),))


def _dropped(labels: Labels, axes: list[int], keep: bool) -> Labels:
    taken = {axis % max(labels.ndim, 1) for axis in axes}
    if taken & set(varied(labels)):
        raise Unsupported("it reduces over the channels")
    left = [size for axis, size in enumerate(labels.shape) if axis not in taken]
    return labels if keep else labels.reshape(left)


def softmax(call: Call) -> Effect:
    """Softmax-13, LogSoftmax-13, Hardmax-13; before operator set 13 all axes from ``axis`` on are taken together."""
    labels = call.labels(0)
    old = call.opset < 13
    axis = int(call.attribute("axis", 1 if old else -1)) % labels.ndim
    taken = set(range(axis, labels.ndim)) if old else {axis}
    if taken & set(varied(labels)):
        raise Unsupported("it normalises over the channels")
    return Effect((labels,))


def cumulative(call: Call) -> Effect:
    """CumSum-14 along an axis without channels."""
    labels = call.labels(0)
    axis = int(math.prod(call.ints(1) or [0]))
    if axis % labels.ndim in varied(labels):
        raise Unsupported("it adds up the channels")
    return Effect((labels,))

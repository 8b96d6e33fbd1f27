"""What a linear operator reads and puts out at some positions, as rows of a regression.

Features are laid out ``[rows, groups, channels, taps]``; the weights that go with them ``[groups, outputs, channels,
taps]``, the layout of ``Mix.kernels``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx

from leanonnx.graph.nodes import attribute
from leanonnx.numeric.arrays import Array, Floats, Ints


@dataclass(frozen=True)
class Window:
    """How a convolution moves its window; ``turned``: it is a transposed one.  Sequences have one entry per axis."""

    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    groups: int
    automatic: str
    pads: tuple[int, ...]
    turned: bool


def window_of(node: onnx.NodeProto, kernel: Sequence[int]) -> Window:
    """The window of a Conv or ConvTranspose whose kernels have these sizes."""
    rank = len(kernel)
    automatic = attribute(node, "auto_pad", "NOTSET")
    return Window(
        tuple(kernel),
        tuple(attribute(node, "strides", [1] * rank)),
        tuple(attribute(node, "dilations", [1] * rank)),
        int(attribute(node, "group", 1)),
        automatic.decode() if isinstance(automatic, bytes) else str(automatic),
        tuple(attribute(node, "pads", [0] * 2 * rank)),
        node.op_type == "ConvTranspose",
    )


def features(window: Window, value: Array, size: Sequence[int], chosen: Ints) -> Array:
    """What a convolution reads of one input [C, *spatial] at output positions: [rows, groups, C / groups, taps].

    Args:
        window: the convolution.
        value: its input, without the batch axis.
        size: spatial size of its output.
        chosen: flat positions in the output [rows].
    """
    spatial = value.shape[1:]
    before = _before(window, spatial, size)
    places = np.stack(np.unravel_index(chosen, tuple(size)))
    inside = np.ones((len(chosen), 1), bool)
    flat = np.zeros((len(chosen), 1), np.int64)
    for axis, extent in enumerate(spatial):
        taps = np.arange(window.kernel[axis]) * window.dilations[axis]
        step = window.strides[axis]
        if window.turned:
            at, odd = np.divmod(places[axis][:, None] + before[axis] - taps, step)
            good = (odd == 0) & (at >= 0) & (at < extent)
        else:
            at = places[axis][:, None] * step + taps - before[axis]
            good = (at >= 0) & (at < extent)
        flat = (flat[:, :, None] * extent + np.clip(at, 0, extent - 1)[:, None, :]).reshape(len(chosen), -1)
        inside = (inside[:, :, None] & good[:, None, :]).reshape(len(chosen), -1)
    found = value.reshape(value.shape[0], -1)[:, flat] * inside.astype(value.dtype)
    rows: Array = found.transpose(1, 0, 2)
    return rows.reshape(len(chosen), window.groups, -1, inside.shape[1])


def coverage(window: Window, spatial: Sequence[int], size: Sequence[int]) -> Floats:
    """At which share of the output's positions each tap stands over the input, not over its border [taps].

    Args:
        window: the convolution.
        spatial: spatial size of its input.
        size: that of its output.
    """
    before = _before(window, spatial, size)
    found = np.ones(1)
    for axis, extent in enumerate(spatial):
        taps = np.arange(window.kernel[axis]) * window.dilations[axis]
        places, step = np.arange(size[axis])[:, None], window.strides[axis]
        if window.turned:
            at, odd = np.divmod(places + before[axis] - taps, step)
        else:
            at = places * step + taps - before[axis]
            odd = np.zeros_like(at)
        share = ((odd == 0) & (at >= 0) & (at < extent)).mean(0)
        found = np.outer(found, share).reshape(-1)
    return found


def _before(window: Window, spatial: Sequence[int], size: Sequence[int]) -> list[int]:
    """Padding before the first position of each axis."""
    rank = len(window.kernel)
    if window.automatic in ("NOTSET", ""):
        return list(window.pads[:rank])
    if window.automatic == "VALID":
        return [0] * rank
    found = []
    for axis in range(rank):
        reach = (window.kernel[axis] - 1) * window.dilations[axis] + 1
        if window.turned:
            total = window.strides[axis] * (spatial[axis] - 1) + reach - size[axis]
            upper = total // 2 if window.automatic == "SAME_UPPER" else total - total // 2
        else:
            total = max((size[axis] - 1) * window.strides[axis] + reach - spatial[axis], 0)
            upper = total // 2 if window.automatic == "SAME_UPPER" else total - total // 2
        found.append(upper)
    return found

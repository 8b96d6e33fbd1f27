"""Rows of tensors, and input patches of convolutions (im2col), at some positions, for a regression.

Features are laid out ``[groups, channels, taps, rows]``; the weights that go with them ``[groups, outputs, channels,
taps]``, the layout of ``KernelBlock.kernels``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import onnx
from numpy.typing import NDArray

from leanonnx.graph.nodes import attribute
from leanonnx.numeric.arrays import Array, Floats, Ints


@dataclass(frozen=True, kw_only=True)
class Window:
    """The window of a convolution; ``turned``: a transposed one.  Sequences have one entry per axis."""

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
        kernel=tuple(kernel),
        strides=tuple(attribute(node, "strides", [1] * rank)),
        dilations=tuple(attribute(node, "dilations", [1] * rank)),
        groups=int(attribute(node, "group", 1)),
        automatic=automatic.decode() if isinstance(automatic, bytes) else str(automatic),
        pads=tuple(attribute(node, "pads", [0] * 2 * rank)),
        turned=node.op_type == "ConvTranspose",
    )


def spread_positions(positions: int, count: int, rng: np.random.Generator) -> Ints:
    """Up to ``count`` different positions, ascending: one at random in each of as many equal stretches."""
    count = min(count, positions)
    edges = np.arange(count + 1) * positions // max(count, 1)
    return np.asarray(edges[:-1] + rng.random(count) * np.diff(edges), np.int64)


def rows_at(value: Array, axis: int, chosen: Ints) -> Array:
    """Rows [n, C] of a tensor with C channels along ``axis``, at flat positions along the other axes."""
    moved = np.moveaxis(value, axis, -1)
    if moved.ndim == 1:
        return np.asarray(moved[None][chosen])
    return np.asarray(moved[np.unravel_index(chosen, moved.shape[:-1])])


def features(window: Window, value: Array, size: Sequence[int], chosen: Ints) -> Array:
    """Input patches [groups, C / groups, taps, rows] of inputs [samples, C, *spatial] at some output positions.

    Args:
        window: the convolution.
        value: its input.
        size: spatial size of its output.
        chosen: flat positions in the output, ascending, the samples first [rows].
    """
    spatial = value.shape[2:]
    sample, place = np.divmod(chosen, math.prod(size))
    flat, inside = _taps_read(window, spatial, size, place)
    wide = value.reshape(*value.shape[:2], -1)
    rows = np.empty((value.shape[1], *flat.shape), value.dtype)
    ends = np.searchsorted(sample, np.arange(len(wide) + 1))
    for k, (start, stop) in enumerate(pairwise(ends)):
        if start < stop:
            rows[:, :, start:stop] = np.take(wide[k], flat[:, start:stop], axis=1)
    if not inside.all():
        rows *= inside.astype(value.dtype)
    return rows.reshape(window.groups, -1, *flat.shape)


def _taps_read(
    window: Window, spatial: Sequence[int], size: Sequence[int], place: Ints
) -> tuple[Ints, NDArray[np.bool_]]:
    """Flat input positions that the taps read at some output positions, and whether they lie inside [taps, rows]."""
    before = _leading_pads(window, spatial, size)
    places = np.stack(np.unravel_index(place, tuple(size)))
    inside = np.ones((1, len(place)), bool)
    flat = np.zeros((1, len(place)), np.int64)
    for axis, extent in enumerate(spatial):
        taps = (np.arange(window.kernel[axis]) * window.dilations[axis])[:, None]
        step = window.strides[axis]
        if window.turned:
            at, odd = np.divmod(places[axis] + before[axis] - taps, step)
            good = (odd == 0) & (at >= 0) & (at < extent)
        else:
            at = places[axis] * step + taps - before[axis]
            good = (at >= 0) & (at < extent)
        flat = (flat[:, None] * extent + np.clip(at, 0, extent - 1)[None]).reshape(-1, len(place))
        inside = (inside[:, None] & good[None]).reshape(-1, len(place))
    return flat, inside


def coverage(window: Window, spatial: Sequence[int], size: Sequence[int]) -> Floats:
    """The share of output positions at which each tap reads the input, not the padding [taps].

    Args:
        window: the convolution.
        spatial: spatial size of its input.
        size: that of its output.
    """
    before = _leading_pads(window, spatial, size)
    shares = np.ones(1)
    for axis, extent in enumerate(spatial):
        taps = np.arange(window.kernel[axis]) * window.dilations[axis]
        places, step = np.arange(size[axis])[:, None], window.strides[axis]
        if window.turned:
            at, odd = np.divmod(places + before[axis] - taps, step)
        else:
            at = places * step + taps - before[axis]
            odd = np.zeros_like(at)
        share = ((odd == 0) & (at >= 0) & (at < extent)).mean(0)
        shares = np.outer(shares, share).reshape(-1)
    return shares


def _leading_pads(window: Window, spatial: Sequence[int], size: Sequence[int]) -> list[int]:
    """Padding before the first position of each axis."""
    rank = len(window.kernel)
    if window.automatic in ("NOTSET", ""):
        return list(window.pads[:rank])
    if window.automatic == "VALID":
        return [0] * rank
    amounts = []
    for axis in range(rank):
        reach = (window.kernel[axis] - 1) * window.dilations[axis] + 1
        if window.turned:
            total = window.strides[axis] * (spatial[axis] - 1) + reach - size[axis]
            upper = total // 2 if window.automatic == "SAME_UPPER" else total - total // 2
        else:
            total = max((size[axis] - 1) * window.strides[axis] + reach - spatial[axis], 0)
            upper = total // 2 if window.automatic == "SAME_UPPER" else total - total // 2
        amounts.append(upper)
    return amounts

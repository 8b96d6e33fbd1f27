"""Kinds of outputs, derived from their shapes alone; n is the size of axis 0 of the first graph input.

1. *Classes*: floats [n, K], [n, K, 1, 1] or [n, 1, 1, K], K ≥ 2.
2. *Image*: floats [n, C, H, W] or [n, H, W, C], C being 1, 3 or 4, H and W at least 8; also with C = 2 (a complex
   image) if a graph input is such an image.  Without one they are an *image or a map of two classes*.
3. *Class map*: other floats [n, K, H, W], K ≥ 2, H and W at least 8.  Classes are on the last axis if that is the
   shortest, both here and in a graph input.
4. *Integers*, booleans, text of any shape.
5. Any other output is *other*.
"""

from __future__ import annotations

from collections.abc import Sequence

from leanonnx.data.images import IMAGE_CHANNEL_COUNTS, image_axes
from leanonnx.graph.formats import is_float
from leanonnx.numeric.arrays import Array
from leanonnx.runtime.sessions import Feed

CLASSES, IMAGE, MAP, DISCRETE, OTHER = "classes", "image", "class map", "whole numbers", "other"
IMAGE_OR_MAP = "image or map of two classes"
COMPLEX_CHANNELS = 2
"""Number of channels of a complex image."""
MAP_RANK = 4
MIN_IMAGE_SIZE = 8
"""Smallest height and width of an image or a class map."""


def sample_count(feed: Feed) -> int:
    """Samples in a run: size of axis 0 of the first input with an axis."""
    return next((value.shape[0] for value in feed.values() if value.ndim), 1)


def channels_last(feed: Feed) -> bool:
    """True if an image-like input is shortest along its last axis."""
    return any(_last_is_shortest(value.shape) for value in feed.values() if value.ndim == MAP_RANK)


def _last_is_shortest(shape: Sequence[int]) -> bool:
    return shape[3] < min(shape[1:3])


def has_complex_image(feed: Feed) -> bool:
    """True if an input is an image of two channels."""
    return any(
        value.shape[sum(range(1, MAP_RANK)) - sum(axes)] == COMPLEX_CHANNELS
        for value in feed.values()
        if is_float(value) and (axes := image_axes(value.shape)) is not None
    )


def output_kind(value: Array, rows: int, channels_last: bool, complex_input: bool = False) -> tuple[str, int]:
    """Kind of an output, and its axis of classes or colours.

    Args:
        value: the output.
        rows: samples in the run.
        channels_last: an input is shortest along its last axis.
        complex_input: an input is an image of two channels.
    """
    shape = value.shape
    if not is_float(value):
        return DISCRETE, 0
    if not shape or shape[0] != rows or len(shape) not in (2, MAP_RANK):
        return OTHER, 0
    long = [axis for axis, size in enumerate(shape) if axis and size > 1]
    if len(long) == 1 and long[0] in (1, MAP_RANK - 1):
        return CLASSES, long[0]
    if len(shape) != MAP_RANK:
        return OTHER, 0
    for axis, sides in ((1, shape[2:]), (3, shape[1:3])):
        if shape[axis] in IMAGE_CHANNEL_COUNTS and min(sides) >= MIN_IMAGE_SIZE:
            return IMAGE_OR_MAP if shape[axis] == COMPLEX_CHANNELS and not complex_input else IMAGE, axis
    axis = 3 if channels_last and _last_is_shortest(shape) else 1
    if min(shape[2:] if axis == 1 else shape[1:3]) < MIN_IMAGE_SIZE:
        return OTHER, 0
    return MAP, axis


def slice_axes(value: Array, kind: tuple[str, int], labelled: Sequence[int]) -> tuple[int, ...]:
    """Axes along which an output is compared slice by slice.

    These are the axes along which channel ids differ, if known; else the axis of classes or colours; else axis 1 and
    the last.

    Args:
        value: the output.
        kind: its kind, and its axis of classes or colours.
        labelled: the axes along which channel ids differ, empty if unknown.
    """
    name, axis = kind
    if name == DISCRETE:
        return ()
    axes = labelled or ((axis,) if name != OTHER else (1, value.ndim - 1) if value.ndim > 1 else ())
    return tuple(dict.fromkeys(a for a in axes if a < value.ndim and value.shape[a] > 1))

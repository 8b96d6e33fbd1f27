"""Distance of two runs of a network: tensor by tensor, and channel by channel on the scale of each channel.

One norm for a whole tensor hides its small parts: class scores of 0.01 beside boxes of 300 pixels.  A tensor is
therefore divided into slices, one per distinct channel, and each slice is compared separately.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from leanonnx.graph.formats import is_float, is_integer
from leanonnx.numeric.arrays import Array, Floats, Ints
from leanonnx.numeric.channel_ids import ChannelIds, Mask, any_along, is_rectangle, varied_axes

NORM_FLOOR = 1e-3
"""Lower bound of a slice's scale on one input, as a share of its largest norm over the inputs."""
PART_FLOOR = 0.1
"""Lower bound as a share of its largest part of the tensor's norm, for slices that happen to be near zero."""
MIN_SPREAD_ELEMENTS = 64
"""Elements from which on the spread of a slice is reliable."""
FEW_ELEMENTS_FACTOR = 10
"""Factor on the norm of a slice of fewer elements, up to the norm of the whole: all may be near zero by chance."""
CONSTANT = "constant"
ZERO_NORM = 1e-30
"""Norms below this count as zero."""
STILL_CHANGE = 1e-6
"""Relative change up to which a slice counts as not varying."""


@dataclass(frozen=True)
class ComparedChannels:
    """Channel ids of tensors by name, at each observed size, and the keep mask ``alive`` [channels] (None: all).

    ``constant_tensors`` returns the names of tensors whose channels are constant.
    """

    channel_ids: Sequence[Mapping[str, ChannelIds]] = ()
    alive: Mask | None = None
    constant_tensors: Callable[[], Collection[str]] = tuple

    def ids_of(self, name: str, shape: Sequence[int]) -> ChannelIds | None:
        """Channel ids of a tensor of this shape; None if none are known."""
        for known in self.channel_ids:
            channel_ids = known.get(name)
            if channel_ids is not None and _fits(channel_ids.shape, shape):
                return channel_ids
        return None

    def kept_part(self, name: str, value: Array) -> Array | None:
        """Return the kept channels of a tensor of the original; None if they cannot be determined."""
        if self.alive is None or all(self.alive[known[name]].all() for known in self.channel_ids if name in known):
            return value
        channel_ids = self.ids_of(name, value.shape)
        mask = None if channel_ids is None else self.alive[channel_ids]
        if mask is None or not mask.any() or not is_rectangle(mask):
            return None
        for axis, size in enumerate(mask.shape):
            if size > 1:
                value = np.take(value, np.flatnonzero(any_along(mask, axis)), axis)
        return value

    def slices(self, name: str, shape: Sequence[int]) -> ChannelSlices:
        """Slices of the kept part of a tensor of the original with this shape."""
        channel_ids = self.ids_of(name, shape)
        if channel_ids is None or not varied_axes(channel_ids):
            return WHOLE_TENSOR
        axes = varied_axes(channel_ids)
        if self.alive is not None:
            mask = self.alive[channel_ids]
            for axis in axes:
                channel_ids = np.take(channel_ids, np.flatnonzero(any_along(mask, axis)), axis)
        distinct, groups = np.unique(channel_ids, return_inverse=True)
        return ChannelSlices(axes, groups.reshape(-1), distinct.size) if distinct.size > 1 else WHOLE_TENSOR


def _fits(channel_ids: Sequence[int], shape: Sequence[int]) -> bool:
    return len(channel_ids) == len(shape) and all(a in (1, b) for a, b in zip(channel_ids, shape, strict=True))


@dataclass(frozen=True)
class ChannelSlices:
    """Slices of a tensor: ``groups`` [indices] maps each index along ``axes`` to one of ``count`` slices."""

    axes: tuple[int, ...] = ()
    groups: Ints = field(default_factory=lambda: np.zeros(1, np.int64))
    count: int = 0

    def means(self, value: Array) -> Floats:
        """Means over the whole tensor and over each slice [1 + count]; 0 if empty."""
        others = tuple(axis for axis in range(value.ndim) if axis not in self.axes)
        if not self.count:
            return np.array([value.mean() if value.size else 0.0])
        rows = value.sum(axis=others, dtype=np.float64).reshape(-1)
        sizes = np.bincount(self.groups, minlength=self.count) * (value.size / rows.size)
        sums = np.bincount(self.groups, rows, self.count)
        return np.concatenate([[sums.sum() / max(value.size, 1)], sums / np.maximum(sizes, 1)])


WHOLE_TENSOR = ChannelSlices()


@dataclass(frozen=True, kw_only=True)
class Profile:
    """Root mean squares and means of the finite elements of a tensor and of its slices [1 + slices].

    ``sound``: some elements are finite; ``sizes``: number of elements of the whole and of each slice.
    """

    rms: Floats
    mean: Floats
    sound: bool
    sizes: Ints

    @classmethod
    def of(cls, value: Array, slices: ChannelSlices) -> Profile:
        """Profile of a tensor; zeros for a tensor that is not float."""
        sizes = np.array([value.size] + [value.size // max(slices.count, 1)] * slices.count)
        if not is_float(value):
            nothing = np.zeros(1 + slices.count)
            return cls(rms=nothing, mean=nothing, sound=value.size > 0, sizes=sizes)
        values, sound = finite_values(value)
        mean = slices.means(values)
        return cls(rms=_rms(values, slices), mean=mean, sound=sound, sizes=sizes)


def finite_values(value: Array) -> tuple[Array, bool]:
    """Return floats in double precision, with zero for elements that are not finite, and True if any is finite."""
    numbers = value.astype(np.float64)
    mask = np.isfinite(numbers)
    if mask.all():
        return numbers, value.size > 0
    return np.where(mask, numbers, 0.0), bool(mask.any())


def slice_distances(wanted: Array, computed: Array, slices: ChannelSlices) -> Floats:
    """Root mean square difference of the whole and of each slice [1 + slices]; inf if not comparable.

    For integers, booleans and text: share of unequal elements.
    """
    if wanted.shape != computed.shape:
        return np.full(1 + slices.count, np.inf)
    if not is_float(wanted):
        return slices.means((wanted != computed).astype(np.float64))
    gap = wanted.astype(np.float64)
    with np.errstate(invalid="ignore"):
        gap -= computed
    if not np.isfinite(gap).all():
        a, b = wanted.astype(np.float64), computed.astype(np.float64)
        mask = np.isfinite(a)
        if not np.array_equal(mask, np.isfinite(b)) or not np.array_equal(a[~mask], b[~mask], equal_nan=True):
            return np.full(1 + slices.count, np.inf)
        gap[~mask] = 0.0
    return _rms(gap, slices)


def slice_scales(profiles: Sequence[Profile], rounding: float, more: Sequence[Profile] = ()) -> Floats:
    """Scale of a tensor and of each of its slices on each input [inputs, 1 + slices].

    The scale is the spread around the median mean of the slice, so that a constant offset hides no error, or
    ``FEW_ELEMENTS_FACTOR`` times the norm of a slice with few elements, but at least

    1. ``rounding`` times the norm, the size of rounding errors,
    2. ``PART_FLOOR`` of the largest part that the slice has in the whole on any input, relative to the whole on this
       input,
    3. ``NORM_FLOOR`` of its largest norm on any input, those of ``more`` included.
    """
    rms, mean = np.stack([p.rms for p in profiles]), np.stack([p.mean for p in profiles])
    centre = np.median(mean, axis=0)
    spread = np.minimum(np.sqrt(np.maximum(rms**2 - 2 * mean * centre + centre**2, 0)), rms)
    whole = np.maximum(rms[:, :1], ZERO_NORM)
    known = np.sum([p.sizes for p in profiles], axis=0) >= MIN_SPREAD_ELEMENTS
    spread = np.where(known, spread, np.minimum(FEW_ELEMENTS_FACTOR * rms, np.maximum(whole, rms)))
    part = whole * (spread / whole).max(axis=0)
    largest = np.stack([*(p.rms for p in profiles), *(p.rms for p in more)]).max(axis=0)
    scale = np.maximum.reduce(
        [spread, rounding * rms, PART_FLOOR * part, np.broadcast_to(NORM_FLOOR * largest, rms.shape)]
    )
    absolute = np.where(rms[:, :1] > ZERO_NORM, rms[:, :1], 1.0)
    return np.asarray(np.where(scale > ZERO_NORM, scale, absolute))


def varying_slices(values: Sequence[Array], slices: ChannelSlices) -> Mask:
    """Mask of the slices of a tensor that vary over inputs of one size [1 + slices].

    A single input is checked over the samples of its batch or, for a single sample, over positions.

    ``values``: the tensor on each input; if its shape depends on the data, it varies unless it is always empty.
    """
    still = np.zeros(1 + slices.count, bool)
    if not values or not any(value.size for value in values):
        return still
    if len({value.shape for value in values}) > 1:
        return ~still
    first = values[0]
    if not is_float(first):
        same = [np.array_equal(first, value) for value in values[1:]] or [bool((first == first.flat[0]).all())]
        return np.full(1 + slices.count, not all(same))
    start = finite_values(first)[0]
    norms = np.max([_rms(finite_values(value)[0], slices) for value in values], axis=0)
    if len(values) > 1:
        moved = np.max([_rms(finite_values(value)[0] - start, slices) for value in values[1:]], axis=0)
    elif first.ndim and first.shape[0] > 1 and 0 not in slices.axes:
        moved = _rms(start - start[:1], slices)
    else:
        moved = np.sqrt(np.maximum(norms**2 - slices.means(start) ** 2, 0))
    varies = (moved > STILL_CHANGE * norms) & (moved > ZERO_NORM)
    varies[0] |= varies.any()
    return np.asarray(varies)


def _rms(numbers: Array, slices: ChannelSlices) -> Floats:
    """Root mean square of the whole and of each slice [1 + slices]; overwrites the array."""
    own = np.asarray(numbers)
    return np.asarray(np.sqrt(slices.means(np.square(own, out=own))))


def stillness_reason(value: Array) -> str:
    """Reason why a tensor does not vary."""
    if not value.size:
        return "empty"
    if is_float(value) and not finite_values(value)[1]:
        return "not finite"
    return CONSTANT if is_float(value) or is_integer(value) or value.dtype.kind == "b" else "no numbers"


def output_floors(known: Sequence[Sequence[Array]]) -> list[float]:
    """Lower bound of the norm of each output on one input [outputs]."""
    return [NORM_FLOOR * max(_norm(row[k]) for row in known) for k in range(len(known[0]))]


def _norm(value: Array) -> float:
    """Euclidean norm of the finite elements of a float array; 0 for other kinds."""
    return float(np.linalg.norm(finite_values(value)[0])) if is_float(value) else 0.0


def relative_error(wanted: Array, computed: Array, floor: float = 0.0) -> float:
    """‖wanted - found‖ / max(‖wanted‖, floor); inf if not comparable.

    For integers and booleans: share of unequal elements.
    """
    error = float(slice_distances(wanted, computed, WHOLE_TENSOR)[0])
    if not is_float(wanted) or not np.isfinite(error):
        return error
    error *= wanted.size**0.5
    scale = max(_norm(wanted), floor)
    return float(error / scale if scale > 0 else error)

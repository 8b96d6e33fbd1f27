"""How far two runs of a network are apart: tensor by tensor, and channel by channel on the scale of each channel.

One norm for a whole tensor hides its small parts: class scores of 0.01 beside boxes of 300 pixels.  So a tensor is
divided into slices, one for each channel that its labels tell apart, and each is measured by itself.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from leanonnx.graph.formats import is_float, is_integer
from leanonnx.numeric.arrays import Array, Floats, Ints
from leanonnx.numeric.channel_ids import ChannelIds, Mask, is_rectangle, projection, varied

FLOOR = 1e-3
"""Share of a slice's largest norm over the inputs below which its norm on one input is not taken as its scale."""
SHARE = 0.1
"""The same for its largest part in its tensor's norm: a number that happens to be near zero is no small channel."""
OBSERVED = 64
"""Numbers from which on their spread is known."""
LONE = 10
"""How often its size a slice of fewer numbers is taken for, up to the whole: all may be near zero by chance."""
CONSTANT = "constant"
TINY = 1e-30
"""Norms below this have no digits."""
STILL = 1e-6
"""Relative change up to which a slice does not vary."""


@dataclass(frozen=True)
class ComparedChannels:
    """Labels of tensors by name, at each size that was looked at, and which labels [labels] are alive (None: all).

    ``steady`` finds the tensors whose channels each hold one number, whatever the input.
    """

    channel_ids: Sequence[Mapping[str, ChannelIds]] = ()
    alive: Mask | None = None
    steady: Callable[[], Collection[str]] = tuple

    def of(self, name: str, shape: Sequence[int]) -> ChannelIds | None:
        """The labels of a tensor of this shape; None where none are known that fit."""
        for known in self.channel_ids:
            channel_ids = known.get(name)
            if channel_ids is not None and _fits(channel_ids.shape, shape):
                return channel_ids
        return None

    def survivors(self, name: str, value: Array) -> Array | None:
        """A tensor of the original at the channels that are left; None where these cannot be told."""
        if self.alive is None or all(self.alive[known[name]].all() for known in self.channel_ids if name in known):
            return value
        channel_ids = self.of(name, value.shape)
        mask = None if channel_ids is None else self.alive[channel_ids]
        if mask is None or not mask.any() or not is_rectangle(mask):
            return None
        for axis, size in enumerate(mask.shape):
            if size > 1:
                value = np.take(value, np.flatnonzero(projection(mask, axis)), axis)
        return value

    def slices(self, name: str, shape: Sequence[int]) -> ChannelSlices:
        """Slices of what is left of a tensor of this shape of the original."""
        channel_ids = self.of(name, shape)
        if channel_ids is None or not varied(channel_ids):
            return WHOLE
        axes = varied(channel_ids)
        if self.alive is not None:
            mask = self.alive[channel_ids]
            for axis in axes:
                channel_ids = np.take(channel_ids, np.flatnonzero(projection(mask, axis)), axis)
        distinct, groups = np.unique(channel_ids, return_inverse=True)
        return ChannelSlices(axes, groups.reshape(-1), distinct.size) if distinct.size > 1 else WHOLE


def _fits(channel_ids: Sequence[int], shape: Sequence[int]) -> bool:
    return len(channel_ids) == len(shape) and all(a in (1, b) for a, b in zip(channel_ids, shape, strict=True))


@dataclass(frozen=True)
class ChannelSlices:
    """Slices of a tensor: for each index along ``axes`` [indices], which of ``count`` slices it belongs to."""

    axes: tuple[int, ...] = ()
    groups: Ints = field(default_factory=lambda: np.zeros(1, np.int64))
    count: int = 0

    def means(self, value: Array) -> Floats:
        """Means over the whole tensor and over each slice [1 + count]; 0 for what is empty."""
        others = tuple(axis for axis in range(value.ndim) if axis not in self.axes)
        if not self.count:
            return np.array([value.mean() if value.size else 0.0])
        rows = value.sum(axis=others, dtype=np.float64).reshape(-1)
        sizes = np.bincount(self.groups, minlength=self.count) * (value.size / rows.size)
        sums = np.bincount(self.groups, rows, self.count)
        return np.concatenate([[sums.sum() / max(value.size, 1)], sums / np.maximum(sizes, 1)])


WHOLE = ChannelSlices()


@dataclass(frozen=True)
class Profile:
    """Root mean squares and means of the finite numbers of a tensor and of its slices [1 + slices].

    ``sound``: some of them are finite; ``sizes``: how many numbers the whole and each slice hold.
    """

    rms: Floats
    mean: Floats
    sound: bool
    sizes: Ints

    @classmethod
    def of(cls, value: Array, slices: ChannelSlices) -> Profile:
        """The profile of a tensor; one that holds no floats has none."""
        sizes = np.array([value.size] + [value.size // max(slices.count, 1)] * slices.count)
        if not is_float(value):
            nothing = np.zeros(1 + slices.count)
            return cls(nothing, nothing, value.size > 0, sizes)
        living, sound = finite(value)
        mean = slices.means(living)
        return cls(_rms(living, slices), mean, sound, sizes)


def finite(value: Array) -> tuple[Array, bool]:
    """Floats in double precision, zero where they are not finite, and whether any is."""
    numbers = value.astype(np.float64)
    living = np.isfinite(numbers)
    if living.all():
        return numbers, value.size > 0
    return np.where(living, numbers, 0.0), bool(living.any())


def distance(wanted: Array, found: Array, slices: ChannelSlices) -> Floats:
    """Root mean square of the difference, of the whole and of each slice [1 + slices]; inf if not comparable.

    For integers, booleans and text: the share of unequal elements.
    """
    if wanted.shape != found.shape:
        return np.full(1 + slices.count, np.inf)
    if not is_float(wanted):
        return slices.means((wanted != found).astype(np.float64))
    gap = wanted.astype(np.float64)
    with np.errstate(invalid="ignore"):
        gap -= found
    if not np.isfinite(gap).all():
        a, b = wanted.astype(np.float64), found.astype(np.float64)
        living = np.isfinite(a)
        if not np.array_equal(living, np.isfinite(b)) or not np.array_equal(a[~living], b[~living], equal_nan=True):
            return np.full(1 + slices.count, np.inf)
        gap[~living] = 0.0
    return _rms(gap, slices)


def scales_of(profiles: Sequence[Profile], rounding: float, more: Sequence[Profile] = ()) -> Floats:
    """The scale of a tensor and of each of its slices on each input [inputs, 1 + slices].

    It is the spread around the slice's usual mean, so that a constant offset hides nothing, or ``LONE`` times the norm
    of a few numbers, but at least

    1. ``rounding`` times the norm, below which the numbers have no digits left,
    2. ``SHARE`` of the largest part that the slice has in the whole on any input, at the size of the whole on this one,
    3. ``FLOOR`` of its largest norm on any input, ``more`` ones among them.
    """
    rms, mean = np.stack([p.rms for p in profiles]), np.stack([p.mean for p in profiles])
    centre = np.median(mean, axis=0)
    spread = np.minimum(np.sqrt(np.maximum(rms**2 - 2 * mean * centre + centre**2, 0)), rms)
    whole = np.maximum(rms[:, :1], TINY)
    known = np.sum([p.sizes for p in profiles], axis=0) >= OBSERVED
    spread = np.where(known, spread, np.minimum(LONE * rms, np.maximum(whole, rms)))
    part = whole * (spread / whole).max(axis=0)
    largest = np.stack([*(p.rms for p in profiles), *(p.rms for p in more)]).max(axis=0)
    scale = np.maximum.reduce([spread, rounding * rms, SHARE * part, np.broadcast_to(FLOOR * largest, rms.shape)])
    absolute = np.where(rms[:, :1] > TINY, rms[:, :1], 1.0)
    return np.asarray(np.where(scale > TINY, scale, absolute))


def varying(values: Sequence[Array], slices: ChannelSlices) -> Mask:
    """Which slices of a tensor vary over inputs of one size [1 + slices].

    Where there is one input, over the samples of its batch or, where that is one too, over positions.

    ``values`` has the tensor on each input; one whose shape follows from the data varies where it is not always empty.
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
    start = finite(first)[0]
    norms = np.max([_rms(finite(value)[0], slices) for value in values], axis=0)
    if len(values) > 1:
        moved = np.max([_rms(finite(value)[0] - start, slices) for value in values[1:]], axis=0)
    elif first.ndim and first.shape[0] > 1 and 0 not in slices.axes:
        moved = _rms(start - start[:1], slices)
    else:
        moved = np.sqrt(np.maximum(norms**2 - slices.means(start) ** 2, 0))
    found = (moved > STILL * norms) & (moved > TINY)
    found[0] |= found.any()
    return np.asarray(found)


def _rms(numbers: Array, slices: ChannelSlices) -> Floats:
    """Root mean square of the whole and of each slice [1 + slices]; takes the array for its own."""
    own = np.asarray(numbers)
    return np.asarray(np.sqrt(slices.means(np.square(own, out=own))))


def kind_of(value: Array) -> str:
    """What there is to say of a tensor that does not vary."""
    if not value.size:
        return "empty"
    if is_float(value) and not finite(value)[1]:
        return "not finite"
    return CONSTANT if is_float(value) or is_integer(value) or value.dtype.kind == "b" else "no numbers"


def scales(known: Sequence[Sequence[Array]]) -> list[float]:
    """For each output: what its norm on one input is taken for at least."""
    return [FLOOR * max(_norm(row[k]) for row in known) for k in range(len(known[0]))]


def _norm(value: Array) -> float:
    """Euclidean norm of the finite elements of a float array; 0 for other kinds."""
    return float(np.linalg.norm(finite(value)[0])) if is_float(value) else 0.0


def relative(wanted: Array, found: Array, floor: float = 0.0) -> float:
    """‖wanted - found‖ / max(‖wanted‖, floor); inf if not comparable.

    For integers and booleans: the share of unequal elements.
    """
    error = float(distance(wanted, found, WHOLE)[0])
    if not is_float(wanted) or not np.isfinite(error):
        return error
    error *= wanted.size**0.5
    scale = max(_norm(wanted), floor)
    return float(error / scale if scale > 0 else error)

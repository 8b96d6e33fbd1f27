"""Inputs of the proof: random inputs of several kinds, at the sizes of the first run and at further sizes.

Some networks give no informative output on the usual kinds: a detector finds no boxes in noise.  Further kinds serve
these networks.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from leanonnx.graph.formats import is_float, is_integer
from leanonnx.graph.model import Model
from leanonnx.numeric.arrays import Array
from leanonnx.runtime.observation import Shapes, random_feed
from leanonnx.runtime.sessions import Feed

INPUT_KINDS = ("normal", "uniform", "bytes")
MAX_CLASS_NUMBER = 8
"""Exclusive upper bound of drawn class numbers and positions."""
INPUT_FACTORS = (10.0, 0.1, 100.0, 0.01, 1e4)
"""Factors of normal inputs, of either sign, for models on which the usual inputs are uninformative."""
BINARY_PROBABILITY = 0.5
"""Probability of a one in binary inputs."""
FIELD_SQUARE = 8
"""Side of the squares of smooth fields, in elements."""
MAX_BATCH_FACTOR = 16
"""Largest multiple of the first batch size that a joined batch may have."""


def random_inputs(model: Model, shapes: Shapes, seed: int = 0) -> list[Feed]:
    """Random inputs at given sizes: normal, uniform in [0, 1), uniform in [0, 255)."""
    named = {value.name: shapes[value.name] for value in model.inputs}
    return [random_feed(model, named, seed + k, kind) for k, kind in enumerate(INPUT_KINDS)]


def class_number_inputs(model: Model, shapes: Shapes, seed: int = 0) -> list[Feed]:
    """Inputs with class numbers and positions below ``COUNTED``, not only 0 and 1; empty without integer inputs."""
    named = {value.name: shapes[value.name] for value in model.inputs}
    rng = np.random.default_rng(seed)
    feed = random_feed(model, named, seed)
    names = [name for name, value in feed.items() if is_index_array(value)]
    more = {
        name: np.asarray(rng.integers(0, MAX_CLASS_NUMBER, feed[name].shape)).astype(feed[name].dtype) for name in names
    }
    return [feed | more] if more else []


def is_index_array(value: Array) -> bool:
    """True if an array holds integers wider than pixels."""
    return is_integer(value) and value.dtype.itemsize > 1


def sized_inputs(model: Model, base: Sequence[Feed], sizes: Sequence[Shapes], seed: int = 0) -> list[Feed]:
    """Inputs at further sizes, one for each; if possible, a larger batch is joined from the inputs ``base``.

    A network that mixes up the samples of a batch then differs from its own results on the single inputs.
    """
    feeds = []
    for k, shapes in enumerate(sizes):
        batch = _join_batch(base, shapes)
        feeds.append(
            batch or random_feed(model, shapes, seed + len(INPUT_KINDS) + k, INPUT_KINDS[k % len(INPUT_KINDS)])
        )
    return feeds


def _join_batch(base: Sequence[Feed], shapes: Shapes) -> Feed | None:
    """Join several inputs to one batch of these shapes; None if other axes than the first differ."""
    first = base[0]
    times = {
        shape[0] / first[name].shape[0]
        for name, shape in shapes.items()
        if shape != first[name].shape and shape[1:] == first[name].shape[1:] and first[name].shape[0]
    }
    if len(times) != 1 or any(s[1:] != first[name].shape[1:] for name, s in shapes.items()):
        return None
    count = times.pop()
    if count != int(count) or not 1 < count <= MAX_BATCH_FACTOR:
        return None
    parts = [base[k % len(base)] for k in range(int(count))]
    return {
        name: first[name] if shape == first[name].shape else np.concatenate([part[name] for part in parts])
        for name, shape in shapes.items()
    }


def further_inputs(model: Model, shapes: Shapes, seed: int = 0) -> Iterator[tuple[str, Feed]]:
    """Yield further kinds of inputs with their names: larger, smaller, binary and smooth ones."""
    named = {value.name: shapes[value.name] for value in model.inputs}
    rng = np.random.default_rng(seed)

    def smooth(value: Array) -> Array:
        field = _smooth(value.shape, rng)
        if is_float(value):
            return field.astype(value.dtype)
        if not _is_byte(value):
            return value
        limits = np.iinfo(value.dtype)
        level = (field - field.min()) / max(np.ptp(field), 1)
        return np.asarray((limits.min + level * (limits.max - limits.min)).astype(value.dtype))

    for k in range(2):
        feed = random_feed(model, named, seed + k, INPUT_KINDS[0])
        yield "smooth", {name: smooth(value) for name, value in feed.items()}
    for k, factor in enumerate(INPUT_FACTORS):
        feed = random_feed(model, named, seed + k, INPUT_KINDS[0])
        for signed in (factor, -factor):
            yield f"normal times {factor:g}", {name: _scale_values(value, signed) for name, value in feed.items()}
    feed = random_feed(model, named, seed, INPUT_KINDS[0])
    yield "binary", {name: np.asarray(rng.random(v.shape) < BINARY_PROBABILITY, v.dtype) for name, v in feed.items()}
    feed = random_feed(model, named, seed, INPUT_KINDS[2])
    yield (
        "smooth bytes",
        {
            name: np.asarray(np.abs(_smooth(value.shape, rng)) * 100, value.dtype) if is_float(value) else smooth(value)
            for name, value in feed.items()
        },
    )


def _scale_values(value: Array, factor: float) -> Array:
    """Multiply floats by a factor, within the range of their format; factors below 1 reduce the contrast of pixels."""
    if is_float(value):
        with np.errstate(over="ignore"):
            return np.asarray((value.astype(np.float64) * factor).astype(value.dtype))
    if not _is_byte(value) or abs(factor) >= 1:
        return value
    limits = np.iinfo(value.dtype)
    middle = (limits.min + limits.max + 1) // 2
    return np.asarray((middle + (value.astype(np.int64) - middle) * factor).astype(value.dtype))


def _is_byte(value: Array) -> bool:
    return value.dtype.kind in "iu" and value.dtype.itemsize == 1


def _smooth(shape: tuple[int, ...], rng: np.random.Generator) -> Array:
    """Random field: squares on top of larger squares, with a random level."""
    total = np.full(shape, rng.standard_normal())
    for side in (FIELD_SQUARE, 4 * FIELD_SQUARE):
        cells = rng.standard_normal([-(-size // side) if size >= FIELD_SQUARE else size for size in shape])
        for axis, size in enumerate(shape):
            if size >= FIELD_SQUARE:
                cells = np.take(np.repeat(cells, side, axis), np.arange(size), axis)
        total = np.asarray(total + cells)
    return total


def nudge_floats(feed: Feed, to: float = np.inf) -> Feed:
    """Return the inputs with floats moved by one unit in the last place towards ``to``."""
    return {
        name: np.asarray(np.nextafter(value, np.asarray(to, value.dtype))) if value.dtype.kind == "f" else value
        for name, value in feed.items()
    }


def sizes_of(feed: Feed) -> tuple[tuple[int, ...], ...]:
    """Shapes of all inputs, as a key to distinguish sizes."""
    return tuple(feed[name].shape for name in sorted(feed))


def group_by_size(feeds: Sequence[Feed]) -> list[list[int]]:
    """Group the indices of inputs by size; groups of one input are kept only for a larger batch than the first.

    Each input forms its own group if no group is left.  Variation is looked for within a group.
    """
    groups: dict[tuple[tuple[int, ...], ...], list[int]] = {}
    for k, feed in enumerate(feeds):
        groups.setdefault(sizes_of(feed), []).append(k)
    first = sizes_of(feeds[0])
    informative = [group for size, group in groups.items() if len(group) > 1 or _is_batch(size, first)]
    return informative or list(groups.values())


def _is_batch(sizes: tuple[tuple[int, ...], ...], first: tuple[tuple[int, ...], ...]) -> bool:
    """True if inputs differ from those of the first size only by a longer first axis."""
    pairs = [(a, b) for a, b in zip(sizes, first, strict=True) if a != b]
    return bool(pairs) and all(a[1:] == b[1:] and a[:1] > b[:1] for a, b in pairs)

"""Further sizes for the free axes of a model, so that it is observed at more than one size.

Axes of one name change together, and so do unnamed axes at the same position of inputs of the same rank.  Each group of
axes is tried alone, and all groups jointly, at values at which the model runs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice

InputShapes = dict[str, tuple[int, ...]]
"""Shapes of the graph inputs by name."""

VALUES_PER_AXIS = 2
"""Number of further values to find for each axis."""
IMAGE_SIZE_STEP = 32
"""Heights and widths of images are usually multiples of this."""
MAX_SMALL_SIZE = 4
"""Largest size of an axis that may hold channels or be broadcast."""
IMAGE_INPUT_RANK = 4
"""Rank of a batch of images."""
MAX_CANDIDATES = 24
"""Largest number of values to try for one axis."""
MAX_GROWTH = 4
"""Limit of the elements in the inputs of a further run, as a multiple of those of the first run."""
MIN_ELEMENT_LIMIT, MAX_ELEMENT_LIMIT = 1 << 22, 1 << 23
"""Range to which that limit is clamped, in elements."""


@dataclass(frozen=True)
class AxisGroup:
    """Axes that change together, as (input, axis) pairs, and the values to try for them, the most common first."""

    axes: tuple[tuple[str, int], ...]
    values: tuple[int, ...]


@dataclass(frozen=True)
class FurtherSizes:
    """Further sizes at which a model runs: with one group of axes changed (``alone``), or all of them (``jointly``)."""

    alone: tuple[InputShapes, ...]
    jointly: tuple[InputShapes, ...]

    @property
    def distinct_sizes(self) -> tuple[InputShapes, ...]:
        """All further sizes without duplicates."""
        distinct: list[InputShapes] = []
        for sizes in (*self.jointly, *self.alone):
            distinct += [sizes] if sizes not in distinct else []
        return tuple(distinct)


def axis_groups(
    declared: Mapping[str, Sequence[int | str]], base: InputShapes, usual: Sequence[int]
) -> list[AxisGroup]:
    """Group the free axes that change together.

    Args:
        declared: sizes of each graph input; the name (or ``?``) of each free axis.
        base: the shapes of the first run.
        usual: likely numbers of channels in this model, the most frequent first.
    """
    places: dict[object, list[tuple[str, int]]] = {}
    for name, declared_sizes in declared.items():
        for axis, size in enumerate(declared_sizes):
            if not isinstance(size, int):
                key = size if size != "?" else (len(declared_sizes) if axis else 0, axis)
                places.setdefault(key, []).append((name, axis))
    return [AxisGroup(tuple(axes), _values(axes, base, usual)) for axes in places.values()]


def _values(places: Sequence[tuple[str, int]], base: InputShapes, usual: Sequence[int]) -> tuple[int, ...]:
    """Return the values to try for one group of axes."""
    sizes = [base[name][axis] for name, axis in places]
    size, ranks = max(sizes), {len(base[name]) for name, _ in places}
    if all(axis == 0 for _, axis in places) and size <= MAX_SMALL_SIZE:
        values = [2, 3, 4, 8, 1]
    elif size <= MAX_SMALL_SIZE or (ranks == {IMAGE_INPUT_RANK} and all(axis == 1 for _, axis in places)):
        values = [*usual, 2, 3, 4, 8, 1]
    elif size >= 2 * IMAGE_SIZE_STEP:
        down = [size * part // 4 // IMAGE_SIZE_STEP * IMAGE_SIZE_STEP for part in (2, 3)]
        values = [*down, size + IMAGE_SIZE_STEP, size // 2, 2 * size, size + 8, size - 8, size + 1, size - 1]
    else:
        values = [2 * size, 3 * size, size // 2, 3 * size // 2, size + 8, size - 8, size + 1, size - 1]
    distinct = dict.fromkeys(value for value in values if value > 0 and set(sizes) != {value})
    return tuple(distinct)[:MAX_CANDIDATES]


def find_further_sizes(
    groups: Sequence[AxisGroup], base: InputShapes, runs: Callable[[InputShapes], bool]
) -> FurtherSizes:
    """Find sizes at which the model runs, with the groups of free axes changed one by one and together.

    Args:
        groups: axes that change together.
        base: the shapes of the first run.
        runs: returns True if the model runs at the given shapes.
    """
    limit = min(
        max(MIN_ELEMENT_LIMIT, MAX_GROWTH * sum(math.prod(shape) for shape in base.values())), MAX_ELEMENT_LIMIT
    )

    def attempt(changes: Mapping[int, int]) -> InputShapes | None:
        sizes = _changed_shapes(groups, base, changes)
        fits = sum(math.prod(shape) for shape in sizes.values()) <= limit
        return sizes if fits and runs(sizes) else None

    alone: list[InputShapes] = []
    working: dict[int, list[int]] = {}
    for k, group in enumerate(groups):
        successes = _first_successes((value, attempt({k: value})) for value in group.values)
        alone += [sizes for _, sizes in successes]
        if successes:
            working[k] = [value for value, _ in successes]
    coupled = [k for k in range(len(groups)) if k not in working]
    depth = max((len(groups[k].values) for k in coupled), default=0) if len(coupled) > 1 else 0
    together = _first_successes((step, attempt(_values_at(groups, coupled, step))) for step in range(depth))
    alone += [sizes for _, sizes in together]
    jointly: list[InputShapes] = []
    for turn in range(VALUES_PER_AXIS) if len(working) + bool(together) > 1 else ():
        coupled_values = _values_at(groups, coupled, together[turn % len(together)][0]) if together else {}
        for crossed in (1, 0):
            changes = {k: values[(turn + crossed * n) % len(values)] for n, (k, values) in enumerate(working.items())}
            if sizes := attempt({**changes, **coupled_values}):
                jointly.append(sizes)
                break
    return FurtherSizes(tuple(alone), tuple(jointly))


def _first_successes(attempts: Iterable[tuple[int, InputShapes | None]]) -> list[tuple[int, InputShapes]]:
    """Return the first ``VALUES_PER_AXIS`` attempts that succeed, and make no later ones."""
    return list(islice(((value, sizes) for value, sizes in attempts if sizes is not None), VALUES_PER_AXIS))


def _values_at(groups: Sequence[AxisGroup], coupled: Sequence[int], step: int) -> dict[int, int]:
    """Return the values at one step for all groups that can only change together."""
    return {k: groups[k].values[step % len(groups[k].values)] for k in coupled if groups[k].values}


def _changed_shapes(groups: Sequence[AxisGroup], base: InputShapes, changes: Mapping[int, int]) -> InputShapes:
    """Return the shapes of the first run with new sizes for some groups of axes."""
    sizes = {name: list(shape) for name, shape in base.items()}
    for k, value in changes.items():
        for name, axis in groups[k].axes:
            sizes[name][axis] = value
    return {name: tuple(shape) for name, shape in sizes.items()}

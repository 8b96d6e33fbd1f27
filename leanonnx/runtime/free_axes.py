"""Further sizes of the free axes of a model: what a file leaves open has to be looked at more than once.

Axes of one name change together, and so do unnamed axes at the same place of inputs of one rank.  Each group of axes is
tried alone and all of them jointly, at values that the model runs at.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice

Sizes = dict[str, tuple[int, ...]]
"""Shapes of the graph inputs by name."""

VALUES = 2
"""Further values of each axis that are looked for."""
BLOCK = 32
"""What the height and width of an image are usually multiples of."""
FEW = 4
"""Sizes up to which an axis may be one of channels, or of numbers that are broadcast."""
IMAGE_RANK = 4
CANDIDATES = 24
"""Values of one axis that are tried at most."""
LARGEST = 4
"""How many times the numbers of the first run's inputs a further run may read …"""
SMALL, LARGE = 1 << 22, 1 << 23
"""… but always so many, and never more than that."""


@dataclass(frozen=True)
class Group:
    """Axes that change together: (input, axis) pairs, and the values to try for them, the most usual first."""

    places: tuple[tuple[str, int], ...]
    values: tuple[int, ...]


@dataclass(frozen=True)
class Further:
    """Further sizes that a model runs at: with one group of axes changed, and with all of them changed."""

    alone: tuple[Sizes, ...]
    jointly: tuple[Sizes, ...]

    @property
    def sizes(self) -> tuple[Sizes, ...]:
        """All further sizes, each once."""
        found: list[Sizes] = []
        for sizes in (*self.jointly, *self.alone):
            found += [sizes] if sizes not in found else []
        return tuple(found)


def axis_groups(declared: Mapping[str, Sequence[int | str]], base: Sizes, usual: Sequence[int]) -> list[Group]:
    """Groups of free axes.

    Args:
        declared: for each graph input, its sizes; the name (or ``?``) of an axis that is free.
        base: the shapes of the first run.
        usual: sizes that channels may have in this model, the most frequent first.
    """
    places: dict[object, list[tuple[str, int]]] = {}
    for name, axes in declared.items():
        for axis, size in enumerate(axes):
            if not isinstance(size, int):
                key = size if size != "?" else (len(axes) if axis else 0, axis)
                places.setdefault(key, []).append((name, axis))
    return [Group(tuple(found), _values(found, base, usual)) for found in places.values()]


def _values(places: Sequence[tuple[str, int]], base: Sizes, usual: Sequence[int]) -> tuple[int, ...]:
    """Values to try for one group of axes."""
    sizes = [base[name][axis] for name, axis in places]
    size, ranks = max(sizes), {len(base[name]) for name, _ in places}
    if all(axis == 0 for _, axis in places) and size <= FEW:
        values = [2, 3, 4, 8, 1]
    elif size <= FEW or (ranks == {IMAGE_RANK} and all(axis == 1 for _, axis in places)):
        values = [*usual, 2, 3, 4, 8, 1]
    elif size >= 2 * BLOCK:
        down = [size * part // 4 // BLOCK * BLOCK for part in (2, 3)]
        values = [*down, size + BLOCK, size // 2, 2 * size, size + 8, size - 8, size + 1, size - 1]
    else:
        values = [2 * size, 3 * size, size // 2, 3 * size // 2, size + 8, size - 8, size + 1, size - 1]
    unlike = dict.fromkeys(value for value in values if value > 0 and set(sizes) != {value})
    return tuple(unlike)[:CANDIDATES]


def further(groups: Sequence[Group], base: Sizes, runs: Callable[[Sizes], bool]) -> Further:
    """Change the groups of free axes one by one and together.

    Args:
        groups: axes that change together.
        base: the shapes of the first run.
        runs: tells whether the model runs at the shapes given.
    """
    most = min(max(SMALL, LARGEST * sum(math.prod(shape) for shape in base.values())), LARGE)

    def attempt(changes: Mapping[int, int]) -> Sizes | None:
        sizes = _changed(groups, base, changes)
        small = sum(math.prod(shape) for shape in sizes.values()) <= most
        return sizes if small and runs(sizes) else None

    alone: list[Sizes] = []
    working: dict[int, list[int]] = {}
    for k, group in enumerate(groups):
        found = _first((value, attempt({k: value})) for value in group.values)
        alone += [sizes for _, sizes in found]
        if found:
            working[k] = [value for value, _ in found]
    coupled = [k for k in range(len(groups)) if k not in working]
    depth = max((len(groups[k].values) for k in coupled), default=0) if len(coupled) > 1 else 0
    together = _first((step, attempt(_stepped(groups, coupled, step))) for step in range(depth))
    alone += [sizes for _, sizes in together]
    jointly: list[Sizes] = []
    for turn in range(VALUES) if len(working) + bool(together) > 1 else ():
        moved = _stepped(groups, coupled, together[turn % len(together)][0]) if together else {}
        for crossed in (1, 0):
            changes = {k: values[(turn + crossed * n) % len(values)] for n, (k, values) in enumerate(working.items())}
            if sizes := attempt({**changes, **moved}):
                jointly.append(sizes)
                break
    return Further(tuple(alone), tuple(jointly))


def _first(attempts: Iterable[tuple[int, Sizes | None]]) -> list[tuple[int, Sizes]]:
    """The first ``VALUES`` attempts that succeed; later ones are not made."""
    return list(islice(((value, sizes) for value, sizes in attempts if sizes is not None), VALUES))


def _stepped(groups: Sequence[Group], coupled: Sequence[int], step: int) -> dict[int, int]:
    """The same step along the values of all groups that only move together."""
    return {k: groups[k].values[step % len(groups[k].values)] for k in coupled if groups[k].values}


def _changed(groups: Sequence[Group], base: Sizes, changes: Mapping[int, int]) -> Sizes:
    """The shapes of the first run with new sizes of some groups of axes."""
    sizes = {name: list(shape) for name, shape in base.items()}
    for k, value in changes.items():
        for name, axis in groups[k].places:
            sizes[name][axis] = value
    return {name: tuple(shape) for name, shape in sizes.items()}

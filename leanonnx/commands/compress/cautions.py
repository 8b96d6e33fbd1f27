"""Cautions: what a user must know of a result, ordered by how much it bears on the result."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, get_args

Gravity = Literal["missed", "weakened", "unsure", "advice"]
"""How much a caution bears on a result, from the most to the least.

The result is not what was asked for; it is less accurate or larger than it could be, as a step was left out; its
numbers say less than they seem to; another run could do better, or did something else than was to be expected.
"""


@dataclass(frozen=True)
class Caution:
    """A sentence for the user, with its gravity."""

    gravity: Gravity
    text: str


def texts_by_gravity(cautions: Iterable[Caution]) -> tuple[str, ...]:
    """The sentences, the gravest first; those of one gravity as they were given."""
    order = get_args(Gravity)
    return tuple(each.text for each in sorted(cautions, key=lambda each: order.index(each.gravity)))

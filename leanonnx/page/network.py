"""The network along its depth: how many channels each layer puts out, before and after, and which are tied."""

from __future__ import annotations

from dataclasses import dataclass
from string import ascii_uppercase

import numpy as np

from leanonnx.analysis.dag import ChannelDag
from leanonnx.formatting import shown, sizes
from leanonnx.numeric.channel_ids import components
from leanonnx.reporting.report import Row

MOST = 600
"""Layers that are drawn."""
HEIGHT = 220
"""Pixels of the widest layer."""
GAP = 0.18
"""Share of a layer's place that is left free."""
TICKS = 7
CLEAR = 1.25
"""How much wider than the highest of the lines the widest layer is if it has a line of its own."""
STEEP = 32
"""From this ratio of the widest layer to the median one on, heights are square roots."""
LANE = 22
"""Pixels of a row of brackets."""
LANES = 6
FEW = 3
"""Layers from which on a bracket is worth a letter."""
NARROW, WIDE = 330, 960
"""Pixels that the picture has at least on a phone and on a screen."""
LETTER = 15
"""Pixels that a letter needs."""


@dataclass(frozen=True)
class Bar:
    """A layer: left edge and width in percent, height before and after in pixels, and what is said of it."""

    x: float
    width: float
    before: float
    after: float
    text: str


@dataclass(frozen=True)
class Bracket:
    """Layers whose channels live and die together: ``stops`` in percent; ``y`` in pixels below the axis.

    ``letter`` is empty for pairs; ``wide``: there is room for it on wide screens only, ``drawn``: at all.
    """

    letter: str
    numbers: tuple[int, ...]
    channels: str
    stops: tuple[float, ...]
    y: int
    wide: bool
    drawn: bool

    @property
    def middle(self) -> float:
        """Where the letter stands, in percent."""
        return (self.stops[0] + self.stops[-1]) / 2


@dataclass(frozen=True)
class Network:
    """The whole picture: bars, ``ticks`` (percent, number), ``levels`` (pixels from the top, channels), brackets.

    ``missing`` layers are not drawn; ``rooted``: heights are square roots.
    """

    bars: tuple[Bar, ...]
    ticks: tuple[tuple[float, int], ...]
    levels: tuple[tuple[float, int], ...]
    brackets: tuple[Bracket, ...]
    missing: int
    rooted: bool
    height: int = HEIGHT

    @property
    def depth(self) -> int:
        """Pixels that the brackets take."""
        return max((bracket.y for bracket in self.brackets), default=-LANE) + LANE


def network(dag: ChannelDag, rows: list[Row]) -> Network:
    """The picture of a network, whose ``rows`` of layers are those of the JSON object, one for each of its mixes."""
    drawn = rows[:MOST]
    before = np.array([row["out"][0] for row in drawn] or [1])
    rooted = bool(before.max() > STEEP * np.median(before))
    power = 0.5 if rooted else 1.0

    def height(width: float) -> float:
        return float(HEIGHT * (width / before.max()) ** power)

    place = 100 / max(len(drawn), 1)
    bars = [
        Bar(place * (k + GAP / 2), place * (1 - GAP), height(row["out"][0]), height(row["out"][1]), _text(k, row))
        for k, row in enumerate(drawn)
    ]
    step = next(s for s in (1, 2, 5, 10, 20, 50, 100, 200) if len(drawn) <= TICKS * s)
    numbers = sorted({1, *range(step, len(drawn) + 1, step)} - ({step} if step == 2 else set()))
    top = int(before.max())
    levels = [2**k for k in range(top.bit_length())][-3:]
    levels += [top] if top > CLEAR * levels[-1] else []
    return Network(
        tuple(bars),
        tuple((place * (n - 0.5), n) for n in numbers if drawn),
        tuple((HEIGHT - height(level), level) for level in levels),
        _brackets(_tied(dag, len(drawn)), drawn, place),
        len(rows) - len(drawn),
        rooted,
    )


def _text(index: int, row: Row) -> str:
    return f"{index + 1} · {shown(row['name'])} ({row['operator']}): {sizes(row['out'])} channels"


def _tied(dag: ChannelDag, count: int) -> list[list[int]]:
    """Layers by index that share a class of channels that can go, groups of two and more, the largest first."""
    groups = int(dag.groups.max()) + 1
    pairs = []
    for k, (_, mix) in enumerate(dag.kernel_blocks[:count]):
        found = np.unique(dag.groups[mix.destinations])
        found = found[~dag.pinned[found]]
        pairs.append((found, np.full(found.size, groups + k)))
    joined = components(groups + count, pairs)[groups:]
    joined_layers: dict[int, list[int]] = {}
    for k, group in enumerate(joined.tolist()):
        joined_layers.setdefault(group, []).append(k)
    return sorted((g for g in joined_layers.values() if len(g) > 1), key=lambda g: (-len(g), g))


def _brackets(joined_layers: list[list[int]], rows: list[Row], place: float) -> tuple[Bracket, ...]:
    """Brackets in lanes, no two of one lane overlapping; the longest lie lowest."""
    lanes: list[list[list[int]]] = []
    for group in sorted(joined_layers, key=lambda g: (g[-1] - g[0], g)):
        free = (lane for lane in lanes if all(group[-1] < other[0] or other[-1] < group[0] for other in lane))
        lane = next(free, None)
        if lane is None and len(lanes) < LANES:
            lanes.append(lane := [])
        if lane is not None:
            lane.append(group)
    least = FEW if any(len(group) >= FEW for group in joined_layers) else 2
    named = [group for group in joined_layers if len(group) >= least and any(group in lane for lane in lanes)]
    letters = dict(zip((group[0] for group in sorted(named[: len(ascii_uppercase)])), ascii_uppercase, strict=False))
    found = []
    for level, lane in enumerate(lanes):
        taken: list[float] = []
        for group in sorted(lane, key=lambda g: -len(g)):
            middle = place * ((group[0] + group[-1]) / 2 + 0.5)
            room = min((abs(middle - other) / 100 for other in taken), default=1.0)
            letter = letters.get(group[0], "")
            drawn = bool(letter) and room * WIDE > LETTER
            taken += [middle] if drawn else []
            stops = tuple(place * (k + 0.5) for k in group)
            width = sizes(rows[group[0]]["out"])
            numbers = tuple(k + 1 for k in group)
            wide = room * NARROW <= LETTER
            found.append(Bracket(letter, numbers, width, stops, level * LANE, wide, drawn))
    return tuple(sorted(found, key=lambda bracket: bracket.numbers))


def listed(numbers: tuple[int, ...], most: int = 12) -> str:
    """1, 2, 5; the middle left out where there are many."""
    texts = [str(number) for number in numbers]
    if len(texts) > most:
        texts[most // 2 : 1 - most // 2] = ["…"]
    return ", ".join(texts)

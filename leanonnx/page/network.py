"""The network along its depth: output channels of each layer, before and after, and ties between layers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from string import ascii_uppercase

import numpy as np

from leanonnx.analysis.dag import ChannelDag
from leanonnx.formatting import change_text, printable_name
from leanonnx.numeric.channel_ids import tied_groups
from leanonnx.reporting.rows import LayerRow

MAX_DRAWN_BARS = 600
"""Layers that are drawn."""
BAR_HEIGHT = 220
"""Pixels of the widest layer."""
BAR_GAP = 0.18
"""Share of a layer's place that is left free."""
MAX_TICKS = 7
OWN_LEVEL_RATIO = 1.25
"""Ratio of the widest layer to the highest level from which on it has a level of its own."""
ROOT_RATIO = 32
"""Ratio of the widest layer to the median one from which on heights are square roots."""
LANE_HEIGHT = 22
"""Pixels of a row of brackets."""
MAX_LANES = 6
MIN_LETTERED = 3
"""Layers from which on a bracket gets a letter."""
PHONE_WIDTH, SCREEN_WIDTH = 330, 960
"""Pixels that the picture has at least."""
LETTER_WIDTH = 15
"""Pixels of a letter."""


@dataclass(frozen=True, kw_only=True)
class Bar:
    """A layer: left edge and width in percent, height before and after in pixels, and its text."""

    x: float
    width: float
    before: float
    after: float
    text: str


@dataclass(frozen=True)
class Bracket:
    """Layers whose channels are tied: ``stops`` in percent; ``y`` in pixels below the axis.

    ``letter`` is empty for pairs; ``drawn``: there is room for it, ``wide``: on wide screens only.
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
        """Position of the letter, in percent."""
        return (self.stops[0] + self.stops[-1]) / 2


@dataclass(frozen=True, kw_only=True)
class NetworkPicture:
    """The whole picture: bars, ``ticks`` (percent, number), ``levels`` (pixels from the top, channels), brackets.

    ``missing`` layers are not drawn; ``rooted``: heights are square roots.
    """

    bars: tuple[Bar, ...]
    ticks: tuple[tuple[float, int], ...]
    levels: tuple[tuple[float, int], ...]
    brackets: tuple[Bracket, ...]
    missing: int
    rooted: bool
    height: int = BAR_HEIGHT

    @property
    def depth(self) -> int:
        """Pixels of all brackets."""
        return max((bracket.y for bracket in self.brackets), default=-LANE_HEIGHT) + LANE_HEIGHT


def network_picture(dag: ChannelDag, rows: Sequence[LayerRow]) -> NetworkPicture:
    """The picture of a network; ``rows`` has one for each of its kernel blocks."""
    drawn = rows[:MAX_DRAWN_BARS]
    before = np.array([row.outputs.before for row in drawn] or [1])
    rooted = bool(before.max() > ROOT_RATIO * np.median(before))
    power = 0.5 if rooted else 1.0

    def height(width: float) -> float:
        return float(BAR_HEIGHT * (width / before.max()) ** power)

    place = 100 / max(len(drawn), 1)
    bars = []
    for k, row in enumerate(drawn):
        left, width = place * (k + BAR_GAP / 2), place * (1 - BAR_GAP)
        bars.append(
            Bar(
                x=left,
                width=width,
                before=height(row.outputs.before),
                after=height(row.outputs.after),
                text=_bar_text(k, row),
            )
        )
    step = next(s for s in (1, 2, 5, 10, 20, 50, 100, 200) if len(drawn) <= MAX_TICKS * s)
    numbers = sorted({1, *range(step, len(drawn) + 1, step)} - ({step} if step == 2 else set()))
    top = int(before.max())
    levels = [2**k for k in range(top.bit_length())][-3:]
    levels += [top] if top > OWN_LEVEL_RATIO * levels[-1] else []
    return NetworkPicture(
        bars=tuple(bars),
        ticks=tuple((place * (n - 0.5), n) for n in numbers if drawn),
        levels=tuple((BAR_HEIGHT - height(level), level) for level in levels),
        brackets=_brackets(_tied_layers(dag, len(drawn)), drawn, place),
        missing=len(rows) - len(drawn),
        rooted=rooted,
    )


def _bar_text(index: int, row: LayerRow) -> str:
    return f"{index + 1} · {printable_name(row.name)} ({row.operator}): {change_text(row.outputs)} channels"


def _tied_layers(dag: ChannelDag, count: int) -> list[list[int]]:
    """Indices of layers that share a group of channels that is not pinned, two and more, the largest sets first."""
    groups = int(dag.groups.max()) + 1
    pairs = []
    for k, (_, block) in enumerate(dag.kernel_blocks[:count]):
        members = np.unique(dag.groups[block.destinations])
        members = members[~dag.pinned_groups[members]]
        pairs.append((members, np.full(members.size, groups + k)))
    layers: dict[int, list[int]] = {}
    for k, component in enumerate(tied_groups(groups + count, pairs)[groups:].tolist()):
        layers.setdefault(component, []).append(k)
    return sorted((tied for tied in layers.values() if len(tied) > 1), key=lambda tied: (-len(tied), tied))


def _brackets(tied_layers: list[list[int]], rows: Sequence[LayerRow], place: float) -> tuple[Bracket, ...]:
    """Brackets in lanes, no two of one lane overlapping; the longest lie lowest."""
    lanes = _lanes(tied_layers)
    letters = _letters(tied_layers, [layers for lane in lanes for layers in lane])
    brackets = []
    for level, lane in enumerate(lanes):
        taken: list[float] = []
        for layers in sorted(lane, key=lambda layers: -len(layers)):
            middle = place * ((layers[0] + layers[-1]) / 2 + 0.5)
            room = min((abs(middle - other) / 100 for other in taken), default=1.0)
            letter = letters.get(layers[0], "")
            drawn = bool(letter) and room * SCREEN_WIDTH > LETTER_WIDTH
            taken += [middle] if drawn else []
            bracket = Bracket(
                letter,
                numbers=tuple(k + 1 for k in layers),
                channels=change_text(rows[layers[0]].outputs),
                stops=tuple(place * (k + 0.5) for k in layers),
                y=level * LANE_HEIGHT,
                wide=room * PHONE_WIDTH <= LETTER_WIDTH,
                drawn=drawn,
            )
            brackets.append(bracket)
    return tuple(sorted(brackets, key=lambda bracket: bracket.numbers))


def _lanes(tied_layers: list[list[int]]) -> list[list[list[int]]]:
    """Sets of layers by lane, the shortest first; those that fit into no lane are left out."""
    lanes: list[list[list[int]]] = []
    for layers in sorted(tied_layers, key=lambda layers: (layers[-1] - layers[0], layers)):
        free = (lane for lane in lanes if all(layers[-1] < other[0] or other[-1] < layers[0] for other in lane))
        lane = next(free, None)
        if lane is None and len(lanes) < MAX_LANES:
            lanes.append(lane := [])
        if lane is not None:
            lane.append(layers)
    return lanes


def _letters(tied_layers: list[list[int]], drawn: list[list[int]]) -> dict[int, str]:
    """The letter of each bracket by its first layer, for those that are drawn and large enough."""
    least = MIN_LETTERED if any(len(layers) >= MIN_LETTERED for layers in tied_layers) else 2
    lettered = [layers for layers in tied_layers if len(layers) >= least and layers in drawn]
    firsts = (layers[0] for layers in sorted(lettered[: len(ascii_uppercase)]))
    return dict(zip(firsts, ascii_uppercase, strict=False))


def abridged_numbers(numbers: tuple[int, ...], most: int = 12) -> str:
    """1, 2, 5; the middle left out where there are many."""
    texts = [str(number) for number in numbers]
    if len(texts) > most:
        texts[most // 2 : 1 - most // 2] = ["…"]
    return ", ".join(texts)

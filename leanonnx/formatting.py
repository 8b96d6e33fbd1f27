"""Format numbers and names for people and for JSON."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

MAX_QUOTED_LENGTH = 300
"""Longest message of another library that is quoted in full, in characters."""
SENTENCE_ENDS = (". ", "; ", ": ")
MAX_NAME_LENGTH = 500
"""Longest name that is shown in full, in characters."""
SHORT_NAME_LENGTH = 38
"""Longest name in a picture, in characters."""
UNIT_SPACE = "\N{NO-BREAK SPACE}"
"""The space between a number and its unit."""
SECONDS_PER_MINUTE = 60
MINUTES_PER_HOUR = 60
SI_PREFIXES = ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))


def printable_name(name: str) -> str:
    """A name with unprintable and control characters escaped, truncated if it is very long."""
    text = "".join(c if c.isprintable() else c.encode("unicode_escape", "replace").decode() for c in name)
    return text if len(text) <= MAX_NAME_LENGTH else f"{text[: MAX_NAME_LENGTH - 1]}…"


def printable_text(text: str) -> str:
    """A text with unprintable and control characters escaped, but for the spaces before units."""
    return UNIT_SPACE.join(map(printable_name, text.split(UNIT_SPACE)))


def quoted_text(text: str) -> str:
    """A message of another library on one line; a long one ends after a sentence, or else after a word."""
    line = " ".join(text.split())
    if len(line) <= MAX_QUOTED_LENGTH:
        return line
    head = line[:MAX_QUOTED_LENGTH]
    end = max(head.rfind(mark) for mark in SENTENCE_ENDS)
    if end < MAX_QUOTED_LENGTH // 2:
        end = head.rfind(" ")
    return f"{head[:end].rstrip('.;:,')} …" if end > 0 else f"{head}…"


def short_name(name: str, length: int = SHORT_NAME_LENGTH) -> str:
    """A name with its middle omitted if it is long, since layers differ at the ends of their names."""
    text = printable_name(name)
    head = length // 3
    return text if len(text) <= length else f"{text[:head]}…{text[head + 1 - length :]}"


def integer_text(number: float) -> str:
    """Format an integer: 1,234,567."""
    return f"{number:,.0f}"


def compact_text(number: float) -> str:
    """Format a number with three digits and an SI prefix: 1.23 M."""
    for size, prefix in SI_PREFIXES:
        if number >= 0.9995 * size:
            return f"{number / size:.3g}{UNIT_SPACE}{prefix}"
    return f"{number:.3g}"


def percent_text(share: float) -> str:
    """Format a share in percent, with more digits near 0 and 1; 0 % and 100 % are always exact."""
    value = 100 * share
    if 0 < value < 0.01:
        return f"<{UNIT_SPACE}0.01{UNIT_SPACE}%"
    digits = 0 if value in (0, 100) else 2 if value < 1 or 99 < value < 101 else 1
    text = f"{value:.{digits}f}"
    return f"{f'>{UNIT_SPACE}99.99' if value < 100 and text == '100.00' else text}{UNIT_SPACE}%"


def milliseconds_text(milliseconds: float) -> str:
    """Format milliseconds with three digits, but not beyond microseconds."""
    digits = 3 if milliseconds <= 0 else min(3, max(0, 2 - math.floor(math.log10(milliseconds))))
    return f"{milliseconds:.{digits}f}{UNIT_SPACE}ms"


def duration_text(seconds: float) -> str:
    """Format a duration in the unit that suits it, with two units from an hour on: 35 s, 12 min, 1 h 20 min."""
    if round(seconds) < SECONDS_PER_MINUTE:
        return f"{round(seconds)} s"
    minutes = round(seconds / SECONDS_PER_MINUTE)
    if minutes < MINUTES_PER_HOUR:
        return f"{minutes} min"
    return f"{minutes // MINUTES_PER_HOUR} h {minutes % MINUTES_PER_HOUR} min"


def change_text(pair: Sequence[int]) -> str:
    """Format two sizes as "before → after", or as one number if they are equal."""
    before, after = pair
    return integer_text(before) if before == after else f"{integer_text(before)} → {integer_text(after)}"


def count_text(number: int, word: str) -> str:
    """Format a count with its noun: 1 layer, 2 layers."""
    return f"{integer_text(number)} {word}{'' if number == 1 else 's'}"


def shape_text(shape: Iterable[object]) -> str:
    """Format a shape: 1,3,224,224."""
    return ",".join(map(str, shape))


def json_value(value: Any) -> Any:
    """The value, or None (null in JSON) for NaN and infinity."""
    return None if isinstance(value, float) and not math.isfinite(value) else value

"""How numbers and names are written, for people and in JSON."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

LONGEST = 500
"""Characters of a name that are shown at all."""
SHORT = 38
"""Characters of a name in a picture."""
BLANK = "\N{NO-BREAK SPACE}"
"""Between a number and its unit."""
PREFIXES = ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))


def shown(name: str) -> str:
    """A name as a page may hold it: what cannot be seen, or changes how the rest is read, is spelt out."""
    text = "".join(c if c.isprintable() else c.encode("unicode_escape", "replace").decode() for c in name)
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 1]}…"


def short(name: str, most: int = SHORT) -> str:
    """The name with its middle left out where it is long; ends tell layers apart."""
    text = shown(name)
    head = most // 3
    return text if len(text) <= most else f"{text[:head]}…{text[head + 1 - most :]}"


def whole(number: float) -> str:
    """1,234,567."""
    return f"{number:,.0f}"


def compact(number: float) -> str:
    """Three digits and a prefix: 1.23 M."""
    for size, prefix in PREFIXES:
        if number >= 0.9995 * size:
            return f"{number / size:.3g}{BLANK}{prefix}"
    return f"{number:.3g}"


def percent(share: float) -> str:
    """A share in percent, small ones with more digits; never 0 % or 100 % unless it is."""
    value = 100 * share
    if 0 < value < 0.01:
        return f"<{BLANK}0.01{BLANK}%"
    digits = 0 if value in (0, 100) else 2 if value < 1 or value > 99 else 1
    text = f"{value:.{digits}f}"
    return f"{f'>{BLANK}99.99' if value < 100 and text == '100.00' else text}{BLANK}%"


def ms(milliseconds: float) -> str:
    """Milliseconds with three digits, at least to the microsecond."""
    digits = 3 if milliseconds <= 0 else min(3, max(0, 2 - math.floor(math.log10(milliseconds))))
    return f"{milliseconds:.{digits}f}{BLANK}ms"


def sizes(pair: Sequence[int]) -> str:
    """Before → after; one number where nothing changed."""
    before, after = pair
    return whole(before) if before == after else f"{whole(before)} → {whole(after)}"


def counted(number: int, word: str) -> str:
    """1 layer, 2 layers."""
    return f"{whole(number)} {word}{'' if number == 1 else 's'}"


def shape_text(shape: Iterable[object]) -> str:
    """1,3,224,224."""
    return ",".join(map(str, shape))


def finite(value: Any) -> Any:
    """The value as JSON can hold it: null for a number that is infinite or none."""
    return None if isinstance(value, float) and not math.isfinite(value) else value

"""Tables and sentences of ``docs/tolerance_cost.md`` from the results."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from statistics import median

from benchmarks.common import Row, load, measured_by, table

NAME = "tolerance"
AIMED, HAND = "aimed", "by hand"
LEAST = ("min-agreement", "min-psnr")
"""Options whose number should be at least the limit; that of the others at most."""
NUMBERS_OF = {"min-agreement": "agreement", "max-deviation": "deviation", "min-psnr": "psnr"}
WANTED_SHARE = 0.9
"""Share of the cells in which the target is to hold on unseen samples."""


@dataclass(frozen=True)
class Target:
    """An option of a tolerance, and its limit."""

    option: str
    limit: float

    @property
    def number(self) -> str:
        """The number of a comparison that it limits."""
        return NUMBERS_OF[self.option]


def target_holds(option: str, number: float, limit: float) -> bool:
    """True if a number is within a limit."""
    return number >= limit if option in LEAST else number <= limit


def pairs() -> list[tuple[Row, Row]]:
    """For each network what one command made, and what was made by hand; empty where there is none."""
    rows = load(NAME)["rows"]
    cells: dict[tuple[str, str, float], dict[str, Row]] = {}
    for row in rows:
        cells.setdefault((row["network"], row["option"], row["limit"]), {})[row["way"]] = row
    return [(cell.get(AIMED, {}), cell.get(HAND, {})) for cell in cells.values()]


def _shown(row: Row) -> list[str]:
    """Multiply-adds left, times as fast, number on unseen samples, recoveries and minutes of one way."""
    if not row:
        return [""] * 5
    minutes = f"{row['seconds'] / 60:.1f}"
    if "exit_code" in row:
        return [f"exit {row['exit_code']}", "", "", str(row.get("recoveries", "")), minutes]
    number = f"{row['unseen']:.4g}" + ("" if row["holds"] else " (missed)")
    return [f"{row['macs']:.3f}", f"{row['speedup']:.2f}", number, str(row["recoveries"]), minutes]


def tolerance_cells() -> str:
    """All networks."""
    lines = []
    for one, other in pairs():
        known = one or other
        lines.append([f"{known['network']}, `--{known['option']} {known['limit']:g}`", *_shown(one), *_shown(other)])
    columns = ["multiply-adds left", "times as fast", "unseen", "recoveries", "minutes"]
    return table(["network, target", *columns, *(f"by hand: {name}" for name in columns)], lines)


def _share(rows: list[Row]) -> str:
    held = sum(row["holds"] for row in rows)
    return f"{held} of {len(rows)} ({held / len(rows):.0%})" if rows else "none"


def tolerance_verdict() -> str:
    """In how many cells the target holds on unseen samples, and what either way takes."""
    ways = [[row for row in column if "holds" in row] for column in zip(*pairs(), strict=True)] or [[], []]
    refused = [row["network"] for row, _ in pairs() if "exit_code" in row]
    text = f"The target holds on samples that nothing has seen in {_share(ways[0])} cells, by hand in {_share(ways[1])}"
    text += f" ({WANTED_SHARE:.0%} wanted)."
    both = [(one, other) for one, other in pairs() if "speedup" in one and "speedup" in other]
    if both:
        times = [median(pair[k]["seconds"] / 60 for pair in both) for k in range(2)]
        gain = median(one["speedup"] / other["speedup"] for one, other in both)
        text += f" Median minutes: {times[0]:.1f} and {times[1]:.1f} by hand; ratio of the speed-ups: {gain:.2f}."
    return text + (f" Nothing was written for {', '.join(refused)}." if refused else "")


def tolerance_machine() -> str:
    """The script, its results and the machine."""
    return measured_by(NAME, load(NAME)["environment"])


NUMBERS: dict[str, Callable[[], str]] = {f.__name__: f for f in (tolerance_cells, tolerance_verdict, tolerance_machine)}

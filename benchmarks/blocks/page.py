"""Tables and sentences of ``docs/blocks.md`` from the results."""

from __future__ import annotations

from collections.abc import Callable

from benchmarks.common import Row, load, measured_by, table
from benchmarks.material import worst_of

NAME = "blocks"
LATENCY = "latency"
BUDGETS = (LATENCY, "macs")
RATIOS = (0.5, 0.25)
ORIGINAL, CHANNELS, BLOCKS, MATCHED = "original", "channels", "blocks", "channels at equal time"
MEDIAN = 1
"""Place of the median among the percentiles of a time."""


def goodness(row: Row | None) -> float | None:
    """The number that networks of one cell are compared by: accuracy, else agreement, else less deviation is better."""
    unseen = (row or {}).get("unseen")
    if not unseen:
        return None
    if "accuracy" in unseen:
        return float(unseen["accuracy"][1])
    if unseen["agreement"] is not None:
        return float(unseen["agreement"])
    return -float(unseen["relative_l2"])


def held_out(row: Row | None) -> float | None:
    """The same on the samples that the recovery held out."""
    held = (row or {}).get("held_out")
    if not held:
        return None
    found = worst_of(held["outputs"])
    return float(-found["relative_l2"] if found["agreement"] is None else found["agreement"])


def score(row: Row | None) -> str:
    """A network's score on unseen samples, as a cell of a table."""
    value = goodness(row)
    if value is None:
        return "" if row is None else f"exit {row['exit_code']}"
    return f"{100 * value:.2f}" if value >= 0 else f"error {-value:.3f}"


def span(times: list[float] | None) -> str:
    """A time in ms: the median, and from the 10th to the 90th percentile."""
    return f"{times[1]:.3f} ({times[0]:.3f}–{times[2]:.3f})" if times else ""


class Cells:
    """The results by network, budget and ratio."""

    def __init__(self, data: Row) -> None:
        self.rows: dict[tuple[str, str, float], dict[str, Row]] = {}
        for row in data["rows"]:
            self.rows.setdefault((row["network"], row["budget"], row["ratio"]), {})[row["way"]] = row
        self.times: dict[tuple[str, str, float], Row] = {
            (row["network"], row["budget"], row["ratio"]): row for row in data["times"]
        }

    def places(self, budget: str) -> list[tuple[str, str, float]]:
        """The cells of one budget, by network."""
        order = list(dict.fromkeys(network for network, _, _ in self.rows))
        found = [place for place in self.rows if place[1] == budget]
        return sorted(found, key=lambda place: (order.index(place[0]), -place[2]))

    def speedup(self, place: tuple[str, str, float], way: str) -> float | None:
        """How many times as fast as the original a network is."""
        ms = self.times.get(place, {}).get("ms", {})
        return ms[ORIGINAL][MEDIAN] / ms[way][MEDIAN] if way in ms else None

    def original(self, place: tuple[str, str, float]) -> str:
        """The original's own accuracy, where it is known; its agreement with itself is 1."""
        rows = [row["unseen"] for row in self.rows[place].values() if "unseen" in row]
        known = [unseen["accuracy"][0] for unseen in rows if "accuracy" in unseen]
        return f"{100 * known[0]:.2f}" if known else ""


def _line(cells: Cells, place: tuple[str, str, float], ways: tuple[str, ...]) -> list[str]:
    network, _, ratio = place
    rows, ms = cells.rows[place], cells.times.get(place, {}).get("ms", {})
    line = [f"{network}, {ratio:g}", cells.original(place)]
    for way in ways:
        line += [score(rows.get(way)), span(ms.get(way))]
    gain = cells.times.get(place, {}).get("gain", {}).get(ways[0])
    line.append(_count(rows.get(BLOCKS)))
    line.append("" if gain is None else f"{gain['speedup']:.2f} ({gain['interval'][0]:.2f}–{gain['interval'][1]:.2f})")
    return line


def _count(row: Row | None) -> str:
    """How many blocks were removed."""
    return str(len(row["removed_branches"])) if row and "removed_branches" in row else ""


def _table_or_note(head: list[str], lines: list[list[str]]) -> str:
    return table(head, lines) if lines else "Not measured yet."


def _results(budget: str) -> str:
    cells = Cells(load(NAME))
    head = ["network, asked", "original", CHANNELS, "ms", "and blocks", "ms", "blocks removed", "ratio of the times"]
    return _table_or_note(head, [_line(cells, place, (CHANNELS, BLOCKS)) for place in cells.places(budget)])


def blocks_latency() -> str:
    """At budgets of measured time."""
    return _results(LATENCY)


def blocks_macs() -> str:
    """At budgets of multiply-adds."""
    return _results("macs")


def equal_time() -> list[tuple[tuple[str, str, float], float, float]]:
    """The cells of which both networks take the same time: what channels alone have, and channels with branches."""
    cells = Cells(load(NAME))
    found = []
    for place in cells.places(LATENCY):
        rows = cells.rows[place]
        one, other = goodness(rows.get(MATCHED) or rows.get(CHANNELS)), goodness(rows.get(BLOCKS))
        if one is not None and other is not None:
            found.append((place, one, other))
    return found


def blocks_equal() -> str:
    """At equal measured time."""
    cells, lines = Cells(load(NAME)), []
    for place, one, other in equal_time():
        rows = cells.rows[place]
        way = MATCHED if MATCHED in rows else CHANNELS
        speeds = [cells.speedup(place, each) for each in (way, BLOCKS)]
        shown = ["" if speed is None else f"{speed:.2f}" for speed in speeds]
        difference = f"{100 * (other - one):+.2f}"
        values = [score(rows[way]), shown[0], score(rows[BLOCKS]), shown[1], _count(rows[BLOCKS]), difference]
        lines.append([f"{place[0]}, {place[2]:g}", *values])
    both = [CHANNELS, "times as fast", "and blocks", "times as fast"]
    head = ["network, asked", *both, "blocks removed", "difference in points"]
    return _table_or_note(head, lines)


def blocks_verdict() -> str:
    """In how many cells blocks are better, and where they are worse."""
    found = equal_time()
    if not found:
        return f"No cell of a budget of time has been measured both ways. {_held_out_text()}"
    cells = Cells(load(NAME))
    taken = [row for row in found if cells.rows[row[0]][BLOCKS].get("removed_branches")]
    worse = [f"{network} at {ratio:g}" for (network, _, ratio), one, other in taken if other < one]
    better = sum(other > one for _, one, other in taken)
    text = f"At equal time, networks without some blocks are better in {better} of {len(taken)} cells"
    text += f", and worse for {', '.join(worse)}." if worse else ", and worse in none."
    others = [100 * (other - one) for place, one, other in found if (place, one, other) not in taken]
    if others:
        text += f" In {len(others)} more, no block went: the two networks differ by {min(others):+.2f} to "
        text += f"{max(others):+.2f} points, as two searches for the same budget of time do."
    return f"{text} {_held_out_text()}"


def _held_out_text() -> str:
    """Where a budget is met worse with blocks, by the held-out samples that they were chosen by."""
    cells, worse, count = Cells(load(NAME)), [], 0
    for place, rows in cells.rows.items():
        one, other = held_out(rows.get(CHANNELS)), held_out(rows.get(BLOCKS))
        if one is not None and other is not None and rows[BLOCKS].get("removed_branches"):
            count += 1
            worse += [f"{place[0]} at {place[2]:g} of {place[1]}"] if other < one else []
    where = f"for {', '.join(worse)}" if worse else "in none"
    return f"By the held-out samples of the reports they are worse {where}, of {count} cells at equal budgets."


def blocks_tuned() -> str:
    """After fine-tuning."""
    lines = []
    for row in load(NAME)["tuned"]:
        tuned = row.get("tuned", {})
        speed = f"{tuned['speedup']:.2f}" if tuned else ""
        lines.append([f"{row['network']}, {row['way']}", f"{row.get('macs', 0):.3f}", score(row), score(tuned), speed])
    head = ["network", "multiply-adds left", "recovered", "fine-tuned", "times as fast as the original"]
    return _table_or_note(head, lines)


def blocks_machine() -> str:
    """The script, its results and the machine."""
    return measured_by(NAME, load(NAME)["environment"])


NUMBERS: dict[str, Callable[[], str]] = {
    f.__name__: f for f in (blocks_latency, blocks_macs, blocks_equal, blocks_verdict, blocks_tuned, blocks_machine)
}

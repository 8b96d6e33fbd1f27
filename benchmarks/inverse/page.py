"""Tables and sentences of ``docs/inverse.md`` from the results."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from benchmarks.common import Row, load, measured_by, table

NAME = "inverse"
RATIOS = (0.5, 0.25, 0.1)
PLAIN, ORIGINAL, PRUNED, RECOVERED, UNSHARED = "plain", "original", "pruned", "recovered", "unshared"
SHOWN = {
    PRUNED: "pruned",
    RECOVERED: "recovered, no training (`--calib`)",
    UNSHARED: "the same with weights copied for each use",
}
NOISELESS = "noiseless"
WITHOUT = {"mri": "zero-filled", "sr": "cubic interpolation", "ct": "filtered back-projection"}
TITLES = {"mri": "MRI", "sr": "super-resolution", "ct": "tomography"}

KEPT_GAIN = {0.25: 0.81, 0.1: 0.5}
"""Share of the original's gain in dB that recovery was to keep, by ratio: 23.5 and 22.7 dB between 21.4 and 24.0."""


class Cells:
    """The results, by problem, ratio and method."""

    def __init__(self, data: Row) -> None:
        self.data = data
        self.rows: dict[tuple[str, float, str], Row] = {
            (r["problem"], r["ratio"], r["method"]): r for r in data["rows"]
        }

    def psnr(self, problem: str, method: str, ratio: float = 1.0) -> float | None:
        """PSNR in dB, None where it was not measured or refused."""
        value: float | None = self.rows.get((problem, ratio, method), {}).get("psnr")
        return value

    def tuned(self, problem: str) -> list[str]:
        """Strategies of which there is a result, those that need the most first."""
        order = ("supervised", "school", "measurement", "noise2inverse", "noise2self")
        return [name for name in order if any(self.psnr(problem, name, ratio) is not None for ratio in RATIOS)]


def number(value: float | None, digits: int = 2) -> str:
    """A cell of a table."""
    return "" if value is None else f"{value:.{digits}f}"


def quality(problem: str, cells: Cells | None = None) -> str:
    """PSNR of a problem's networks, by method and ratio."""
    cells = cells or Cells(load(NAME))
    left = [cells.rows.get((problem, ratio, RECOVERED), {}).get("macs") for ratio in RATIOS]
    lines = [["multiply-adds left", *(number(value, 3) for value in left)]]
    methods = {**SHOWN, **{name: f"fine-tuned, `{name}`" for name in cells.tuned(problem)}}
    for method, title in methods.items():
        values = [cells.psnr(problem, method, ratio) for ratio in RATIOS]
        if method != UNSHARED or any(values):
            lines.append([title, *map(number, values)])
    counts = cells.data["samples"]
    ends = [number(cells.psnr(problem, method)) for method in (PLAIN, ORIGINAL)]
    aim = cells.psnr(problem, NOISELESS)
    more = f" Without noise, back-projection has {number(aim)} dB." if aim else ""
    head = ["PSNR in dB", *(f"{ratio:g}" for ratio in RATIOS)]
    tuned = [row for key, row in cells.rows.items() if key[0] == problem and "epochs" in row]
    seconds = sorted(row["cpu"] for row in tuned)
    used = f"{counts['calib']} inputs for recovery, {counts['train']} objects for fine-tuning"
    if tuned:
        used += f", {tuned[0]['epochs']} epochs ({seconds[0]:.0f} to {seconds[-1]:.0f} seconds of one core)"
    return (
        f"{WITHOUT[problem].capitalize()}: {ends[0]} dB. The original: {ends[1]} dB.{more} "
        f"{counts['score']} images; {used}.\n\n"
        f"{table(head, lines)}"
    )


def inverse_mri() -> str:
    """Compressed-sensing MRI."""
    return quality("mri")


def inverse_sr() -> str:
    """Super-resolution."""
    return quality("sr")


def inverse_ct() -> str:
    """Tomography."""
    return quality("ct")


def inverse_speed() -> str:
    """Latency of the recovered networks against the originals'."""
    rows = sorted(load(NAME)["speed"], key=lambda row: (list(TITLES).index(row["problem"]), -row["ratio"]))
    lines = [
        [
            f"{TITLES[row['problem']]} at {row['ratio']:g}",
            number(row["before_ms"]),
            number(row["after_ms"]),
            number(row["speedup"]),
            "–".join(number(end) for end in row["interval"]),
        ]
        for row in rows
    ]
    head = ["one image, one thread", "original, ms", "pruned, ms", "times as fast", "95 % interval"]
    busy = sum(bool(row["warnings"]) for row in rows)
    note = (
        f"\n\nIn {busy} of {len(rows)} measurements the machine was busy, which widens the intervals." if busy else ""
    )
    return table(head, lines) + note


def inverse_physics() -> str:
    """What training did to the numbers that describe the instruments."""
    rows = [row for row in load(NAME)["rows"] if row.get("physics") is not None and "epochs" in row]
    moved = [row for row in rows if row["physics"] > 0]
    count = f"Fine-tunings of networks that hold an operator: {len(rows)}."
    if not moved:
        return f"{count} In all of them DFT matrices and blur kernel are unchanged to the last bit."
    worst = max(row["physics"] for row in moved)
    named = ", ".join(f"{TITLES[r['problem']]} at {r['ratio']:g} by `{r['method']}`" for r in moved)
    return f"{count} DFT matrices or blur kernel changed in {len(moved)}, by up to {worst:.2g}: {named}."


def comparisons(cells: Cells) -> Iterable[tuple[str, float, float]]:
    """What is expected, and the two numbers of which the first should not be the smaller."""

    def pairs(problem: str, ratio: float, one: str, other: str, gain: float = 0.0) -> Iterable[tuple[float, float]]:
        left, right = cells.psnr(problem, one, ratio), cells.psnr(problem, other, 1.0 if other == ORIGINAL else ratio)
        if left is not None and right is not None:
            yield left, right - gain

    ends = [cells.psnr("mri", method) for method in (PLAIN, ORIGINAL)]
    for ratio, share in KEPT_GAIN.items():
        value = cells.psnr("mri", RECOVERED, ratio)
        if value is not None and ends[0] is not None and ends[1] is not None:
            least = ends[0] + share * (ends[1] - ends[0])
            yield f"MRI at {ratio:g}: recovery keeps {share:.0%} of the gain over zero-filling", value, least
    for ratio in (0.25, 0.1):
        for one, other in pairs("mri", ratio, "measurement", "supervised", 0.5):
            yield f"MRI at {ratio:g}: `measurement` within 0.5 dB of `supervised`", one, other
    for one, other in pairs("sr", 0.25, "school", RECOVERED):
        yield "Super-resolution at 0.25: `school` at least as good as recovery alone", one, other
    for one, other in pairs("ct", 0.25, "noise2inverse", ORIGINAL):
        yield "Tomography at 0.25: `noise2inverse` at least as good as the original", one, other


def inverse_expected() -> str:
    """What was expected of the networks, and what came of it."""
    lines = [
        [text, number(one), number(other), "yes" if one >= other else "no"]
        for text, one, other in comparisons(Cells(load(NAME)))
    ]
    return table(["expected", "dB", "at least", "reached"], lines)


def inverse_machine() -> str:
    """The script, its results and the machine."""
    return measured_by(NAME, load(NAME)["environment"])


BLOCKS: dict[str, Callable[[], str]] = {
    f.__name__: f
    for f in (
        inverse_mri,
        inverse_sr,
        inverse_ct,
        inverse_speed,
        inverse_physics,
        inverse_expected,
        inverse_machine,
    )
}

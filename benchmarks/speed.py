"""Seconds and memory of ``leanonnx compress`` on ResNet-50, and how they grow with the number of kernels.

    python -m benchmarks.speed [--rounds N] [--page]

Every measurement is a process of its own; the cases take turns, N rounds of them. ``--page`` writes the page anew
from the last results.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable
from functools import partial
from math import log
from pathlib import Path
from statistics import linear_regression, median
from typing import NamedTuple

from benchmarks.common import (
    COMMAND,
    ROOT,
    Row,
    build,
    compress,
    environment,
    load,
    measured_by,
    progress,
    publish,
    run,
    save,
    table,
)

KEEP = 0.25
ROUNDS = 5
GROWTH = {
    "ResNets by depth": ("depth26", "depth50", "depth101", "depth152"),
    "Eight 3×3 convolutions by width": ("width256", "width512", "width1024"),
}
CASES = {"folded": True, "unfolded": False}
STAGES = ("load", "observe", "analyse", "select", "operate", "prove")
BOUNDS = {"norms": 3.0, "chains": 3.0, "whole": 15.0, "memory": 6.0}
GROWN = """\
Medians in seconds of processor time, all threads together; in brackets per million kernels, for the norms per million
of those larger than 1×1 (the norm of a single number is its magnitude). *exponent*: the time grows with this power of
the number of kernels, fitted over the rows; 1 is linear, below 1 a part of the time does not depend on the size.
*peak / file* falls as files grow, since the libraries' share is fixed.""".replace("\n", " ")
KINDS = ("cover", "through", "free")


class Spread(NamedTuple):
    """Median, lowest and highest of the rounds."""

    median: float
    low: float
    high: float

    def text(self, digits: int = 2) -> str:
        """Median and range."""
        return f"{self.median:.{digits}f} ({self.low:.{digits}f}–{self.high:.{digits}f})"


def spread(values: Iterable[float]) -> Spread:
    """Median and range of some values."""
    found = sorted(values)
    return Spread(median(found), found[0], found[-1])


def measure(path: Path, folder: Path) -> Row:
    """One compression and one look at the single stages."""
    done = compress(path, folder / "out.onnx", "--keep", str(KEEP))
    single = run([sys.executable, "-m", "benchmarks.stages", "measure", path, "--keep", str(KEEP)], ROOT)
    if done.code or single.code:
        raise RuntimeError(f"{path.name}: {done.message}{single.message}")
    proof = done.report["proof"]
    return {
        "whole": {"wall": done.seconds, "cpu": done.cpu},
        "peak": done.peak,
        "seconds": done.report["seconds"],
        "stages": single.report,
        "proof": {"status": proof["status"], "max_relative_error": proof["max_relative_error"]},
        "kept": done.report["kernels"]["fraction"],
    }


def measure_all(rounds: int) -> Row:
    """All cases in turns."""
    with tempfile.TemporaryDirectory() as work:
        folder = Path(work)
        cases = {name: build("resnet50", folded, folder / f"{name}.onnx") for name, folded in CASES.items()}
        cases |= {name: _sized(name, folder / f"{name}.onnx") for names in GROWTH.values() for name in names}
        rows: dict[str, list[Row]] = {name: [] for name in cases}
        for turn in range(rounds):
            for name, path in cases.items():
                rows[name].append(measure(path, folder))
                progress(f"round {turn + 1} of {rounds}, {name}: {rows[name][-1]['whole']['wall']:.2f} s")
        sizes = {name: path.stat().st_size for name, path in cases.items()}
    found = {name: {"bytes": sizes[name], "rounds": rows[name]} for name in cases}
    return {"environment": environment(), "keep": KEEP, "libraries": libraries(), "cases": found}


def libraries() -> int:
    """Peak memory in bytes of a process that loads leanonnx and does nothing."""
    return run([COMMAND, "--version"]).peak


def _sized(name: str, path: Path) -> Path:
    subprocess.run([sys.executable, "-m", "benchmarks.stages", "build", name, str(path)], check=True, cwd=ROOT)
    return path


def stage(rounds: Iterable[Row], name: str, clock: str = "wall") -> Spread:
    """Seconds of the norms, or of one kind of chains."""
    return spread(row["stages"][name][clock] for row in rounds)


def whole(rounds: Iterable[Row], clock: str = "wall") -> Spread:
    """Seconds of a whole process."""
    return spread(row["whole"][clock] for row in rounds)


def memory(case: Row) -> Spread:
    """Peak memory as a multiple of the file."""
    return spread(row["peak"] / case["bytes"] for row in case["rounds"])


def write_page(data: Row) -> Path:
    """``docs/speed.md`` from the results."""
    cases = data["cases"]
    counts = {len(case["rounds"]) for case in cases.values()}
    sections = [
        f"ResNet-50 (random weights), `leanonnx compress --keep {data['keep']:g}`, each time in a fresh process. "
        f"Numbers are medians of {max(counts)} rounds, with the lowest and the highest.",
        _compress_table({name: cases[name] for name in CASES}),
        "Seconds by stage as the report gives them; *whole* is the process from start to end, Python's start and the "
        "checks by onnx included. *peak* is the largest resident memory of the process, and what multiple of the "
        f"model file this is; {data['libraries'] / 1e6:.0f} MB of it are Python and the libraries, whatever the model.",
        "## Norms and chains",
        _selection_table({name: cases[name] for name in CASES}),
        "*norms*: spectral norms of all kernels. *cover*, *through*, *free*: from the norms to the keep set, that is "
        "chains, ranking and the search for the budget.",
        _verdict([cases[name] for name in CASES]),
        "## Growth",
        *(_growth_table(title, [(name, cases[name]) for name in names]) for title, names in GROWTH.items()),
        GROWN,
        measured_by("speed", data["environment"]),
    ]
    return publish("speed", "Time and memory", sections)


def _compress_table(cases: dict[str, Row]) -> str:
    head = ["BN", "file, MB", *STAGES, "whole, s", "peak, MB", "peak / file"]
    rows = [
        [
            name,
            f"{case['bytes'] / 1e6:.0f}",
            *(f"{spread(row['seconds'][stage] for row in case['rounds']).median:.2f}" for stage in STAGES),
            whole(case["rounds"]).text(),
            f"{spread(row['peak'] / 1e6 for row in case['rounds']).median:.0f}",
            memory(case).text(),
        ]
        for name, case in cases.items()
    ]
    return table(head, rows)


def _selection_table(cases: dict[str, Row]) -> str:
    rows = [
        [
            name,
            f"{case['rounds'][0]['stages']['kernels'] / 1e6:.1f}",
            stage(case["rounds"], "norms").text(),
            *(stage(case["rounds"], kind).text() for kind in KINDS),
        ]
        for name, case in cases.items()
    ]
    return table(["BN", "kernels, millions", "norms, s", *(f"{kind}, s" for kind in KINDS)], rows)


def _verdict(cases: list[Row]) -> str:
    """Each bound with the worst median that was measured."""
    found = {
        "norms": max(stage(case["rounds"], "norms").median for case in cases),
        "chains": max(stage(case["rounds"], kind).median for case in cases for kind in KINDS),
        "whole": max(whole(case["rounds"]).median for case in cases),
        "memory": max(memory(case).median for case in cases),
    }
    texts = {
        "norms": "norms at most {bound:g} s",
        "chains": "chains of any kind at most {bound:g} s",
        "whole": "the whole with its proof at most {bound:g} s",
        "memory": "memory at most {bound:g} times the file",
    }
    parts = [
        f"{texts[name].format(bound=bound)}: {found[name]:.2f}, {'met' if found[name] <= bound else '**not met**'}"
        for name, bound in BOUNDS.items()
    ]
    return f"Aims, with the highest median of both files: {'; '.join(parts)}."


def _growth_table(title: str, cases: list[tuple[str, Row]]) -> str:
    parts: dict[str, Callable[[list[Row]], Spread]] = {
        **{part: partial(stage, name=part, clock="cpu") for part in ("norms", *KINDS)},
        "whole": partial(whole, clock="cpu"),
    }
    counts = {name: case["rounds"][0]["stages"] for name, case in cases}
    seconds = {part: [work(case["rounds"]).median for _, case in cases] for part, work in parts.items()}
    millions = {part: [_millions(part, counts[name]) for name, _ in cases] for part in parts}
    rows = [
        [
            name,
            *(f"{counts[name][unit] / 1e6:.1f}" for unit in ("kernels", "spatial")),
            *(f"{seconds[part][k]:.2f} ({seconds[part][k] / millions[part][k]:.3f})" for part in parts),
            f"{memory(case).median:.2f}",
        ]
        for k, (name, case) in enumerate(cases)
    ]
    exponents = [f"{_exponent(millions[part], seconds[part]):.2f}" for part in parts]
    head = [title, "kernels, millions", "larger than 1×1", *parts, "peak / file"]
    return table(head, [*rows, ["exponent", "", "", *exponents, ""]])


def _millions(part: str, counts: Row) -> float:
    return float(counts["spatial" if part == "norms" else "kernels"]) / 1e6


def _exponent(sizes: list[float], seconds: list[float]) -> float:
    """Slope of the logarithms, by least squares."""
    return linear_regression([log(size) for size in sizes], [log(max(s, 1e-3)) for s in seconds]).slope


def main(argv: list[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.speed", description=__doc__)
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="measurements of every case")
    parser.add_argument("--page", action="store_true", help="write the page anew from the last results")
    args = parser.parse_args(argv)
    if not args.page:
        save("speed", measure_all(args.rounds))
    write_page(load("speed"))
    return 0


if __name__ == "__main__":
    sys.exit(main())

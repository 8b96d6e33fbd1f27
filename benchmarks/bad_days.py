"""The worst that can happen to ``leanonnx compress``, at length: spoiled files, kills, bombs, giants.

    python -m benchmarks.bad_days fuzz [--count 2000] [--first 0]
    python -m benchmarks.bad_days kill [--runs 200]
    python -m benchmarks.bad_days bombs
    python -m benchmarks.bad_days big [--gigabytes 3]
    python -m benchmarks.bad_days nodes [--count 20000]

Each prints a summary and puts it into ``benchmarks/results/bad_days.json``. The exit code is 1 where a promise was
broken.
"""

from __future__ import annotations

import argparse
import random
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Mapping
from functools import partial
from hashlib import sha256
from math import log
from pathlib import Path
from statistics import linear_regression
from typing import NamedTuple

from benchmarks.common import COMMAND, RESULTS, ROOT, Row, compress, environment, load, progress, save
from benchmarks.giants import heavy
from tests.corruption import case
from tests.fuzz_runner import judge_all
from tests.resource_attacks import ATTACKS
from tests.seed_models import Files

KEEP = "0.5"
PATHS = re.compile(r"(/[^\s/]+)+/")
SHOWN = 300
"""Letters of a message that a report shows."""
MEMORY = 3.0
"""Peak memory that is allowed, in multiples of the weights."""
LINEAR = 1.15
"""The largest exponent that passes for linear."""
KINDS = ("chain", "residual", "dense")
UNET = ROOT / "models" / "cs_unet.onnx"


def fuzz(args: argparse.Namespace) -> Row:
    """Spoiled models."""
    found = _judged({str(seed): partial(_files, seed) for seed in range(args.first, args.first + args.count)})
    faults = {seed: f"{case(int(seed)).what}: {fault}" for seed, fault in found["faults"].items()}
    return {**found, "first": args.first, "faults": faults}


def _files(seed: int) -> Files:
    return case(seed).files


def bombs(_: argparse.Namespace) -> Row:
    """Files that ask for too much."""
    return _judged(ATTACKS)


def _judged(cases: Mapping[str, Callable[[], Files]]) -> Row:
    """Verdicts on many cases: how many ended how, and which broke a promise."""
    codes: Counter[int] = Counter()
    faults: dict[str, str] = {}
    longest, start = 0.0, time.perf_counter()
    for name, verdict in zip(cases, judge_all(make() for make in cases.values()), strict=True):
        longest, start = max(longest, time.perf_counter() - start), time.perf_counter()
        codes[verdict.code] += 1
        if verdict.faults:
            said = PATHS.sub("", verdict.message.splitlines()[-1] if verdict.message else "")
            faults[name] = f"{'; '.join(verdict.faults)} | {said[:SHOWN]}"
            progress(f"{name}: {faults[name]}")
    counts = {str(code): number for code, number in sorted(codes.items())}
    return {"cases": len(cases), "exit_codes": counts, "longest_seconds": round(longest, 1), "faults": faults}


class Stage(NamedTuple):
    """A model to be compressed and killed: its folder, the seconds of a whole run, an older and the new result."""

    source: Path
    seconds: float
    old: dict[str, bytes]
    new: dict[str, bytes]


def kill(args: argparse.Namespace) -> Row:
    """SIGKILL at random moments: the output is whole or not there, the input untouched."""
    rng = random.Random(args.first)
    outcomes: Counter[str] = Counter()
    faults: dict[str, str] = {}
    with tempfile.TemporaryDirectory() as work:
        stages = [_stage(source, Path(work)) for source in _killed(Path(work))]
        for run in range(args.count):
            stage = stages[run % len(stages)]
            folder = Path(work) / f"run{run}"
            outcome = _kill_once(stage, folder, rng.uniform(0, 1.05 * stage.seconds), older=rng.random() < 0.5)
            outcomes[f"{stage.source.stem}: {outcome}"] += 1
            if outcome.startswith("FAULT"):
                faults[str(run)] = outcome
                progress(f"run {run}: {outcome}")
            shutil.rmtree(folder)
    return {"runs": args.count, "outcomes": dict(sorted(outcomes.items())), "faults": faults}


def _killed(work: Path) -> list[Path]:
    """The example in one file, and a network of 80 MB with external data."""
    unet, giant = work / "unet" / UNET.name, work / "external" / "external.onnx"
    for path in (unet, giant):
        path.parent.mkdir()
    shutil.copy(UNET, unet)
    heavy(giant, 0.08, dense_share=0)
    return [unet, giant]


def _stage(source: Path, work: Path) -> Stage:
    results = []
    for keep in ("0.8", KEEP):
        folder = work / f"{source.stem}-{keep}"
        folder.mkdir()
        done = compress(source, folder / "out.onnx", "--keep", keep)
        if done.code:
            raise RuntimeError(done.message)
        results.append(_files_of(folder))
    return Stage(source, done.seconds, *results)


def _files_of(folder: Path) -> dict[str, bytes]:
    """Digests of the results in a folder."""
    return {path.name: sha256(path.read_bytes()).digest() for path in folder.iterdir() if path.name.startswith("out.")}


def _kill_once(stage: Stage, folder: Path, delay: float, older: bool) -> str:
    """One run that is killed after a while; what is there afterwards."""
    before = {path: sha256(path.read_bytes()).digest() for path in stage.source.parent.iterdir()}
    if older:
        shutil.copytree(stage.source.parent.parent / f"{stage.source.stem}-0.8", folder)
    else:
        folder.mkdir()
    (folder / "tmp").mkdir()
    command = [COMMAND, "compress", stage.source, folder / "out.onnx", "--keep", KEEP, "--no-measure", "--json"]
    with subprocess.Popen(
        list(map(str, command)),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={"TMPDIR": str(folder / "tmp")},
    ) as child:
        time.sleep(delay)
        child.kill()
    if {path: sha256(path.read_bytes()).digest() for path in stage.source.parent.iterdir()} != before:
        return "FAULT: the input has changed"
    found = _files_of(folder)
    if "out.onnx" not in found:
        return f"{'old gone' if older else 'absent'}, {'dead in time' if child.returncode else 'FAULT: finished'}"
    if found == stage.new:
        return "new"
    return "old" if older and found == stage.old else f"FAULT: neither old nor new: {sorted(found)}"


def big(args: argparse.Namespace) -> Row:
    """A network with gigabytes of weights: peak memory and seconds."""
    with tempfile.TemporaryDirectory(dir=args.folder) as work:
        source = Path(work) / "big.onnx"
        weights = heavy(source, args.gigabytes)
        done = compress(source, Path(work) / "out.onnx", "--keep", KEEP)
    found = {
        "weights": weights,
        "peak": done.peak,
        "peak_per_weights": round(done.peak / weights, 2),
        "seconds": round(done.seconds, 1),
        "stages": done.report.get("seconds", {}),
    }
    faults = {"exit": done.message} if done.code else {}
    if done.peak > MEMORY * weights:
        faults["peak"] = f"{done.peak / weights:.2f} times the weights, {MEMORY:g} are allowed"
    return {**found, "faults": faults}


def nodes(args: argparse.Namespace) -> Row:
    """Networks of more and more nodes: seconds by stage, and the power of the size with which they grow."""
    sizes = [args.count // part for part in (8, 4, 2, 1)]
    found: Row = {}
    faults: dict[str, str] = {}
    for kind in KINDS:
        rows = [_deep_row(kind, size, args.rounds) for size in sizes]
        exponents = {
            stage: _exponent([row["nodes"] for row in rows], [row["seconds"][stage] for row in rows])
            for stage in rows[0]["seconds"]
        }
        found[kind] = {"rows": rows, "exponents": exponents}
        faults |= {f"{kind}, {stage}": f"exponent {e}" for stage, e in exponents.items() if e > LINEAR}
    return {"kinds": found, "faults": faults}


def _deep_row(kind: str, count: int, rounds: int) -> Row:
    """The shortest time of each stage on the clock; *whole* is processor time of the process from start to end."""
    with tempfile.TemporaryDirectory() as work:
        source = Path(work) / "deep.onnx"
        subprocess.run([sys.executable, "-m", "benchmarks.giants", source, kind, str(count)], check=True, cwd=ROOT)
        runs = [compress(source, Path(work) / "out.onnx", "--keep", KEEP) for _ in range(rounds)]
    if any(done.code for done in runs):
        raise RuntimeError(f"{kind} of {count} nodes: {runs[0].message}")
    stages = {stage: min(done.report["seconds"][stage] for done in runs) for stage in runs[0].report["seconds"]}
    seconds = {**stages, "whole": round(min(done.cpu for done in runs), 2)}
    progress(f"{kind}, {count} nodes: {seconds}")
    return {"nodes": count, "seconds": seconds, "peak": min(done.peak for done in runs)}


def _exponent(sizes: list[float], seconds: list[float]) -> float:
    """Slope of the logarithms, by least squares."""
    slope = linear_regression([log(size) for size in sizes], [log(max(s, 1e-3)) for s in seconds]).slope
    return round(slope, 2)


VERBS = {"fuzz": fuzz, "kill": kill, "bombs": bombs, "big": big, "nodes": nodes}


def main(argv: list[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.bad_days", description=__doc__)
    verbs = parser.add_subparsers(dest="verb", required=True)
    for name, default in (("fuzz", 2000), ("kill", 200), ("bombs", 0), ("big", 0), ("nodes", 20_000)):
        verb = verbs.add_parser(name, help=VERBS[name].__doc__)
        verb.add_argument("--runs" if name == "kill" else "--count", dest="count", type=int, default=default)
        verb.add_argument("--first", type=int, default=0, help="the first seed")
        verb.add_argument("--rounds", type=int, default=2, help="runs of every network of many nodes")
        verb.add_argument("--gigabytes", type=float, default=3.0)
        verb.add_argument("--folder", type=Path, default=None, help="where the large files go")
    args = parser.parse_args(argv)
    row = VERBS[args.verb](args)
    past = load("bad_days") if (RESULTS / "bad_days.json").exists() else {}
    save("bad_days", {**past, args.verb: {"environment": environment(), **row}})
    shown = {key: value for key, value in row.items() if key != "faults"}
    print(f"{args.verb}: {shown}\n{len(row['faults'])} faults")
    for name, fault in row["faults"].items():
        print(f"  {name}: {fault}")
    return 1 if row["faults"] else 0


if __name__ == "__main__":
    sys.exit(main())

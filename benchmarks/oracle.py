"""The second oracle over random graphs: the result of each in three runtimes, beside its proof.

    python -m benchmarks.oracle [--graphs 10000] [--keep-sets 2] [--folder FOLDER] [--workers N] [--resume]

Graphs are those of ``tests.graphs``, by seed; with FOLDER, its .onnx files instead, for example those of NNSmith.  Each
is compressed to random budgets with ``prove_twice``.  Counts the graphs and keep sets that were compared, and those
that the reference evaluator could not run; lists the seeds or files of all differences.  Exit code 1 if there are any.
Results are saved as they come; ``--resume`` goes on after them, until there are as many graphs as asked for.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import numpy as np

from benchmarks.common import Row, environment, load, progress, save
from leanonnx.commands.compress.options import CompressOptions
from leanonnx.commands.compress.pipeline import CompressResult, compress_file
from leanonnx.errors import LeanOnnxError, ProofFailed
from leanonnx.proof.runtimes import ALIKE, NOT_RUN, REFERENCE
from leanonnx.runtime.sessions import claim_process
from leanonnx.selection.metrics import Budget
from tests.graphs import from_seed, saved

GRAPHS = 10_000
KEEP_SETS = 2
METRICS = ("kernels", "macs", "params")
METHODS = ("auto", "lean", "norm", "l1", "random")
LOWEST, HIGHEST = 0.05, 0.95
"""Range of the budgets."""
BETWEEN_MESSAGES = 100
GRAPHS_A_POOL = 500
NO_EVIDENCE = "no output of the model can be compared", "the model draws random numbers"
"""How refusals begin that say nothing of the result: the graph computes a constant, or noise."""


def compress_once(source: Path, target: Path, draw: np.random.Generator) -> CompressResult:
    """One keep set of a graph, proven twice."""
    budget = Budget(str(draw.choice(METRICS)), float(draw.uniform(LOWEST, HIGHEST)))
    options = CompressOptions(
        budget=budget,
        method=str(draw.choice(METHODS)),  # type: ignore[arg-type]
        align=1,
        best_effort=True,
        prove_twice=True,
        seed=int(draw.integers(1000)),
    )
    return compress_file(source, target, options)


def judge(number: int, path: Path | None, keep_sets: int) -> Row:
    """Compress one graph, the file at ``path`` or the random one with this number, and tell what became of it."""
    name = path.name if path else str(number)
    draw = np.random.default_rng(number)
    counts = Counter({"graphs": 1, "keep_sets": keep_sets})
    reasons: Counter[str] = Counter()
    differences: list[Row] = []
    alike: list[Row] = []
    with tempfile.TemporaryDirectory() as work:
        folder = Path(work)
        source = path or saved(from_seed(number), folder, "graph.onnx")
        for k in range(keep_sets):
            which = {"graph": name, "keep_set": k}
            try:
                result = compress_once(source, folder / "out.onnx", draw)
            except ProofFailed as error:
                reason = next((text for text in NO_EVIDENCE if str(error).startswith(text)), "")
                if reason:
                    counts["nothing_to_compare"] += 1
                    reasons[reason] += 1
                else:
                    differences.append({**which, "message": str(error)})
                continue
            except LeanOnnxError as error:
                counts["refused"] += 1
                reasons[type(error).__name__] += 1
                continue
            counts["compared"] += 1
            for one in result.runtimes:
                if one.status == NOT_RUN and one.runtimes[1] == REFERENCE:
                    counts["not_run_by_the_reference"] += 1
                    reasons[" ".join(one.reason.split()[:9])] += 1
                elif one.status == ALIKE:
                    alike.append({**which, "runtimes": one.runtimes})
    return {**counts, "reasons": dict(reasons), "as_the_original": alike, "differences": differences}


def added(known: Row, row: Row) -> Row:
    """The counts and lists of two results together."""
    total: Row = {**known}
    for key, value in row.items():
        if isinstance(value, dict):
            total[key] = dict((Counter(known.get(key, {})) + Counter(value)).most_common())
        else:
            total[key] = known[key] + value if key in known else value
    return total


def running_totals(known: Row, args: argparse.Namespace) -> Iterator[Row]:
    """What became of all graphs so far, after each."""
    files = sorted(args.folder.glob("*.onnx")) if args.folder else None
    numbers = range(known.get("graphs", 0), len(files) if files is not None else args.graphs)
    paths = [files[k] if files is not None else None for k in numbers]
    total = known
    for start in range(0, len(paths), GRAPHS_A_POOL):
        part = slice(start, start + GRAPHS_A_POOL)
        # A pool of its own for each part: processes that it replaces by itself can stop it for ever (Python 3.11).
        with ProcessPoolExecutor(args.workers, get_context("spawn"), initializer=claim_process) as pool:
            each = map if args.workers == 1 else pool.map
            for row in each(judge, numbers[part], paths[part], [args.keep_sets] * len(paths[part])):
                total = added(total, row)
                yield total


def main(argv: list[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.oracle", description=__doc__)
    parser.add_argument("--graphs", type=int, default=GRAPHS)
    parser.add_argument("--keep-sets", type=int, default=KEEP_SETS)
    parser.add_argument("--folder", type=Path, help="graphs of another generator")
    parser.add_argument("--workers", type=int, default=1, help="graphs at a time")
    parser.add_argument("--resume", action="store_true", help="go on after the graphs of the results")
    args = parser.parse_args(argv)
    claim_process()
    key = "files" if args.folder else "random"
    try:
        results = load("oracle")
    except FileNotFoundError:
        results = {}
    row = known = results.get(key, {}) if args.resume else {}
    for row in running_totals(known, args):
        if not row["graphs"] % BETWEEN_MESSAGES:
            save("oracle", results | {"environment": environment(), key: row})
            progress(
                f"{row['graphs']} graphs: {row.get('compared', 0)} compared, {len(row['differences'])} differences"
            )
    save("oracle", results | {"environment": environment(), key: row})
    print(json.dumps(row, indent=1))
    return 1 if row.get("differences") else 0


if __name__ == "__main__":
    sys.exit(main())

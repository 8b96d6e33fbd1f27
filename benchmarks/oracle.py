"""The second oracle over random graphs: the result of each in three runtimes, beside its proof.

    python -m benchmarks.oracle [--graphs 10000] [--keep-sets 2] [--start 0] [--folder FOLDER]

Graphs are those of ``tests.graphs``, by seed; with FOLDER, its .onnx files instead, for example those of NNSmith.  Each
is compressed to random budgets with ``prove_twice``.  Counts the graphs and keep sets that were compared, and those
that the reference evaluator could not run; lists the seeds or files of all differences.  Exit code 1 if there are any.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
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
NO_EVIDENCE = "no output of the model can be compared", "the model draws random numbers"
"""How refusals begin that say nothing of the result: the graph computes a constant, or noise."""


def sources(args: argparse.Namespace, folder: Path) -> Iterator[tuple[str, Path]]:
    """Each graph as a file, with its seed or name."""
    if args.folder is not None:
        yield from ((path.name, path) for path in sorted(args.folder.glob("*.onnx")))
        return
    for seed in range(args.start, args.start + args.graphs):
        yield str(seed), saved(from_seed(seed), folder, "graph.onnx")


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


def count(args: argparse.Namespace) -> Row:
    """Compress every graph, and count what became of it."""
    counts: Counter[str] = Counter()
    reasons: Counter[str] = Counter()
    differences: list[Row] = []
    alike: list[Row] = []
    with tempfile.TemporaryDirectory() as work:
        folder = Path(work)
        for k, (name, source) in enumerate(sources(args, folder)):
            draw = np.random.default_rng(k + args.start)
            counts["graphs"] += 1
            for number in range(args.keep_sets):
                counts["keep_sets"] += 1
                try:
                    result = compress_once(source, folder / "out.onnx", draw)
                except ProofFailed as error:
                    reason = next((text for text in NO_EVIDENCE if str(error).startswith(text)), "")
                    if reason:
                        counts["nothing_to_compare"] += 1
                        reasons[reason] += 1
                        continue
                    differences.append({"graph": name, "keep_set": number, "message": str(error)})
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
                        alike.append({"graph": name, "keep_set": number, "runtimes": one.runtimes})
            if not (k + 1) % BETWEEN_MESSAGES:
                progress(f"{k + 1} graphs: {dict(counts)}, {len(differences)} differences")
    return {**counts, "reasons": dict(reasons.most_common()), "as_the_original": alike, "differences": differences}


def main(argv: list[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.oracle", description=__doc__)
    parser.add_argument("--graphs", type=int, default=GRAPHS)
    parser.add_argument("--keep-sets", type=int, default=KEEP_SETS)
    parser.add_argument("--start", type=int, default=0, metavar="SEED")
    parser.add_argument("--folder", type=Path, help="graphs of another generator")
    parser.add_argument("--no-save", action="store_true", help="leave benchmarks/results/oracle.json as it is")
    args = parser.parse_args(argv)
    claim_process()
    row = count(args)
    print(json.dumps(row, indent=1))
    if not args.no_save:
        try:
            known = load("oracle")
        except FileNotFoundError:
            known = {}
        save("oracle", known | {"environment": environment(), "files" if args.folder else "random": row})
    return 1 if row["differences"] else 0


if __name__ == "__main__":
    sys.exit(main())

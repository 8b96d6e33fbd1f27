"""Do the tests notice when a rule is wrong?  Automatic mutants of the rules and of surgery, each put to the tests.

    python -m benchmarks.mutation [--count 50] [--seed 0] [--workers 2]

Mutants are made by cosmic-ray's operators (``pip install cosmic-ray``), drawn by place in the source rather than by
operator.  Those that change nothing but annotations are left out.  The sources are copied; the project is not touched.
Results are saved after each mutant, so that a run that is cut short is a smaller sample.
"""

from __future__ import annotations

import argparse
import ast
import random
import shutil
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from queue import Queue

from cosmic_ray import plugins
from cosmic_ray.ast import get_ast
from cosmic_ray.mutating import mutate_code

from benchmarks.common import ROOT, Row, environment, progress, save

TARGETS = ("rules/*.py", "surgery/operate.py")
LEFT_OUT = ("VariableInserter", "VariableReplacer")
TESTS = (
    "tests/rules",
    "tests/test_mutants.py",
    "tests/test_masked_equals_compact.py",
    "tests/test_variants_*.py",
    "tests/test_rare_*.py",
    "tests/test_surgery.py",
    "tests/test_sizes.py",
    "tests/test_slices.py",
    "tests/test_positions.py",
    "tests/test_zeros.py",
    "tests/test_properties.py",
    "tests/test_networks.py",
    "tests/test_bad_*.py",
    "tests/test_cli*.py",
    "tests/test_operators_page.py",
    "tests/test_contract.py",
    "tests/test_layers.py",
)
PATIENCE = 1200
"""Seconds after which a mutant counts as found: it does not come to an end."""


@dataclass(frozen=True)
class Mutant:
    """One change of one file: the operator's n-th place in it."""

    file: str
    operator: str
    occurrence: int
    line: int


def places(path: Path) -> dict[tuple[int, int, str], list[Mutant]]:
    """All mutants of a file, by place and kind of operator."""
    source = path.read_text()
    tree = get_ast(source)
    found: dict[tuple[int, int, str], list[Mutant]] = defaultdict(list)
    for name in plugins.operator_names():
        kind = name.split("/")[1].split("_")[0]
        if kind in LEFT_OUT:
            continue
        operator = plugins.get_operator(name)()
        spots = [start for node in _nodes(tree) for start, _ in operator.mutation_positions(node)]
        for occurrence, (line, column) in enumerate(spots):
            found[line, column, kind].append(Mutant(str(path.relative_to(ROOT)), name, occurrence, line))
    return found


def _nodes(node: object) -> Iterator[object]:
    yield node
    for child in getattr(node, "children", ()):
        yield from _nodes(child)


def mutated(mutant: Mutant) -> str | None:
    """The source of a mutant; None where nothing but annotations changes, or nothing can be read any more."""
    source = (ROOT / mutant.file).read_text()
    changed = mutate_code(source, plugins.get_operator(mutant.operator)(), mutant.occurrence)
    try:
        return None if changed is None or _behaviour(changed) == _behaviour(source) else str(changed)
    except SyntaxError:
        return None


def _behaviour(source: str) -> str:
    """The syntax tree without annotations."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            node.returns = None
        elif isinstance(node, ast.arg):
            node.annotation = None
        elif isinstance(node, ast.AnnAssign):
            node.annotation = ast.Constant(None)
    return ast.dump(tree)


def drawn(count: int, seed: int) -> list[tuple[Mutant, str]]:
    """A sample of mutants with their sources."""
    rng = random.Random(seed)
    spots = [
        group
        for pattern in TARGETS
        for path in sorted((ROOT / "leanonnx").glob(pattern))
        for _, group in sorted(places(path).items())
    ]
    rng.shuffle(spots)
    sample: list[tuple[Mutant, str]] = []
    for group in spots:
        mutant = rng.choice(group)
        source = mutated(mutant)
        if source is not None:
            sample.append((mutant, source))
        if len(sample) == count:
            break
    return sample


def judge(mutant: Mutant, source: str, folder: Path) -> Row:
    """Put one mutant to the tests, in a copy of the project."""
    original = (ROOT / mutant.file).read_text()
    target = folder / mutant.file
    target.write_text(source)
    try:
        tests = [str(path.relative_to(folder)) for pattern in TESTS for path in sorted(folder.glob(pattern))]
        command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *tests]
        try:
            done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=PATIENCE, check=False)
            outcome = "survived" if done.returncode == 0 else "killed"
            last = next((line for line in done.stdout.splitlines() if line.startswith(("FAILED", "ERROR"))), "")
        except subprocess.TimeoutExpired:
            outcome, last = "endless", ""
    finally:
        target.write_text(original)
    text = source.splitlines()[mutant.line - 1].strip()
    progress(f"{outcome} {mutant.file}:{mutant.line} {mutant.operator} | {text} | {last[:100]}")
    row = {"file": mutant.file, "line": mutant.line, "operator": mutant.operator, "source": text}
    return row | {"outcome": outcome, "by": last.split(" - ")[0].removeprefix("FAILED ")}


def copied(folder: Path) -> Path:
    """A copy of the project to spoil."""
    for name in ("leanonnx", "tests", "models", "benchmarks", "docs"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "CHANGELOG.md"):
        shutil.copy(ROOT / name, folder / name)
    return folder


def run_all(sample: Sequence[tuple[Mutant, str]], workers: int) -> Iterator[Row]:
    """Judge all mutants, several at a time; rows come in the order of the sample."""
    with tempfile.TemporaryDirectory() as work:
        free: Queue[Path] = Queue()
        for k in range(workers):
            free.put(copied(Path(work) / str(k)))

        def one(item: tuple[Mutant, str]) -> Row:
            folder = free.get()
            try:
                return judge(*item, folder)
            finally:
                free.put(folder)

        with ThreadPoolExecutor(workers) as pool:
            yield from pool.map(one, sample)


def main() -> None:
    """Draw, judge, and write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=2)
    arguments = parser.parse_args()
    rows: list[Row] = []
    for row in run_all(drawn(arguments.count, arguments.seed), arguments.workers):
        rows.append(row)
        dead = sum(each["outcome"] != "survived" for each in rows)
        head = {"environment": environment(), "seed": arguments.seed, "count": len(rows), "dead": dead}
        save("mutation", head | {"mutants": rows})
        progress(f"{dead} of {len(rows)} mutants died")


if __name__ == "__main__":
    main()

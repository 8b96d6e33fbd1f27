"""Do the tests notice when a rule is wrong?  Automatic mutants of the rules and of surgery, each put to the tests.

    python -m benchmarks.mutation [--count 50] [--seed 0] [--workers 2] [--coverage FILE]

Mutants are made by cosmic-ray's operators (``pip install cosmic-ray pytest-cov``), drawn by place in the source rather
than by operator.  Those that change nothing but annotations are left out, and those that write another negative size
for -1 in ``reshape``.  The sources are copied; the project is not touched.  First, all tests run once with coverage,
which is kept in FILE; a mutant is then put to those that reach its statement, and to all where only imports reach it.
Results are saved after each mutant: a run that is cut short is a smaller sample, with which ``--resume`` goes on.
"""

from __future__ import annotations

import argparse
import ast
import os
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
from coverage import CoverageData

from benchmarks.common import ROOT, Row, environment, load, progress, save

TARGETS = ("rules/*.py", "surgery/operate.py")
LEFT_OUT = ("VariableInserter", "VariableReplacer")
UNRELATED = (
    *("api", "bench", "block_bench", "busy", "calibration", "check", "contract", "corrupted", "data", "detection"),
    *("determinism", "device", "documented", "effort", "faults", "finetune", "first_line", "gpu", "habits", "house"),
    *("import", "int8", "intervals", "inverse", "killed", "language", "newcomer", "next_steps", "notebook", "olive"),
    *("oodte", "outputs", "package", "preprocessor", "progress", "psnr", "report", "resource", "schemas", "sessions"),
    *("site", "spelling", "stopped", "summary", "sweep", "targets", "timing", "torch", "troubleshooting", "waiting"),
    *("written", "zoo"),
)
"""Beginnings of the names of tests that have nothing to do with rules and surgery, or run them in other processes."""
PATIENCE, PATIENCE_PER_TEST = 300, 3
"""Seconds after which a mutant counts as found, as it does not come to an end: at all, and more for each test."""


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
    """The syntax tree without annotations, and with one negative size in ``reshape``, as numpy reads all of them."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "reshape":
            for size in node.args:
                if isinstance(size, ast.UnaryOp) and isinstance(size.op, ast.USub):
                    size.operand = ast.Constant(1)
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


def related_tests(folder: Path) -> list[str]:
    """The files of the tests that may notice a mutant."""
    files = [*(folder / "tests").glob("test_*.py"), *(folder / "tests" / "rules").glob("test_*.py")]
    names = tuple(f"test_{start}" for start in UNRELATED)
    return sorted(str(file.relative_to(folder)) for file in files if not file.name.startswith(names))


def record_coverage(path: Path, folder: Path, workers: int) -> None:
    """Run all tests with coverage, by test, of the packages that are mutated."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-n", str(workers), "--cov-context=test"]
    command += [f"--cov=leanonnx/{package}" for package in ("rules", "surgery")]
    environ = {**os.environ, "COVERAGE_FILE": str(path)}
    subprocess.run([*command, "--cov-report=", *related_tests(folder)], cwd=folder, env=environ, check=True)


def require_collected(coverage: CoverageData, folder: Path) -> None:
    """Compare recorded tests with those that pytest finds: a run that is given others ends as if the mutant had died.

    Raises:
        SystemExit: some are not found.
    """
    command = [sys.executable, "-m", "pytest", "--collect-only", "-q", "-p", "no:cacheprovider"]
    done = subprocess.run([*command, *related_tests(folder)], cwd=folder, capture_output=True, text=True, check=True)
    recorded = {context.rpartition("|")[0] for context in coverage.measured_contexts()} - {""}
    if gone := sorted(recorded.difference(done.stdout.splitlines())):
        raise SystemExit(f"not collected any more: {len(gone)} tests, such as {gone[0]}; record the coverage again")


def reaching_tests(mutant: Mutant, coverage: CoverageData, folder: Path) -> list[str]:
    """The tests that reach the statement of a mutant, or read the constant that it sets; all if no test does."""
    tree = ast.parse((ROOT / mutant.file).read_text())
    starts = {node: _first_line(node) for node in ast.walk(tree) if isinstance(node, ast.stmt)}
    around = [node for node, start in starts.items() if start <= mutant.line <= (node.end_lineno or start)]
    statement = max(around, key=lambda node: starts[node])
    names = _constants(statement) if statement in tree.body else set()
    read = [node for node in starts if names & {one.id for one in _heads(node) if isinstance(one, ast.Name)}]
    (measured,) = (name for name in coverage.measured_files() if Path(name).match(mutant.file))
    by_line = coverage.contexts_by_lineno(measured)
    lines = [line for node in (statement, *read) for line in _lines(node)]
    found = {context.rpartition("|")[0] for line in lines for context in by_line.get(line, ())}
    tests = sorted(found - {""})
    return related_tests(folder) if found and not tests else tests


def _constants(statement: ast.stmt) -> set[str]:
    """The names that a statement assigns."""
    targets = statement.targets if isinstance(statement, ast.Assign) else [getattr(statement, "target", None)]
    return {
        each.id for target in targets if target is not None for each in ast.walk(target) if isinstance(each, ast.Name)
    }


def _heads(statement: ast.stmt) -> Iterator[ast.AST]:
    """The parts of a statement without the statements in it."""
    for part in ast.iter_child_nodes(statement):
        if not isinstance(part, ast.stmt):
            yield from ast.walk(part)


def _lines(statement: ast.stmt) -> range:
    """The lines of a statement without those of the statements in it."""
    body = getattr(statement, "body", None)
    start, end = _first_line(statement), statement.end_lineno or statement.lineno
    return range(start, max(_first_line(body[0]) - 1 if body else end, statement.lineno) + 1)


def _first_line(node: ast.stmt) -> int:
    """The line on which a statement begins, decorators included."""
    decorators: Sequence[ast.expr] = getattr(node, "decorator_list", ())
    return min([node.lineno, *(decorator.lineno for decorator in decorators)])


def judge(mutant: Mutant, source: str, folder: Path, coverage: CoverageData) -> Row:
    """Put one mutant to the tests that reach it, in a copy of the project."""
    original = (ROOT / mutant.file).read_text()
    target = folder / mutant.file
    target.write_text(source)
    try:
        tests = reaching_tests(mutant, coverage, folder)
        listed = folder / "reaching.txt"
        listed.write_text("".join(f"{test}\n" for test in tests))
        count = len(tests) if all("::" in test for test in tests) else len(coverage.measured_contexts())
        patience = PATIENCE + PATIENCE_PER_TEST * count
        command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", f"@{listed}"]
        try:
            done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=patience, check=False)
            outcome = "survived" if not tests or done.returncode == 0 else "killed"
            lines = [*done.stdout.splitlines(), *done.stderr.splitlines()]
            last = next((line for line in lines if line.startswith(("FAILED", "ERROR"))), "")
        except subprocess.TimeoutExpired:
            outcome, last = "endless", ""
    finally:
        target.write_text(original)
    text = source.splitlines()[mutant.line - 1].strip()
    progress(f"{outcome} {mutant.file}:{mutant.line} {mutant.operator} | {text} | {last[:100]}")
    row = {"file": mutant.file, "line": mutant.line, "operator": mutant.operator, "source": text}
    row |= {"tests": len(tests)}
    return row | {"outcome": outcome, "by": last.split(" - ")[0].removeprefix("FAILED ")}


def copied(folder: Path) -> Path:
    """A copy of the project to spoil."""
    for name in ("leanonnx", "tests", "models", "benchmarks", "docs"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "CHANGELOG.md"):
        shutil.copy(ROOT / name, folder / name)
    return folder


def run_all(sample: Sequence[tuple[Mutant, str]], workers: int, kept: Path | None) -> Iterator[Row]:
    """Judge all mutants, several at a time; rows come in the order of the sample.

    ``kept``: the file with the coverage of the tests, made if it is not there.
    """
    with tempfile.TemporaryDirectory() as work:
        free: Queue[Path] = Queue()
        for k in range(workers):
            free.put(copied(Path(work) / str(k)))

        recorded = kept or Path(work) / "coverage"
        if not recorded.exists():
            record_coverage(recorded, Path(work) / "0", workers)
        coverage = CoverageData(str(recorded))
        coverage.read()
        require_collected(coverage, Path(work) / "0")

        def one(item: tuple[Mutant, str]) -> Row:
            folder = free.get()
            try:
                return judge(*item, folder, coverage)
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
    parser.add_argument("--coverage", type=Path, metavar="FILE", help="coverage of these sources by test")
    parser.add_argument("--resume", action="store_true", help="go on with the sample of the results")
    arguments = parser.parse_args()
    rows: list[Row] = load("mutation")["mutants"] if arguments.resume else []
    sample = drawn(arguments.count, arguments.seed)[len(rows) :]
    for row in run_all(sample, arguments.workers, arguments.coverage):
        rows.append(row)
        dead = sum(each["outcome"] != "survived" for each in rows)
        head = {"environment": environment(), "seed": arguments.seed, "count": len(rows), "dead": dead}
        save("mutation", head | {"mutants": rows})
        progress(f"{dead} of {len(rows)} mutants died")


if __name__ == "__main__":
    main()

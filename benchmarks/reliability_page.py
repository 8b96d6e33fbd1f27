"""Tables of ``docs/reliability.md`` from the results."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable

from benchmarks.common import Row, load, table

SECONDS_PER_HOUR = 3600


def _by_name(rows: Iterable[Row], key: str) -> dict[str, list[Row]]:
    result: dict[str, list[Row]] = {}
    for row in rows:
        result.setdefault(row[key], []).append(row)
    return result


def faults() -> str:
    """Runs with a fault, by command and by kind of fault."""
    rows = load("faults")["rows"]
    kinds = list(dict.fromkeys(row["fault"] for row in rows))
    lines = []
    for case, own in _by_name(rows, "case").items():
        runs = {row["fault"]: row["runs"] for row in own}
        broken = sum(len(row["broken"]) for row in own)
        step = max(row["step"] for row in own)
        every = "every one" if step == 1 else f"one in {step}"
        cells = [str(runs.get(kind, "")) for kind in kinds]
        lines.append([case, every, *cells, str(sum(runs.values())), str(broken)])
    total, broken = (sum(int(line[place]) for line in lines) for place in (-2, -1))
    operations: Counter[str] = Counter()
    for row in rows:
        operations.update(row["operations"])
    told = ", ".join(f"{name} {count}" for name, count in operations.most_common())
    text = table(["command", "operations that fail", *kinds, "runs", "broken promises"], lines)
    return f"{text}\n\n{total} runs, {broken} broken promises. Operations that failed: {told}."


def fuzzing() -> str:
    """Hours, inputs and findings of each target."""
    rows = load("fuzz")["rows"]
    lines = [
        [
            row["target"],
            f"{row['seconds'] / SECONDS_PER_HOUR:.2f}",
            f"{row['runs'] or 0:,}",
            f"{row['edges'] or 0:,}",
            str(row["kept"] or 0),
            str(len(row["findings"])),
        ]
        for row in rows
    ]
    hours = sum(row["seconds"] for row in rows) / SECONDS_PER_HOUR
    head = ["read from outside", "hours", "inputs", "edges of code reached", "inputs kept", "findings left"]
    return f"{table(head, lines)}\n\n{hours:.1f} hours of one core in all."


def branch_coverage() -> str:
    """Branches and lines that the tests take, by room."""
    rows = load("branch_coverage")["rooms"]
    lines = [
        [
            row["room"],
            str(row["files"]),
            f"{row['run']} of {row['lines']}",
            f"{row['taken']} of {row['branches']}",
            f"{row['taken'] / row['branches']:.1%}",
            str(row["excused"]),
        ]
        for row in rows
    ]
    return table(["room", "files", "lines", "branches", "share of branches", "excused lines"], lines)


def mutants() -> str:
    """Mutants that the tests noticed, and those that they did not."""
    data = load("mutation")
    same = [row for row in data["mutants"] if row.get("same")]
    alive = [row for row in data["mutants"] if row["outcome"] == "survived" and not row.get("same")]
    counted = data["count"] - len(same)
    text = f"{data['dead']} of {counted} mutants that change behaviour died ({data['dead'] / max(counted, 1):.0%}); "
    text += f"{len(same)} more change{'s' * (len(same) == 1)} nothing that can be observed. "
    text += f"Drawn with seed {data['seed']} on {data['environment']['date']}."
    lines = [[f"`{row['file']}:{row['line']}`", f"`{row['source']}`", row.get("same", "")] for row in [*alive, *same]]
    return f"{text}\n\n{table(['survivor', 'as changed', 'why nothing changes'], lines)}" if lines else text


def second_oracle() -> str:
    """Graphs and keep sets that were compared in further runtimes."""
    data = load("oracle")
    names = {"random": "random graphs", "files": "graphs of another generator"}
    lines = []
    for key, name in names.items():
        row = data.get(key)
        if row is not None:
            columns = ("graphs", "keep_sets", "compared", "refused", "nothing_to_compare", "not_run_by_the_reference")
            lines.append([name, *(str(row.get(column, 0)) for column in columns), str(len(row["differences"]))])
    head = ["", "graphs", "keep sets", "compared", "refused", "nothing to compare", "reference could not run"]
    return table([*head, "differences"], lines)


def protocol() -> str:
    """The protocol of OODTE over real models, and the models that leanonnx refused or that changed."""
    data = load("oodte")
    names = {"exact": "leanonnx, `--exact`", "keep": f"leanonnx, `--keep {data['keep']}`, against the masked original"}
    peers = data.get("peers", {})
    lines = []
    for way, row in data["totals"].items():
        name = names.get(way, f"{way} {peers.get(way, '')}".strip())
        columns = ("models", "same", "own_noise", "changed", "invalid", "crashed", "refused", "classifiers")
        lines.append(
            [name, *(str(row.get(column, 0)) for column in columns), str(row["classifiers_with_another_top1"])]
        )
    head = [
        "",
        "models",
        "same outputs",
        "by no more than its own noise",
        "changed",
        "invalid",
        "crashed",
        "refused",
        "classifiers",
        "another top-1",
    ]
    dead = [row["model"] for row in data["rows"] if not row["runs"]]
    text = f"{table(head, lines)}\n\n{len(data['rows'])} models"
    text += f"; {', '.join(dead)} could not be run by the judge as they are, and are left out" if dead else ""
    other = [
        f"{row['model']} ({names[way].rpartition(', against')[0] or names[way]}): {row[way]['status']}"
        + (f", {row[way]['message']}" if row[way].get("message") else "")
        for row in data["rows"]
        for way in names
        if row["runs"] and row[way]["status"] not in ("same", "own noise")
    ]
    return text + (".\n\n" + "\n".join(f"- {each}" for each in other) if other else ".")


def versions() -> str:
    """The smoke tests and the operator sets by versions of the packages."""
    lines = []
    for name, row in load("versions")["rows"].items():
        packages = ", ".join(f"{package} {number}" for package, number in row["packages"].items())
        smoke, sets = row["smoke"], row["opsets"]
        runs = f"{min(sets['proven'])} to {max(sets['proven'])}" if sets["proven"] else "none"
        passed = f"{smoke.get('passed', 0)} passed, {smoke.get('failed', 0)} failed"
        lines.append([name, f"{row['python']}: {packages}", passed, runs, str(len(sets["failed"]))])
    return table(["packages", "Python and versions", "smoke tests", "operator sets proven", "not proven"], lines)


def determinism() -> str:
    """Files with other bytes, by what was varied."""
    data = load("determinism")
    lines = []
    for row in data["rows"]:
        told = [
            f"{name}: {', '.join(each['files'])}"
            + (f" (weights by up to {number:.0e})" if (number := each["largest_relative_difference"]) else "")
            for name, each in row["different"].items()
        ]
        lines.append([f"{row['model']}, {row['job']}", str(row["variations"]), "; ".join(told) or "none"])
    varied = ", ".join(data["variations"])
    return f"{table(['', 'variations', 'files with other bytes'], lines)}\n\nVariations: {varied}."


NUMBERS: dict[str, Callable[[], str]] = {
    f"reliability_{name}": make
    for name, make in (
        ("faults", faults),
        ("fuzzing", fuzzing),
        ("branches", branch_coverage),
        ("mutants", mutants),
        ("oracle", second_oracle),
        ("protocol", protocol),
        ("versions", versions),
        ("determinism", determinism),
    )
}

"""What is told of a check: plain data for JSON, a table for people, JUnit's XML, GitHub's annotations and summary."""

from __future__ import annotations

import re
from collections.abc import Sequence
from xml.etree import ElementTree

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from leanonnx.commands.bench import report as bench_report
from leanonnx.commands.check.check import Checked, CheckRequest
from leanonnx.commands.check.gates import GATES
from leanonnx.commands.check.verdicts import FAILED, PASSED, SKIPPED
from leanonnx.formatting import counted, finite
from leanonnx.reporting.report import SCHEMA, Row, fidelity

STYLES = {PASSED: "green", FAILED: "bold red", SKIPPED: "yellow"}
TITLE = "leanonnx check"
MARKS = {PASSED: "✅", FAILED: "❌", SKIPPED: "⚠️"}
NOT_XML = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
"""Characters that XML 1.0 does not have."""
WHOLE = 1000
"""From here on numbers are written out to the last digit before the point."""


def summary(base: str, new: str, request: CheckRequest, found: Checked) -> Row:
    """The JSON object of ``leanonnx check``; an infinite number is given as null."""
    return {
        "schema": SCHEMA,
        "base": base,
        "new": new,
        "passed": not found.failed,
        "failed": list(found.failed),
        "gates": [
            {
                "gate": verdict.gate,
                "status": verdict.status,
                "measured": finite(verdict.measured),
                "limit": verdict.limit,
                "base": verdict.base,
                "detail": verdict.detail,
            }
            for verdict in found.verdicts
        ],
        "notes": list(found.notes),
        "seed": request.timed.seed,
        "deviation": [{"inputs": name, **fidelity(one)} for name, one in found.fidelities.items()],
        "sizes": [{"inputs": name, **fidelity(one)} for name, one in found.further.items()],
        "latency": {
            "provider": request.timed.setting.provider,
            "fixed": bench_report.fixed(request.timed),
            "results": [bench_report.case_row(case) for case in found.cases],
        }
        if found.cases
        else None,
        "seconds": dict(found.seconds),
    }


def tables(row: Row) -> RenderableType:
    """``leanonnx check`` for people."""
    table = Table(box=None)
    for column in ("", "gate", "measured", "limit", "BASE", "what it says"):
        right = column in ("measured", "limit", "BASE")
        table.add_column(column, justify="right" if right else "left", no_wrap=column != "what it says")
    for gate in row["gates"]:
        numbers = (_number(gate["measured"]), _limit(gate), _number(gate["base"]))
        table.add_row(Text(gate["status"], STYLES[gate["status"]]), gate["gate"], *numbers, Text(_said(gate)))
    notes = [Text(f"Note: {text}") for text in row["notes"]]
    inputs = ", ".join(f"{one['inputs']} ({counted(one['samples'], 'sample')})" for one in row["deviation"])
    sizes = f", and at {counted(len(row['sizes']), 'further size')}" if row["sizes"] else ""
    compared = [Text(f"Compared on {inputs}{sizes}, seed {row['seed']}", style="dim")] if inputs else []
    head = Text(f"{row['base']} → {row['new']}", style="bold")
    last = Text("PASSED" if row["passed"] else "FAILED", STYLES[PASSED if row["passed"] else FAILED])
    return Group(head, table, *notes, *compared, Text.assemble(last, f": {verdict_words(row)}"))


def verdict_words(row: Row) -> str:
    """How many gates have passed, and which have not."""
    told = FAILED if row["failed"] else PASSED
    skipped = f", {_count(row, SKIPPED)} skipped" if _count(row, SKIPPED) else ""
    names = f": {', '.join(row['failed'])}" if row["failed"] else ""
    return f"{_count(row, told)} of {len(row['gates'])} gates {told}{skipped}{names}"


def _count(row: Row, status: str) -> int:
    return sum(gate["status"] == status for gate in row["gates"])


def _said(gate: Row) -> str:
    """What was found, or else what the gate means."""
    return gate["detail"] or GATES[gate["gate"]].meaning


def _limit(gate: Row) -> str:
    if gate["limit"] is None:
        return ""
    return f"{'≥' if GATES[gate['gate']].least else '≤'} {_number(gate['limit'])}"


def _number(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:,.0f}" if value == round(value) or abs(value) >= WHOLE else f"{value:.4g}"


def _sentence(gate: Row) -> str:
    """A gate in one line: the numbers, where there are any, and what was found."""
    numbers = f"{_number(gate['measured'])} ({_limit(gate)})" if gate["limit"] is not None else ""
    return ": ".join(part for part in (numbers.strip(), _said(gate)) if part)


def junit(row: Row) -> bytes:
    """JUnit's XML, as Jenkins and GitLab read it: one suite, each gate a test case, notes in its output."""
    counts = {"tests": len(row["gates"]), "failures": len(row["failed"]), "errors": 0}
    attributes = {name: str(count) for name, count in counts.items()}
    attributes["time"] = f"{sum(row['seconds'].values()):.3f}"
    root = ElementTree.Element("testsuites", attributes)
    attributes["skipped"] = str(_count(row, SKIPPED))
    name = _xml_text(f"leanonnx check {row['base']} {row['new']}")
    suite = ElementTree.SubElement(root, "testsuite", {"name": name, **attributes})
    owner = _xml_text(f"leanonnx.{row['new'].replace('.', '_')}")  # dots divide packages
    for gate in row["gates"]:
        case = ElementTree.SubElement(suite, "testcase", {"classname": owner, "name": gate["gate"]})
        text = _xml_text(_sentence(gate))
        if gate["status"] == FAILED:
            ElementTree.SubElement(case, "failure", {"type": gate["gate"], "message": text}).text = text
        elif gate["status"] == SKIPPED:
            ElementTree.SubElement(case, "skipped", {"message": text})
        else:
            ElementTree.SubElement(case, "system-out").text = text
    if row["notes"]:
        ElementTree.SubElement(suite, "system-out").text = _xml_text("\n".join(row["notes"]))
    ElementTree.indent(root)
    document: bytes = ElementTree.tostring(root, encoding="utf-8", xml_declaration=True)
    return document


def _xml_text(text: str) -> str:
    return NOT_XML.sub("\ufffd", text)


def github_lines(row: Row) -> list[str]:
    """GitHub's workflow commands: an error for each gate failed, a warning for those skipped, a notice for each note.

    GitHub shows the first ten of a kind, so gates that were skipped for one reason share a warning.
    """
    skipped: dict[str, list[str]] = {}
    for gate in row["gates"]:
        if gate["status"] == SKIPPED:
            skipped.setdefault(gate["detail"], []).append(gate["gate"])
    failed = [(gate["gate"], _sentence(gate)) for gate in row["gates"] if gate["status"] == FAILED]
    errors = [command("error", f"{TITLE}: {name}", row["new"], text) for name, text in failed]
    warnings = [
        command("warning", TITLE, row["new"], f"skipped {', '.join(names)}: {reason}")
        for reason, names in skipped.items()
    ]
    return [*errors, *warnings, *(command("notice", TITLE, row["new"], text) for text in row["notes"])]


def command(name: str, title: str, file: str, message: str) -> str:
    """A workflow command; what would end its data or its properties is escaped as GitHub's own toolkit does."""
    return f"::{name} title={_property(title)},file={_property(file)}::{_data(message)}"


def _data(text: str) -> str:
    return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _property(text: str) -> str:
    return _data(text).replace(":", "%3A").replace(",", "%2C")


def markdown(row: Row) -> str:
    """GitHub's summary of a job."""
    head = f"### {MARKS[PASSED if row['passed'] else FAILED]} leanonnx check: {_cell(verdict_words(row))}"
    rows = [
        [
            f"{MARKS[gate['status']]} {gate['status']}",
            gate["gate"],
            _number(gate["measured"]),
            _limit(gate),
            _number(gate["base"]),
            _said(gate),
        ]
        for gate in row["gates"]
    ]
    notes = [f"- {_cell(text)}" for text in row["notes"]]
    table = ["| | gate | measured | limit | BASE | what it says |", "|---|---|--:|--:|--:|---|", *map(_line, rows)]
    parts = (head, f"{_cell(row['base'])} → {_cell(row['new'])}", "\n".join(table), "\n".join(notes))
    return "\n\n".join(part for part in parts if part) + "\n"


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(map(_cell, cells))} |"


def _cell(text: str) -> str:
    """Text that stays text in a table of Markdown, whatever a model calls its tensors."""
    return re.sub(r"([\\`*_{}\[\]<>|~#!])", r"\\\1", " ".join(text.split()))

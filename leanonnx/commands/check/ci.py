"""Reports of ``leanonnx check`` for CI: JUnit's XML, GitHub's annotations and its job summary."""

from __future__ import annotations

import re
from collections.abc import Sequence
from xml.etree import ElementTree

from leanonnx.commands.check.rows import CheckReport, GateRow
from leanonnx.commands.check.texts import gate_sentence, gate_text, limit_text, number_text, verdict_text
from leanonnx.commands.check.verdicts import FAILED, PASSED, SKIPPED

CHECK_TITLE = "leanonnx check"
STATUS_MARKS = {PASSED: "✅", FAILED: "❌", SKIPPED: "⚠️"}
NOT_XML = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
"""Characters that XML 1.0 does not have."""


def junit_xml(report: CheckReport) -> bytes:
    """JUnit's XML, as Jenkins and GitLab read it: one suite, each gate a test case, notes in its output."""
    counts = {"tests": len(report.gates), "failures": len(report.failed), "errors": 0}
    attributes = {name: str(count) for name, count in counts.items()}
    attributes |= {"time": f"{sum(report.seconds.values()):.3f}"}
    root = ElementTree.Element("testsuites", attributes)
    attributes |= {"skipped": str(len(report.gates_with(SKIPPED)))}
    name = _xml_text(f"{CHECK_TITLE} {report.base} {report.new}")
    suite = ElementTree.SubElement(root, "testsuite", {"name": name, **attributes})
    owner = _xml_text(f"leanonnx.{report.new.replace('.', '_')}")  # dots divide packages
    for gate in report.gates:
        _add_test_case(suite, owner, gate)
    if report.notes:
        ElementTree.SubElement(suite, "system-out").text = _xml_text("\n".join(report.notes))
    ElementTree.indent(root)
    document: bytes = ElementTree.tostring(root, encoding="utf-8", xml_declaration=True)
    return document


def _add_test_case(suite: ElementTree.Element, owner: str, gate: GateRow) -> None:
    case = ElementTree.SubElement(suite, "testcase", {"classname": owner, "name": gate.gate})
    text = _xml_text(gate_sentence(gate))
    if gate.status == FAILED:
        ElementTree.SubElement(case, "failure", {"type": gate.gate, "message": text}).text = text
    elif gate.status == SKIPPED:
        ElementTree.SubElement(case, "skipped", {"message": text})
    else:
        ElementTree.SubElement(case, "system-out").text = text


def _xml_text(text: str) -> str:
    return NOT_XML.sub("\ufffd", text)


def github_lines(report: CheckReport) -> list[str]:
    """GitHub's workflow commands: an error for each gate failed, a warning for those skipped, a notice for each note.

    GitHub shows the first ten of a kind, so gates that were skipped for one reason share a warning.
    """
    skipped: dict[str, list[str]] = {}
    for gate in report.gates_with(SKIPPED):
        skipped.setdefault(gate.detail, []).append(gate.gate)
    errors = [
        github_command("error", f"{CHECK_TITLE}: {gate.gate}", report.new, gate_sentence(gate))
        for gate in report.gates_with(FAILED)
    ]
    warnings = [
        github_command("warning", CHECK_TITLE, report.new, f"skipped {', '.join(names)}: {reason}")
        for reason, names in skipped.items()
    ]
    return [*errors, *warnings, *(github_command("notice", CHECK_TITLE, report.new, text) for text in report.notes)]


def github_command(name: str, title: str, file: str, message: str) -> str:
    """A workflow command; what would end its data or its properties is escaped as GitHub's own toolkit does."""
    return f"::{name} title={_property(title)},file={_property(file)}::{_data(message)}"


def _data(text: str) -> str:
    return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _property(text: str) -> str:
    return _data(text).replace(":", "%3A").replace(",", "%2C")


def github_summary(report: CheckReport) -> str:
    """GitHub's summary of a job, in Markdown."""
    mark = STATUS_MARKS[PASSED if report.passed else FAILED]
    head = f"### {mark} {CHECK_TITLE}: {_cell(verdict_text(report))}"
    table = ["| | gate | measured | limit | BASE | what it says |", "|---|---|--:|--:|--:|---|"]
    for gate in report.gates:
        numbers = (number_text(gate.measured), limit_text(gate), number_text(gate.base))
        table.append(_line([f"{STATUS_MARKS[gate.status]} {gate.status}", gate.gate, *numbers, gate_text(gate)]))
    notes = [f"- {_cell(text)}" for text in report.notes]
    parts = (head, f"{_cell(report.base)} → {_cell(report.new)}", "\n".join(table), "\n".join(notes))
    return "\n\n".join(part for part in parts if part) + "\n"


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(map(_cell, cells))} |"


def _cell(text: str) -> str:
    """Text that stays text in a table of Markdown, whatever a model calls its tensors."""
    return re.sub(r"([\\`*_{}\[\]<>|~#!])", r"\\\1", " ".join(text.split()))

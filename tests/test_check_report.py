"""Reports of a check: JUnit XML, GitHub annotations and summary, the table."""

from __future__ import annotations

import json
import re
from pathlib import Path
from xml.etree import ElementTree

import pytest

from leanonnx.commands.check.ci import github_command, github_lines, github_summary, junit_xml
from leanonnx.commands.check.gates import GATES
from leanonnx.commands.check.rows import CheckReport, GateRow
from leanonnx.commands.check.verdicts import Status
from tests.helpers import build, called, saved
from tests.test_check_pairs import FREE, checked, scaled, status

NASTY = 'in\x00put: 100 %, <a> & "b" | `c`\r\n::error title=x::y'
"""A detail with all that formats give a meaning to."""


def report_of(*gates: GateRow, notes: tuple[str, ...] = ()) -> CheckReport:
    failed = tuple(gate.gate for gate in gates if gate.status == "failed")
    return CheckReport(
        base="models/base.onnx",
        new="models/new.onnx",
        passed=not failed,
        failed=failed,
        gates=gates,
        notes=notes,
        seed=0,
        deviation=(),
        sizes=(),
        latency=None,
        seconds={"load": 0.25, "compare": 1.5},
    )


def entry(
    name: str,
    status: Status,
    detail: str = "",
    measured: float | None = None,
    limit: float | None = None,
    base: float | None = None,
) -> GateRow:
    return GateRow(gate=name, status=status, measured=measured, limit=limit, base=base, detail=detail)


REPORT = report_of(
    entry("valid", "passed"),
    entry("interface", "failed", NASTY),
    entry("runs", "skipped", "the interface is not that of BASE"),
    entry("finite", "skipped", "the interface is not that of BASE"),
    entry("max-bytes", "failed", measured=7_340_112, limit=5_000_000, base=9_000_000),
    entry("min-speedup", "skipped", "no GPU"),
    notes=("IR version 9, was 8", NASTY),
)

# JUnit: elements, their attributes (those with a star are obligatory) and children, by Jenkins's schema junit-10.xsd

SCHEMA = {
    "testsuites": ({"name", "time", "tests", "failures", "errors"}, {"testsuite"}),
    "testsuite": (
        {"name*", "tests*", "failures*", "errors*", "time", "skipped", "timestamp", "hostname", "id", "package"},
        {"testcase", "properties", "system-out", "system-err"},
    ),
    "testcase": ({"name*", "time", "classname"}, {"skipped", "error", "failure", "system-out", "system-err"}),
    "failure": ({"type", "message"}, set()),
    "skipped": ({"type", "message"}, set()),
    "system-out": (set(), set()),
}


def follows_the_schema(element: ElementTree.Element) -> None:
    allowed, children = SCHEMA[element.tag]
    assert set(element.attrib) <= {name.rstrip("*") for name in allowed}, element.tag
    assert {name[:-1] for name in allowed if name.endswith("*")} <= set(element.attrib), element.tag
    for name in {"tests", "failures", "errors", "skipped"} & set(element.attrib):
        assert element.attrib[name].isdecimal()
    assert re.fullmatch(r"\d+\.\d{3}", element.attrib.get("time", "0.000"))
    for child in element:
        assert child.tag in children
        follows_the_schema(child)


def test_junit_is_parsed_back() -> None:
    root = ElementTree.fromstring(junit_xml(REPORT))
    follows_the_schema(root)
    (suite,) = root
    cases = {case.attrib["name"]: case for case in suite.findall("testcase")}
    assert list(cases) == [gate.gate for gate in REPORT.gates]
    assert {case.attrib["classname"] for case in cases.values()} == {"leanonnx.models/new_onnx"}
    counts = {name: int(suite.attrib[name]) for name in ("tests", "failures", "errors", "skipped")}
    assert counts == {"tests": 6, "failures": 2, "errors": 0, "skipped": 3}
    assert (root.attrib["tests"], root.attrib["failures"], root.attrib["time"]) == ("6", "2", "1.750")
    assert [len(suite.findall(f"testcase/{tag}")) for tag in ("failure", "skipped")] == [2, 3]
    for tag, names in (("failure", {"interface", "max-bytes"}), ("skipped", {"runs", "finite", "min-speedup"})):
        assert {name for name, case in cases.items() if case.find(tag) is not None} == names
    failure = cases["interface"].find("failure")
    assert failure is not None
    # XML has no NUL, and its parsers read every end of a line as "\n"
    assert failure.text == NASTY.replace("\x00", "\ufffd").replace("\r\n", "\n")
    assert '100 %, <a> & "b"' in failure.attrib["message"]
    assert [found.text for found in cases["max-bytes"]] == [
        "7,340,112 (≤ 5,000,000): bytes of the file with its external data"
    ]
    assert "IR version 9, was 8" in (suite.findtext("system-out") or "")


def test_a_schema_that_is_broken_is_seen() -> None:
    root = ElementTree.fromstring(junit_xml(REPORT).replace(b'failures="2"', b'failed="2"'))
    with pytest.raises(AssertionError):
        follows_the_schema(root)


def test_junit_of_a_run(tmp_path: Path) -> None:
    """The written report agrees with the printed one and replaces an older one."""
    saved(build(FREE), tmp_path / "base.onnx")
    saved(build(FREE, 1), tmp_path / "new.onnx")
    (tmp_path / "r.xml").write_text("older")
    row = checked(tmp_path, "--max-deviation", 0.01, "--max-bytes", "1x", "--junit", "r.xml", code=1)
    root = ElementTree.parse(tmp_path / "r.xml").getroot()
    follows_the_schema(root)
    failed = {case.attrib["name"] for case in root.iter("testcase") if case.find("failure") is not None}
    assert failed == status(row, "failed") == {"max-deviation"}
    assert len(list(root.iter("testcase"))) == len(row["gates"]) == 9
    assert {path.name for path in tmp_path.iterdir()} == {"base.onnx", "new.onnx", "r.xml"}


# GitHub: the runner's own reading of a workflow command


def read_command(line: str) -> tuple[str, dict[str, str], str]:
    """Name, properties and data of a workflow command, unescaped as GitHub's runner does."""
    found = re.fullmatch(r"::(\w+) (.*?)::(.*)", line)
    assert found is not None, line
    properties = dict(pair.split("=", 1) for pair in found[2].split(","))
    return found[1], {key: plain(value, "\r\n:,") for key, value in properties.items()}, plain(found[3], "\r\n")


def plain(text: str, marks: str) -> str:
    for mark in marks:
        text = text.replace(f"%{ord(mark):02X}", mark)
    return text.replace("%25", "%")


def test_annotations() -> None:
    """Each is one line that decodes to the original text; gates skipped for the same reason share a warning."""
    lines = github_lines(REPORT)
    assert all("\n" not in line and "\r" not in line for line in lines)
    found = [read_command(line) for line in lines]
    assert [name for name, _, _ in found] == ["error", "error", "warning", "warning", "notice", "notice"]
    assert {properties["file"] for _, properties, _ in found} == {"models/new.onnx"}
    assert found[0][1]["title"] == "leanonnx check: interface"
    assert found[0][2] == NASTY
    assert found[2][2] == "skipped runs, finite: the interface is not that of BASE"
    assert found[4][2] == "IR version 9, was 8"


@pytest.mark.parametrize("text", ["a:b,c", "100 %", "%0A", "a\nb\rc", "::error::x", "größe 😀"])
def test_properties_are_escaped(text: str) -> None:
    line = github_command("error", text, text, text)
    assert read_command(line) == ("error", {"title": text, "file": text}, text)


def test_markdown_is_a_table_for_any_tensor_names() -> None:
    text = github_summary(REPORT)
    table = [line for line in text.splitlines() if line.startswith("|")]
    assert len(table) == 2 + len(REPORT.gates)
    assert {len(re.findall(r"(?<!\\)\|", line)) for line in table} == {7}
    assert "\\<a\\>" in text
    assert "❌ failed | max-bytes | 7,340,112 | ≤ 5,000,000 | 9,000,000" in text
    assert text.startswith("### ❌ leanonnx check: 2 of 6 gates failed, 3 skipped: interface, max-bytes\n")


def test_github(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Annotations are written to stderr, the summary is appended to the job's file."""
    saved(build(FREE), tmp_path / "base.onnx")
    saved(build(FREE, 1), tmp_path / "new.onnx")
    args = ("check", "base.onnx", "new.onnx", "--max-deviation", 0.01, "--github", "--json")
    summary = tmp_path / "summary.md"
    summary.write_text("# Before\n")
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(summary))
    done = called(*args, cwd=tmp_path)
    assert done.returncode == 1
    assert json.loads(done.stdout)["failed"] == ["max-deviation"]
    lines = [line for line in done.stderr.splitlines() if line.startswith("::")]
    assert [read_command(line)[1]["title"] for line in lines] == ["leanonnx check: max-deviation"]
    assert summary.read_text().startswith("# Before\n### ❌ leanonnx check: 1 of 8 gates failed: max-deviation\n")
    monkeypatch.delenv("GITHUB_STEP_SUMMARY")
    assert called(*args, cwd=tmp_path).returncode == 1
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(tmp_path / "gone" / "summary.md"))
    assert called(*args, cwd=tmp_path).returncode == 2


def test_wrong_requests_are_annotated_for_github(tmp_path: Path) -> None:
    saved(build(FREE), tmp_path / "base.onnx")
    done = called("check", "base.onnx", "gone.onnx", "--github", cwd=tmp_path)
    assert done.returncode == 2
    name, properties, text = read_command(done.stderr.splitlines()[0])
    assert (name, properties["file"]) == ("error", "gone.onnx")
    assert "no such file" in text


# the table


def test_table(tmp_path: Path) -> None:
    """Every gate has a line with its result or meaning, and its numbers."""
    saved(build(FREE), tmp_path / "base.onnx")
    saved(build(FREE, 1), tmp_path / "new.onnx")
    done = called("check", "base.onnx", "new.onnx", "--max-deviation", 0.01, "--max-bytes", "1.5x", cwd=tmp_path)
    lines = [line.split() for line in done.stdout.splitlines()]
    states = {line[1]: line[0] for line in lines if len(line) > 1 and line[1] in GATES}
    assert states == {
        "valid": "passed",
        "interface": "passed",
        "runs": "passed",
        "batches": "passed",
        "finite": "passed",
        "deterministic": "passed",
        "denormals": "passed",
        "max-deviation": "failed",
        "max-bytes": "passed",
    }
    assert GATES["interface"].meaning in done.stdout
    assert "≤ 0.01" in done.stdout
    assert "random normal inputs (4 samples)" in done.stdout
    assert done.stdout.splitlines()[-1] == "FAILED: 1 of 9 gates failed: max-deviation"


def test_infinite_numbers_are_null_in_json(tmp_path: Path) -> None:
    saved(build(FREE), tmp_path / "base.onnx")
    saved(build(scaled(FREE, "inf")), tmp_path / "new.onnx")
    row = checked(tmp_path, "--max-deviation", 1, code=1)
    assert [each["measured"] for each in row["gates"] if each["gate"] == "max-deviation"] == [None]

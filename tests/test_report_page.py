"""The page of ``compress --report`` agrees with the JSON, and is written with the model."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import onnx
import pytest

from leanonnx import formatting as texts
from leanonnx.page.headline import headline
from leanonnx.reporting.costs import CostChange, CostChanges
from leanonnx.reporting.reports import CompressionReport
from leanonnx.reporting.rows import ComparisonRow, LatencyRow, LayoutChange, ProofRow
from leanonnx.reporting.summary import SummaryContext
from tests.helpers import CNN, build, called, cli, refused, saved, tree
from tests.pages import Found, images, page_of, parsed, plain, residual, without_seconds

SECTIONS = ["network", "kernels", "chains", "latency", "deviation", "pins", "again"]


# content


def test_sections_in_order(calibrated: tuple[Found, str, dict[str, Any]]) -> None:
    found, _, _ = calibrated
    assert [section["id"] for section in found.all("section")] == SECTIONS
    assert [link["href"] for link in found.all("a")][1:] == [f"#{name}" for name in SECTIONS]


def test_numbers_of_the_json(calibrated: tuple[Found, str, dict[str, Any]]) -> None:
    """Every number of the headline and of the tables is that of the JSON object, which the page embeds."""
    found, _, row = calibrated
    assert without_seconds(found.json("numbers")) == without_seconds(row)
    header = found.text("header")
    for unit in ("kernels", "macs", "params", "bytes"):
        change = row[unit]
        assert f"{change['before']:,} → {change['after']:,}" in header
        assert plain(texts.percent_text(change["fraction"])) in header
    assert f"{row['proof']['max_relative_error']:.1e}" in header
    (output,) = row["recovery"]["deviation"]["outputs"].values()
    assert plain(texts.percent_text(output["relative_l2"])) in header
    for layer in row["layers"]:
        assert f"{layer['name']}{layer['operator']}" in found.text("network")
        assert texts.change_text(layer["out"]) in found.text("network")
    for pin in row["pins"]:
        assert f"{pin['kernels']:,} kernels" in found.text("pins")
        assert f"{pin['reason']}{pin['advice']}" in found.text("pins")
    assert f"{output['relative_l2']:.4g}" in found.text("deviation")
    assert f"{output['psnr']:.1f} dB" in found.text("deviation")


def test_plan_is_embedded(calibrated: tuple[Found, str, dict[str, Any]], page_folder: Path, tmp_path: Path) -> None:
    found, _, _ = calibrated
    plan = found.json("plan")
    assert plan == json.loads((page_folder / "plan.json").read_text())
    (tmp_path / "plan.json").write_text(json.dumps(plan))
    done = called("compress", page_folder / "model.onnx", tmp_path / "a.onnx", "--plan", tmp_path / "plan.json")
    assert done.returncode == 0, done.stderr
    shapes = [
        [list(t.dims) for t in onnx.load(p).graph.initializer] for p in (tmp_path / "a.onnx", page_folder / "out.onnx")
    ]
    kept = {tuple(entry["after"]) for entry in plan["tensors"].values()}
    assert all(tuple(dims) in kept for dims in shapes[0])


def test_command_line(tmp_path: Path) -> None:
    source = saved(build(CNN), tmp_path / "my model.onnx")
    done = cli("compress", source.name, "out.onnx", "--keep", "0.5", "--report", "page.html", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    command = "leanonnx compress 'my model.onnx' out.onnx --keep 0.5 --report page.html --no-measure"
    assert parsed((tmp_path / "page.html").read_text(encoding="utf-8")).text("command") == command


def test_warnings_come_first(tmp_path: Path) -> None:
    page, row = page_of(tmp_path, build(CNN), "--keep", 0.001, "--best-effort")
    found = parsed(page)
    assert row["warnings"]
    assert found.text("h1").startswith("Over budget: 5.0 % of the kernels is left, 0.10 % was asked for.")
    assert row["warnings"][0] in found.text("header")


def report_of(latency: LatencyRow | None = None, after: int = 50) -> CompressionReport:
    """The report of a compression to half."""
    change = CostChange(100, after, after / 100)
    return CompressionReport(
        headline=None,
        costs=CostChanges(change, change, change, change),
        proof=ProofRow(status="passed", max_relative_error=1e-7, bound=1e-4, inputs=3, sizes=1, outputs={"y": 1e-7}),
        pins=(),
        layers=(),
        products=(),
        branches=(),
        copied=None,
        folded=(),
        uncounted=(),
        latency=latency,
        replaced=None,
        recovery=None,
        data_free=None,
        judgement=None,
        tolerance=None,
        quantisation=None,
        weights_from=None,
        tidied={},
        lossless=None,
        inputs={},
        seconds={},
        warnings=(),
        hints=(),
    )


def timed(speedup: float, low: float, high: float, verdict: str = "faster", busy: bool = False) -> LatencyRow:
    """The latency of a report."""
    comparison = ComparisonRow(speedup=speedup, interval=(low, high), noise=0.0, rounds=15, lots=1, verdict=verdict)
    return LatencyRow(
        provider="cpu",
        threads=1,
        before_ms=2.0,
        after_ms=2.0 / speedup,
        comparison=comparison,
        busy=busy,
        convolutions=LayoutChange(None, None),
    )


@pytest.mark.parametrize(
    ("report", "asked", "verdict", "mood"),
    [
        (
            report_of(latency=timed(2.5, 2.4, 2.6)),
            {"kernels": 0.5},
            "2.50 times as fast (2.40 to 2.60), accuracy not known, 50.0 % of the size.",
            "plain",
        ),
        (
            report_of(latency=timed(0.8, 0.7, 0.9, "slower")),
            {"kernels": 0.5},
            "Slower: 0.80 times as fast (0.70 to 0.90), accuracy not known, 50.0 % of the size.",
            "bad",
        ),
        (
            report_of(latency=timed(1.02, 0.99, 1.05, "no difference shown")),
            {"macs": 0.5},
            "Not shown to be faster: 1.02 times as fast (0.99 to 1.05), accuracy not known, 50.0 % of the size.",
            "bad",
        ),
        (
            report_of(latency=timed(0.8, 0.7, 0.9, "slower", busy=True)),
            {"macs": 0.5},
            "Speed not known, as the machine was busy: 0.80 times as fast (0.70 to 0.90), "
            "accuracy not known, 50.0 % of the size.",
            "plain",
        ),
        (
            report_of(latency=timed(1.2, 1.1, 1.3, busy=True)),
            {"macs": 0.5},
            "1.20 times as fast (1.10 to 1.30), accuracy not known, 50.0 % of the size.",
            "plain",
        ),
        (report_of(), {"kernels": 0.5}, "Speed not measured, accuracy not known, 50.0 % of the size.", "plain"),
        (
            report_of(),
            {"params": 0.25},
            "Over budget: 50.0 % of the parameters is left, 25.0 % was asked for. "
            "Speed not measured, accuracy not known, 50.0 % of the size.",
            "bad",
        ),
        (
            report_of(latency=timed(1.25, 1.2, 1.3)),
            {"latency": 0.5},
            "Over budget: 80.0 % of the time is left, 50.0 % was asked for. "
            "1.25 times as fast (1.20 to 1.30), accuracy not known, 50.0 % of the size.",
            "bad",
        ),
        (
            report_of(after=100),
            {"kernels": 0.5},
            "Nothing could be removed: the output equals the input. "
            "Speed not measured, outputs unchanged, 100 % of the size.",
            "bad",
        ),
    ],
)
def test_first_line(report: CompressionReport, asked: dict[str, float], verdict: str, mood: str) -> None:
    found = headline(report, SummaryContext(options=asked, source="a.onnx", output="b.onnx"))
    assert (plain(found.verdict), found.mood) == (verdict, mood)
    if report.latency:
        gauge = found.gauge
        assert gauge is not None
        assert 0 <= gauge.low <= gauge.speedup <= gauge.high <= 1
        assert (gauge.speedup > gauge.original) == (report.latency.comparison.speedup > 1)


def test_measured(tmp_path: Path) -> None:
    """With measuring on, both models are profiled, and each layer has its time."""
    page, row = page_of(tmp_path, residual(), "--keep", 0.4, "--best-effort", measure=True)
    found = parsed(page)
    assert row["latency"] is not None
    latency = found.text("latency")
    assert all(layer["name"] in latency for layer in row["layers"])
    assert f"{row['latency']['speedup']:.2f} ×" in found.text("header")
    assert latency.count(" ms") > 2 * len(row["layers"])
    (total,) = re.findall(r"Sum, as measured\s*([\d.]+) ms → ([\d.]+) ms", latency)
    measured = [row["latency"][side] for side in ("before_ms", "after_ms")]
    assert [float(each) for each in total] == pytest.approx(measured, abs=0.001)


def test_unmeasured(calibrated: tuple[Found, str, dict[str, Any]]) -> None:
    found, _, _ = calibrated
    assert "Latency was not measured, so no layer was timed." in found.text("latency")


# It is written with the model, or not at all


def test_model_is_the_same(tmp_path: Path) -> None:
    """The model's bytes do not depend on the page; without measuring, the page is the same each time."""
    source, calib = saved(residual(), tmp_path / "m.onnx"), images(tmp_path / "x.npz")
    pages = []
    for name, report in (("a", ("--report", "page.html")), ("b", ()), ("c", ("--report", "page.html"))):
        (tmp_path / name).mkdir()
        args = (source, "out.onnx", "--keep", 0.5, "--calib", calib, *report)
        assert called("compress", *args, cwd=tmp_path / name).returncode == 0
        if report:
            text = (tmp_path / name / "page.html").read_text(encoding="utf-8")
            pages.append(re.sub(r'"seconds":\{[^}]*\}', "", text))
    assert (tmp_path / "a/out.onnx").read_bytes() == (tmp_path / "b/out.onnx").read_bytes()
    assert pages[0] == pages[1]
    assert sorted(tree(tmp_path / "a")) == ["out.onnx", "page.html"]


def test_no_page_without_a_model(tmp_path: Path) -> None:
    source = saved(build(CNN), tmp_path / "m.onnx")
    refused(tmp_path, "compress", source, "out.onnx", "--keep", 0.001, "--report", "page.html", code=1)


def test_no_model_without_the_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """If the page cannot be made, nothing is written."""

    def broken(*_: object) -> str:
        raise RuntimeError("no page")

    monkeypatch.setattr("leanonnx.page.page.heats", broken)
    source = saved(build(CNN), tmp_path / "m.onnx")
    before = tree(tmp_path)
    done = called("compress", source, "out.onnx", "--keep", 0.5, "--report", "page.html", cwd=tmp_path)
    assert done.returncode == 3
    assert tree(tmp_path) == before

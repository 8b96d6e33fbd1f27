"""Results in notebooks, as DataFrames and as CSV: all of them, with their deviations and intervals."""

from __future__ import annotations

import csv
import math
import sys
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import pytest

import leanonnx
from leanonnx.commands.calibrate.calibrate import Forecast
from leanonnx.evaluation.deviation import Fidelity
from leanonnx.evaluation.intervals import DeviationIntervals
from leanonnx.evaluation.tally import Deviation
from leanonnx.hardware.targets import HARDWARE_ENTRIES, builtin_hardware
from leanonnx.runtime.providers import Setting
from leanonnx.system.notebook import MAX_HTML_ROWS, Estimate, ResultTable, View, result_csv, result_frame, result_html
from tests.helpers import ANY, CALIBRATION, CNN, SHORT, build, saved

FIDELITY = Fidelity(
    samples=8,
    outputs=(Deviation("y", 0.25, top1=0.5, intervals=DeviationIntervals(relative_l2=(0.125, math.inf))),),
    metric="accuracy",
    before=0.75,
    after=0.5,
    after_interval=(0.25, 0.625),
)


class Parsed(HTMLParser):
    """The tables and the text of a piece of HTML, all tags of which are closed in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.texts: list[str] = []
        self.cells: list[str] = []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        assert tag in {"div", "p", "b", "i", "table", "thead", "tbody", "tr", "th", "td", "details", "summary"}
        self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        (self.cells if self.open[-1] in ("td", "th") else self.texts).append(data)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved(build(CNN), tmp_path_factory.mktemp("notebook") / "m.onnx")


def compress(model: Path) -> Any:
    return leanonnx.compress(model, keep=0.5, calib=CALIBRATION, **ANY)


def bench(model: Path) -> Any:
    return leanonnx.bench(model, model, seconds=SHORT, threads=1)


def check(model: Path) -> Any:
    return leanonnx.check(model, model, max_deviation=0.1)


def sweep(model: Path) -> Any:
    curves = model.with_name("curves")
    return leanonnx.sweep(model, curves, keep=[0.5, 0.001], calib=_samples(model), align=1, jobs=1, recover="none")


def _samples(model: Path) -> Path:
    path = model.with_name("samples.npz")
    np.savez(path, x=CALIBRATION)
    return path


def prove(model: Path) -> Any:
    return leanonnx.prove(model, model)


def train(model: Path) -> Any:
    report: Any = SimpleNamespace(training=SimpleNamespace(headline=None))
    return leanonnx.TrainingResult(
        path=model,
        before=FIDELITY,
        after=FIDELITY,
        losses=((2.0, 1.5), (1.0, 0.5)),
        best_epoch=2,
        warnings=("it <b>learns</b> & stops",),
        report=report,
    )


def calibrate(_: Path) -> Any:
    table = builtin_hardware()["cpu-avx2"]
    return leanonnx.DeviceCalibration(
        target=table,
        built_in=table,
        setting=Setting(threads=2),
        forecasts=(Forecast("net", 2.0, 1.5, 1.0),),
        has_timed_widths=True,
        seconds=1.0,
        warnings=(),
    )


RESULTS: dict[str, tuple[Callable[[Path], Any], str, list[str], tuple[str, ...]]] = {
    "compress": (compress, "name", ["C1", "C2", "Y"], ("relative l2", "accuracy", "proof passed", "Next:")),
    "analyse": (leanonnx.analyse, "name", ["C1", "C2", "Y"], ("180", "graph input 'x'")),
    "bench": (bench, "inputs", ["x 1,3,8,8"], ("speedup", " to ", "times as fast", "Next:")),
    "check": (check, "gate", ["valid"], ("gates passed", "max-deviation", "Next:", "keep this check in CI")),
    "sweep": (sweep, "fraction", ["0.5", "0.001"], ("relative l2", " to ", "1 of them not reached", "Next:")),
    "prove": (prove, "output", ["y"], ("proof passed", "max relative error")),
    "finetune": (train, "epoch", ["1", "2"], ("0.25 (0.125 to ∞)", "0.5 (0.25 to 0.625)", "held out loss")),
    "calibrate": (calibrate, "entry", list(HARDWARE_ENTRIES), ("net", "multiply-adds of 1×1 convolutions")),
    "fidelity": (lambda _: FIDELITY, "output", ["y"], ("0.25 (0.125 to ∞)", "0.5 (0.25 to 0.625)", "8 samples")),
}
"""The function that makes each result; a column of its main table and how its cells begin; and what its HTML shows."""


@pytest.mark.parametrize("name", RESULTS)
def test_every_result_is_a_table(name: str, model: Path, tmp_path: Path) -> None:
    make, column, cells, shown = RESULTS[name]
    result = make(model)
    parsed = Parsed(result._repr_html_())
    text = "\n".join((*parsed.texts, *parsed.cells))
    assert all(each in text for each in shown), text
    result.to_csv(tmp_path / "t.csv")
    with (tmp_path / "t.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row[column] for row in rows][: len(cells)] == cells
    pandas = pytest.importorskip("pandas", reason="pandas is not installed")
    frame = result.to_pandas()
    assert isinstance(frame, pandas.DataFrame)
    assert list(frame.columns) == list(rows[0])
    assert list(map(str, frame[column]))[: len(cells)] == cells


def test_intervals_and_pairs_take_columns_of_their_own(tmp_path: Path) -> None:
    FIDELITY.to_csv(tmp_path / "t.csv")
    head, row = (tmp_path / "t.csv").read_text().splitlines()
    assert head.startswith("output,relative_l2,relative_l2_low,relative_l2_high,psnr,")
    assert row.startswith("y,0.25,0.125,inf,,,,0.5,")
    FIDELITY.to_csv(tmp_path / "t.csv", table="metric")
    assert (tmp_path / "t.csv").read_text().splitlines()[1] == "accuracy,higher,0.75,,,0.5,0.25,0.625"


# any table


class Pair(NamedTuple):
    before: int
    after: int


class Some:
    """A result with any view."""

    def __init__(self, *rows: dict[str, object], note: str = "") -> None:
        self.tables = (ResultTable("main <table>", rows), ResultTable("none", ()))
        self.note = note

    def _view(self) -> View:
        return View(line="1 < 2 & 3", mood="bad", tables=self.tables, notes=(self.note,))

    _repr_html_ = result_html
    to_pandas = result_frame
    to_csv = result_csv


def test_cells_in_html() -> None:
    row = {"<name>": "<script>", "pair": Pair(1000, 2), "e": Estimate(0.5, (None, 0.75)), "ok": True, "no": None}
    html = Some(row, {"<name>": "x", "e": 3, "ok": False}, note="<i>")._repr_html_()
    parsed = Parsed(html)
    assert "<script>" not in html and "<name>" not in html and "<table>" not in html.replace("<table><thead>", "")
    assert parsed.cells[:4] == ["<name>", "pair", "e", "ok"]
    assert parsed.cells[4:] == ["<script>", "1,000 → 2", "0.5 (– to 0.75)", "yes", "x", "–", "3", "no"]
    assert parsed.texts == ["1 < 2 & 3", "<i>", "main <table>"]


def test_long_tables_are_cut_in_notebooks_only() -> None:
    some = Some(*({"k": k} for k in range(MAX_HTML_ROWS + 7)))
    assert "… and 7 more rows" in some._repr_html_()
    assert len(some._view().table(None).flat()) == MAX_HTML_ROWS + 7


def test_rows_of_different_columns(tmp_path: Path) -> None:
    some = Some({"a": Estimate(1.0, (0.5, 2.0)), "p": Pair(1, 2)}, {"a": 3, "shape": (1, 3)})
    some.to_csv(tmp_path / "t.csv")
    lines = ["a,a_low,a_high,p_before,p_after,shape", "1.0,0.5,2.0,1,2,", '3,,,,,"1,3"']
    assert (tmp_path / "t.csv").read_text().splitlines() == lines


def test_what_is_missing_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    some = Some({"a": 1})
    for method in (some.to_pandas, lambda table: some.to_csv(tmp_path / "t.csv", table)):
        with pytest.raises(leanonnx.UserError, match="table='no': there is no such table; give one of main <table>, n"):
            method(table="no")
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(leanonnx.UserError, match="needs pandas; install it with pip install pandas, or use to_csv"):
        some.to_pandas()
    with pytest.raises(leanonnx.UserError, match="does not exist; make it first"):
        some.to_csv(tmp_path / "no" / "t.csv")

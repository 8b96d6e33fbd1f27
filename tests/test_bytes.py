"""A budget of bytes: that of the file as written, with its external data."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import leanonnx
from leanonnx.analysis.cost import cost_model
from leanonnx.commands.compress import pipeline, sizing
from leanonnx.errors import BudgetUnreachable, OptionError
from leanonnx.numeric.channel_ids import Mask
from leanonnx.selection.metrics import Budget
from leanonnx.selection.search import Trial, within_budget
from leanonnx.selection.selector import SelectionRequest, Selector
from leanonnx.system.outputs import written_size
from tests.helpers import ANY, CALIBRATION, CNN, Options, build, called, called_json, refused, saved, saved_external

NARROW_WEIGHTS = "[8, 3, 3, 3] w1, float[8] b1, float[12, 8, 3, 3]"
WIDE = CNN.replace(NARROW_WEIGHTS, "[48, 3, 3, 3] w1, float[48] b1, float[64, 48, 3, 3]")
WIDE = WIDE.replace("[5, 12] w3", "[5, 64] w3")
TEXTS = {"float": WIDE, "half": WIDE.replace("float[", "float16["), "double": WIDE.replace("float[", "double[")}
CLOSE = 0.9
"""Share of a budget that is used up at least: widths are whole channels."""


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return saved(build(WIDE), tmp_path / "model.onnx")


def file_bytes(path: Path) -> int:
    """Bytes of a model and its external data."""
    return sum(file.stat().st_size for file in (path, path.with_name(f"{path.name}.data")) if file.exists())


# what the option takes


@pytest.mark.parametrize(
    ("text", "fraction", "amount"),
    [
        ("0.5", 0.5, None),
        ("1", 1.0, None),
        ("1.0", 1.0, None),
        ("2", 1.0, 2),
        ("300000", 1.0, 300_000),
        ("300000B", 1.0, 300_000),
        ("5MB", 1.0, 5_000_000),
        ("5 MB", 1.0, 5_000_000),
        ("5M", 1.0, 5_000_000),
        ("0.5mb", 1.0, 500_000),
        ("800kB", 1.0, 800_000),
        ("3MiB", 1.0, 3 * 1024**2),
        ("1.5KiB", 1.0, 1536),
        ("2GB", 1.0, 2 * 10**9),
        (0.25, 0.25, None),
        (300_000, 1.0, 300_000),
    ],
)
def test_fractions_and_sizes(text: str | float, fraction: float, amount: int | None) -> None:
    assert Budget.of_option("bytes", text) == Budget("bytes", fraction, amount)


WRONG = ("0", "-0.5", "1.5", "nan", "inf", "", "MB", "5XB", "0B", "0.0001kB", "5MB5", "1e6", "half")


@pytest.mark.parametrize("text", WRONG)
def test_neither_fraction_nor_size_is_refused(model: Path, text: str) -> None:
    says = (f"--bytes {text}: expected a fraction above 0 and at most 1, or a file size", "--bytes 0.5 or --bytes 5MB")
    refused(model.parent, "compress", "model.onnx", "out.onnx", f"--bytes={text}", says=says)


@pytest.mark.parametrize("option", ["keep", "macs", "params", "latency"])
def test_other_budgets_take_no_size(option: str) -> None:
    with pytest.raises(OptionError, match=f"{option}='5MB': expected a fraction above 0 and at most 1"):
        Budget.of_option(option, "5MB")


def test_an_amount_becomes_a_fraction() -> None:
    budget = Budget.of_option("bytes", "300kB").of_total(1_200_000)
    assert budget == Budget("bytes", 0.25, 300_000)
    assert budget.limit(1_200_000) == 300_000
    assert Budget.of_option("bytes", "5MB").of_total(1_200_000).fraction == 1
    assert Budget("bytes", 0.5).of_total(1000) == Budget("bytes", 0.5)


# the file that is written


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("external", [False, True], ids=["inline", "external"])
@pytest.mark.parametrize("fraction", [0.7, 0.4])
def test_the_file_is_within_the_budget(tmp_path: Path, text: str, external: bool, fraction: float) -> None:
    save, out = saved_external if external else saved, tmp_path / "o.onnx"
    source = save(build(TEXTS[text]), tmp_path / "m.onnx")
    before = sum(file.stat().st_size for file in tmp_path.iterdir())
    row = called_json("compress", source, out, "--bytes", fraction, "--align", 1)
    assert row["bytes"]["before"] == before
    assert row["bytes"]["after"] == file_bytes(out)
    assert file_bytes(out) <= fraction * before
    assert file_bytes(out) >= CLOSE * fraction * before - 4096 * external


@pytest.mark.parametrize("size", ["60kB", "50KiB", "40000"])
def test_a_size_is_not_exceeded(model: Path, size: str) -> None:
    plan, out = model.parent / "plan.json", model.parent / "out.onnx"
    called_json("compress", model, out, "--bytes", size, "--align", 1, "--plan-out", plan)
    limit = Budget.of_option("bytes", size).amount
    assert limit is not None
    assert CLOSE * limit <= file_bytes(out) <= limit
    assert json.loads(plan.read_text())["options"]["bytes"] == limit / model.stat().st_size


@pytest.mark.parametrize("size", ["1", "5MB"])
def test_nothing_is_removed_from_a_small_enough_model(model: Path, size: str) -> None:
    out = model.parent / "out.onnx"
    row = called_json("compress", model, out, "--bytes", size)
    assert out.read_bytes() == model.read_bytes()
    assert row["bytes"]["fraction"] == 1
    assert row["warnings"] == []


@pytest.mark.parametrize("settings", [{"calib": {"x": CALIBRATION}}, {"recover": "auto"}], ids=["calib", "recover"])
def test_biases_of_recovery_are_within_the_budget(model: Path, settings: dict[str, Any]) -> None:
    result = leanonnx.compress(model, bytes=0.5, **settings, **ANY)
    assert CLOSE * 0.5 <= result.bytes.fraction <= 0.5


def test_python_takes_fractions_and_sizes(model: Path) -> None:
    half, size = model.stat().st_size / 2, model.stat().st_size // 2
    for limit in (0.5, size, f"{size}B"):
        result = leanonnx.compress(model, bytes=limit, **ANY)
        assert CLOSE * half <= result.bytes.after <= half
    with pytest.raises(OptionError, match="bytes='5XB': expected a fraction"):
        leanonnx.compress(model, bytes="5XB", **ANY)


# budgets out of reach


def test_out_of_reach_is_refused(model: Path) -> None:
    says = ("0.001 of the bytes was asked for", "is the lowest that can be reached", "--best-effort")
    refused(model.parent, "compress", "model.onnx", "out.onnx", "--bytes", "0.001", code=1, says=says)
    refused(model.parent, "compress", "model.onnx", "out.onnx", "--bytes", "10B", code=1, says=says[1:])


def test_best_effort_writes_the_smallest(model: Path) -> None:
    out, other = model.parent / "out.onnx", model.parent / "other.onnx"
    row = called_json("compress", model, out, "--bytes", "0.001", "--align", 1, "--best-effort")
    assert any("over budget: " in text and "of the bytes is the lowest reachable" in text for text in row["warnings"])
    called_json("compress", model, other, "--params", "0.001", "--align", 1, "--best-effort")
    assert file_bytes(out) == file_bytes(other)


def test_a_file_that_recovery_makes_too_large_is_refused(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The size of the file in the end counts, whatever was predicted."""
    target, options = model.parent / "out.onnx", Options(Budget("bytes", 0.5))
    monkeypatch.setattr(sizing, "written_size", lambda draft: written_size(draft) + model.stat().st_size // 2)
    with pytest.raises(
        BudgetUnreachable,
        match=r"\d+ bytes were asked for, but with refitted weights the file has \d+, 0\.\d+ of the original",
    ):
        pipeline.compress_file(model, target, options)
    assert not target.exists()
    result = pipeline.compress_file(model, target, replace(options, best_effort=True))
    assert any("of the bytes is the lowest reachable" in text for text in result.warnings)


# the search


class Writer:
    """Stands for the files: their bytes are a curve of the predicted ones."""

    def __init__(self, selector: Selector, factor: float, more: int) -> None:
        self.selector, self.factor, self.more = selector, factor, more
        self.sizes: list[int] = []

    def __call__(self, alive: Mask) -> int:
        self.sizes.append(int(self.factor * self.selector.price(alive)) + self.more)
        return self.sizes[-1]


@pytest.mark.parametrize(("factor", "more"), [(1.0, 0), (1.2, 0), (0.8, 0), (1.0, 9000), (1.0, -9000), (1.5, -9000)])
def test_predictions_are_corrected_by_the_written_model(model: Path, factor: float, more: int) -> None:
    dag = pipeline.load_dag(model)
    selector = Selector(dag, SelectionRequest(budget=Budget("bytes", 0.5)))
    writer = Writer(selector, factor, more)
    trial = within_budget(selector, selector.price, lambda selection, _: Trial(selection, None), writer)
    assert trial.selection.reached
    used = int(factor * selector.price(trial.selection.alive)) + more
    assert CLOSE * 0.5 * selector.total <= used <= 0.5 * selector.total


@pytest.mark.parametrize("text", TEXTS)
def test_predicted_bytes_are_those_of_the_file(tmp_path: Path, text: str) -> None:
    source, out = saved(build(TEXTS[text]), tmp_path / "m.onnx"), tmp_path / "o.onnx"
    result = pipeline.compress_file(source, out, Options(Budget("kernels", 0.5)))
    predicted = cost_model(result.dag)(result.alive).bytes
    assert abs(predicted - out.stat().st_size) < 0.01 * source.stat().st_size


# the other verbs


def test_sweep_takes_fractions_of_bytes(model: Path) -> None:
    folder = model.parent / "sweep"
    row = called_json("sweep", model, "--bytes", "0.7,0.5", "--align", 1, "--no-measure", "--jobs", 1, "--out", folder)
    assert row["unit"] == "bytes"
    assert [point["bytes"]["fraction"] <= point["asked"] for point in row["models"][0]["points"]] == [True, True]
    says = ("--bytes 5MB: expected fractions, for example --bytes 0.75,0.5,0.25",)
    refused(model.parent, "sweep", "model.onnx", "--bytes", "5MB", "--out", "other", says=says)


def test_page_shows_the_bytes(model: Path) -> None:
    page, out = model.parent / "page.html", model.parent / "out.onnx"
    done = called("compress", model, out, "--bytes", "0.001", "--best-effort", "--report", page)
    assert done.returncode == 0
    text = page.read_text(encoding="utf-8")
    assert "Over budget: " in text
    assert "of the bytes is left, " in text

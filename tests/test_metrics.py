"""Metrics: one table, which options, the Python API, reports and pages follow."""

from __future__ import annotations

import inspect
from pathlib import Path

import pytest

import leanonnx
from leanonnx.analysis.cost import Cost, cost_model
from leanonnx.cli.group import Commands
from leanonnx.commands.compress.pipeline import load_dag as analysed
from leanonnx.errors import OptionError
from leanonnx.page.headline import headline
from leanonnx.reporting.encoding import from_json
from leanonnx.reporting.reports import CompressionReport
from leanonnx.reporting.summary import SummaryContext
from leanonnx.selection.metrics import BUDGETS, COUNTED_METRICS, METRICS, Budget, PricingInputs
from tests.helpers import CNN, build, called, called_json, saved


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return saved(build(CNN), tmp_path / "model.onnx")


def options_of(verb: str) -> set[str]:
    command = Commands()[verb]
    return {name for param in command.params for name in param.opts}


def test_unknown_metric_is_refused() -> None:
    with pytest.raises(OptionError, match="'flops' is no metric; expected one of kernels, macs, params"):
        Budget("flops", 0.5)


def test_each_metric_is_known_by_its_name() -> None:
    assert all(name == metric.name for name, metric in METRICS.items())
    assert all(option == metric.option for option, metric in BUDGETS.items())
    assert [metric.name for metric in COUNTED_METRICS] == list(inspect.signature(Cost).parameters)


@pytest.mark.parametrize("verb", ["compress", "sweep", "finetune"])
def test_each_budget_is_an_option(verb: str) -> None:
    wanted = {f"--{option}" for option, metric in BUDGETS.items() if verb != "finetune" or not metric.measured}
    assert wanted <= options_of(verb)


@pytest.mark.parametrize("verb", ["compress", "sweep"])
def test_help_lists_each_budget(verb: str) -> None:
    words = called(verb, "--help").stdout.replace("│", " ").split()
    text = " ".join(words).replace("- ", "-")  # lines break after hyphens too
    for option, metric in BUDGETS.items():
        assert f"--{option} " in text
        assert (metric.help if verb == "compress" else metric.sweep_help) in text
    assert "Exactly one of --keep, --macs" in text


def test_each_budget_is_a_keyword() -> None:
    assert set(BUDGETS) <= set(inspect.signature(leanonnx.compress).parameters)


def test_tables_and_json_list_each_metric(model: Path) -> None:
    out = model.parent / "out.onnx"
    row = called_json("compress", str(model), str(out), "--keep", "0.5", "--no-measure", "--json")
    shown = called("compress", str(model), str(out), "--keep", "0.5", "--no-measure", env={"COLUMNS": "200"}).stdout
    looked_at = called_json("inspect", str(model), "--json")
    assert set(METRICS) <= set(row)
    for metric in COUNTED_METRICS:
        assert set(row[metric.name]) == {"before", "after", "fraction"}
        assert looked_at[metric.name] == row[metric.name]["before"]
        assert metric.meaning in shown
    context = SummaryContext(options={"kernels": 0.5}, source="a", output="b")
    titles = [tile.title for tile in headline(from_json(CompressionReport, row), context).tiles]
    assert titles == ["Speed", "Deviation", *(metric.title for metric in reversed(COUNTED_METRICS)), "Proof"]


@pytest.mark.parametrize("metric", [metric for metric in METRICS.values() if not metric.measured], ids=lambda m: m.name)
def test_a_price_is_a_count(model: Path, metric: object) -> None:
    dag = analysed(model)
    cost = cost_model(dag)
    price = metric.price(PricingInputs(dag=dag, cost=cost))  # type: ignore[attr-defined]
    assert price(dag.all_alive) == metric.count(cost(dag.all_alive))  # type: ignore[attr-defined]


def test_latency_has_no_price_without_hardware(model: Path) -> None:
    dag = analysed(model)
    with pytest.raises(ValueError, match="given hardware"):
        METRICS["latency"].price(PricingInputs(dag=dag, cost=cost_model(dag)))


def test_bytes_before_and_after_are_those_of_the_files(model: Path) -> None:
    out = model.parent / "out.onnx"
    result = leanonnx.compress(model, out, keep=0.5, measure=False)
    assert (result.bytes.before, result.bytes.after) == (model.stat().st_size, out.stat().st_size)
    assert leanonnx.analyse(model).bytes == model.stat().st_size

"""leanonnx in Python: the same as the command line, as values."""

from __future__ import annotations

import html
import inspect
import runpy
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

import leanonnx
from leanonnx import DEFAULT_RULES
from leanonnx.cli.group import Commands
from leanonnx.errors import (
    ModelError,
    OptionError,
    OutputError,
    UserError,
)
from leanonnx.reporting.encoding import to_json
from leanonnx.spelling import spelled_for
from tests.helpers import (
    ANY,
    CALIBRATION,
    CNN,
    build,
    called_json,
    constant_shapes,
    outputs,
    saved,
    saved_external,
    tree,
)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return saved(build(CNN), tmp_path / "model.onnx")


def without_seconds(row: dict[str, Any]) -> dict[str, Any]:
    return {**row, "seconds": sorted(row["seconds"])}


# the same options as the command line


QUIET = {"quiet": "no bar but in notebooks"}
JSON = {"json": "to_dict of the result", "config": "keywords of the caller's own, **options"}
IMAGES = dict.fromkeys(("mean", "std", "scale", "layout", "size", "preprocessor"), "one value: images=ImageFormat(...)")
DIFFERENT = {
    "compress": {
        "no_measure": "measure says the same without the negation",
        "verbose": "all fields of the result",
        **QUIET,
        **JSON,
        **IMAGES,
    },
    "inspect": {"why": "a method of the result", **JSON},
    "bench": {**QUIET, **JSON},
    "check": {**QUIET, **JSON, **IMAGES, "junit": "for CI", "github": "for CI"},
    "sweep": {"no_measure": "measure", "out": "an argument that has to be given", **QUIET, **JSON, **IMAGES},
    "finetune": {**QUIET, **JSON, **IMAGES},
    "calibrate-device": {"out": "an argument that has to be given", **QUIET, **JSON},
}
"""Options of the command line that the functions have otherwise."""

TARGETS = {"targets": "a library reads no environment: it gets the table of calibrate-device by this argument"}
ONE_VALUE = {"images": "--mean, --std, --scale, --layout, --size"}
BAR = {"progress": "the bar of the command line"}
MEASURE = {"measure": "--no-measure; the command line measures by default"}
OWN = {
    "compress": {**MEASURE, **ONE_VALUE, **TARGETS, **BAR},
    "inspect": {},
    "bench": BAR,
    "check": {**ONE_VALUE, **BAR},
    "sweep": {**MEASURE, **ONE_VALUE, **TARGETS, **BAR},
    "finetune": {**ONE_VALUE, **BAR},
    "calibrate-device": BAR,
}
"""Keywords of the functions that the command line has otherwise."""

FUNCTIONS = {
    "compress": leanonnx.compress,
    "inspect": leanonnx.analyse,
    "bench": leanonnx.bench,
    "check": leanonnx.check,
    "sweep": leanonnx.sweep,
    "finetune": leanonnx.finetune,
    "calibrate-device": leanonnx.calibrate_device,
}


def test_the_page_shows_the_call(model: Path, tmp_path: Path) -> None:
    page, out = tmp_path / "page.html", tmp_path / "small.onnx"
    leanonnx.compress(model, out, keep=0.5, report=page, calib={"x": CALIBRATION}, recover="none")
    text = html.unescape(page.read_text())
    assert f"leanonnx.compress('{model}', '{out}', keep=0.5, report=" in text
    assert "recover='none')" in text


@pytest.mark.parametrize("verb", FUNCTIONS)
def test_options_are_those_of_the_command_line(verb: str) -> None:
    command = Commands()[verb]
    options = [param for param in command.params if param.param_type_name == "option"]
    theirs = {max(param.opts, key=len).lstrip("-").replace("-", "_"): param for param in options}
    theirs.pop("help", None)
    parameters = inspect.signature(FUNCTIONS[verb]).parameters
    ours = {name for name, found in parameters.items() if found.kind is found.KEYWORD_ONLY}
    assert set(theirs) - ours == set(DIFFERENT[verb])
    assert ours - set(theirs) == set(OWN[verb])
    positional = len(command.params) - len(options) + ("out" in DIFFERENT[verb])
    assert len(parameters) - len(ours) == positional


@pytest.mark.parametrize("verb", FUNCTIONS)
def test_defaults_are_those_of_the_command_line(verb: str) -> None:
    """Options that are empty or text there are None or a value here."""
    command = Commands()[verb]
    parameters = inspect.signature(FUNCTIONS[verb]).parameters
    for param in command.params:
        name = max(param.opts, key=len).lstrip("-").replace("-", "_")
        if param.param_type_name == "option" and name in parameters and name not in DIFFERENT[verb]:
            default = parameters[name].default
            if default is inspect.Parameter.empty:
                assert param.required, name
            else:
                assert param.default == default or (not param.default and default in (None, (), 0)), name


# compress


@pytest.mark.parametrize(
    ("options", "keywords"),
    [
        (("--keep", "0.5"), {"keep": 0.5}),
        (("--macs", "0.6", "--method", "l1"), {"macs": 0.6, "method": "l1"}),
        (("--params", "0.6", "--chains", "free"), {"params": 0.6, "chains": "free"}),
        (("--keep", "0.8", "--pin", "c1", "--ignore", "C1"), {"keep": 0.8, "pin": "c1", "ignore": ["C1"]}),
        (("--keep", "0.5", "--align", "4", "--seed", "3"), {"keep": 0.5, "align": 4, "seed": 3}),
        (("--keep", "0.5", "--shape", "x=1,3,8,8"), {"keep": 0.5, "shape": {"x": (1, 3, 8, 8)}}),
        (("--keep", "0.5", "--calib", "x.npz"), {"keep": 0.5, "calib": "x.npz"}),
        (("--keep", "0.5", "--recover", "auto", "--target", "cpu-avx2"), {"keep": 0.5, "recover": "auto"}),
        (("--exact",), {"exact": True}),
        (("--keep", "0.001", "--best-effort"), {"keep": 0.001, "best_effort": True}),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_result_agrees_with_the_command_line(
    model: Path, options: tuple[str, ...], keywords: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(model.parent)
    np.savez("x.npz", x=CALIBRATION)
    if "--target" in options:
        keywords = {**keywords, "target": "cpu-avx2"}
    row = called_json("compress", model, "cli.onnx", *options, "--plan-out", "cli.json")
    with spelled_for("command line"):
        result = leanonnx.compress(model, **keywords)
    assert without_seconds(result.to_dict()) == without_seconds(row)
    result.save("api.onnx")
    result.plan.save("api.json")
    assert Path("api.onnx").read_bytes() == Path("cli.onnx").read_bytes()
    assert Path("api.json").read_bytes() == Path("cli.json").read_bytes()


def test_result_agrees_with_its_json(model: Path) -> None:
    result = leanonnx.compress(model, keep=0.5, calib=CALIBRATION, **ANY)
    row = result.to_dict()
    for unit in ("kernels", "macs", "params", "bytes"):
        change = getattr(result, unit)
        assert to_json(change) == row[unit]
        assert f"{unit} {change.before} → {change.after}" in repr(result)
    assert result.kernels.fraction <= 0.5
    assert [to_json(pin) for pin in result.pins] == row["pins"]
    assert [to_json(layer) for layer in result.layers] == row["layers"]
    assert [to_json(product) for product in result.products] == row["products"]
    assert list(result.warnings) == row["warnings"]
    first, last = result.layers[0], result.layers[-1]
    assert (first.name, first.operator, first.inputs) == ("C1", "Conv", (3, 3))
    assert first.outputs.after <= first.outputs.before
    assert [row["layers"][-1][key] for key in ("in", "out")] == [list(last.inputs), list(last.outputs)]
    assert result.proof.passed
    assert result.latency is None
    assert result.deviation is not None
    assert result.deviation.outputs[0].relative_l2 == row["recovery"]["deviation"]["outputs"]["y"]["relative_l2"]
    assert row["warnings"] and all(
        warning.replace("'", "&#x27;") in result._repr_html_() for warning in row["warnings"]
    )


@pytest.mark.usefixtures("briefly")
def test_measured_time_is_reported(model: Path) -> None:
    result = leanonnx.compress(onnx.load(model), keep=0.5, align=1, best_effort=True, threads=1, measure=True)
    row = result.to_dict()["latency"]
    assert result.latency is not None
    assert (round(result.latency.speedup, 4), round(result.latency.before.median, 4)) == (
        row["speedup"],
        row["before_ms"],
    )
    assert row["threads"] == 1
    assert f"{result.latency.speedup:.2f} times the speed" in repr(result)


def test_model_in_memory_is_compressed_as_its_file(model: Path) -> None:
    proto = onnx.load(model)
    before = proto.SerializeToString()
    results = [leanonnx.compress(given, keep=0.5, **ANY) for given in (model, str(model), proto)]
    assert proto.SerializeToString() == before
    assert len({result.model.SerializeToString() for result in results}) == 1
    assert len({result.plan.text() for result in results}) == 1
    onnx.checker.check_model(results[2].model, full_check=True)


def test_out_and_plan_out_are_written(model: Path) -> None:
    out, plan = model.parent / "out.onnx", model.parent / "plan.json"
    result = leanonnx.compress(model, out, keep=0.5, plan_out=str(plan), **ANY)
    assert onnx.load(out) == result.model
    assert leanonnx.load_plan(plan) == result.plan
    assert result.bytes.after == out.stat().st_size


@pytest.mark.parametrize("form", ["dict", "array", "path", "labels"])
def test_calibration_data_in_any_form(model: Path, form: str) -> None:
    path = model.parent / "x.npz"
    np.savez(path, x=CALIBRATION)
    labels = np.arange(24) % 5
    forms: dict[str, Any] = {"dict": {"x": CALIBRATION}, "array": CALIBRATION.tolist(), "path": str(path)}
    forms["labels"] = {"x": CALIBRATION, "labels": labels}
    found = leanonnx.compress(model, keep=0.5, calib=forms[form], **ANY)
    wanted = leanonnx.compress(model, keep=0.5, calib=path, **ANY)
    assert found.model == wanted.model
    assert (found.deviation and found.deviation.metric) == ("top-1 accuracy" if form == "labels" else None)


def test_plans_are_carried_out_as_values_and_as_files(model: Path) -> None:
    first = leanonnx.compress(model, keep=0.5, **ANY)
    first.plan.save(model.parent / "plan.json")
    for plan in (first.plan, model.parent / "plan.json", str(model.parent / "plan.json")):
        assert leanonnx.compress(model, plan=plan, **ANY).model == first.model


RULES_FILE = """
from leanonnx.rules.call import Unsupported

def own(call):
    raise Unsupported("a rule of my own")

RULES = {("", "Relu"): own}
"""


def test_rules_are_a_table_or_a_file(model: Path) -> None:
    """A rule of one's own that pins; standard rules may be joined."""
    (model.parent / "rules.py").write_text(RULES_FILE)
    own = runpy.run_path(str(model.parent / "rules.py"))["RULES"]
    for rules in (own, DEFAULT_RULES | own, model.parent / "rules.py"):
        pins = leanonnx.analyse(model, rules=rules).pins
        assert {pin.tensor for pin in pins if "a rule of my own" in pin.reason} >= {"r1", "r2"}
        result = leanonnx.compress(model, keep=1.0, rules=rules, **ANY)
        assert result.pins == pins
    with pytest.raises(OptionError, match="RULES"):
        leanonnx.analyse(model, rules={"Relu": own})  # type: ignore[dict-item]


def test_progress_is_reported(model: Path) -> None:
    stages: list[str] = []
    leanonnx.compress(model, keep=0.5, progress=lambda stage, done=None: stages.append(stage), **ANY)
    assert {"load", "observe", "analyse", "select", "operate", "prove"} <= set(stages)


def test_nothing_is_printed(model: Path, capfd: pytest.CaptureFixture[str]) -> None:
    result = leanonnx.compress(model, keep=0.5, **ANY)
    leanonnx.prove(model, result.model, result.plan)
    leanonnx.analyse(model).why("c1")
    with pytest.raises(UserError):
        leanonnx.compress(model)
    assert capfd.readouterr() == ("", "")


# what may be saved, and where


def test_external_data_stay_external(tmp_path: Path) -> None:
    source = saved_external(build(CNN), tmp_path / "model.onnx")
    for name in ("cli", "api"):
        (tmp_path / name).mkdir()
    called_json("compress", source, tmp_path / "cli" / "out.onnx", "--keep", "0.5", "--align", 1)
    result = leanonnx.compress(source, keep=0.5, **ANY)
    result.save(tmp_path / "api" / "out.onnx")
    assert tree(tmp_path / "api") == tree(tmp_path / "cli")
    assert result.model == onnx.load(tmp_path / "cli" / "out.onnx")
    plain = leanonnx.compress(onnx.load(source), keep=0.5, **ANY)
    plain.save(tmp_path / "plain.onnx")
    assert not (tmp_path / "plain.onnx.data").exists()
    np.testing.assert_array_equal(outputs(tmp_path / "plain.onnx"), outputs(tmp_path / "cli" / "out.onnx"))


def test_external_data_that_are_not_loaded(tmp_path: Path) -> None:
    source = saved_external(build(CNN), tmp_path / "model.onnx")
    with pytest.raises(ModelError, match="the model: its external data are not loaded"):
        leanonnx.compress(onnx.load(source, load_external_data=False), keep=0.5)


def test_the_saved_model_is_the_proven_one(model: Path) -> None:
    result = leanonnx.compress(model, keep=0.5, **ANY)
    del result.model.graph.node[:]
    result.save(model.parent / "out.onnx")
    assert leanonnx.prove(model, model.parent / "out.onnx", result.plan).passed


def test_saving_harms_nothing(tmp_path: Path) -> None:
    source = saved_external(build(CNN), tmp_path / "model.onnx")
    result = leanonnx.compress(source, keep=0.5, **ANY)
    before = tree(tmp_path)
    with pytest.raises(OptionError, match="the output is the input"):
        result.save(source)
    with pytest.raises(OptionError, match="overwrite the input"):
        result.save(tmp_path / "weights.bin")
    with pytest.raises(OutputError, match="does not exist"):
        result.save(tmp_path / "none" / "out.onnx")
    with pytest.raises(OutputError, match="does not exist"):
        result.plan.save(tmp_path / "none" / "plan.json")
    with pytest.raises(OutputError, match="no regular file"):
        result.plan.save(tmp_path)
    assert tree(tmp_path) == before


def test_shapes_of_the_result_are_those_of_the_plan(model: Path) -> None:
    result = leanonnx.compress(model, model.parent / "out.onnx", keep=0.5, **ANY)
    shapes = constant_shapes(model.parent / "out.onnx")
    assert {name: entry["after"] for name, entry in result.plan.tensors.items()}.items() <= shapes.items()

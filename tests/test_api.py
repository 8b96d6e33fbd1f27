"""leanonnx in Python: the same as the command line, as values."""

from __future__ import annotations

import doctest
import html
import inspect
import runpy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import typer.main

import leanonnx
from leanonnx import DEFAULT
from leanonnx.api import verbs as api
from leanonnx.cli.main import app
from leanonnx.errors import (
    BudgetUnreachable,
    DataError,
    ModelError,
    OptionError,
    OutputError,
    PlanError,
    Refusal,
    UserError,
)
from tests.helpers import CNN, build, called_json, constant_shapes, outputs, saved, saved_external, tree

ROOT = Path(__file__).parents[1]
ANY = {"align": 1, "measure": False}
"""Options for the networks of tests, which are too small to gain speed: any width, nothing measured."""
CALIBRATION = np.random.default_rng(0).standard_normal((24, 3, 8, 8)).astype(np.float32)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return saved(build(CNN), tmp_path / "model.onnx")


def without_seconds(row: dict[str, Any]) -> dict[str, Any]:
    return {**row, "seconds": sorted(row["seconds"])}


# the same options as the command line

DIFFERENT = {
    "compress": {
        "no_measure": "measure says the same without the negation",
        "json": "to_dict of the result",
        **dict.fromkeys(("mean", "std", "scale", "layout", "size"), "one value: images=ImageFormat(...)"),
    },
    "inspect": {"why": "a method of the result", "json": "to_dict of the result"},
    "bench": {"json": "to_dict of the result"},
}
"""Options of the command line that the functions have otherwise."""
OWN = {
    "compress": {
        "measure": "--no-measure",
        "images": "--mean, --std, --scale, --layout, --size",
        "targets": "a library reads no environment: it is told where calibrate-device stored its table",
        "progress": "the bar of the command line",
    },
    "inspect": {},
    "bench": {"progress": "the bar of the command line"},
}
"""Keywords of the functions that the command line has otherwise."""
FUNCTIONS = {"compress": leanonnx.compress, "inspect": leanonnx.analyse, "bench": leanonnx.bench}


def test_the_page_tells_the_call(model: Path, tmp_path: Path) -> None:
    page, out = tmp_path / "page.html", tmp_path / "small.onnx"
    leanonnx.compress(model, out, keep=0.5, report=page, calib={"x": CALIBRATION}, recover="none", measure=False)
    text = html.unescape(page.read_text())
    assert f"leanonnx.compress('{model}', '{out}', keep=0.5, report=" in text
    assert "recover='none', measure=False)" in text


@pytest.mark.parametrize("verb", FUNCTIONS)
def test_options_are_those_of_the_command_line(verb: str) -> None:
    command = typer.main.get_command(app).commands[verb]  # type: ignore[attr-defined]
    options = [param for param in command.params if param.param_type_name == "option"]
    theirs = {max(param.opts, key=len).lstrip("-").replace("-", "_"): param for param in options}
    theirs.pop("help", None)
    parameters = inspect.signature(FUNCTIONS[verb]).parameters
    ours = {name for name, found in parameters.items() if found.kind is found.KEYWORD_ONLY}
    assert set(theirs) - ours == set(DIFFERENT[verb])
    assert ours - set(theirs) == set(OWN[verb])
    assert len(parameters) - len(ours) == len(command.params) - len(options)


@pytest.mark.parametrize("verb", FUNCTIONS)
def test_defaults_are_those_of_the_command_line(verb: str) -> None:
    """What is empty or given as text there is None or a value here."""
    command = typer.main.get_command(app).commands[verb]  # type: ignore[attr-defined]
    parameters = inspect.signature(FUNCTIONS[verb]).parameters
    for param in command.params:
        name = max(param.opts, key=len).lstrip("-").replace("-", "_")
        if param.param_type_name == "option" and name in parameters:
            default = parameters[name].default
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
def test_result_is_what_the_command_line_writes_and_prints(
    model: Path, options: tuple[str, ...], keywords: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(model.parent)
    np.savez("x.npz", x=CALIBRATION)
    if "--target" in options:
        keywords = {**keywords, "target": "cpu-avx2"}
    row = called_json("compress", model, "cli.onnx", *options, "--plan-out", "cli.json")
    result = leanonnx.compress(model, measure=False, **keywords)
    assert without_seconds(result.to_dict()) == without_seconds(row)
    result.save("api.onnx")
    result.plan.save("api.json")
    assert Path("api.onnx").read_bytes() == Path("cli.onnx").read_bytes()
    assert Path("api.json").read_bytes() == Path("cli.json").read_bytes()


def test_result_tells_what_its_json_tells(model: Path) -> None:
    result = leanonnx.compress(model, keep=0.5, calib=CALIBRATION, **ANY)
    row = result.to_dict()
    for unit in ("kernels", "macs", "params", "bytes"):
        change = getattr(result, unit)
        assert {"before": change.before, "after": change.after, "fraction": change.fraction} == row[unit]
        assert f"{unit} {change.before} → {change.after}" in repr(result)
    assert result.kernels.fraction <= 0.5
    assert (result.pins, list(result.warnings), result.layers) == (row["pins"], row["warnings"], row["layers"])
    assert result.proof.passed
    assert result.latency is None
    assert result.deviation is not None
    assert result.deviation.outputs[0].relative_l2 == row["recovery"]["deviation"]["outputs"]["y"]["relative_l2"]
    assert row["warnings"] and all(
        warning.replace("'", "&#x27;") in result._repr_html_() for warning in row["warnings"]
    )


@pytest.mark.usefixtures("briefly")
def test_measured_time_is_told(model: Path) -> None:
    result = leanonnx.compress(onnx.load(model), keep=0.5, align=1, best_effort=True, threads=1)
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
    for rules in (own, DEFAULT | own, model.parent / "rules.py"):
        pins = leanonnx.analyse(model, rules=rules).pins
        assert {pin["tensor"] for pin in pins if "a rule of my own" in pin["reason"]} >= {"r1", "r2"}
        result = leanonnx.compress(model, keep=1.0, rules=rules, **ANY)
        assert result.pins == pins
    with pytest.raises(OptionError, match="RULES"):
        leanonnx.analyse(model, rules={"Relu": own})  # type: ignore[dict-item]


def test_progress_is_told(model: Path) -> None:
    told: list[str] = []
    leanonnx.compress(model, keep=0.5, progress=lambda stage, done=None: told.append(stage), **ANY)
    assert {"load", "observe", "analyse", "select", "operate", "prove"} <= set(told)


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


def test_what_is_saved_is_what_was_proven(model: Path) -> None:
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


# what is refused


WRONG: dict[str, tuple[dict[str, Any], type[UserError], str]] = {
    "nothing asked": ({}, OptionError, "exactly one of --keep"),
    "two things asked": ({"keep": 0.5, "exact": True}, OptionError, "exactly one of --keep"),
    "fraction": ({"keep": 1.5}, OptionError, "--keep 1.5: expected a fraction"),
    "method": ({"keep": 0.5, "method": "magic"}, OptionError, "--method magic: expected one of auto, lean"),
    "chains": ({"keep": 0.5, "chains": "golden"}, OptionError, "--chains golden"),
    "recover": ({"keep": 0.5, "recover": "magic"}, OptionError, "--recover magic"),
    "provider": ({"keep": 0.5, "provider": "tpu"}, OptionError, "--provider tpu"),
    "threads": ({"keep": 0.5, "threads": -1}, OptionError, "--threads -1"),
    "seed": ({"keep": 0.5, "seed": -1}, OptionError, "--seed -1"),
    "align": ({"keep": 0.5, "align": 0}, OptionError, "--align 0"),
    "align text": ({"keep": 0.5, "align": "wide"}, OptionError, "--align wide"),
    "target": ({"keep": 0.5, "target": "abacus"}, OptionError, "--target abacus"),
    "latency unmeasured": ({"latency": 0.5, "measure": False}, OptionError, "--latency is met by measuring"),
    "shape": ({"keep": 0.5, "shape": {"z": (1,)}}, OptionError, "--shape z: no such graph input"),
    "pin": ({"keep": 0.5, "pin": "ghost"}, OptionError, "--pin ghost"),
    "library": ({"keep": 0.5, "library": "none.so"}, OptionError, "--library none.so: no such file"),
    "rules": ({"keep": 0.5, "rules": "none.py"}, OptionError, "--rules none.py"),
    "plan": ({"plan": "none.json"}, PlanError, "none.json: the plan cannot be read"),
    "plan and pins": ({"plan": "plan", "pin": "c1"}, OptionError, "--pin and --ignore"),
    "exact and calib": ({"exact": True, "calib": CALIBRATION}, OptionError, "--calib has nothing to do"),
    "calib name": ({"keep": 0.5, "calib": {"z": CALIBRATION, "w": CALIBRATION}}, DataError, "no array for input 'x'"),
    "calib shape": ({"keep": 0.5, "calib": CALIBRATION[:, :2]}, DataError, "calib: array 'calib' has the shape"),
    "calib number": ({"keep": 0.5, "calib": {"x": 1.0}}, DataError, "calib: array 'x' has the shape"),
    "no calib": ({"keep": 0.5, "calib": {}}, DataError, "calib: no array for input 'x'"),
    "calib NaN": ({"keep": 0.5, "calib": CALIBRATION * np.nan}, DataError, "calib: sample 0 of input 'x': NaN"),
    "images": (
        {"keep": 0.5, "calib": CALIBRATION, "images": leanonnx.ImageFormat(mean=(0.5,))},
        DataError,
        "calib: no images",
    ),
    "no folder": ({"keep": 0.5, "out": "none/out.onnx"}, OutputError, "does not exist"),
}


@pytest.mark.parametrize("case", WRONG)
@pytest.mark.parametrize("in_memory", [False, True], ids=["path", "model"])
def test_wrong_requests(model: Path, case: str, in_memory: bool) -> None:
    given, kind, says = WRONG[case]
    if given.get("plan") == "plan":
        given = {**given, "plan": leanonnx.compress(model, keep=0.5, **ANY).plan}
    before = tree(model.parent)
    with pytest.raises(kind) as caught:
        leanonnx.compress(onnx.load(model) if in_memory else model, **{"measure": False, **given})
    assert says in str(caught.value)
    assert tree(model.parent) == before


@pytest.mark.parametrize(
    "wrong", [{"mean": ()}, {"std": (0.0,)}, {"scale": 0.0}, {"layout": "chw"}, {"size": (0, 3)}], ids=str
)
def test_wrong_image_formats(wrong: dict[str, Any]) -> None:
    with pytest.raises(OptionError, match=f"^--{next(iter(wrong))} "):
        leanonnx.ImageFormat(**wrong)


def test_no_is_a_refusal(model: Path) -> None:
    with pytest.raises(BudgetUnreachable, match="at least"):
        leanonnx.compress(model, keep=0.001, **ANY)
    assert issubclass(BudgetUnreachable, Refusal) and issubclass(Refusal, leanonnx.LeanOnnxError)


def test_errors_of_models_in_memory_name_no_file(model: Path) -> None:
    broken = onnx.load(model)
    broken.graph.node[0].op_type = "Cnov"
    with pytest.raises(ModelError, match=r"^the model: the ONNX checker refuses the model") as caught:
        leanonnx.compress(broken, keep=0.5)
    assert "/" not in str(caught.value).split(":")[0]
    with pytest.raises(ModelError, match=r"^the model: "):
        leanonnx.analyse(onnx.ModelProto())
    with pytest.raises(ModelError, match=r"none\.onnx: no such file"):
        leanonnx.analyse("none.onnx")


# analyse, prove, bench


def test_analysis_is_what_inspect_prints(model: Path) -> None:
    row = called_json("inspect", model)
    for given in (model, onnx.load(model)):
        found = leanonnx.analyse(given)
        assert found.to_dict() == row
        names = ("kernels", "macs", "params", "bytes", "inputs", "channels", "layers", "ties", "pins")
        assert {name: getattr(found, name) for name in names} == {name: row[name] for name in names}
        assert found.why("r1", 3) == called_json("inspect", model, "--why", "r1:3")
        assert found.why("r1") == called_json("inspect", model, "--why", "r1")
        assert repr(found) == f"<3 layers, {row['kernels']} kernels; 26 channels, 6 of them pinned>"
    with pytest.raises(OptionError, match="--why ghost: no tensor named 'ghost'"):
        found.why("ghost")
    with pytest.raises(OptionError, match="--why r1:8: 'r1' has 8 channels"):
        found.why("r1", 8)


@pytest.mark.parametrize("options", [{"keep": 0.4}, {"exact": True}], ids=["keep", "exact"])
def test_proof_can_be_made_again(tmp_path: Path, options: dict[str, Any]) -> None:
    proto = build(CNN)
    for tensor in proto.graph.initializer:
        if tensor.name in ("w1", "b1"):
            array = onnx.numpy_helper.to_array(tensor).copy()
            array[:2] = 0
            tensor.CopyFrom(onnx.numpy_helper.from_array(array, tensor.name))
    model = saved(proto, tmp_path / "model.onnx")
    result = leanonnx.compress(model, **options, **ANY)
    assert result.kernels.after < result.kernels.before
    found = leanonnx.prove(model, result.model, result.plan)
    assert (found.passed, found.outputs.keys()) == (True, result.proof.outputs.keys())
    assert leanonnx.prove(model, result.model).passed == ("exact" in options)
    assert leanonnx.prove(model, model).passed


def test_proof_tells_what_is_another_network(model: Path) -> None:
    result = leanonnx.compress(model, keep=0.5, **ANY)
    other = leanonnx.compress(model, keep=0.5, method="random", **ANY)
    changed = result.model
    for tensor in changed.graph.initializer:
        if tensor.name == "w2":
            array = onnx.numpy_helper.to_array(tensor) * np.float32(1.01)
            tensor.CopyFrom(onnx.numpy_helper.from_array(array, "w2"))
    for new, plan in ((changed, result.plan), (other.model, result.plan), (model, result.plan)):
        found = leanonnx.prove(model, new, plan)
        assert not found.passed
        assert found.max_relative_error > found.bound


def test_proof_of_what_cannot_be_compared(model: Path, tmp_path: Path) -> None:
    other = build(CNN, seed=1)
    plan = leanonnx.compress(model, keep=0.5, **ANY).plan
    with pytest.raises(PlanError, match="made for another model"):
        leanonnx.prove(other, model, plan)
    renamed = build(CNN.replace(" y)", " z)").replace("y = Gemm", "z = Gemm"))
    with pytest.raises(OptionError, match="its outputs are not those of"):
        leanonnx.prove(model, renamed)
    with pytest.raises(OptionError, match="take the same inputs"):
        leanonnx.prove(model, build(CNN.replace(" x)", " i)").replace("(x,", "(i,")))


def test_proof_of_a_model_that_was_frozen(tmp_path: Path) -> None:
    proto = build(CNN)
    for tensor in proto.graph.initializer:
        proto.graph.input.append(onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims))
    result = leanonnx.compress(proto, keep=0.5, freeze=True, **ANY)
    assert len(result.model.graph.input) == 1
    assert leanonnx.prove(proto, result.model, result.plan).passed


def test_bench_is_what_the_command_line_measures(model: Path) -> None:
    small = leanonnx.compress(model, keep=0.5, **ANY)
    row = called_json("bench", model, model, "--seconds", "0.05", "--threads", "1")
    found = leanonnx.bench(model, small.model, seconds=0.05, threads=1)
    assert found.to_dict().keys() == row.keys()
    assert (found.to_dict()["before"], found.to_dict()["after"]) == (str(model), "the model")
    assert found.to_dict()["fixed"] == row["fixed"]
    assert [result.keys() for result in found.to_dict()["results"]] == [result.keys() for result in row["results"]]
    assert found.cases[0].outcome.words in repr(found)  # type: ignore[union-attr]
    (alone, _) = leanonnx.bench(model, seconds=0.05, threads=[1, 2]).cases
    assert alone.outcome.median > 0  # type: ignore[union-attr]
    for wrong in ({"seconds": 0}, {"batch": 0}, {"threads": -1}, {"cuda_graph": True}, {"seed": -1}):
        with pytest.raises(OptionError, match=f"^--{next(iter(wrong)).replace('_', '-')}"):
            leanonnx.bench(model, **wrong)  # type: ignore[arg-type]


# the package


@pytest.mark.parametrize("function", [api.compress, api.analyse, api.prove, api.bench], ids=lambda f: f.__name__)
def test_examples_in_docstrings(function: Callable[..., object], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    (found,) = doctest.DocTestFinder(recurse=False).find(function, function.__name__, globs=vars(api).copy())
    assert found.examples
    runner = doctest.DocTestRunner()
    runner.run(found)
    assert runner.summarize().failed == 0


def test_types_are_published() -> None:
    assert (Path(leanonnx.__file__).parent / "py.typed").is_file()


def test_shapes_of_the_result_are_those_of_the_plan(model: Path) -> None:
    result = leanonnx.compress(model, model.parent / "out.onnx", keep=0.5, **ANY)
    shapes = constant_shapes(model.parent / "out.onnx")
    assert {name: entry["after"] for name, entry in result.plan.tensors.items()}.items() <= shapes.items()

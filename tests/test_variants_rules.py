"""Rules of the user's own: custom operators with their library, standard rules overruled, and files that are wrong."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import onnx
import pytest

from leanonnx.rules.pointwise import unary
from leanonnx.rules.user import extend_rules
from tests.helpers import CNN, build, called, called_json, cli, constant_shapes, refused, saved
from tests.variants import distance, masked, network, random_feed, run

EXAMPLE = Path(__file__).parents[1] / "docs" / "examples" / "my_rules.py"


def custom() -> onnx.ModelProto:
    """Convolutions around NegPos, which outputs the negative and the positive part of its input."""
    proto = network(
        "(float[N, 3, 8, 8] x) => (float[N, 4, 8, 8] y)",
        "float[16, 3, 3, 3] w1, float[12, 32, 3, 3] w2, float[4, 12, 1, 1] w3",
        """a = Conv <pads = [1, 1, 1, 1]> (x, w1) n, p = ai.onnx.contrib.NegPos (a) c = Concat <axis = 1> (p, n)
        b = Conv <pads = [1, 1, 1, 1]> (c, w2) r = Relu (b) y = Conv (r, w3)""",
        domains=', "ai.onnx.contrib" : 1',
    )
    for name in ("n", "p"):
        proto.graph.value_info.append(onnx.helper.make_tensor_value_info(name, 1, ["N", 16, 8, 8]))
    return proto


@pytest.fixture
def library() -> Path:
    """The library of onnxruntime-extensions."""
    return Path(pytest.importorskip("onnxruntime_extensions").get_library_path())


def test_custom_operator_with_a_rule(tmp_path: Path, library: Path) -> None:
    source, target, plan = saved(custom(), tmp_path / "in.onnx"), tmp_path / "out.onnx", tmp_path / "p.json"
    row = called_json(
        *("compress", source, target, "--keep", 0.5, "--plan-out", plan, "--rules", EXAMPLE, "--library", library)
    )
    assert row["kernels"]["fraction"] <= 0.5
    assert {pin["reason"] for pin in row["pins"]} == {"graph input 'x'", "graph output 'y'"}
    feed = random_feed(custom(), {"N": 2})
    reference = masked(custom(), json.loads(plan.read_text())["tensors"])
    (wanted,), (found,) = (run(proto, feed, [str(library)]) for proto in (reference, onnx.load(target)))
    assert distance(wanted, found) < 1e-4


def test_custom_operator_without_a_rule_is_pinned(tmp_path: Path, library: Path) -> None:
    saved(custom(), tmp_path / "in.onnx")
    done = called("compress", "in.onnx", "out.onnx", "--keep", 0.9, "--library", library, "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    pins = {pin["tensor"]: (pin["reason"], pin["advice"]) for pin in json.loads(done.stdout)["pins"]}
    assert "NegPos 'N' of domain 'ai.onnx.contrib' is an operator without a rule" in pins["a"][0]
    assert "(rules, " in pins["a"][1]
    assert constant_shapes(tmp_path / "out.onnx")["w1"] == [16, 3, 3, 3]


def test_custom_operator_without_its_library(tmp_path: Path) -> None:
    saved(custom(), tmp_path / "in.onnx")
    refused(tmp_path, "compress", "in.onnx", "out.onnx", "--keep", 0.5, says=("NegPos", "--library"))


def test_library_in_the_current_folder(tmp_path: Path, library: Path) -> None:
    """A bare file name means this folder, not the system's libraries."""
    saved(custom(), tmp_path / "in.onnx")
    shutil.copy(library, tmp_path / "ops.so")
    done = called("inspect", "in.onnx", "--library", "ops.so", cwd=tmp_path)
    assert done.returncode == 0, done.stderr


def test_inspect_takes_rules_too(tmp_path: Path, library: Path) -> None:
    source = saved(custom(), tmp_path / "in.onnx")
    done = called("inspect", source, "--library", library, "--rules", EXAMPLE, "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["channels"]["pinned"] == 1 + 4


@pytest.mark.parametrize("given", ["text.so", "nothing.so", "."])
def test_bad_library(given: str, tmp_path: Path) -> None:
    saved(build(CNN), tmp_path / "in.onnx")
    (tmp_path / "text.so").write_text("no library")
    refused(tmp_path, "compress", "in.onnx", "out.onnx", "--keep", 0.5, "--library", given, says=(given,))


HEAD = """
from dataclasses import replace
import numpy as np
from leanonnx.rules.call import *
from leanonnx.rules.table import DEFAULT_RULES

def standard(call):
    return DEFAULT_RULES["", call.op](call)
"""
PINNING = """
def conv(call):
    effect = standard(call)
    if call.name != "C1":
        return effect
    labels = effect.outputs[0]
    return replace(effect, pins=(*effect.pins, Pin(np.unique(labels), call.outputs[0], "it is precious", "ask Ada")))

RULES = {("", "Conv"): conv}
"""


def with_rules(folder: Path, code: str) -> list[object]:
    """Write the model and a rules file; returns the arguments of a compression with them."""
    saved(build(CNN), folder / "in.onnx")
    (folder / "r.py").write_text(HEAD + code)
    return ["compress", "in.onnx", "out.onnx", "--rules", "r.py"]


def test_standard_rule_overruled(tmp_path: Path) -> None:
    """Layers of a given name keep their channels, with the user's reason and advice; others lose more."""
    done = called(*with_rules(tmp_path, PINNING), "--keep", 0.7, "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    pin = next(pin for pin in json.loads(done.stdout)["pins"] if pin["tensor"] == "c1")
    assert (pin["reason"], pin["advice"], pin["channels"]) == ("it is precious", "ask Ada", 8)
    shapes = constant_shapes(tmp_path / "out.onnx")
    assert shapes["w1"] == [8, 3, 3, 3]
    assert shapes["w2"][0] < 12


def test_edits_of_a_rule_are_applied(tmp_path: Path) -> None:
    """The standard rule of a Conv with groups, called by the user's, sets the number of groups that are left."""
    proto = network(
        "(float[1, 3, 8, 8] x) => (float[1, 4, 8, 8] y)",
        "float[8, 3, 1, 1] w1, float[8, 1, 3, 3] w2, float[4, 8, 1, 1] w3",
        "a = Conv (x, w1) b = Conv <group = 8> (a, w2) y = Conv <pads = [1, 1, 1, 1]> (b, w3)",
    )
    arguments = with_rules(tmp_path, 'RULES = {("", "Conv"): standard}')
    saved(proto, tmp_path / "in.onnx")
    done = called(*arguments, "--keep", 0.5, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    made = onnx.load(tmp_path / "out.onnx")
    (groups,) = (a.i for a in made.graph.node[1].attribute if a.name == "group")
    assert groups == constant_shapes(tmp_path / "out.onnx")["w2"][0] < 8


def test_rule_that_does_not_know_the_form(tmp_path: Path) -> None:
    code = (
        'def relu(call):\n    raise Unsupported("only Tanh is allowed here", "ask Ada")\nRULES = {("", "Relu"): relu}'
    )
    refused(tmp_path, *with_rules(tmp_path, code), "--keep", 0.5, code=1, says=("only Tanh is allowed here", "ask Ada"))


def test_wrong_rule_is_caught_by_the_proof(tmp_path: Path) -> None:
    code = 'RULES = {("", "Relu"): lambda call: Effect((call.channel_ids(0)[:, ::-1],))}'
    refused(tmp_path, *with_rules(tmp_path, code), "--keep", 0.5, code=1, says=("differs from the masked original",))


@pytest.mark.parametrize(("domain", "kept"), [("ai.onnx", ""), ("ai.acme", "ai.acme"), ("com.acme", "com.acme")])
def test_rules_are_kept_under_their_domain(domain: str, kept: str) -> None:
    assert (kept, "Scale") in extend_rules({(domain, "Scale"): unary})


RELU = 'RULES = {{("", "Relu"): lambda call: {}}}'
LABELS = "(call.channel_ids(0),)"
WRONG = {
    "no Python": "def (",
    "no table": "TABLE = {}",
    "list for a table": "RULES = []",
    "name for a key": 'RULES = {"Relu": standard}',
    "three names for a key": 'RULES = {("", "Relu", 1): standard}',
    "number for a rule": 'RULES = {("", "Relu"): 3}',
    "no such module": "import nothing_of_that_name",
    "file that exits": "raise SystemExit(0)",
    "rule that exits": "def relu(call):\n    raise SystemExit(0)\nRULES = {('', 'Relu'): relu}",
    "rule that raises": RELU.format("1 / 0"),
    "rule of no argument": 'RULES = {("", "Relu"): lambda: None}',
    "no answer": RELU.format("None"),
    "no outputs": RELU.format("Effect(())"),
    "array for a tuple": RELU.format("Effect(call.channel_ids(0))"),
    "number for labels": RELU.format("Effect((3,))"),
    "labels of floats": RELU.format("Effect((call.channel_ids(0).astype(float),))"),
    "labels never minted": RELU.format("Effect((call.channel_ids(0) + 10000,))"),
    "negative labels": RELU.format("Effect((call.channel_ids(0) * 0 - 1,))"),
    "labels of another rank": RELU.format("Effect((call.channel_ids(0).reshape(-1),))"),
    "labels of another size": RELU.format("Effect((call.channel_ids(0)[:, :3],))"),
    "ties of unequal length": RELU.format(f"Effect({LABELS}, ties=((np.arange(3), np.arange(4)),))"),
    "number for ties": RELU.format(f"Effect({LABELS}, ties=5)"),
    "slice of no input": RELU.format(f"Effect({LABELS}, slices=(Slice(3, {LABELS}),))"),
    "reduction of no input": RELU.format(f"Effect({LABELS}, reductions=(Reduction(3, *{LABELS}),))"),
    "reduction into labels never minted": RELU.format(
        f"Effect({LABELS}, reductions=(Reduction(0, *{LABELS}, np.array([10000])),))"
    ),
    "text for a pin": RELU.format(f"Effect({LABELS}, pins=('x',))"),
    "number for a move": RELU.format(f"Effect({LABELS}, moves=(3,))"),
    "rewrite that raises": RELU.format(f"Effect({LABELS}, rewrite=lambda kept: 1 / 0)"),
    "rewrite that answers a number": RELU.format(f"Effect({LABELS}, rewrite=lambda kept: 7)"),
}


@pytest.mark.parametrize("name", WRONG)
def test_bad_rules_are_the_users_mistake(name: str, tmp_path: Path) -> None:
    """Exit 2 with one line that names the file."""
    refused(tmp_path, *with_rules(tmp_path, WRONG[name]), "--keep", 0.5, says=("--rules", "r.py"))


@pytest.mark.parametrize("given", ["nothing.py", ".", "in.onnx"])
def test_no_rules_file(given: str, tmp_path: Path) -> None:
    saved(build(CNN), tmp_path / "in.onnx")
    refused(tmp_path, "compress", "in.onnx", "out.onnx", "--keep", 0.5, "--rules", given, says=("--rules", given))


def test_rules_run_only_where_they_are_named(tmp_path: Path) -> None:
    """Neither the folder, nor the model, nor a plan made with rules can make leanonnx run code."""
    arguments = with_rules(tmp_path, f"open({str(tmp_path / 'was_run')!r}, 'w').close()\nRULES = {{}}")
    for name in ("RULES.py", "rules.py", "conftest.py", "sitecustomize.py"):
        shutil.copy(tmp_path / "r.py", tmp_path / name)
    proto = build(CNN)
    onnx.helper.set_model_props(proto, {"rules": "r.py", "--rules": str(tmp_path / "r.py")})
    saved(proto, tmp_path / "in.onnx")
    plain = ["compress", "in.onnx", "out.onnx", "--keep", 0.5]
    assert cli(*plain, cwd=tmp_path).returncode == 0
    assert not (tmp_path / "was_run").exists()
    assert called(*arguments, "--keep", 0.5, "--plan-out", "p.json", cwd=tmp_path).returncode == 0
    assert (tmp_path / "was_run").exists()
    (tmp_path / "was_run").unlink()
    assert called("compress", "in.onnx", "again.onnx", "--plan", "p.json", cwd=tmp_path).returncode == 0
    assert not (tmp_path / "was_run").exists()


def test_output_of_a_rules_file_is_no_result(tmp_path: Path) -> None:
    arguments = with_rules(tmp_path, "import os\nprint('said')\nos.write(1, b'written')\nRULES = {}")
    done = cli(*arguments, "--keep", 0.5, "--json", cwd=tmp_path)
    assert json.loads(done.stdout)["proof"]["status"] == "passed"
    assert "said" in done.stderr

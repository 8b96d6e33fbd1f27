"""The command line as scripts rely on it: verbs, options, JSON, exit codes, and the files that come out."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from itertools import product
from pathlib import Path
from platform import python_version
from types import ModuleType
from typing import get_args

import numpy as np
import onnx
import onnxruntime as ort
import pytest

import leanonnx
from leanonnx.ranking.criteria import Chains, Method
from tests.helpers import (
    CNN,
    build,
    called,
    called_json,
    cli,
    cli_json,
    compressed,
    constant_shapes,
    outputs,
    saved,
    saved_external,
)

KERNELS = {"w1": 8 * 3, "w2": 12 * 8, "w3": 5 * 12}
TOTAL = sum(KERNELS.values())
METHODS = [
    (method, chains)
    for method, chains in product(get_args(Method), get_args(Chains))
    if method == "lean" or chains == "cover"
]


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return saved(build(CNN), tmp_path / "model.onnx")


def kernels(path: Path) -> int:
    """Kernels of a compressed CNN, counted on the file."""
    shapes = constant_shapes(path)
    return sum(shapes[name][0] * shapes[name][1] for name in KERNELS)


# compress: what is printed


def test_json_of_compress(model: Path) -> None:
    """One object with everything that scripts may read; its numbers are those of the files."""
    out = model.parent / "out.onnx"
    row = cli_json("compress", model, out, "--keep", "0.5", "--no-measure")
    assert row["schema"] == 1
    assert row["latency"] is None
    assert row["warnings"] == []
    for unit in ("kernels", "macs", "params", "bytes"):
        change = row[unit]
        assert 0 < change["after"] < change["before"]
        assert change["fraction"] == pytest.approx(change["after"] / change["before"], abs=1e-6)
    assert row["kernels"]["before"] == TOTAL
    assert row["kernels"]["after"] == kernels(out) <= TOTAL / 2
    assert row["bytes"]["before"] == model.stat().st_size
    assert row["bytes"]["after"] == out.stat().st_size
    assert row["proof"]["status"] == "passed"
    assert 0 <= row["proof"]["max_relative_error"] <= 1e-4
    assert row["proof"]["inputs"] >= 1
    assert {"tensor": "y", "channels": 5, "reason": "graph output 'y'"}.items() <= row["pins"][0].items()
    assert all(pin["reason"] for pin in row["pins"])
    assert {"load", "prove"} <= set(row["seconds"])
    assert all(value >= 0 for value in row["seconds"].values())


def test_native_warnings_stay_out_of_stdout(tmp_path: Path) -> None:
    """onnx's checker writes a warning of experimental operators to file descriptor 1 itself."""
    text = CNN.replace('"" : 17', '"" : 7').replace("(x, w1, b1)", "(s, w1, b1)")
    proto = build(text.replace("{\n", "{\n    s = ImageScaler <scale = 0.5, bias = [0.1, 0.2, 0.3]> (x)\n", 1))
    done = cli("compress", saved(proto, tmp_path / "old.onnx"), tmp_path / "out.onnx", "--keep", "0.5", "--json")
    assert done.returncode == 0, done.stderr
    assert "experimental" in done.stderr
    assert json.loads(done.stdout)["proof"]["status"] == "passed"
    assert done.stdout.startswith("{")


def test_text_of_compress(model: Path) -> None:
    done = called("compress", model, model.parent / "out.onnx", "--keep", "0.5")
    assert (done.returncode, done.stderr) == (0, "")
    after = kernels(model.parent / "out.onnx")
    line = next(line for line in done.stdout.splitlines() if line.strip().startswith("kernels"))
    assert [str(TOTAL), str(after), f"{after / TOTAL:.4f}"] == line.split()[1:4]
    for text in ("Proof PASSED", "graph input 'x'", "graph output 'y'", "C1", "C2"):
        assert text in done.stdout


# compress: the budget


@pytest.mark.parametrize("unit", ["keep", "macs", "params"])
@pytest.mark.parametrize("fraction", [0.2, 0.75])
def test_budgets_are_kept(model: Path, unit: str, fraction: float) -> None:
    row = called_json("compress", model, model.parent / "out.onnx", f"--{unit}", fraction)
    change = row["kernels" if unit == "keep" else unit]
    assert change["after"] <= fraction * change["before"]
    assert change["after"] > 0.5 * fraction * change["before"]


@pytest.mark.parametrize(("method", "chains"), METHODS)
def test_methods(model: Path, method: str, chains: str) -> None:
    out, calib = model.parent / "out.onnx", ()
    if method == "path-mass":
        calib = ("--calib", model.parent / "x.npz")
        np.savez(calib[1], x=np.random.default_rng(0).standard_normal((10, 3, 8, 8)).astype(np.float32))
    row = called_json("compress", model, out, "--keep", "0.5", "--method", method, "--chains", chains, *calib)
    assert row["proof"]["status"] == "passed"
    assert 0 < kernels(out) <= TOTAL / 2
    assert [value.shape for value in outputs(out)] == [(1, 5)]


def test_methods_choose_differently(model: Path) -> None:
    found = {method: compressed(model, model.parent / "out.onnx", method=method).plan for method in ("lean", "random")}
    assert found["lean"].tensors != found["random"].tensors


def test_seed(model: Path) -> None:
    """A seed names one random choice."""
    found = [
        compressed(model, model.parent / "out.onnx", method="random", seed=seed).plan.tensors for seed in (0, 1, 0, 2)
    ]
    assert found[0] == found[2]
    assert not found[0] == found[1] == found[3]


def test_unreachable_budget_names_the_lowest_reachable(model: Path) -> None:
    """The fraction in the message is one that can indeed be reached, and nothing below it can."""
    out = model.parent / "out.onnx"
    done = cli("compress", model, out, "--keep", "0.001")
    assert (done.returncode, done.stdout) == (1, "")
    assert "0.001 of the kernels was asked for" in done.stderr
    assert not out.exists()
    lowest = done.stderr.split("at least ")[1].split(",")[0]
    assert called_json("compress", model, out, "--keep", lowest)["kernels"]["fraction"] <= float(lowest)
    below = called("compress", model, model.parent / "below.onnx", "--keep", float(lowest) - 0.001)
    assert below.returncode == 1


def test_best_effort_writes_the_lowest_and_warns(model: Path) -> None:
    out = model.parent / "out.onnx"
    row = called_json("compress", model, out, "--keep", "0.001", "--best-effort")
    assert len(row["warnings"]) == 1
    assert f"{row['kernels']['fraction']:.4f} of the kernels is the lowest reachable" in row["warnings"][0]
    assert row["kernels"]["after"] == kernels(out) == 3 + 1 + 5
    text = called("compress", model, out, "--keep", "0.001", "--best-effort").stdout
    assert row["warnings"][0][:40] in text


def test_best_effort_where_nothing_can_go(tmp_path: Path) -> None:
    text = '<ir_version: 8, opset_import: ["" : 17]> g (float[1, 3] x) => (float[1, 3] y) { y = Relu (x) }'
    source = saved(build(text), tmp_path / "relu.onnx")
    row = called_json("compress", source, tmp_path / "out.onnx", "--keep", "0.5", "--best-effort")
    assert any("the output equals the input" in warning for warning in row["warnings"])
    assert (tmp_path / "out.onnx").read_bytes() == source.read_bytes()


# compress: what may not be removed


@pytest.mark.parametrize("name", ["c1", "r1", "C1"])
def test_pin_keeps_all_channels(model: Path, name: str) -> None:
    """A tensor, one that shares its channels, or the node that puts it out."""
    out = model.parent / "out.onnx"
    called_json("compress", model, out, "--keep", "0.4", "--pin", name)
    shapes = constant_shapes(out)
    assert shapes["w1"] == [8, 3, 3, 3]
    assert shapes["w2"][0] < 12
    assert shapes["w2"][1] == 8
    assert kernels(out) <= 0.4 * TOTAL


@pytest.mark.parametrize("name", ["C2", "c2"])
def test_ignored_layer_keeps_its_outputs_and_is_not_counted(model: Path, name: str) -> None:
    row = called_json("compress", model, model.parent / "out.onnx", "--keep", "0.9", "--ignore", name)
    shapes = constant_shapes(model.parent / "out.onnx")
    assert row["kernels"]["before"] == TOTAL - KERNELS["w2"]
    assert shapes["w2"] == [12, shapes["w1"][0], 3, 3]
    assert shapes["w1"][0] < 8


def test_ignored_layer_leaves_the_rest_to_be_pruned(tmp_path: Path) -> None:
    text = """<ir_version: 8, opset_import: ["" : 17]> g (float[1, 3, 8, 8] x) => (float[1, 4, 8, 8] y)
    <float[9, 3, 1, 1] w1, float[9, 9, 1, 1] w2, float[9, 9, 1, 1] w3, float[4, 9, 1, 1] w4>
    { a = Conv (x, w1) b = Conv (a, w2) c = Conv (b, w3) y = Conv (c, w4) }"""
    source = saved(build(text), tmp_path / "model.onnx")
    row = called_json("compress", source, tmp_path / "out.onnx", "--keep", "0.6", "--ignore", "Y")
    shapes = constant_shapes(tmp_path / "out.onnx")
    assert shapes["w4"] == [4, shapes["w3"][0], 1, 1]
    assert row["kernels"]["before"] == 9 * 3 + 9 * 9 + 9 * 9
    assert sum(shapes[name][0] * shapes[name][1] for name in ("w1", "w2", "w3")) == row["kernels"]["after"]
    assert row["kernels"]["after"] <= 0.6 * row["kernels"]["before"]


# compress: plans


def test_replay_of_a_plan_gives_the_same_bytes(model: Path) -> None:
    folder = model.parent
    args = ("compress", model, folder / "a.onnx", "--keep", "0.5", "--plan-out", folder / "a.json")
    first = called_json(*args)
    again = called_json(
        "compress", model, folder / "b.onnx", "--plan", folder / "a.json", "--plan-out", folder / "b.json"
    )
    assert (folder / "a.onnx").read_bytes() == (folder / "b.onnx").read_bytes()
    assert first["kernels"] == again["kernels"]
    plans = [json.loads((folder / name).read_text()) for name in ("a.json", "b.json")]
    assert plans[0]["tensors"] == plans[1]["tensors"]
    assert {"input_sha256", "options", "tensors"} <= set(plans[0])


def test_plan_tells_how_to_slice(model: Path) -> None:
    """The kept indices, applied to the input's constants, give the output's constants."""
    folder = model.parent
    called_json("compress", model, folder / "out.onnx", "--keep", "0.5", "--plan-out", folder / "plan.json")
    before, after = (
        {t.name: onnx.numpy_helper.to_array(t) for t in onnx.load(path).graph.initializer}
        for path in (model, folder / "out.onnx")
    )
    for name, entry in json.loads((folder / "plan.json").read_text())["tensors"].items():
        array = before[name]
        assert list(array.shape) == entry["before"]
        for axis, kept in enumerate(entry["kept"]):
            array = array if kept is None else np.take(array, kept, axis)
        assert list(array.shape) == entry["after"]
        np.testing.assert_array_equal(array, after[name])


def test_same_request_same_bytes(model: Path) -> None:
    """In another process, where Python orders its sets otherwise, too."""
    folder = model.parent
    for name, run in (("a", cli), ("b", called)):
        args = ("--keep", "0.5", "--plan-out", folder / f"{name}.json")
        assert run("compress", model, folder / f"{name}.onnx", *args).returncode == 0
    for suffix in ("onnx", "json"):
        assert (folder / f"a.{suffix}").read_bytes() == (folder / f"b.{suffix}").read_bytes()


# compress: what stays as it was


def test_external_data_stay_external(tmp_path: Path) -> None:
    """The data lie in OUT.data beside OUT, also where OUT is in another folder, and both can be moved together."""
    source = saved_external(build(CNN), tmp_path / "model.onnx")
    plain = saved(build(CNN), tmp_path / "plain.onnx")
    compressed(plain, tmp_path / "plain_out.onnx")
    for folder in (tmp_path / "there", tmp_path / "moved"):
        folder.mkdir()
    row = called_json("compress", source, tmp_path / "there" / "out.onnx", "--keep", "0.5", "--align", 1)
    assert {p.name for p in (tmp_path / "there").iterdir()} == {"out.onnx", "out.onnx.data"}
    assert row["bytes"]["after"] == sum(p.stat().st_size for p in (tmp_path / "there").iterdir())
    assert row["bytes"]["before"] == source.stat().st_size + (tmp_path / "weights.bin").stat().st_size
    for file in ("out.onnx", "out.onnx.data"):
        shutil.move(tmp_path / "there" / file, tmp_path / "moved" / file)
    np.testing.assert_array_equal(outputs(tmp_path / "moved" / "out.onnx"), outputs(tmp_path / "plain_out.onnx"))


def test_external_data_of_an_unchanged_model(tmp_path: Path) -> None:
    source = saved_external(build(CNN), tmp_path / "model.onnx")
    there = tmp_path / "there"
    there.mkdir()
    (there / "weights.bin").write_bytes(b"of another model")
    compressed(source, there / "out.onnx", keep=1.0)
    assert (there / "weights.bin").read_bytes() == b"of another model"
    np.testing.assert_array_equal(outputs(there / "out.onnx"), outputs(source))


def test_older_output_is_replaced(tmp_path: Path) -> None:
    source = saved_external(build(CNN), tmp_path / "model.onnx")
    out = tmp_path / "out.onnx"
    compressed(source, out, keep=0.9)
    compressed(source, out, keep=0.3)
    assert kernels(out) <= 0.3 * TOTAL
    assert len(outputs(out)) == 1
    assert not list(tmp_path.glob(".*"))


def test_constants_listed_as_inputs(tmp_path: Path) -> None:
    """Before IR version 4 every initializer was a graph input too; the real input stays the only one to feed."""
    proto = build(CNN.replace("ir_version: 8", "ir_version: 3").replace('"" : 17', '"" : 7'))
    for tensor in proto.graph.initializer:
        proto.graph.input.append(onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims))
    out = tmp_path / "out.onnx"
    compressed(saved(proto, tmp_path / "model.onnx"), out)
    after = onnx.load(out)
    declared = {v.name: [d.dim_value for d in v.type.tensor_type.shape.dim] for v in after.graph.input}
    assert declared == {"x": [1, 3, 8, 8], **constant_shapes(out)}
    assert after.ir_version == 3
    onnx.checker.check_model(after, full_check=True)
    assert len(outputs(out)) == 1


def test_interface_and_metadata_are_kept(tmp_path: Path) -> None:
    proto = build(CNN.replace("float[1, 3, 8, 8]", "float[N, 3, 8, 8]").replace("float[1, 5]", "float[N, 5]"))
    onnx.helper.set_model_props(proto, {"author": "someone", "classes": "a,b"})
    proto.producer_name, proto.doc_string, proto.graph.doc_string = "exporter", "about the model", "about the graph"
    out = tmp_path / "out.onnx"
    compressed(saved(proto, tmp_path / "model.onnx"), out)
    after = onnx.load(out)
    for name in ("ir_version", "producer_name", "doc_string", "opset_import", "metadata_props"):
        assert getattr(after, name) == getattr(proto, name), name
    for name in ("name", "doc_string", "input", "output"):
        assert getattr(after.graph, name) == getattr(proto.graph, name), name
    assert [n.name for n in after.graph.node] == [n.name for n in proto.graph.node]


def test_paths_with_blanks_and_umlauts(tmp_path: Path) -> None:
    folder = tmp_path / "größe 2"
    folder.mkdir()
    saved(build(CNN), folder / "mein netz.onnx")
    done = cli("compress", "mein netz.onnx", "klein 😀.onnx", "--keep", "0.5", cwd=folder)
    assert done.returncode == 0, done.stderr
    assert kernels(folder / "klein 😀.onnx") <= TOTAL / 2


# inspect


def test_inspect(model: Path) -> None:
    row = called_json("inspect", model)
    assert (row["schema"], row["kernels"]) == (1, TOTAL)
    assert row["params"] == sum(int(np.prod(shape)) for shape in constant_shapes(model).values())
    assert [(layer["name"], layer["operator"]) for layer in row["layers"]] == [
        ("C1", "Conv"),
        ("C2", "Conv"),
        ("Y", "Gemm"),
    ]
    done = cli("inspect", model)
    assert (done.returncode, done.stderr) == (0, "")
    for text in ("C1", "C2", "kernels", str(TOTAL), "graph output 'y'"):
        assert text in done.stdout


def test_inspect_shows_ties(tmp_path: Path) -> None:
    text = """<ir_version: 8, opset_import: ["" : 17]> g (float[1, 3, 8, 8] x) => (float[1, 4, 8, 8] y)
    <float[9, 3, 1, 1] w1, float[9, 9, 1, 1] w2, float[4, 9, 1, 1] w3>
    { a = Conv (x, w1) b = Conv (a, w2) s = Add (a, b) y = Conv (s, w3) }"""
    row = called_json("inspect", saved(build(text), tmp_path / "model.onnx"))
    assert row["ties"] == [{"layers": ["A", "B"], "classes": 9}]


def test_why(model: Path) -> None:
    row = called_json("inspect", model, "--why", "r1")
    assert (row["tensor"], row["shape"], row["channels"], row["channel_axes"]) == ("r1", [1, 8, 8, 8], 8, [1])
    assert called_json("inspect", model, "--why", "r1:3")["channels"] == 1
    done = called("inspect", model, "--why", "y:2")
    assert done.returncode == 0
    assert "graph output 'y'" in done.stdout


# the rest of the command line


def test_version() -> None:
    """One line for each, leanonnx first; onnxruntime with the providers that it has."""
    done = cli("--version")
    assert (done.returncode, done.stderr) == (0, "")
    first, *others = done.stdout.splitlines()
    assert first == f"leanonnx {leanonnx.__version__}"
    runtime = f"onnxruntime {ort.__version__} ({', '.join(ort.get_available_providers())})"
    assert others == [f"onnx {onnx.__version__}", runtime, f"numpy {np.__version__}", f"Python {python_version()}"]
    row = called_json("--version")
    assert row["providers"] == ort.get_available_providers()
    wanted = {"schema": 1, "leanonnx": leanonnx.__version__, "python": python_version(), "numpy": np.__version__}
    assert wanted.items() <= row.items()


@pytest.mark.parametrize("args", [("--json",), ("--json", "inspect", "model.onnx")], ids=" ".join)
def test_json_of_no_verb(args: tuple[str, ...]) -> None:
    done = called(*args)
    assert (done.returncode, done.stdout) == (2, "")
    assert "--json" in done.stderr.splitlines()[-1]


COMPLETIONS = [
    (("",), {"compress", "inspect", "bench", "check", "sweep", "finetune", "calibrate-device"}),
    (("co",), {"compress"}),
    (("compress", "--met"), {"--method"}),
    (("compress", "--method", "path"), {"path-mass"}),
    (("bench", "--provider", ""), {"cpu", "cuda", "tensorrt"}),
]


@pytest.mark.parametrize(("words", "found"), COMPLETIONS, ids=[" ".join(words) for words, _ in COMPLETIONS])
@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion(shell: str, words: tuple[str, ...], found: set[str]) -> None:
    """What the shells ask the command, by the protocol that ``--install-completion`` installs, and what it answers."""
    line = " ".join(("leanonnx", *words))
    asked = {"COMP_WORDS": line.replace(" ", "\n"), "COMP_CWORD": str(len(words))}
    asked |= {"_TYPER_COMPLETE_ARGS": line, "_TYPER_COMPLETE_FISH_ACTION": "get-args"}
    asked["_LEANONNX_COMPLETE"] = f"complete_{shell}"
    done = cli(env=asked) if words == ("",) else called(env={**asked, "TERMINAL_WIDTH": "1000"})
    assert (done.returncode, done.stderr) == (0, "")
    if shell == "zsh":
        answered = set(re.findall(r'^(?:_arguments .*\(\()?"([^"]+)"', done.stdout, re.MULTILINE))
    else:
        answered = {text.partition("\t")[0] for text in done.stdout.splitlines()}
    assert answered == found


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_script(shell: str) -> None:
    done = called(env={"_LEANONNX_COMPLETE": f"source_{shell}"})
    assert (done.returncode, done.stderr) == (0, "")
    assert f"_LEANONNX_COMPLETE=complete_{shell}" in done.stdout


HELP = {
    "": "bench check compress inspect --version",
    "bench": "--provider --threads --batch --shape --seconds --library --cuda-graph --tf32 --seed --json",
    "check": "--max-deviation --min-agreement --min-speedup --max-latency-ms --max-bytes --max-params --max-macs "
    "--gates --data --provider --skip-missing-provider --threads --batch --shape --seconds --library --seed --junit "
    "--github --json",
    "inspect": "--why --shape --json",
    "compress": "--keep --macs --params --method --chains --shape --pin --ignore --plan --plan-out --report --recover "
    "--best-effort --no-measure --seed --json",
}


@pytest.mark.parametrize("verb", HELP)
def test_help(verb: str) -> None:
    done = called(*verb.split(), "--help")
    assert done.returncode == 0
    assert done.stderr == ""
    assert [option for option in HELP[verb].split() if option not in done.stdout] == []


def test_public_names() -> None:
    """``__all__`` lists just what importing leanonnx gives."""
    given = {n for n, v in vars(leanonnx).items() if not n.startswith("_") and not isinstance(v, ModuleType)}
    assert given | {"__version__"} == set(leanonnx.__all__)
    assert len(set(leanonnx.__all__)) == len(leanonnx.__all__)


def test_import_needs_no_torch() -> None:
    script = "import sys; sys.modules['torch'] = None; import leanonnx, leanonnx.cli.main; print(leanonnx.__version__)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.strip()) == (0, leanonnx.__version__), done.stderr

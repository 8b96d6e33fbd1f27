"""``compress --int8``: files that run in integers, equal to their simulation; layers stay float for a reason."""

from __future__ import annotations

import itertools
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import leanonnx
from leanonnx.commands.compress import quantising, timing
from leanonnx.errors import LeanOnnxError, ModelError, OptionError
from leanonnx.graph.nodes import is_quantised
from leanonnx.hardware.targets import builtin_hardware, tables_text
from leanonnx.quantization import choice, formats, preparation
from leanonnx.quantization.agreement import MAX_STEPS, steps_from_simulation
from leanonnx.quantization.choice import MAX_ADDED_ERROR
from leanonnx.quantization.formats import Int8Format, int8_format
from leanonnx.quantization.kernels import KernelLayer
from leanonnx.quantization.layers import carriers_between, weighted_layers
from leanonnx.quantization.preparation import prepare, relative_difference
from leanonnx.quantization.qdq import quantised_model
from leanonnx.quantization.ranges import observe_activations, ranges_by
from leanonnx.quantization.simulation import simulation_of
from leanonnx.quantization.weights import nearest_weights
from leanonnx.runtime.sessions import RunFailed, run
from tests import graphs
from tests.calibrated import analysed, net, normal_feeds
from tests.helpers import CALIBRATION, CNN, build, called, called_json, refused, saved
from tests.made_up_times import comparison

FASTER = "cpu-avx512"
"""A target in whose table most layers are faster in integers, whatever processor the tests run on."""
RANDOM_GRAPHS = 50
"""Number of random graphs that are quantised."""
INTEGER_TYPES = {TensorProto.INT8, TensorProto.UINT8}
BLOCKS = net(
    "(float[N, 3, 16, 16] x) => (float[N, 5] y)",
    "float[8,3,3,3] w1, float[8] b1, float[8,1,3,3] w2, float[8,8,1,1] w3, float[5,8] w4, float[5] b4, "
    "float[8] g, float[8] b, float[8] m, float zero = {0.0}, float six = {6.0}",
    "h1 = Conv <pads = [1,1,1,1]> (x, w1, b1) h2 = Clip (h1, zero, six) "
    "h3 = Conv <group = 8, pads = [1,1,1,1]> (h2, w2) h4 = Relu (h3) h5 = Conv (h4, w3) "
    "h6 = Add (h5, h2) h7 = Relu (h6) h8 = GlobalAveragePool (h7) h9 = Flatten (h8) "
    "y = Gemm <transB = 1> (h9, w4, b4)",
)
"""Convolution, Clip, depthwise convolution, residual sum, pooling and matrix product."""


@pytest.fixture
def small(tmp_path: Path) -> Path:
    """A folder with a network and its inputs."""
    saved(build(CNN), tmp_path / "m.onnx")
    np.savez(tmp_path / "x.npz", x=CALIBRATION)
    return tmp_path


def samples_for(proto: onnx.ModelProto, count: int = 24) -> dict[str, Any]:
    """Normal inputs of a model, by name [count, ...]."""
    dag = analysed(proto)
    feeds = normal_feeds(dag, count)
    fixed = {v.name: v.type.tensor_type.shape.dim[0].HasField("dim_value") for v in dag.model.inputs}
    stack = {True: np.stack, False: np.concatenate}
    return {name: stack[fixed[name]]([feed[name] for feed in feeds]) for name in feeds[0]}


def int8_row(folder: Path, *words: object) -> dict[str, Any]:
    """What the report says on integers."""
    data = ("--int8", "--calib", folder / "x.npz", "--target", FASTER, *words)
    row: dict[str, Any] = called_json("compress", folder / "m.onnx", folder / "o.onnx", *data)["int8"]
    return row


def integers_of(proto: onnx.ModelProto) -> dict[str, onnx.TensorProto]:
    return {tensor.name: tensor for tensor in proto.graph.initializer if tensor.data_type in INTEGER_TYPES}


# From end to end


@pytest.mark.parametrize("budget", [(), ("--keep", 0.5), ("--max-deviation", 9)])
def test_the_result_computes_in_integers_and_stays_near(small: Path, budget: tuple[object, ...]) -> None:
    row = int8_row(small, "--align", 1, *budget)
    assert row["kept"] and row["reason"] is None
    assert 0 < row["added_error"] <= MAX_ADDED_ERROR
    assert {layer["format"] for layer in row["layers"]} == {"int8"}
    assert row["simulation_steps"] <= MAX_STEPS
    assert row["after"]["outputs"]["y"]["relative_l2"] < row["before"]["outputs"]["y"]["relative_l2"] + 0.1
    written = onnx.load(small / "o.onnx")
    assert [len(t.dims) for t in integers_of(written).values()].count(4) == 2
    assert [v.name for v in written.graph.input] == ["x"] and [v.name for v in written.graph.output] == ["y"]
    feed = {"x": CALIBRATION[:1]}
    wanted, computed = (run(small / name, [feed], optimise=False)[0][0] for name in ("m.onnx", "o.onnx"))
    assert budget or relative_difference(wanted, computed) < 0.1


def test_the_terminal_and_the_page_say_what_is_in_integers(small: Path) -> None:
    done = called("compress", "m.onnx", "o.onnx", "--int8", "--calib", "x.npz", "--report", "r.html", cwd=small)
    assert done.returncode == 0, done.stderr
    assert "In 8-bit integers: 3 of 3 layers" in " ".join(done.stdout.split())
    page = (small / "r.html").read_text(encoding="utf-8")
    assert "In 8-bit integers: 3 of 3 layers" in page
    assert "before and after the network was put into 8-bit integers" in " ".join(page.split())
    assert "is not known: none were given" not in page


@pytest.mark.parametrize("budget", [{}, {"keep": 0.5, "align": 1}])
def test_the_deviation_is_that_of_the_integers(small: Path, budget: dict[str, Any]) -> None:
    data = {"x": CALIBRATION}
    result = leanonnx.compress(small / "m.onnx", small / "o.onnx", int8=True, calib=data, **budget)
    assert result.deviation is not None and result.report.quantisation is not None
    after = result.report.quantisation.after
    assert after is not None and result.deviation.outputs[0].relative_l2 == after.outputs["y"].relative_l2
    floats = leanonnx.compress(small / "m.onnx", small / "f.onnx", calib=data, **(budget or {"keep": 1.0}))
    assert floats.deviation is None or floats.deviation.outputs[0].relative_l2 != after.outputs["y"].relative_l2


def test_a_sweep_compares_the_integers_with_the_original(small: Path) -> None:
    words = ("--keep", "0.9,0.5", "--calib", small / "x.npz", "--align", 1, "--no-measure", "--save-models")
    points, floats = (
        called_json("sweep", small / "m.onnx", "--out", small / name, *words, *more)["models"][0]["points"]
        for name, more in (("s", ["--int8"]), ("f", []))
    )
    models = sorted((small / "s" / "models").glob("*.onnx"))
    assert len(points) == len(models) == 2
    assert all(integers_of(onnx.load(path)) for path in models)
    pairs = zip(points, floats, strict=True)
    assert all(a["deviation"]["outputs"] != b["deviation"]["outputs"] for a, b in pairs)


def test_python_has_the_same_option_and_the_plan_records_it(small: Path) -> None:
    data = {"x": CALIBRATION}
    result = leanonnx.compress(small / "m.onnx", small / "o.onnx", int8=True, calib=data, plan_out=small / "p.json")
    assert integers_of(onnx.load(small / "o.onnx")) and result.proof.passed
    again = leanonnx.compress(small / "m.onnx", small / "a.onnx", plan=small / "p.json", calib=data)
    assert integers_of(onnx.load(small / "a.onnx")) and again.proof.passed
    floats = leanonnx.compress(small / "m.onnx", small / "f.onnx", plan=small / "p.json")
    assert not integers_of(onnx.load(small / "f.onnx"))
    assert any("was made with" in text and "this result is float" in text for text in floats.warnings)


def test_layers_that_the_table_calls_slower_stay_float(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    saved(BLOCKS, tmp_path / "m.onnx")
    np.savez(tmp_path / "x.npz", **samples_for(BLOCKS))
    free = replace(builtin_hardware()["cpu-avx2"], int8_block=1, int8_convert=1e-6, node=1e-6)
    quick = replace(free, name="quick", int8_depthwise=1e4)
    tables = quick, replace(quick, name="slow", int8_depthwise=0.024)
    (tmp_path / "targets.toml").write_text(tables_text(tables, "Tables."), encoding="utf-8")
    monkeypatch.setenv("LEANONNX_TARGETS", str(tmp_path / "targets.toml"))
    assert {layer["reason"] for layer in int8_row(tmp_path, "--target", "quick")["layers"]} == {None}
    row = int8_row(tmp_path, "--target", "slow")
    reasons = {layer["name"]: layer["reason"] for layer in row["layers"] if layer["format"] == "float32"}
    assert list(reasons.values()) == ["slower in integers by the table of slow: 0.001 of the float speed"]
    assert row["kept"] and len(row["layers"]) == 4


@pytest.mark.parametrize(
    ("fraction", "waited", "kept", "says"),
    [(0.5, 0.0, True, ""), (1.2, 0.0, False, "it is not faster"), (1.0, 0.9, False, "the machine was busy")],
)
def test_floats_are_kept_if_integers_are_not_faster(
    small: Path, monkeypatch: pytest.MonkeyPatch, fraction: float, waited: float, kept: bool, says: str
) -> None:
    measured = comparison(fraction, waited=waited)
    monkeypatch.setattr(quantising, "compare_in_subprocess", lambda *_: measured)
    monkeypatch.setattr(timing, "compare_in_subprocess", lambda *_: comparison(0.5))
    monkeypatch.setattr(timing, "profile_in_subprocess", lambda *_: [()])
    data = {"x": CALIBRATION}
    result = leanonnx.compress(small / "m.onnx", small / "o.onnx", int8=True, calib=data, measure=True)
    assert bool(integers_of(onnx.load(small / "o.onnx"))) == kept
    assert any(says in text and "the float network was kept" in text for text in result.warnings) == (not kept)
    assert (result.latency is not None) == kept  # against the original, though no channel was removed
    if not kept:
        assert (small / "o.onnx").read_bytes() == (small / "m.onnx").read_bytes()


@pytest.mark.parametrize(
    ("step", "error", "code"),
    [
        ("check_model", ModelError("m.onnx: the ONNX checker refuses the model: Unable to open proto file"), 2),
        ("steps_from_simulation", RunFailed("INVALID_PROTOBUF: Protobuf parsing failed."), 2),
        ("choose_int8", RunFailed("INVALID_PROTOBUF: Protobuf parsing failed."), 2),
        ("steps_from_simulation", RunFailed("NOT_IMPLEMENTED: no kernel"), 0),
    ],
)
def test_a_failing_disk_does_not_make_the_result_float(
    small: Path, monkeypatch: pytest.MonkeyPatch, step: str, error: Exception, code: int
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error

    np.savez(small / "x.npz", x=CALIBRATION)
    monkeypatch.setattr(quantising, step, fail)
    done = called("compress", small / "m.onnx", small / "o.onnx", "--int8", "--calib", small / "x.npz")
    assert done.returncode == code
    assert ("o.onnx: cannot be written: Input/output error" in done.stderr) == (code == 2)
    assert (small / "o.onnx").exists() == (code == 0)


@pytest.mark.parametrize("listed", [["w"], ["w", "v"]])
def test_weights_that_callers_may_override_ask_for_freeze(tmp_path: Path, listed: list[str]) -> None:
    """Before anything is computed if all weights are so."""
    body = "h = Conv (x, w) y = Conv (h, v)"
    proto = net("(float[1,3,8,8] x) => (float[1,2,8,8] y)", "float[4,3,1,1] w, float[2,4,1,1] v", body)
    shapes = {tensor.name: list(tensor.dims) for tensor in proto.graph.initializer}
    proto.graph.input.extend(helper.make_tensor_value_info(name, TensorProto.FLOAT, shapes[name]) for name in listed)
    saved(proto, tmp_path / "m.onnx")
    data = {"x": np.random.default_rng(0).standard_normal((16, 3, 8, 8)).astype(np.float32)}
    if len(listed) == len(shapes):
        with pytest.raises(ModelError, match=r"a caller may override.*if nobody does, add freeze=True"):
            leanonnx.compress(tmp_path / "m.onnx", tmp_path / "o.onnx", int8=True, calib=data)
    result = leanonnx.compress(
        tmp_path / "m.onnx", tmp_path / "o.onnx", int8=True, calib=data, freeze=True, target=FASTER
    )
    assert len(integers_of(onnx.load(tmp_path / "o.onnx"))) >= len(shapes)
    assert not any("may override" in text for text in result.warnings)


# The file and its simulation


def quantised(proto: onnx.ModelProto, kind: Int8Format, **settings: Any) -> tuple[onnx.ModelProto, list[Any]]:
    """A network in integers, with the inputs that it was made from."""
    feeds = normal_feeds(analysed(proto), 6)
    prepared = prepare(proto, Path("m.onnx"), feeds).proto
    layers = [layer for layer in weighted_layers(prepared) if not layer.reason]
    carriers = carriers_between(prepared, {layer.name for layer in layers})
    names = {name for node in prepared.graph.node for name in (*node.input, *node.output)}
    names -= {tensor.name for tensor in prepared.graph.initializer}
    ranges = ranges_by("minmax", observe_activations(prepared, names, feeds), kind)
    return quantised_model(prepared, layers, carriers, ranges, kind, **settings), feeds


@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("reduced", [False, True])
def test_the_simulation_computes_the_same(signed: bool, reduced: bool) -> None:
    kind = Int8Format(signed_activations=signed, reduced_weights=reduced)
    proto, feeds = quantised(BLOCKS, kind)
    simulation = simulation_of(proto)
    onnx.checker.check_model(proto, full_check=True)
    assert not {"QuantizeLinear", "DequantizeLinear"} & {node.op_type for node in simulation.graph.node}
    assert steps_from_simulation(proto, simulation, feeds) < 1
    weights = [numpy_helper.to_array(t) for t in integers_of(proto).values() if len(t.dims) == 4]
    assert max(int(np.abs(weight.astype(int)).max()) for weight in weights) <= (64 if reduced else 127)


def test_a_wrong_scale_is_told_from_the_simulation() -> None:
    proto, feeds = quantised(BLOCKS, Int8Format())
    simulation = simulation_of(proto)
    scale = next(t for t in proto.graph.initializer if t.name == "w1_scale")
    scale.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(scale) * 2, scale.name))
    assert steps_from_simulation(proto, simulation, feeds) > MAX_STEPS


def test_weights_are_rounded_as_asked() -> None:
    seen: dict[str, np.ndarray[Any, Any]] = {}

    def down(layer: KernelLayer, scales: np.ndarray[Any, Any], bits: int) -> np.ndarray[Any, Any]:
        steps = np.floor(layer.kernels / scales[:, :, None])
        limit = {8: 127, 7: 64}[bits]
        seen[layer.layer.name] = layer.in_weight_layout(np.clip(steps, -limit, limit).astype(np.int8))
        return seen[layer.layer.name]

    proto, _ = quantised(BLOCKS, Int8Format(), round_weights=down)
    assert len(seen) == 4
    stored = [numpy_helper.to_array(t) for t in integers_of(proto).values()]
    assert all(any(np.array_equal(rounded, each) for each in stored) for rounded in seen.values())


def test_nearest_integers_are_those_of_the_quantiser() -> None:
    proto, _ = quantised(BLOCKS, Int8Format())
    again, _ = quantised(BLOCKS, Int8Format(), round_weights=lambda *given: nearest_weights(*given))
    assert proto == again


def test_a_clip_that_does_not_hold_zero_stays_float() -> None:
    body = "h = Conv (x, w) c = Clip (h, low, high) y = Conv (c, v)"
    constants = "float[4,3,1,1] w, float[2,4,1,1] v, float low = {1.0}, float high = {6.0}"
    proto = net("(float[1,3,5,5] x) => (float[1,2,5,5] y)", constants, body)
    written, feeds = quantised(proto, Int8Format())
    assert "Clip" in {node.op_type for node in written.graph.node}
    wanted, computed = (run(each, feeds, optimise=False)[0][0] for each in (proto, written))
    assert relative_difference(wanted, computed) < 0.05


# The processor


@pytest.mark.parametrize(
    ("machine", "flags", "target", "reduced"),
    [
        ("x86_64", {"avx2"}, "auto", True),
        ("x86_64", {"avx2", "avx_vnni"}, "auto", False),
        ("x86_64", {"avx512_vnni"}, "cpu-avx2", True),
        ("aarch64", set(), "auto", False),
        ("x86_64", {"avx2"}, "cpu-arm", False),
    ],
)
def test_weights_take_7_bits_where_sums_saturate(
    monkeypatch: pytest.MonkeyPatch, machine: str, flags: set[str], target: str, reduced: bool
) -> None:
    monkeypatch.setattr(formats.platform, "machine", lambda: machine)
    monkeypatch.setattr(formats, "processor_flags", lambda: frozenset(flags))
    assert int8_format("cpu", target).reduced_weights == reduced


def test_tensorrt_takes_signed_integers_and_cuda_none() -> None:
    assert int8_format("tensorrt", "auto").signed_activations
    with pytest.raises(OptionError, match="no integer kernels"):
        int8_format("cuda", "auto")


# Refusals


def test_integers_need_data(small: Path) -> None:
    refused(small, "compress", "m.onnx", "o.onnx", "--int8", says=("--int8 needs real inputs", "add --calib"))
    refused(small, "compress", "m.onnx", "o.onnx", "--int8", "--exact", says=("--exact", "leave out one"))


def _with_weight(kind: int) -> onnx.ModelProto:
    weight = numpy_helper.from_array(np.ones((2, 3, 1, 1), helper.tensor_dtype_to_np_dtype(kind)), "w")
    shapes = {"x": [1, 3, 4, 4], "y": [1, 2, 4, 4]}
    x, y = (helper.make_tensor_value_info(name, kind, shape) for name, shape in shapes.items())
    graph = helper.make_graph([helper.make_node("Conv", ["x", "w"], ["y"])], "net", [x], [y], [weight])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


@pytest.mark.parametrize(("kind", "name"), [(TensorProto.FLOAT16, "float16"), (TensorProto.DOUBLE, "double")])
def test_other_floats_are_refused(tmp_path: Path, kind: int, name: str) -> None:
    path = saved(_with_weight(kind), tmp_path / "m.onnx")
    data = {"x": np.ones((8, 3, 4, 4), np.float32)}
    with pytest.raises(ModelError, match=f"its weights are {name}.*export the network in float32"):
        leanonnx.compress(path, tmp_path / "o.onnx", int8=True, calib=data)
    assert not (tmp_path / "o.onnx").exists()


def test_integers_are_not_made_of_integers(small: Path) -> None:
    data = {"x": CALIBRATION}
    leanonnx.compress(small / "m.onnx", small / "o.onnx", int8=True, calib=data)
    with pytest.raises(ModelError, match=r"holds 8-bit integers already.*float network"):
        leanonnx.compress(small / "o.onnx", small / "a.onnx", int8=True, calib=data)


def test_an_operator_set_that_cannot_be_raised_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:

    def fail(*_: object) -> None:
        raise RuntimeError("no adapter for Upsample")

    monkeypatch.setattr(preparation.version_converter, "convert_version", fail)
    proto = net("(float[1,3,4,4] x) => (float[1,2,4,4] y)", "float[2,3,1,1] w", "y = Conv (x, w)", opset=9, ir=4)
    path = saved(proto, tmp_path / "m.onnx")
    with pytest.raises(ModelError, match=r"operator set 9 cannot be raised to 13.*no adapter.*export it"):
        leanonnx.compress(path, tmp_path / "o.onnx", int8=True, calib={"x": np.ones((8, 3, 4, 4), np.float32)})


# Random graphs


def random_graph_runs(seed: int) -> str:
    """What became of a random graph: "int8", "float" with the reason, or the error; fails if the file does not run."""
    proto = graphs.from_seed(seed)
    with tempfile.TemporaryDirectory() as folder:
        path, out = saved(proto, Path(folder) / "m.onnx"), Path(folder) / "o.onnx"
        try:
            data = samples_for(proto, 8)
            result = leanonnx.compress(path, out, int8=True, calib=data, recover="none")
        except LeanOnnxError as error:
            return f"{type(error).__name__}: {error}"
        rows = {name: array[:1] for name, array in data.items()}
        dag = analysed(proto)
        feeds = normal_feeds(dag, 1)
        assert rows and run(out, feeds)
        return "int8" if integers_of(onnx.load(out)) else f"float: {result.warnings[0]}"


def float_seeds(count: int) -> list[int]:
    """The first seeds of random graphs without integers."""
    plain = (seed for seed in itertools.count() if not any(map(is_quantised, graphs.from_seed(seed).graph.node)))
    return list(itertools.islice(plain, count))


def test_shapes_that_a_file_notes_need_not_be_right(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choice, "priced_layers", lambda proto, *_: weighted_layers(proto))
    assert random_graph_runs(1273) == "int8"


@pytest.mark.parametrize("part", range(10))
def test_random_graphs_give_files_that_run(part: int) -> None:
    seen = [random_graph_runs(seed) for seed in float_seeds(RANDOM_GRAPHS)[part::10]]
    assert not [each for each in seen if each.startswith(("ProofFailed", "DataError")) or "quantiser fails" in each]

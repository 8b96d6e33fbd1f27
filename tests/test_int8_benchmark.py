"""The benchmark of integers: what others are given, what is measured again, and its tables."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

from benchmarks import common
from benchmarks.common import ROOT, run
from benchmarks.int8 import experiment, page, quantisers
from benchmarks.material import Material

CELL = experiment.Cell(network="n", source=page.ORIGINAL, method=page.LEANONNX, kind=page.VNNI)
SIDES = ("float_ms", "ms")


def small_network(opset: int = 11) -> onnx.ModelProto:
    """A convolution of one sample of two channels."""
    rng = np.random.default_rng(0)
    weights = numpy_helper.from_array(rng.normal(size=(4, 2, 3, 3)).astype(np.float32), "w")
    node = helper.make_node("Conv", ["x", "w"], ["y"], name="conv")
    values = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, channels, side, side])
        for name, channels, side in (("x", 2, 8), ("y", 4, 6))
    ]
    graph = helper.make_graph([node], "g", values[:1], values[1:], [weights])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    """A network, and samples of it."""
    source, data = tmp_path / "n.onnx", tmp_path / "n_calib.npz"
    onnx.save(small_network(), source)
    np.savez(data, x=np.random.default_rng(1).normal(size=(6, 2, 8, 8)).astype(np.float32))
    return source, data


def timed(speedup: float, verdict: str, busy: bool = False) -> dict[str, Any]:
    sides = {side: [0.9, 1.0, 1.1] for side in SIDES}
    interval = [speedup - 0.1, speedup + 0.1]
    return sides | {"speedup": speedup, "interval": interval, "noise": 0.0, "verdict": verdict, "busy": busy}


def result(source: str, method: str, kind: str, accuracy: float, **more: Any) -> dict[str, Any]:
    unseen = {"accuracy": [0.8, accuracy], "agreement": accuracy, "relative_l2": 1 - accuracy, "samples": 1000}
    cell = replace(CELL, network="cifar_resnet_4b", source=source, method=method, kind=kind)
    return cell.key | {"unseen": unseen, "bytes": 10} | more


@pytest.fixture
def rows(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """One network: as it is, leanonnx is the best; at half it is not, and slower with one thread."""
    said = {"kept": True, "int8_layers": 3, "layers": 4}
    failed = replace(CELL, network="cifar_resnet_4b", method=page.NNCF).key
    listed = [
        result(page.ORIGINAL, page.FLOAT, page.VNNI, 0.8),
        result(page.ORIGINAL, page.LEANONNX, page.VNNI, 0.79, said=said, times={"1": timed(1.5, "faster")}),
        result(page.ORIGINAL, page.LEANONNX, page.WITHOUT, 0.7895, said=said),
        result(page.ORIGINAL, page.DEFAULTS, page.VNNI, 0.7),
        result(page.ORIGINAL, page.SETTINGS, page.WITHOUT, 0.79),
        failed | {"exit_code": 1, "message": "Error: a\nb"},
        result(page.HALF, page.FLOAT, page.VNNI, 0.75),
        result(page.HALF, page.LEANONNX, page.VNNI, 0.74, said=said | {"kept": False}),
        result(page.HALF, page.SETTINGS, page.VNNI, 0.745),
    ]
    listed[-2]["times"] = {"1": timed(0.8, "slower", True)}
    monkeypatch.setattr(page, "results", lambda: {"rows": listed, "host": page.VNNI})
    return listed


@pytest.mark.usefixtures("rows")
def test_table_has_a_line_for_each_network_and_quantiser() -> None:
    text = page.int8_cells()
    assert len(text.splitlines()) == 2 + 8
    assert "| cifar_resnet_4b, original | 80.00 | 0.2000 |  |  | 1.000 (0.900–1.100) |  |" in text
    assert (
        "| cifar_resnet_4b, leanonnx | 79.00 | 0.2100 | 78.95 | 0.2105 | 1.000 (0.900–1.100) | 1.50 (1.40–1.60) |"
        in text
    )
    assert text.count("| 3 of 4 |") == 1
    assert "0.80 (0.70–0.90, busy)" in text
    assert page.int8_failures() == "- cifar_resnet_4b, NNCF, with VNNI: `Error: a b`"


@pytest.mark.usefixtures("rows")
def test_sentences_are_computed_from_the_results() -> None:
    """The defaults count for both kinds of processor; a difference of 0.05 points is within the tie."""
    verdict = page.int8_verdict()
    assert "in 1 of 3 cells, and within 0.1 points, dB or hundredths of the output in 2 (67%; 90% wanted)" in verdict
    assert "Less accurate: cifar_resnet_4b, half, leanonnx with VNNI (-0.50)." in verdict
    assert "kept the float network for cifar_resnet_4b, half." in verdict
    assert verdict.endswith("float network: leanonnx 1 of 2 (1 on a busy machine).")
    half = page.int8_half()
    assert half.endswith("cifar_resnet_4b with VNNI +1.00. At most 0.5 in 0 of 1.")


def test_page_without_results(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(page, "results", lambda: {"rows": []})
    assert {text() for name, text in page.NUMBERS.items() if name != "int8_failures"} == {page.EMPTY}


def test_decibels_are_no_shares() -> None:
    row = {"unseen": {"accuracy": [28.0, 27.5], "relative_l2": 0.1, "zoo": {"metric": "psnr"}}}
    assert page.points(row) == 27.5
    assert page.shown_score(row) == "27.50 dB"
    assert page.shown_score({"unseen": {"agreement": None, "relative_l2": 0.1}}) == "error 0.1000"


def test_others_get_one_run_at_a_time(files: tuple[Path, Path], tmp_path: Path) -> None:
    """Along the first axis, by the fixed batch; whole inputs where an array has one axis more."""
    model = small_network()
    found = list(quantisers.feeds(model, files[1]))
    assert [feed["x"].shape for feed in found] == [(1, 2, 8, 8)] * 6
    whole = tmp_path / "whole.npz"
    np.savez(whole, anything=np.zeros((3, 1, 2, 8, 8)))
    assert [feed["x"].shape for feed in quantisers.feeds(model, whole)] == [(1, 2, 8, 8)] * 3
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 4
    assert [len(feed["x"]) for feed in quantisers.feeds(model, files[1])] == [4]


def test_right_settings_raise_the_operator_set(files: tuple[Path, Path], tmp_path: Path) -> None:
    """Weights of each channel have a scale; reduced, they take 7 bits."""
    target = tmp_path / "new.onnx"
    assert quantisers.main(["settings", *map(str, files[:1]), str(target), str(files[1]), "--reduced"]) == 0
    model = onnx.load(target)
    assert model.opset_import[0].version == quantisers.RAISED_OPSET
    constants = {each.name: numpy_helper.to_array(each) for each in model.graph.initializer}
    (weights,) = (array for array in constants.values() if array.shape == (4, 2, 3, 3))
    assert weights.dtype == np.int8
    assert np.abs(weights.astype(int)).max() <= 64
    assert sum(array.shape == (4,) and array.dtype == np.float32 for array in constants.values()) >= 1


def test_what_others_raise_is_told_and_leaves_no_file(
    files: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: Any) -> None:
        target.write_text("half")
        raise ValueError("it\ncannot")

    target = tmp_path / "new.onnx"
    monkeypatch.setattr(quantisers, "with_onnxruntime", fail)
    assert quantisers.main(["defaults", str(files[0]), str(target), str(files[1])]) == 1
    assert capsys.readouterr().err == "ValueError: it cannot\n"
    assert not target.exists()


def test_programs_run_without_optimisations(files: tuple[Path, Path], tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(
        "import sys, onnxruntime as ort\n"
        "options = ort.SessionOptions()\n"
        "session = ort.InferenceSession(sys.argv[1], options, providers=['CPUExecutionProvider'])\n"
        "print(session.get_session_options().graph_optimization_level.name, __name__)\n"
    )
    done = run([*experiment.PLAIN, program, files[0]])
    assert done.output.split() == [ort.GraphOptimizationLevel.ORT_DISABLE_ALL.name, "__main__"]


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, files: tuple[Path, Path]) -> tuple[Material, list[str]]:
    """Networks whose making and timing are only noted."""
    calls: list[str] = []

    def written(_: Material, cell: experiment.Cell, target: Path, measures: Any) -> dict[str, Any]:
        calls.append(f"{cell.source} {cell.method} {cell.kind}" + (" measured" if measures is True else ""))
        target.write_text(f"{cell.method} {measures is True and cell.source == page.HALF}")
        return {"measured": measures} if cell.method == page.LEANONNX else {}

    def side_by_side(before: Path, after: Path, threads: int, _: float) -> dict[str, Any]:
        calls.append(f"time {before.stem} {after.stem} {threads}")
        return timed(1.0, "no difference shown", busy=threads == 2)

    monkeypatch.setattr(common, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(page, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(experiment, "by_leanonnx", written)
    monkeypatch.setattr(experiment, "by_others", written)
    monkeypatch.setattr(experiment, "side_by_side", side_by_side)
    monkeypatch.setattr(experiment, "score", lambda *_: calls.append("score") or {"bytes": 1, "unseen": {}})
    monkeypatch.setattr(experiment, "host_kind", lambda: page.VNNI)
    return Material(files[0].parent, tmp_path / "zoo", tmp_path / "work"), calls


def test_times_are_filled_in_later(bench: tuple[Material, list[str]]) -> None:
    """leanonnx then decides by time; what it wrote before is only scored again if it is another file."""
    material, calls = bench
    material.work.mkdir()
    wanted = experiment.Wanted(networks=["n", "missing"], methods=[page.LEANONNX], threads=[])
    experiment.measure(material, wanted)
    assert [call for call in calls if call != "score"] == [
        *("original leanonnx with VNNI", "original leanonnx without VNNI"),
        *("half float with VNNI", "half leanonnx with VNNI", "half leanonnx without VNNI"),
    ]
    calls.clear()
    experiment.measure(material, wanted)
    assert calls == []
    experiment.measure(material, replace(wanted, threads=[1, 2]))
    ours, half = (f"n_{source}_leanonnx_with-VNNI" for source in page.SOURCES)
    floats = "n_half_float_with-VNNI"
    assert calls == [
        *("original leanonnx with VNNI measured", f"time n {ours} 1", f"time n {ours} 2"),
        *(f"time n {floats} 1", f"time n {floats} 2"),
        *("half leanonnx with VNNI measured", "score", f"time {floats} {half} 1", f"time {floats} {half} 2"),
    ]
    calls.clear()
    experiment.measure(material, replace(wanted, threads=[1, 2]))
    assert calls == [f"time n {ours} 2", f"time n {floats} 2", f"time {floats} {half} 2"]


def test_files_that_are_gone_are_made_again(bench: tuple[Material, list[str]]) -> None:
    material, calls = bench
    material.work.mkdir()
    wanted = experiment.Wanted(networks=["n"], sources=[page.ORIGINAL], methods=[page.DEFAULTS, page.NNCF], threads=[])
    experiment.measure(material, wanted)
    assert calls == ["score", "original defaults with VNNI", "score"]
    replace(CELL, method=page.DEFAULTS).file(material).unlink()
    experiment.measure(material, wanted)
    assert calls[3:] == ["original defaults with VNNI", "score"]
    data = json.loads((page.RESULTS / f"{page.NAME}.json").read_text())
    assert [row["method"] for row in data["rows"]] == [page.FLOAT, page.DEFAULTS]
    assert ROOT not in material.work.parents


@pytest.mark.parametrize(("samples", "gain"), [(100, 0.0), (100_000, -4.0), (100_000, 4.0)])
def test_a_gain_counts_where_the_samples_tell_it(samples: int, gain: float) -> None:
    """Two networks that differ from the original in 20 and 24 of 100 decisions differ in at most 44."""
    first, second = (
        {"unseen": {"accuracy": [0.9, share], "agreement": share, "samples": samples}} for share in (0.76, 0.8)
    )
    pair = (first, second) if gain <= 0 else (second, first)
    assert page.clear_gain(*pair) == pytest.approx(gain)
    assert page.clear_gain(first, None) is None

"""``leanonnx compress --calib``: its files, its report, and that it never makes the result worse."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import numpy_helper
from PIL import Image

from leanonnx.commands.compress import pipeline
from leanonnx.data.samples import batch_size, open_data
from leanonnx.errors import DataError, OptionError
from leanonnx.recovery import draft as drafts
from leanonnx.recovery.draft import split_held_out
from leanonnx.recovery.passes import recover_in_passes
from leanonnx.recovery.recover import RecoveryResult
from leanonnx.runtime.sessions import RunFailed, open_session
from leanonnx.selection.metrics import Budget
from leanonnx.surgery.plan import load_plan
from tests.calibrated import net, smooth_images
from tests.helpers import Options, build, called, called_json, cli, refused, saved, saved_external, tree

MODEL = net(
    "(float[N,3,8,8] x) => (float[N,6] y)",
    "float[16,3,3,3] a, float[16] b, float[12,16,3,3] c, float[12] d, float[192,6] e, float[6] f",
    """h = Conv (x, a, b) r = Relu (h) m = Conv (r, c, d) s = Relu (m) k = Flatten (s) y = Gemm (k, e, f)""",
)
KEYS = {"samples", "held_out", "parts", "effort", "minutes", "kept", "deviation", "removed", "layers"}
ZOO = Path(__file__).parents[2] / "shared" / "zoo"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A model, inputs and inputs with labels that the model agrees with."""
    saved(MODEL, tmp_path / "m.onnx")
    x = smooth_images(200)
    y = ort.InferenceSession(str(tmp_path / "m.onnx")).run(None, {"x": x})[0].argmax(1)
    np.savez(tmp_path / "x.npz", x=x)
    np.savez(tmp_path / "xy.npz", x=x, labels=y)
    np.savez(tmp_path / "few.npz", x=x[:20])
    np.savez(tmp_path / "two.npz", x=x[:2])
    return tmp_path


def command(folder: Path, *options: object, calib: str = "x.npz") -> tuple[object, ...]:
    calibration = ("--calib", folder / calib) if calib else ()
    return ("compress", folder / "m.onnx", folder / "out.onnx", "--align", 1, *calibration, *options)


def error(folder: Path, seed: int = 99) -> float:
    """Relative deviation of the result on inputs that nobody has seen."""
    x = smooth_images(100, seed)
    found = [ort.InferenceSession(str(folder / name)).run(None, {"x": x})[0] for name in ("m.onnx", "out.onnx")]
    return float(np.linalg.norm(found[0] - found[1]) / np.linalg.norm(found[0]))


def test_recovery_brings_the_result_nearer_to_the_original(folder: Path) -> None:
    row = called_json(*command(folder, "--keep", 0.5))
    reported = row["recovery"]
    assert set(reported) == KEYS
    assert (reported["samples"], reported["held_out"], reported["kept"]) == (160, 40, True)
    assert {layer["name"] for layer in reported["layers"]} == {"H", "M", "Y"}
    assert all(set(layer) == {"name", "before", "after", "reason"} for layer in reported["layers"])
    now, first = (reported[key]["outputs"]["y"] for key in ("deviation", "removed"))
    assert set(now) == {"relative_l2", "psnr", "top1", "top5", "worst_channel", "vacuous", "intervals"}
    assert now["vacuous"] is None and now["worst_channel"]["relative_l2"] > now["relative_l2"]
    assert now["relative_l2"] < 0.9 * first["relative_l2"]
    assert error(folder) == pytest.approx(now["relative_l2"], rel=0.3)
    assert row["proof"]["status"] == "passed"
    assert row["warnings"] == []


def test_without_recovery_the_deviation_is_reported_and_no_weight_changes(folder: Path) -> None:
    bare = called_json(*command(folder, "--keep", 0.5, "--recover", "none"))
    weights = {t.name: numpy_helper.to_array(t) for t in MODEL.graph.initializer}
    for tensor in onnx.load(folder / "out.onnx").graph.initializer:
        assert np.isin(numpy_helper.to_array(tensor), weights[tensor.name]).all()
    reported = bare["recovery"]
    assert (reported["samples"], reported["held_out"], reported["kept"], reported["layers"]) == (0, 200, False, [])
    assert reported["deviation"] == reported["removed"]
    assert error(folder) == pytest.approx(reported["deviation"]["outputs"]["y"]["relative_l2"], rel=0.3)
    assert called_json(*command(folder, "--keep", 0.5, calib=""))["recovery"] is None


def test_labels_give_a_metric(folder: Path) -> None:
    reported = called_json(*command(folder, "--keep", 0.5, calib="xy.npz"))["recovery"]
    metric = reported["deviation"]["metric"]
    assert (metric["name"], metric["better"], metric["before"]) == ("top-1 accuracy", "higher", 1.0)
    assert reported["removed"]["metric"]["after"] <= metric["after"] <= 1.0


def test_the_report_for_people(folder: Path) -> None:
    done = cli(*command(folder, "--keep", 0.5, "--effort", "quick", calib="xy.npz"))
    assert done.returncode == 0, done.stderr
    assert "Deviation from the original on 25 held-out samples, before → after recovery" in done.stdout
    assert "relative L2" in done.stdout and "top-1 accuracy: 1.0000 (0.8628 to 1.0000) → " in done.stdout
    bare = called(*command(folder, "--keep", 0.5, "--recover", "none"))
    assert "held-out samples\n" in bare.stdout
    assert "before → after" not in bare.stdout


@pytest.mark.parametrize(
    ("calib", "says"),
    [("few.npz", ["only 20 calibration samples"]), ("two.npz", ["only 2 calibration", "too few calibration samples"])],
)
def test_few_samples_are_warned_of(folder: Path, calib: str, says: list[str]) -> None:
    warnings = called_json(*command(folder, "--keep", 0.5, calib=calib))["warnings"]
    assert [any(text in warning for warning in warnings) for text in says] == [True] * len(says)


@pytest.mark.parametrize("budget", [("--keep", 0.4), ("--macs", 0.6), ("--params", 0.3)])
def test_budgets_hold(folder: Path, budget: tuple[str, float]) -> None:
    row = called_json(*command(folder, *budget))
    unit = {"--keep": "kernels"}.get(budget[0], budget[0][2:])
    assert 0.8 * budget[1] < row[unit]["fraction"] <= budget[1]


@pytest.mark.parametrize("recovering", ["auto", "none"])
def test_a_plan_can_be_carried_out_again(folder: Path, recovering: str) -> None:
    shared = ("--recover", recovering, "--plan-out", folder / "p.json")
    first = called_json(*command(folder, "--keep", 0.5, *shared))
    found = (folder / "out.onnx").read_bytes()
    plan = json.loads((folder / "p.json").read_text())
    assert (plan["options"]["calib"], plan["options"]["recover"]) == (str(folder / "x.npz"), recovering)
    (folder / "out.onnx").unlink()
    again = called_json(*command(folder, "--plan", folder / "p.json", "--recover", recovering))
    assert again["recovery"] == first["recovery"]
    assert (folder / "out.onnx").read_bytes() == found


def test_twice_the_same_bytes(folder: Path) -> None:
    files = []
    for _ in range(2):
        assert called(*command(folder, "--keep", 0.5)).returncode == 0
        files.append((folder / "out.onnx").read_bytes())
    assert files[0] == files[1]


def test_nothing_removed_means_nothing_recovered(folder: Path) -> None:
    assert called_json(*command(folder, "--keep", 1))["recovery"] is None
    assert (folder / "out.onnx").read_bytes() == (folder / "m.onnx").read_bytes()


def judge_never_worse(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A recovery that damages the weights is discarded, and the report says so."""

    def spoilt(*args: Any, **kwargs: Any) -> RecoveryResult:
        found = recover_in_passes(*args, **kwargs)
        for tensor in found.proto.graph.initializer:
            tensor.CopyFrom(numpy_helper.from_array(-3 * numpy_helper.to_array(tensor), tensor.name))
        return found

    called(*command(folder, "--keep", 0.5, "--method", "l2", "--recover", "none"))
    bare = onnx.load(folder / "out.onnx")
    monkeypatch.setattr(drafts, "recover_in_passes", spoilt)
    row = called_json(*command(folder, "--keep", 0.5, "--method", "l2"))
    assert row["recovery"]["kept"] is False
    assert row["recovery"]["deviation"] == row["recovery"]["removed"]
    assert any("was left out" in warning for warning in row["warnings"])
    result = onnx.load(folder / "out.onnx")
    assert list(result.graph.initializer) == list(bare.graph.initializer)


def test_a_recovery_that_is_no_better_is_left_out(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    judge_never_worse(folder, monkeypatch)


def test_a_network_that_does_not_run_on_the_data_is_not_written(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(*_: Any) -> None:
        raise RunFailed("no such kernel")

    monkeypatch.setattr(drafts, "compare_outputs", failing)
    for recovering in ("auto", "none"):
        done = called(*command(folder, "--keep", 0.5, "--recover", recovering))
        assert done.returncode == 1
        assert "the compressed model does not run on the data (no such kernel); nothing written" in done.stderr
        assert not (folder / "out.onnx").exists()


def test_external_data_stay_beside_the_result(folder: Path) -> None:
    saved_external(MODEL, folder / "m.onnx")
    before = set(tree(folder))
    row = called_json(*command(folder, "--keep", 0.5))
    assert row["recovery"]["kept"]
    assert len(set(tree(folder)) - before) == 2
    assert error(folder) < 0.9 * row["recovery"]["removed"]["outputs"]["y"]["relative_l2"]


@pytest.mark.parametrize("calib", [(), ("--calib", "x.npz")])
def test_a_batch_that_is_free_in_name_only(tmp_path: Path, calib: tuple[str, ...]) -> None:
    saved(
        net(
            "(float[N,3,8,8] x) => (float[M,6] y)",
            "float[16,3,3,3] a, float[576,6] e",
            "h = Conv (x, a) r = Relu (h) k = Constant <value_ints = [1, 576]> () f = Reshape (r, k) y = Gemm (f, e)",
        ),
        tmp_path / "m.onnx",
    )
    np.savez(tmp_path / "x.npz", x=smooth_images(200))
    done = called("compress", "m.onnx", "out.onnx", "--keep", 0.5, *calib, cwd=tmp_path)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("method", ["auto", "lean"])
def test_data_that_are_not_finite_are_refused(folder: Path, method: str) -> None:
    x = smooth_images(30)
    x[7, 0, 0, 0] = np.nan
    np.savez(folder / "bad.npz", x=x)
    args = command(folder, "--keep", 0.5, "--method", method, calib="bad.npz")
    refused(folder, *args, says=(f"leanonnx: {folder / 'bad.npz'}: sample 7 of input 'x'",))


def test_data_of_another_shape_are_refused(folder: Path) -> None:
    np.savez(folder / "bad.npz", x=smooth_images(30)[:, :2])
    refused(folder, *command(folder, "--keep", 0.5, calib="bad.npz"), says=("bad.npz", "[30, 2, 8, 8]"))
    with pytest.raises(DataError):
        pipeline.compress_file(
            folder / "m.onnx", folder / "o.onnx", Options(Budget("kernels", 0.5), calib=folder / "bad.npz")
        )


@pytest.mark.parametrize(("count", "held"), [(1, 0), (4, 0), (5, 1), (399, 79), (400, 40)])
def test_samples_held_out(tmp_path: Path, count: int, held: int) -> None:
    path = saved(build(HALF), tmp_path / "m.onnx")
    dag = pipeline.load_dag(path)
    np.savez(tmp_path / "x.npz", x=np.arange(count, dtype=np.float32)[:, None])
    fitted, apart = split_held_out(open_data(tmp_path / "x.npz", dag.model, dag.shapes))
    parts = [{float(feed["x"][0, 0]) for feed in part.feeds()} for part in (fitted, apart) if part]
    assert len(parts[0]) == count - held
    assert (len(parts[1]) if held else 0) == held
    assert set.union(*parts) == set(map(float, range(count)))
    assert batch_size(fitted) == max(1, min(16, (count - held) // 20))


HALF = '<ir_version: 8, opset_import: ["" : 17]> g (float[N,1] x) => (float[N,2] y) <float[1,2] a> { y = Gemm (x, a) }'


@pytest.mark.skipif(not (ZOO / "data" / "cifar10.npz").is_file(), reason="the collection is not beside the repository")
def test_half_the_multiply_adds_of_a_real_network(tmp_path: Path) -> None:
    """Top-1 on 1,000 photographs that it has not seen."""
    with np.load(ZOO / "data" / "cifar10.npz") as file:
        ends, labels = [0, *file["end"].tolist()], file["y"]
        blob = file["jpeg"].tobytes()
    spec = json.loads((ZOO / "zoo.json").read_text())["models"]["cifar_resnet_4b"]["input"]
    mean, std = (np.array(spec[key], np.float32) for key in ("mean", "std"))

    def image(k: int) -> np.ndarray[Any, Any]:
        pixels = np.asarray(Image.open(io.BytesIO(blob[ends[k] : ends[k + 1]])).convert("RGB"), np.float32)
        return ((pixels - mean) / std).transpose(2, 0, 1)[None]

    order = np.random.default_rng(0).permutation(5000)
    tried = [(image(k), labels[k]) for k in order[256:1256]]
    np.savez(tmp_path / "x.npz", **{spec["name"]: np.concatenate([image(k) for k in order[:96]])})
    source, plan, reached = ZOO / "models" / "cifar_resnet_4b.onnx", tmp_path / "p.json", []
    for replayed in (False, True):
        options = Options(plan=load_plan(plan)) if replayed else Options(Budget("macs", 0.5), calib=tmp_path / "x.npz")
        result = pipeline.compress_file(source, tmp_path / "out.onnx", options, None if replayed else plan)
        assert result.after.macs <= 0.5 * result.before.macs
        with open_session(tmp_path / "out.onnx") as session:
            right = [session.run(None, {spec["name"]: one})[0].argmax() == label for one, label in tried]
        reached.append(float(np.mean(right)))
    assert reached[0] >= 0.65, reached
    assert reached[1] < 0.5, reached


def test_a_fixed_batch_that_hardly_fits_into_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    proto = onnx.ModelProto.FromString(MODEL.SerializeToString())
    for value in (proto.graph.input[0], proto.graph.output[0]):
        value.type.tensor_type.shape.dim[0].dim_value = 8
    saved(proto, tmp_path / "m.onnx")
    np.savez(tmp_path / "x.npz", x=smooth_images(200))
    bare = called_json(*command(tmp_path, "--keep", 0.5))["recovery"]
    assert (bare["samples"], bare["held_out"]) == (160, 40)
    monkeypatch.setattr(drafts, "MAX_ACTIVATION_BYTES", 1)
    row = called_json(*command(tmp_path, "--keep", 0.5))
    assert row["recovery"]["samples"] + row["recovery"]["held_out"] == 8
    assert any("recovery used 8 of the 200 samples" in warning for warning in row["warnings"])


def test_exact_leaves_nothing_to_calibrate(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="calib has nothing to do with exact=True"):
        pipeline.compress_file(
            tmp_path / "in.onnx", tmp_path / "out.onnx", Options(exact=True, calib=tmp_path / "x.npz")
        )


@pytest.mark.parametrize("option", ["--plan-out", "--report", ""])
def test_nothing_is_written_over_the_data(folder: Path, option: str) -> None:
    before = (folder / "few.npz").read_bytes()
    data, target = folder / "few.npz", folder / ("out.onnx" if option else "few.npz")
    more = (option, data) if option else ()
    done = called("compress", folder / "m.onnx", target, "--keep", 0.5, "--calib", data, *more)
    assert done.returncode == 2
    assert "overwrite" in done.stderr
    assert data.read_bytes() == before
    assert not (folder / "out.onnx").exists()

"""Fine-tuning: only weights change, the held-out loss never grows, a killed run goes on as if nothing had happened."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from tests.helpers import COMMAND, build

torch = pytest.importorskip("torch", reason="torch is not installed: pip install 'leanonnx[finetune]'")

from leanonnx.compressing.options import Options as Compression
from leanonnx.errors import DataError, ModelError, OptionError, ProofFailed
from leanonnx.finetuning import trip
from leanonnx.finetuning.augment import augmented, images_of, mixed
from leanonnx.finetuning.batching import batched
from leanonnx.finetuning.driver import Options, finetune
from leanonnx.finetuning.lessons import neighbours
from leanonnx.finetuning.loading import grouped, open_loader
from leanonnx.finetuning.module import Network
from leanonnx.finetuning.steps import Schedule, finetune_in_steps
from leanonnx.finetuning.targets import common_targets
from leanonnx.finetuning.training import Settings
from leanonnx.finetuning.weights import put_back, trainable
from leanonnx.graph.model import load
from leanonnx.runtime.observation import observe
from leanonnx.runtime.sessions import run
from leanonnx.selection.selector import Budget

CLASSIFIER = """
<ir_version: 8, opset_import: ["" : 17]>
classifier (float[1, 3, 8, 8] x) => (float[1, 5] y)
<float[WIDTH, 3, 3, 3] w1, float[WIDTH] b1, float[5, WIDTH] w2, float[5] b2, int64[2] shape>
{
    c1 = Conv <pads = [1, 1, 1, 1]> (x, w1, b1)
    r1 = Relu (c1)
    p1 = GlobalAveragePool (r1)
    f1 = Reshape (p1, shape)
    g1 = Gemm <transB = 1> (f1, w2, b2)
    y = OUT (g1)
}
"""
DENOISER = """
<ir_version: 8, opset_import: ["" : 17]>
denoiser (float[N, 1, 16, 16] x) => (float[N, 1, 16, 16] y)
<float[4, 1, 3, 3] w1, float[4] b1, float[1, 4, 3, 3] w2, float[1] b2>
{
    c1 = Conv <pads = [1, 1, 1, 1]> (x, w1, b1)
    r1 = Relu (c1)
    y = Conv <pads = [1, 1, 1, 1]> (r1, w2, b2)
}
"""


def classifier(width: int, seed: int, out: str = "Identity") -> onnx.ModelProto:
    """Its batch size is written into the graph: a Reshape to [1, width]."""
    proto = build(CLASSIFIER.replace("WIDTH", str(width)).replace("OUT", out), seed)
    for tensor in proto.graph.initializer:
        if tensor.name == "shape":
            tensor.CopyFrom(numpy_helper.from_array(np.array([1, width]), "shape"))
    return proto


def saved(proto: onnx.ModelProto, path: Path) -> Path:
    onnx.save(proto, path)
    return path


def samples(path: Path, count: int = 40, shape: tuple[int, ...] = (3, 8, 8), name: str = "x", **more: Any) -> Path:
    data = np.random.default_rng(7).standard_normal((count, *shape)).astype(np.float32)
    np.savez(path, **{name: data}, **more)
    return path


@pytest.fixture
def pair(tmp_path: Path) -> dict[str, Path]:
    """A teacher, a smaller student and data."""
    return {
        "base": saved(classifier(12, 0), tmp_path / "base.onnx"),
        "new": saved(classifier(4, 1), tmp_path / "new.onnx"),
        "data": samples(tmp_path / "data.npz"),
        "out": tmp_path / "out.onnx",
    }


def settings(epochs: int = 8, **more: Any) -> Settings:
    return Settings(epochs=epochs, rate=0.01, batch=8, **more)


def structure(path: Path, trained: tuple[str, ...]) -> bytes:
    """The file without the numbers of the weights that are trained."""
    proto = onnx.load(path)
    for tensor in proto.graph.initializer:
        if tensor.name in trained:
            tensor.ClearField("raw_data")
            tensor.ClearField("float_data")
    return proto.SerializeToString(deterministic=True)


def test_only_weights_change_and_the_deviation_falls(pair: dict[str, Path]) -> None:
    result = finetune(pair["new"], pair["out"], pair["base"], pair["data"], Options(settings=settings()))
    assert result is not None
    assert result.way == "mapped"
    names = trainable(load(pair["new"]))
    assert names == ("b1", "b2", "w1", "w2")
    assert structure(pair["new"], names) == structure(pair["out"], names)
    assert result.trained.after < 0.8 * result.trained.before
    assert result.after.outputs[0].relative_l2 < result.before.outputs[0].relative_l2
    assert max(trip.error for trip in result.trips) < 1e-5
    feed = {"x": np.load(pair["data"])["x"][:1]}
    assert np.abs(run(pair["new"], [feed])[0][0] - run(pair["out"], [feed])[0][0]).max() > 1e-3


def test_the_input_is_written_where_nothing_is_better(pair: dict[str, Path]) -> None:
    options = Options(settings=settings(epochs=2))
    result = finetune(pair["base"], pair["out"], pair["base"], pair["data"], options)
    assert result is not None
    assert result.trained.best_epoch == 0
    assert onnx.load(pair["out"]) == onnx.load(pair["base"])
    assert any("nothing better" in text for text in result.warnings)


def test_patience_ends_a_training_without_gain(pair: dict[str, Path]) -> None:
    options = Options(settings=settings(epochs=50, patience=2))
    result = finetune(pair["base"], pair["out"], pair["base"], pair["data"], options)
    assert result is not None
    assert len(result.trained.history) == 2


def test_a_teacher_that_torch_cannot_run_teaches_all_the_same(pair: dict[str, Path]) -> None:
    base = build(CLASSIFIER.replace("WIDTH", "12").replace("OUT", "Identity").replace("Relu (c1)", "Relu (q1)"))
    reshape = next(t for t in base.graph.initializer if t.name == "shape")
    reshape.CopyFrom(numpy_helper.from_array(np.array([1, 12]), "shape"))
    scale, zero = (numpy_helper.from_array(np.array(v, k), n) for v, k, n in ((0.05, "f4", "s"), (128, "u1", "z")))
    base.graph.initializer.extend([scale, zero])
    quantised = onnx.helper.make_node("QuantizeLinear", ["c1", "s", "z"], ["i1"])
    back = onnx.helper.make_node("DequantizeLinear", ["i1", "s", "z"], ["q1"])
    nodes = [base.graph.node[0], quantised, back, *base.graph.node[1:]]
    fresh = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del base.graph.node[:]
    base.graph.node.extend(fresh)
    result = finetune(
        pair["new"], pair["out"], saved(base, pair["base"]), pair["data"], Options(settings=settings(epochs=2))
    )
    assert result is not None
    assert any("onnxruntime, sample by sample" in text for text in result.warnings)
    assert result.trained.after < result.trained.before


def test_half_precision_trains_too(pair: dict[str, Path]) -> None:
    result = finetune(pair["new"], pair["out"], pair["base"], pair["data"], Options(settings=settings(amp=True)))
    assert result is not None
    assert result.trained.after < result.trained.before


def test_minutes_end_a_training(pair: dict[str, Path]) -> None:
    for epochs in (100000, None):
        options = Options(settings=Settings(epochs, 0.01, 8, minutes=0.02))
        result = finetune(pair["new"], pair["out"], pair["base"], pair["data"], options)
        assert result is not None
        assert 0 < len(result.trained.history) < 10000


def test_the_same_seed_gives_the_same_bytes(pair: dict[str, Path]) -> None:
    written = []
    for seed in (0, 0, 1):
        finetune(pair["new"], pair["out"], pair["base"], pair["data"], Options(settings=settings(seed=seed)))
        written.append(pair["out"].read_bytes())
    assert written[0] == written[1] != written[2]


def command(pair: dict[str, Path], out: Path, *more: str) -> list[str]:
    words = ["finetune", str(pair["new"]), str(out), "--teacher", str(pair["base"]), "--data", str(pair["data"])]
    return [*COMMAND, *words, *more]


def test_a_killed_run_goes_on_to_the_same_bytes(pair: dict[str, Path], tmp_path: Path) -> None:
    given = ("--epochs", "60", "--batch", "4", "--json")
    whole, other, kept = tmp_path / "whole.onnx", tmp_path / "other.onnx", tmp_path / "state.pt"
    subprocess.run(command(pair, whole, *given), check=True, capture_output=True)
    words = command(pair, other, *given, "--checkpoint", str(kept), "--resume")
    killed = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while not kept.exists() and killed.poll() is None:
        time.sleep(0.005)
    killed.send_signal(signal.SIGKILL)
    assert killed.wait() == -signal.SIGKILL
    assert not other.exists()
    done = subprocess.run(words, check=True, capture_output=True, text=True)
    assert 0 < json.loads(done.stdout)["resumed_epoch"] < 60
    assert other.read_bytes() == whole.read_bytes()


def test_a_checkpoint_of_another_run_is_refused(pair: dict[str, Path], tmp_path: Path) -> None:
    kept = tmp_path / "state.pt"
    first = Options(settings=settings(epochs=1, checkpoint=kept))
    finetune(pair["new"], pair["out"], pair["base"], pair["data"], first)
    with pytest.raises(OptionError, match="--resume"):
        finetune(pair["new"], pair["out"], pair["base"], pair["data"], first)
    other = Options(settings=settings(epochs=2, checkpoint=kept, resume=True, seed=3))
    with pytest.raises(OptionError, match="other options"):
        finetune(pair["new"], pair["out"], pair["base"], pair["data"], other)
    kept.write_bytes(b"nonsense")
    with pytest.raises(OptionError, match="no checkpoint"):
        finetune(pair["new"], pair["out"], pair["base"], pair["data"], other)


@pytest.mark.parametrize("out", ["Identity", "Softmax"])
def test_labels_are_learnt(pair: dict[str, Path], tmp_path: Path, out: str) -> None:
    saved(classifier(6, 2, out), pair["new"])
    x = np.random.default_rng(0).standard_normal((60, 3, 8, 8)).astype(np.float32)
    labels = np.argmax(x.mean(axis=(2, 3)), axis=1)
    np.savez(pair["data"], x=x, labels=labels)
    options = Options(strategy="supervised", settings=settings(epochs=40))
    result = finetune(pair["new"], pair["out"], None, pair["data"], options)
    assert result is not None
    assert result.trained.after < result.trained.before
    assert result.after.metric == "top-1 accuracy"
    assert (result.after.after or 0) > (result.after.before or 0) + 0.2


def test_labels_of_pixels_and_numbers_are_learnt(tmp_path: Path) -> None:
    new, out, data = saved(build(DENOISER), tmp_path / "new.onnx"), tmp_path / "out.onnx", tmp_path / "data.npz"
    x = np.random.default_rng(0).standard_normal((20, 1, 16, 16)).astype(np.float32)
    options = Options(strategy="supervised", settings=settings(epochs=10))
    np.savez(data, x=x, y=2 * x)
    result = finetune(new, out, None, data, options)
    assert result is not None
    assert result.trained.after < 0.5 * result.trained.before
    two = build(
        DENOISER.replace("[N, 1, 16, 16] y", "[N, 2, 16, 16] y").replace(
            "[1, 4, 3, 3] w2, float[1]", "[2, 4, 3, 3] w2, float[2]"
        )
    )
    np.savez(data, x=x, y=(x[:, 0] > 0).astype(np.int64))
    result = finetune(saved(two, new), out, None, data, options)
    assert result is not None
    assert result.trained.after < 0.6 * result.trained.before


def test_noise_is_removed_without_clean_images(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    clean = np.cumsum(np.cumsum(rng.standard_normal((40, 1, 16, 16)), axis=2), axis=3) / 8
    noisy = (clean + 0.5 * rng.standard_normal(clean.shape)).astype(np.float32)
    new, out, data = saved(build(DENOISER), tmp_path / "new.onnx"), tmp_path / "out.onnx", tmp_path / "data.npz"
    np.savez(data, x=noisy)
    result = finetune(new, out, None, data, Options(strategy="noise2self", settings=settings(epochs=40)))
    assert result is not None
    held = slice(4, None, 5)
    errors = [np.square(run(path, [{"x": noisy[held]}])[0][0] - clean[held]).mean() for path in (new, out)]
    assert errors[1] < 0.5 * errors[0]
    assert errors[1] < np.square(noisy[held] - clean[held]).mean()


def test_images_are_mixed_in_shares_or_rectangles() -> None:
    images = images_of({"x": (1, 3, 16, 16), "n": (1,)})
    assert images is not None
    value = torch.arange(6.0).reshape(6, 1, 1, 1, 1).expand(6, 1, 3, 16, 16).clone()
    kinds = set()
    for seed in range(6):
        found = mixed({"x": value, "n": torch.zeros(6, 1)}, images, np.random.default_rng(seed))["x"]
        whole = bool((found == found[:, :, :1, :1, :1]).all())
        kinds.add("blend" if whole else "cut")
        assert whole or set(found.unique().tolist()) <= set(range(6))
        assert ((found - value).abs().flatten(1).mean(1) <= 0.6 * 5).all()
    assert kinds == {"blend", "cut"}


def test_images_are_flipped_and_shifted_alike() -> None:
    images = images_of({"x": (1, 16, 16, 3), "z": (1, 16, 16, 1)})
    assert images is not None
    line = torch.arange(16.0).reshape(1, 1, 1, 16, 1).expand(8, 1, 16, 16, 3).clone()
    found = augmented({"x": line, "z": line[..., :1].clone()}, images, np.random.default_rng(0))
    assert (found["x"][..., :1] == found["z"]).all()
    rows = found["x"][:, 0, 0, 4:12, 0]
    steps = (rows[:, 1:] - rows[:, :-1])[:, 2:5]
    assert {1.0, -1.0} == set(steps.reshape(-1).tolist())


def test_neighbours_leave_the_pixel_out() -> None:
    image = torch.zeros(1, 1, 4, 4)
    image[0, 0, 1, 2] = 4.0
    found = neighbours(image, (2, 3))
    assert found[0, 0, 1, 2] == 0
    assert found[0, 0, 0, 2] == 2  # its neighbour above is the mirror image of the one below
    assert found[0, 0, 2, 2] == found[0, 0, 1, 1] == 1


def test_steps_go_down_by_equal_shares(pair: dict[str, Path], tmp_path: Path) -> None:
    folder = tmp_path / "steps"
    folder.mkdir()
    schedule = Schedule(2, Compression(Budget("params", 0.25), align=1), folder)
    done = finetune_in_steps(
        pair["base"], pair["out"], pair["base"], pair["data"], Options(settings=settings(epochs=2)), schedule
    )
    assert done is not None
    assert [step.fraction for step in done.steps] == [0.5, 0.25]
    sizes = [
        sum(t.dims[0] for t in onnx.load(p).graph.initializer if t.name == "w1")
        for p in (pair["base"], folder / "step-01.onnx", pair["out"])
    ]
    assert sizes[0] > sizes[1] > sizes[2]
    assert all(step.reached <= step.fraction for step in done.steps)
    assert done.steps[1].path == pair["out"]


def test_half_precision_is_rounded_back(pair: dict[str, Path], tmp_path: Path) -> None:
    new, base = (saved(halved(classifier(w, k)), tmp_path / f"half{w}.onnx") for w, k in ((4, 1), (12, 0)))
    result = finetune(new, pair["out"], base, pair["data"], Options(settings=settings()))
    assert result is not None
    assert result.trained.after < result.trained.before
    kinds = {t.name: t.data_type for t in onnx.load(pair["out"]).graph.initializer}
    assert kinds["w1"] == kinds["b2"] == onnx.TensorProto.FLOAT16


def halved(proto: onnx.ModelProto) -> onnx.ModelProto:
    for value in (*proto.graph.input, *proto.graph.output):
        value.type.tensor_type.elem_type = onnx.TensorProto.FLOAT16
    for tensor in proto.graph.initializer:
        if tensor.data_type == onnx.TensorProto.FLOAT:
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float16), tensor.name))
    del proto.graph.value_info[:]
    return proto


def test_constant_nodes_are_trained_and_statistics_are_not() -> None:
    proto = build(
        """
        <ir_version: 8, opset_import: ["" : 17]>
        g (float[1, 3, 4, 4] x) => (float[1, 3, 4, 4] y)
        <float[3] scale, float[3] bias, float[3] mean, float[3, 1, 1] offset, float[3, 4, 4] place>
        {
            v = Constant <value_floats = [1.0, 2.0, 3.0]> ()
            n = BatchNormalization (x, scale, bias, mean, v)
            k = Constant <value = float[1] {0.5}> ()
            s = Constant <value_floats = [1.0, 2.0, 3.0, 4.0]> ()
            a = Add (n, offset)
            b = Mul (a, s)
            c = Add (b, place)
            y = Mul (c, k)
        }
        """
    )
    path = Path(os.devnull)
    from leanonnx.graph.model import Model

    model = Model(path, proto, "", ())
    assert trainable(model) == ("bias", "offset", "s", "scale")
    values = {"s": np.arange(4, dtype=np.float32), "scale": np.zeros(3, np.float32)}
    changed = Model(path, put_back(proto, values), "", ())
    assert changed.constant("s").tolist() == [0, 1, 2, 3]
    assert not changed.constant("scale").any()
    assert (changed.constant("bias") == model.constant("bias")).all()


def test_external_data_and_local_functions_stay_as_they_are(pair: dict[str, Path], tmp_path: Path) -> None:
    outside = tmp_path / "outside.onnx"
    onnx.save(classifier(4, 1), outside, save_as_external_data=True, size_threshold=64, location="weights.bin")
    options = Options(settings=settings())
    result = finetune(outside, pair["out"], pair["base"], pair["data"], options)
    assert result is not None
    assert result.trained.best_epoch
    assert pair["out"].with_name("out.onnx.data").exists()
    local = build(FUNCTION)
    result = finetune(saved(local, tmp_path / "f.onnx"), pair["out"], pair["base"], pair["data"], options)
    assert result is not None
    assert result.trained.best_epoch
    written = onnx.load(pair["out"])
    assert list(written.functions) == list(local.functions)
    assert list(written.graph.node) == list(local.graph.node)


FUNCTION = """
<ir_version: 8, opset_import: ["" : 17, "own" : 1]>
g (float[1, 3, 8, 8] x) => (float[1, 5] y)
<float[5, 192] w, float[5] b>
{
    h = own.head (x, w, b)
    y = Identity (h)
}
<domain: "own", opset_import: ["" : 17]>
head (x, w, b) => (h)
{
    f = Flatten (x)
    h = Gemm <transB = 1> (f, w, b)
}
"""


def test_steps_go_on_where_they_were_stopped(pair: dict[str, Path], tmp_path: Path) -> None:
    schedule = Schedule(2, Compression(Budget("params", 0.25), align=1))

    def tried(out: Path, **more: Any) -> None:
        options = Options(settings=settings(epochs=2, **more))
        finetune_in_steps(pair["base"], out, pair["base"], pair["data"], options, schedule)

    kept, whole = tmp_path / "state.pt", tmp_path / "whole.onnx"
    tried(whole)
    tried(pair["out"], checkpoint=kept)
    (tmp_path / "state.pt.step02").unlink()
    tried(pair["out"], checkpoint=kept, resume=True)
    assert pair["out"].read_bytes() == whole.read_bytes()


def test_a_wrong_operator_is_caught_by_the_round_trip(pair: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    def off(network: Network, feeds: Any) -> Any:
        return [[value * 1.01 for value in row] for row in right(network, feeds)]

    right = trip.in_torch
    monkeypatch.setattr(trip, "in_torch", off)
    with pytest.raises(ProofFailed, match="round trip"):
        finetune(pair["new"], pair["out"], pair["base"], pair["data"], Options(settings=settings()))
    assert not pair["out"].exists()


def test_ways_of_batching_agree(pair: dict[str, Path], tmp_path: Path) -> None:
    feeds = [{"x": row[None]} for row in np.load(pair["data"])["x"][:3]]
    fixed = load(pair["new"])
    assert batched(Network(fixed, trainable(fixed)), feeds, ("y",)).way == "mapped"
    free = load(saved(build(DENOISER), tmp_path / "free.onnx"))
    images = [{"x": np.ones((1, 1, 16, 16), np.float32) * k} for k in range(3)]
    assert batched(Network(free, trainable(free)), images, ("y",)).way == "joined"


def test_samples_of_one_batch_have_one_shape_and_none_is_lost() -> None:
    rows = [({"x": np.zeros((1, 1, size))}, None) for size in (2, 3, 2, 2, 3, 3, 2)]
    batches = list(grouped(rows, 3))
    assert sorted(len(batch) for batch in batches) == [1, 3, 3]
    assert all(len({feed["x"].shape for feed, _ in batch}) == 1 for batch in batches)


def test_streamed_data_are_shuffled_and_complete(pair: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    from leanonnx.data.samples import open_data
    from leanonnx.finetuning import loading

    monkeypatch.setattr(loading, "IN_MEMORY", 10000)
    monkeypatch.setattr(loading, "BUFFER", 1000)
    model = load(pair["new"])
    loader = open_loader(open_data(pair["data"], model, observe(model, {}).shapes), 8)
    assert loader.kept is None
    orders = [[float(f["x"][0, 0, 0, 0]) for g in loader.epoch((0, epoch)) for f, _ in g] for epoch in (0, 0, 1)]
    assert orders[0] == orders[1] != orders[2]
    assert sorted(orders[0]) == sorted(orders[2])
    assert len(set(orders[0])) == 32


def test_logits_are_compared_where_probabilities_come_out(tmp_path: Path) -> None:
    models = [load(saved(classifier(w, 0, "Softmax"), tmp_path / f"{w}.onnx")) for w in (8, 4)]
    shapes = [observe(model, {}).shapes for model in models]
    targets = common_targets(models[0], models[1], shapes[1], shapes[0])
    assert [(t.name, t.axis) for t in targets if not t.inner] == [("g1", 1)]


def test_wrong_requests_are_refused(pair: dict[str, Path], tmp_path: Path) -> None:
    def tried(**changed: Any) -> None:
        given = {**pair, **{k: v for k, v in changed.items() if k in pair}}
        teacher = None if changed.get("alone") else given["base"]
        finetune(
            given["new"],
            given["out"],
            teacher,
            given["data"],
            Options(changed.get("strategy", "school"), settings=settings(epochs=1)),
        )

    with pytest.raises(OptionError, match="--teacher"):
        tried(alone=True)
    with pytest.raises(DataError, match="no labels"):
        tried(strategy="supervised")
    with pytest.raises(OptionError, match="noise2self"):
        tried(strategy="noise2self")
    with pytest.raises(DataError, match="too few"):
        tried(data=samples(tmp_path / "few.npz", 3))
    with pytest.raises(OptionError, match="the output is the input"):
        tried(out=pair["base"])
    with pytest.raises(OptionError, match="inputs and outputs"):
        tried(base=saved(build(DENOISER.replace("x)", "other)").replace("(x,", "(other,")), tmp_path / "d.onnx"))
    odd = classifier(4, 0)
    odd.graph.node[1].op_type, odd.graph.node[1].domain = "Odd", "com.acme"
    with pytest.raises(ModelError, match="node 'R1'"):
        Network(load_unchecked(odd), ())
    assert not pair["out"].exists()


def load_unchecked(proto: onnx.ModelProto) -> Any:
    from leanonnx.graph.model import Model

    return Model(Path(os.devnull), proto, "", ())


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--keep", "0.5"], "--steps"),
        (["--steps", "2"], "exactly one"),
        (["--keep-steps", "."], "--steps"),
        (["--lr", "0"], "--lr"),
        (["--minutes", "-1"], "--minutes"),
        (["--resume"], "--checkpoint"),
        (["--strategy", "supervised"], "no labels"),
    ],
)
def test_exit_code_2(pair: dict[str, Path], words: list[str], says: str) -> None:
    done = subprocess.run(command(pair, pair["out"], *words), capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert says in done.stderr
    assert not pair["out"].exists()


def test_without_torch_the_fix_is_named(pair: dict[str, Path]) -> None:
    code = (
        "import sys, importlib.util as u; real = u.find_spec; "
        "u.find_spec = lambda name, *a: None if name == 'torch' else real(name, *a); "
        "from leanonnx.cli.main import main; main()"
    )
    words = command(pair, pair["out"])[len(COMMAND) :]
    done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "pip install 'leanonnx[finetune]'" in done.stderr

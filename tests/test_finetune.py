"""Fine-tuning: only weights change, the held-out loss never grows, and the requested objective is used."""

from __future__ import annotations

import io
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from rich.console import Console

from tests.helpers import build

torch = pytest.importorskip("torch", reason="torch is not installed: pip install torch")


from leanonnx.commands.finetune import parity as trip
from leanonnx.commands.finetune.driver import run_finetune
from leanonnx.commands.finetune.module import TorchNetwork
from leanonnx.commands.finetune.options import FinetuneOptions, TrainingSettings
from leanonnx.commands.finetune.report import finetune_report
from leanonnx.commands.finetune.tables import finetune_tables
from leanonnx.commands.finetune.weights import replace_constants, trainable_constants
from leanonnx.errors import ProofFailed
from leanonnx.graph.model import load
from leanonnx.runtime.sessions import run
from tests.tuning import CLASSIFIER, classifier, halved, samples, saved, settings


@pytest.fixture
def pair(tmp_path: Path) -> dict[str, Path]:
    """A teacher, a smaller student and data."""
    return {
        "base": saved(classifier(12, 0), tmp_path / "base.onnx"),
        "new": saved(classifier(4, 1), tmp_path / "new.onnx"),
        "data": samples(tmp_path / "data.npz"),
        "out": tmp_path / "out.onnx",
    }


def structure(path: Path, trained: tuple[str, ...]) -> bytes:
    """The file without the numbers of the weights that are trained."""
    proto = onnx.load(path)
    for tensor in proto.graph.initializer:
        if tensor.name in trained:
            tensor.ClearField("raw_data")
            tensor.ClearField("float_data")
    return proto.SerializeToString(deterministic=True)


def test_only_weights_change_and_the_deviation_falls(pair: dict[str, Path]) -> None:
    result = run_finetune(pair["new"], pair["out"], pair["base"], pair["data"], FinetuneOptions(settings=settings()))
    assert result is not None
    assert result.batch_mode == "mapped"
    names = trainable_constants(load(pair["new"]))
    assert names == ("b1", "b2", "w1", "w2")
    assert structure(pair["new"], names) == structure(pair["out"], names)
    assert result.training.after < 0.8 * result.training.before
    assert result.after.outputs[0].relative_l2 < result.before.outputs[0].relative_l2
    assert max(trip.error for trip in result.round_trips) < 1e-5
    feed = {"x": np.load(pair["data"])["x"][:1]}
    assert np.abs(run(pair["new"], [feed])[0][0] - run(pair["out"], [feed])[0][0]).max() > 1e-3


def test_the_input_is_written_if_nothing_is_better(pair: dict[str, Path]) -> None:
    options = FinetuneOptions(settings=settings(epochs=2))
    result = run_finetune(pair["base"], pair["out"], pair["base"], pair["data"], options)
    assert result is not None
    assert result.training.best_epoch == 0
    assert onnx.load(pair["out"]) == onnx.load(pair["base"])
    assert any("nothing better" in text for text in result.warnings)


def test_patience_ends_a_training_without_gain(pair: dict[str, Path]) -> None:
    options = FinetuneOptions(settings=settings(epochs=50, patience=2))
    result = run_finetune(pair["base"], pair["out"], pair["base"], pair["data"], options)
    assert result is not None
    assert len(result.training.history) == 2


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
    result = run_finetune(
        pair["new"], pair["out"], saved(base, pair["base"]), pair["data"], FinetuneOptions(settings=settings(epochs=2))
    )
    assert result is not None
    assert any("onnxruntime, sample by sample" in text for text in result.warnings)
    assert result.training.after < result.training.before


def test_half_precision_trains_too(pair: dict[str, Path]) -> None:
    result = run_finetune(
        pair["new"], pair["out"], pair["base"], pair["data"], FinetuneOptions(settings=settings(amp=True))
    )
    assert result is not None
    assert result.training.after < result.training.before


def test_minutes_end_a_training(pair: dict[str, Path]) -> None:
    for epochs in (100000, None):
        options = FinetuneOptions(settings=TrainingSettings(epochs=epochs, rate=0.01, batch=8, minutes=0.02))
        result = run_finetune(pair["new"], pair["out"], pair["base"], pair["data"], options)
        assert result is not None
        assert 0 < len(result.training.history) < 10000


def test_a_result_that_is_still_ruined_says_so_first(pair: dict[str, Path], tmp_path: Path) -> None:
    """A student of random weights that is hardly trained; without a teacher there is nothing to judge it by."""
    options = FinetuneOptions(settings=TrainingSettings(epochs=1, rate=1e-9, batch=8))
    result = run_finetune(pair["new"], pair["out"], pair["base"], pair["data"], options)
    assert result is not None and result.headline is not None
    assert result.headline.startswith("the result is still ruined: ") and result.warnings[0] == result.headline
    report = finetune_report(result)
    assert report.training.headline == result.headline
    console = Console(width=1000, file=io.StringIO())
    with console.capture() as capture:
        console.print(finetune_tables(report, "out.onnx"))
    assert capture.get().startswith(f"WARNING: {result.headline}")
    assert capture.get().count(result.headline) == 1
    with np.load(pair["data"]) as data:
        np.savez(tmp_path / "labelled.npz", labels=np.zeros(len(data[data.files[0]]), int), **data)
    alone = replace(options, strategy="supervised")
    judged = run_finetune(pair["new"], pair["out"], None, tmp_path / "labelled.npz", alone)
    assert judged is not None and judged.headline is None


def test_half_precision_is_rounded_back(pair: dict[str, Path], tmp_path: Path) -> None:
    new, base = (saved(halved(classifier(w, k)), tmp_path / f"half{w}.onnx") for w, k in ((4, 1), (12, 0)))
    result = run_finetune(new, pair["out"], base, pair["data"], FinetuneOptions(settings=settings()))
    assert result is not None
    assert result.training.after < result.training.before
    kinds = {t.name: t.data_type for t in onnx.load(pair["out"]).graph.initializer}
    assert kinds["w1"] == kinds["b2"] == onnx.TensorProto.FLOAT16


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

    model = Model(path=path, proto=proto, sha256="", external_files=())
    assert trainable_constants(model) == ("bias", "offset", "s", "scale")
    values = {"s": np.arange(4, dtype=np.float32), "scale": np.zeros(3, np.float32)}
    changed = Model(path=path, proto=replace_constants(proto, values), sha256="", external_files=())
    assert changed.constant("s").tolist() == [0, 1, 2, 3]
    assert not changed.constant("scale").any()
    assert (changed.constant("bias") == model.constant("bias")).all()


def test_external_data_and_local_functions_stay_as_they_are(pair: dict[str, Path], tmp_path: Path) -> None:
    outside = tmp_path / "outside.onnx"
    onnx.save(classifier(4, 1), outside, save_as_external_data=True, size_threshold=64, location="weights.bin")
    options = FinetuneOptions(settings=settings())
    result = run_finetune(outside, pair["out"], pair["base"], pair["data"], options)
    assert result is not None
    assert result.training.best_epoch
    assert pair["out"].with_name("out.onnx.data").exists()
    local = build(FUNCTION)
    result = run_finetune(saved(local, tmp_path / "f.onnx"), pair["out"], pair["base"], pair["data"], options)
    assert result is not None
    assert result.training.best_epoch
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


def test_a_wrong_operator_is_caught_by_the_round_trip(pair: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    def off(network: TorchNetwork, feeds: Any) -> Any:
        return [[value * 1.01 for value in row] for row in right(network, feeds)]

    right = trip.run_in_torch
    monkeypatch.setattr(trip, "run_in_torch", off)
    with pytest.raises(ProofFailed, match="round trip"):
        run_finetune(pair["new"], pair["out"], pair["base"], pair["data"], FinetuneOptions(settings=settings()))
    assert not pair["out"].exists()

"""Files that note shapes wrongly, and that onnxruntime runs nevertheless: compressed, and judged by their original."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest
from onnx import helper

from leanonnx.graph.model import load
from tests.helpers import CNN, build, called, called_json, refused, saved

BATCHED = CNN.replace("float[1, 3, 8, 8] x", "float[N, 3, H, W] x").replace("float[1, 5] y", "float[N, 5] y")


def sizes(value: onnx.ValueInfoProto) -> list[int | str]:
    return [dim.dim_value or dim.dim_param for dim in value.type.tensor_type.shape.dim]


def test_negative_sizes_are_free(tmp_path: Path) -> None:
    """Some exporters write -1 where an axis is free, as onnxruntime takes it."""
    proto = build(BATCHED)
    for dim in (*proto.graph.input[0].type.tensor_type.shape.dim, *proto.graph.output[0].type.tensor_type.shape.dim):
        if dim.dim_param:
            dim.dim_value = -1
    path, out = saved(proto, tmp_path / "m.onnx"), tmp_path / "out.onnx"
    row = called_json("compress", path, out, "--keep", "0.5", "--no-measure")
    assert row["kernels"]["fraction"] <= 0.5 and row["proof"]["sizes"] > 1
    assert sizes(onnx.load(out).graph.input[0]) == ["", 3, "", ""]


def wrong(note: onnx.ValueInfoProto) -> onnx.ModelProto:
    """The network with the shape of an inner value noted."""
    proto = build(CNN)
    proto.graph.value_info.append(note)
    return proto


NOTES = {
    "size": helper.make_tensor_value_info("r1", onnx.TensorProto.FLOAT, [1, 7, 8, 8]),
    "rank": helper.make_tensor_value_info("r1", onnx.TensorProto.FLOAT, [1, 8]),
}


@pytest.mark.parametrize("name", NOTES)
def test_notes_that_contradict_the_network(name: str, tmp_path: Path) -> None:
    path, out = saved(wrong(NOTES[name]), tmp_path / "m.onnx"), tmp_path / "out.onnx"
    model = load(path)
    assert model.repaired and not load(saved(build(CNN), tmp_path / "right.onnx")).repaired
    row = called_json("compress", path, out, "--keep", "0.5", "--no-measure")
    assert row["proof"]["status"] == "passed" and row["kernels"]["fraction"] <= 0.5
    assert any("contradict its operators" in text for text in row["warnings"])
    onnx.checker.check_model(str(out), full_check=True)
    assert called("check", path, out).returncode == 0


def test_a_model_that_loses_nothing_is_repaired(tmp_path: Path) -> None:
    path, out = saved(wrong(NOTES["size"]), tmp_path / "m.onnx"), tmp_path / "out.onnx"
    assert called("compress", path, out, "--keep", "1", "--no-measure").returncode == 0
    onnx.checker.check_model(str(out), full_check=True)


def test_a_new_model_must_not_bring_them_in(tmp_path: Path) -> None:
    """``check`` judges NEW as strictly as BASE is."""
    right, bad = saved(build(CNN), tmp_path / "right.onnx"), saved(wrong(NOTES["size"]), tmp_path / "bad.onnx")
    done = called("check", right, bad)
    assert done.returncode == 1 and "the ONNX checker refuses the model" in done.stdout
    assert "the ONNX checker refuses" not in called("check", bad, bad).stdout


LOOP = """
<ir_version: 8, opset_import: ["" : 17]>
net (float[1, 3, 8, 8] x) => (float[1, 4, 8, 8] y)
<float[8, 3, 3, 3] w1, float[4, 8, 3, 3] w2>
{
    a = Conv <pads = [1, 1, 1, 1]> (x, w1)
    r = Relu (a)
    n = Constant <value = int64 {2}> ()
    go = Constant <value = bool {1}> ()
    l, u = Loop (n, go, r) <body = step (int64 i, bool c, float s) => (bool d, float t, float v) {
        d = Identity (c)
        t = Abs (s)
        k = Constant <value = float[1] {2.0}> ()
        v = Neg (k)
    }>
    y = Conv <pads = [1, 1, 1, 1]> (l, w2)
}
"""
"""What the loop collects is noted as numbers, and made of vectors."""


def test_shapes_within_a_loop(tmp_path: Path) -> None:
    path, out = saved(build(LOOP), tmp_path / "m.onnx"), tmp_path / "out.onnx"
    assert load(path).repaired
    called_json("compress", path, out, "--keep", "0.9", "--no-measure", "--best-effort")
    onnx.checker.check_model(str(out), full_check=True)


def test_shapes_of_the_interface_are_not_repaired(tmp_path: Path) -> None:
    proto = build(CNN)
    proto.graph.output[0].type.tensor_type.shape.dim[1].dim_value = 7
    path = saved(proto, tmp_path / "m.onnx")
    refused(tmp_path, "compress", path, "out.onnx", "--keep", "0.5", says=("the ONNX checker refuses the model",))


def test_operators_that_contradict_their_shapes_are_refused(tmp_path: Path) -> None:
    proto = build(CNN)
    proto.graph.node[2].attribute[0].ints[:] = [1, 1, 1]
    path = saved(proto, tmp_path / "m.onnx")
    refused(tmp_path, "compress", path, "out.onnx", "--keep", "0.5", says=("the ONNX checker refuses the model",))

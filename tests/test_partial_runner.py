"""Running a network in pieces: any pieces give the tensors of one run, and no more is stored than is needed."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import numpy_helper

from leanonnx.errors import DataError
from leanonnx.recovery.partial_runner import PartialRunner, TensorSpill
from tests import graphs
from tests.calibrated import Array, Feed, analysed, net, normal_feeds, values

NET = net(
    "(float[N,3,6,6] x) => (float[N,4] y)",
    "float[5,3,3,3] a, float[5,5,3,3] b, float[80,4] c",
    """h = Conv (x, a) r = Relu (h) k = Identity (b) m = Conv <pads = [1, 1, 1, 1]> (r, k) s = Add (m, r)
       f = Flatten (s) y = Gemm (f, c)""",
)
ORDER = ["h", "r", "m", "s", "f", "y"]


def walked(
    proto: onnx.ModelProto, feeds: list[Feed], steps: list[list[str]], shelf: TensorSpill
) -> list[dict[str, Array]]:
    """Tensors of each step right after it, concatenated over the feeds."""
    walk = PartialRunner(proto, shelf, "t:")
    for feed in feeds:
        walk.start(feed)
    found = []
    for wanted in steps:
        walk.advance(wanted)
        found.append({name: np.concatenate([walk.value(name, k) for k in range(len(feeds))]) for name in wanted})
    return found


def judge(proto: onnx.ModelProto, feeds: list[Feed], steps: list[list[str]], limit: int) -> None:
    """Every tensor asked for, in any pieces, equals that of one full run."""
    shelf = TensorSpill(limit)
    found = walked(proto, feeds, steps, shelf)
    names = list(dict.fromkeys(name for wanted in steps for name in wanted))
    whole = dict(zip(names, values(proto, names, feeds), strict=True))
    for one in found:
        for name, value in one.items():
            assert value.shape == whole[name].shape
            assert np.linalg.norm(value - whole[name]) <= 1e-2 * np.linalg.norm(whole[name]) + 1e-5
    shelf.close()


@settings(max_examples=40)
@given(st.lists(st.sampled_from(ORDER), min_size=1, max_size=5, unique=True), st.sampled_from([0, 3000, 1 << 28]))
def test_any_steps_give_the_tensors_of_one_run(names: list[str], limit: int) -> None:
    feeds = normal_feeds(analysed(NET), 3, batch=2)
    judge(NET, feeds, [[name] for name in sorted(names, key=ORDER.index)], limit)


@pytest.mark.parametrize("seed", range(12))
def test_random_networks_in_pieces(seed: int) -> None:
    proto = graphs.from_seed(seed)
    dag = analysed(proto)
    rng = np.random.default_rng(seed)
    names = [n for node in proto.graph.node for n in node.output if n in dag.channel_ids]
    chosen = sorted(rng.choice(len(names), min(len(names), 4), replace=False))
    judge(proto, normal_feeds(dag, 2, seed), [[names[k]] for k in chosen], int(rng.choice([0, 1 << 28])))


def test_only_tensors_that_are_read_later_are_stored() -> None:
    feeds = normal_feeds(analysed(NET), 3)
    shelf = TensorSpill()
    walk = PartialRunner(NET, shelf, "t:")
    for feed in feeds:
        walk.start(feed)
    held = []
    for wanted in ORDER:
        walk.advance([wanted])
        held.append(set(shelf.tensors))
    assert held == [{f"t:{c}" for c in kept} for kept in ("h", "r", "mr", "s", "f", "y")]
    assert shelf.bytes_held == sum(
        v.nbytes for runs in shelf.tensors.values() for v in runs.values() if isinstance(v, np.ndarray)
    )
    assert shelf.bytes_held == 3 * 4 * 4


def test_tensors_beyond_memory_are_spilled_to_temporary_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files of deleted tensors are used again, and none is left."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    feeds = normal_feeds(analysed(NET), 3)
    shelf = TensorSpill(100)
    counts = []
    walk = PartialRunner(NET, shelf, "t:")
    for feed in feeds:
        walk.start(feed)
    for wanted in ORDER:
        walk.advance([wanted])
        counts.append((len(shelf.files), len(shelf.files) + len(shelf.free_files)))
    assert counts == [(1, 2), (1, 2), (2, 2), (1, 3), (1, 3), (0, 3)]
    np.testing.assert_allclose(walk.value("y", 1), values(NET, ["y"], [feeds[1]])[0], rtol=1e-4, atol=1e-5)
    shelf.close()
    assert list(tmp_path.iterdir()) == []


BLOCK = net(
    "(float[N,2,6,6] x) => (float[N,2,6,6] y)",
    "float[16,2,1,1] a, float[2,16,1,1] b",
    "w = Conv (x, a) r = Relu (w) n = Conv (r, b) y = Relu (n)",
)


@pytest.mark.parametrize("limit", [0, 1 << 28])
def test_wide_tensors_are_computed_again_where_memory_is_short(limit: int) -> None:
    """They are visited, but written to no file; a change of a later layer still counts."""
    feeds = normal_feeds(analysed(BLOCK), 3)
    shelf = TensorSpill(limit)
    walk = PartialRunner(BLOCK, shelf, "t:")
    for feed in feeds:
        walk.start(feed)
    for wanted in ("r", "n", "y"):
        seen: dict[int, Array] = {}
        walk.advance([wanted], lambda run, value, name=wanted, seen=seen: seen.update({run: np.array(value(name))}))
        for run, feed in enumerate(feeds):
            np.testing.assert_allclose(seen[run], values(BLOCK, [wanted], [feed])[0], rtol=1e-4, atol=1e-5)
        assert ("t:r" in shelf.tensors) == (wanted == "r" and limit > 0)
        assert ("t:x" in shelf.tensors) == (wanted == "r" and limit == 0)
    shelf.close()


def test_a_node_is_run_again_a_few_times_only() -> None:
    feeds = normal_feeds(analysed(BLOCK), 2)
    shelf = TensorSpill(0)
    walk = PartialRunner(BLOCK, shelf, "t:")
    for feed in feeds:
        walk.start(feed)
    for _ in range(3):
        assert "t:r" not in shelf.tensors
        walk.advance(["r"], lambda run, value: None)
    assert "t:r" in shelf.tensors and "t:x" not in shelf.tensors
    shelf.close()


def test_a_shape_that_is_read_later_does_not_keep_its_tensor() -> None:
    proto = net(
        "(float[N,2,6,6] x) => (float[N,72] y)",
        "float[2,2,1,1] a",
        "s = Shape <start = 0, end = 1> (x) c = Conv (x, a) m = Constant <value_ints = [-1]> ()"
        " t = Concat <axis = 0> (s, m) y = Reshape (c, t)",
    )
    feeds = normal_feeds(analysed(proto), 2)
    shelf = TensorSpill()
    walk = PartialRunner(proto, shelf, "t:")
    for feed in feeds:
        walk.start(feed)
    walk.advance(["c"])
    assert set(shelf.tensors) == {"t:c", "t:s"}
    walk.advance(["y"])
    np.testing.assert_allclose(walk.value("y", 1), values(proto, ["y"], [feeds[1]])[0], rtol=1e-4, atol=1e-5)


def test_a_resize_to_the_shape_of_a_tensor_runs_in_a_later_piece() -> None:
    """Its size joins a shape whose rank is known to one that comes from an earlier piece."""
    proto = net(
        "(float[1,2,8,8] x) => (float[1,2,8,8] y)",
        "float[2,2,3,3] a, int64[4] f = {1, -1, 4, 4}, int64 two = {2}, int64 three = {3}",
        """h = Conv <strides = [2, 2], pads = [1, 1, 1, 1]> (x, a) r = Reshape (h, f) s = Shape (x) t = Shape (r)
           b = Constant <value = int64[1] {0}> () e = Constant <value = int64[1] {2}> ()
           n = Slice (t, b, e, b) i = Gather (s, two) j = Gather (s, three) k = Unsqueeze <axes = [0]> (i)
           l = Unsqueeze <axes = [0]> (j) m = Concat <axis = 0> (k, l) c = Cast <to = 7> (m)
           z = Concat <axis = 0> (n, c) o = Constant <value = float[0] {}> ()
           y = Resize <mode = "linear"> (r, o, o, z)""",
        opset=12,
    )
    feeds = normal_feeds(analysed(proto), 2)
    judge(proto, feeds, [["h"], ["y"]], 1 << 28)


def test_layers_that_have_not_run_may_still_change() -> None:
    proto = onnx.ModelProto.FromString(NET.SerializeToString())
    feeds = normal_feeds(analysed(NET), 2)
    walk = PartialRunner(proto, TensorSpill(), "t:")
    for feed in feeds:
        walk.start(feed)
    walk.advance(["r"])
    tensor = next(t for t in proto.graph.initializer if t.name == "b")
    tensor.CopyFrom(numpy_helper.from_array(2 * numpy_helper.to_array(tensor), "b"))
    walk.advance(["m", "y"])
    for k, feed in enumerate(feeds):
        np.testing.assert_allclose(walk.value("m", k), values(proto, ["m"], [feed])[0], rtol=1e-4, atol=1e-5)
        assert not np.allclose(walk.value("m", k), values(NET, ["m"], [feed])[0], atol=1e-3)


def test_networks_that_cannot_take_the_inputs_are_refused() -> None:
    walk = PartialRunner(NET, TensorSpill(), "t:")
    walk.start({"x": np.zeros((1, 2, 6, 6), np.float32)})
    with pytest.raises(DataError, match="cannot be run on the calibration data"):
        walk.advance(["h"])

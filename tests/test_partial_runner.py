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

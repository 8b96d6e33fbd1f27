"""Recovery of a network against the network that it was cut from."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest

from leanonnx.analysis.dag import ChannelDag
from leanonnx.api.verbs import compress
from leanonnx.errors import ModelError, OptionError
from leanonnx.numeric.channel_ids import Mask
from leanonnx.recovery.matching import find_teacher
from leanonnx.recovery.recover import UNTAUGHT, recover
from leanonnx.selection.metrics import Budget
from leanonnx.selection.selector import SelectionRequest, select
from tests.calibrated import analysed, deviation, draft, keep, net, normal_feeds
from tests.helpers import called, saved

INTERFACE = "(float[N,3,8,8] x) => (float[N,5] y)"
CONSTANTS = """float[8,3,3,3] w0, float[8] b0, float[12,8,3,3] w1, float[12] b1, float[12,1,3,3] wd, float[8,12,1,1] w2,
    float[8] b2, float[5,128] w3, float[5] b3"""
BODY = """
    c0 = Conv <pads = [1, 1, 1, 1]> (x, w0, b0) r0 = Relu (c0)
    c1 = Conv <pads = [1, 1, 1, 1]> (r0, w1, b1) r1 = Relu (c1)
    d1 = Conv <pads = [1, 1, 1, 1], group = 12> (r1, wd) c2 = Conv (d1, w2, b2)
    z = Add (r0, c2) r2 = Relu (z) p = MaxPool <kernel_shape = [2, 2], strides = [2, 2]> (r2)
    f = Flatten (p) y = Gemm <transB = 1> (f, w3, b3)
"""


def residual(seed: int = 0, body: str = BODY) -> ChannelDag:
    """A block with a depthwise layer beside an identity, behind a convolution."""
    return analysed(net(INTERFACE, CONSTANTS, body, seed))


def cut(dag: ChannelDag) -> tuple[ChannelDag, Mask]:
    """The network without channels of both widths, and the keep mask."""
    alive = keep(dag, "c0", [1, 2, 4, 5, 7]) & keep(dag, "c1", [0, 3, 4, 8, 9, 11])
    return analysed(draft(dag, alive)), alive


def test_channels_of_a_cut_network_are_those_that_were_kept() -> None:
    whole = residual()
    thin, _ = cut(whole)
    teacher = find_teacher(thin, whole)
    wanted = {"c0": [1, 2, 4, 5, 7], "z": [1, 2, 4, 5, 7], "c1": [0, 3, 4, 8, 9, 11], "d1": [0, 3, 4, 8, 9, 11]}
    for name, kept in wanted.items():
        axis, positions = teacher.channels[name]
        assert (axis, positions.tolist()) == (-3, kept)
    pixels = [16 * channel + pixel for channel in wanted["c0"] for pixel in range(16)]
    assert teacher.channels["f"][1].tolist() == pixels
    assert {"c0", "c1", "d1", "c2"} <= teacher.unlike and "r0" not in teacher.unlike
    assert teacher.shared >= {"x", "c0", "r0", "c1", "d1", "c2", "z", "f", "y"}


def test_values_of_the_teacher_have_the_channels_of_the_network() -> None:
    whole = residual()
    thin, _ = cut(whole)
    value = np.random.default_rng(0).standard_normal((2, 8, 8, 8))
    np.testing.assert_array_equal(find_teacher(thin, whole).value("z", value), value[:, [1, 2, 4, 5, 7]])
    assert find_teacher(thin, whole).value("y", value) is value


def test_permuted_channels_are_matched_by_their_weights() -> None:
    whole = residual()
    alive = keep(whole, "c1", [0, 3, 4, 8, 9, 11])
    proto, order = draft(whole, alive), [5, 2, 0, 4, 1, 3]
    for tensor in proto.graph.initializer:
        axis = {"w1": 0, "b1": 0, "wd": 0, "w2": 1}.get(tensor.name)
        if axis is not None:
            array = np.take(onnx.numpy_helper.to_array(tensor), order, axis)
            tensor.CopyFrom(onnx.numpy_helper.from_array(np.ascontiguousarray(array), tensor.name))
    teacher = find_teacher(analysed(proto), whole)
    assert teacher.channels["d1"][1].tolist() == [[0, 3, 4, 8, 9, 11][k] for k in order]


def test_a_cut_network_is_fitted_to_what_it_came_from() -> None:
    whole = residual()
    thin, alive = cut(whole)
    taught = replace(thin, teacher=find_teacher(thin, whole))
    feeds, held = normal_feeds(whole, 60, 1), normal_feeds(whole, 20, 2)
    fitted = recover(taught, taught.all_alive, thin.model.proto, feeds, held)
    alone = recover(thin, thin.all_alive, thin.model.proto, feeds, held)
    from_whole = recover(whole, alive, draft(whole, alive), feeds, held)
    before, after, best = (deviation(whole, one, held) for one in (thin.model.proto, fitted.proto, from_whole.proto))
    assert deviation(whole, alone.proto, held) == pytest.approx(before)
    assert after < 0.7 * before
    assert after < 1.2 * best


def test_a_network_that_is_its_own_teacher_stays_as_it_is() -> None:
    whole = residual()
    taught = replace(whole, teacher=find_teacher(whole, residual()))
    assert not taught.teacher.unlike
    result = recover(taught, taught.all_alive, whole.model.proto, normal_feeds(whole, 10))
    assert all(layer.before == layer.after == 0 for layer in result.layers)


def test_a_layer_without_counterpart_is_left_alone() -> None:
    whole = residual()
    other = analysed(net(INTERFACE, CONSTANTS, BODY.replace("c1 = Conv", "cx = Conv").replace("(c1)", "(cx)"), 0))
    taught = replace(other, teacher=find_teacher(other, whole))
    result = recover(taught, taught.all_alive, other.model.proto, normal_feeds(whole, 10))
    assert {layer.reason for layer in result.layers if layer.reason} == {UNTAUGHT}


def test_pruning_further_from_a_teacher() -> None:
    whole = residual()
    thin, _ = cut(whole)
    taught = replace(thin, teacher=find_teacher(thin, whole))
    selection = select(taught, SelectionRequest(budget=Budget("kernels", 0.6), method="l2"))
    feeds, held = normal_feeds(whole, 60, 1), normal_feeds(whole, 20, 2)
    bare = draft(taught, selection.alive)
    fitted = recover(taught, selection.alive, bare, feeds, held)
    assert deviation(whole, fitted.proto, held) < deviation(whole, bare, held)


def test_a_teacher_with_another_output() -> None:
    other = analysed(net(INTERFACE.replace("] y)", "] out)"), CONSTANTS, BODY.replace("y = Gemm", "out = Gemm")))
    with pytest.raises(ModelError, match="has the outputs out"):
        find_teacher(residual(), other)


def test_a_teacher_without_any_of_the_layers() -> None:
    tensors = ["c0", "r0", "c1", "r1", "d1", "c2", "z", "r2"]
    body = BODY.replace("f = Flatten", "f_ = Flatten").replace("(f,", "(f_,")
    for name in tensors:
        body = (
            body.replace(f"{name} =", f"{name}_ =")
            .replace(f"({name}", f"({name}_")
            .replace(f", {name})", f", {name}_)")
        )
    other = analysed(net(INTERFACE, CONSTANTS, body))
    teacher = find_teacher(residual(), other)
    assert teacher.shared == {"x", "p", "y"}


def test_a_file_and_its_teacher(tmp_path: Path) -> None:
    whole = residual()
    thin, _ = cut(whole)
    original = saved(whole.model.proto, tmp_path / "whole.onnx")
    given = saved(thin.model.proto, tmp_path / "thin.onnx")
    rows = np.concatenate([feed["x"] for feed in normal_feeds(whole, 80)])
    np.savez(tmp_path / "x.npz", x=rows)
    result = compress(given, tmp_path / "out.onnx", teacher=original, calib=tmp_path / "x.npz")
    recovery = result.report.recovery
    assert recovery is not None and recovery.kept and result.macs.fraction == 1
    assert recovery.deviation.outputs["y"].relative_l2 < 0.7 * recovery.removed.outputs["y"].relative_l2


def test_a_teacher_needs_data(tmp_path: Path) -> None:
    original = saved(residual().model.proto, tmp_path / "whole.onnx")
    with pytest.raises(OptionError, match="add calib"):
        compress(original, tmp_path / "out.onnx", teacher=original, keep=0.5)
    assert called("compress", original, tmp_path / "out.onnx", "--teacher", original).returncode == 2

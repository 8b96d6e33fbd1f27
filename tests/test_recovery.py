"""Recovery of a pruned network with real inputs: what it makes up for, what it leaves alone."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from leanonnx.analysis.dag import ChannelDag
from leanonnx.numeric.channel_ids import Mask
from leanonnx.recovery import fitting, fold, layers
from leanonnx.recovery.layers import linear_layers
from leanonnx.recovery.pair import NetworkPair
from leanonnx.recovery.partial_runner import TensorSpill
from leanonnx.recovery.recover import RecoveryResult, recover
from leanonnx.recovery.rows import LayerSite
from leanonnx.recovery.sites import sites_of
from leanonnx.selection.metrics import Budget
from leanonnx.selection.selector import SelectionRequest, select
from tests import graphs
from tests.calibrated import Array, Feed, analysed, deviation, draft, keep, net, normal_feeds

CONV = (
    "(float[N,3,6,6] x) => (float[N,4] y)",
    "float[8,3,3,3] a, float[8] b, float[6,8,3,3] c, float[6] d, float[216,4] e",
    """h = Conv <pads = [1, 1, 1, 1]> (x, a, b) r = Relu (h) m = Conv <pads = [1, 1, 1, 1]> (r, c, d) s = Relu (m)
       f = Flatten (s) y = Gemm (f, e)""",
)
FLAT = (
    "(float[N,3,6,6] x) => (float[N,4] y)",
    "float[8,3,3,3] a, float[8] b, float[128,4] e, float[4] g",
    "h = Conv (x, a, b) r = Relu (h) f = Flatten (r) y = Gemm (f, e, g)",
)
LINEAR = (
    "(float[N,5,6] x) => (float[N,5,4] y)",
    "float[6,9] a, float[9] b, float[9,4] c, float[4] d",
    "h = MatMul (x, a) i = Add (h, b) r = Relu (i) m = MatMul (r, c) y = Add (m, d)",
)


def tensors(proto: onnx.ModelProto) -> dict[str, Array]:
    """Values of the constants, those of Constant nodes included."""
    found = {t.name: numpy_helper.to_array(t) for t in proto.graph.initializer}
    for node in proto.graph.node:
        if node.op_type == "Constant" and node.attribute[0].name == "value":
            found[node.output[0]] = numpy_helper.to_array(node.attribute[0].t)
    return found


def with_values(proto: onnx.ModelProto, changes: dict[str, Array]) -> onnx.ModelProto:
    """A copy with other values of some constants."""
    copy = onnx.ModelProto.FromString(proto.SerializeToString())
    for tensor in copy.graph.initializer:
        if tensor.name in changes:
            tensor.CopyFrom(numpy_helper.from_array(changes[tensor.name].astype(np.float32), tensor.name))
    return copy


def shape_of(proto: onnx.ModelProto) -> onnx.ModelProto:
    """A model without the values of its constants and without biases that some nodes lack."""
    copy = onnx.ModelProto.FromString(proto.SerializeToString())
    del copy.graph.initializer[:]
    for node in copy.graph.node:
        if node.op_type in ("Conv", "ConvTranspose", "Gemm"):
            del node.input[2:]
        if node.op_type == "Constant":
            del node.attribute[:]
    fixed = {t.name for t in proto.graph.initializer}
    inputs = [value for value in copy.graph.input if value.name not in fixed]
    del copy.graph.input[:]
    copy.graph.input.extend(inputs)
    return copy


def mended(
    dag: ChannelDag, alive: Mask, count: int = 40, held: int = 10, batch: int = 1, seed: int = 0
) -> tuple[onnx.ModelProto, RecoveryResult]:
    """The draft of a keep mask and its recovered version, which is valid and differs in constants only."""
    before = draft(dag, alive)
    feeds = normal_feeds(dag, count, 10 + seed, batch)
    found = recover(dag, alive, before, feeds, normal_feeds(dag, held, 1000, batch), seed)
    onnx.checker.check_model(found.proto, full_check=True)
    assert shape_of(found.proto) == shape_of(before)
    kinds = [{n: (v.shape, v.dtype) for n, v in tensors(p).items()} for p in (before, found.proto)]
    assert {name: kinds[1][name] for name in kinds[0]} == kinds[0]
    return before, found


def judge_better(dag: ChannelDag, alive: Mask, share: float, count: int = 60, batch: int = 1) -> RecoveryResult:
    """On inputs that recovery has not seen, at most a ``share`` of the deviation is left."""
    before, found = mended(dag, alive, count, batch=batch)
    unseen = normal_feeds(dag, 20, 77, batch)
    assert deviation(dag, found.proto, unseen) < share * deviation(dag, before, unseen)
    assert all(layer.reason == "" for layer in found.layers), found.layers
    return found


def dependent(constants: dict[str, Array], producer: str, bias: str, axis: int = 0) -> dict[str, Array]:
    """Values that make the last four channels of a layer positive multiples of the first ones, also after a Relu."""
    weight, offset = np.moveaxis(constants[producer].copy(), axis, 0), constants[bias].copy()
    weight[-4:], offset[-4:] = 2 * weight[:4], 2 * offset[:4]
    return {producer: np.moveaxis(weight, 0, axis), bias: offset}


@pytest.mark.parametrize(
    ("parts", "layer", "axis", "width"), [(CONV, ("h", "a", "b"), 1, 8), (LINEAR, ("h", "a", "b"), 2, 9)]
)
def test_scaled_copies_of_channels_are_compensated_exactly(
    parts: tuple[str, str, str], layer: tuple[str, str, str], axis: int, width: int
) -> None:
    judge_exact(parts, layer, axis, width)


def judge_exact(parts: tuple[str, str, str], layer: tuple[str, str, str], axis: int, width: int) -> None:
    proto = net(*parts)
    proto = with_values(proto, dependent(tensors(proto), layer[1], layer[2], 0 if axis == 1 else 1))
    dag = analysed(proto)
    alive = keep(dag, layer[0], range(width - 4), axis)
    before, found = mended(dag, alive, count=80)
    unseen = normal_feeds(dag, 10, 5)
    assert deviation(dag, before, unseen) > 0.1
    assert deviation(dag, found.proto, unseen) < 1e-3
    for name in layer[1:]:
        np.testing.assert_allclose(tensors(found.proto)[name], tensors(before)[name], atol=1e-3)


def judge_fold(
    monkeypatch: pytest.MonkeyPatch, parts: tuple[str, str, str], layer: tuple[str, str, str], axis: int, width: int
) -> None:
    """Channel regression alone, without the least squares that follow it, makes up for scaled channels."""
    monkeypatch.setattr(fitting, "best_fit", lambda *args: min(args[3], key=lambda start: start.error))
    proto = net(*parts)
    proto = with_values(proto, dependent(tensors(proto), layer[1], layer[2], 0 if axis == 1 else 1))
    dag = analysed(proto)
    before, found = mended(dag, keep(dag, layer[0], range(width - 4), axis), count=80)
    unseen = normal_feeds(dag, 10, 5)
    assert deviation(dag, before, unseen) > 0.1
    assert deviation(dag, found.proto, unseen) < 0.02


@pytest.mark.parametrize("parts", [CONV, FLAT])
def test_channel_regression_alone(monkeypatch: pytest.MonkeyPatch, parts: tuple[str, str, str]) -> None:
    monkeypatch.setattr(fold, "ENOUGH_ROWS_PER_FEATURE", 10**6)
    judge_fold(monkeypatch, parts, ("h", "a", "b"), 1, 8)


def test_channel_regression_is_left_out_where_rows_suffice_or_it_is_redundant() -> None:
    """The rows of a convolution suffice, a Flatten's do not; with one tap it is redundant."""
    for parts, count, wanted in (
        (CONV, 80, {"M": False, "Y": True}),
        (FLAT, 80, {"Y": True}),
        (LINEAR, 2, {"M": False}),
    ):
        dag = analysed(net(*parts))
        alive = keep(dag, "h", range(5), 2 if parts is LINEAR else 1)
        pair = NetworkPair(dag.model, draft(dag, alive), normal_feeds(dag, count), [], TensorSpill())
        layers, _ = linear_layers(dag, alive, replace(dag.model, proto=pair.after))
        sites, _ = sites_of(dag, alive, pair, layers, 8)
        names = {pair.after.graph.node[site.key].name: site for site in sites}
        assert {name: bool(site.fold_rows) for name, site in names.items() if isinstance(site, LayerSite)} == wanted


def test_a_layer_whose_input_is_the_original_one_is_left_as_it_is() -> None:
    proto = net(
        "(float[N,3,6,6] x) => (float[N,4] y)",
        "float[8,3,1,1] p, float[8,8,3,3] a, float[8] b, float[6,8,3,3] c, float[96,4] e",
        "g = Conv (x, p) h = Conv <pads = [1, 1, 1, 1]> (g, a, b) r = Relu (h) m = Conv (r, c) f = Flatten (m) "
        "y = Gemm (f, e)",
    )
    dag = analysed(proto)
    before, found = mended(dag, keep(dag, "h", range(5)))
    rows = {layer.name: (layer.before, layer.after) for layer in found.layers}
    assert rows["G"] == rows["H"] == (0.0, 0.0)
    assert rows["M"][0] > rows["M"][1] > 0
    changed = {n for n, v in tensors(before).items() if not np.array_equal(v, tensors(found.proto)[n])}
    assert "c" in changed <= {"c", "e"}


def test_removed_outputs_are_no_targets() -> None:
    judge_removed_outputs()


def judge_removed_outputs() -> None:
    dag = analysed(net(*CONV))
    found = judge_better(dag, keep(dag, "h", range(5)) & keep(dag, "m", (0, 2, 3, 5)), 0.9)
    assert 0 < (found.layers[1].before or 0) < 0.5


@pytest.mark.parametrize(("parts", "axis"), [(CONV, 1), (LINEAR, 2)])
def test_omitted_channels_are_compensated(parts: tuple[str, str, str], axis: int) -> None:
    dag = analysed(net(*parts))
    judge_better(dag, keep(dag, "h", range(5), axis), 0.9)


def test_images_are_used_turned_as_well() -> None:
    """With many positions and few inputs; the held-out ones decide."""
    dag = analysed(net(*CONV))
    judge_better(dag, keep(dag, "h", range(5)), 0.9, count=8, batch=2)


BIASED = {
    "no bias": ("h = Conv (x, a) r = Relu (h) m = Conv (r, c) y = Flatten (m)", "", 0.9),
    "grouped": (
        "h = Conv (x, a) r = Relu (h) g = Conv <group = 2> (r, v, w) t = Relu (g) m = Conv (t, c) y = Flatten (m)",
        "float[8,4,1,1] v, float[8] w,",
        1.0,
    ),
    "depthwise": (
        "h = Conv (x, a) r = Relu (h) g = Conv <group = 8> (r, v, w) t = Relu (g) m = Conv (t, c) y = Flatten (m)",
        "float[8,1,1,1] v, float[8] w,",
        1.0,
    ),
    "transposed": (
        """h = Conv (x, a) r = Relu (h) t = ConvTranspose <strides = [2, 2]> (r, v, w)
           p = AveragePool <kernel_shape = [2, 2], strides = [2, 2]> (t) m = Conv (p, c) y = Flatten (m)""",
        "float[8,8,2,2] v, float[8] w,",
        0.9,
    ),
    "normalised before an addition": (
        """h = Conv (x, a) r = Relu (h) t = Conv (r, v) n = BatchNormalization (t, k, l, o, q)
           s = Add (n, r) m = Conv (s, c) y = Flatten (m)""",
        "float[8,8,1,1] v, float[8] k = {1,2,1,2,1,2,1,-1}, float[8] l = {0,0,1,1,0,0,1,1},"
        "float[8] o = {0,0,0,0,1,1,1,1}, float[8] q = {1,2,3,1,1,1,1,1},",
        1.0,
    ),
    "shared bias": (
        "h = Conv (x, a, w) r = Relu (h) t = Conv (r, v, w) u = Relu (t) m = Conv (u, c) y = Flatten (m)",
        "float[8,8,1,1] v, float[8] w,",
        1.0,
    ),
}


@pytest.mark.parametrize("ir", [3, 8])
@pytest.mark.parametrize("name", BIASED)
def test_layers_of_all_kinds(name: str, ir: int) -> None:
    body, constants, share = BIASED[name]
    proto = net("(float[N,3,4,4] x) => (float[N,10] y)", f"{constants} float[8,3,3,3] a, float[10,8,2,2] c", body)
    proto.ir_version = ir
    if ir == 3:
        made = list(proto.graph.initializer)
        proto.graph.input.extend(onnx.helper.make_tensor_value_info(t.name, t.data_type, t.dims) for t in made)
    dag = analysed(proto)
    alive = keep(dag, "h", (0, 1, 3, 4, 6) if name != "grouped" else range(7))
    before, found = mended(dag, alive, count=150, batch=2)
    unseen = normal_feeds(dag, 30, 77, 2)
    assert deviation(dag, found.proto, unseen) < share * deviation(dag, before, unseen)
    assert sum(layer.after is not None for layer in found.layers) >= 2


def test_half_precision_stays_half_precision() -> None:
    parts = [text.replace("float[", "float16[") for text in CONV[:2]]
    dag = analysed(net(*parts, CONV[2]))
    judge_better(dag, keep(dag, "h", range(5)), 0.9)


def test_weights_in_constant_nodes() -> None:
    proto = net(*CONV)
    for tensor in list(proto.graph.initializer):
        proto.graph.node.insert(0, onnx.helper.make_node("Constant", [], [tensor.name], value=tensor))
        proto.graph.initializer.remove(tensor)
    dag = analysed(proto)
    judge_better(dag, keep(dag, "h", range(5)), 0.9)


def test_a_bias_that_other_layers_read_is_given_to_each_apart() -> None:
    proto = net(
        "(float[N,3,4,4] x) => (float[N,8] y)",
        "float[8,3,3,3] a, float[8,8,2,2] v, float[8,8,2,2] u, float[8] w",
        "h = Conv (x, a) r = Relu (h) t = Conv (r, v, w) m = Conv (r, u, w) s = Sum (t, m) y = Flatten (s)",
    )
    before, found = mended(analysed(proto), keep(analysed(proto), "h", range(5)), batch=2)
    biases = [node.input[2] for node in found.proto.graph.node if node.name in "TM"]
    assert {node.input[2] for node in before.graph.node if node.name in "TM"} == {"w"}
    assert len({*biases, "w"}) == 3
    np.testing.assert_array_equal(tensors(found.proto)["w"], tensors(before)["w"])


def judge_valid(dag: ChannelDag, alive: Mask, feeds: list[Feed]) -> None:
    """Whatever the inputs: finite weights, a valid network, and one that is no worse on those inputs."""
    before = draft(dag, alive)
    found = recover(dag, alive, before, feeds)
    onnx.checker.check_model(found.proto, full_check=True)
    assert all(np.isfinite(value).all() for value in tensors(found.proto).values())
    assert deviation(dag, found.proto, feeds) <= deviation(dag, before, feeds) * 1.05 + 1e-4


@pytest.mark.parametrize("count", [1, 2, 7])
@pytest.mark.parametrize("value", [None, 0.0, 1.0])
def test_few_and_constant_inputs(count: int, value: float | None) -> None:
    dag = analysed(net(*CONV))
    feeds = normal_feeds(dag, count)
    if value is not None:
        feeds = [{"x": np.full_like(feed["x"], value)} for feed in feeds]
    judge_valid(dag, keep(dag, "h", range(5)), feeds)


def test_channels_that_are_never_active() -> None:
    proto = net(*CONV)
    bias = tensors(proto)["b"].copy()
    bias[:4] = -1e3
    dag = analysed(with_values(proto, {"b": bias}))
    judge_valid(dag, keep(dag, "h", (0, 1, 2, 3, 5)), normal_feeds(dag, 30))


@pytest.mark.parametrize("seed", range(30))
def test_random_networks(seed: int) -> None:
    """Valid, with the same interface, and finite; no worse where nothing was missing."""
    dag = analysed(graphs.from_seed(seed))
    budget = Budget("kernels", 0.5 if seed % 4 else 1.0)
    alive = select(dag, SelectionRequest(budget=budget, method="random", seed=seed, best_effort=True)).alive
    before, found = mended(dag, alive, 6, 2 * (seed % 2), batch=2)
    assert all(np.isfinite(v).all() for v in tensors(found.proto).values() if v.dtype.kind == "f")
    deviation(dag, found.proto, normal_feeds(dag, 1))
    if alive.all():
        unseen = normal_feeds(dag, 2)
        assert deviation(dag, found.proto, unseen) < 1e-2 + deviation(dag, before, unseen)


def test_twice_the_same() -> None:
    dag = analysed(net(*CONV))
    alive = keep(dag, "h", range(5))
    files = [mended(dag, alive, seed=seed)[1].proto.SerializeToString(deterministic=True) for seed in (0, 0, 1)]
    assert files[0] == files[1] != files[2]


def test_skipped_layers_have_a_reason() -> None:
    proto = net(
        "(float[N,6] x) => (float[N,4] y, float[N,4] z)",
        "float[6,8] a, float[8,4] c, float[4] d",
        "h = MatMul (x, a) r = Relu (h) y = Gemm <alpha = 2.0> (r, c, d) z = Gemm (r, c)",
    )
    dag = analysed(proto)
    _, found = mended(dag, keep(dag, "h", range(5)))
    reasons = {layer.name: layer.reason for layer in found.layers}
    assert reasons == {"H": "", "Y": "it scales its product", "Z": layers.OTHER_READERS}

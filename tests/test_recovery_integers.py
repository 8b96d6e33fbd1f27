"""Recovery of networks whose weights are 8-bit integers: pairs of quantisers, and operators on integers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnxruntime import quantization

from leanonnx.analysis.dag import ChannelDag
from leanonnx.numeric.channel_ids import Mask
from leanonnx.recovery import integers, requantise
from leanonnx.recovery.recover import RecoveryResult, recover
from tests.calibrated import Array, Feed, analysed, deviation, draft, keep, net, normal_feeds
from tests.helpers import called_json, refused, saved
from tests.test_recovery import mended, tensors, with_values
from tests.test_variants_quantised import int4, integer_products
from tests.test_variants_quantised import integers as integer_operators

INTEGER_FORMS = [
    ("QDQ", True, "QInt8"),
    ("QDQ", False, "QInt8"),
    ("QDQ", True, "QUInt8"),
    ("QDQ", False, "QUInt8"),
    ("QOperator", True, "QInt8"),
    ("QOperator", False, "QInt8"),
    ("QOperator", False, "QUInt8"),
]
"""Format, one scale per channel or not, type of the weights."""
KEPT = (0, 2, 3, 5, 8, 9, 12, 15)
"""Half of the channels of the first layer."""


class Samples(quantization.CalibrationDataReader):
    """Normal inputs for ranges."""

    def __init__(self) -> None:
        rng = np.random.default_rng(5)
        self.feeds = iter([{"x": (rng.standard_normal((1, 3, 8, 8)) + 0.3).astype(np.float32)} for _ in range(16)])

    def get_next(self) -> dict[str, Array] | None:
        return next(self.feeds, None)


@cache
def float_network() -> onnx.ModelProto:
    """Convolutions, plain and depthwise, and a dense layer; the channels of the first layer have few sources."""
    proto = net(
        "(float[N,3,8,8] x) => (float[N,5] y)",
        "float[16,3,3,3] a, float[16] b, float[16,1,3,3] v, float[16] w, float[12,16,3,3] c, float[12] d, "
        "float[48,5] e, float[5] g",
        """h = Conv (x, a, b) r = Relu (h) k = Conv <pads = [1, 1, 1, 1], group = 16> (r, v, w)
           m = Conv <strides = [2, 2]> (k, c, d) s = Relu (m) f = Flatten (s) y = Gemm (f, e, g)""",
    )
    old, rng = tensors(proto), np.random.default_rng(2)
    mixed = np.tensordot(rng.standard_normal((16, 5)), old["a"][:5], 1)
    return with_values(proto, {"a": mixed / 2, "b": old["b"] / 4, "v": np.abs(old["v"]) / 3})


@cache
def quantised(form: str, per_channel: bool, kind: str, reduced: bool = False) -> ChannelDag:
    """The network as onnxruntime quantises it."""
    with TemporaryDirectory() as folder:
        target = Path(folder) / "int8.onnx"
        quantization.quantize_static(
            saved(float_network(), Path(folder) / "float.onnx"),
            target,
            Samples(),
            quant_format=quantization.QuantFormat[form],
            per_channel=per_channel,
            weight_type=quantization.QuantType[kind],
            activation_type=quantization.QuantType.QUInt8,
            reduce_range=reduced,
        )
        return analysed(onnx.load(target))


def half(dag: ChannelDag) -> Mask:
    """Half of the channels of the first layer."""
    first = next(node for node in dag.model.proto.graph.node if node.op_type in ("Conv", "QLinearConv"))
    return keep(dag, first.output[0], KEPT)


def judge_better(dag: ChannelDag, alive: Mask, share: float) -> tuple[onnx.ModelProto, RecoveryResult]:
    """On inputs that recovery has not seen, at most a ``share`` of the deviation is left."""
    before, result = mended(dag, alive, count=30, batch=4)
    unseen = normal_feeds(dag, 20, 77, 4)
    assert deviation(dag, result.proto, unseen) < share * deviation(dag, before, unseen)
    assert all(layer.reason == "" for layer in result.layers), result.layers
    return before, result


def judge_integers(before: onnx.ModelProto, after: onnx.ModelProto) -> None:
    """Zero points and scales of activations are as they were; each bias is in the unit that its integers ask for."""
    old, new = tensors(before), tensors(after)
    changed = {name for name in new if not np.array_equal(old[name], new[name])}
    assert any(new[name].dtype.kind in "iu" and new[name].ndim == 4 for name in changed)
    makers = {node.output[0]: node for node in after.graph.node if node.op_type == "DequantizeLinear"}
    own = set[str]()
    for node in after.graph.node:
        if node.op_type in ("Conv", "Gemm"):
            data, weight, bias = (makers[name] for name in node.input)
            np.testing.assert_allclose(
                new[bias.input[1]], new[data.input[1]] * new[weight.input[1]], rtol=1e-6, err_msg=node.name
            )
            own |= {*weight.input[:2], *bias.input[:2]}
        elif node.op_type == "QLinearConv":
            own |= {node.input[3], node.input[4], node.input[8]}
    assert changed <= own


def judge_all(dag: ChannelDag) -> tuple[onnx.ModelProto, onnx.ModelProto]:
    """Half of the channels are compensated, in integers; the network before and after."""
    before, result = judge_better(dag, half(dag), 0.3)
    judge_integers(before, result.proto)
    return before, result.proto


def fused(proto: onnx.ModelProto, folder: Path) -> int:
    """Number of layers that onnxruntime computes in integers."""
    options = ort.SessionOptions()
    options.optimized_model_filepath = str(folder / "optimised.onnx")
    ort.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    nodes = onnx.load(options.optimized_model_filepath).graph.node
    return sum(node.op_type in ("QLinearConv", "QGemm") for node in nodes)


@pytest.mark.parametrize(("form", "per_channel", "kind"), INTEGER_FORMS)
def test_half_of_the_channels_are_compensated(form: str, per_channel: bool, kind: str, tmp_path: Path) -> None:
    dag = quantised(form, per_channel, kind)
    before, after = judge_all(dag)
    assert fused(after, tmp_path) == fused(before, tmp_path) == 4


def wrong_scales(change: requantise.IntegerChange) -> requantise.IntegerChange:
    """The integers of other scales."""
    return replace(change, scales=None if change.scales is None else change.scales * 1.5)


def old_scales(change: requantise.IntegerChange) -> requantise.IntegerChange:
    """New integers for the old scales."""
    return replace(change, scales=None)


def old_units(change: requantise.IntegerChange) -> requantise.IntegerChange:
    """The bias keeps its unit in the file."""
    return replace(change, bias_units=None)


def without_zero_point(change: requantise.IntegerChange) -> requantise.IntegerChange:
    """Integers as if the zero point were 0."""
    centre = np.rint(change.weight.mean())
    return replace(change, weight=np.clip(change.weight - centre, 0, 255))


CARRY_OUT = requantise.IntegerChange.carry_out


@pytest.mark.parametrize(
    ("mutant", "form", "kind"),
    [
        (wrong_scales, "QDQ", "QInt8"),
        (wrong_scales, "QOperator", "QInt8"),
        (old_scales, "QOperator", "QInt8"),
        (old_units, "QDQ", "QInt8"),
        (without_zero_point, "QOperator", "QUInt8"),
    ],
)
def test_wrong_integers_are_noticed(
    monkeypatch: pytest.MonkeyPatch,
    mutant: Callable[[requantise.IntegerChange], requantise.IntegerChange],
    form: str,
    kind: str,
) -> None:
    monkeypatch.setattr(requantise.IntegerChange, "carry_out", lambda change, *to: CARRY_OUT(mutant(change), *to))
    dag = quantised(form, False, kind)
    with pytest.raises(AssertionError):
        judge_all(dag)


def test_data_of_other_scales_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The original's output has to follow from its integers: nothing is fitted to what is misread."""
    dag = quantised("QOperator", False, "QInt8")
    monkeypatch.setattr(integers.Quantised, "to_floats", lambda own, data: data.astype(np.float32) * own.scale)
    with pytest.raises(AssertionError):
        judge_better(dag, half(dag), 0.3)


@pytest.mark.parametrize(("kind", "ends"), [("QInt8", (-64, 64)), ("QUInt8", (0, 128))])
def test_seven_bits_stay_seven_bits(kind: str, ends: tuple[int, int]) -> None:
    dag = quantised("QDQ", True, kind, reduced=True)
    _, result = judge_better(dag, half(dag), 0.3)
    kinds = {"QInt8": np.int8, "QUInt8": np.uint8}
    weights = [value for value in tensors(result.proto).values() if value.dtype == kinds[kind] and value.ndim > 1]
    assert len(weights) == 4
    assert all(ends[0] <= value.min() and value.max() <= ends[1] for value in weights)


def integer_feeds(dag: ChannelDag, count: int, seed: int) -> list[Feed]:
    """Inputs of a network that reads floats or bytes."""
    rng = np.random.default_rng(seed)
    feeds = normal_feeds(dag, count, seed, 4)
    return [
        {k: v if v.dtype == np.float32 else rng.integers(80, 176, v.shape, v.dtype) for k, v in feed.items()}
        for feed in feeds
    ]


@pytest.mark.parametrize("make", [integer_operators, integer_products])
def test_integer_operators(make: Callable[[], onnx.ModelProto]) -> None:
    """Products per tensor and per channel, with zero points; those without scales keep the unit of their integers."""
    proto = make()
    dag = analysed(with_values(proto, {"s2": np.array(2e-4)}))
    alive = keep(dag, "a0" if "a0" in dag.channel_ids else "b", range(6))
    before = draft(dag, alive)
    result = recover(dag, alive, before, integer_feeds(dag, 40, 1), integer_feeds(dag, 10, 2))
    onnx.checker.check_model(result.proto)
    assert all(layer.reason == "" for layer in result.layers), result.layers
    unseen = integer_feeds(dag, 10, 3)
    assert deviation(dag, result.proto, unseen) < 0.9 * deviation(dag, before, unseen)


def test_other_integers_are_left_with_a_reason() -> None:
    """Four bits; and a weight that two layers read."""
    dag = analysed(int4())
    result = recover(dag, keep(dag, "a", range(8)), draft(dag, keep(dag, "a", range(8))), normal_feeds(dag, 8))
    assert {layer.reason for layer in result.layers} == {"", integers.QUANTISED_WEIGHT}
    proto = onnx.ModelProto.FromString(quantised("QDQ", False, "QInt8").model.proto.SerializeToString())
    layer = next(node for node in proto.graph.node if node.op_type == "Conv")
    twin = proto.graph.node.add()
    twin.CopyFrom(layer)
    twin.name, twin.output[0] = "twin", "twin"
    proto.graph.output.append(onnx.helper.make_tensor_value_info("twin", onnx.TensorProto.FLOAT, (None, 16, 6, 6)))
    dag = analysed(proto)
    everything = np.ones(dag.count, bool)
    result = recover(dag, everything, proto, normal_feeds(dag, 8))
    assert [one.name for one in result.layers if one.reason == integers.QUANTISED_SHARED] == [layer.name, "twin"]


@pytest.mark.parametrize("form", ["QDQ", "QOperator"])
def test_the_command_recovers_integers_and_proves_the_surgery(form: str, tmp_path: Path) -> None:
    source = saved(quantised(form, True, "QInt8").model.proto, tmp_path / "m.onnx")
    rng = np.random.default_rng(0)
    np.savez(tmp_path / "x.npz", x=(rng.standard_normal((200, 3, 8, 8)) + 0.3).astype(np.float32))
    asked = (source, tmp_path / "o.onnx", "--macs", 0.5, "--calib", tmp_path / "x.npz")
    row = called_json("compress", *asked)
    assert row["proof"]["status"] == "passed"
    assert row["recovery"]["kept"]
    refused(tmp_path, "compress", *asked, "--int8", says=("holds 8-bit integers already",))

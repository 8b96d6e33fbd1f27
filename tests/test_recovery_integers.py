"""Recovery of networks whose weights are 8-bit integers: pairs of quantisers, and operators on integers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import numpy_helper
from onnxruntime import quantization

from leanonnx.analysis.dag import ChannelDag
from leanonnx.errors import ModelError
from leanonnx.graph.model import Model
from leanonnx.numeric.channel_ids import Mask
from leanonnx.recovery import changes, integers, requantise
from leanonnx.recovery.recover import RecoveryResult, recover
from tests.calibrated import Array, Feed, analysed, deviation, draft, keep, net, normal_feeds
from tests.helpers import saved
from tests.test_recovery import mended, tensors, with_values
from tests.test_variants_quantised import integer_products, int4
from tests.test_variants_quantised import integers as integer_operators

FORMS = [
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
    before, result = mended(dag, alive, count=60, batch=4)
    unseen = normal_feeds(dag, 20, 77, 4)
    assert deviation(dag, result.proto, unseen) < share * deviation(dag, before, unseen)
    return before, result


@pytest.mark.parametrize(("form", "per_channel", "kind"), FORMS)
def test_half_of_the_channels_are_compensated(form: str, per_channel: bool, kind: str) -> None:
    dag = quantised(form, per_channel, kind)
    before, result = mended(dag, half(dag), count=60, batch=4)
    unseen = normal_feeds(dag, 20, 77, 4)
    print("DEV", form, per_channel, kind, deviation(dag, before, unseen), deviation(dag, result.proto, unseen))
    print(result.layers)

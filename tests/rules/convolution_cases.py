"""Convolutions and their fused and quantised forms."""

from __future__ import annotations

from typing import Any

import numpy as np

from tests.rules import mistakes
from tests.rules.case import Build, Case, Form, Refusal
from tests.rules.integers import integers, scales, zeros
from tests.rules.model_builder import ModelBuilder

MS = "com.microsoft"

ALL = (11, 13, 17, 21)


def conv(rank: int) -> Build:
    """Any stride, dilation and padding, with or without a bias."""

    def build(b: ModelBuilder) -> None:
        wide, out, size = b.between(2, 4), b.between(2, 5), b.between(1, 3)
        data = b.image(wide, *[5] * rank)
        bias = [b.const(b.normal(out))] if b.chance(2) else []
        weight = b.const(b.normal(out, wide, *[size] * rank))
        stride, dilation, pad = b.between(1, 2), b.between(1, 2), b.between(0, 1)
        extra: dict[str, Any] = (
            {"auto_pad": "SAME_UPPER"} if b.chance(4) else {"pads": [pad] * 2 * rank, "dilations": [dilation] * rank}
        )
        b.subject("Conv", [data, weight, *bias], strides=[stride] * rank, **extra)

    return build


def conv_grouped(b: ModelBuilder) -> None:
    """Several channels per group on both sides."""
    groups, width, out = b.between(2, 3), b.between(2, 3), b.between(1, 3)
    data = b.image(groups * width, 4, 4)
    weight = b.const(b.normal(groups * out, width, 1, 2))
    bias = [b.const(b.normal(groups * out))] if b.chance(2) else []
    b.subject("Conv", [data, weight, *bias], group=groups)


def conv_positions(b: ModelBuilder) -> None:
    """Few groups of many channels, which lose the same positions."""
    groups = b.between(2, 3)
    width, out = groups + b.between(1, 2), groups + 1
    data = b.image(groups * width, 3, 3)
    weight, bias = b.const(b.normal(groups * out, width, 1, 2)), b.const(b.normal(groups * out))
    b.subject("Conv", [data, weight, bias], group=groups)


def conv_depthwise(b: ModelBuilder) -> None:
    """One channel per conv group, each output once or several times."""
    channels, times = b.between(3, 5), b.between(1, 3)
    data = b.image(channels, 4, 4)
    weight = b.const(b.normal(channels * times, 1, 2, 2))
    b.subject("Conv", [data, weight, b.const(b.normal(channels * times))], group=channels)


def correlation(b: ModelBuilder) -> None:
    """The kernel is the image of another branch."""
    b.batch, b.free = 1, False
    channels = b.between(2, 4)
    bias = [b.const(b.normal(1))] if b.chance(2) else []
    b.subject("Conv", [b.image(channels, 4, 4), b.image(channels, 2, 2), *bias], pads=[b.choose(2)] * 4)


def correlation_by_channel(b: ModelBuilder) -> None:
    """One kernel for each channel or group of channels, from another branch."""
    b.batch, b.free = 1, False
    groups, width = b.between(2, 4), b.between(1, 2)
    kernels = b.node("Reshape", [b.image(groups * width, 2, 2), b.ints(groups, width, 2, 2)])
    bias = [b.const(b.normal(groups))] if b.chance(2) else []
    b.subject("Conv", [b.image(groups * width, 4, 4), kernels, *bias], group=groups)


def conv_computed_weight(b: ModelBuilder) -> None:
    b.batch, b.free = 1, False
    data = b.image(3, 4, 4)
    weight = b.node("Reshape", [b.rows(6), b.ints(2, 3, 1, -1)])
    b.subject("Conv", [data, weight])


def conv_constant_data(b: ModelBuilder) -> None:
    """A fixed pattern, filtered by the kernel of another branch."""
    b.batch, b.free = 1, False
    b.subject("Conv", [b.const(b.normal(1, 3, 4, 4)), b.image(3, 2, 2)])


def conv_weight_from_constants(b: ModelBuilder) -> None:
    data = b.image(3, 4, 4)
    parts = [b.initializer(b.normal(2, 3, 1, 1)) for _ in range(2)]
    b.subject("Conv", [data, b.node("Mul", parts)])


def conv_computed_bias(b: ModelBuilder) -> None:
    b.batch, b.free = 1, False
    bias = b.node("Reshape", [b.rows(4), b.ints(4)])
    b.subject("Conv", [b.image(3, 4, 4), b.const(b.normal(4, 3, 1, 1)), bias])


def transposed(groups: int, width: int, out: int) -> Build:
    def build(b: ModelBuilder) -> None:
        data = b.image(groups * width, 3, 3)
        bias = [b.const(b.normal(groups * out))] if b.chance(2) else []
        stride, pad = b.between(1, 2), b.between(0, 1)
        attributes: dict[str, Any] = {"strides": [stride] * 2, "pads": [pad] * 4, "group": groups}
        extra: dict[str, Any] = {"output_padding": [1, 0]} if stride == 2 and b.chance(2) else {"dilations": [1, 2]}
        weight = b.const(b.normal(groups * width, out, 3, 2))
        b.subject("ConvTranspose", [data, weight, *bias], **attributes, **extra)

    return build


def transposed_1d(b: ModelBuilder) -> None:
    data = b.image(3, 4)
    b.subject("ConvTranspose", [data, b.const(b.normal(3, 2, 2))], strides=[2])


def transposed_computed_weight(b: ModelBuilder) -> None:
    weight = b.node("Reshape", [b.rows(6), b.ints(3, 2, 1, -1)])
    b.subject("ConvTranspose", [b.image(3, 4, 4), weight])


def fused_conv(residual: bool) -> Build:
    def build(b: ModelBuilder) -> None:
        out = b.between(2, 4)
        data = b.image(3, 4, 4)
        inputs = [data, b.const(b.normal(out, 3, 1, 1)), b.const(b.normal(out))]
        inputs += [b.image(out, 4, 4)] if residual else []
        b.subject("FusedConv", inputs, domain=MS, activation="Relu")

    return build


def fused_conv_constant_residual(b: ModelBuilder) -> None:
    inputs = [b.image(3, 4, 4), b.const(b.normal(2, 3, 1, 1)), b.const(b.normal(2))]
    b.subject("FusedConv", [*inputs, b.initializer(b.normal(b.batch, 2, 4, 4))], domain=MS)


def qlinear_conv(groups: int, per_channel: bool, bias: bool) -> Build:
    def build(b: ModelBuilder) -> None:
        width, out = (1, 1) if groups > 2 else (b.between(2, 3), b.between(2, 3))
        data = b.quantised(b.image(groups * width, 4, 4))
        total = groups * out
        weight = integers(b, total, width, 1, 2)
        inputs = [data, b.scalar(0.05), b.scalar(128, np.uint8), weight, scales(b, total, per_channel)]
        inputs += [zeros(b, total, per_channel), b.scalar(0.1), b.scalar(128, np.uint8)]
        inputs += [b.const(b.rng.integers(-50, 50, total).astype(np.int32))] if bias else []
        b.subject("QLinearConv", inputs, group=groups)

    return build


def qlinear_conv_computed_weight(b: ModelBuilder) -> None:
    weight = b.node("QuantizeLinear", [b.node("Reshape", [b.rows(6), b.ints(2, 3, 1, -1)]), b.scalar(0.1)])
    sides = [b.scalar(0.05), b.scalar(128, np.uint8)]
    data = b.quantised(b.image(3, 4, 4))
    b.subject("QLinearConv", [data, *sides, weight, b.scalar(0.1), b.scalar(0, np.uint8), *sides])


def conv_integer(b: ModelBuilder) -> None:
    """onnxruntime takes one zero point for the whole weight."""
    out = b.between(2, 4)
    zero = [[], [b.scalar(128, np.uint8)], [b.scalar(128, np.uint8), b.scalar(3, np.int8)]][b.choose(3)]
    b.subject("ConvInteger", [b.quantised(b.image(3, 4, 4)), integers(b, out, 3, 2, 2), *zero], pads=[1, 1, 0, 0])


def conv_integer_computed_weight(b: ModelBuilder) -> None:
    weight = b.node("QuantizeLinear", [b.node("Reshape", [b.rows(6), b.ints(2, 3, 1, -1)]), b.scalar(0.1)])
    b.subject("ConvInteger", [b.quantised(b.image(3, 4, 4)), weight])


COMPUTED = "its weight is computed from a graph input"


def deform_conv(b: ModelBuilder) -> None:
    """Offsets and mask are graph inputs or constants."""
    wide, out, groups = b.one_of(((2, 3, 1), (3, 2, 1), (4, 4, 4)))
    data = b.image(wide, 4, 4)
    given = b.chance(2)
    b.free = b.free and given
    offset = b.source(8, 3, 3) if given else b.const(b.normal(b.batch, 8, 3, 3, scale=0.3))
    inputs = [data, b.const(b.normal(out, wide // groups, 2, 2)), offset, b.one_of(("", b.const(b.normal(out))))]
    inputs += [b.source(4, 3, 3)] if b.chance(2) else []
    b.subject("DeformConv", inputs, kernel_shape=[2, 2], group=groups)


def deform_conv_computed(b: ModelBuilder) -> None:
    offset = b.node("Tanh", [b.image(8, 3, 3)])
    b.subject("DeformConv", [b.image(3, 4, 4), b.const(b.normal(2, 3, 2, 2)), offset], kernel_shape=[2, 2])


def deform_conv_groups(b: ModelBuilder) -> None:
    weight = b.const(b.normal(2, 4, 2, 2))
    b.subject("DeformConv", [b.image(4, 4, 4), weight, b.source(16, 3, 3)], kernel_shape=[2, 2], offset_group=2)


CASES = [
    Case(
        "Conv",
        (
            Form("1d", conv(1), ALL, exact=False),
            Form("2d", conv(2), ALL, exact=False),
            Form("3d", conv(3), exact=False),
            Form("grouped", conv_grouped),
            Form("few groups", conv_positions),
            Form("depthwise", conv_depthwise),
            Form("weight from constants", conv_weight_from_constants, exact=False),
            Form("correlation", correlation),
            Form("correlation by channel", correlation_by_channel, exact=False),
        ),
        (
            Refusal("computed weight", conv_computed_weight, "its kernels are computed and have output channels"),
            Refusal("constant data", conv_constant_data, COMPUTED),
            Refusal("computed bias", conv_computed_bias, "input 2 is computed from a graph input"),
        ),
        wrong={"interleaved": mistakes.interleaved},
    ),
    Case(
        "ConvTranspose",
        (
            Form("plain", transposed(1, 3, 2), ALL, exact=False),
            Form("grouped", transposed(2, 2, 3), exact=False),
            Form("depthwise", transposed(3, 1, 1), exact=False),
            Form("1d", transposed_1d),
        ),
        (Refusal("computed weight", transposed_computed_weight, COMPUTED),),
    ),
    Case(
        "FusedConv",
        (Form("plain", fused_conv(False), exact=False), Form("residual", fused_conv(True), exact=False)),
        (Refusal("constant residual", fused_conv_constant_residual, "input 3 is a constant"),),
        MS,
    ),
    Case(
        "QLinearConv",
        (
            Form("plain", qlinear_conv(1, False, True), exact=False),
            Form("per channel", qlinear_conv(1, True, False), exact=False),
            Form("grouped", qlinear_conv(2, True, True), exact=False),
            Form("depthwise", qlinear_conv(4, True, True), exact=False),
        ),
        (Refusal("computed weight", qlinear_conv_computed_weight, COMPUTED),),
    ),
    Case(
        "ConvInteger",
        (Form("plain", conv_integer),),
        (Refusal("computed weight", conv_integer_computed_weight, COMPUTED),),
    ),
    Case(
        "DeformConv",
        (Form("given offsets", deform_conv, (19, 22), exact=False),),
        (
            Refusal("computed offsets", deform_conv_computed, "takes its offsets or mask from it", (19, 22)),
            Refusal("groups of offsets", deform_conv_groups, "its offset groups apply", (19, 22)),
        ),
    ),
]

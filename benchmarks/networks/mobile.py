"""Networks of depthwise and grouped convolutions, with squeeze-and-excitation or channel shuffle."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Final, NamedTuple

from .builder import Builder, Tensor

IMAGE: Final = (1, 3, 224, 224)


class Inverted(NamedTuple):
    """One inverted residual block: 1×1 to `expanded`, depthwise k×k, gate, 1×1 to `out`."""

    kernel: int
    expanded: int
    out: int
    stride: int
    act: str
    squeeze: int = 0
    squeeze_act: str = "Relu"
    gate: str = "HardSigmoid"


MOBILENET_V2: Final = (
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)
"""Table 2: (expansion t, channels c, repeats n, stride s)."""

MOBILENET_V3_LARGE: Final = (
    (3, 16, 16, False, "Relu", 1),
    (3, 64, 24, False, "Relu", 2),
    (3, 72, 24, False, "Relu", 1),
    (5, 72, 40, True, "Relu", 2),
    (5, 120, 40, True, "Relu", 1),
    (5, 120, 40, True, "Relu", 1),
    (3, 240, 80, False, "HardSwish", 2),
    (3, 200, 80, False, "HardSwish", 1),
    (3, 184, 80, False, "HardSwish", 1),
    (3, 184, 80, False, "HardSwish", 1),
    (3, 480, 112, True, "HardSwish", 1),
    (3, 672, 112, True, "HardSwish", 1),
    (5, 672, 160, True, "HardSwish", 2),
    (5, 960, 160, True, "HardSwish", 1),
    (5, 960, 160, True, "HardSwish", 1),
)
"""Table 1: (kernel, expansion size, channels, squeeze-and-excitation, non-linearity, stride)."""

EFFICIENTNET_B0: Final = (
    (1, 3, 1, 16, 1),
    (6, 3, 2, 24, 2),
    (6, 5, 2, 40, 2),
    (6, 3, 2, 80, 3),
    (6, 5, 1, 112, 3),
    (6, 5, 2, 192, 4),
    (6, 3, 1, 320, 1),
)
"""Table 1: (expansion, kernel, stride, channels, layers)."""

REGNET_Y_400MF: Final = ((48, 1), (104, 3), (208, 6), (440, 6))
"""Appendix, REGNETY-400MF: (width, depth) of each stage; group width 8."""
GROUP_WIDTH: Final = 8

SHUFFLENET_V2: Final = ((116, 4), (232, 8), (464, 4))
"""Table 5, column 1×: (channels, units) of stages 2 to 4."""


def mobilenet_v2(b: Builder) -> None:
    """MobileNetV2 (Sandler 2018, arXiv:1801.04381)."""
    x = _inverted_trunk(b, 32, "Relu6", _mobilenet_v2_blocks())
    b.classifier(b.global_pool(b.act(b.conv_bn(x, 1280, 1), "Relu6")))


def _mobilenet_v2_blocks() -> Iterator[Inverted]:
    width = 32
    for t, c, n, s in MOBILENET_V2:
        for i in range(n):
            yield Inverted(3, t * width, c, 1 if i else s, "Relu6")
            width = c


def mobilenet_v3_large(b: Builder) -> None:
    """MobileNetV3-Large (Howard 2019, arXiv:1905.02244)."""
    blocks = (
        Inverted(k, size, out, s, act, _divisible(size / 4) if se else 0)
        for k, size, out, se, act, s in MOBILENET_V3_LARGE
    )
    x = _inverted_trunk(b, 16, "HardSwish", blocks)
    x = b.flatten(b.global_pool(b.act(b.conv_bn(x, 960, 1), "HardSwish")))
    x = b.act(b.gemm(x, 1280), "HardSwish")
    b.output(b.gemm(x, 1000), 1, 1000)


def _divisible(width: float, divisor: int = 8) -> int:
    """The nearest multiple of the divisor, but never below nine tenths of the width."""
    rounded = max(divisor, int(width + divisor / 2) // divisor * divisor)
    return rounded + divisor if rounded < 0.9 * width else rounded


def efficientnet_b0(b: Builder) -> None:
    """EfficientNet-B0 (Tan 2019, arXiv:1905.11946)."""
    x = _inverted_trunk(b, 32, "SiLU", _efficientnet_blocks())
    b.classifier(b.global_pool(b.act(b.conv_bn(x, 1280, 1), "SiLU")))


def _efficientnet_blocks() -> Iterator[Inverted]:
    width = 32
    for t, k, s, c, n in EFFICIENTNET_B0:
        for i in range(n):
            yield Inverted(k, t * width, c, 1 if i else s, "SiLU", width // 4, "SiLU", "Sigmoid")
            width = c


def _inverted_trunk(b: Builder, stem: int, act: str, blocks: Iterable[Inverted]) -> Tensor:
    x = b.act(b.conv_bn(b.input(*IMAGE), stem, 3, 2), act)
    for block in blocks:
        x = _inverted_residual(b, x, block)
    return x


def _inverted_residual(b: Builder, x: Tensor, block: Inverted) -> Tensor:
    width = block.expanded
    y = x if x.width == width else b.act(b.conv_bn(x, width, 1), block.act)
    y = b.act(b.conv_bn(y, width, block.kernel, block.stride, groups=width), block.act)
    if block.squeeze:
        y = b.squeeze_excite(y, block.squeeze, block.squeeze_act, block.gate)
    y = b.conv_bn(y, block.out, 1)
    return b.add(x, y) if block.stride == 1 and x.width == block.out else y


def regnet_y_400mf(b: Builder) -> None:
    """RegNetY-400MF (Radosavovic 2020, arXiv:2003.13678)."""
    x = b.relu(b.conv_bn(b.input(*IMAGE), 32, 3, 2))
    for width, depth in REGNET_Y_400MF:
        for i in range(depth):
            x = _regnet_block(b, x, width, 1 if i else 2)
    b.classifier(b.global_pool(x))


def _regnet_block(b: Builder, x: Tensor, width: int, stride: int) -> Tensor:
    shortcut = x if stride == 1 and x.width == width else b.conv_bn(x, width, 1, stride)
    y = b.relu(b.conv_bn(x, width, 1))
    y = b.relu(b.conv_bn(y, width, 3, stride, groups=width // GROUP_WIDTH))
    y = b.squeeze_excite(y, round(x.width / 4), "Relu", "Sigmoid")
    return b.relu(b.add(shortcut, b.conv_bn(y, width, 1)))


def shufflenet_v2(b: Builder) -> None:
    """ShuffleNetV2 1× (Ma 2018, arXiv:1807.11164)."""
    x = b.max_pool(b.relu(b.conv_bn(b.input(*IMAGE), 24, 3, 2)), 3, 2, 1)
    size = 56
    for width, depth in SHUFFLENET_V2:
        size //= 2
        for i in range(depth):
            x = _channel_shuffle(b, _shuffle_unit(b, x, width // 2, 1 if i else 2), size)
    x = b.relu(b.conv_bn(x, 1024, 1))
    x = x._replace(name=b.op("ReduceMean", x, axes=[2, 3], keepdims=0))
    b.output(b.gemm(x, 1000), 1, 1000)


def _shuffle_unit(b: Builder, x: Tensor, half: int, stride: int) -> Tensor:
    if stride == 1:
        left, right = b.chunk(x, 2)
    else:
        right = x
        left = b.relu(b.conv_bn(b.conv_bn(x, x.width, 3, 2, groups=x.width), half, 1))
    right = b.relu(b.conv_bn(right, half, 1))
    right = b.conv_bn(right, half, 3, stride, groups=half)
    return b.concat(left, b.relu(b.conv_bn(right, half, 1)))


def _channel_shuffle(b: Builder, x: Tensor, size: int) -> Tensor:
    """Channel g · C/2 + i moves to 2 i + g, by Reshape, Transpose and Reshape."""
    pairs = b.reshape(x, -1, 2, x.width // 2, size, size)
    return b.reshape(b.transpose(pairs, 0, 2, 1, 3, 4), -1, x.width, size, size)

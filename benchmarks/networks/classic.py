"""Convolutional networks with plain, residual, dense and parallel blocks, and a U-Net."""

from __future__ import annotations

from typing import Final, NamedTuple

from .builder import Builder, Tensor

IMAGE: Final = (1, 3, 224, 224)


class ResNet(NamedTuple):
    """A row of table 1 of the ResNet or ResNeXt paper."""

    depths: tuple[int, int, int, int]
    bottleneck: bool = True
    groups: int = 1
    group_width: int = 64


RESNETS: Final = {
    "resnet18": ResNet((2, 2, 2, 2), bottleneck=False),
    "resnet50": ResNet((3, 4, 6, 3)),
    "resnext50_32x4d": ResNet((3, 4, 6, 3), groups=32, group_width=4),
}

VGG16: Final = ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3))
"""(channels, convolutions) between poolings: column D."""

INCEPTION: Final = (
    ((64, 96, 128, 16, 32, 32), (128, 128, 192, 32, 96, 64)),
    (
        (192, 96, 208, 16, 48, 64),
        (160, 112, 224, 24, 64, 64),
        (128, 128, 256, 24, 64, 64),
        (112, 144, 288, 32, 64, 64),
        (256, 160, 320, 32, 128, 128),
    ),
    ((256, 160, 320, 32, 128, 128), (384, 192, 384, 48, 128, 128)),
)
"""Modules 3a–3b, 4a–4e, 5a–5b as (#1×1, #3×3 reduce, #3×3, #5×5 reduce, #5×5, pool proj)."""

DENSENET121: Final = (6, 12, 24, 16)
GROWTH: Final = 32

UNET: Final = (16, 32, 64, 128)


def resnet(b: Builder, spec: ResNet) -> None:
    """ResNet (He 2016, arXiv:1512.03385) and ResNeXt (Xie 2017, arXiv:1611.05431).

    The stride of a bottleneck is at its 3×3 convolution, as in the usual implementations ("v1.5").
    """
    x = b.max_pool(b.relu(b.conv_bn(b.input(*IMAGE), 64, 7, 2)), 3, 2, 1)
    for stage, depth in enumerate(spec.depths):
        for i in range(depth):
            x = _residual(b, x, spec, 64 << stage, 2 if stage and not i else 1)
    b.classifier(b.global_pool(x))


def _residual(b: Builder, x: Tensor, spec: ResNet, planes: int, stride: int) -> Tensor:
    if spec.bottleneck:
        width, out = planes * spec.group_width // 64 * spec.groups, 4 * planes
        y = b.relu(b.conv_bn(x, width, 1))
        y = b.relu(b.conv_bn(y, width, 3, stride, groups=spec.groups))
        y = b.conv_bn(y, out, 1)
    else:
        out = planes
        y = b.conv_bn(b.relu(b.conv_bn(x, out, 3, stride)), out, 3)
    shortcut = x if stride == 1 and x.width == out else b.conv_bn(x, out, 1, stride)
    return b.relu(b.add(y, shortcut))


def vgg16(b: Builder) -> None:
    """VGG-16 (Simonyan 2015, arXiv:1409.1556) with batch normalisation."""
    x = b.input(*IMAGE)
    for width, depth in VGG16:
        for _ in range(depth):
            x = b.relu(b.conv_bn(x, width, 3, bias=True))
        x = b.max_pool(x, 2, 2)
    x = b.flatten(b.average_pool(x, 1, 1), x.width * 7 * 7)
    for _ in range(2):
        x = b.relu(b.gemm(x, 4096))
    b.output(b.gemm(x, 1000), 1, 1000)


def googlenet(b: Builder) -> None:
    """GoogLeNet (Szegedy 2015, arXiv:1409.4842) without auxiliary heads, with batch normalisation.

    As in torchvision, the branch that the paper calls 5×5 has 3×3 kernels.
    """
    x = b.max_pool(b.relu(b.conv_bn(b.input(*IMAGE), 64, 7, 2)), 3, 2, ceil=True)
    x = b.relu(b.conv_bn(b.relu(b.conv_bn(x, 64, 1)), 192, 3))
    for modules, kernel in zip(INCEPTION, (3, 3, 2), strict=True):
        x = b.max_pool(x, kernel, 2, ceil=True)
        for module in modules:
            x = _inception(b, x, *module)
    b.classifier(b.global_pool(x))


def _inception(b: Builder, x: Tensor, one: int, reduce3: int, three: int, reduce5: int, five: int, pool: int) -> Tensor:
    return b.concat(
        b.relu(b.conv_bn(x, one, 1)),
        b.relu(b.conv_bn(b.relu(b.conv_bn(x, reduce3, 1)), three, 3)),
        b.relu(b.conv_bn(b.relu(b.conv_bn(x, reduce5, 1)), five, 3)),
        b.relu(b.conv_bn(b.max_pool(x, 3, 1, 1, ceil=True), pool, 1)),
    )


def densenet121(b: Builder) -> None:
    """DenseNet-121 (Huang 2017, arXiv:1608.06993).

    A normalisation that reads a concatenation stays a node in the folded form too. The first layer of a block
    concatenates a single value, as exporters write it.
    """
    x = b.max_pool(b.relu(b.conv_bn(b.input(*IMAGE), 64, 7, 2)), 3, 2, 1)
    for block, depth in enumerate(DENSENET121):
        if block:
            x = b.average_pool(b.conv(b.relu(b.batch_norm(x)), x.width // 2, 1, bias=False), 2, 2)
        features = [x]
        for _ in range(depth):
            y = b.relu(b.batch_norm(b.concat(*features)))
            y = b.relu(b.conv_bn(y, 4 * GROWTH, 1))
            features.append(b.conv(y, GROWTH, 3, bias=False))
        x = b.concat(*features)
    b.classifier(b.global_pool(b.relu(b.batch_norm(x))))


def unet(b: Builder, classes: int = 2, size: int = 256) -> None:
    """A small U-Net (Ronneberger 2015, arXiv:1505.04597): grey image [1, 1, 256, 256] to [1, classes, 256, 256]."""
    x = _double_conv(b, b.input(1, 1, size, size), UNET[0])
    skips = []
    for width in UNET[1:]:
        skips.append(x)
        x = _double_conv(b, b.max_pool(x, 2, 2), width)
    for skip in reversed(skips):
        x = _double_conv(b, b.concat(skip, b.conv_transpose(x, skip.width, 2, 2)), skip.width)
    b.output(b.conv(x, classes, 1), 1, classes, size, size)


def _double_conv(b: Builder, x: Tensor, width: int) -> Tensor:
    return b.relu(b.conv_bn(b.relu(b.conv_bn(x, width, 3)), width, 3))

"""Operators on the pixels of each channel."""

from __future__ import annotations

from typing import Any

import numpy as np

from tests.rules.case import ONE, Build, Case, Form, Refusal
from tests.rules.model_builder import ModelBuilder

MS = "com.microsoft"
ALL = (11, 13, 17, 21)
STEERED = "takes its sampling positions or sizes from it"


def pool(op: str, rank: int, **attributes: Any) -> Build:
    def build(b: ModelBuilder) -> None:
        data = b.image(b.between(2, 4), *[4] * rank)
        stride, pad = b.between(1, 2), b.choose(2)
        ceil: dict[str, Any] = {"ceil_mode": b.choose(2)} if op != "LpPool" else {}
        b.subject(
            op, [data], kernel_shape=[2] * rank, strides=[stride] * rank, pads=[pad] * 2 * rank, **ceil, **attributes
        )

    return build


def pool_indices(b: ModelBuilder) -> None:
    b.subject("MaxPool", [b.image(3, 4, 4)], 2, kernel_shape=[2, 2])


def pool_for_unpool(b: ModelBuilder) -> None:
    """Indices that a MaxUnpool reads, with the channels they were found in."""
    data = b.image(b.between(2, 4), 4, 4)
    pooled, places = b.subject("MaxPool", [data], 2, strides=[2, 2], **KERNEL)
    b.reads = [b.node("MaxUnpool", [pooled, places], strides=[2, 2], **KERNEL)]


def pooled_places(b: ModelBuilder, channels: int, *sizes: int) -> str:
    """Indices of the maxima of a MaxPool with a window of 2 on these sizes."""
    windows: dict[str, Any] = {"kernel_shape": [2] * len(sizes), "strides": [2] * len(sizes)}
    b.node("MaxPool", [b.image(channels, *sizes)], 2, **windows)
    return b.nodes[-1].output[1]


def unpool(rank: int) -> Build:
    """Other data of as many channels."""

    def build(b: ModelBuilder) -> None:
        channels = b.between(2, 4)
        places = pooled_places(b, channels, *[4] * rank)
        data = b.image(channels, *[2] * rank)
        b.subject("MaxUnpool", [data, places], kernel_shape=[2] * rank, strides=[2] * rank)

    return build


def unpool_sized(b: ModelBuilder) -> None:
    """The size is given, with the channels in it."""
    b.free = False
    channels = b.between(2, 4)
    inputs = [b.image(channels, 2, 2), pooled_places(b, channels, 5, 5), b.ints(b.batch, channels, 5, 5)]
    b.subject("MaxUnpool", inputs, strides=[2, 2], **KERNEL)


def unpool_changed(b: ModelBuilder) -> None:
    """The indices pass through another operator."""
    places = b.node("Identity", [pooled_places(b, 3, 4, 4)])
    b.subject("MaxUnpool", [b.image(3, 2, 2), places], strides=[2, 2], **KERNEL)


def unpool_other_size(b: ModelBuilder) -> None:
    """The indices count in 4 x 4 pixels, the output has 5 x 5."""
    b.free = False
    inputs = [b.image(3, 2, 2), pooled_places(b, 3, 4, 4), b.ints(b.batch, 3, 5, 5)]
    b.subject("MaxUnpool", inputs, strides=[2, 2], **KERNEL)


def pool_over_channels(op: str) -> Build:
    """Channels last, with the pixels on axis 1."""

    def build(b: ModelBuilder) -> None:
        data = b.tokens(b.between(2, 4), 3, 2)
        b.subject(op, [data])
        b.reads = ["subject_0", data]

    return build


def pool_global(op: str) -> Build:
    def build(b: ModelBuilder) -> None:
        b.subject(op, [b.bent(b.image(b.between(2, 4), *b.one_of(((2, 3), (4,), (2, 2, 2)))))])

    return build


def grid_sample(b: ModelBuilder) -> None:
    """The grid is a graph input or a constant."""
    data = b.image(b.between(2, 4), 3, 3)
    grid = b.source(2, 2, 2) if b.chance(2) else b.const(b.normal(b.batch, 2, 2, 2, scale=0.5))
    b.free = b.free and grid.startswith("x")
    b.subject("GridSample", [data, grid], align_corners=b.choose(2))


def grid_sample_computed(b: ModelBuilder) -> None:
    b.subject("GridSample", [b.image(3, 3, 3), b.node("Tanh", [b.tokens(2, 2, 2)])])


def rois(b: ModelBuilder, width: int) -> str:
    """Regions of 4 × 4 pixels, given or constant; with 5 columns the first is the image."""
    corners = np.array([[0, 0, 2, 2], [1, 0, 3, 3]], np.float32)
    table = np.concatenate([np.zeros((2, width - 4), np.float32), corners], axis=1)
    return b.const(table)


def max_roi_pool(b: ModelBuilder) -> None:
    b.subject("MaxRoiPool", [b.image(b.between(2, 4), 4, 4), rois(b, 5)], pooled_shape=[2, 2])


def max_roi_pool_computed(b: ModelBuilder) -> None:
    b.batch, b.free = 1, False
    table = b.node("Mul", [b.node("Relu", [b.rows(5)]), b.floats(0, 1, 1, 1, 1)])
    b.subject("MaxRoiPool", [b.image(3, 4, 4), table], pooled_shape=[2, 2])


def roi_align(b: ModelBuilder) -> None:
    mode = b.one_of(("avg", "max"))
    inputs = [b.image(b.between(2, 4), 4, 4), rois(b, 4), b.ints(0, 0)]
    b.subject("RoiAlign", inputs, output_height=2, output_width=3, mode=mode)


def roi_align_computed(b: ModelBuilder) -> None:
    b.batch, b.free = 1, False
    regions = b.node("Mul", [b.node("Sigmoid", [b.rows(4)]), b.floats(1, 1, 3, 3)])
    b.subject("RoiAlign", [b.image(3, 4, 4), regions, b.ints(0)], output_height=2)


def qlinear_pool(op: str, channels_last: int = 0, **attributes: Any) -> Build:
    def build(b: ModelBuilder) -> None:
        data = b.quantised(b.image(b.between(2, 4), 4, 4))
        sides = [b.scalar(0.05), b.scalar(128, np.uint8), b.scalar(0.04), b.scalar(120, np.uint8)]
        b.subject(op, [data, *sides], domain=MS, channels_last=channels_last, **attributes)

    return build


def qlinear_pool_computed(op: str, **attributes: Any) -> Build:
    def build(b: ModelBuilder) -> None:
        data = b.quantised(b.image(3, 4, 4))
        sides = [b.scalar(128, np.uint8), b.scalar(0.04), b.scalar(120, np.uint8)]
        b.subject(op, [data, b.number(0.05), *sides], domain=MS, **attributes)

    return build


def resize_scales(b: ModelBuilder) -> None:
    mode = b.one_of(("nearest", "linear", "cubic"))
    scales = b.one_of(((1, 1, 2, 2), (1, 1, 1.5, 0.5)))
    extra: dict[str, Any] = (
        {"coordinate_transformation_mode": b.one_of(("asymmetric", "align_corners"))} if b.chance(2) else {}
    )
    region = "" if b.opset > 11 else b.const(np.zeros(0, np.float32))
    b.subject("Resize", [b.image(b.between(2, 4), 4, 4), region, b.floats(*scales)], mode=mode, **extra)


def resize_sizes(b: ModelBuilder) -> None:
    """The target names the channels."""
    channels = b.between(2, 4)
    empty = ["", ""] if b.opset > 11 else [b.const(np.zeros(0, np.float32))] * 2
    batch = 1 if b.free else b.batch
    b.subject("Resize", [b.image(channels, 4, 4), *empty, b.ints(batch, channels, 8, b.between(3, 6))])


def resize_axes(b: ModelBuilder) -> None:
    """The target names some axes only."""
    channels = b.between(2, 4)
    axes = b.one_of(([2, 3], [-1, 2], [1, 2, 3], [3, -3, 2]))
    target = {2: 8, 3: 6, -1: 6, 1: channels, -3: channels}
    b.subject("Resize", [b.image(channels, 4, 4), "", "", b.ints(*(target[a] for a in axes))], axes=axes)


def resize_axes_scales(b: ModelBuilder) -> None:
    data = b.image(b.between(2, 4), 4, 4)
    b.subject("Resize", [data, "", b.floats(2, 1.5)], axes=b.one_of(([2, 3], [-1, -2])))


def resize_computed(b: ModelBuilder) -> None:
    """The target is the shape of another tensor."""
    channels = b.between(2, 4)
    other = b.image(channels, 5, 3)
    empty = ["", ""] if b.opset > 11 else [b.const(np.zeros(0, np.float32))] * 2
    (name,) = b.subject("Resize", [b.image(channels, 2, 2), *empty, b.node("Shape", [other])])
    b.reads = [b.node("Add", [name, other])]


def resize_channels(b: ModelBuilder) -> None:
    region = "" if b.opset > 11 else b.const(np.zeros(0, np.float32))
    b.subject("Resize", [b.image(3, 2, 2), region, b.floats(1, 2, 1, 1)])


def resize_steered(b: ModelBuilder) -> None:
    """The factors are computed from a graph input."""
    b.free = False
    factors = b.node("Ceil", [b.node("Sigmoid", [b.node("Reshape", [b.source(2), b.ints(-1)])])])
    b.batch = 1
    scales = b.node("Concat", [b.floats(1, 1), factors], axis=0)
    b.subject("Resize", [b.image(3, 2, 2), "", scales])


def upsample(b: ModelBuilder) -> None:
    data = b.image(b.between(2, 4), 3, 3)
    scales = [1.0, 1.0, 2.0, 3.0]
    mode = b.one_of(("nearest", "linear"))
    if b.opset < 9:
        b.subject("Upsample", [data], scales=scales, mode=mode)
    else:
        b.subject("Upsample", [data, b.floats(*scales)], mode=mode)


def upsample_channels(b: ModelBuilder) -> None:
    b.subject("Upsample", [b.image(3, 3, 3), b.floats(1, 2, 1, 1)])


WHOLE = "pixels of each channel are taken together, however many"
KERNEL: dict[str, Any] = {"kernel_shape": [2, 2]}
RESIZED = "it resizes the channel axis"
CASES = [
    Case(
        "AveragePool",
        (
            Form("1d", pool("AveragePool", 1), ALL),
            Form("2d", pool("AveragePool", 2, count_include_pad=1), ALL),
            Form("3d", pool("AveragePool", 3)),
        ),
        whole=WHOLE,
    ),
    Case(
        "MaxPool",
        (
            Form("1d", pool("MaxPool", 1), ALL),
            Form("2d", pool("MaxPool", 2, storage_order=1), ALL),
            Form("indices for MaxUnpool", pool_for_unpool, ALL, exact=False),
        ),
        (Refusal("indices", pool_indices, "it outputs indices that count across all channels", ALL),),
    ),
    Case(
        "MaxUnpool",
        (
            Form("1d", unpool(1), ALL, exact=False),
            Form("2d", unpool(2), ALL, exact=False),
            Form("given size", unpool_sized, ALL, exact=False),
        ),
        (
            Refusal("changed indices", unpool_changed, "its indices do not come from a MaxPool", ALL),
            Refusal("another size", unpool_other_size, "its indices refer to a tensor of another size", ALL),
        ),
    ),
    Case("LpPool", (Form("2d", pool("LpPool", 2, p=2), ALL),), whole=WHOLE),
    *(
        Case(
            f"Global{kind}Pool",
            (
                Form("any rank", pool_global(f"Global{kind}Pool"), ALL),
                *(
                    [Form("over channels", pool_over_channels(f"Global{kind}Pool"), ALL, exact=False)]
                    if kind != "Max"
                    else []
                ),
            ),
            whole=WHOLE,
        )
        for kind in ("Average", "Max", "Lp")
    ),
    Case(
        "GridSample",
        (Form("given grid", grid_sample, (16, 17, 20, 21), exact=False),),
        (Refusal("computed grid", grid_sample_computed, STEERED, (16, 17, 21)),),
    ),
    Case(
        "QLinearGlobalAveragePool",
        (Form("image", qlinear_pool("QLinearGlobalAveragePool"), exact=False),),
        (Refusal("computed scale", qlinear_pool_computed("QLinearGlobalAveragePool"), STEERED),),
        MS,
        harmless={"unpinned": ONE},
    ),
    Case(
        "QLinearAveragePool",
        (Form("image", qlinear_pool("QLinearAveragePool", **KERNEL), exact=False),),
        (Refusal("computed scale", qlinear_pool_computed("QLinearAveragePool", **KERNEL), STEERED),),
        MS,
        harmless={"unpinned": ONE},
    ),
    Case(
        "Resize",
        (
            Form("scales", resize_scales, (11, 13, 18, 21), exact=False),
            Form("sizes", resize_sizes, (11, 13, 18, 21), exact=False),
            Form("sizes of axes", resize_axes, (18, 21), exact=False),
            Form("scales of axes", resize_axes_scales, (18, 21), exact=False),
            Form("computed sizes", resize_computed, (11, 13, 18, 21), exact=False),
        ),
        (
            Refusal("channels", resize_channels, RESIZED, (11, 13, 21)),
            Refusal("computed scales", resize_steered, STEERED, (13, 21)),
        ),
        harmless={"unpinned": ONE},
    ),
    Case("Upsample", (Form("scales", upsample, (7, 9)),), (Refusal("channels", upsample_channels, RESIZED, (9,)),)),
    Case(
        "MaxRoiPool",
        (Form("constant regions", max_roi_pool, ALL, exact=False),),
        (Refusal("computed regions", max_roi_pool_computed, STEERED),),
    ),
    Case(
        "RoiAlign",
        (Form("constant regions", roi_align, (10, 16, 17, 21), exact=False),),
        (Refusal("computed regions", roi_align_computed, STEERED, (16, 21)),),
    ),
]

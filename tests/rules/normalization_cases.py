"""Normalisations: per channel, per group of channels, over pixels, over channels."""

from __future__ import annotations

from tests.rules.case import Build, Case, Form, Refusal
from tests.rules.model_builder import ModelBuilder

MS = "com.microsoft"
ALL = (11, 13, 17, 21)


def parameters(b: ModelBuilder, channels: int) -> list[str]:
    """Scale, bias, mean and variance."""
    scale, variance = b.const(b.normal(channels)), b.const(b.positive(channels))
    return [scale, b.const(b.normal(channels)), b.const(b.normal(channels)), variance]


def batch_norm(b: ModelBuilder) -> None:
    channels = b.between(2, 4)
    data = b.ranked(channels, 2, 3, 4)
    epsilon = b.one_of((None, 0.5))
    b.subject("BatchNormalization", [data, *parameters(b, channels)], epsilon=epsilon)


def batch_norm_flat(b: ModelBuilder) -> None:
    """After a Reshape each channel fills several places, with gains of their own."""
    channels = b.between(2, 3)
    flat = b.node("Flatten", [b.image(channels, 2, 1)], axis=1)
    b.subject("BatchNormalization", [flat, *parameters(b, 2 * channels)])


def batch_norm_computed(b: ModelBuilder) -> None:
    b.batch, b.free = 1, False
    mean = b.node("Reshape", [b.rows(3), b.ints(3)])
    scale, bias, _, variance = parameters(b, 3)
    b.subject("BatchNormalization", [b.image(3, 2, 3), scale, bias, mean, variance])


def batch_norm_training(b: ModelBuilder) -> None:
    """By the statistics of the batch, which are outputs as well."""
    channels = b.between(2, 4)
    data = [b.bent(b.image(channels, 2, 3)), *parameters(b, channels)]
    b.subject("BatchNormalization", data, ["subject_0", "mean", "variance"], training_mode=1)
    b.reads = ["subject_0", "mean", "variance"] if b.chance(2) else ["subject_0"]


def batch_norm_old_training(b: ModelBuilder) -> None:
    """Before operator set 14 training mode has five outputs, among them the statistics."""
    names = ["subject_0", "mean", "variance", "saved_mean", "saved_variance"]
    b.subject("BatchNormalization", [b.image(3, 2, 3), *parameters(b, 3)], names)
    b.reads = ["subject_0"]


def instance_norm(b: ModelBuilder) -> None:
    channels = b.between(2, 4)
    data = b.bent(b.ranked(channels, 3, 4))
    b.subject("InstanceNormalization", [data, b.const(b.normal(channels)), b.const(b.normal(channels))])


def instance_norm_computed(b: ModelBuilder) -> None:
    b.batch, b.free = 1, False
    scale = b.node("Reshape", [b.rows(3), b.ints(3)])
    b.subject("InstanceNormalization", [b.image(3, 2, 3), scale, b.const(b.normal(3))])


def group_norm(b: ModelBuilder) -> None:
    groups, width = b.between(2, 3), b.between(1, 2)
    channels = groups * width
    data = b.bent(b.image(channels, 2, 3))
    b.subject("GroupNormalization", [data, b.const(b.normal(channels)), b.const(b.normal(channels))], num_groups=groups)


def group_norm_computed(b: ModelBuilder) -> None:
    b.batch, b.free = 1, False
    data, beside = b.image(4, 2, 3), b.const(b.normal(4))
    computed = b.node("Reshape", [b.rows(4), b.ints(4)])
    b.subject("GroupNormalization", [data, *b.one_of(((computed, beside), (beside, computed)))], num_groups=2)


def layer_norm_pixels(b: ModelBuilder) -> None:
    data = b.bent(b.image(b.between(2, 4), 2, 3))
    axis, shape = b.one_of(((-1, (3,)), (3, (3,)), (2, (2, 3)), (-2, (2, 3)), (None, (3,))))
    bias = [b.const(b.normal(*shape))] if b.chance(2) else []
    b.subject("LayerNormalization", [data, b.const(b.positive(*shape)), *bias], axis=axis)


def layer_norm_tokens(b: ModelBuilder) -> None:
    b.subject("LayerNormalization", [b.tokens(4, 3), b.const(b.positive(4)), b.const(b.normal(4))])


def layer_norm_from_channels(b: ModelBuilder) -> None:
    b.subject("LayerNormalization", [b.image(3, 2, 2), b.const(b.positive(3, 2, 2))], axis=b.one_of((1, -3)))


def layer_norm_statistics(b: ModelBuilder) -> None:
    b.subject("LayerNormalization", [b.image(3, 2, 3), b.const(b.positive(3))], 2, axis=-1)


def layer_norm_heads(b: ModelBuilder) -> None:
    """Each head by itself."""
    width = b.between(2, 3)
    b.subject("LayerNormalization", [b.headed(b.between(2, 3), width, 2), b.const(b.positive(width))], axis=-1)


def skip_norm(op: str) -> Build:
    """Over an axis without channels."""

    def build(b: ModelBuilder) -> None:
        channels = b.between(2, 4)
        operands = [b.bent(b.image(channels, 4)), b.bent(b.image(channels, 4)), b.const(b.positive(4))]
        operands += [b.const(b.normal(4))] if op == "SkipLayerNormalization" and b.chance(2) else []
        b.subject(op, operands, domain=MS, epsilon=1e-5)

    return build


def skip_norm_tokens(op: str) -> Build:
    def build(b: ModelBuilder) -> None:
        b.subject(op, [b.tokens(4, 3), b.tokens(4, 3), b.const(b.positive(4))], domain=MS)

    return build


def skip_norm_sum(op: str) -> Build:
    def build(b: ModelBuilder) -> None:
        operands = [b.image(3, 4), b.image(3, 4), b.const(b.positive(4))]
        b.subject(op, operands, ["subject_0", "", "", "subject_3"], domain=MS)

    return build


def neighbours(b: ModelBuilder) -> None:
    """A tensor without channels."""
    data = b.image(b.between(2, 4), 2, 3)
    (found,) = b.subject("LRN", [b.plain(3, 2, 3)], size=3)
    b.reads = [data, found]


def neighbours_channels(b: ModelBuilder) -> None:
    b.subject("LRN", [b.image(4, 2, 3)], size=3)


def rms_norm_pixels(b: ModelBuilder) -> None:
    axis, shape = b.one_of(((-1, (3,)), (2, (2, 3))))
    b.subject("RMSNormalization", [b.image(b.between(2, 4), 2, 3), b.const(b.positive(*shape))], axis=axis)


def rms_norm_tokens(b: ModelBuilder) -> None:
    """Over the channels, one number of the scale for each or one for all."""
    width, epsilon = b.between(2, 4), b.one_of((None, 0.5))
    scale = b.const(b.positive(*b.one_of(((width,), (1,), (1, width)))))
    b.subject("RMSNormalization", [b.tokens(width, 3), scale], epsilon=epsilon)


def rms_norm_from_channels(b: ModelBuilder) -> None:
    """Over channels and pixels."""
    width = b.between(2, 4)
    scale = b.const(b.positive(*b.one_of(((width, 2, 3), (width, 1, 1), (width, 1, 3)))))
    b.subject("RMSNormalization", [b.image(width, 2, 3), scale], axis=b.one_of((1, -3)), epsilon=b.one_of((None, 0.5)))


def rms_norm_heads(b: ModelBuilder) -> None:
    width = b.between(2, 3)
    b.subject("RMSNormalization", [b.headed(b.between(2, 3), width, 2), b.const(b.positive(width))], axis=-1)


def rms_norm_shifted(b: ModelBuilder) -> None:
    b.subject("RMSNormalization", [b.bent(b.tokens(4, 3)), b.const(b.positive(4))])


def rms_norm_computed(b: ModelBuilder) -> None:
    b.batch, b.free = 1, False
    b.subject("RMSNormalization", [b.tokens(4, 3), b.node("Reshape", [b.rows(4), b.ints(4)])])


def mean_variance(b: ModelBuilder) -> None:
    axes = b.one_of(([2, 3], [-1], [0, 2, 3]))
    b.subject("MeanVarianceNormalization", [b.bent(b.image(b.between(2, 4), 2, 3))], axes=axes)


def mean_variance_default(b: ModelBuilder) -> None:
    """By default over all axes but 1; the checker cannot follow this from operator set 13 on."""
    b.subject("MeanVarianceNormalization", [b.bent(b.image(b.between(2, 4), 2, 3))])


def mean_variance_rows(b: ModelBuilder) -> None:
    """[N, H, C, W]: channels on one of the axes taken by default."""
    turned = b.node("Transpose", [b.bent(b.image(3, 2, 3))], perm=[0, 2, 1, 3])
    b.subject("MeanVarianceNormalization", [turned])


def lp_norm_rows(b: ModelBuilder) -> None:
    """[N, H, C, W], by default over the last axis."""
    b.whole = True
    turned = b.node("Transpose", [b.bent(b.image(b.between(2, 4), 2, 3))], perm=[0, 2, 1, 3])
    b.subject("LpNormalization", [turned])


def mean_variance_channels(b: ModelBuilder) -> None:
    b.subject("MeanVarianceNormalization", [b.bent(b.image(3, 2, 3))], axes=b.one_of(([1], [-3, 2], [0, 1, 2, 3])))


def lp_norm(b: ModelBuilder) -> None:
    data = b.bent(b.image(b.between(2, 4), 2, 3))
    b.subject("LpNormalization", [data], axis=b.one_of((2, -1, None)), p=b.one_of((1, 2)))


def lp_norm_channels(b: ModelBuilder) -> None:
    b.subject("LpNormalization", [b.image(b.between(2, 4), 2, 3)], axis=b.one_of((1, -3)), p=b.one_of((1, 2)))


def lp_norm_default(b: ModelBuilder) -> None:
    """The last axis, with the channels."""
    b.subject("LpNormalization", [b.tokens(b.between(2, 4), 3)])


def lp_norm_shifted(b: ModelBuilder) -> None:
    b.subject("LpNormalization", [b.bent(b.tokens(3, 3))])


def lp_norm_heads(b: ModelBuilder) -> None:
    b.subject("LpNormalization", [b.headed(b.between(2, 3), b.between(2, 3), 2)], axis=-1)


OVER = "it normalises over the channels"
NOT_ZERO = "it normalises over the channels, which would not be zero there"
MOMENTS = "it takes mean and variance over the channels"
CASES = [
    Case(
        "BatchNormalization",
        (
            Form("any rank", batch_norm, (9, 11, 13, 17, 21), linear=True),
            Form("flattened", batch_norm_flat),
            Form("training", batch_norm_training, (14, 15, 17)),
        ),
        (
            Refusal("computed mean", batch_norm_computed, "its statistics are computed at run time"),
            Refusal("statistics", batch_norm_old_training, "it outputs its statistics", (9, 11)),
        ),
    ),
    Case(
        "InstanceNormalization",
        (Form("any rank", instance_norm, ALL),),
        (Refusal("computed scale", instance_norm_computed, "its scale is computed at run time"),),
    ),
    Case(
        "GroupNormalization",
        (Form("groups", group_norm, (21, 23), exact=False, mates=True),),
        (Refusal("computed scale", group_norm_computed, "its scale is computed at run time", (21, 23)),),
    ),
    Case(
        "LayerNormalization",
        (Form("pixels", layer_norm_pixels, (17, 21)), Form("heads", layer_norm_heads, (17, 21))),
        (
            Refusal("tokens", layer_norm_tokens, MOMENTS, (17, 21)),
            Refusal("from the channels on", layer_norm_from_channels, MOMENTS, (17, 21)),
            Refusal("statistics", layer_norm_statistics, "it outputs its statistics", (17, 21)),
        ),
    ),
    Case(
        "RMSNormalization",
        (
            Form("pixels", rms_norm_pixels, (23, 24)),
            Form("tokens", rms_norm_tokens, (23, 24)),
            Form("from the channels on", rms_norm_from_channels, (23, 24)),
            Form("heads", rms_norm_heads, (23, 24)),
        ),
        (
            Refusal("computed scale", rms_norm_computed, "input 1 is computed from a graph input", (23, 24)),
            Refusal("shifted channels", rms_norm_shifted, NOT_ZERO, (23, 24)),
        ),
        harmless=dict.fromkeys(("unsliced", "rolled_slices"), "the scale that is put in tells what is kept of it"),
    ),
    Case(
        "MeanVarianceNormalization",
        (Form("pixels", mean_variance, ALL), Form("default axes", mean_variance_default, (9, 11))),
        (
            Refusal("channels", mean_variance_channels, OVER),
            Refusal("default axes", mean_variance_rows, OVER, (9, 11)),
        ),
    ),
    Case(
        "LpNormalization",
        (
            Form("pixels", lp_norm, ALL),
            Form("last axis", lp_norm_rows, ALL),
            Form("channels", lp_norm_channels, ALL),
            Form("channels on the last axis", lp_norm_default, ALL),
            Form("heads", lp_norm_heads, ALL, exact=False),
        ),
        (Refusal("shifted channels", lp_norm_shifted, NOT_ZERO),),
    ),
    *(
        Case(
            op,
            (Form("pixels", skip_norm(op), exact=False),),
            (
                Refusal("tokens", skip_norm_tokens(op), MOMENTS),
                Refusal("sum", skip_norm_sum(op), "it outputs its statistics or its sum"),
            ),
            MS,
        )
        for op in ("SkipLayerNormalization", "SkipSimplifiedLayerNormalization")
    ),
    Case(
        "LRN",
        (Form("no channels", neighbours, ALL, beside=True),),
        (Refusal("channels", neighbours_channels, "it divides each channel by its neighbours", ALL),),
    ),
]

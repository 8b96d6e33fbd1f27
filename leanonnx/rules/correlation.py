"""Convolutions with computed kernels (for example by another branch): correlations.

A channel is removed from data and kernels at once; the sum is the same as if it were zero.
"""

from __future__ import annotations

import numpy as np

from leanonnx.numeric.channel_ids import compact_ids, on_axis, uniform_ids, varied_axes
from leanonnx.rules import advice
from leanonnx.rules.call import Call, Edit, Effect, FixedEdges, KeptChannels, Reduction, Unsupported, mint_for_rows
from leanonnx.rules.weights import per_channel_slices

DATA, KERNEL, BIAS = 0, 1, 2


def correlation(call: Call) -> Effect:
    """Convolution with computed kernels.

    1. One group: the input channels of data and kernels are tied; the output is one channel.
    2. Several groups (for example one kernel per channel): whole groups are removed from data and kernels.
    """
    groups, kernels = int(call.attribute("group", 1)), call.channel_ids(KERNEL)
    if set(varied_axes(call.channel_ids(DATA))) - {1}:
        raise Unsupported("it runs along the channels", advice.NO_EXACT_FORM)
    if call.has_input(BIAS) and not call.is_constant(BIAS):
        raise Unsupported("its bias is computed at run time", advice.MAKE_CONSTANT)
    if groups == 1:
        if set(varied_axes(kernels)) - {1}:
            raise Unsupported("its kernels are computed and have output channels", advice.NO_EXACT_FORM)
        return _sum_of_products(call)
    data, ties = call.channel_ids_along(DATA, 1)
    count = call.shape(KERNEL)[0]
    own = kernels.reshape(kernels.shape[0], -1)
    rows = [data.reshape(groups, -1), np.broadcast_to(own, (count, own.shape[1])).reshape(groups, -1)]
    minted = mint_for_rows(call, np.concatenate(rows, axis=1))
    pairs = [(side, np.broadcast_to(minted[:, None], side.shape)) for side in rows]
    destinations = np.repeat(minted, count // groups)
    output = compact_ids(on_axis(destinations, 1, len(call.output_shape())))

    def rewrite(kept: KeptChannels) -> Edit:
        return Edit({"group": int(kept.mask(minted).sum())})

    return Effect(
        (output,),
        (*ties, *pairs),
        fixed_edges=tuple(FixedEdges(one.ravel(), other.ravel()) for one, other in pairs),
        slices=per_channel_slices(call, (BIAS,), destinations),
        rewrite=rewrite,
    )


def _sum_of_products(call: Call) -> Effect:
    """Effect of products of data and kernels, summed over the channels of both."""
    zero = next((slot for slot in (DATA, KERNEL) if call.value(slot).preserves_zeros), None)
    if zero is None:
        raise Unsupported("it sums products of channels, which would not be zero when their layers output zeros")
    (data, ties), (own, more) = (call.channel_ids_along(slot, 1) for slot in (DATA, KERNEL))
    destination = call.mint(1)
    sides = [np.unique(data), np.unique(own)]
    sides = sides[:1] if np.array_equal(sides[0], sides[1]) else sides
    fixed_edges = [FixedEdges(side, np.broadcast_to(destination, side.shape)) for side in sides]
    return Effect(
        (uniform_ids(int(destination[0]), len(call.output_shape())),),
        (*ties, *more, (data, own)),
        fixed_edges=tuple(fixed_edges),
        reductions=(Reduction(zero, call.channel_ids(zero), destination),),
    )

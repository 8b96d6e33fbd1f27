"""Convolutions whose kernels are computed, from another branch say: correlations.

A channel goes from data and kernels at once; the sum does not see it any more, as if it were zero.
"""

from __future__ import annotations

import numpy as np

from leanonnx.numeric.channel_ids import compact, on_axis, uniform, varied
from leanonnx.rules import advice
from leanonnx.rules.call import Call, Edit, Effect, FixedEdges, KeptChannels, Reduction, Unsupported, mint_for_rows
from leanonnx.rules.weights import vectors

DATA, KERNEL, BIAS = 0, 1, 2


def correlation(call: Call) -> Effect:
    """A convolution whose kernels are computed, from another branch say.

    1. One group: the input channels of data and kernels are tied, and go together; the output is one channel.
    2. Several groups (a kernel for each channel): whole groups go, from data and kernels.
    """
    groups, kernels = int(call.attribute("group", 1)), call.channel_ids(KERNEL)
    if set(varied(call.channel_ids(DATA))) - {1}:
        raise Unsupported("it runs along the channels", advice.NONE)
    if call.has(BIAS) and not call.is_constant(BIAS):
        raise Unsupported("its bias is computed at run time", advice.CONSTANT)
    if groups == 1:
        if set(varied(kernels)) - {1}:
            raise Unsupported("its kernels are computed, for channels of its own", advice.NONE)
        return _summed(call)
    data, ties = call.slices(DATA, 1)
    count = call.shape(KERNEL)[0]
    own = kernels.reshape(kernels.shape[0], -1)
    rows = [data.reshape(groups, -1), np.broadcast_to(own, (count, own.shape[1])).reshape(groups, -1)]
    minted = mint_for_rows(call, np.concatenate(rows, axis=1))
    pairs = [(found, np.broadcast_to(minted[:, None], found.shape)) for found in rows]
    targets = np.repeat(minted, count // groups)
    output = compact(on_axis(targets, 1, len(call.output_shape())))

    def rewrite(kept: KeptChannels) -> Edit:
        return Edit({"group": int(kept.mask(minted).sum())})

    return Effect(
        (output,),
        (*ties, *pairs),
        fixed_edges=tuple(FixedEdges(one.reshape(-1), other.reshape(-1)) for one, other in pairs),
        slices=vectors(call, (BIAS,), targets),
        rewrite=rewrite,
    )


def _summed(call: Call) -> Effect:
    """Products of data and kernels, summed over the channels of both."""
    zero = next((slot for slot in (DATA, KERNEL) if call.value(slot).keeps_zero), None)
    if zero is None:
        raise Unsupported("it sums products of channels, which would not be zero when their layers put out zeros")
    (data, ties), (own, more) = (call.slices(slot, 1) for slot in (DATA, KERNEL))
    target = call.mint(1)
    sides = [np.unique(data), np.unique(own)]
    sides = sides[:1] if np.array_equal(sides[0], sides[1]) else sides
    links = [FixedEdges(side, np.broadcast_to(target, side.shape)) for side in sides]
    return Effect(
        (uniform(int(target[0]), len(call.output_shape())),),
        (*ties, *more, (data, own)),
        fixed_edges=tuple(links),
        reductions=(Reduction(zero, call.channel_ids(zero), target),),
    )

"""Recurrent layers: LSTM, GRU, RNN."""

from __future__ import annotations

import math

import numpy as np

from leanonnx.numeric.arrays import Array
from leanonnx.numeric.channel_ids import on_axis, uniform_ids
from leanonnx.rules import advice
from leanonnx.rules.call import Call, Effect, KernelBlock, Pin, Slice, Unsupported, pin_side_inputs
from leanonnx.rules.weights import require_static_weight, unprunable_block


def recurrent(call: Call) -> Effect:
    """LSTM, GRU and RNN in one or two directions; X ``[T, B, I]``, W ``[D, gates·H, I]``, R ``[D, gates·H, H]``.

    Flow: the elements of W are kernels from input channels to the hidden units, which form one channel (their
        multiply-adds are counted, the kernels are not).
    Ties: none; input channels are removed one by one.
    Pins: hidden units, which feed back into themselves; computed initial states and sequence lengths.
    Limits: W is a constant, or computed from constants.
    Specification: ONNX LSTM-22, GRU-22, RNN-22 (onnxruntime supports ``layout`` 0 only).
    """
    if call.is_constant(0):
        raise Unsupported("its input is constant, only its state is computed", advice.NO_EXACT_FORM)
    require_static_weight(call, 1)
    directions, rows, width = call.shape(1)
    sources, ties = call.channel_ids_along(0, 2)
    state = call.mint(1)
    inward = on_axis(sources, 2, 3)
    positions = math.prod(call.shape(0)) // width
    block = KernelBlock(
        sources=sources.reshape(1, width),
        destinations=state.reshape(1, 1),
        slot=1,
        kernels=lambda: _gains(call.array(1)),
        input_channel_ids=inward,
        taps=directions * rows,
        positions=positions,
        is_counted=False,
    )
    reason = f"{call.title} feeds its hidden units back into themselves"
    pins = (Pin(channel_ids=state, tensor=next(name for name in call.outputs if name), reason=reason),)
    outputs = tuple(uniform_ids(int(state[0]), len(shape) if shape else 0) for shape in call.output_shapes)
    loop = unprunable_block(2, (directions * rows, call.shape(2)[2]), positions=positions, counted=False)
    effect = Effect(outputs, tuple(ties), kernel_blocks=(block, loop), slices=(Slice(1, (inward,)),), pins=pins)
    return pin_side_inputs(call, effect, "takes its initial state or sequence lengths from it")


def _gains(weight: Array) -> Array:
    """Gain of each input channel ``[1, 1, I]``: the 2-norm of W over all hidden units and gates."""
    return np.asarray(np.sqrt((weight.astype(np.float32) ** 2).sum((0, 1)))[None, None])


RECURRENT_RULES = {("", "LSTM"): recurrent, ("", "GRU"): recurrent, ("", "RNN"): recurrent}

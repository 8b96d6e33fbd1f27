"""Torch functions of recurrent layers (gate order of ONNX: LSTM i o f c, GRU z r h)."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import torch

from leanonnx.commands.finetune.operators.call import Operator, Tensor, TorchCall

_States: TypeAlias = "tuple[Tensor, ...]"
_Step: TypeAlias = Callable[[Tensor, _States], _States]
_DEFAULT_ACTIVATIONS = {"LSTM": ("Sigmoid", "Tanh", "Tanh"), "GRU": ("Sigmoid", "Tanh"), "RNN": ("Tanh",)}
_GATE_COUNTS = {"LSTM": 4, "GRU": 3, "RNN": 1}
_RECURRENT_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
    "relu": torch.relu,
}


def _recurrent(call: TorchCall) -> tuple[Tensor, ...]:
    """Run an LSTM, GRU or RNN over whole sequences: all hidden states, the last one, the last cell state."""
    kind, count = call.node.op_type, len(_DEFAULT_ACTIVATIONS[call.node.op_type])
    names = [name.lower() for name in call.attribute("activations", [])]
    if call.attribute("clip") is not None or any(name not in _RECURRENT_ACTIVATIONS for name in names):
        raise call.error("it clips, or has activations other than Sigmoid, Tanh and Relu")
    if call.attribute("layout", 0):
        raise call.error("its batch axis is first (layout 1)")
    x = call.value()
    if call.has(4) and set(call.required_ints(4)) != {x.shape[0]}:
        raise call.error("its sequences have unequal lengths")
    sides = {"forward": (False,), "reverse": (True,), "bidirectional": (False, True)}[
        call.attribute("direction", "forward")
    ]
    parts = []
    for side, backwards in enumerate(sides):
        chosen = names[side * count : (side + 1) * count] or [n.lower() for n in _DEFAULT_ACTIVATIONS[kind]]
        parts.append(_run_direction(call, x, side, backwards, [_RECURRENT_ACTIVATIONS[name] for name in chosen]))
    whole = torch.stack([sequence for sequence, _ in parts], dim=1)  # [time, directions, batch, hidden]
    last = [torch.stack(states) for states in zip(*[states for _, states in parts], strict=True)]
    return whole, *last


def _run_direction(
    call: TorchCall, x: Tensor, side: int, backwards: bool, functions: list[Callable[[Tensor], Tensor]]
) -> tuple[Tensor, _States]:
    """Run one direction: hidden states [time, batch, hidden] and the last states."""
    kind = call.node.op_type
    weight, again = call.value(1)[side], call.value(2)[side]
    hidden = again.shape[1]
    bias = (
        call.value(3)[side]
        if call.has(3)
        else torch.zeros(2 * _GATE_COUNTS[kind] * hidden, dtype=x.dtype, device=x.device)
    )
    before, after = bias.chunk(2)
    fresh = torch.zeros(x.shape[1], hidden, dtype=x.dtype, device=x.device)
    states: _States = (call.value(5)[side] if call.has(5) else fresh,)
    if kind == "LSTM":
        states += (call.value(6)[side] if call.has(6) else fresh,)
    step = {"LSTM": _lstm, "GRU": _gru, "RNN": _rnn}[kind](call, side, again, after, functions)
    fed = x @ weight.T + before
    order = range(x.shape[0])
    outputs = []
    for k in reversed(order) if backwards else order:
        states = step(fed[k], states)
        outputs.append(states[0])
    return torch.stack(outputs[::-1] if backwards else outputs), states


def _lstm(
    call: TorchCall, side: int, again: Tensor, bias: Tensor, functions: list[Callable[[Tensor], Tensor]]
) -> _Step:
    f, g, h = functions
    peep = call.value(7)[side].chunk(3) if call.has(7) else None
    if call.attribute("input_forget", 0):
        raise call.error("it couples its input and forget gates")

    def step(fed: Tensor, states: _States) -> _States:
        hidden, cell = states
        i, o, forget, c = (fed + hidden @ again.T + bias).chunk(4, dim=-1)
        if peep:
            i, forget = i + peep[0] * cell, forget + peep[2] * cell
        cell = f(forget) * cell + f(i) * g(c)
        o = o + peep[1] * cell if peep else o
        return f(o) * h(cell), cell

    return step


def _gru(call: TorchCall, side: int, again: Tensor, bias: Tensor, functions: list[Callable[[Tensor], Tensor]]) -> _Step:
    f, g = functions
    gates, candidate = again.split([2 * again.shape[1], again.shape[1]])
    gate_bias, own_bias = bias.split([2 * again.shape[1], again.shape[1]])
    late = call.attribute("linear_before_reset", 0)

    def step(fed: Tensor, states: _States) -> _States:
        (hidden,) = states
        first, own = fed.split([2 * again.shape[1], again.shape[1]], dim=-1)
        z, r = f(first + hidden @ gates.T + gate_bias).chunk(2, dim=-1)
        turned = r * (hidden @ candidate.T + own_bias) if late else (r * hidden) @ candidate.T + own_bias
        return ((1 - z) * g(own + turned) + z * hidden,)

    return step


def _rnn(call: TorchCall, side: int, again: Tensor, bias: Tensor, functions: list[Callable[[Tensor], Tensor]]) -> _Step:
    return lambda fed, states: (functions[0](fed + states[0] @ again.T + bias),)


RECURRENT_OPERATORS: dict[tuple[str, str], Operator] = {("", kind): _recurrent for kind in _DEFAULT_ACTIVATIONS}

"""Recurrent layers, step by step (gate order of ONNX: LSTM i o f c, GRU z r h)."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import torch

from leanonnx.commands.finetune.operators.call import Call, Operator, Tensor

States: TypeAlias = "tuple[Tensor, ...]"
Step: TypeAlias = Callable[[Tensor, States], States]
DEFAULTS = {"LSTM": ("Sigmoid", "Tanh", "Tanh"), "GRU": ("Sigmoid", "Tanh"), "RNN": ("Tanh",)}
GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}
FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
    "relu": torch.relu,
}


def recurrent(call: Call) -> tuple[Tensor, ...]:
    """LSTM, GRU or RNN over whole sequences: all hidden states, the last one, and the last cell state."""
    kind, count = call.node.op_type, len(DEFAULTS[call.node.op_type])
    names = [name.lower() for name in call.attr("activations", [])]
    if call.attr("clip") is not None or any(name not in FUNCTIONS for name in names):
        raise call.refused("it clips, or has activations other than Sigmoid, Tanh and Relu")
    if call.attr("layout", 0):
        raise call.refused("its batch stands first (layout 1)")
    x = call.x()
    if call.has(4) and set(call.ints(4)) != {x.shape[0]}:
        raise call.refused("its sequences have unequal lengths")
    sides = {"forward": (False,), "reverse": (True,), "bidirectional": (False, True)}[call.attr("direction", "forward")]
    parts = []
    for side, backwards in enumerate(sides):
        chosen = names[side * count : (side + 1) * count] or [n.lower() for n in DEFAULTS[kind]]
        parts.append(_one_way(call, x, side, backwards, [FUNCTIONS[name] for name in chosen]))
    whole = torch.stack([sequence for sequence, _ in parts], dim=1)  # [time, directions, batch, hidden]
    last = [torch.stack(states) for states in zip(*[states for _, states in parts], strict=True)]
    return whole, *last


def _one_way(
    call: Call, x: Tensor, side: int, backwards: bool, functions: list[Callable[[Tensor], Tensor]]
) -> tuple[Tensor, States]:
    """Hidden states [time, batch, hidden] of one direction, and the last states."""
    kind = call.node.op_type
    weight, again = call.x(1)[side], call.x(2)[side]
    hidden = again.shape[1]
    bias = call.x(3)[side] if call.has(3) else torch.zeros(2 * GATES[kind] * hidden, dtype=x.dtype, device=x.device)
    before, after = bias.chunk(2)
    fresh = torch.zeros(x.shape[1], hidden, dtype=x.dtype, device=x.device)
    states: States = (call.x(5)[side] if call.has(5) else fresh,)
    if kind == "LSTM":
        states += (call.x(6)[side] if call.has(6) else fresh,)
    step = {"LSTM": _lstm, "GRU": _gru, "RNN": _rnn}[kind](call, side, again, after, functions)
    fed = x @ weight.T + before
    order = range(x.shape[0])
    found = []
    for k in reversed(order) if backwards else order:
        states = step(fed[k], states)
        found.append(states[0])
    return torch.stack(found[::-1] if backwards else found), states


def _lstm(call: Call, side: int, again: Tensor, bias: Tensor, functions: list[Callable[[Tensor], Tensor]]) -> Step:
    f, g, h = functions
    peep = call.x(7)[side].chunk(3) if call.has(7) else None
    if call.attr("input_forget", 0):
        raise call.refused("it couples its input and forget gates")

    def step(fed: Tensor, states: States) -> States:
        hidden, cell = states
        i, o, forget, c = (fed + hidden @ again.T + bias).chunk(4, dim=-1)
        if peep:
            i, forget = i + peep[0] * cell, forget + peep[2] * cell
        cell = f(forget) * cell + f(i) * g(c)
        o = o + peep[1] * cell if peep else o
        return f(o) * h(cell), cell

    return step


def _gru(call: Call, side: int, again: Tensor, bias: Tensor, functions: list[Callable[[Tensor], Tensor]]) -> Step:
    f, g = functions
    gates, candidate = again.split([2 * again.shape[1], again.shape[1]])
    gate_bias, own_bias = bias.split([2 * again.shape[1], again.shape[1]])
    late = call.attr("linear_before_reset", 0)

    def step(fed: Tensor, states: States) -> States:
        (hidden,) = states
        first, own = fed.split([2 * again.shape[1], again.shape[1]], dim=-1)
        z, r = f(first + hidden @ gates.T + gate_bias).chunk(2, dim=-1)
        turned = r * (hidden @ candidate.T + own_bias) if late else (r * hidden) @ candidate.T + own_bias
        return ((1 - z) * g(own + turned) + z * hidden,)

    return step


def _rnn(call: Call, side: int, again: Tensor, bias: Tensor, functions: list[Callable[[Tensor], Tensor]]) -> Step:
    return lambda fed, states: (functions[0](fed + states[0] @ again.T + bias),)


RECURRENT: dict[tuple[str, str], Operator] = {("", kind): recurrent for kind in DEFAULTS}

"""Recurrent layers."""

from __future__ import annotations

from tests.rules.case import Build, Case, Form, Refusal
from tests.rules.model_builder import ModelBuilder

GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}
HIDDEN = 3
FEEDS = "feeds its hidden units back into themselves"


def operands(b: ModelBuilder, op: str, directions: int) -> list[str]:
    """X [T, B, I] with W, R and, if they are drawn, biases."""
    wide, rows = b.between(2, 4), GATES[op] * HIDDEN
    b.whole = True
    data = b.node("Transpose", [b.tokens(wide, 2)], perm=[1, 0, 2])
    found = [data, b.const(b.normal(directions, rows, wide)), b.const(b.normal(directions, rows, HIDDEN))]
    return [*found, *([b.const(b.normal(directions, 2 * rows))] if b.chance(2) else [])]


def layer(op: str, directions: int) -> Build:
    """All outputs, or the last state alone."""

    def build(b: ModelBuilder) -> None:
        outputs = b.one_of((["subject_0"], ["", "subject_1"], ["subject_0", "subject_1"]))
        way = "bidirectional" if directions > 1 else b.one_of(("forward", "reverse", None))
        b.subject(op, operands(b, op, directions), outputs, hidden_size=HIDDEN, direction=way)

    return build


def constant_state(op: str) -> Build:
    def build(b: ModelBuilder) -> None:
        b.free = False
        inputs = (*operands(b, op, 1), "")[:4]
        state = b.const(b.normal(1, b.batch, HIDDEN))
        b.subject(op, [*inputs, "", state], hidden_size=HIDDEN)

    return build


def computed_state(op: str) -> Build:
    def build(b: ModelBuilder) -> None:
        state = b.node("Unsqueeze", [b.rows(HIDDEN), b.ints(0)])
        inputs = (*operands(b, op, 1), "")[:4]
        b.subject(op, [*inputs, "", state], hidden_size=HIDDEN)

    return build


def computed_weight(op: str) -> Build:
    def build(b: ModelBuilder) -> None:
        data, weight, *rest = operands(b, op, 1)
        b.subject(op, [data, b.node("Add", [weight, b.number()]), *rest], hidden_size=HIDDEN)

    return build


CASES = [
    Case(
        op,
        (
            Form("one direction", layer(op, 1), (11, 14, 22), exact=False, allows=FEEDS),
            Form("both directions", layer(op, 2), (11, 14, 22), exact=False, allows=FEEDS),
            Form("constant state", constant_state(op), exact=False, allows=FEEDS),
        ),
        (
            Refusal("computed state", computed_state(op), "takes its initial state or sequence lengths from it"),
            Refusal("computed weight", computed_weight(op), "its weight is computed from a graph input"),
        ),
    )
    for op in GATES
]

"""Operators that lay tensors over each other, position by position."""

from __future__ import annotations

from typing import Any

import numpy as np

from tests.rules.case import Build, Case, Form
from tests.rules.model_builder import ModelBuilder
from tests.rules.operands import PREPARED, Prepare, as_is, boolean, coarse, integer, positive

MS = "com.microsoft"

ALL = (11, 13, 17, 21)


def first(op: str) -> Prepare:
    """The domain of the first operand."""
    return as_is if op == "Div" else second(op)


def second(op: str) -> Prepare:
    """The domain of the second operand."""
    return PREPARED.get(op, as_is)


def extra(op: str) -> dict[str, Any]:
    return {"fmod": 1} if op == "Mod" else {}


def fixed(b: ModelBuilder, op: str, *shape: int) -> str:
    """A constant operand."""
    prepare = second(op)
    if prepare is boolean:
        return b.const(b.rng.random(shape) < 0.5)
    if prepare is integer:
        return b.const(b.rng.integers(1, 50, shape).astype(np.int32))
    return b.const(b.rng.integers(-2, 3, shape).astype(np.float32) if prepare is coarse else b.positive(*shape))


def two(op: str) -> Build:
    """Two tensors with channels."""

    def build(b: ModelBuilder) -> None:
        channels, prepare = b.between(2, 4), second(op)
        operands = [prepare(b, b.image(channels, 2, 3)), prepare(b, b.image(channels, 2, 3))]
        b.subject(op, operands, **extra(op))

    return build


def same(op: str) -> Build:
    """One tensor, twice."""

    def build(b: ModelBuilder) -> None:
        data = second(op)(b, b.image(b.between(2, 4), 2, 3))
        b.subject(op, [data, data], **extra(op))

    return build


def pooled(op: str) -> Build:
    """One number per channel, as in squeeze-excite gates; on either side."""

    def build(b: ModelBuilder) -> None:
        channels, prepare = b.between(2, 4), second(op)
        operands = [prepare(b, b.image(channels, 2, 3)), prepare(b, b.image(channels, 1, 1))]
        b.subject(op, operands[::-1] if b.chance(2) else operands, **extra(op))

    return build


def plain(op: str) -> Build:
    """A tensor without channels, as in spatial attention; on either side."""

    def build(b: ModelBuilder) -> None:
        prepare = second(op)
        operands = [prepare(b, b.image(b.between(2, 4), 2, 3)), prepare(b, b.plain(1, 2, 3))]
        b.subject(op, operands[::-1] if b.chance(2) else operands, **extra(op))

    return build


def lower(op: str) -> Build:
    """A tensor without channels, of rank 2."""

    def build(b: ModelBuilder) -> None:
        b.batch, b.free = 1, False
        matrix = b.node("Reshape", [b.plain(2, 3), b.ints(2, 3)])
        b.subject(op, [second(op)(b, b.image(b.between(2, 4), 2, 3)), second(op)(b, matrix)], **extra(op))

    return build


def constant(op: str, form: str) -> Build:
    """A constant per channel, per position, or one for all; on either side, of the same rank or a smaller one."""

    def build(b: ModelBuilder) -> None:
        channels = b.between(2, 4)
        shapes = {"channel": (channels, 1, 1), "full": (1, channels, 2, 3), "pixel": (2, 3), "one": (1,), "scalar": ()}
        operands = [first(op)(b, b.image(channels, 2, 3)), fixed(b, op, *shapes[form])]
        b.subject(op, operands[::-1] if b.chance(2) and op != "Div" else operands, **extra(op))

    return build


def over_constant(b: ModelBuilder) -> None:
    """A constant divided by a tensor."""
    channels = b.between(2, 4)
    b.subject("Div", [b.const(b.positive(channels, 1, 1)), positive(b, b.image(channels, 2, 3))])


def constant_headed(op: str) -> Build:
    """Channels on two axes, of which the constant has one."""

    def build(b: ModelBuilder) -> None:
        heads, width = b.between(2, 3), b.between(2, 3)
        shape = b.one_of(((heads, 1), (width,), (heads, width), (3, 1, 1)))
        b.subject(op, [first(op)(b, b.headed(heads, width, 3)), fixed(b, op, *shape)], **extra(op))

    return build


def constant_last(op: str) -> Build:
    """Channels last, where a constant [C] needs no other axes."""

    def build(b: ModelBuilder) -> None:
        channels = b.between(2, 4)
        operands = [first(op)(b, b.tokens(channels, 3)), fixed(b, op, channels)]
        b.subject(op, operands, **extra(op))

    return build


def several(op: str) -> Build:
    """One to three operands, a constant among them."""

    def build(b: ModelBuilder) -> None:
        channels = b.between(2, 4)
        count = b.between(1, 3)
        operands = [b.image(channels, 2, 3) for _ in range(count)]
        operands += [b.const(b.normal(channels, 1, 1))] if b.chance(2) else []
        b.subject(op, operands)

    return build


def where(b: ModelBuilder) -> None:
    """Each of the three may have channels, be one pixel per channel, have none, or be a constant."""
    channels = b.between(2, 4)
    kinds = [b.choose(4) for _ in range(3)]
    kinds[b.choose(3)] = 0
    operands = []
    for slot, kind in enumerate(kinds):
        made = [lambda: b.image(channels, 2, 3), lambda: b.image(channels, 1, 1), lambda: b.plain(1, 2, 3)]
        if kind == 3:
            shape = b.one_of(((channels, 1, 1), (1,), (1, channels, 2, 3)))
            operands.append(b.const(b.rng.random(shape) < 0.5 if slot == 0 else b.normal(*shape)))
        else:
            operands.append(boolean(b, made[kind]()) if slot == 0 else made[kind]())
    b.subject("Where", operands)


def qlinear_join(op: str, form: str) -> Build:
    def build(b: ModelBuilder) -> None:
        channels = b.between(2, 4)
        sides = [b.scalar(0.05), b.scalar(128, np.uint8)]
        first = b.quantised(b.image(channels, 2, 3))
        other = {
            "two": lambda: b.quantised(b.image(channels, 2, 3)),
            "pooled": lambda: b.quantised(b.image(channels, 1, 1)),
            "constant": lambda: b.const(b.rng.integers(20, 220, (1, channels, 1, 1)).astype(np.uint8)),
        }[form]()
        b.subject(op, [first, *sides, other, *sides, b.scalar(0.1), b.scalar(128, np.uint8)], domain=MS)

    return build


JOINED = ("Add", "Sub", "Mul", "Div", "Min", "Max", "Sum", "Mean", "Pow")

LOGICAL = (
    *("Mod", "And", "Or", "Xor", "Equal", "Greater", "Less", "GreaterOrEqual", "LessOrEqual"),
    *("BitwiseAnd", "BitwiseOr", "BitwiseXor"),
)

FULL = ("Add", "Mul", "Div")
"""Shown on every form; the others share their rule."""
BRIEF = ("two", "pooled", "without channels", "constant per channel", "several")


def join_case(op: str, opsets: tuple[int, ...] = ALL, exact: bool = True) -> Case:
    """The forms that all joins share; most are shown on few."""
    added = op in ("Add", "Sub", "Sum")
    scaled = op in ("Mul", "Div")
    forms = [
        Form("two", two(op), opsets, exact, linear=added),
        Form("same", same(op), opsets, exact=False),
        Form("pooled", pooled(op), opsets, exact, linear=added),
        Form("without channels", plain(op), opsets, exact, linear=added),
        Form("without channels, rank 2", lower(op), opsets, exact, linear=added),
        Form("constant per channel", constant(op, "channel"), opsets, exact, linear=added or scaled),
        Form("constant per position", constant(op, "full"), opsets, exact, linear=added),
        Form("constant per pixel", constant(op, "pixel"), opsets, exact, linear=added),
        Form("constant one", constant(op, "one"), opsets, exact, linear=added),
        Form("constant scalar", constant(op, "scalar"), opsets, exact, linear=added),
        Form("constant, heads", constant_headed(op), opsets, exact=False),
        Form("constant, channels last", constant_last(op), opsets, exact, linear=added or scaled),
    ]
    forms += [Form("several", several(op), opsets, exact, added)] if op in ("Min", "Max", "Sum", "Mean") else []
    forms += [Form("constant on the left", over_constant, opsets)] if op == "Div" else []
    forms = [form for form in forms if op in FULL or form.name in BRIEF]
    return Case(op, tuple(forms), whole="operands of any shape are joined position by position")


CASES = [
    *(join_case(op, exact=op not in ("Min", "Max")) for op in JOINED),
    *(join_case(op, (18, 21) if op.startswith("Bit") else (13, 17, 21), exact=False) for op in LOGICAL),
    Case("Where", (Form("any operands", where, ALL, exact=False),), whole="operands of any shape are joined"),
    *(
        Case(
            op,
            tuple(Form(form, qlinear_join(op, form), exact=False) for form in ("two", "pooled", "constant")),
            domain=MS,
            whole="operands of any shape are joined",
        )
        for op in ("QLinearAdd", "QLinearMul")
    ),
]

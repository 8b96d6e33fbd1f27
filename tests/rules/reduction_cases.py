"""Reductions, softmax and running sums."""

from __future__ import annotations

from typing import Any

import numpy as np

from tests.rules.case import Build, Case, Form, Refusal
from tests.rules.model_builder import ModelBuilder

ALL = (11, 13, 17, 18, 21)
OVER = "it reduces over the channels"
NOT_ZERO = "it reduces over the channels, which would not be zero there"
BY_INPUT = {"ReduceSum": 13}
BLIND = ("ReduceMean", "ReduceSum", "ReduceL1", "ReduceL2", "ReduceSumSquare")


def reduced(b: ModelBuilder, op: str, data: str, axes: list[int] | None, **attributes: Any) -> None:
    """The axes as an input where the operator set wants it so."""
    if b.opset >= BY_INPUT.get(op, 18):
        b.subject(op, [data, *([] if axes is None else [b.ints(*axes)])], **attributes)
    else:
        attributes.pop("noop_with_empty_axes", None)
        b.subject(op, [data], axes=axes, **attributes)


def reduce(op: str) -> Build:
    """Any axes without channels, kept or not."""

    def build(b: ModelBuilder) -> None:
        axes = b.one_of(([2], [2, 3], [-1], [-2, 3]))
        reduced(b, op, b.bent(b.image(b.between(2, 4), 2, 3)), axes, keepdims=b.one_of((None, 0, 1)))

    return build


def reduce_tokens(op: str) -> Build:
    """Channels last."""

    def build(b: ModelBuilder) -> None:
        axes = b.one_of(([1], [-2]))
        reduced(b, op, b.bent(b.tokens(b.between(2, 4), 3)), axes, keepdims=b.one_of((0, 1)))

    return build


def reduce_nothing(op: str) -> Build:
    """No axes, with the attribute that makes this mean none."""

    def build(b: ModelBuilder) -> None:
        data = b.bent(b.image(b.between(2, 4), 2, 3))
        axes = b.one_of(([], [b.ints()]))
        b.subject(op, [data, *axes], noop_with_empty_axes=1)

    return build


def reduce_heads(op: str) -> Build:
    """Within each head."""

    def build(b: ModelBuilder) -> None:
        data = b.bent(b.headed(b.between(2, 3), 2, 2))
        reduced(b, op, data, b.one_of(([2], [-1], [1, 2], [3])), keepdims=b.one_of((0, 1)))

    return build


def beside(b: ModelBuilder, data: str) -> None:
    """Read the data as well, so that they have removable channels."""
    b.reads = ["subject_0", data]


def reduce_channels(op: str, prepare: str = "") -> Build:
    """Over the channels, with or without others; they may be last or repeated over their pixels."""

    def build(b: ModelBuilder) -> None:
        kind, width = b.choose(3), b.between(2, 4)
        if kind == 0:
            data, axes = b.image(width, 2, 3), b.one_of(([1], [-3], [1, 2], [1, 2, 3]))
        elif kind == 1:
            data, axes = b.tokens(width, 3), b.one_of(([-1], [2], [1, 2]))
        else:
            data, axes = b.node("Flatten", [b.image(width, 2, 1)], axis=1), [1]
        data = b.node(prepare, [data]) if prepare else data
        reduced(b, op, data, axes, keepdims=b.one_of((0, 1)))
        beside(b, data)

    return build


def reduce_all(op: str) -> Build:
    def build(b: ModelBuilder) -> None:
        b.batch, b.free = 1, False
        data = b.image(3, 2, 3)
        reduced(b, op, data, None, keepdims=b.one_of((None, 0)))
        beside(b, data)

    return build


def arg(op: str) -> Build:
    def build(b: ModelBuilder) -> None:
        data = b.bent(b.image(b.between(2, 4), 3, 4))
        last = b.choose(2) if b.opset > 11 else None
        b.subject(op, [data], axis=b.one_of((2, 3, -1)), keepdims=b.one_of((0, 1, None)), select_last_index=last)

    return build


def arg_batch(op: str) -> Build:
    """By default the first axis."""

    def build(b: ModelBuilder) -> None:
        b.batch, b.free = 2, False
        b.subject(op, [b.bent(b.image(b.between(2, 4), 3, 2))], keepdims=1)

    return build


def arg_heads(op: str) -> Build:
    def build(b: ModelBuilder) -> None:
        b.subject(op, [b.headed(b.between(2, 3), 3, 2)], axis=b.one_of((2, -1)), keepdims=b.one_of((0, 1)))

    return build


def arg_channels(op: str) -> Build:
    def build(b: ModelBuilder) -> None:
        b.subject(op, [b.image(3, 2, 3)], axis=b.one_of((1, -3)), keepdims=b.one_of((0, 1)))

    return build


def arg_vector(op: str) -> Build:
    """Over the only axis."""

    def build(b: ModelBuilder) -> None:
        b.batch, b.free = 1, False
        vector = b.node("Reshape", [b.rows(3), b.ints(-1)])
        b.subject(op, [vector], axis=b.one_of((0, -1)), keepdims=b.one_of((0, 1)))

    return build


def softmax(op: str) -> Build:
    """Over one axis of pixels; before operator set 13 over all axes from there on."""

    def build(b: ModelBuilder) -> None:
        axis = b.one_of((2, 3, -1, -2))
        b.subject(op, [b.bent(b.image(b.between(2, 4), 2, 3))], axis=axis)

    return build


def softmax_default(op: str) -> Build:
    """The last axis, from operator set 13 on."""

    def build(b: ModelBuilder) -> None:
        b.subject(op, [b.bent(b.image(b.between(2, 4), 2, 3))])

    return build


def softmax_batch(op: str) -> Build:
    """The first axis, which from operator set 13 on is taken alone."""

    def build(b: ModelBuilder) -> None:
        b.batch, b.free = 2, False
        b.subject(op, [b.bent(b.image(b.between(2, 4), 2, 3))], axis=0)

    return build


def softmax_heads(op: str) -> Build:
    """Within each head."""

    def build(b: ModelBuilder) -> None:
        b.subject(op, [b.headed(b.between(2, 3), 2, 2)], axis=b.one_of((2, -1) if b.opset > 12 else (3,)))

    return build


def softmax_channels(op: str) -> Build:
    def build(b: ModelBuilder) -> None:
        b.subject(op, [b.image(3, 2, 3)], axis=b.one_of((1, -3)))

    return build


def softmax_from_channels(op: str) -> Build:
    """By default from axis 1 on; channels at the end are among these."""

    def build(b: ModelBuilder) -> None:
        b.subject(op, [b.tokens(3, 4)], axis=b.one_of((None, 1)))

    return build


def cumulative(b: ModelBuilder) -> None:
    axis = b.one_of((2, -1, -2))
    where = b.const(np.array(axis, np.int32)) if b.chance(2) else b.scalar(axis, np.int64)
    data = b.image(b.between(2, 4), 2, 3)
    b.subject("CumSum", [data, where], exclusive=b.choose(2), reverse=b.choose(2))


def cumulative_heads(b: ModelBuilder) -> None:
    b.subject("CumSum", [b.headed(b.between(2, 3), 2, 2), b.scalar(b.one_of((2, -1)), np.int64)])


def cumulative_channels(b: ModelBuilder) -> None:
    b.subject("CumSum", [b.image(3, 2, 3), b.scalar(b.one_of((1, -3)), np.int64)])


def reduce_case(op: str) -> Case:
    """Sums, means and norms do not see zeros; for the others there is no exact form."""
    forms = [
        Form("pixels", reduce(op), ALL, exact=op not in ("ReduceMax", "ReduceMin")),
        Form("tokens", reduce_tokens(op), ALL, exact=op not in ("ReduceMax", "ReduceMin")),
        Form("heads", reduce_heads(op), ALL, exact=False),
        Form("no axes", reduce_nothing(op), (18, 21) if op != "ReduceSum" else (13, 18)),
    ]
    if op in BLIND:
        forms += [Form("channels", reduce_channels(op), ALL), Form("all axes", reduce_all(op), ALL)]
        return Case(op, tuple(forms), (Refusal("shifted channels", reduce_channels(op, "Softplus"), NOT_ZERO, ALL),))
    channels, everything = reduce_channels(op, "Softplus"), reduce_all(op)
    refusals = (Refusal("channels", channels, OVER, ALL), Refusal("all axes", everything, OVER, ALL))
    return Case(op, tuple(forms), refusals)


KINDS = ("Mean", "Sum", "Max", "Min", "Prod", "L1", "L2", "SumSquare", "LogSum", "LogSumExp")
CASES = [
    *(reduce_case(f"Reduce{kind}") for kind in KINDS),
    *(
        Case(
            op,
            (
                Form("pixels", arg(op), ALL, exact=False),
                Form("batch", arg_batch(op), ALL, exact=False),
                Form("heads", arg_heads(op), ALL, exact=False),
            ),
            (Refusal("channels", arg_channels(op), OVER, ALL), Refusal("only axis", arg_vector(op), OVER, ALL)),
        )
        for op in ("ArgMax", "ArgMin")
    ),
    *(
        Case(
            op,
            (
                Form("pixels", softmax(op), ALL, exact=op != "Hardmax"),
                Form("last axis", softmax_default(op), (13, 17, 21), exact=op != "Hardmax"),
                Form("batch", softmax_batch(op), (13, 17, 21), exact=False),
                Form("heads", softmax_heads(op), ALL, exact=False),
            ),
            (
                Refusal("channels", softmax_channels(op), "it normalises over the channels", ALL),
                Refusal("from axis 1 on", softmax_from_channels(op), "it normalises over the channels", (11,)),
            ),
        )
        for op in ("Softmax", "LogSoftmax", "Hardmax")
    ),
    Case(
        "CumSum",
        (
            Form("pixels", cumulative, ALL, exact=False),
            Form("heads", cumulative_heads, ALL, exact=False),
        ),
        (Refusal("channels", cumulative_channels, "it adds up the channels"),),
    ),
]

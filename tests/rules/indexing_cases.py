"""Operators that pick positions by index."""

from __future__ import annotations

from typing import Any

import numpy as np

from tests.rules.case import ONE, Build, Case, Form, Refusal
from tests.rules.model_builder import ModelBuilder

ALL = (11, 13, 17, 21)


def gather(b: ModelBuilder) -> None:
    """In any order, repeated, counted from the end."""
    channels = b.between(3, 5)
    indices = b.rng.integers(-channels, channels, b.between(2, channels))
    kind = b.one_of((np.int64, np.int32))
    b.subject("Gather", [b.image(channels, 2, 3), b.const(indices.astype(kind))], axis=b.one_of((1, -3)))


def gather_one(b: ModelBuilder) -> None:
    """A scalar index drops the axis."""
    channels = b.between(3, 5)
    data = b.image(channels, 2, 3)
    index = b.scalar(b.between(-channels, channels - 1), np.int64)
    (one,) = b.subject("Gather", [data, index], axis=1)
    b.reads = [one, data]


def gather_pixels(b: ModelBuilder) -> None:
    """Indices on an axis without channels, of any rank."""
    indices = b.one_of((np.array([2, 0]), np.array([[2, -1], [1, 1]]), np.array(1)))
    b.subject("Gather", [b.image(b.between(2, 4), 2, 3), b.const(indices)], axis=b.one_of((3, -1)))


def gather_batch(b: ModelBuilder) -> None:
    b.subject("Gather", [b.image(b.between(2, 4), 2, 3), b.ints(0, 0)])


def gather_table(b: ModelBuilder) -> None:
    """Channels selected by a table of indices: they then span two axes."""
    b.subject("Gather", [b.image(4, 2, 3), b.const(np.array([[0, 1], [2, 3]]))], axis=1)


def embedding(b: ModelBuilder) -> None:
    """Rows of a constant table, whose columns are channels."""
    b.subject("Gather", [b.const(b.normal(2, b.between(3, 5))), b.places(b.plain(3))], axis=b.one_of((0, None)))


def embedding_columns(b: ModelBuilder) -> None:
    b.subject("Gather", [b.const(b.normal(5, 2)), b.places(b.plain(3))], axis=1)


def gather_constant(b: ModelBuilder) -> None:
    index = b.node("Cast", [b.node("Sigmoid", [b.rows(3)])], to=7)
    b.subject("Gather", [b.const(b.normal(2, 5)), index], axis=0)


def gather_computed(b: ModelBuilder) -> None:
    index = b.node("Cast", [b.node("Sigmoid", [b.rows(3)])], to=7)
    b.subject("Gather", [b.image(4, 2, 3), index], axis=2)


def gather_computed_channels(b: ModelBuilder) -> None:
    index = b.node("Cast", [b.node("Sigmoid", [b.plain(3)])], to=7)
    b.subject("Gather", [b.image(4, 2, 3), index], axis=1)


# One index per element.


def gather_elements(b: ModelBuilder) -> None:
    """Constant indices, for all columns or some."""
    b.free = False
    channels = b.between(2, 4)
    indices = b.const(b.rng.integers(-2, 2, (b.batch, channels, 3, b.one_of((3, 2)))))
    b.subject("GatherElements", [b.image(channels, 2, 3), indices], axis=b.one_of((2, -2)))


def gather_elements_computed(b: ModelBuilder) -> None:
    """The indices have channels of their own."""
    channels = b.between(2, 4)
    b.subject("GatherElements", [b.image(channels, 2, 3), b.places(b.image(channels, 1, 3))], axis=2)


def gather_elements_channels(b: ModelBuilder) -> None:
    b.subject("GatherElements", [b.image(3, 2, 3), b.places(b.image(2, 2, 3))], axis=b.one_of((1, -3)))


def gather_elements_fewer(b: ModelBuilder) -> None:
    b.subject("GatherElements", [b.image(3, 2, 3), b.places(b.image(2, 1, 3))], axis=2)


def scatter_elements(op: str, updates: str) -> Build:
    """Constant indices; what is written is constant or has channels."""

    def build(b: ModelBuilder) -> None:
        b.free = False
        channels = b.between(2, 4)
        indices = b.const(b.rng.permuted(np.tile(np.arange(4), (b.batch, channels, 2, 1)), axis=3)[..., :2])
        written = b.image(channels, 2, 2) if updates == "computed" else b.const(b.normal(b.batch, channels, 2, 2))
        how: dict[str, Any] = {"reduction": b.one_of(("none", "add"))} if b.opset > 15 else {}
        b.subject(op, [b.image(channels, 2, 4), indices, written], axis=b.one_of((3, -1)), **how)

    return build


def scatter_elements_into(op: str) -> Build:
    """Written into a constant."""

    def build(b: ModelBuilder) -> None:
        b.free = False
        channels = b.between(2, 4)
        indices = b.const(np.tile(np.arange(2), (b.batch, channels, 2, 1)))
        data = b.const(b.normal(b.batch, channels, 2, 4))
        b.subject(op, [data, indices, b.image(channels, 2, 2)], axis=3)

    return build


def scatter_elements_channels(op: str) -> Build:
    def build(b: ModelBuilder) -> None:
        b.free = False
        indices = b.const(np.ones((b.batch, 1, 2, 2), np.int64))
        b.subject(op, [b.image(3, 2, 2), indices, b.const(b.normal(b.batch, 1, 2, 2))], axis=1)

    return build


# Tuples of indices.


def gather_nd(b: ModelBuilder) -> None:
    """Pixels, with the channels last."""
    b.batch, b.free = 2, False
    tuples = b.one_of(([[0, 1], [1, 2], [0, 0]], [[-1, 0]], [[[0, 2], [1, 1]]]))
    b.subject("GatherND", [b.tokens(b.between(2, 4), 3), b.const(np.array(tuples))])


def gather_nd_batch(b: ModelBuilder) -> None:
    b.batch, b.free = 2, False
    tuples = b.const(np.array([[[0], [2]], [[1], [1]]]))
    b.subject("GatherND", [b.tokens(b.between(2, 4), 3), tuples], batch_dims=1)


def gather_nd_images(b: ModelBuilder) -> None:
    """Whole images."""
    b.batch, b.free = 2, False
    b.subject("GatherND", [b.image(b.between(2, 4), 2, 3), b.const(np.array([[1], [0], [1]]))])


def gather_nd_channels(b: ModelBuilder) -> None:
    b.subject("GatherND", [b.image(3, 2, 3), b.const(np.array([[0, 1], [0, 2]]))])


def gather_nd_computed(b: ModelBuilder) -> None:
    b.batch, b.free = 2, False
    b.subject("GatherND", [b.tokens(3, 2), b.places(b.rows(2))])


def scatter_nd(updates: str) -> Build:
    """Pixels, with the channels last."""

    def build(b: ModelBuilder) -> None:
        b.batch, b.free = 2, False
        channels = b.between(2, 4)
        tuples = b.const(np.array([[0, 1], [1, 2]]))
        written = b.rows(channels) if updates == "computed" else b.const(b.normal(2, channels))
        how: dict[str, Any] = {"reduction": b.one_of(("none", "add"))} if b.opset > 15 else {}
        b.subject("ScatterND", [b.tokens(channels, 3), tuples, written], **how)

    return build


def named(b: ModelBuilder, channels: list[int], *tail: int) -> np.ndarray[Any, Any]:
    """Tuples that name some channels of every image [N, k, *tail, 2 + len(tail)]."""
    where = [np.arange(b.batch), np.array(channels), *(np.arange(n) for n in tail)]
    return np.stack(np.meshgrid(*where, indexing="ij"), axis=-1)


def scatter_nd_channels(form: str) -> Build:
    """Some channels are written over; data or updates may be constant."""

    def build(b: ModelBuilder) -> None:
        b.free = False
        tail = b.one_of(((), (2, 3)))
        tuples = named(b, b.one_of(([1, 2], [2, 0], [-1, 1, 2], [1, 2] if form == "data" else [3])), *tail)
        count = tuples.shape[1]
        data = b.const(b.normal(b.batch, 4, 2, 3)) if form == "data" else b.image(4, 2, 3)
        written = b.const(b.normal(b.batch, count, 2, 3)) if form == "updates" else b.image(count, 2, 3)
        b.subject("ScatterND", [data, b.const(tuples), written])

    return build


def scatter_nd_rows(b: ModelBuilder) -> None:
    """One image, whose channels are named one by one."""
    b.batch, b.free = 1, False
    rows = b.one_of(([1, 2], [3, 0, -2]))
    tuples = b.const(np.array([[0, row] for row in rows]))
    b.subject("ScatterND", [b.image(4, 2, 3), tuples, b.const(b.normal(len(rows), 2, 3))])


def scatter_nd_across(b: ModelBuilder) -> None:
    """The updates have channels on a pixel axis of the data."""
    b.batch, b.free = 2, False
    b.subject("ScatterND", [b.image(4, 2, 3), b.const(np.array([[0, 1], [1, 2]])), b.tokens(3, 2)])


def scatter_nd_two_axes(b: ModelBuilder) -> None:
    b.batch, b.free = 1, False
    data = b.headed(3, 2, 2, (0, 2, 3, 1))
    b.subject("ScatterND", [data, b.const(np.array([[0, 1]])), b.const(b.normal(1, 2, 2))])


def scatter_nd_scattered(b: ModelBuilder) -> None:
    """One tuple names another channel in each row."""
    b.batch, b.free = 1, False
    tuples = np.array([[[0, 0, 0], [0, 1, 1]], [[0, 2, 0], [0, 0, 1]]])
    b.subject("ScatterND", [b.image(3, 2, 3), b.const(tuples), b.const(b.normal(2, 2, 3))])


def scatter_nd_computed(b: ModelBuilder) -> None:
    b.batch, b.free = 2, False
    b.subject("ScatterND", [b.tokens(3, 2), b.places(b.rows(2)), b.const(b.normal(2, 3))])


# Orders.


def top_k(b: ModelBuilder) -> None:
    """Values and places along an axis of pixels."""
    axis = b.one_of((3, -1, None))
    data = b.bent(b.image(b.between(2, 4), 2, 4))
    b.subject("TopK", [data, b.ints(2)], 2, axis=axis, largest=b.choose(2), sorted=1)
    b.reads = b.one_of((["subject_0", "subject_1"], ["subject_1"]))


def top_k_channels(b: ModelBuilder) -> None:
    b.subject("TopK", [b.image(3, 2, 3), b.ints(2)], 2, axis=b.one_of((1, -3)))


def reverse(b: ModelBuilder) -> None:
    """Batch and time in either order, channels last; the lengths are constant."""
    b.batch, b.free, b.whole = 2, False, True
    data = b.tokens(b.between(2, 4), 2)
    b.subject("ReverseSequence", [data, b.ints(2, 1)], batch_axis=0, time_axis=1)


def reverse_by_default(b: ModelBuilder) -> None:
    b.batch, b.free, b.whole = 2, False, True
    b.subject("ReverseSequence", [b.tokens(2, 2), b.ints(2, 1)])


def reverse_computed(b: ModelBuilder) -> None:
    b.batch, b.free = 1, False
    lengths = b.node("Cast", [b.node("Ceil", [b.node("Reshape", [b.node("Sigmoid", [b.rows(1)]), b.ints(-1)])])], to=7)
    b.subject("ReverseSequence", [b.tokens(3, 2), lengths], batch_axis=0, time_axis=1)


def reverse_channels(b: ModelBuilder) -> None:
    b.batch, b.free = 2, False
    b.subject("ReverseSequence", [b.image(3, 2), b.ints(2, 3)], batch_axis=0, time_axis=1)


def reverse_channels_by_default(b: ModelBuilder) -> None:
    b.batch, b.free = 2, False
    b.subject("ReverseSequence", [b.image(3, 2), b.ints(2, 1, 2)])


def reverse_channels_in_time(b: ModelBuilder) -> None:
    b.batch, b.free = 2, False
    turned = b.node("Transpose", [b.image(3, 2)], perm=[1, 0, 2])
    b.subject("ReverseSequence", [turned, b.ints(2, 3)])


def triangle(b: ModelBuilder) -> None:
    diagonal = [b.scalar(b.between(-1, 1), np.int64)] if b.chance(2) else []
    b.subject("Trilu", [b.image(b.between(2, 4), 3, 3), *diagonal], upper=b.choose(2))


def triangle_channels(b: ModelBuilder) -> None:
    b.subject("Trilu", [b.one_of((b.tokens, b.image))(3, 4)])


def triangle_computed(b: ModelBuilder) -> None:
    diagonal = b.node("Cast", [b.number()], to=7)
    b.subject("Trilu", [b.image(3, 3, 3), diagonal])


WRITES = "must write at least one channel"
AMONG = "it selects among the channels"
MOVE: dict[str, Any] = {"linear": True, "moves": True}

CASES = [
    Case(
        "Gather",
        (
            Form("channels", gather, ALL, **MOVE),
            Form("one channel", gather_one, ALL, **MOVE),
            Form("pixels", gather_pixels, ALL, **MOVE),
            Form("batch", gather_batch, ALL, **MOVE),
            Form("embedding", embedding, ALL, exact=False),
            Form("table", gather_table, ALL, **MOVE),
        ),
        (
            Refusal("rows of a constant", gather_constant, "its indices hold channels"),
            Refusal("columns of a constant", embedding_columns, "it looks up parts of a constant"),
            Refusal("indices with channels", gather_computed, "its indices hold channels"),
            Refusal("computed channels", gather_computed_channels, "input 1 is computed from a graph input"),
        ),
    ),
    Case(
        "GatherElements",
        (
            Form("constant indices", gather_elements, ALL),
            Form("computed indices", gather_elements_computed, exact=False),
        ),
        (
            Refusal("channels", gather_elements_channels, AMONG),
            Refusal("fewer channels", gather_elements_fewer, "it leaves out some of the channels"),
        ),
    ),
    *(
        Case(
            op,
            (
                Form("computed updates", scatter_elements(op, "computed"), opsets, exact=False),
                Form("constant updates", scatter_elements(op, "constant"), opsets, exact=False),
                Form("constant data", scatter_elements_into(op), opsets, exact=False),
            ),
            (Refusal("channels", scatter_elements_channels(op), AMONG, opsets),),
        )
        for op, opsets in (("ScatterElements", (11, 13, 18)), ("Scatter", (9, 10)))
    ),
    Case(
        "GatherND",
        (
            Form("pixels", gather_nd, (11, 13, 21), exact=False, moves=True),
            Form("batch", gather_nd_batch, (12, 13, 21), exact=False, moves=True),
            Form("images", gather_nd_images, (11, 13, 21), moves=True),
        ),
        (Refusal("channels", gather_nd_channels, AMONG), Refusal("computed indices", gather_nd_computed, AMONG)),
    ),
    Case(
        "ScatterND",
        (
            Form("computed pixels", scatter_nd("computed"), (11, 13, 18), exact=False),
            Form("constant pixels", scatter_nd("constant"), (11, 13, 18), exact=False),
            Form("channels, row by row", scatter_nd_rows, (11, 13, 18), exact=False, allows=WRITES),
            *(
                Form(f"channels, {form}", scatter_nd_channels(form), (11, 13, 18), exact=False, allows=WRITES)
                for form in ("computed", "data", "updates")
            ),
        ),
        (
            Refusal("two axes", scatter_nd_two_axes, "its data and updates hold channels on several axes"),
            Refusal("across", scatter_nd_across, "its data and updates hold channels on several axes"),
            Refusal("scattered", scatter_nd_scattered, "it does not write each channel as one slice"),
            Refusal("computed indices", scatter_nd_computed, AMONG),
        ),
    ),
    Case(
        "TopK",
        (Form("pixels", top_k, ALL, exact=False),),
        (Refusal("channels", top_k_channels, AMONG),),
    ),
    Case(
        "ReverseSequence",
        (
            Form("channels last", reverse, ALL, linear=True, moves=True),
            Form("axes by default", reverse_by_default, ALL, linear=True, moves=True),
        ),
        (
            Refusal("channels", reverse_channels, AMONG),
            Refusal("channels by default", reverse_channels_by_default, AMONG),
            Refusal("channels in time by default", reverse_channels_in_time, AMONG),
            Refusal("computed lengths", reverse_computed, "takes its lengths from it"),
        ),
        harmless={"unpinned": ONE},
    ),
    Case(
        "Trilu",
        (Form("pixels", triangle, (14, 17, 21), exact=False),),
        (
            Refusal("channels", triangle_channels, AMONG, (14, 17)),
            Refusal("computed diagonal", triangle_computed, "takes its diagonal from it", (14, 17)),
        ),
        harmless={"unpinned": ONE},
    ),
]

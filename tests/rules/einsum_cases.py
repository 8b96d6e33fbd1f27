"""Einsum: contractions with a constant, and of two computed tensors."""

from __future__ import annotations

from tests.rules.case import Build, Case, Form, Refusal
from tests.rules.model_builder import ModelBuilder


def tokens(equation: str, *extra: int) -> Build:
    """[batch, 3, C] with a constant [C, …]."""

    def build(b: ModelBuilder) -> None:
        wide, out = b.between(2, 4), b.between(2, 4)
        b.subject("Einsum", [b.tokens(wide, 3), b.const(b.normal(wide, *extra, out))], equation=equation)

    return build


def turned(b: ModelBuilder) -> None:
    """The constant first, stored [O, I]."""
    wide, out = b.between(2, 4), b.between(2, 4)
    b.subject("Einsum", [b.const(b.normal(out, wide)), b.tokens(wide, 3)], equation="oi, bti -> bto")


def image(b: ModelBuilder) -> None:
    wide, out = b.between(2, 4), b.between(2, 4)
    b.subject("Einsum", [b.image(wide, 2, 3), b.const(b.normal(out, wide))], equation="bihw,oi->bohw")


def two_axes(b: ModelBuilder) -> None:
    """Heads and their width are contracted at once."""
    heads, width, out = b.between(2, 3), 2, b.between(2, 4)
    data, weight = b.headed(heads, width, 3), b.const(b.normal(width, heads, out))
    b.subject("Einsum", [data, weight], equation="bthd,dho->bto")


def pixels(b: ModelBuilder) -> None:
    """The constant acts inside each channel, and the axes change their order."""
    b.whole = True
    equation = b.one_of(("bchw,wk->bchk", "bchw,wk->bkhc", "bchw,hk->bkwc"))
    size = 2 if ",hk" in equation else 3
    b.subject("Einsum", [b.image(b.between(2, 4), 2, 3), b.const(b.normal(size, 4))], equation=equation)


def heads(b: ModelBuilder) -> None:
    """Queries times keys by heads."""
    count, width = b.between(2, 3), b.between(1, 2)
    operands = [b.headed(count, width, length) for length in (3, 2)]
    b.subject("Einsum", operands, equation=b.one_of(("bqhd,bkhd->bhqk", "bqhd,bkhd->bqhk")))


def values(b: ModelBuilder) -> None:
    """Attention without channels, times values, on either side."""
    weights, data = b.plain(3, 4), b.tokens(b.between(2, 4), 4)
    if b.chance(2):
        b.subject("Einsum", [weights, data], equation="bij,bjd->bid")
    else:
        b.subject("Einsum", [data, weights], equation="bjd,bij->bdi")


def queries(b: ModelBuilder) -> None:
    b.subject("Einsum", [b.tokens(3, 4), b.tokens(3, 2)], equation="bqd,bkd->bqk")


def implicit(b: ModelBuilder) -> None:
    b.subject("Einsum", [b.tokens(3, 4), b.const(b.normal(3, 2))], equation="abc,cd")


def ellipsis(b: ModelBuilder) -> None:
    b.subject("Einsum", [b.tokens(3, 4), b.const(b.normal(3, 2))], equation="...c,cd->...d")


def three(b: ModelBuilder) -> None:
    operands = [b.tokens(3, 4), b.const(b.normal(3, 2)), b.const(b.normal(2, 4))]
    b.subject("Einsum", operands, equation="abc,cd,de->abe")


def summed(b: ModelBuilder) -> None:
    b.subject("Einsum", [b.image(3, 2, 2), b.const(b.normal(2, 4))], equation="bchw,wk->bhk")


def scaled(b: ModelBuilder) -> None:
    b.subject("Einsum", [b.image(3, 2, 2), b.const(b.normal(3))], equation="bchw,c->bchw")


def partly_contracted(b: ModelBuilder) -> None:
    """Heads are contracted, their width is not."""
    b.subject("Einsum", [b.headed(2, 3, 2), b.const(b.normal(2, 4))], equation="bthd,ho->btdo")


def summed_beside(b: ModelBuilder) -> None:
    """Pixels are summed by the same contraction."""
    b.subject("Einsum", [b.image(3, 2, 2), b.const(b.normal(3, 4))], equation="bchw,co->bo")


def vector(b: ModelBuilder) -> None:
    b.subject("Einsum", [b.tokens(3, 4), b.const(b.normal(3))], equation="btc,c->bt")


def diagonal(b: ModelBuilder) -> None:
    b.subject("Einsum", [b.image(3, 2, 2), b.const(b.normal(3, 4))], equation="bcii,ck->bik")


def computed(b: ModelBuilder) -> None:
    parts = [b.initializer(b.normal(3, 2)) for _ in range(2)]
    b.subject("Einsum", [b.tokens(3, 4), b.node("Add", parts)], equation="abc,cd->abd")


NO_FORM = "it is not a contraction of two tensors with an explicit result"
NO_MATRIX = "its constant is not a matrix"
ALL = (13, 17, 21)
CASES = [
    Case(
        "Einsum",
        (
            Form("matrix", tokens("btc,co->bto"), ALL),
            Form("two new axes", tokens("btc,cho->bhto", 2), ALL),
            Form("turned matrix", turned, ALL),
            Form("image", image, ALL),
            Form("two contracted axes", two_axes, ALL),
            Form("pixels", pixels, ALL),
            Form("weight from constants", computed),
            Form("heads", heads, ALL, exact=False),
            Form("values", values, ALL, exact=False),
        ),
        (
            Refusal("queries and keys", queries, "multiplies two computed tensors"),
            Refusal("implicit result", implicit, NO_FORM),
            Refusal("ellipsis", ellipsis, NO_FORM),
            Refusal("three tensors", three, NO_FORM),
            Refusal("sum over channels", summed, "it sums over the channels"),
            Refusal("scale per channel", scaled, NO_MATRIX),
            Refusal("partly contracted", partly_contracted, NO_MATRIX),
            Refusal("sum beside", summed_beside, NO_MATRIX),
            Refusal("vector", vector, NO_MATRIX),
            Refusal("index twice", diagonal, "it repeats an index"),
        ),
    )
]

"""One row of the table of rules: an operator, models that its rule supports, models that it refuses, wrong versions."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from leanonnx.rules.call import Call, Effect
from tests.rules.model_builder import ModelBuilder

Build = Callable[[ModelBuilder], None]
Wrong = Callable[[Call, Effect], Effect]
OPSETS = (13, 17, 21)
ONE = "what steers it is one number or a graph input, which stay anyway"
"""Reason why an unpinned control input of an operator does no harm."""


@dataclass(frozen=True)
class Form:
    """One way to use an operator with channels that can be removed.

    exact: a change of one channel moves exactly the positions that the channel ids predict (else: at most those).
    linear: it moves them by the product of the gains of the fixed edges.
    beside: the operator touches no removable channel; others beside it are removable.
    mates: tied channels move each other, though no edge leads from one to another.
    allows: a reason for which it may pin some of its channels.
    moves: the operator only moves data, so it can be run on the channel ids themselves.
    """

    name: str
    build: Build
    opsets: tuple[int, ...] = OPSETS
    exact: bool = True
    linear: bool = False
    moves: bool = False
    beside: bool = False
    mates: bool = False
    allows: str = ""

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:
        printer.text(f"'{self.name}'")


@dataclass(frozen=True)
class Refusal:
    """One way to use an operator that its rule pins, and the expected reason."""

    name: str
    build: Build
    says: str
    opsets: tuple[int, ...] = OPSETS

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:
        printer.text(f"'{self.name}'")


@dataclass(frozen=True)
class Case:
    """One operator.

    whole: why there is nothing that the rule refuses.
    never: why there is nothing that the rule supports.
    wrong: wrong versions of its answer, beside those that suit every rule.
    harmless: wrong versions that are no mistake for this operator, with the reason.
    """

    op: str
    forms: tuple[Form, ...]
    refusals: tuple[Refusal, ...] = ()
    domain: str = ""
    whole: str = ""
    never: str = ""
    wrong: Mapping[str, Wrong] = field(default_factory=dict)
    harmless: Mapping[str, str] = field(default_factory=dict)

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:
        printer.text(self.op)

    @property
    def key(self) -> tuple[str, str]:
        """The key of the rule in the table of rules."""
        return self.domain, self.op

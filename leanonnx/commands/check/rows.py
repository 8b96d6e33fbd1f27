"""The report of ``leanonnx check``: frozen data with the keys of its JSON."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated

from leanonnx.commands.bench.rows import CaseRow, FixedRow
from leanonnx.commands.check.verdicts import Status
from leanonnx.reporting.encoding import INLINE
from leanonnx.reporting.rows import REPORT_SCHEMA, FidelityRow


@dataclass(frozen=True, kw_only=True)
class GateRow:
    """The verdict on a gate; numbers are None where there are none, or where they are infinite."""

    gate: str
    status: Status
    measured: float | None
    limit: float | None
    base: float | None
    detail: str


@dataclass(frozen=True)
class InputFidelityRow:
    """Deviation of the candidate from the baseline on inputs of one kind, or of one size."""

    inputs: str
    fidelity: Annotated[FidelityRow, INLINE]


@dataclass(frozen=True)
class GateTimingsRow:
    """The measurements that the gates on latency were judged by."""

    provider: str
    fixed: FixedRow
    results: tuple[CaseRow, ...]


@dataclass(frozen=True, kw_only=True)
class CheckReport:
    """The report of ``leanonnx check``.

    Attributes:
        base, new: titles of the baseline and the candidate.
        passed, failed: True if no gate failed, and the names of those that did.
        deviation, sizes: deviations on the inputs at the first size, and at further ones.
        seconds: by stage.
    """

    schema: int = REPORT_SCHEMA
    base: str
    new: str
    passed: bool
    failed: tuple[str, ...]
    gates: tuple[GateRow, ...]
    notes: tuple[str, ...]
    seed: int
    deviation: tuple[InputFidelityRow, ...]
    sizes: tuple[InputFidelityRow, ...]
    latency: GateTimingsRow | None
    seconds: Mapping[str, float]

    def gates_with(self, status: Status) -> list[GateRow]:
        """The gates of a status."""
        return [gate for gate in self.gates if gate.status == status]

"""The report of ``leanonnx calibrate-device``: frozen data with the keys of its JSON."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from leanonnx.reporting.rows import REPORT_SCHEMA


@dataclass(frozen=True, kw_only=True)
class EntryRow:
    """An entry of the hardware table, beside that of the built-in one."""

    measured: float
    built_in: float
    unit: str
    meaning: str


@dataclass(frozen=True)
class ForecastRow:
    """A network's speed-up: measured, and predicted from both tables; errors are relative."""

    network: str
    measured: float
    predicted: float
    error: float
    built_in: float
    built_in_error: float


@dataclass(frozen=True, kw_only=True)
class CalibrationReport:
    """The report of ``leanonnx calibrate-device``.

    Attributes:
        file: where the table is stored.
        used_by_auto: ``--target auto`` reads that file.
        steps: how block, multiple and grouped were determined.
    """

    schema: int = REPORT_SCHEMA
    target: str
    file: str
    used_by_auto: bool
    provider: str
    threads: int
    onnxruntime: str
    processor: str
    steps: Literal["timed", "read"]
    entries: Mapping[str, EntryRow]
    checks: tuple[ForecastRow, ...]
    seconds: float
    warnings: tuple[str, ...]

"""The candidates that were judged by tolerances, in words."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from leanonnx.evaluation.tolerances import READING_TEXTS
from leanonnx.reporting.remarks import reading_cell, tolerance_text
from leanonnx.reporting.reports import ReadingRow, ToleranceRow
from leanonnx.selection.metrics import METRICS


@dataclass(frozen=True, kw_only=True)
class ToleranceWords:
    """The samples they were judged by, the noun of what is minimised, and the name and the text of each number."""

    text: str
    noun: str
    names: Mapping[str, str]
    cell: Callable[[str, ReadingRow], str]


def tolerance_words(row: ToleranceRow | None) -> ToleranceWords | None:
    """The words on the candidates; None where there were no tolerances."""
    if row is None:
        return None
    names: dict[str, str] = {key: name for key, (name, _, _) in READING_TEXTS.items()}
    return ToleranceWords(text=tolerance_text(row), noun=METRICS[row.unit].noun, names=names, cell=reading_cell)

"""Results as tables: HTML for notebooks, pandas, and CSV.

A class gets all three from the functions at the end, which become its methods; its ``_view`` says what is shown.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from leanonnx.errors import OptionError
from leanonnx.formatting import change_text, count_text, integer_text, shape_text
from leanonnx.spelling import option
from leanonnx.system.outputs import StrPath, check_writable, write_file

if TYPE_CHECKING:
    import pandas

MAX_HTML_ROWS = 100
"""Rows of a table that a notebook shows."""
COLOURS = {"good": "#2a9d5c", "plain": "#8a8a8a", "bad": "#d1453b"}
"""Colours of the bar beside the first line, which stand out on white and on black."""
FIDELITY_MEASURES = ("relative_l2", "psnr", "top1", "top5")
Ends = Sequence[float | None]


@dataclass(frozen=True)
class Estimate:
    """A measured number, and the ends of its interval, if they are known."""

    value: float | None
    interval: Ends | None = None


@dataclass(frozen=True)
class ResultTable:
    """A table: its name, and its rows, each a cell by column; ``folded``: a notebook shows it on a click."""

    name: str
    rows: tuple[Mapping[str, object], ...]
    folded: bool = False

    def flat(self) -> list[dict[str, object]]:
        """The rows with plain cells: an estimate takes three columns, a named tuple one for each of its items."""
        spread = {name for row in self.rows for name, cell in row.items() if isinstance(cell, Estimate)}
        return [
            {key: value for name, cell in row.items() for key, value in _flat(name, cell, name in spread)}
            for row in self.rows
        ]


@dataclass(frozen=True, kw_only=True)
class View:
    """The parts of a result that a notebook shows.

    Attributes:
        line: the first line.
        mood: good, plain or bad.
        tables: the first one is ``to_pandas()``.
        notes: warnings and remarks.
        next_step: what to do now; empty if there is nothing to advise.
    """

    line: str
    mood: str = "plain"
    tables: tuple[ResultTable, ...]
    notes: tuple[str, ...] = ()
    next_step: str = ""

    def table(self, name: str | None) -> ResultTable:
        """The table of a name; None for the first one.

        Raises:
            OptionError: there is none of that name.
        """
        tables = {each.name: each for each in self.tables}
        chosen = self.tables[0] if name is None else tables.get(name)
        if chosen is None:
            raise OptionError(f"{option('table', name)}: there is no such table; give one of {', '.join(tables)}")
        return chosen


class Viewed(Protocol):
    """A result that says what is shown of it."""

    def _view(self) -> View: ...


def measures_of(values: object, intervals: object) -> dict[str, Estimate]:
    """The measures of an output's deviation with their intervals; both objects have them as attributes."""
    return {name: Estimate(getattr(values, name), getattr(intervals, name)) for name in FIDELITY_MEASURES}


def _flat(name: str, cell: object, spread: bool) -> list[tuple[str, object]]:
    """A cell as plain values by column."""
    if isinstance(cell, Estimate):
        low, high = cell.interval or (None, None)
        return [(name, cell.value), (f"{name}_low", low), (f"{name}_high", high)]
    if spread:
        return [(name, cell), (f"{name}_low", None), (f"{name}_high", None)]
    if isinstance(cell, tuple) and hasattr(cell, "_fields"):
        return [(f"{name}_{field}", value) for field, value in zip(cell._fields, cell, strict=True)]
    if isinstance(cell, tuple | list):
        return [(name, shape_text(cell))]
    return [(name, cell)]


def cell_text(cell: object) -> str:
    """A cell for people."""
    if isinstance(cell, Estimate):
        ends = "" if cell.interval is None else f" ({' to '.join(map(cell_text, cell.interval))})"
        return f"{cell_text(cell.value)}{ends}"
    if cell is None:
        return "–"
    if isinstance(cell, bool):
        return "yes" if cell else "no"
    if isinstance(cell, int):
        return integer_text(cell)
    if isinstance(cell, float):
        return f"{cell:.4g}" if math.isfinite(cell) else str(cell).replace("inf", "∞")
    if isinstance(cell, tuple | list):
        return change_text(cell) if hasattr(cell, "_fields") else shape_text(cell)
    return str(cell)


def _is_empty(cell: object) -> bool:
    return cell in (None, "") or (isinstance(cell, Estimate) and cell.value is None)


def _is_number(cell: object) -> bool:
    return isinstance(cell, Estimate | int | float | tuple) and not isinstance(cell, bool)


def table_html(table: ResultTable) -> str:
    """A table without its empty columns; numbers stand at the right."""
    columns = [key for key in _columns(table.rows) if not all(_is_empty(row.get(key)) for row in table.rows)]
    head = "".join(f"<th>{escape(key.replace('_', ' '))}</th>" for key in columns)
    body = "".join(
        f"<tr>{''.join(_cell_html(row.get(key)) for key in columns)}</tr>" for row in table.rows[:MAX_HTML_ROWS]
    )
    more = len(table.rows) - MAX_HTML_ROWS
    rest = f"<p>… and {count_text(more, 'more row')}</p>" if more > 0 else ""
    made = f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>{rest}"
    title = escape(table.name)
    return f"<details><summary>{title}</summary>{made}</details>" if table.folded else f"<p><i>{title}</i></p>{made}"


def _order(table: ResultTable) -> bool:
    """Tables to be unfolded come last."""
    return table.folded


def _cell_html(cell: object) -> str:
    side = "right" if _is_number(cell) else "left"
    return f'<td style="text-align:{side}">{escape(cell_text(cell))}</td>'


def _columns(rows: Iterable[Mapping[str, object]]) -> list[str]:
    """The columns of rows, in the order in which they first come."""
    return list(dict.fromkeys(key for row in rows for key in row))


# Methods of results


def result_html(self: Viewed) -> str:
    """The result for notebooks: the first line, the next step, warnings, tables."""
    view = self._view()
    bar = f"border-left:4px solid {COLOURS[view.mood]};padding-left:8px"
    step = f"<p><b>Next:</b> {escape(view.next_step)}</p>" if view.next_step else ""
    notes = "".join(f"<p>{escape(text)}</p>" for text in view.notes)
    tables = "".join(table_html(table) for table in sorted(view.tables, key=_order) if table.rows)
    return f'<div><p style="{bar}"><b>{escape(view.line)}</b></p>{step}{notes}{tables}</div>'


def result_frame(self: Viewed, table: str | None = None) -> pandas.DataFrame:
    """A table of the result as a pandas DataFrame; an interval takes two more columns.

    Args:
        table: its name, as a notebook shows it; None for the main one.

    Raises:
        OptionError: there is no table of that name, or pandas is not installed.
    """
    rows = self._view().table(table).flat()
    try:
        import pandas
    except ImportError as error:
        raise OptionError("to_pandas needs pandas; install it with pip install pandas, or use to_csv") from error
    return pandas.DataFrame(rows)


def result_csv(self: Viewed, path: StrPath, table: str | None = None) -> None:
    """Write a table of the result as CSV; an interval takes two more columns, and what is not known is empty.

    Args:
        path: the file.
        table: its name, as a notebook shows it; None for the main one.

    Raises:
        OptionError: there is no table of that name.
        OutputError: the file cannot be written.
    """
    rows: list[dict[str, Any]] = self._view().table(table).flat()
    text = io.StringIO()
    writer = csv.DictWriter(text, _columns(rows), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    check_writable(None, Path(path))
    write_file(Path(path), text.getvalue().encode())

"""Progress for callers in Python who pass no function of their own: lines in the log, and a bar in notebooks."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec

from rich.console import Console

from leanonnx.reporting.bars import progress_bar
from leanonnx.system.clock import Progress, ProgressLines, ignore_progress, ticking

LOGGER = logging.getLogger("leanonnx")
"""Gets a line, at the level INFO, for each stage that begins, and one now and then while it works."""
LINE_SECONDS, TICK_SECONDS = 30.0, 1.0
"""Time between two lines on the same stage, and between looks at it."""


@contextmanager
def listening(given: Progress | None) -> Iterator[Progress]:
    """Yield the listener that was given; without one, a bar in a notebook, else the log if it takes such lines."""
    if given is not None:
        yield given
    elif _shows_bars():
        with progress_bar(Console()) as bar:
            yield bar
    elif LOGGER.isEnabledFor(logging.INFO):
        lines = ProgressLines(LOGGER.info, 0.0, LINE_SECONDS)
        with ticking(lines.tick, TICK_SECONDS):
            yield lines
    else:
        yield ignore_progress


def _shows_bars() -> bool:
    """True in a notebook that has what rich draws its bars with."""
    return Console().is_jupyter and find_spec("ipywidgets") is not None

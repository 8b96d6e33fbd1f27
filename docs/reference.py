"""Parts of pages that are made when the site is built: each has the place of a comment ``<!-- NAME -->``."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

from docs import cli, operators

PARTS: Mapping[str, Callable[[], str]] = {"operators": operators.reference, "verbs": cli.reference}
MARK = re.compile(rf"^<!-- ({'|'.join(PARTS)}) -->$", re.MULTILINE)


def whole(page: str) -> str:
    """A page with its parts."""
    return MARK.sub(lambda found: PARTS[found[1]](), page)

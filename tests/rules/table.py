"""All cases: those of every file ``*_cases.py`` in this folder, one per family of operators."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path

from tests.rules.case import Case

FAMILIES = [import_module(f"tests.rules.{path.stem}") for path in sorted(Path(__file__).parent.glob("*_cases.py"))]
CASES: tuple[Case, ...] = tuple(case for family in FAMILIES for case in family.CASES)

"""User-defined rules: a table, or a Python file named by the user.

The file is executed: only files named by the user are read, never a file that a model or a plan mentions.
"""

from __future__ import annotations

import runpy
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from leanonnx.errors import OptionError
from leanonnx.graph.model import first_line
from leanonnx.rules.call import Call, Edit, Effect, KeptChannels, Rewrite, Rule, Unsupported
from leanonnx.rules.check import find_fault
from leanonnx.rules.table import DEFAULT_RULES, Rules
from leanonnx.spelling import option


def read_rules(path: Path) -> Rules:
    """Standard rules, extended and overridden by the table ``RULES`` of a Python file.

    ``RULES`` maps (domain, operator) to a rule: a function from ``Call`` to ``Effect``.

    Raises:
        OptionError: the file cannot be run, or defines no such table.
    """
    try:
        table = runpy.run_path(str(path)).get("RULES")
    except (Exception, SystemExit) as error:  # whatever the user's code raises
        raise OptionError(f"{option('rules', str(path))}: cannot be read: {_fault(error)}; correct the file") from error
    return extend_rules(table, option("rules", str(path)))


def extend_rules(table: object, title: str | None = None) -> Rules:
    """Standard rules, extended and overridden by a table that messages call ``title``.

    Raises:
        OptionError: it is not a table of rules.
    """
    title = title or option("rules")
    if not isinstance(table, Mapping) or not all(_is_entry(key, rule) for key, rule in table.items()):
        example = 'RULES = {("com.acme", "Scale"): scale}'
        raise OptionError(f"{title}: expected a table named RULES, for example {example}")
    own = {("" if domain == "ai.onnx" else domain, op): rule for (domain, op), rule in table.items()}
    new = {key: rule for key, rule in own.items() if rule is not DEFAULT_RULES.get(key)}
    return {**DEFAULT_RULES, **{key: _guard_rule(rule, f"{title}: {key}") for key, rule in new.items()}}


def _is_entry(key: Any, rule: Any) -> bool:
    return isinstance(key, tuple) and [type(part) for part in key] == [str, str] and callable(rule)


def _guard_rule(rule: Rule, title: str) -> Rule:
    """Rule whose exceptions and invalid effects raise an ``OptionError`` that names it."""

    def run_rule(call: Call) -> Effect:
        try:
            effect = rule(call)
        except Unsupported:
            raise
        except (Exception, SystemExit) as error:  # whatever the user's code raises
            raise OptionError(f"{title} failed on {call.title}: {_fault(error)}; correct the rule") from error
        if fault := find_fault(call, effect, call.channel_count()):
            raise OptionError(f"{title} answered wrongly for {call.title}: {fault}; correct the rule")
        return replace(effect, rewrite=_guard_rewrite(effect.rewrite, f"{title} failed on {call.title}"))

    return run_rule


def _fault(error: BaseException) -> str:
    """Type and first line of an exception raised by the user's code."""
    return f"{type(error).__name__}: {first_line(error)}"


def _guard_rewrite(rewrite: Rewrite | None, title: str) -> Rewrite | None:
    if rewrite is None:
        return None

    def run_rewrite(kept: KeptChannels) -> Edit:
        try:
            edit = rewrite(kept)
        except (Exception, SystemExit) as error:  # whatever the user's code raises
            raise OptionError(f"{title}: its rewrite: {_fault(error)}; correct the rule") from error
        if not isinstance(edit, Edit):
            raise OptionError(
                f"{title}: its rewrite answered {type(edit).__name__}, expected an Edit; correct the rule"
            )
        return edit

    return run_rewrite

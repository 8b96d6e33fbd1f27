"""Rules of the user's own, read from a Python file that the user names.

The file is code, and is run: only files named on the command line are read, never what a model or a plan mentions.
"""

from __future__ import annotations

import runpy
from pathlib import Path
from typing import Any

from leanonnx.errors import OptionError
from leanonnx.model import first_line
from leanonnx.rules.call import Call, Effect, Rule, Unsupported
from leanonnx.rules.table import DEFAULT, Rules


def read_rules(path: Path) -> Rules:
    """The standard rules, joined (and where both have one, overruled) by ``RULES`` of a file.

    ``RULES`` maps (domain, operator) to a rule: a function from ``Call`` to ``Effect``.

    Raises:
        OptionError: the file cannot be run, or holds no such table.
    """
    try:
        found = runpy.run_path(str(path)).get("RULES")
    except Exception as error:  # whatever the user's code raises
        raise OptionError(f"--rules {path}: cannot be read: {type(error).__name__}: {first_line(error)}") from error
    if not isinstance(found, dict) or not all(_is_entry(key, rule) for key, rule in found.items()):
        raise OptionError(
            f'--rules {path}: expected a table named RULES, for example RULES = {{("com.acme", "Scale"): scale}}'
        )
    return {**DEFAULT, **{key: _guarded(rule, f"--rules {path}: {key}") for key, rule in found.items()}}


def _is_entry(key: Any, rule: Any) -> bool:
    return isinstance(key, tuple) and [type(part) for part in key] == [str, str] and callable(rule)


def _guarded(rule: Rule, title: str) -> Rule:
    """The rule, whose own mistakes are told as such."""

    def guarded(call: Call) -> Effect:
        try:
            effect = rule(call)
        except Unsupported:
            raise
        except Exception as error:  # whatever the user's code raises
            raise OptionError(f"{title} failed on {call.title}: {type(error).__name__}: {first_line(error)}") from error
        if not isinstance(effect, Effect) or len(effect.outputs) < len([name for name in call.outputs if name]):
            raise OptionError(f"{title} did not answer for {call.title} with an Effect of {len(call.outputs)} outputs")
        return effect

    return guarded

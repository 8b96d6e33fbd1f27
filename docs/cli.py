"""What the verbs and their options do, from their signatures and docstrings: a part of docs/cli.md on the site."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin

from typer.models import ArgumentInfo, OptionInfo

from leanonnx.cli.group import VERBS

KINDS = {int: "N", float: "X", str: "TEXT", Path: "PATH"}
"""What stands for a value of a type where a parameter names none."""
READ_ON = {
    "compress": "[recipes.md](recipes.md), [calibration.md](calibration.md), [tolerance.md](tolerance.md), "
    "[targets.md](targets.md), [report.md](report.md)",
    "inspect": "[operators.md](operators.md), [pins.md](pins.md)",
    "sweep": "[sweep.md](sweep.md)",
    "check": "[check.md](check.md)",
    "bench": "[latency.md](latency.md)",
    "calibrate-device": "[targets.md](targets.md)",
    "finetune": "[finetune.md](finetune.md)",
}
"""Pages about a verb."""


@dataclass(frozen=True)
class Parameter:
    """An argument or an option of a verb, in the words of the page."""

    shown: str
    default: str
    meaning: str
    argument: bool


@dataclass(frozen=True)
class Verb:
    """A verb: its name, what it does, its exit codes by number, and its parameters."""

    name: str
    text: str
    exits: dict[int, str]
    parameters: tuple[Parameter, ...]


def verbs() -> list[Verb]:
    """All verbs, in the order of ``leanonnx --help``."""
    return [verb(name, each.function(name)) for name, each in VERBS.items()]


def verb(name: str, call: Callable[..., Any]) -> Verb:
    """A verb from the function that carries it out.

    Raises:
        KeyError: its docstring does not say what its exit codes mean.
    """
    text, _, rest = " ".join((inspect.getdoc(call) or "").split()).partition(" Exit codes: ")
    codes, _, more = rest.partition(". ")
    exits = {int(code): meaning for code, meaning in re.findall(r"(\d) ((?:[^,(]|\([^)]*\))+)", codes.rstrip("."))}
    if not {0, 2, 3} <= set(exits):
        raise KeyError(f"{name}: its docstring lacks 'Exit codes: 0 …, 2 …, 3 …'")
    found = inspect.signature(call, eval_str=True).parameters.values()
    return Verb(name, f"{text} {more}".strip(), exits, tuple(parameter(each) for each in found))


def parameter(found: inspect.Parameter) -> Parameter:
    """A parameter from the signature of its verb."""
    kind, info = get_args(found.annotation)
    kind, many = _plain(kind)
    meaning = str(info.help)
    if isinstance(info, ArgumentInfo):
        return Parameter(info.metavar or found.name.upper(), "", meaning, argument=True)
    names = _names(info, found.name, kind)
    if get_origin(kind) is Literal:
        meaning += f" One of {', '.join(f'`{each}`' for each in get_args(kind))}."
    elif kind is not bool:
        names += f" {info.metavar or KINDS[kind]}"
    if many:
        meaning = f"{meaning.rstrip('.')}; may be given several times."
    return Parameter(names, _default(found.default, names), meaning, argument=False)


def _plain(kind: Any) -> tuple[Any, bool]:
    """A type without "or None", and whether it is a list of such."""
    if get_origin(kind) in (Union, UnionType):
        kind = next(each for each in get_args(kind) if each is not type(None))
    return (get_args(kind)[0], True) if get_origin(kind) is list else (kind, False)


def _names(info: OptionInfo, name: str, kind: Any) -> str:
    given = [each for each in (info.default, *(info.param_decls or ())) if isinstance(each, str)]
    if given:  # in an Annotated type the first name stands where a default would
        return given[0].replace("/", " / ")
    plain = name.replace("_", "-")
    return f"--{plain} / --no-{plain}" if kind is bool else f"--{plain}"


def _default(value: Any, names: str) -> str:
    if value is inspect.Parameter.empty:
        return "needed"
    if value is None or value is False:
        return ""
    if value is True:
        return f"`{names.partition(' ')[0]}`"
    return f"`{value:g}`" if isinstance(value, float) else f"`{value}`"


def chapter(found: Verb) -> str:
    """The part of the page about a verb."""
    arguments = [each for each in found.parameters if each.argument]
    usage = " ".join([f"leanonnx {found.name}", *(each.shown for each in arguments), "[OPTIONS]"])
    lines = [f"## {found.name}", "", f"`{usage}`", "", marked(found.text), ""]
    if arguments:
        lines += ["| argument | meaning |", "|---|---|"]
        lines += [f"| `{each.shown}` | {marked(each.meaning)} |" for each in arguments]
        lines += [""]
    lines += ["| option | default | meaning |", "|---|---|---|"]
    options = [each for each in found.parameters if not each.argument]
    lines += [f"| `{cell(each.shown)}` | {each.default} | {cell(marked(each.meaning))} |" for each in options]
    lines += ["", "| exit code | |", "|---|---|"]
    lines += [f"| {code} | {meaning} |" for code, meaning in found.exits.items()]
    if found.name in READ_ON:
        lines += ["", f"More: {READ_ON[found.name]}"]
    return "\n".join(lines)


def marked(text: str) -> str:
    """Options in a sentence as code."""
    return re.sub(r"(?<![\w`-])--[a-z][a-z0-9-]*", lambda found: f"`{found[0]}`", text)


def cell(text: str) -> str:
    """Text that can stand in a table."""
    return text.replace("|", "\\|")


def reference() -> str:
    """A chapter for each verb."""
    return "\n\n".join(chapter(each) for each in verbs())

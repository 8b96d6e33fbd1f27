"""Options from a TOML file: ``--config leanonnx.toml``, or ``--config pyproject.toml`` with ``[tool.leanonnx]``.

A table named after a verb holds its options; what stands before all tables is for every verb that has the option.
Options are named as on the command line, without dashes in front. The command line goes first.
"""

from __future__ import annotations

from collections.abc import Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any

import typer

from leanonnx.checks import read_toml
from leanonnx.cli.terminal import exit_codes
from leanonnx.errors import OptionError

PYPROJECT = "pyproject.toml"
SECTION = "tool", "leanonnx"
"""Where the options are in a ``PYPROJECT``."""
CONFIG_EXAMPLE = "keep = 0.5 below [compress]"


def read_config(context: typer.Context, path: Path | None) -> Any:
    """Take the defaults of the options of a verb from a file.

    Returns:
        The context, which tells where each value came from; None without a file.
    """
    if path is None or context.resilient_parsing:
        return None
    with exit_codes():
        group: Any = context.parent.command if context.parent else None
        verbs = {name: option_names(command) for name, command in group.commands.items()}
        context.default_map = options_of(path, config_table(path), str(context.info_name), verbs)
    return context


ConfigFile = Annotated[
    Path | None,
    typer.Option(
        "--config",
        metavar="FILE.toml",
        is_eager=True,
        callback=read_config,
        help="Take options from this file, from its table named after the command; the command line goes first.",
    ),
]


def option_names(command: Any) -> dict[str, Any]:
    """The parameters of a verb by the names of their options."""
    parameters = [each for each in command.params if each.param_type_name == "option"]
    return {
        text.removeprefix("--"): each
        for each in parameters
        for text in (*each.opts, *each.secondary_opts)
        if text.startswith("--") and text not in ("--help", "--config")
    }


def options_of(path: Path, table: Mapping[str, Any], verb: str, verbs: Mapping[str, Mapping[str, Any]]) -> Any:
    """The values for a verb, by parameter.

    Args:
        path: of the file, for messages.
        table: its contents.
        verb: the verb that runs.
        verbs: the options of all verbs, by verb.

    Raises:
        OptionError: an option that there is not, or a value that is none.
    """
    tables = {name: value for name, value in table.items() if isinstance(value, Mapping)}
    for name in tables:
        if name not in verbs:
            raise OptionError(f"{path}: there is no command '{name}'; {_nearest(name, verbs)}")
    shared = {_option_name(name): value for name, value in table.items() if name not in tables}
    for name in shared:
        every = {each for options in verbs.values() for each in options}
        if name not in every:
            raise OptionError(f"{path}: no command has an option '{name}'; {_nearest(name, every)}")
    for other, own in tables.items():
        for name in map(_option_name, own):
            if name not in verbs[other]:
                raise OptionError(f"{path}: [{other}] has no option '{name}'; {_nearest(name, verbs[other])}")
    own = {_option_name(name): value for name, value in tables.get(verb, {}).items()}
    given = {name: value for name, value in shared.items() if name in verbs[verb]} | own
    return {verbs[verb][name].name: _value(path, name, verbs[verb][name], value) for name, value in given.items()}


def config_table(path: Path) -> Mapping[str, Any]:
    """The contents of a file, or of its section in a ``PYPROJECT``.

    Raises:
        OptionError: the file cannot be read, or lacks the section.
    """
    table: Any = read_toml(path, "check the path given with --config", f"write lines such as {CONFIG_EXAMPLE}")
    for name in SECTION if path.name == PYPROJECT else ():
        table = table.get(name) if isinstance(table, Mapping) else None
    if not isinstance(table, Mapping):
        raise OptionError(f"{path}: no table [{'.'.join(SECTION)}]; add it, or give another file with --config")
    return table


def _value(path: Path, name: str, parameter: Any, value: Any) -> Any:
    """A value of the file as it would be typed.

    Raises:
        OptionError: a table, a date, or a flag that is neither true nor false.
    """
    if parameter.is_flag:
        if not isinstance(value, bool):
            raise OptionError(f"{path}: {name} = {value!r}: expected true or false")
        return value is not (f"--{name}" in parameter.secondary_opts)
    values = value if isinstance(value, list) else [value]
    if not all(isinstance(each, str | int | float) and not isinstance(each, bool) for each in values):
        raise OptionError(f"{path}: {name} = {value!r}: expected a number, a text in quotes, or a list of such")
    texts = [str(each) for each in values]
    return texts if parameter.multiple else ",".join(texts)


def _option_name(name: str) -> str:
    return name.replace("_", "-")


def _nearest(name: str, names: Any) -> str:
    """The name that was perhaps meant, or all of them."""
    near = get_close_matches(name, names, 1)
    return f"did you mean '{near[0]}'?" if near else f"there are {', '.join(sorted(names))}"

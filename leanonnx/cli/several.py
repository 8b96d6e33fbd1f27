"""Several models in one command: patterns such as ``*.onnx``, a folder of results, and a report for each."""

from __future__ import annotations

import glob
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO, TypeVar

import typer
from rich.console import RenderableType

from leanonnx.cli.terminal import show, show_json
from leanonnx.errors import LeanOnnxError, ModelError, OptionError, OutputError
from leanonnx.reporting.reports import SeveralReports

Report = TypeVar("Report")
ARRAY_SUFFIXES = (".npz", ".npy")


def matching_models(given: Sequence[Path] | None, out: Path | None = None) -> tuple[Path, ...]:
    """The models of a command line, each once; a path that is no file may be a pattern.

    Args:
        given: paths and patterns; None for none.
        out: the last of the arguments, which says where to write.

    Raises:
        OptionError: there is only that.
        ModelError: nothing matches a pattern.
    """
    if not given:
        raise OptionError(f"OUT is missing: after the model, {out}, give the file to write, or a folder")
    models: list[Path] = []
    for path in given:
        names = [str(path)]
        if glob.has_magic(str(path)) and not os.path.exists(path):
            names = sorted(glob.glob(str(path), recursive=True))
            if not names:
                raise ModelError(f"{path}: no file matches this pattern; check it")
        models += map(Path, names)
    return tuple(dict.fromkeys(models))


def result_places(models: Sequence[Path], out: Path, single: Mapping[str, object]) -> dict[Path, Path]:
    """Path of the result of each model: ``out``, or under the model's name in the folder ``out``.

    Args:
        models: the inputs.
        out: a file, or for several models a folder.
        single: options that name one file, by name; None for those not given.

    Raises:
        OptionError: there are several models, and such an option, or two of one name.
        OutputError: there are several models, and ``out`` is no folder.
    """
    if len(models) == 1:
        return {models[0]: out / models[0].name if os.path.isdir(out) else out}
    arrays = next((model for model in models if model.suffix in ARRAY_SUFFIXES), None)
    if arrays is not None:
        raise OptionError(f"{arrays}: holds arrays, no model; if they are samples, give them with --calib")
    for name, value in single.items():
        if value is not None:
            raise OptionError(
                f"--{name} {value}: is one file, but there are {len(models)} models; leave it out, or compress them "
                "one by one"
            )
    if not os.path.isdir(out):
        raise OutputError(f"{out}: is no folder, which the results of {len(models)} models need; make that folder")
    names = [model.name for model in models]
    for name in names:
        if names.count(name) > 1:
            raise OptionError(f"{out / name}: two models have this name; compress them one by one")
    return {model: out / model.name for model in models}


def report_each(
    models: Sequence[Path],
    make: Callable[[Path], Report],
    tables: Callable[[Path, Report], RenderableType],
    results: TextIO,
    as_json: bool,
) -> None:
    """Make and print the report of each model; an error of one of several does not keep the others from being made.

    Raises:
        LeanOnnxError: the error of the only model.
        typer.Exit: with the highest exit code of several models, if that is not 0.
    """
    if len(models) == 1:
        (model,) = models
        report = make(model)
        show_json(report, results) if as_json else show(tables(model, report), results)
        return
    reports: dict[str, Any] = {}
    errors: dict[str, str] = {}
    code = 0
    for model in models:
        try:
            reports[str(model)] = report = make(model)
        except LeanOnnxError as error:
            errors[str(model)] = text = str(error) if str(model) in str(error) else f"{model}: {error}"
            code = max(code, error.code)
            sys.stderr.write(f"leanonnx: {text}\n")
        else:
            if not as_json:
                show(tables(model, report), results)
    if as_json:
        show_json(SeveralReports(models=reports, errors=errors), results)
    if code:
        raise typer.Exit(code)

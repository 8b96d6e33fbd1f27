"""``leanonnx compress IN OUT``."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from leanonnx.cli.options import (
    Align,
    AsJson,
    Calib,
    ChainKind,
    Freeze,
    Hardware,
    Ignored,
    Layout,
    Library,
    Mean,
    MeasuringThreads,
    NoMeasure,
    Pins,
    PlanOut,
    Ranking,
    Recovering,
    ReportOut,
    RulesFile,
    Scale,
    Shape,
    Size,
    Std,
    image_format,
    parse_shapes,
    rules_from,
    stored_targets,
)
from leanonnx.cli.terminal import command_line, exit_codes, progress, show, show_json
from leanonnx.compressing import pipeline, report
from leanonnx.compressing.options import Options, alignment, asked_budget
from leanonnx.compressing.pipeline import Page
from leanonnx.page.page import Told, render
from leanonnx.runtime.providers import Provider, Setting
from leanonnx.selection.selector import LATENCY
from leanonnx.surgery.plan import load_plan


def compress(
    source: Annotated[Path, typer.Argument(metavar="IN", help="The model to compress.")],
    target: Annotated[Path, typer.Argument(metavar="OUT", help="Where to write the result.")],
    keep: Annotated[float | None, typer.Option(help="Keep at most this fraction of the kernels (0 to 1).")] = None,
    macs: Annotated[float | None, typer.Option(help="Keep at most this fraction of the multiply-adds.")] = None,
    params: Annotated[float | None, typer.Option(help="Keep at most this fraction of the parameters.")] = None,
    latency: Annotated[
        float | None, typer.Option(help="Take at most this fraction of the original's measured time.")
    ] = None,
    method: Ranking = "auto",
    chains: ChainKind = "cover",
    shape: Shape = None,
    pin: Pins = None,
    ignore: Ignored = None,
    plan: Annotated[
        Path | None, typer.Option(metavar="P.json", help="Carry out this plan instead of selecting.")
    ] = None,
    plan_out: PlanOut = None,
    report_out: ReportOut = None,
    calib: Calib = None,
    mean: Mean = "0",
    std: Std = "1",
    scale: Scale = 255,
    layout: Layout = "auto",
    size: Size = None,
    recover: Recovering = None,
    align: Align = "auto",
    hardware: Hardware = "auto",
    provider: Annotated[Provider, typer.Option(help="Where the model is to run, and is measured.")] = "cpu",
    threads: MeasuringThreads = 0,
    rules: RulesFile = None,
    library: Library = None,
    exact: Annotated[
        bool, typer.Option("--exact", help="Remove only what contributes nothing; the output stays what it is.")
    ] = False,
    freeze: Freeze = False,
    best_effort: Annotated[
        bool, typer.Option("--best-effort", help="Write the nearest that can be had if over budget or not faster.")
    ] = False,
    no_measure: NoMeasure = False,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the proof's inputs and of --method random.")] = 0,
    as_json: AsJson = False,
) -> None:
    """Remove channels until the model fits the budget, prove the result and write it.

    Exactly one of --keep, --macs, --params, --latency, --plan or --exact says how far to go. Exit codes: 0 written,
    1 refused (budget not reachable, proof failed, not faster than the original), 2 wrong file or option, 3 a bug.
    """
    with exit_codes() as results:
        options = Options(
            budget=asked_budget({"keep": keep, "macs": macs, "params": params, LATENCY: latency}, plan, exact),
            method=method,
            chains=chains,
            shapes=parse_shapes(shape or []),
            pin=tuple(pin or ()),
            ignore=tuple(ignore or ()),
            plan=None if plan is None else load_plan(plan),
            libraries=tuple(library or ()),
            best_effort=best_effort,
            align=alignment(align),
            target=hardware,
            targets=stored_targets(),
            setting=Setting(provider, threads),
            measure=not no_measure,
            seed=seed,
            exact=exact,
            freeze=freeze,
            calib=calib,
            images=image_format(mean, std, scale, layout, size),
            recover=recover,
        )
        told = Told(str(source), str(target), command_line())
        page = None if report_out is None else Page(report_out, partial(render, told))
        with progress() as listener:
            result = pipeline.compress(source, target, options, plan_out, rules_from(rules), listener, page)
        row = report.summary(result)
        show_json(row, results) if as_json else show(report.result_tables(row, str(source), str(target)), results)

"""``leanonnx compress IN OUT``."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated

import typer
from rich.console import RenderableType

from leanonnx.cli.budgets import limit_option, with_budgets
from leanonnx.cli.choices import Choices, with_choices
from leanonnx.cli.options import PlanOut, Quiet, ReportOut, RulesFile, Verbose, rules_from
from leanonnx.cli.several import matching_models, report_each, result_places
from leanonnx.cli.terminal import AsJson, command_line, exit_codes, progress
from leanonnx.commands.compress import pipeline
from leanonnx.commands.compress.options import asked_budget
from leanonnx.commands.compress.pipeline import Page
from leanonnx.commands.compress.report import compression_report, summary_context
from leanonnx.commands.compress.tables import compression_tables
from leanonnx.errors import OptionError
from leanonnx.page.page import PageContext, render
from leanonnx.reporting.reports import CompressionReport
from leanonnx.reporting.summary import SummaryContext
from leanonnx.selection.metrics import Limit
from leanonnx.surgery.plan import load_plan


@with_choices
@with_budgets(limit_option)
def compress_command(
    *,
    sources: Annotated[
        list[Path] | None,
        typer.Argument(metavar="IN…", help="The model to compress, or several, or a pattern: '*.onnx'."),
    ] = None,
    out: Annotated[
        Path, typer.Argument(metavar="OUT", help="Where to write the result; an existing folder for several.")
    ],
    limits: dict[str, Limit | None],
    plan: Annotated[
        Path | None, typer.Option(metavar="P.json", help="Carry out this plan instead of selecting channels.")
    ] = None,
    plan_out: PlanOut = None,
    plan_weights: Annotated[
        Path | None,
        typer.Option(metavar="W.npz", help="Write the weights that recovery changed here; the plan refers to them."),
    ] = None,
    report_out: ReportOut = None,
    rules: RulesFile = None,
    exact: Annotated[
        bool, typer.Option("--exact", help="Remove only what contributes nothing; the output does not change.")
    ] = False,
    choices: Choices,
    verbose: Verbose = False,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Remove channels until the model fits the budget, prove the result and write it.

    Exactly one of {limits}, --plan or --exact says how far to go, or a tolerance
    (--min-agreement, --max-deviation, --min-psnr, --score), alone or within a budget. Exit codes: 0 written, 1 refused
    (budget or tolerance not reachable, proof failed, not faster than the original), 2 wrong file or option, 3 a bug.
    """
    with exit_codes() as results:
        models = matching_models(sources, out)
        budget = asked_budget(limits, plan, exact, choices.alone)
        if plan_weights is not None and plan_out is None:
            raise OptionError(f"--plan-weights {plan_weights}: belongs to a plan; add --plan-out P.json")
        single = {"plan-out": plan_out, "plan-weights": plan_weights, "report": report_out}
        places = result_places(models, out, single)
        options = choices.options(budget, None if plan is None else load_plan(plan), exact)

        contexts: dict[Path, SummaryContext] = {}

        def report_of(source: Path) -> CompressionReport:
            context = PageContext(str(source), str(places[source]), command_line())
            page = None if report_out is None else Page(report_out, partial(render, context))
            with progress(quiet) as listener:
                result = pipeline.compress_file(
                    source, places[source], options, plan_out, rules_from(rules), listener, page, plan_weights
                )
            contexts[source] = summary_context(result, str(source), str(places[source]))
            return compression_report(result)

        def tables(source: Path, report: CompressionReport) -> RenderableType:
            return compression_tables(report, contexts[source], verbose)

        report_each(models, report_of, tables, results, as_json)

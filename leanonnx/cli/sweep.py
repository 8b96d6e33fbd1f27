"""``leanonnx sweep IN…``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from leanonnx.checks import exactly_one
from leanonnx.cli.budgets import fractions_option, with_budgets
from leanonnx.cli.choices import Choices, with_choices
from leanonnx.cli.options import Quiet, RulesFile, fractions
from leanonnx.cli.terminal import AsJson, exit_codes, progress, show, show_json
from leanonnx.commands.sweep.driver import run_sweep as run
from leanonnx.commands.sweep.extras import maker, plotter
from leanonnx.commands.sweep.request import SweepRequest
from leanonnx.commands.sweep.tables import sweep_tables
from leanonnx.selection.metrics import Budget

Out = Annotated[Path | None, typer.Option(metavar="DIR", help="Folder of the results; else named after the model.")]
Jobs = Annotated[int | None, typer.Option(min=1, help="Compressions at once; by default one for each physical core.")]
DaskAddress = Annotated[
    str | None, typer.Option(metavar="ADDRESS", help="Compress on this Dask cluster: tcp://host:8786.")
]
KEPT = "what is finished is kept: run the same command again to go on"


@with_choices
@with_budgets(fractions_option)
def sweep_command(
    sources: Annotated[list[Path], typer.Argument(metavar="IN…", help="The models.")],
    limits: dict[str, str | None],
    out: Out = None,
    save_models: Annotated[bool, typer.Option("--save-models", help="Keep the model of each point.")] = False,
    restart: Annotated[bool, typer.Option("--restart", help="Start anew, whatever the folder holds.")] = False,
    jobs: Jobs = None,
    dask: DaskAddress = None,
    rules: RulesFile = None,
    *,
    choices: Choices,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Compress models to several fractions: the trade-off curve, as a table, CSV, JSON and a picture with its knee.

    Exactly one of {any limit} lists the fractions. Stopped, it goes on where it was when the
    same command is run again. Latency is measured on this machine, one point at a time, after all are made. Exit codes:
    0 all points written, 1 some could not be reached, 2 wrong file or option, 3 a bug.
    """
    with exit_codes(KEPT) as results:
        name, text = exactly_one(limits, "--keep 0.75,0.5,0.25")
        asked, budget = fractions(name, text), Budget.of_option(name, 1.0)
        options, folder = choices.options(budget), out or _folder(sources)
        request = SweepRequest(
            models=tuple(sources),
            fractions=asked,
            options=options,
            folder=folder,
            rules=rules,
            save_models=save_models,
            restart=restart,
        )
        make = maker(budget.metric, jobs, dask, len(sources) * len(asked))
        with progress(quiet) as listener:
            report = run(request, make, plotter(), listener)
        show_json(report, results) if as_json else show(sweep_tables(report), results)
        if report.exit_code:
            raise typer.Exit(report.exit_code)


def _folder(sources: list[Path]) -> Path:
    """The default folder of results, named after the model, or after the first of several."""
    more = f"-and-{len(sources) - 1}-more" if len(sources) > 1 else ""
    return Path(f"{sources[0].stem}{more}-sweep")

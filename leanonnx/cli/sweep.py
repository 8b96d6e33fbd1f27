"""``leanonnx sweep IN…``."""

from __future__ import annotations

from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import typer

from leanonnx.checks import exactly_one
from leanonnx.cli.choices import Choices, with_choices
from leanonnx.cli.options import AsJson, RulesFile, fractions
from leanonnx.cli.terminal import exit_codes, progress, show, show_json
from leanonnx.commands.sweep.driver import Draw
from leanonnx.commands.sweep.driver import sweep as run
from leanonnx.commands.sweep.request import SweepRequest
from leanonnx.commands.sweep.tables import sweep_tables
from leanonnx.commands.sweep.worker import Make, made_here
from leanonnx.errors import OptionError
from leanonnx.selection.selector import LATENCY, Budget
from leanonnx.system.cores import available_cores

Latency = Annotated[
    str | None, typer.Option(metavar="F,…", help="Fractions of the measured time; searched one by one.")
]
Out = Annotated[Path | None, typer.Option(metavar="DIR", help="Folder of the results; else named after the model.")]
Jobs = Annotated[int | None, typer.Option(min=1, help="Compressions at once; by default one for each physical core.")]
DaskAddress = Annotated[
    str | None, typer.Option(metavar="ADDRESS", help="Compress on this Dask cluster: tcp://host:8786.")
]
KEPT = "what is finished is kept: run the same command again to go on"


@with_choices
def sweep(
    sources: Annotated[list[Path], typer.Argument(metavar="IN…", help="The models.")],
    keep: Annotated[str | None, typer.Option(metavar="F,…", help="Fractions of the kernels: 0.75,0.5,0.25.")] = None,
    macs: Annotated[str | None, typer.Option(metavar="F,…", help="Fractions of the multiply-adds.")] = None,
    params: Annotated[str | None, typer.Option(metavar="F,…", help="Fractions of the parameters.")] = None,
    latency: Latency = None,
    out: Out = None,
    save_models: Annotated[bool, typer.Option("--save-models", help="Keep the model of each point.")] = False,
    restart: Annotated[bool, typer.Option("--restart", help="Start anew, whatever the folder holds.")] = False,
    jobs: Jobs = None,
    dask: DaskAddress = None,
    rules: RulesFile = None,
    *,
    choices: Choices,
    as_json: AsJson = False,
) -> None:
    """Compress models to several fractions: the trade-off curve, as a table, CSV, JSON and a picture with its knee.

    Exactly one of --keep, --macs, --params or --latency lists the fractions. Stopped, it goes on where it was when the
    same command is run again. Latency is measured on this machine, one point at a time, after all are made. Exit codes:
    0 all points written, 1 some could not be reached, 2 wrong file or option, 3 a bug.
    """
    with exit_codes(KEPT) as results:
        given = {"keep": keep, "macs": macs, "params": params, LATENCY: latency}
        name, text = exactly_one(given, "--keep 0.75,0.5,0.25")
        asked, budget = fractions(name, text), Budget.asked(name, 1.0)
        options, folder = choices.asked(budget), out or _folder(sources)
        request = SweepRequest(tuple(sources), asked, options, folder, rules, save_models, restart)
        make = _maker(budget.unit, jobs, dask, len(sources) * len(asked))
        with progress() as listener:
            report = run(request, make, _drawing(), listener)
        show_json(report, results) if as_json else show(sweep_tables(report), results)
        if report.exit_code:
            raise typer.Exit(report.exit_code)


def _folder(sources: list[Path]) -> Path:
    """Where results go by default: a folder named after the model, or after the first of several."""
    more = f"-and-{len(sources) - 1}-more" if len(sources) > 1 else ""
    return Path(f"{sources[0].stem}{more}-sweep")


def _maker(unit: str, jobs: int | None, dask: str | None, points: int) -> Make:
    """What makes the candidates: a Dask cluster, or processes that share the cores of this machine."""
    if unit == LATENCY:
        if dask or (jobs or 1) > 1:
            raise OptionError(
                "--latency measures as it searches, one point at a time on this machine; leave out --dask and --jobs"
            )
        return made_here
    if dask is None:
        cores = available_cores()
        jobs = jobs or min(cores, points)
        return partial(made_here, jobs=jobs, threads=max(1, cores // jobs))
    if jobs:
        raise OptionError("--dask: the cluster says how much runs at once; leave out --jobs")
    if find_spec("distributed") is None:
        raise OptionError("--dask needs Dask; install it with pip install 'leanonnx[dask]'")
    from leanonnx.commands.sweep.cluster import made_on

    return partial(made_on, address=dask)


def _drawing() -> Draw | None:
    """What draws the curves, where matplotlib is installed."""
    if find_spec("matplotlib") is None:
        return None
    from leanonnx.commands.sweep.plot import draw

    return draw

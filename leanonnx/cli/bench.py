"""``leanonnx bench A [B]``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from leanonnx.cli.options import (
    Batches,
    Library,
    Quiet,
    Seconds,
    ThreadCounts,
    TimedShape,
    numbers,
    parse_shapes,
)
from leanonnx.cli.terminal import AsJson, exit_codes, progress, show, show_json
from leanonnx.commands.bench.benchmark import BenchRequest
from leanonnx.commands.bench.benchmark import run_bench as measure
from leanonnx.commands.bench.report import bench_report
from leanonnx.commands.bench.tables import bench_tables
from leanonnx.runtime.providers import Provider, Setting


def bench_command(
    source: Annotated[Path, typer.Argument(metavar="A", help="The model to time.")],
    other: Annotated[
        Path | None, typer.Argument(metavar="[B]", show_default=False, help="A model to time against it.")
    ] = None,
    provider: Annotated[Provider, typer.Option(help="Where the models run.")] = "cpu",
    threads: ThreadCounts = None,
    batch: Batches = None,
    shape: TimedShape = None,
    seconds: Seconds = 3.0,
    library: Library = None,
    cuda_graph: Annotated[bool, typer.Option("--cuda-graph", help="Replay a model as one CUDA graph.")] = False,
    tf32: Annotated[bool, typer.Option(help="Let the GPU multiply float32 in TF32.")] = True,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the inputs and of the interval.")] = 0,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Time a model in onnxruntime, or two against each other in turns.

    Each measurement is made in a fresh process. Exit codes: 0 measured, 2 wrong file or option (a provider that is
    not there included), 3 a bug. That B is slower is no error: the result says so.
    """
    with exit_codes() as results:
        request = BenchRequest(
            shapes=parse_shapes(shape or []),
            batches=numbers("batch", batch or []),
            threads=numbers("threads", threads or []) or (0,),
            setting=Setting(provider, cuda_graph=cuda_graph, tf32=tf32),
            libraries=tuple(library or ()),
            seconds=seconds,
            seed=seed,
        )
        with progress(quiet) as listener:
            cases = measure(source, other, request, listener)
        report = bench_report(str(source), str(other) if other else None, request, cases)
        show_json(report, results) if as_json else show(bench_tables(report), results)

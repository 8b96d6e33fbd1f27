"""``leanonnx finetune NEW OUT``."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Literal

import typer

from leanonnx.checks import exactly_one
from leanonnx.cli.options import (
    AsJson,
    Layout,
    Library,
    Mean,
    Scale,
    Shape,
    Size,
    Std,
    image_format,
    parse_shapes,
)
from leanonnx.cli.terminal import exit_codes, progress, show, show_json
from leanonnx.commands.compress.options import CompressOptions
from leanonnx.errors import OptionError
from leanonnx.ranking.criteria import Chains, Method
from leanonnx.selection.selector import Budget

Strategy = Literal["school", "supervised", "noise2self"]
Device = Literal["cpu", "cuda"]
Samples = Annotated[
    Path,
    typer.Option(
        metavar="DATA",
        help="Inputs: an .npz file keyed by graph input (axis 0 = samples), a folder of them, or of images.",
    ),
]
Teacher = Annotated[Path | None, typer.Option(metavar="BASE", help="The original, which school learns from.")]
Epochs = Annotated[
    int | None,
    typer.Option(
        min=1,
        help="Times to go through the data (after each of --steps); by default what --minutes holds, or 15,000 steps.",
    ),
]
Minutes = Annotated[float | None, typer.Option(help="Train no longer than this.")]
Patience = Annotated[
    int | None, typer.Option(min=1, help="Stop after so many epochs without gain on the held-out samples.")
]
Augment = Annotated[
    bool, typer.Option("--augment/--no-augment", help="Flip and shift images; the teacher sees the same.")
]
Checkpoint = Annotated[
    Path | None, typer.Option(metavar="FILE", help="Keep the state of the training here after each epoch.")
]
Resume = Annotated[bool, typer.Option("--resume", help="Go on from --checkpoint where it exists.")]
Steps = Annotated[
    int | None, typer.Option(min=1, help="Compress NEW in so many steps, training after each (LEAN's schedule).")
]
Keep = Annotated[float | None, typer.Option(help="With --steps: keep this fraction of BASE's kernels.")]
Macs = Annotated[float | None, typer.Option(help="With --steps: keep this fraction of its multiply-adds.")]
Params = Annotated[float | None, typer.Option(help="With --steps: keep this fraction of its parameters.")]
Ignore = Annotated[
    list[str] | None, typer.Option(metavar="LAYER", help="With --steps: layer that keeps all its outputs.")
]
KeepSteps = Annotated[
    Path | None, typer.Option(metavar="DIR", help="With --steps: keep the models of the steps before the last here.")
]


def finetune(
    source: Annotated[Path, typer.Argument(metavar="NEW", help="The model to train, as compressed.")],
    target: Annotated[Path, typer.Argument(metavar="OUT", help="Where to write the result.")],
    data: Samples,
    teacher: Teacher = None,
    strategy: Annotated[
        Strategy, typer.Option(help="Learn from the original, from labels in the data, or from noisy images.")
    ] = "school",
    epochs: Epochs = None,
    minutes: Minutes = None,
    patience: Patience = None,
    lr: Annotated[float, typer.Option(help="Highest learning rate.")] = 2e-3,
    batch: Annotated[int, typer.Option(min=1, help="Samples in one step.")] = 32,
    augment: Augment = True,
    device: Annotated[Device, typer.Option(help="Where to train.")] = "cpu",
    amp: Annotated[bool, typer.Option("--amp", help="Compute in half precision where that is safe.")] = False,
    checkpoint: Checkpoint = None,
    resume: Resume = False,
    steps: Steps = None,
    keep: Keep = None,
    macs: Macs = None,
    params: Params = None,
    method: Annotated[Method, typer.Option(help="With --steps: how channels are ranked.")] = "auto",
    chains: Annotated[Chains, typer.Option(help="With --steps: which chains lean extracts.")] = "cover",
    ignore: Ignore = None,
    keep_steps: KeepSteps = None,
    shape: Shape = None,
    mean: Mean = "0",
    std: Std = "1",
    scale: Scale = 255.0,
    layout: Layout = "auto",
    size: Size = None,
    library: Library = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of order, augmentation and masks.")] = 0,
    as_json: AsJson = False,
) -> None:
    """Train the weights of a compressed model; names, structure and interface stay what they are.

    Needs torch: pip install 'leanonnx[finetune]'. One sample in five is held out; the best state on these is written,
    NEW itself if nothing was better. Exit codes: 0 written, 1 refused (torch and onnxruntime disagree about the model),
    2 wrong file or option, 3 a bug.
    """
    with exit_codes() as results:
        if find_spec("torch") is None:
            raise OptionError("finetune needs torch; install it with pip install 'leanonnx[finetune]'")
        from leanonnx.commands.finetune import driver, report, tables, steps as stepwise, training  # noqa: I001 - needs the extra

        _check_numbers(lr, minutes)
        budget = _budget({"keep": keep, "macs": macs, "params": params}, steps)
        if budget is None and keep_steps:
            raise OptionError("--keep-steps goes with --steps, for example --steps 5 --keep 0.25")
        images = image_format(mean, std, scale, layout, size)
        settings = training.Settings(epochs, lr, batch, minutes, patience, seed, amp, checkpoint, resume)
        libraries = tuple(library or ())
        options = driver.FinetuneOptions(
            strategy, parse_shapes(shape or []), images, augment, device, libraries, settings
        )
        with progress() as listener:
            if budget and steps:
                ignored = tuple(ignore or ())
                compression = CompressOptions(
                    budget, method, chains, ignore=ignored, seed=seed, calib=data, images=images, recover="auto"
                )
                schedule = stepwise.Schedule(steps, compression, keep_steps)
                stepped = stepwise.finetune_in_steps(source, target, teacher, data, options, schedule, listener)
                row = None if stepped is None else report.finetune_steps_report(stepped)
            else:
                result = driver.finetune(source, target, teacher, data, options, listener)
                row = None if result is None else report.finetune_report(result)
        if row is not None:
            show_json(row, results) if as_json else show(tables.finetune_tables(row, str(target)), results)


def _check_numbers(lr: float, minutes: float | None) -> None:
    if not 0 < lr < 1:
        raise OptionError(f"--lr {lr:g}: expected a number above 0 and below 1, for example --lr 0.002")
    if minutes is not None and not 0 < minutes < float("inf"):
        raise OptionError(f"--minutes {minutes:g}: expected a number above 0, for example --minutes 20")


def _budget(given: dict[str, float | None], steps: int | None) -> Budget | None:
    """What to compress to in steps; None for no steps."""
    asked = {name: value for name, value in given.items() if value is not None}
    if steps is None and asked:
        raise OptionError(f"--{next(iter(asked))} goes with --steps; compress first, or add --steps N")
    if steps is None:
        return None
    return Budget.asked(*exactly_one(given, "--steps 5 --keep 0.25"))

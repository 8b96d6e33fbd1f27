"""``leanonnx finetune NEW OUT``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from leanonnx.api.training import finetune
from leanonnx.cli.budgets import step_option, with_budgets
from leanonnx.cli.options import (
    Layout,
    Library,
    Mean,
    Preprocessor,
    Quiet,
    Scale,
    ShapeOption,
    SizeOption,
    Std,
    image_format,
    parse_shapes,
)
from leanonnx.cli.terminal import AsJson, exit_codes, progress, show, show_json
from leanonnx.commands.finetune.strategies import DEFAULT_LOSS_SHARE, Pairing, Strategy
from leanonnx.data.images import IMAGE_OPTIONS
from leanonnx.ranking.criteria import Chains, Method
from leanonnx.selection.metrics import BUDGETS
from leanonnx.system.gpu import Device

COUNTED_BUDGETS = tuple(metric for metric in BUDGETS.values() if not metric.measured)
Samples = Annotated[
    Path,
    typer.Option(
        metavar="DATA",
        help="Inputs: an .npz file keyed by graph input (axis 0 = samples), a folder of them, or of images.",
    ),
]
TeacherOption = Annotated[Path | None, typer.Option(metavar="BASE", help="The original, which school learns from.")]
Train = Annotated[
    list[str] | None,
    typer.Option(
        metavar="NAME", help="Train these weights, or those of these nodes, though they would be held; * = any."
    ),
]
Hold = Annotated[
    list[str] | None,
    typer.Option(metavar="NAME", help="Hold these weights, or those of these nodes, though they would be trained."),
]
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
CheckpointOption = Annotated[
    Path | None, typer.Option(metavar="FILE", help="Keep the state of the training here after each epoch.")
]
Resume = Annotated[bool, typer.Option("--resume", help="Go on from --checkpoint where it exists.")]
STRATEGY_HELP = (
    "Learn from the original, from labels in the data, from noisy images, from reconstructions of the splits of a "
    "measurement, or from incomplete measurements."
)
OperatorOption = Annotated[
    str | None,
    typer.Option(
        metavar="FILE|FROM:TO",
        help="For measurement: from image to measurement, an ONNX file or two tensors of NEW.",
    ),
]
AdjointOption = Annotated[
    str | None,
    typer.Option(
        metavar="FILE|FROM:TO",
        help="For measurement: from measurement to the input that is computed from it, if there is one.",
    ),
]
MaskOption = Annotated[
    str | None,
    typer.Option(metavar="NAME", help="Input or array that is 1 where something was measured; by default mask."),
]
MeasurementOption = Annotated[
    str | None,
    typer.Option(metavar="NAME", help="Input or array that was measured; by default measurement, or the only input."),
]
LossShare = Annotated[
    float | None,
    typer.Option(help=f"Share of the measurement kept for the loss, not the input; by default {DEFAULT_LOSS_SHARE}."),
]
PairingOption = Annotated[
    Pairing | None,
    typer.Option(help="For noise2inverse: splits in input and target; by default X:1, all but one for the input."),
]
Steps = Annotated[
    int | None, typer.Option(min=1, help="Compress NEW in so many steps, training after each (LEAN's schedule).")
]
Ignore = Annotated[
    list[str] | None, typer.Option(metavar="LAYER", help="With --steps: layer that keeps all its outputs.")
]
KeepSteps = Annotated[
    Path | None, typer.Option(metavar="DIR", help="With --steps: keep the models of the steps before the last here.")
]


@with_budgets(step_option, COUNTED_BUDGETS)
def finetune_command(
    source: Annotated[Path, typer.Argument(metavar="NEW", help="The model to train, as compressed.")],
    target: Annotated[Path, typer.Argument(metavar="OUT", help="Where to write the result.")],
    data: Samples,
    teacher: TeacherOption = None,
    strategy: Annotated[Strategy, typer.Option(help=STRATEGY_HELP)] = "school",
    train: Train = None,
    hold: Hold = None,
    epochs: Epochs = None,
    minutes: Minutes = None,
    patience: Patience = None,
    lr: Annotated[float, typer.Option(help="Highest learning rate.")] = 2e-3,
    batch: Annotated[int, typer.Option(min=1, help="Samples in one step.")] = 32,
    augment: Augment = True,
    device: Annotated[Device, typer.Option(help="Where to train.")] = "cpu",
    amp: Annotated[bool, typer.Option("--amp", help="Compute in half precision where that is safe.")] = False,
    checkpoint: CheckpointOption = None,
    resume: Resume = False,
    operator: OperatorOption = None,
    adjoint: AdjointOption = None,
    mask: MaskOption = None,
    measurement: MeasurementOption = None,
    loss_share: LossShare = None,
    pairing: PairingOption = None,
    steps: Steps = None,
    *,
    limits: dict[str, float | None],
    method: Annotated[Method, typer.Option(help="With --steps: how channels are ranked.")] = "auto",
    chains: Annotated[Chains, typer.Option(help="With --steps: which chains lean extracts.")] = "cover",
    ignore: Ignore = None,
    keep_steps: KeepSteps = None,
    shape: ShapeOption = None,
    mean: Mean = "0",
    std: Std = "1",
    scale: Scale = 255.0,
    layout: Layout = "auto",
    size: SizeOption = None,
    preprocessor: Preprocessor = None,
    library: Library = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of order, augmentation and masks.")] = 0,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Train the weights of a compressed model; names, structure and interface do not change.

    Needs torch: pip install torch. One sample in five is held out; the best state on these is written,
    NEW itself if nothing was better. Exit codes: 0 written, 1 refused (torch and onnxruntime disagree about the model),
    2 wrong file or option, 3 a bug.
    """
    given = {**locals(), **limits}
    for name in ("source", "target", "limits", "quiet", "as_json"):
        del given[name]
    with exit_codes() as results:
        given["images"] = image_format(*(given.pop(name) for name in IMAGE_OPTIONS))
        lists = {"ignore": ignore, "library": library, "train": train, "hold": hold}
        given |= {"shape": parse_shapes(shape or []), **{name: tuple(each or ()) for name, each in lists.items()}}
        with progress(quiet) as listener:
            result = finetune(source, target, **given, progress=listener)
        if result is not None:
            from leanonnx.commands.finetune import tables  # needs the extra

            show_json(result.report, results) if as_json else show(
                tables.finetune_tables(result.report, str(target)), results
            )

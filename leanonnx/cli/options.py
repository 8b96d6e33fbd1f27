"""Options that several verbs share, and the parsing of their texts."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Annotated, get_args

import typer
from platformdirs import user_config_path

from leanonnx.checks import DECIMAL_COMMA, check_fraction, read_fraction, read_number
from leanonnx.data import images
from leanonnx.data.images import ImageFormat
from leanonnx.data.preprocessor import read_preprocessor
from leanonnx.errors import OptionError
from leanonnx.rules.table import DEFAULT_RULES, Rules
from leanonnx.rules.user import read_rules

ShapeOption = Annotated[
    list[str] | None, typer.Option("--shape", metavar="NAME=1,3,224,224", help="Size of a free graph input.")
]
RulesFile = Annotated[
    Path | None, typer.Option("--rules", metavar="R.py", help="Python file with rules of your own; it is run.")
]
Library = Annotated[
    list[Path] | None,
    typer.Option("--library", metavar="L.so", help="Library of custom operators for onnxruntime."),
]
Mean = Annotated[
    str, typer.Option("--mean", metavar="M[,M,M]", help="Of images: x = (pixel / scale - mean) / std, by channel.")
]
Std = Annotated[str, typer.Option("--std", metavar="S[,S,S]", help="Of images: see --mean.")]
Scale = Annotated[float, typer.Option("--scale", help="Of images: see --mean; 1 gives mean and std in pixel values.")]
Layout = Annotated[
    str,
    typer.Option(
        "--layout", metavar="auto|nchw|nhwc[,bgr]", help="Of images: axes of the input; order of its colours."
    ),
]
SizeOption = Annotated[
    str | None, typer.Option("--size", metavar="HxW", help="Of images; without, as the model takes them.")
]
Preprocessor = Annotated[
    Path | None,
    typer.Option(
        "--preprocessor",
        metavar="P.json",
        help="Of images: mean, std, scale and size from a preprocessor_config.json of Hugging Face, or its folder.",
    ),
]
PlanOut = Annotated[Path | None, typer.Option(metavar="P.json", help="Write the plan here.")]
ReportOut = Annotated[
    Path | None, typer.Option("--report", metavar="R.html", help="Write a page that shows what was done here.")
]
ThreadCounts = Annotated[
    list[str] | None,
    typer.Option("--threads", metavar="N,…", help="Threads within an operator; 0 is all physical cores."),
]
Batches = Annotated[list[str] | None, typer.Option("--batch", metavar="N,…", help="Sizes of the free first axis.")]
TimedShape = Annotated[
    list[str] | None,
    typer.Option(
        "--shape", metavar="NAME=1,3,224,224", help="Size of a free graph input; --batch replaces its first axis."
    ),
]
Seconds = Annotated[float, typer.Option("--seconds", help="How long each measurement may take.")]
Verbose = Annotated[bool, typer.Option("--verbose", "-v", help="List all layers and pins too.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Do not show progress.")]
FULL_SCALE = 255.0
"""Default of --scale."""


def parse_shapes(texts: list[str]) -> dict[str, tuple[int, ...]]:
    """Parse ``NAME=1,3,224,224`` → {NAME: (1, 3, 224, 224)}.

    Raises:
        OptionError: a text is malformed, or a size below 1.
    """
    shapes: dict[str, tuple[int, ...]] = {}
    for text in texts:
        name, _, sizes = text.rpartition("=")
        if name in shapes:
            raise OptionError(f"--shape {name} is given twice; give one size for each input")
        try:
            shapes[name] = tuple(int(size) for size in sizes.split(","))
        except ValueError as error:
            raise OptionError(f"--shape {text}: expected NAME=1,3,224,224") from error
        if not name or min(shapes[name]) < 1:
            raise OptionError(f"--shape {text}: expected NAME=1,3,224,224 with sizes of at least 1")
    return shapes


def image_format(
    mean: str, std: str, scale: float, layout: str, size: str | None, preprocessor: Path | None = None
) -> ImageFormat:
    """The image format of ``--mean``, ``--std``, ``--scale``, ``--layout`` and ``--size``, or ``--preprocessor``.

    Raises:
        OptionError: one of them is malformed, or given besides a preprocessor that says it.
    """
    axes, _, order = layout.partition(",")
    known: dict[str, images.ImageLayout] = {name: name for name in get_args(images.ImageLayout)}
    if axes not in known or order not in ("", "bgr"):
        raise OptionError(f"--layout {layout}: expected auto, nchw or nhwc, with ,bgr where the colours are so ordered")
    colours: images.ColourOrder = "bgr" if order else "rgb"
    if preprocessor is not None:
        given = {"mean": mean != "0", "std": std != "1", "scale": scale != FULL_SCALE, "size": size is not None}
        for name in (name for name, is_given in given.items() if is_given):
            raise OptionError(f"--{name}: --preprocessor {preprocessor} says it; leave out one of them")
        read = read_preprocessor(preprocessor, known[axes])
        return replace(read, order="bgr") if order else read
    return ImageFormat(
        mean=_reals("mean", mean),
        std=_reals("std", std),
        scale=scale,
        layout=known[axes],
        size=_size(size),
        order=colours,
    )


def _reals(name: str, text: str) -> tuple[float, ...]:
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError as error:
        raise images.wrong_numbers(name, text) from error


def _size(text: str | None) -> tuple[int, int] | None:
    if text is None:
        return None
    height, _, width = text.partition("x")
    if not (height.isdecimal() and width.isdecimal()):
        raise images.wrong_size(text)
    return int(height), int(width)


def numbers(name: str, texts: list[str]) -> tuple[int, ...]:
    """Parse ``1,8``, or several such texts → (1, 8), each number once.

    Raises:
        OptionError: not whole numbers.
    """
    try:
        return tuple(dict.fromkeys(int(part) for text in texts for part in text.split(",")))
    except ValueError as error:
        raise OptionError(f"--{name} {','.join(texts)}: expected whole numbers, for example --{name} 1,8") from error


def fractions(name: str, text: str) -> tuple[float, ...]:
    """Parse ``0.5,25%`` → (0.5, 0.25), each once, the largest first.

    Raises:
        OptionError: not fractions above 0 and at most 1.
    """
    if DECIMAL_COMMA.fullmatch(text) and text.startswith("0,"):
        read_fraction(name, text)
    try:
        values = {read_number(name, part, "a fraction", 0.5) for part in text.split(",")}
    except OptionError as error:
        raise OptionError(f"--{name} {text}: expected fractions, for example --{name} 0.75,0.5,0.25") from error
    for value in values:
        check_fraction(name, value)
    return tuple(sorted(values, reverse=True))


def rules_from(path: Path | None) -> Rules:
    """The standard rules, joined by those of ``--rules R.py``."""
    return DEFAULT_RULES if path is None else read_rules(path)


def targets_file() -> Path:
    """The file of measured targets: ``LEANONNX_TARGETS``, or ``targets.toml`` in the user's configuration folder."""
    given = os.environ.get("LEANONNX_TARGETS")
    return Path(given) if given else user_config_path("leanonnx", appauthor=False) / "targets.toml"


def stored_targets() -> Path | None:
    """The file of measured targets; None if it does not exist."""
    path = targets_file()
    return path if path.is_file() else None

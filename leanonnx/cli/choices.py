"""The options that compress and sweep share: which channels stay, and where the result is to run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import wraps
from inspect import Parameter, signature
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import typer

from leanonnx.cli.options import (
    Layout,
    Library,
    Mean,
    Scale,
    Shape,
    Size,
    Std,
    image_format,
    parse_shapes,
    stored_targets,
)
from leanonnx.commands.compress.options import CompressOptions, Recover, alignment
from leanonnx.ranking.criteria import METHODS, Chains, Method, meaning
from leanonnx.runtime.providers import Provider, Setting
from leanonnx.selection.metrics import Budget
from leanonnx.surgery.plan import Plan

CHOICES = "choices"
"""The parameter of a verb that stands for all of them."""
WAYS = " ".join(f"{each}: {meaning(each)}" for each in METHODS)


@dataclass(frozen=True)
class Choices:
    """What was chosen; each field is an option of its own on the command line."""

    method: Annotated[Method, typer.Option(help=f"How channels are ranked. {WAYS}")] = "auto"
    chains: Annotated[Chains, typer.Option(help="Which chains lean extracts.")] = "cover"
    shape: Shape = None
    pin: Annotated[list[str] | None, typer.Option(metavar="NAME", help="Tensor or node whose channels all stay.")] = (
        None
    )
    ignore: Annotated[
        list[str] | None, typer.Option(metavar="LAYER", help="Layer that is not counted and keeps all its outputs.")
    ] = None
    calib: Annotated[
        Path | None,
        typer.Option(
            metavar="DATA",
            help="Real inputs: an .npz file keyed by graph input (axis 0 = samples), a folder of them, or of images.",
        ),
    ] = None
    mean: Mean = "0"
    std: Std = "1"
    scale: Scale = 255
    layout: Layout = "auto"
    size: Size = None
    recover: Annotated[
        Recover | None,
        typer.Option(
            help="Change of the surviving weights: auto fits them on --calib or, without, does what the network itself "
            "tells; none leaves them. Default: auto with --calib, else none."
        ),
    ] = None
    align: Annotated[
        str, typer.Option(metavar="auto|N", help="Widths: what the hardware runs well, or multiples of N; 1 is any.")
    ] = "auto"
    target: Annotated[
        str, typer.Option(metavar="NAME", help="Hardware to fit widths to, cpu-avx2 say; auto is this machine.")
    ] = "auto"
    provider: Annotated[Provider, typer.Option(help="Where the result is to run, and is measured.")] = "cpu"
    threads: Annotated[int, typer.Option(min=0, help="Threads to measure with; 0 is all physical cores.")] = 0
    library: Library = None
    freeze: Annotated[
        bool, typer.Option("--freeze", help="Make weights that are listed as graph inputs constants.")
    ] = False
    best_effort: Annotated[
        bool,
        typer.Option("--best-effort", help="Take the nearest that can be had if over budget or not faster."),
    ] = False
    no_measure: Annotated[bool, typer.Option("--no-measure", help="Do not measure latency.")] = False
    seed: Annotated[int, typer.Option(min=0, help="Seed of random inputs and of --method random.")] = 0

    def asked(self, budget: Budget, plan: Plan | None = None, exact: bool = False) -> CompressOptions:
        """What is asked of a compression.

        Raises:
            OptionError: one of the texts is not of its form, or two options contradict each other.
        """
        return CompressOptions(
            budget=budget,
            method=self.method,
            chains=self.chains,
            shapes=parse_shapes(self.shape or []),
            pin=tuple(self.pin or ()),
            ignore=tuple(self.ignore or ()),
            plan=plan,
            libraries=tuple(self.library or ()),
            best_effort=self.best_effort,
            align=alignment(self.align),
            target=self.target,
            targets=stored_targets(),
            setting=Setting(self.provider, self.threads),
            measure=not self.no_measure,
            seed=self.seed,
            exact=exact,
            freeze=self.freeze,
            calib=self.calib,
            images=image_format(self.mean, self.std, self.scale, self.layout, self.size),
            recover=self.recover,
        )


def with_choices(verb: Callable[..., None]) -> Callable[..., None]:
    """The verb with each field of ``Choices`` as a parameter of its own, in the place of ``choices``."""
    kinds = get_type_hints(Choices, include_extras=True)
    names = [field.name for field in fields(Choices)]

    @wraps(verb)
    def called(**given: Any) -> None:
        verb(**{CHOICES: Choices(**{name: given.pop(name) for name in names})}, **given)

    whole = signature(verb, eval_str=True)
    parameters: list[Parameter] = []
    for each in whole.parameters.values():
        if each.name == CHOICES:
            options = [(field.name, field.default) for field in fields(Choices)]
            kind = Parameter.KEYWORD_ONLY
            parameters += [Parameter(name, kind, default=value, annotation=kinds[name]) for name, value in options]
        else:
            parameters.append(each.replace(kind=Parameter.KEYWORD_ONLY))
    called.__signature__ = whole.replace(parameters=parameters)  # type: ignore[attr-defined]
    return called

"""The page itself: values for all pictures, put into the templates."""

from __future__ import annotations

import base64
import hashlib
from dataclasses import dataclass
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from leanonnx.commands.compress.pipeline import CompressResult
from leanonnx.data.samples import Data
from leanonnx.formatting import ms, percent, short, shown, sizes, whole
from leanonnx.page.chains import MOST, chains
from leanonnx.page.deviation import deviations
from leanonnx.page.headline import headline
from leanonnx.page.kernels import heats
from leanonnx.page.network import listed, network
from leanonnx.page.pins import pins
from leanonnx.page.samples import samples
from leanonnx.page.times import times
from leanonnx.reporting.remarks import remarks
from leanonnx.reporting.report import summary
from leanonnx.runtime.providers import runtime_version
from leanonnx.system.cores import processor
from leanonnx.version import __version__

FILTERS = {
    "listed": listed,
    "ms": ms,
    "percent": percent,
    "short": short,
    "shown": shown,
    "sizes": sizes,
    "whole": whole,
}
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{}'"
"""What the page may load, which is nothing, and run, which is its own script alone."""


@dataclass(frozen=True)
class PageContext:
    """What the caller knows: the two files as the user named them, and the command, or the call in Python."""

    source: str
    target: str
    command: str


def render(told: PageContext, result: CompressResult, draft: Path, data: Data | None) -> str:
    """The page on a compression, as HTML that needs no other file.

    Args:
        told: what the caller knows.
        result: what came of the compression.
        draft: the compressed model, before it is renamed into place.
        data: the real inputs that were given, if any.

    Raises:
        DataError: the data cannot be read.
    """
    environment = _environment()
    row = summary(result)
    script = environment.get_template("script.js").render()
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    page = environment.get_template("page.html").render(
        policy=POLICY.format(digest),
        script=Markup(script),
        told=told,
        row=row,
        remarks=remarks(row),
        head=headline(row, result.plan.options, Path(told.source).name, Path(told.target).name),
        network=network(result.dag, row["layers"]),
        heats=heats(result.dag, result.alive, row["layers"]),
        chains=chains(result.dag, result.alive),
        most_channels=MOST,
        times=times(result, draft, row["layers"]),
        deviations=deviations(row["recovery"]),
        samples=samples(result, draft, data),
        pins=pins(row),
        plan=result.plan.row(),
        again=result.plan.recovery and result.plan.recovery.again(),
        facts=_facts(result),
    )
    return page.encode(errors="replace").decode()


def _environment() -> Environment:
    found = Environment(
        loader=PackageLoader("leanonnx.page"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    found.policies["json.dumps_kwargs"] = {"sort_keys": True, "separators": (",", ":")}
    found.filters.update(FILTERS)
    return found


def _facts(result: CompressResult) -> dict[str, str]:
    """What it was made with."""
    return {
        "leanonnx": __version__,
        "onnxruntime": runtime_version(),
        "processor": processor(),
        "sha256 of the original": result.plan.input_sha256,
    }

"""Render the page of ``--report``: values for all pictures, put into the templates."""

from __future__ import annotations

import base64
import hashlib
from dataclasses import dataclass
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from leanonnx.commands.compress.pipeline import CompressResult
from leanonnx.commands.compress.report import compression_report, summary_context
from leanonnx.data.samples import Dataset
from leanonnx.formatting import change_text, integer_text, milliseconds_text, percent_text, printable_text, short_name
from leanonnx.page.chains import MAX_DRAWN_CHANNELS, chain_picture
from leanonnx.page.deviation import deviations
from leanonnx.page.headline import headline
from leanonnx.page.kernels import heats
from leanonnx.page.network import abridged_numbers, network_picture
from leanonnx.page.pins import pin_bars
from leanonnx.page.samples import output_samples
from leanonnx.page.times import layer_times
from leanonnx.page.tolerance import tolerance_words
from leanonnx.reporting.encoding import to_json
from leanonnx.reporting.remarks import remarks
from leanonnx.runtime.providers import runtime_version
from leanonnx.system.cores import processor_name
from leanonnx.version import __version__

PAGE_FILTERS = {
    "abridged": abridged_numbers,
    "ms": milliseconds_text,
    "percent": percent_text,
    "short": short_name,
    "shown": printable_text,
    "sizes": change_text,
    "whole": integer_text,
}
CONTENT_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{}'"
"""The page loads nothing, and runs its own script alone."""


@dataclass(frozen=True)
class PageContext:
    """Facts that the caller knows: both files as the user named them, and the command, or the call in Python."""

    source: str
    output: str
    command: str


def render(context: PageContext, result: CompressResult, draft: Path, data: Dataset | None) -> str:
    """The page on a compression, as HTML that needs no other file.

    Args:
        context: facts that the caller knows.
        result: the compression.
        draft: the compressed model, before it is renamed into place.
        data: the real inputs that were given, if any.

    Raises:
        DataError: the data cannot be read.
    """
    environment = _environment()
    report = compression_report(result)
    script = environment.get_template("script.js").render()
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    page = environment.get_template("page.html").render(
        policy=CONTENT_POLICY.format(digest),
        script=Markup(script),
        context=context,
        report=report,
        numbers=to_json(report),
        remarks=remarks(report),
        head=headline(report, summary_context(result, context.source, context.output)),
        network=network_picture(result.dag, report.layers),
        heats=heats(result.dag, result.alive, report.layers),
        chains=chain_picture(result.dag, result.alive),
        max_drawn_channels=MAX_DRAWN_CHANNELS,
        times=layer_times(result, draft, report.layers),
        deviations=deviations(report),
        tolerance=tolerance_words(report.tolerance),
        samples=output_samples(result, draft, data),
        pins=pin_bars(report),
        plan=result.plan.row(),
        again=result.plan.recovery and result.plan.recovery.as_options(),
        facts=_facts(result),
    )
    return page.encode(errors="replace").decode()


def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("leanonnx.page"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.policies |= {"json.dumps_kwargs": {"sort_keys": True, "separators": (",", ":")}}
    environment.filters.update(PAGE_FILTERS)
    return environment


def _facts(result: CompressResult) -> dict[str, str]:
    """Versions, the machine and the original that the page was made with."""
    return {
        "leanonnx": __version__,
        "onnxruntime": runtime_version(),
        "processor": processor_name(),
        "sha256 of the original": result.plan.input_sha256,
    }

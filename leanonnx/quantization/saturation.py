"""Tell where onnxruntime's fused integer kernels compute something else than its plain ones, and why."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from leanonnx.graph.formats import graphs
from leanonnx.graph.model import Model
from leanonnx.graph.nodes import is_quantised
from leanonnx.quantization.formats import sums_saturate
from leanonnx.quantization.preparation import relative_difference
from leanonnx.runtime.sessions import Feed, RunFailed, run
from leanonnx.spelling import option

MAX_FUSED_DIFFERENCE = 0.05
"""Share of the output by which fused kernels may differ from plain ones; rounding once instead of twice stays below."""


def fused_difference(model: Model, path: Path, feeds: Sequence[Feed]) -> float:
    """Largest relative error of an output by onnxruntime's fused kernels against that by its plain ones.

    0 for a model without integers, and for one that does not run on these inputs, which others tell.
    """
    if not any(is_quantised(node) for graph in graphs(model.proto.graph) for node in graph.node):
        return 0.0
    try:
        plain, fused = (run(path, feeds, optimise, model.libraries) for optimise in (False, True))
    except RunFailed:
        return 0.0
    return max(
        (
            relative_difference(*pair)
            for outputs in zip(plain, fused, strict=True)
            for pair in zip(*outputs, strict=True)
            if pair[0].dtype.kind == "f"
        ),
        default=0.0,
    )


def saturation_warnings(differences: Mapping[str, float], compared: str) -> tuple[str, ...]:
    """One warning about the models that differ here, by their names; ``compared`` tells what the numbers are of."""
    large = {name: number for name, number in differences.items() if number > MAX_FUSED_DIFFERENCE}
    if not large:
        return ()
    texts = " and ".join(f"the output of {name} by {number:.0%}" for name, number in large.items())
    cause, remedy = fused_cause()
    return (f"on this processor, onnxruntime's fused integer kernels change {texts}: {cause}; {compared}; {remedy}",)


def fused_cause() -> tuple[str, str]:
    """Why fused kernels compute something else on this processor, and the remedies of a user."""
    plain = "run without onnxruntime's optimisations"
    if not sums_saturate():
        return "float layers between integers are put into integers as well, or numbers are rounded otherwise", plain
    weights = f"write weights of 7 bits ({option('int8', True)} with {option('target', 'cpu-avx2')})"
    return "their sums saturate", f"{weights}, {plain}, or use a processor with VNNI"

"""Tell where onnxruntime's integer kernels compute something else than plain ones that sum exactly, and why."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from leanonnx.graph.exact_integers import has_integer_sums
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
    """Largest relative error of an output by onnxruntime's fused kernels against that by plain ones that sum exactly.

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


def saturation_warnings(differences: Mapping[str, float], models: Iterable[Model], compared: str) -> tuple[str, ...]:
    """One warning about the models that differ here, by their names; ``compared`` tells what the numbers are of."""
    large = {name: number for name, number in differences.items() if number > MAX_FUSED_DIFFERENCE}
    if not large:
        return ()
    texts = " and ".join(f"the output of {name} by {number:.0%}" for name, number in large.items())
    cause, remedy = fused_cause(any(has_integer_sums(model.proto) for model in models))
    return (f"on this processor, onnxruntime's integer kernels change {texts}: {cause}; {compared}; {remedy}",)


def fused_cause(has_integer_operators: bool = False) -> tuple[str, str]:
    """Why integer kernels compute something else on this processor, and the remedies of a user.

    Operators on integers (QLinearConv) have no other kernels, with optimisations or without.
    """
    plain = "" if has_integer_operators else "run without onnxruntime's optimisations"
    if not sums_saturate():
        cause = "float layers between integers are put into integers as well, or numbers are rounded otherwise"
        return cause, plain or "export it with QuantizeLinear and DequantizeLinear nodes (QDQ)"
    weights = f"write weights of 7 bits ({option('int8', True)} with {option('target', 'cpu-avx2')})"
    return "their sums saturate", ", ".join(filter(None, [weights, plain, "or use a processor with VNNI"]))

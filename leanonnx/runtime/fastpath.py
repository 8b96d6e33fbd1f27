"""Count the convolutions that onnxruntime runs in its blocked layout (NCHWc), as its optimised graph shows."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path

import onnx

from leanonnx.graph.formats import graphs
from leanonnx.operators.facts import NCHWC, Family, Trait
from leanonnx.operators.table import names_of, names_with
from leanonnx.runtime.providers import Setting, open_timed_session, session_options

FLOAT_CONVOLUTIONS = names_of(Family.CONVOLUTION) - names_with(Trait.QUANTISED)
"""Convolutions of floats, among them all that have NCHWc kernels."""
REORDERS = {"ReorderInput", "ReorderOutput"}
OPTIMISED_WEIGHTS_FILE = "weights.bin"


@dataclass(frozen=True)
class ConvolutionLayouts:
    """Layouts of the float convolutions of an optimised graph.

    Attributes:
        fast: convolutions in the blocked layout.
        plain: all other convolutions.
        reorders: conversions between the layouts; each costs a pass over its tensor.
    """

    fast: int
    plain: int
    reorders: int


def convolution_layouts(path: Path, setting: Setting) -> ConvolutionLayouts | None:
    """Number of convolutions by layout on the CPU; None on a GPU, where onnxruntime uses no blocked layout.

    Raises:
        RunFailed: onnxruntime cannot load the model.
    """
    if setting.uses_gpu:
        return None
    nodes = optimised_nodes(path, setting)
    fast = [node.domain == NCHWC for node in nodes if node.op_type in FLOAT_CONVOLUTIONS]
    return ConvolutionLayouts(sum(fast), len(fast) - sum(fast), sum(node.op_type in REORDERS for node in nodes))


def optimised_nodes(path: Path, setting: Setting) -> list[onnx.NodeProto]:
    """Nodes of the graph that onnxruntime makes of a model, those of subgraphs included.

    Raises:
        RunFailed: onnxruntime cannot load the model.
    """
    with tempfile.TemporaryDirectory(prefix="leanonnx-") as folder:
        optimised = Path(folder) / "optimised.onnx"
        options = session_options(setting)
        options.optimized_model_filepath = str(optimised)
        options.add_session_config_entry(
            "session.optimized_model_external_initializers_file_name", OPTIMISED_WEIGHTS_FILE
        )
        open_timed_session(path, setting, options)
        proto = onnx.load(optimised, load_external_data=False)
    return [node for graph in graphs(proto.graph) for node in graph.node]

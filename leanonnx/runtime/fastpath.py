"""Which convolutions onnxruntime runs in its blocked layout (NCHWc): read from the graph as it optimises it."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path

import onnx

from leanonnx.graph.formats import graphs
from leanonnx.operators.facts import NCHWC, Family, Trait
from leanonnx.operators.table import names_of, names_with
from leanonnx.runtime.providers import Setting, opened_on, session_options

FLOAT_CONVOLUTIONS = names_of(Family.CONVOLUTION) - names_with(Trait.QUANTISED)
"""Convolutions of floats, among them all that have NCHWc kernels."""
REORDERS = {"ReorderInput", "ReorderOutput"}
WEIGHTS = "weights.bin"


@dataclass(frozen=True)
class Layouts:
    """How an optimised graph computes its float convolutions.

    Attributes:
        fast: convolutions that put out the blocked layout.
        plain: all others.
        reorders: changes from one layout to the other; each costs a pass over its tensor.
    """

    fast: int
    plain: int
    reorders: int


def layouts(path: Path, setting: Setting) -> Layouts | None:
    """Convolutions by layout on the CPU; None on a GPU, where onnxruntime does not block.

    Raises:
        RunFailed: onnxruntime cannot load the model.
    """
    if setting.on_device:
        return None
    with tempfile.TemporaryDirectory(prefix="leanonnx-") as folder:
        target = Path(folder) / "optimised.onnx"
        options = session_options(setting)
        options.optimized_model_filepath = str(target)
        options.add_session_config_entry("session.optimized_model_external_initializers_file_name", WEIGHTS)
        opened_on(path, setting, options)
        proto = onnx.load(target, load_external_data=False)
    nodes = [node for graph in graphs(proto.graph) for node in graph.node]
    fast = [node.domain == NCHWC for node in nodes if node.op_type in FLOAT_CONVOLUTIONS]
    return Layouts(sum(fast), len(fast) - sum(fast), sum(node.op_type in REORDERS for node in nodes))

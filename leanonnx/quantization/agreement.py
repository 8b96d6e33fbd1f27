"""Compare a model in integers with its simulation, and onnxruntime's fused integer kernels with the plain ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx

from leanonnx.numeric.arrays import Array
from leanonnx.operators.facts import Family, Trait
from leanonnx.operators.table import names_of, names_with
from leanonnx.quantization.preparation import relative_difference
from leanonnx.quantization.simulation import QUANTIZERS
from leanonnx.runtime.fastpath import optimised_nodes
from leanonnx.runtime.providers import Setting
from leanonnx.runtime.sessions import Feed, run

LEVEL_COUNT = 256
"""Numbers that 8 bits tell apart."""
MAX_STEPS = 4.0
"""Steps of 8 bits by which an output may differ from that of the simulation: rounding at each layer may fall apart."""
INTEGER_PRODUCTS = names_with(Trait.QUANTISED) & names_of(Family.CONVOLUTION, Family.GEMM, Family.MATMUL)
"""Operators of optimised graphs that sum products of integers."""


@dataclass(frozen=True)
class IntegerNodes:
    """Nodes of an optimised graph: layers that sum integers, and conversions between floats and integers."""

    layers: int
    conversions: int


def steps_from_simulation(
    quantised: onnx.ModelProto, simulation: onnx.ModelProto, feeds: Sequence[Feed], libraries: tuple[Path, ...] = ()
) -> float:
    """Largest distance of an output, as onnxruntime computes it without fusing nodes, from that of the simulation.

    The unit is a 256th of the output's range on that input; outputs that are no floats have to be equal.

    Raises:
        RunFailed: one of the models cannot be run.
    """
    sides = [run(model, feeds, optimise=False, libraries=libraries) for model in (simulation, quantised)]
    pairs = [pair for outputs in zip(*sides, strict=True) for pair in zip(*outputs, strict=True)]
    return max((_steps(*pair) for pair in pairs), default=0.0)


def _steps(wanted: Array, computed: Array) -> float:
    if wanted.shape != computed.shape or wanted.dtype.kind != "f":
        return 0.0 if np.array_equal(wanted, computed) else float("inf")
    first, second = (np.asarray(side, np.float64) for side in (wanted, computed))
    if not np.array_equal(np.isfinite(first), np.isfinite(second)):
        return float("inf")
    finite = np.isfinite(first)
    if not finite.any():
        return 0.0
    difference = float(np.abs(first[finite] - second[finite]).max())
    width = float(np.ptp(np.append(first[finite], 0.0)))
    return LEVEL_COUNT * difference / width if difference else 0.0


def fusion_excess(
    quantised: onnx.ModelProto,
    simulation: onnx.ModelProto,
    before: Path,
    feeds: Sequence[Feed],
    libraries: tuple[Path, ...] = (),
) -> float:
    """Error that onnxruntime's fused kernels add to a model in integers, in units of the error of the format itself.

    Rounding once instead of twice in a layer changes single steps, which stays below 1; sums that saturate do not.

    Raises:
        RunFailed: one of the models cannot be run.
    """
    simulated, fused, floats = (run(each, feeds, libraries=libraries) for each in (simulation, quantised, before))
    added, own = (
        max(
            (
                relative_difference(*pair)
                for outputs in zip(simulated, other, strict=True)
                for pair in zip(*outputs, strict=True)
                if pair[0].dtype.kind == "f"
            ),
            default=0.0,
        )
        for other in (fused, floats)
    )
    return added / own if own else 0.0


def integer_nodes(path: Path, setting: Setting) -> IntegerNodes | None:
    """Integer layers and conversions of the graph that onnxruntime makes of a file; None on a GPU.

    Raises:
        RunFailed: onnxruntime cannot load the model.
    """
    if setting.uses_gpu:
        return None
    operators = [node.op_type for node in optimised_nodes(path, setting)]
    return IntegerNodes(
        sum(operator in INTEGER_PRODUCTS for operator in operators),
        sum(operator in QUANTIZERS for operator in operators),
    )

"""The proof: the compressed model equals the original whose removed channels are zeroed in their consumers.

Both are run in onnxruntime on the same random inputs and, where given, on real ones; every output is compared.
The bound follows the number format; it is widened only as far as the original itself amplifies a change of its
inputs in the last place.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx

from leanonnx.graph.formats import (
    HALVES,
    Kinds,
    Source,
    fed_in_float32,
    float_kinds,
    in_float32,
    is_float,
    loaded,
    number_format,
)
from leanonnx.graph.model import Model
from leanonnx.numeric.arrays import Array
from leanonnx.runtime.observation import random_feed
from leanonnx.runtime.sessions import Feed, run
from leanonnx.runtime.taps import tapped

Runs = list[list[Array]]
BOUND = {"float64": 1e-10, "float32": 1e-4, "quantised": 2e-2}
FLOOR = 1e-3
"""Share of an output's largest norm over the inputs below which its norm on one input is not taken as its scale."""
NOISE = 10
"""How often the model's own noise is allowed: a change of its inputs in the last place, another order of its sums."""
WIDEST = 3e-2
"""The widest bound that still tells equal from unequal."""
MANY_NODES = 2500
"""Nodes up to which onnxruntime optimises the graphs to be compared, which takes time quadratic in their number."""
DECISIONS = {"ArgMax", "ArgMin", "Greater", "Less", "GreaterOrEqual", "LessOrEqual", "Equal", "Cast", "TopK", "NonZero"}
KINDS = ("normal", "uniform", "bytes")


@dataclass(frozen=True)
class Proof:
    """Result of a proof; errors are relative L2 norms, the worst over inputs and outputs.

    ``silent`` names outputs of which no input told anything.
    """

    status: str
    max_relative_error: float
    bound: float
    inputs: int
    outputs: dict[str, float]
    silent: tuple[str, ...] = ()

    @property
    def passed(self) -> bool:
        """Whether every output agrees."""
        return self.status == "passed"


def inputs_for(model: Model, shapes: dict[str, tuple[int, ...]], seed: int = 0) -> list[Feed]:
    """Random inputs at the observed sizes: normal, uniform in [0, 1), uniform in [0, 255)."""
    named = {value.name: shapes[value.name] for value in model.inputs}
    return [random_feed(model, named, seed + k, kind) for k, kind in enumerate(KINDS)]


def prove(
    model: Model, reference: Source, candidate: Source, feeds: Sequence[Feed], replaced: Kinds = frozenset()
) -> Proof:
    """Compare the compressed model with the masked original on every feed.

    Integer outputs (of an ArgMax, say) must agree but for isolated ties, and so must the floats they are made from.
    An input on which the reference itself amplifies a change in the last place beyond ``WIDEST``, or puts out nothing
    finite, tells nothing and is passed over; every output needs one that tells.  Models in half precision are proven
    as float32 stand-ins, to the bound of float32; as written they must load and run.

    Args:
        model: the original, for its output names and number format.
        reference: the original with the dead input columns of its consumers zeroed.
        candidate: the compressed model; a path is proven as written.
        feeds: inputs of the model.
        replaced: number formats that onnxruntime cannot run, to be seen as float32.
    """
    widened = replaced | (float_kinds(model.proto) & HALVES)
    if not widened:
        return _compared(model, model.path, reference, candidate, feeds, BOUND[number_format(model.proto)])
    if not replaced:
        run(candidate, feeds[:1], libraries=model.libraries)
    original, reference, candidate = (in_float32(loaded(s), widened) for s in (model.proto, reference, candidate))
    feeds = [fed_in_float32(feed, widened) for feed in feeds]
    return _compared(model, original, reference, candidate, feeds, BOUND[number_format(original)])


def _compared(
    model: Model, original: Source, reference: Source, candidate: Source, feeds: Sequence[Feed], bound: float
) -> Proof:
    """The verdict; without fusion where kernels that onnxruntime fuses depend on the widths."""
    behind = behind_decisions(model)
    names = [value.name for value in model.proto.graph.output] + behind
    fused = len(model.proto.graph.node) <= MANY_NODES
    wanted, found = (_outputs(side, model, behind, feeds, optimise=fused) for side in (reference, candidate))
    errors = _errors(wanted, found)
    limits = np.full(errors.shape, bound)
    if (errors > bound).any():
        first, unmasked = wanted, _outputs(original, model, behind, feeds, optimise=False)
        wanted, found = (_outputs(side, model, behind, feeds, optimise=False) for side in (reference, candidate))
        moved = _outputs(reference, model, behind, [shaken(feed) for feed in feeds], optimise=False)
        errors = _errors(wanted, found, unmasked)
        noise = NOISE * np.maximum(_errors(wanted, moved, unmasked), _errors(wanted, first, unmasked))
        limits = np.where(noise <= WIDEST, np.maximum(noise, bound), np.nan)
        limits[errors <= bound] = bound
    limits[~_comparable(wanted)] = np.nan
    telling = ~np.isnan(limits)
    silent = tuple(name for name, told in zip(names, telling.any(axis=0), strict=True) if not told)
    passed = not silent and not (errors > limits).any()
    errors[~telling] = 0
    outputs = {name: float(errors[:, k].max()) for k, name in enumerate(names)}
    widest = float(np.nanmax(limits, initial=bound))
    status, worst = "passed" if passed else "failed", max(outputs.values(), default=0.0)
    return Proof(status, worst, widest, len(feeds), outputs, silent)


def _outputs(side: Source, model: Model, behind: list[str], feeds: Sequence[Feed], optimise: bool) -> Runs:
    """Outputs of one side for each feed, followed by the floats behind its decisions."""
    found = run(side, feeds, optimise, model.libraries)
    if behind:
        with tapped(loaded(side), behind) as taps:
            more = run(taps, feeds, optimise, model.libraries)
        found = [a + b for a, b in zip(found, more, strict=True)]
    return found


def _errors(wanted: Runs, found: Runs, original: Runs | None = None) -> Array:
    """Relative error of each output [inputs, outputs].

    An output that is almost nothing on one input (a saturated sigmoid) is measured on the scale that it has on other
    inputs, or in the original.
    """
    floors = scales(wanted + (original or []))
    rows = [
        [relative(a, b, floor) for a, b, floor in zip(w, f, floors, strict=True)]
        for w, f in zip(wanted, found, strict=True)
    ]
    return np.array(rows).reshape(len(wanted), -1)


def scales(known: Runs) -> list[float]:
    """For each output: what its norm on one input is taken for at least."""
    return [FLOOR * max(_norm(row[k]) for row in known) for k in range(len(known[0]))]


def _norm(value: Array) -> float:
    """Euclidean norm of the finite elements of a float array; 0 for other kinds."""
    if not is_float(value):
        return 0.0
    numbers = value.astype(np.float64)
    return float(np.linalg.norm(numbers[np.isfinite(numbers)]))


def _comparable(wanted: Runs) -> Array:
    """Which outputs say anything on which inputs: those that are not NaN or infinite throughout [inputs, outputs]."""
    rows = [[not is_float(v) or not v.size or np.isfinite(v.astype(np.float64)).any() for v in row] for row in wanted]
    return np.array(rows, bool).reshape(len(wanted), -1)


def behind_decisions(model: Model) -> list[str]:
    """The floats from which integer and boolean outputs are made: inputs of the nearest deciding operators."""
    floats = (onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16, onnx.TensorProto.DOUBLE, onnx.TensorProto.BFLOAT16)
    discrete = [v.name for v in model.proto.graph.output if v.type.tensor_type.elem_type not in floats]
    nodes = model.proto.graph.node
    found: dict[str, None] = {}
    seen: set[str] = set()
    while discrete:
        name = discrete.pop()
        if name in seen or name not in model.free or name not in model.producers:
            continue
        seen.add(name)
        node = nodes[model.producers[name]]
        if node.op_type in DECISIONS:
            found |= dict.fromkeys(n for n in node.input[:2] if n in model.free)
        else:
            discrete += [n for n in node.input if n]
    return sorted(found)


def shaken(feed: Feed) -> Feed:
    """The same inputs, floats moved by one unit in the last place."""
    return {
        name: np.nextafter(value, np.asarray(np.inf, value.dtype)) if value.dtype.kind == "f" else value
        for name, value in feed.items()
    }


def relative(wanted: Array, found: Array, floor: float = 0.0) -> float:
    """‖wanted - found‖ / max(‖wanted‖, floor); inf if not comparable.

    For integers and booleans: the share of unequal elements.
    """
    if wanted.shape != found.shape:
        return float("inf")
    if not is_float(wanted):
        return float(np.mean(wanted != found)) if wanted.size else 0.0
    a, b = wanted.astype(np.float64), found.astype(np.float64)
    living = np.isfinite(a)
    if not np.array_equal(living, np.isfinite(b)) or not np.array_equal(a[~living], b[~living], equal_nan=True):
        return float("inf")
    error = float(np.linalg.norm(a[living] - b[living]))
    scale = max(float(np.linalg.norm(a[living])), floor)
    return error / scale if scale > 0 else error

"""The round trip: check that the torch module and the ONNX file compute the same outputs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx
import torch

from leanonnx.commands.finetune.module import TorchNetwork
from leanonnx.errors import ProofFailed
from leanonnx.graph.formats import REPLACED_TYPES, convert_feed, convert_to_float32, float_types
from leanonnx.graph.model import Model
from leanonnx.inputs.random import nudge_floats
from leanonnx.numeric.arrays import Array
from leanonnx.operators.facts import Trait
from leanonnx.operators.table import names_with
from leanonnx.proof.compare import NORM_FLOOR, output_floors, relative_error
from leanonnx.proof.sides import NOISE_FACTOR, WIDEST_BOUND
from leanonnx.runtime.sessions import Feed, run

ROUND_TRIP_BOUND = 1e-4
"""Largest relative L2 error between two runs of the same float32 network."""
PROBABILITY_OPERATORS = names_with(Trait.PROBABILITY)
"""Operators with outputs on a scale of 1, even where they are small."""


@dataclass(frozen=True)
class RoundTrip:
    """Largest relative L2 error between torch and onnxruntime over inputs and outputs, its bound, number of inputs."""

    error: float
    bound: float
    inputs: int


def to_tensors(feed: Feed) -> dict[str, torch.Tensor]:
    """Convert arrays to tensors, half precision to float32."""
    return {name: torch.from_numpy(np.array(value)) for name, value in convert_feed(feed, REPLACED_TYPES).items()}


def run_in_torch(network: TorchNetwork, feeds: Sequence[Feed]) -> list[list[Array]]:
    """Outputs of the torch module for each feed, computed on the device of its weights."""
    device = next((str(w.device) for w in network.weights), "cpu")
    with torch.no_grad():
        return [
            [value.cpu().numpy() for value in network({n: v.to(device) for n, v in to_tensors(feed).items()})]
            for feed in feeds
        ]


def round_trip(model: Model, proto: onnx.ModelProto, network: TorchNetwork, feeds: Sequence[Feed]) -> RoundTrip:
    """Compare the torch module with onnxruntime, which runs ``proto`` unfused; both run half precision in float32.

    The bound is widened only where onnxruntime's own output moves by more when the inputs change in the last place or
    operators are fused.  Inputs where it moves by more than ``WIDEST`` are ignored; each output needs another one.

    Args:
        model: the model to train, for its custom operators.
        proto: the same model with the module's weights.
        feeds: inputs in the file's own types.

    Raises:
        ProofFailed: an output differs by more than its bound.
    """
    kinds = float_types(proto) & REPLACED_TYPES
    proto, feeds = convert_to_float32(proto, kinds), [convert_feed(feed, kinds) for feed in feeds]
    wanted = run(proto, feeds, optimise=False, libraries=model.libraries)
    outputs = run_in_torch(network, feeds)
    floors = _floors(proto, wanted)
    errors = _errors(wanted, outputs, floors)
    bounds = np.full(errors.shape, ROUND_TRIP_BOUND)
    if (errors > ROUND_TRIP_BOUND).any():
        moved = run(proto, [nudge_floats(feed) for feed in feeds], optimise=False, libraries=model.libraries)
        fused = run(proto, feeds, libraries=model.libraries)
        noise = NOISE_FACTOR * np.maximum(_errors(wanted, moved, floors), _errors(wanted, fused, floors))
        usual = np.where(noise > WIDEST_BOUND, 0.0, noise).max(axis=0)
        bounds = np.where(
            (noise > WIDEST_BOUND) & (errors > ROUND_TRIP_BOUND), np.nan, np.maximum(usual, ROUND_TRIP_BOUND)
        )
    usable = ~np.isnan(bounds)
    failed = (errors > bounds).any(axis=0) | ~usable.any(axis=0)
    if failed.any():
        worst = int(np.argmax(failed))
        raise ProofFailed(
            f"the round trip failed: output '{network.outputs[worst]}' is off by {errors[:, worst].max():.1e} in torch "
            f"(allowed: {ROUND_TRIP_BOUND:.0e}, or {NOISE_FACTOR} times what the network makes of a change of its "
            "inputs in the last place); nothing written; please report it with the model's operators"
        )
    return RoundTrip(
        float(errors[usable].max(initial=0.0)), float(np.nanmax(bounds, initial=ROUND_TRIP_BOUND)), len(feeds)
    )


def _floors(proto: onnx.ModelProto, wanted: list[list[Array]]) -> list[float]:
    """Lower bound of the norm that each output's error is divided by.

    Probabilities that are nearly 0 everywhere have no significant digits: onnxruntime truncates its Sigmoid.
    """
    producers = {name: node.op_type for node in proto.graph.node for name in node.output}
    floors = []
    for k, (floor, value) in enumerate(zip(output_floors(wanted), proto.graph.output, strict=True)):
        least = NORM_FLOOR * wanted[0][k].size ** 0.5 if producers.get(value.name) in PROBABILITY_OPERATORS else 0.0
        floors.append(max(floor, least))
    return floors


def _errors(wanted: list[list[Array]], outputs: list[list[Array]], floors: list[float]) -> Array:
    """Relative error of each output [inputs, outputs]."""
    pairs = zip(wanted, outputs, strict=True)
    rows = [[relative_error(a, b, floor) for a, b, floor in zip(w, o, floors, strict=True)] for w, o in pairs]
    return np.array(rows).reshape(len(wanted), -1)

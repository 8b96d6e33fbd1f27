"""The round trip: the torch module and the ONNX file give the same numbers on the same inputs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx
import torch

from leanonnx.commands.finetune.module import Network
from leanonnx.errors import ProofFailed
from leanonnx.graph.formats import OTHERS, fed_in_float32, float_kinds, in_float32
from leanonnx.graph.model import Model
from leanonnx.inputs.random import shaken
from leanonnx.numeric.arrays import Array
from leanonnx.operators.facts import Trait
from leanonnx.operators.table import names_with
from leanonnx.proof.compare import FLOOR, relative, scales
from leanonnx.proof.sides import NOISE, WIDEST
from leanonnx.runtime.sessions import Feed, run

BOUND = 1e-4
"""Relative L2 up to which two runs of the same float32 network are the same."""
PROBABILITIES = names_with(Trait.PROBABILITY)
"""Operators whose output is on the scale of 1, however small it is."""


@dataclass(frozen=True)
class RoundTrip:
    """How far torch and onnxruntime are apart: relative L2, the worst over inputs and outputs, and what is allowed."""

    error: float
    bound: float
    inputs: int


def to_torch(feed: Feed) -> dict[str, torch.Tensor]:
    """Arrays as tensors, half precision as float32."""
    return {name: torch.from_numpy(np.array(value)) for name, value in fed_in_float32(feed, OTHERS).items()}


def in_torch(network: Network, feeds: Sequence[Feed]) -> list[list[Array]]:
    """Outputs of the torch module for each feed, on the device where its weights are."""
    device = next((str(w.device) for w in network.weights), "cpu")
    with torch.no_grad():
        return [
            [value.cpu().numpy() for value in network({n: v.to(device) for n, v in to_torch(feed).items()})]
            for feed in feeds
        ]


def round_trip(model: Model, proto: onnx.ModelProto, network: Network, feeds: Sequence[Feed]) -> RoundTrip:
    """Hold the torch module against onnxruntime, which runs ``proto`` unfused; both see half precision as float32.

    The bound is widened only where a change of the inputs in the last place, or fusion, moves onnxruntime beyond it;
    an input on which it does so beyond ``WIDEST`` tells nothing of an output, and each output needs one that tells.

    Args:
        model: the file that is trained, for its custom operators.
        proto: the same with the weights that the module has.
        feeds: inputs in the file's own types.

    Raises:
        ProofFailed: they differ.
    """
    kinds = float_kinds(proto) & OTHERS
    proto, feeds = in_float32(proto, kinds), [fed_in_float32(feed, kinds) for feed in feeds]
    wanted = run(proto, feeds, optimise=False, libraries=model.libraries)
    found = in_torch(network, feeds)
    floors = _floors(proto, wanted)
    errors = _errors(wanted, found, floors)
    bounds = np.full(errors.shape, BOUND)
    if (errors > BOUND).any():
        moved = run(proto, [shaken(feed) for feed in feeds], optimise=False, libraries=model.libraries)
        fused = run(proto, feeds, libraries=model.libraries)
        noise = NOISE * np.maximum(_errors(wanted, moved, floors), _errors(wanted, fused, floors))
        usual = np.where(noise > WIDEST, 0.0, noise).max(axis=0)
        bounds = np.where((noise > WIDEST) & (errors > BOUND), np.nan, np.maximum(usual, BOUND))
    told = ~np.isnan(bounds)
    failed = (errors > bounds).any(axis=0) | ~told.any(axis=0)
    if failed.any():
        worst = int(np.argmax(failed))
        raise ProofFailed(
            f"the round trip failed: output '{network.outputs[worst]}' is off by {errors[:, worst].max():.1e} in "
            f"torch (allowed: {BOUND:.0e}, or {NOISE} times what the network makes of a change of its inputs in the "
            "last place); nothing written; please report it with the model's operators"
        )
    return RoundTrip(float(errors[told].max(initial=0.0)), float(np.nanmax(bounds, initial=BOUND)), len(feeds))


def _floors(proto: onnx.ModelProto, wanted: list[list[Array]]) -> list[float]:
    """What the norm of each output is taken for at least.

    Probabilities that are nearly 0 throughout have no digits that would tell: onnxruntime cuts its Sigmoid off.
    """
    makers = {name: node.op_type for node in proto.graph.node for name in node.output}
    found = []
    for k, (floor, value) in enumerate(zip(scales(wanted), proto.graph.output, strict=True)):
        least = FLOOR * wanted[0][k].size ** 0.5 if makers.get(value.name) in PROBABILITIES else 0.0
        found.append(max(floor, least))
    return found


def _errors(wanted: list[list[Array]], found: list[list[Array]], floors: list[float]) -> Array:
    """Relative error of each output [inputs, outputs]."""
    pairs = zip(wanted, found, strict=True)
    rows = [[relative(a, b, floor) for a, b, floor in zip(w, f, floors, strict=True)] for w, f in pairs]
    return np.array(rows).reshape(len(wanted), -1)

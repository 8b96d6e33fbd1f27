"""The result of putting a model into 8-bit integers."""

from __future__ import annotations

from dataclasses import dataclass

from leanonnx.evaluation.deviation import Fidelity
from leanonnx.quantization.agreement import IntegerNodes
from leanonnx.quantization.layers import Layer
from leanonnx.runtime.timing import TimingComparison


@dataclass(frozen=True, kw_only=True)
class Quantisation:
    """A model in integers, or the reason why the float one was kept.

    Attributes:
        formats: the integer formats in words.
        samples: number of samples that ranges were taken from.
        held_out: number of other samples, which the deviation was measured on.
        method: the way in which ranges were taken; empty if it did not come to that.
        corrections: what else lowered the error that integers add.
        error: the error that integers add to the float model on held-out samples, as a share of the output.
        layers: all layers; those with a reason are float.
        before, after: deviation of the float model and of the one in integers; None if it did not come to that.
        steps: distance from the simulation, in steps of 8 bits.
        nodes: integer layers and conversions of the graph that onnxruntime makes; None on a GPU.
        raised_from: the operator set of the float model, if it had to be raised.
        comparison: timing of the model in integers against the float one; None if there is none.
        reason: why the float model was kept; empty if it was not.
    """

    formats: str
    samples: int
    held_out: int
    method: str = ""
    corrections: tuple[str, ...] = ()
    error: float | None = None
    layers: tuple[Layer, ...] = ()
    before: Fidelity | None = None
    after: Fidelity | None = None
    steps: float | None = None
    nodes: IntegerNodes | None = None
    raised_from: int | None = None
    comparison: TimingComparison | None = None
    reason: str = ""

    @property
    def is_kept(self) -> bool:
        """True if the result is the model in integers."""
        return not self.reason

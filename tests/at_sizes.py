"""Equality of a compressed network and the masked original at any sizes, checked channel by channel.

Independent of ``leanonnx.proof``, which is tested against it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace

import numpy as np
import onnx
from numpy.typing import NDArray

from leanonnx.runtime.sessions import Array, Feed, RunFailed, Session, open_session, translate_errors
from leanonnx.surgery.patch import Patch

Shapes = Mapping[str, tuple[int, ...]]
Runs = list[Array]
Inputs = Sequence[onnx.ValueInfoProto]
BOUND = 1e-4
QUANTISED = 2e-2
"""Bound where activations are rounded on the way."""
WIDEST = 3e-2
NOISE = 10
FLOOR = 1e-3
"""Smallest scale of a channel, as a share of the whole output's."""
DRAWS = 3


def drawn(inputs: Inputs, shapes: Shapes, seed: int) -> Feed:
    """Random inputs of these shapes."""
    rng = np.random.default_rng(seed)
    feed = {}
    for value in inputs:
        kind = onnx.helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type)
        numbers = rng.standard_normal(shapes[value.name])
        if kind.kind == "b":
            feed[value.name] = numbers > 0
        else:
            feed[value.name] = (numbers if kind.kind == "f" else np.abs(numbers * 3)).astype(kind)
    return feed


def errors(wanted: Runs, found: Runs) -> NDArray[np.float64]:
    """Relative error of every slice of every output along every axis, each on its own scale; inf if not comparable."""
    rows = [np.zeros(0)]
    for a, b in zip(wanted, found, strict=True):
        if a.shape != b.shape:
            return np.array([np.inf])
        if a.dtype.kind != "f":
            rows.append(np.array([float(np.mean(a != b)) if a.size else 0.0]))
            continue
        x, y = (v.astype(np.float64).reshape(v.shape or (1,)) for v in (a, b))
        if not np.array_equal(np.isfinite(x), np.isfinite(y)):
            return np.array([np.inf])
        x, y = (np.where(np.isfinite(v), v, 0) for v in (x, y))
        for axis in range(x.ndim):
            rest = tuple(k for k in range(x.ndim) if k != axis)
            scale, error = (np.sqrt((v**2).mean(rest)) if x.size else np.zeros(0) for v in (x, x - y))
            rows.append(error / np.maximum(np.maximum(scale, FLOOR * scale.max(initial=0)), np.finfo(np.float64).tiny))
    return np.concatenate(rows)


class Pair:
    """The masked original and the compressed network in sessions that are opened once."""

    def __init__(
        self, masked: onnx.ModelProto, compact: onnx.ModelProto, inputs: Sequence[onnx.ValueInfoProto]
    ) -> None:
        self.inputs = inputs
        kinds = [{node.op_type for node in model.graph.node} for model in (masked, compact)]
        # 8-bit kernels that onnxruntime fuses round on the way
        self.optimise = not {"QuantizeLinear", "DequantizeLinear"} & (kinds[0] | kinds[1])
        self.bound = QUANTISED if "QuantizeLinear" in kinds[0] else BOUND
        self.models = {"masked": masked, "compact": compact}
        self.sessions: dict[tuple[str, bool], Callable[[Feed], Runs]] = {}

    def run(self, side: str, feed: Feed, optimise: bool | None = None) -> Runs:
        """The outputs of one side."""
        key = side, self.optimise if optimise is None else optimise
        if key not in self.sessions:
            self.sessions[key] = _opened(self.models[side], key[1])
        return self.sessions[key](feed)

    def limits(self, feed: Feed) -> NDArray[np.float64]:
        """Bounds of all slices: at least the effect of changing the masked original's inputs in the last digits."""
        plain = self.run("masked", feed, False)
        shaken = {k: x * np.float32(1 + 2e-7) if x.dtype == np.float32 else x for k, x in feed.items()}
        noise = [errors(plain, self.run("masked", shaken, False)), errors(plain, self.run("masked", feed, True))]
        limits = np.maximum(self.bound, NOISE * np.maximum(*noise))
        return np.where(limits <= WIDEST, limits, np.inf)

    def differs(self, feed: Feed) -> float:
        """The largest error that is out of bounds; 0 if there is none."""
        if (errors(self.run("masked", feed), self.run("compact", feed)) <= self.bound).all():
            return 0.0
        far = errors(self.run("masked", feed, False), self.run("compact", feed, False))
        if far.tolist() == [np.inf]:
            return np.inf
        return float(far[far > self.limits(feed)].max(initial=0))

    def assert_equal(self, shapes: Shapes) -> None:
        """Equal at these sizes; on most of a few draws, since a draw may lie on the edge of a decision."""
        self._assert_on_most(shapes, self.differs, "the compressed network is off by")

    def assert_samples_alone(self, shapes: Shapes) -> None:
        """Check that a batch gives the results of its samples run one by one, wherever the original does."""

        def differs(feed: Feed) -> float:
            try:
                apart, ours_apart = (self._one_by_one(side, feed) for side in ("masked", "compact"))
                if (errors(self.run("masked", feed), apart) > self.bound / NOISE).any():
                    return 0.0
            except ValueError:
                return 0.0
            far = errors(self.run("compact", feed), ours_apart)
            return 0.0 if (far <= self.bound).all() else float(far[far > self.limits(feed)].max(initial=0))

        self._assert_on_most(shapes, differs, "samples one by one are off by")

    def _assert_on_most(self, shapes: Shapes, differs: Callable[[Feed], float], message: str) -> None:
        found = []
        for seed in range(DRAWS):
            found.append(differs(drawn(self.inputs, shapes, seed)))
            if not found[0]:
                return
        assert sorted(found)[1] == 0, f"at {dict(shapes)} {message} {found}"

    def _one_by_one(self, side: str, feed: Feed) -> Runs:
        """Outputs for each sample alone, joined; a ValueError where that cannot be."""
        batch = len(next(iter(feed.values())))
        rows = [self.run(side, {name: x[k : k + 1] for name, x in feed.items()}) for k in range(batch)]
        return [np.concatenate(parts) for parts in zip(*rows, strict=True)]


def _opened(model: onnx.ModelProto, optimise: bool) -> Callable[[Feed], Runs]:
    with open_session(model, optimise=optimise) as session:
        return lambda feed: _outputs(session, feed)


def _outputs(session: Session, feed: Feed) -> Runs:
    return list(session.run(None, feed))


def as_observed(patch: Patch) -> Patch:
    """A patch that writes the sizes of the observed run, whatever axes are free."""
    shape_edits, output_edits = (
        {place: replace(change, original_sizes={}) for place, change in given.items()}
        for given in (patch.shape_edits, patch.output_edits)
    )
    return replace(patch, shape_edits=shape_edits, output_edits=output_edits)


def runs_at(model: onnx.ModelProto, inputs: Inputs, sizes: Sequence[Shapes]) -> list[Shapes]:
    """The sizes at which a model runs and returns finite numbers."""
    found = []
    with suppress(RunFailed), translate_errors():
        session = _opened(model, False)
        for shapes in sizes:
            with suppress(RunFailed), translate_errors():
                found += [shapes] if all(_tells(v) for v in session(drawn(inputs, shapes, 0))) else []
    return found


def _tells(output: Array) -> bool:
    return bool(output.size) and (output.dtype.kind != "f" or bool(np.isfinite(output).all()))

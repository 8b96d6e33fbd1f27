"""Observe the shapes of a model's tensors by running it on random inputs."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace

import numpy as np
import onnx

from leanonnx.errors import ModelError, OptionError
from leanonnx.formatting import shape_text
from leanonnx.graph.formats import REPLACED_TYPES, ElementTypes, convert_feed, convert_to_float32, float_types
from leanonnx.graph.model import Model, first_line, raise_if_machine_failed, tensors
from leanonnx.graph.pixels import pixel_inputs
from leanonnx.numeric.arrays import Array
from leanonnx.operators.facts import Family
from leanonnx.operators.table import names_of
from leanonnx.runtime.free_axes import InputShapes, axis_groups, find_further_sizes
from leanonnx.runtime.probes import expose_tensors
from leanonnx.runtime.sessions import MAX_RUN_SECONDS, TERMINATED_TEXT, Feed, Session, open_session, run_session
from leanonnx.runtime.trials import (
    UNNAMED_AXIS,
    Growth,
    declared_sizes,
    further_limits,
    permitted_trials,
    probe_shapes,
    trial_shapes,
)
from leanonnx.spelling import option

Shapes = Mapping[str, tuple[int, ...]]
USUAL_SIZE_COUNT = 16
"""Number of sizes of constants to try for axes that may hold channels."""
SEQUENCE_OPERATORS = names_of(Family.SEQUENCE)
BRANCHING = names_of(Family.CONTROL) - {"Scan"}
"""Operators whose subgraphs may output something else than tensors."""
EXAMPLE = {"NAME": (1, 3, 224, 224)}
"""Shapes of inputs, for messages."""
NEWER_OPSET = re.compile(r"Opset (\d+) is under development.*is till opset (\d+)", re.DOTALL)
"""What onnxruntime says of an operator set that it does not know."""
UNKNOWN_OPERATOR_TEXT = "is not a registered function/op"


@dataclass(frozen=True, kw_only=True)
class Observation:
    """Shapes and constant values from one run of the model, and from runs at other sizes of its free axes.

    Attributes:
        feeds: the inputs.
        shapes: shape of each tensor.
        values: values computed from constants and sizes alone.
        replaced_formats: number formats that were replaced by float32, because onnxruntime cannot run them.
        further_runs: observations at other sizes, with all free axes changed where the model allows it.
        further_sizes: shapes of the graph inputs at all further sizes at which the model runs: each free axis (or group
            of axes that change together) alone at two further values, and all of them jointly.
    """

    feeds: Feed
    shapes: dict[str, tuple[int, ...]]
    values: dict[str, Array]
    replaced_formats: ElementTypes = frozenset()
    further_runs: tuple[Observation, ...] = ()
    further_sizes: tuple[InputShapes, ...] = ()


def observe(model: Model, given: Shapes) -> Observation:
    """Run the model and record the shape of every tensor, and the values of constant ones.

    Shape inference by execution: each tensor gets its own Shape node, run at once, so that nothing large is kept.
    If axes of the inputs are free, the model is also run at further sizes.
    ``given`` fixes the shapes of graph inputs by name; other free axes are filled from a list of common sizes.
    A model in a number format that onnxruntime cannot run is replaced by its float32 copy.

    Raises:
        ModelError: onnxruntime cannot load the model, or cannot run it with any size tried.
        OptionError: a given shape contradicts the declared one.
    """
    check_shapes(model, given)
    try:
        return _observe_proto(model, model.proto, given, frozenset())
    except ModelError:
        replaced = float_types(model.proto) & REPLACED_TYPES
        if not replaced:
            raise
    return _observe_proto(model, convert_to_float32(model.proto, replaced), given, replaced)


def check_shapes(model: Model, shapes: Shapes) -> None:
    """Check input shapes against those that the model declares.

    Raises:
        OptionError: there is no such input, or its rank or a fixed size differs.
    """
    inputs = {value.name: declared_sizes(value) for value in model.inputs}
    for name, shape in shapes.items():
        if name not in inputs:
            raise OptionError(f"{option('shape')} {name}: no such graph input; the inputs are {', '.join(inputs)}")
        axes = [axis if isinstance(axis, int) else UNNAMED_AXIS for axis in inputs[name]]
        if len(axes) != len(shape) or any(a not in (UNNAMED_AXIS, b) for a, b in zip(axes, shape, strict=True)):
            raise OptionError(
                f"{option('shape')} {name}={shape_text(shape)}: the model declares {shape_text(axes)}; give "
                "sizes that fit"
            )


def _observe_proto(model: Model, proto: onnx.ModelProto, given: Shapes, replaced: ElementTypes) -> Observation:
    """Observe the model, or its float32 copy ``proto``."""
    values = sorted(_constant_names(model))
    names = sorted(n for n in _tensor_names(model) if n in model.free)
    outputs = {value.name for value in model.proto.graph.output}
    growth = Growth([place for place, name in enumerate(names) if name in outputs])
    shapes_of = [onnx.helper.make_node("Shape", [name], [f"leanonnx_shape_{k}"]) for k, name in enumerate(names)]
    with expose_tensors(proto, [*(node.output[0] for node in shapes_of), *values], shapes_of) as exposed:
        try:
            with open_session(exposed, optimise=False, libraries=model.libraries, shapes_first=True) as session:
                observer = _Observer(
                    model=model, session=session, names=names, values=values, replaced=replaced, growth=growth
                )
                return _observe_all_sizes(observer, given)
        except ModelError:
            raise
        except Exception as error:  # onnxruntime raises its own types, one per status code
            raise_if_machine_failed(error)
            if newer := NEWER_OPSET.search(str(error)):
                raise ModelError(
                    f"{model.path}: its operator set {newer[1]} is newer than {newer[2]}, the last that this "
                    f"onnxruntime knows; export it with operator set {newer[2]} or an earlier one, or install a "
                    "newer onnxruntime"
                ) from error
            known = UNKNOWN_OPERATOR_TEXT not in str(error)
            hint = "export it again" if known else f"give the library of its operators with {option('library')}"
            raise ModelError(f"{model.path}: onnxruntime cannot load the model: {first_line(error)}; {hint}") from error


@dataclass(frozen=True, kw_only=True)
class _Observer:
    """A session that outputs the shapes of the tensors ``names``, then the tensors ``values``; ``growth``: its runs."""

    model: Model
    session: Session
    names: list[str]
    values: list[str]
    replaced: ElementTypes
    growth: Growth

    def to_observation(self, feeds: Feed, outputs: list[Array]) -> Observation:
        """Return the observation of one run."""
        shapes = {name: tuple(int(d) for d in shape) for name, shape in zip(self.names, outputs, strict=False)}
        shapes |= {name: feed.shape for name, feed in feeds.items()}
        constants = dict(zip(self.values, outputs[len(self.names) :], strict=True))
        if self.replaced:
            constants = _in_declared_types(self.model, constants)
        shapes |= {name: value.shape for name, value in constants.items()}
        return Observation(feeds=feeds, shapes=shapes, values=constants, replaced_formats=self.replaced)

    def run(self, shapes: Shapes, like: Feed | None = None) -> tuple[Feed, list[Array]]:
        """Run on random inputs of these shapes and return inputs and outputs.

        Inputs of ``like`` that have the right shape are reused, so that a flag selects the same branch at every size.
        """
        feed = random_feed(self.model, shapes, seed=0)
        feed |= {name: value for name, value in (like or {}).items() if value.shape == feed[name].shape}
        count = len(self.names) + len(self.values)
        outputs = run_session(self.session, convert_feed(feed, self.replaced))[:count]
        self.growth.add_run({name: value.shape for name, value in feed.items()}, outputs[: len(self.names)])
        return feed, outputs


def _observe_all_sizes(observer: _Observer, given: Shapes) -> Observation:
    """Observe the first run that succeeds, and further sizes if axes are free."""
    base = observer.to_observation(*_first_run(observer, given))
    declared_axes = {value.name: declared_sizes(value) for value in observer.model.inputs}
    if all(isinstance(size, int) for axes in declared_axes.values() for size in axes):
        return base

    seen: dict[str, Observation] = {}
    start = {name: feed.shape for name, feed in base.feeds.items()}
    limits = further_limits(observer.growth, start)

    def runs(sizes: InputShapes) -> bool:
        if not observer.growth.permits(sizes, limits):
            return False
        try:
            observation = observer.to_observation(*observer.run(sizes, base.feeds))
        except Exception:  # noqa: BLE001 - onnxruntime raises its own types; the model does not run at these sizes
            return False
        emptied = any(0 in shape and 0 not in base.shapes[name] for name, shape in observation.shapes.items())
        seen[repr(sizes)] = observation
        return not emptied

    more = find_further_sizes(axis_groups(declared_axes, start, _usual_sizes(observer.model)), start, runs)
    return replace(
        base, further_runs=tuple(seen[repr(s)] for s in more.jointly or more.alone), further_sizes=more.distinct_sizes
    )


def _usual_sizes(model: Model) -> list[int]:
    """Return sizes of constants, which may be numbers of channels, the most frequent first."""
    counts = Counter(size for tensor in tensors(model.proto.graph) for size in set(tensor.dims) if size > 1)
    return [size for size, _ in counts.most_common(USUAL_SIZE_COUNT)]


def _in_declared_types(model: Model, values: dict[str, Array]) -> dict[str, Array]:
    """Convert values of the float32 copy to the types of the model itself."""
    inferred = onnx.shape_inference.infer_shapes(model.proto)
    kinds = {v.name: v.type.tensor_type.elem_type for v in inferred.graph.value_info}
    return {
        name: value.astype(onnx.helper.tensor_dtype_to_np_dtype(kinds[name]))
        if kinds.get(name) in REPLACED_TYPES
        else value
        for name, value in values.items()
    }


def _tensor_names(model: Model) -> set[str]:
    """Return the node outputs that are tensors (sequences and optionals have no shape)."""
    names: set[str] = set()
    for node in model.proto.graph.node:
        if node.domain or node.op_type not in SEQUENCE_OPERATORS | BRANCHING:
            names.update(node.output)
        elif node.op_type not in SEQUENCE_OPERATORS:
            names.update(_tensor_outputs(node))
    typed = {v.name for v in model.proto.graph.output if v.type.HasField("tensor_type")}
    return (names | typed) - {""}


def _tensor_outputs(node: onnx.NodeProto) -> list[str]:
    """Return the outputs of an If or a Loop that its subgraph declares as tensors."""
    body = next(a.g for a in node.attribute if a.name in ("then_branch", "body"))
    declared = list(body.output)[1 if node.op_type == "Loop" else 0 :]
    return [name for name, value in zip(node.output, declared, strict=True) if value.type.HasField("tensor_type")]


def _constant_names(model: Model) -> set[str]:
    """Return the computed tensors that depend on no graph input's data."""
    return {n for n in _tensor_names(model) if n not in model.free and n not in model.origins}


def _first_run(observer: _Observer, given: Shapes) -> tuple[Feed, list[Array]]:
    """Try common sizes for free axes until the model runs and no tensor is empty."""
    model, trials = observer.model, trial_shapes(observer.model, given)
    failure, empty = "no free dimension could be filled", None
    for shapes in probe_shapes(trials, observer.growth):
        with suppress(Exception):  # onnxruntime raises its own types; the model does not run at these sizes
            observer.run(shapes)
    for shapes in permitted_trials(trials, observer.growth):
        try:
            feed, outputs = observer.run(shapes)
        except Exception as error:  # onnxruntime raises its own types, one per status code
            failure = first_line(error)
            if TERMINATED_TEXT in failure:
                raise ModelError(
                    f"{model.path}: a run did not end within {MAX_RUN_SECONDS} seconds: {failure}; give smaller sizes "
                    f"with {option('shape')}, or export the model without the loop"
                ) from error
            continue
        if not any(0 in shape for shape in outputs[: len(observer.names)]):
            return feed, outputs
        empty = empty or (feed, outputs)
    if empty:
        return empty
    raise_if_machine_failed(failure)
    if len(trials) == 1:
        raise ModelError(f"{model.path}: onnxruntime cannot run the model: {failure}; export the model again")
    names = ", ".join(f"{v.name}{declared_sizes(v)}" for v in model.inputs)
    raise ModelError(
        f"{model.path}: onnxruntime cannot run the model with any input size tried ({failure}); "
        f"give the input shapes, for example {option('shape', EXAMPLE, 'NAME=1,3,224,224')} (inputs: {names})"
    )


def random_feed(model: Model, shapes: Shapes, seed: int, kind: str = "normal") -> Feed:
    """Draw inputs: floats from N(0, 1), U[0, 1) or U[0, 255), pixels from their whole range, other integers 0 or 1.

    ``kind`` selects the distribution of floats: "normal", "uniform" or "bytes".
    """
    rng = np.random.default_rng(seed)
    wide = pixel_inputs(model)
    return {v.name: _draw_input(v, shapes[v.name], rng, kind, v.name in wide) for v in model.inputs}


def _draw_input(
    value: onnx.ValueInfoProto, shape: tuple[int, ...], rng: np.random.Generator, kind: str, whole_range: bool
) -> Array:
    dtype = onnx.helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type)
    if dtype == np.bool_:
        return np.asarray(rng.random(shape) < 0.5)
    if whole_range:
        limits = np.iinfo(dtype)
        return np.asarray(rng.integers(limits.min, limits.max, shape, dtype, endpoint=True))
    if not np.issubdtype(dtype, np.floating) and dtype.kind in "iu":
        return np.asarray(rng.integers(0, 2, shape)).astype(dtype)
    if dtype.kind == "O":
        return np.full(shape, "", object)
    single = np.float32
    draw = rng.standard_normal(shape, single) if kind == "normal" else rng.random(shape, single)
    return np.asarray(draw * single(255 if kind == "bytes" else 1)).astype(dtype)

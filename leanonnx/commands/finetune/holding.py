"""The weights that are trained, and those that are held with the reason: physics, architecture, or the user's wish.

Held are constants that were designed: what enters several kinds of places (an operator and its adjoint), known
transforms and filters (``numeric.transforms``), products that mix the positions of an image, and numbers of pre- and
postprocessing and of the architecture (``scalars``).
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase

import numpy as np
import onnx

from leanonnx.commands.finetune.pixels import image_tensors, mixes_positions
from leanonnx.commands.finetune.scalars import operand_reason
from leanonnx.commands.finetune.weights import (
    ARITHMETIC_OPERATORS,
    BIAS_SLOTS,
    FAMILIES,
    Place,
    float_constants,
    is_weight,
    places,
)
from leanonnx.errors import ModelError, OptionError
from leanonnx.graph.model import Model
from leanonnx.graph.nodes import attribute, name_of
from leanonnx.numeric.arrays import Array
from leanonnx.numeric.transforms import (
    ADJOINT,
    COMPLEX_PART,
    adjoints,
    complex_parts,
    designed_kernel,
    designed_matrix,
)
from leanonnx.operators.facts import Family
from leanonnx.operators.table import CONVOLUTIONS
from leanonnx.runtime.observation import Shapes
from leanonnx.spelling import option

NO_WEIGHT = "it is read as no weight (a statistic, a table, a bound)"
SEVERAL_KINDS = "it enters more than one kind of place"
MIXES_PIXELS = "it mixes the positions of an image, not channels"
ASKED = "you asked for it"
MATRIX_FAMILIES = (Family.GEMM, Family.MATMUL, Family.EINSUM)
TRAINABLE_FAMILIES = (Family.JOIN, Family.PARAMETRIC, Family.NORMALIZATION)
"""Families whose constants can be trained on request, in whatever slot."""
WILDCARDS = "*?["


@dataclass(frozen=True)
class WeightChoice:
    """Names of the trained constants, sorted, and of the held ones by reason; ``held`` lists all float constants."""

    trained: tuple[str, ...]
    held: Mapping[str, tuple[str, ...]]


def choose_weights(model: Model, shapes: Shapes, train: Sequence[str] = (), hold: Sequence[str] = ()) -> WeightChoice:
    """Decide which constants of a model are trained; those within local functions are held.

    Args:
        model: the network.
        shapes: shapes of its tensors.
        train: patterns of names of constants, or of nodes that read them, that are trained though they would be held.
        hold: patterns of those that are held; where both match, the pattern with more letters decides.

    Raises:
        OptionError: a pattern matches nothing, or nothing that could be trained.
        ModelError: nothing is trained.
    """
    names = float_constants(model)
    inlined = _inlined_constants(model)
    reasons = {name: reason for name, reason in held_reasons(model, shapes).items() if name not in inlined}
    by_pattern = {pattern: _matching(model, pattern, names) for pattern in (*train, *hold)}
    for kind, patterns in (("train", train), ("hold", hold)):
        for pattern in patterns:
            _check_pattern(model, kind, pattern, by_pattern[pattern] - inlined)
    for name in reasons:
        wish = _wish(name, train, hold, by_pattern)
        if wish == "hold":
            reasons[name] = ASKED
        elif wish == "train" and can_train(model, name):
            reasons[name] = ""
    trained = tuple(sorted(name for name, reason in reasons.items() if not reason))
    if not trained:
        raise _nothing_to_train(model, reasons)
    held: dict[str, list[str]] = {}
    for name, reason in reasons.items():
        held.setdefault(reason, []).append(name)
    return WeightChoice(trained, {reason: tuple(sorted(each)) for reason, each in held.items() if reason})


def _nothing_to_train(model: Model, reasons: Mapping[str, str]) -> ModelError:
    text = f"{model.path}: holds no weights to train (floats read by a layer as its weights)"
    held = [f"'{name}' is held: {reason}" for name, reason in reasons.items() if reason != NO_WEIGHT]
    if not held:
        return ModelError(f"{text}; export the model with float weights")
    return ModelError(f"{text}: {'; '.join(held[:3])}; name weights to train with {option('train', 'NAME')}")


def held_reasons(model: Model, shapes: Shapes) -> dict[str, str]:
    """For each float constant, the reason for which it is held by default; empty if it is trained."""
    read_at = {name: places(model, name) for name in float_constants(model)}
    reasons = {name: _place_reason(model, name, slots) for name, slots in read_at.items()}
    weights = {name: read_at[name] or [] for name, reason in reasons.items() if not reason}
    reasons |= _operator_reasons(model, weights, shapes)
    held = {name for name, reason in reasons.items() if reason}
    for name, slots in weights.items():
        if not reasons[name] and _is_operand(model, slots):
            reasons[name] = operand_reason(model, name, slots, held)
    return reasons


def can_train(model: Model, name: str) -> bool:
    """Return True if a gradient reaches a constant, so that it can be trained on request."""
    slots = places(model, name)
    kinds = [model.proto.graph.node[place.node].op_type for place in slots or ()]
    return bool(slots) and (is_weight(model, name) or all(FAMILIES.get(kind) in TRAINABLE_FAMILIES for kind in kinds))


def _place_reason(model: Model, name: str, slots: list[Place] | None) -> str:
    """The reason that the places of a constant alone give."""
    single = model.view.constant_kind(name)[1] == 1
    if not slots or not (is_weight(model, name) or (single and _is_operand(model, slots))):
        return NO_WEIGHT
    return SEVERAL_KINDS if len({place.kind(model) for place in slots}) > 1 else ""


def _is_operand(model: Model, slots: Collection[Place]) -> bool:
    """Return True if a constant is an operand of arithmetic with a computed tensor, at all its places."""
    nodes = [model.proto.graph.node[place.node] for place in slots]
    return all(node.op_type in ARITHMETIC_OPERATORS and not model.free.isdisjoint(node.input) for node in nodes)


def _operator_reasons(model: Model, weights: Mapping[str, list[Place]], shapes: Shapes) -> dict[str, str]:
    """Reasons of the matrices and kernels that are no learned ones."""
    products = {name: slots for name, slots in weights.items() if any(_is_product(model, place) for place in slots)}
    values = {name: np.asarray(model.constant(name)) for name in products}
    kinds: dict[bytes, set[str]] = {}
    for name, slots in products.items():
        kinds.setdefault(_identity(values[name]), set()).update(place.kind(model) for place in slots)
    matrices = {name: value.reshape(value.shape[0], -1) for name, value in values.items() if value.ndim > 1}
    parts, turned = complex_parts(matrices), adjoints(matrices)
    images = image_tensors(model, shapes)
    reasons = {}
    for name, slots in products.items():
        reason = _designed(model, values[name], slots)
        if len(kinds[_identity(values[name])]) > 1:
            reason = SEVERAL_KINDS
        elif name in parts:
            reason = COMPLEX_PART
        elif not reason and name in turned:
            reason = ADJOINT
        elif not reason and all(mixes_positions(model, place, images, shapes) for place in slots):
            reason = MIXES_PIXELS
        if reason:
            reasons[name] = reason
    return reasons


def _is_product(model: Model, place: Place) -> bool:
    """Return True if a place holds the matrix or the kernels of a product."""
    name = model.proto.graph.node[place.node].op_type
    return BIAS_SLOTS.get(name) != place.slot and (name in CONVOLUTIONS or FAMILIES.get(name) in MATRIX_FAMILIES)


def _designed(model: Model, value: Array, slots: Collection[Place]) -> str:
    """The property that tells that a constant was designed; empty if there is none."""
    for place in slots:
        node = model.proto.graph.node[place.node]
        if node.op_type in CONVOLUTIONS:
            return designed_kernel(value, int(attribute(node, "group", 1)))
    return designed_matrix(value)


def _identity(value: Array) -> bytes:
    """Bytes that only equal arrays share."""
    return repr(value.shape).encode() + value.tobytes()


def _inlined_constants(model: Model) -> set[str]:
    """Constants that the file holds in local functions, which are inlined in memory."""
    if not onnx.load(model.path, load_external_data=False).functions:
        return set()
    plain = replace(model, proto=onnx.load(model.path))
    return set(model.holders) - set(plain.holders)


def _matching(model: Model, pattern: str, names: Collection[str]) -> set[str]:
    """The constants that a pattern names, or that a node reads which it names."""
    nodes = {k for k, node in enumerate(model.proto.graph.node) if fnmatchcase(name_of(node), pattern)}
    readers = {name: {place.node for place in places(model, name) or ()} for name in names} if nodes else {}
    return {name for name in names if fnmatchcase(name, pattern) or not nodes.isdisjoint(readers.get(name, ()))}


def _check_pattern(model: Model, kind: str, pattern: str, matched: Collection[str]) -> None:
    given = option(kind, pattern)
    if not matched:
        known = ", ".join(f"'{name}'" for name in _examples(model))
        raise OptionError(f"{given}: no float weight, and no node that reads one, has such a name; weights are {known}")
    if kind == "train" and not any(can_train(model, name) for name in matched):
        raise OptionError(
            f"{given}: '{min(matched)}' cannot be trained: {NO_WEIGHT}; name a weight, a factor or a term that is added"
        )


def _examples(model: Model) -> Iterator[str]:
    """The first names of constants that can be trained."""
    named = [name for name in float_constants(model) if can_train(model, name)]
    yield from named[:3]
    if len(named) > 3:
        yield "…"


def _wish(name: str, train: Sequence[str], hold: Sequence[str], matched: Mapping[str, set[str]]) -> str:
    """The option that decides on a constant: that with the longest matching pattern; empty if none matches."""
    letters = {
        kind: max((sum(c not in WILDCARDS for c in each) for each in patterns if name in matched[each]), default=-1)
        for kind, patterns in (("hold", hold), ("train", train))
    }
    return max(letters, key=lambda kind: letters[kind]) if max(letters.values()) >= 0 else ""

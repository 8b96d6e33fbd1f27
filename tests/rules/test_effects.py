"""The contract between rules and analysis: each clause, broken alone, and effects that lie on its limits."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from leanonnx.rules.call import Call, Edit, Effect, FixedEdges, KernelBlock, Pin, Reduction, Slice, Value
from leanonnx.rules.check import find_fault

FIRST, COUNT = 5, 8
"""Channels 1 to 4 come in, 5 to 7 are new; 0 is always kept."""
IN, OUT = np.arange(1, FIRST), np.arange(FIRST, COUNT)


def value(shape: tuple[int, ...], channel_ids: Any = None) -> Value:
    return Value(name="t", shape=shape, channel_ids=channel_ids, read=lambda: np.zeros(shape))


CALL = Call(
    op="Conv",
    domain="",
    name="c",
    opset=17,
    attributes={},
    inputs=(value((1, 4, 5, 5), IN.reshape(1, 4, 1, 1)), value((3, 4, 1, 1)), None),
    outputs=("y",),
    output_shapes=((1, 3, 5, 5),),
    mint=lambda count: OUT[:count],
    channel_count=lambda: COUNT,
)
BLOCK = KernelBlock(sources=IN[None], destinations=OUT[None], slot=1, kernels=lambda: np.zeros((1, 3, 4, 1, 1)))
PIN = Pin(channel_ids=IN, tensor="x", reason="why", advice="what to do")
SLICE = Slice(1, (OUT.reshape(3, 1, 1, 1), IN.reshape(4, 1, 1)))
"""The second factor has a lower rank than the constant."""
EDGES = FixedEdges(IN[:3], OUT, np.ones(3, np.float32))
REDUCTION = Reduction(0, IN.reshape(1, 4, 1, 1), OUT[:1])
LABELS = OUT.reshape(1, 3, 1, 1)
VALID = Effect(
    (LABELS,),
    ties=((IN[:3], OUT),),
    concat_slots=((OUT, OUT),),
    kernel_blocks=(BLOCK,),
    fixed_edges=(EDGES,),
    slices=(SLICE,),
    reductions=(REDUCTION,),
    pins=(PIN,),
    starts=(OUT,),
    rewrite=lambda kept: Edit(),
    moves=(lambda channel_ids: channel_ids,),
)
BEYOND = np.array([COUNT])
RANGE = "channel ids must lie between 0 and 7 (take new ones from call.mint)"
INTEGERS = "channel ids must be arrays of integers"
OUTPUTS = "outputs must be a tuple of 1 arrays of channel ids"
PAIR = "ties must be pairs of channel id arrays"
BLOCK_SHAPES = "kernel_blocks have sources [groups, inputs] and destinations [groups, outputs]"
BLOCK_SLOT = "kernel_blocks name the slot of a constant weight and a function that reads it"
PIN_TEXTS = "pins need a tensor, a reason and an advice, all strings"
SLICE_SLOT = "slices name a slot and at least one factor"
SLICE_SHAPE = "slices: channel ids of shape {} do not fit a tensor of shape (3, 4, 1, 1)"
FUNCTIONS = "rewrite and moves must be functions"
BACK = "fixed_edges lead from existing channel ids to new ones (call.mint), never back"
GAINS = "fixed_edges have one gain for each pair of channel ids"
TWO = np.zeros((2, 3), np.int64)


def shape_fault(*shape: int) -> str:
    return f"channel ids of shape {shape} do not fit a tensor of shape (1, 3, 5, 5)"


FAULTS: list[tuple[str, dict[str, Any], str]] = [
    ("no outputs", {"outputs": ()}, OUTPUTS),
    ("a list of outputs", {"outputs": [LABELS]}, OUTPUTS),
    ("no array", {"outputs": (3,)}, f"outputs: {INTEGERS}"),
    ("floats", {"outputs": (LABELS.astype(float),)}, f"outputs: {INTEGERS}"),
    ("an id that was never minted", {"outputs": (LABELS + 1,)}, f"outputs: {RANGE}"),
    ("a negative id", {"outputs": (LABELS - FIRST - 1,)}, f"outputs: {RANGE}"),
    ("another rank", {"outputs": (OUT,)}, f"outputs: {shape_fault(3)}"),
    ("an axis less", {"outputs": (LABELS[:, :, 0, 0],)}, f"outputs: {shape_fault(1, 3)}"),
    ("another size", {"outputs": (LABELS[:, :2],)}, f"outputs: {shape_fault(1, 2, 1, 1)}"),
    *(
        (f"a list of {name}", {name: [*getattr(VALID, name)]}, f"{name} must be a tuple of {kind}")
        for name, kind in (
            *(("kernel_blocks", "KernelBlock"), ("fixed_edges", "FixedEdges"), ("slices", "Slice"), ("pins", "Pin")),
            *(("reductions", "Reduction"), ("ties", "tuple"), ("concat_slots", "tuple"), ("starts", "ndarray")),
        )
    ),
    ("text among the pins", {"pins": (PIN, "x")}, "pins must be a tuple of Pin"),
    ("a number for a rewrite", {"rewrite": 7}, FUNCTIONS),
    ("a number among the moves", {"moves": (*VALID.moves, 7)}, FUNCTIONS),
    ("a list of moves", {"moves": [*VALID.moves]}, FUNCTIONS),
    ("a tie of three", {"ties": ((IN, IN, IN),)}, PAIR),
    ("a list for a concat slot", {"concat_slots": ([OUT, OUT],)}, "concat_slots must be a tuple of tuple"),
    ("a tie from beyond", {"ties": ((BEYOND, OUT[:1]),)}, f"ties and fixed_edges: {RANGE}"),
    ("a tie to beyond", {"ties": ((OUT[:1], BEYOND),)}, f"ties and fixed_edges: {RANGE}"),
    ("a tie of two shapes", {"ties": ((IN, OUT),)}, "ties and fixed_edges pair arrays of one shape, not (4,) and (3,)"),
    ("a concat slot to beyond", {"concat_slots": ((OUT[:1], BEYOND),)}, f"ties and fixed_edges: {RANGE}"),
    ("an edge to beyond", {"fixed_edges": (FixedEdges(IN[:1], BEYOND),)}, f"ties and fixed_edges: {RANGE}"),
    ("an edge back", {"fixed_edges": (FixedEdges(OUT, IN[:3]),)}, BACK),
    ("an edge to itself", {"fixed_edges": (EDGES, FixedEdges(np.array([1, 6]), np.array([5, 6])))}, BACK),
    *(
        (f"{n} gains", {"fixed_edges": (replace(EDGES, gains=np.ones(n, np.float32)),)}, GAINS)
        for n in (1, EDGES.sources.size + 1)
    ),
    ("a pin from beyond", {"pins": (replace(PIN, channel_ids=BEYOND),)}, f"pins: {RANGE}"),
    *((f"a pin of no {name}", {"pins": (PIN, replace(PIN, **{name: 3}))}, PIN_TEXTS) for name in ("tensor", "reason")),
    ("a pin of no advice", {"pins": (replace(PIN, advice=None),)}, PIN_TEXTS),
    ("a start beyond", {"starts": (OUT, BEYOND)}, f"starts: {RANGE}"),
    ("sources beyond", {"kernel_blocks": (replace(BLOCK, sources=BEYOND[None]),)}, f"kernel_blocks: {RANGE}"),
    ("destinations beyond", {"kernel_blocks": (replace(BLOCK, destinations=BEYOND[None]),)}, f"kernel_blocks: {RANGE}"),
    ("sources of rank 1", {"kernel_blocks": (replace(BLOCK, sources=IN[:1]),)}, BLOCK_SHAPES),
    ("destinations of rank 3", {"kernel_blocks": (replace(BLOCK, destinations=OUT[None, None]),)}, BLOCK_SHAPES),
    ("groups of one side", {"kernel_blocks": (replace(BLOCK, destinations=TWO),)}, BLOCK_SHAPES),
    ("kernels of data", {"kernel_blocks": (replace(BLOCK, slot=0),)}, BLOCK_SLOT),
    ("kernels that are no function", {"kernel_blocks": (replace(BLOCK, kernels=np.zeros(3)),)}, BLOCK_SLOT),
    ("text for a slot", {"slices": (Slice("1", SLICE.factors),)}, SLICE_SLOT),  # type: ignore[arg-type]
    ("no factor", {"slices": (Slice(1, ()),)}, SLICE_SLOT),
    ("a slice of data", {"slices": (replace(SLICE, slot=0),)}, "input 0 is sliced but is not constant"),
    ("a slice of nothing", {"slices": (replace(SLICE, slot=2),)}, "input 2 is sliced but is not constant"),
    ("a factor beyond", {"slices": (Slice(1, (SLICE.factors[0], BEYOND)),)}, f"slices: {RANGE}"),
    ("a factor of another size", {"slices": (Slice(1, (OUT,)),)}, SLICE_SHAPE.format((1, 1, 1, 3))),
    ("a factor of a higher rank", {"slices": (Slice(1, (LABELS[None],)),)}, SLICE_SHAPE.format((1, 1, 3, 1, 1))),
    ("a reduction of nothing", {"reductions": (replace(REDUCTION, slot=2),)}, "input 2 is reduced but holds no data"),
    (
        "a reduction of a constant",
        {"reductions": (replace(REDUCTION, slot=1),)},
        "input 1 is reduced but holds no data",
    ),
    ("text for data", {"reductions": (Reduction("0", IN),)}, "input 0 is reduced but holds no data"),  # type: ignore[arg-type]
    (
        "ids of another tensor",
        {"reductions": (replace(REDUCTION, channel_ids=LABELS),)},
        "reductions: channel ids of shape (1, 3, 1, 1) do not fit a tensor of shape (1, 4, 5, 5)",
    ),
    ("a reduction to beyond", {"reductions": (replace(REDUCTION, destination=BEYOND),)}, f"reductions: {RANGE}"),
]


@pytest.mark.parametrize(("changes", "says"), [case[1:] for case in FAULTS], ids=[case[0] for case in FAULTS])
def test_each_clause_is_checked(changes: dict[str, Any], says: str) -> None:
    assert find_fault(CALL, replace(VALID, **changes), COUNT) == says


def test_an_answer_of_another_type_is_named() -> None:
    assert find_fault(CALL, None, COUNT) == "NoneType is not an Effect"


LIMITS: dict[str, Callable[[Effect], Effect]] = {
    "all fields": lambda effect: effect,
    "only outputs": lambda effect: Effect(effect.outputs),
    "outputs that nobody reads": lambda effect: replace(effect, outputs=(*effect.outputs, *effect.outputs)),
    "channel 0": lambda effect: replace(effect, outputs=(LABELS * 0,)),
    "no axis along which channels vary": lambda effect: replace(effect, outputs=(LABELS[:, :1],)),
    "every position": lambda effect: replace(effect, outputs=(np.broadcast_to(LABELS, (1, 3, 5, 5)),)),
    "no channels": lambda effect: replace(effect, starts=(OUT[:0],), ties=((OUT[:0], OUT[:0]),)),
    "gains of 1": lambda effect: replace(effect, fixed_edges=(replace(EDGES, gains=None),)),
    "a norm": lambda effect: replace(effect, reductions=(replace(REDUCTION, destination=None),)),
}


@pytest.mark.parametrize("change", LIMITS.values(), ids=LIMITS)
def test_valid_effects_pass(change: Callable[[Effect], Effect]) -> None:
    assert find_fault(CALL, change(VALID), COUNT) == ""


def test_outputs_of_unknown_shape_have_any_labels() -> None:
    assert find_fault(replace(CALL, output_shapes=(None,)), VALID, COUNT) == ""
    assert find_fault(replace(CALL, output_shapes=(None,)), replace(VALID, outputs=(OUT,)), COUNT) == ""

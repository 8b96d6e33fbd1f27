"""The built-in rules fulfil the contract that user-defined rules must fulfil."""

from __future__ import annotations

import re
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, note, settings
from hypothesis import strategies as st

from leanonnx.analysis.dag import build_channel_dag
from leanonnx.graph.model import load
from leanonnx.rules.call import Call, Effect, FixedEdges, KernelBlock, Pin, Rule, Slice, Value
from leanonnx.rules.check import find_fault
from leanonnx.rules.table import DEFAULT_RULES
from leanonnx.runtime.observation import observe
from tests.graphs import from_seed, saved


def held(rule: Rule) -> Rule:
    """The rule, which fails loudly where its answer breaks the contract."""

    def checked(call: Call) -> Effect:
        effect = rule(call)
        found = find_fault(call, effect, call.channel_count())
        assert not found, f"{call.title}: {found}"
        return effect

    return checked


RULES = {key: held(rule) for key, rule in DEFAULT_RULES.items()}


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 1 << 32))
def test_rules_keep_their_contract(seed: int) -> None:
    note(f"tests.graphs.from_seed({seed})")
    with tempfile.TemporaryDirectory() as folder:
        model = load(saved(from_seed(seed), Path(folder)))
        build_channel_dag(model, observe(model, {}), RULES)


N = np.arange(1, 5)
"""Known channel ids."""


def call_of_one() -> Call:
    """A node that reads a tensor [1, 4, 2] and a constant [4, 3], and outputs [1, 4, 2]."""
    data = Value(name="x", shape=(1, 4, 2), channel_ids=N.reshape(1, 4, 1), read=lambda: np.zeros(0))
    weight = Value(name="w", shape=(4, 3), channel_ids=None, read=lambda: np.zeros((4, 3), np.float32))
    return Call(
        op="Own",
        domain="acme",
        name="own",
        opset=17,
        attributes={},
        inputs=(data, weight),
        outputs=("y",),
        output_shapes=((1, 4, 2),),
        mint=lambda n: np.arange(n),
        channel_count=lambda: 9,
    )


def answer(**changes: Any) -> Effect:
    """A right answer, changed."""
    return Effect(**{"outputs": (N.reshape(1, 4, 1),), **changes})


def mix(**changes: Any) -> KernelBlock:
    fields = {"sources": N[None], "destinations": (N + 4)[None], "slot": 1, "kernels": lambda: np.zeros((1, 4, 4))}
    return KernelBlock(**{**fields, **changes})


FRESH = np.arange(5, 9)
RIGHT: dict[str, Any] = {
    "pass through": {},
    "one label for all": {"outputs": (np.ones((1, 1, 1), int),)},
    "more outputs than are read": {"outputs": (N.reshape(1, 4, 1), N.reshape(1, 4, 1))},
    "ties": {"ties": ((N, FRESH),)},
    "readers": {"concat_slots": ((N, FRESH),)},
    "links": {"fixed_edges": (FixedEdges(N, FRESH, np.ones(4, np.float32)),)},
    "slices": {"slices": (Slice(1, (N.reshape(4, 1),)),)},
    "slice of fewer axes": {"slices": (Slice(1, (np.arange(1, 4),)),)},
    "pins": {"pins": (Pin(channel_ids=N, tensor="x", reason="because", advice="so"),)},
    "kernels": {"kernel_blocks": (mix(),)},
    "starts": {"starts": (FRESH,)},
    "moves": {"moves": (lambda given: given,)},
    "rewrite": {"rewrite": lambda kept: None},
    "the last known label": {"outputs": (np.full((1, 1, 1), 8),)},
}
WRONG: dict[str, tuple[Any, str]] = {
    "no tuple": ({"outputs": N.reshape(1, 4, 1)}, "tuple of 1"),
    "no output": ({"outputs": ()}, "tuple of 1"),
    "a list": ({"outputs": ([1],)}, "arrays of integers"),
    "floats": ({"outputs": (np.ones((1, 4, 1)),)}, "arrays of integers"),
    "negative": ({"outputs": (-N.reshape(1, 4, 1),)}, "between 0 and 8"),
    "never minted": ({"outputs": (np.full((1, 1, 1), 9),)}, "between 0 and 8"),
    "rank": ({"outputs": (N,)}, "do not fit"),
    "size": ({"outputs": (np.ones((1, 3, 1), int),)}, "do not fit"),
    "ties no tuple": ({"ties": 5}, "ties must be"),
    "ties no pair": ({"ties": ((N, FRESH, N),)}, "pairs"),
    "ties no tuple of two": ({"ties": ([N, FRESH],)}, "ties must be"),
    "ties unequal": ({"ties": ((N, FRESH[:2]),)}, "one shape"),
    "ties unknown left": ({"ties": ((N + 20, FRESH),)}, "between 0 and 8"),
    "ties unknown right": ({"ties": ((N, FRESH + 20),)}, "between 0 and 8"),
    "readers no pair": ({"concat_slots": ((N,),)}, "pairs"),
    "links backward": ({"fixed_edges": (FixedEdges(FRESH, N),)}, "never back"),
    "links to itself": ({"fixed_edges": (FixedEdges(N, N),)}, "never back"),
    "links unequal": ({"fixed_edges": (FixedEdges(N, FRESH[:2]),)}, "one shape"),
    "links gains": ({"fixed_edges": (FixedEdges(N, FRESH, np.ones(3, np.float32)),)}, "one gain"),
    "links no link": ({"fixed_edges": ((N, FRESH),)}, "fixed_edges must be"),
    "slices slot": ({"slices": (Slice(0, (N.reshape(4, 1),)),)}, "not constant"),
    "slices unconnected": ({"slices": (Slice(7, (N.reshape(4, 1),)),)}, "not constant"),
    "slices slot no number": ({"slices": (Slice("w", (N,)),)}, "name a slot"),  # type: ignore[arg-type]
    "slices nothing": ({"slices": (Slice(1, ()),)}, "at least one"),
    "slices size": ({"slices": (Slice(1, (np.arange(1, 3).reshape(2, 1),)),)}, "do not fit"),
    "slices labels": ({"slices": (Slice(1, (N.reshape(4, 1) + 20,)),)}, "between 0 and 8"),
    "pins labels": ({"pins": (Pin(channel_ids=N + 20, tensor="x", reason="because", advice="so"),)}, "between 0 and 8"),
    "pins reason": ({"pins": (Pin(channel_ids=N, tensor="x", reason=None, advice="so"),)}, "reason"),  # type: ignore[arg-type]
    "pins advice": ({"pins": (Pin(channel_ids=N, tensor="x", reason="because", advice=None),)}, "reason"),  # type: ignore[arg-type]
    "starts": ({"starts": (N + 20,)}, "between 0 and 8"),
    "starts no array": ({"starts": (3,)}, "starts must be"),
    "kernels sources": ({"kernel_blocks": (mix(sources=N[None] + 20),)}, "between 0 and 8"),
    "kernels targets": ({"kernel_blocks": (mix(destinations=N[None] + 20),)}, "between 0 and 8"),
    "kernels flat sources": ({"kernel_blocks": (mix(sources=N[:1]),)}, r"\[groups, inputs\]"),
    "kernels flat targets": ({"kernel_blocks": (mix(destinations=FRESH[:1]),)}, r"\[groups, inputs\]"),
    "kernels groups": ({"kernel_blocks": (mix(destinations=FRESH.reshape(2, 2)),)}, r"\[groups, inputs\]"),
    "kernels slot": ({"kernel_blocks": (mix(slot=0),)}, "constant weight"),
    "kernels no function": ({"kernel_blocks": (mix(kernels=3),)}, "constant weight"),
    "moves": ({"moves": (3,)}, "functions"),
    "moves no tuple": ({"moves": 3}, "functions"),
    "rewrite": ({"rewrite": 3}, "functions"),
}


@pytest.mark.parametrize("name", RIGHT)
def test_right_answers_have_no_fault(name: str) -> None:
    call = call_of_one()
    assert not find_fault(call, answer(**RIGHT[name]), call.channel_count())


@pytest.mark.parametrize("name", WRONG)
def test_wrong_answers_are_described(name: str) -> None:
    changes, words = WRONG[name]
    call = call_of_one()
    assert re.search(words, find_fault(call, answer(**changes), call.channel_count()))


def test_no_effect_is_a_fault() -> None:
    assert "int is not an Effect" in find_fault(call_of_one(), 3, 9)

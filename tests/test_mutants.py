"""Each wrong rule is caught: by the proof, or before it by the surgery, the checker or onnxruntime.

Every mutant replaces one rule of the table on a small model in which it matters.  The right rule passes on the same
model and keep set (or pins it), so only the wrong rule can be the cause.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import onnx
import pytest

from leanonnx.analysis.dag import ChannelDag, build_channel_dag
from leanonnx.commands.compress import pruning
from leanonnx.commands.compress.pipeline import compress_file
from leanonnx.errors import ProofFailed
from leanonnx.graph.model import load
from leanonnx.numeric.channel_ids import ChannelIds, Mask, on_axis, uniform_ids
from leanonnx.proof.proof import FAILED, compare_with_reference, random_inputs
from leanonnx.rules import (
    assembly,
    convolution,
    indexing,
    linear,
    movement,
    normalization,
    pointwise,
    reduction,
    spatial,
    windows,
)
from leanonnx.rules.call import Call, Effect, Rule, Slice
from leanonnx.rules.table import DEFAULT_RULES, Rules
from leanonnx.runtime.observation import observe
from leanonnx.selection.metrics import Budget
from leanonnx.surgery.operate import apply_patch
from leanonnx.surgery.patch import masking_patch, plan_patch
from tests.at_sizes import as_observed
from tests.helpers import Options, build, saved
from tests.test_sizes import HEADS, ROWS

Dead = Mapping[str, tuple[int, ...]]

FRAME = """
<ir_version: 8, opset_import: ["" : {opset}]>
small (float[1, 2, {size}, {size}] x) => (float[1, 3, n, m] y)
<float[{width}, 2, 3, 3] w, float[{width}] b, float[3, {read}, 1, 1] v{constants}>
{{
    c = Conv <pads = [1, 1, 1, 1]> (x, w, b)
    {body}
    y = Conv (d, v)
}}
"""
"""A convolution with output ``c``, the operator under test from ``c`` to ``d``, and a convolution that reads ``d``."""


def framed(body: str, constants: str = "", width: int = 4, read: int = 4, size: int = 4, opset: int = 17) -> str:
    """A model around the operator under test."""
    more = f", {constants}" if constants else ""
    return FRAME.format(body=body, constants=more, width=width, read=read, size=size, opset=opset)


def relabelled(effect: Effect, *channel_ids: ChannelIds) -> Effect:
    """The same answer with other channel ids on the outputs."""
    return replace(effect, outputs=channel_ids)


def rolled(effect: Effect, by: int, axis: int = 1) -> Effect:
    return relabelled(effect, *(np.roll(channel_ids, by, axis) for channel_ids in effect.outputs))


def with_attribute(call: Call, name: str, value: object) -> Call:
    return replace(call, attributes={**call.attributes, name: value})


def untied_add(call: Call) -> Effect:
    return replace(pointwise.elementwise(call), ties=())


def unsliced_join(call: Call) -> Effect:
    return replace(pointwise.elementwise(call), slices=())


def reversed_concat(call: Call) -> Effect:
    return rolled(assembly.concat(call), call.shape(0)[1])


def swapped_depth_to_space(call: Call) -> Effect:
    other = "DCR" if call.attribute("mode", "DCR") == "CRD" else "CRD"
    return movement.depth_to_space(with_attribute(call, "mode", other))


def repeated_space_to_depth(call: Call) -> Effect:
    vector = call.channel_ids(0).reshape(-1)
    return Effect((on_axis(np.repeat(vector, 4), 1, 4),))


def swapped_split(call: Call) -> Effect:
    effect = assembly.split(call)
    return relabelled(effect, *effect.outputs[::-1])


def unmoved_transpose(call: Call) -> Effect:
    return Effect((call.channel_ids(0),), moves=(lambda given: given,))


def inverse_transpose(call: Call) -> Effect:
    return movement.transpose(with_attribute(call, "perm", np.argsort(call.attribute("perm")).tolist()))


def tiled_flatten(call: Call) -> Effect:
    vector = call.channel_ids(0).reshape(-1)
    return Effect((on_axis(np.tile(vector, call.output_shape()[1] // vector.size), 1, 2),))


def unrewritten_reshape(call: Call) -> Effect:
    return replace(movement.reshape(call), rewrite=None)


def repeated_tile(call: Call) -> Effect:
    return Effect((np.repeat(call.channel_ids(0), 2, axis=1),))


def gather_off_by_one(call: Call) -> Effect:
    return relabelled(indexing.gather(call), np.take(call.channel_ids(0), (call.array(1) + 1) % call.shape(0)[1], 1))


def shifted_slice(call: Call) -> Effect:
    return relabelled(windows.slice_(call), call.channel_ids(0)[:, 1:3])


def swapped_pad(call: Call) -> Effect:
    return rolled(windows.pad(call), -1)


def untied_groups(call: Call) -> Effect:
    return replace(convolution.conv(call), ties=())


def interleaved_multiplier(call: Call) -> Effect:
    """Output channel k·C + c instead of c·m + k for a depthwise Conv with multiplier m."""
    effect = convolution.conv(call)
    if call.attribute("group", 1) == 1:
        return effect
    channel_ids = effect.outputs[0].reshape(-1, 2).T.reshape(1, -1, 1, 1)
    return relabelled(effect, channel_ids)


def swapped_conv_transpose(call: Call) -> Effect:
    """The weight read as [O, I, …] instead of [I, O, …]."""
    effect = convolution.conv_transpose(call)
    turned = tuple(factor.swapaxes(0, 1) for factor in effect.slices[0].factors)
    return replace(effect, slices=(Slice(1, turned), *effect.slices[1:]))


def unturned_gemm(call: Call) -> Effect:
    square = len(set(call.shape(1))) == 1
    return linear.gemm(with_attribute(call, "transB", 0) if square else call)


def unsliced_batch_norm(call: Call) -> Effect:
    return replace(normalization.batch_normalization(call), slices=())


def reversed_instance_norm(call: Call) -> Effect:
    effect = normalization.instance_normalization(call)
    return replace(effect, slices=tuple(Slice(s.slot, (s.factors[0][::-1],)) for s in effect.slices))


def untied_group_norm(call: Call) -> Effect:
    return replace(normalization.group_normalization(call), ties=())


def unrewritten_resize(call: Call) -> Effect:
    return replace(spatial.resize(call), rewrite=None)


def unpinned_maximum(call: Call) -> Effect:
    return Effect((uniform_ids(int(call.mint(1)[0]), 4),))


def unscaled_mean(call: Call) -> Effect:
    return replace(reduction.reduce(call), rewrite=None)


def unmasked_sum(call: Call) -> Effect:
    return replace(reduction.reduce(call), reductions=())


def passed_through(call: Call) -> Effect:
    return Effect((call.channel_ids(0),))


@dataclass(frozen=True)
class Mutant:
    """A wrong rule for one operator, a model, and the channels that are removed from its tensors."""

    rule: Rule
    op: str
    model: str
    dead: Dead
    pins: bool = False


GEMM = """
<ir_version: 8, opset_import: ["" : 17]>
dense (float[2, 5] x) => (float[2, 3] y)
<float[4, 5] w, float[4, 4] v, float[3, 4] u>
{
    c = Gemm <transB = 1> (x, w)
    d = Gemm <transB = 1> (c, v)
    y = Gemm <transB = 1> (d, u)
}
"""
FLATTEN = """
<ir_version: 8, opset_import: ["" : 17]>
flat (float[1, 2, 2, 2] x) => (float[1, 3] y)
<float[3, 2, 1, 1] w, float[12, 3] v>
{
    c = Conv (x, w)
    d = Flatten (c)
    y = Gemm (d, v)
}
"""
TWO = "float[4, 2, 3, 3] w2, float[4] b2"
SECOND = "e = Conv <pads = [1, 1, 1, 1]> (x, w2, b2)"
HALVES = "s, t = Split <axis = 1> (c)"
SHUFFLE = """r = Reshape (c, i5)
    p = Transpose <perm = [0, 2, 1, 3, 4]> (r)
    d = Reshape (p, i4)"""
SIZES = "int64[5] i5 = {0, 2, 2, 4, 4}, int64[4] i4 = {0, 4, 4, 4}"
CYCLE = """r = Reshape (c, i6)
    p = Transpose <perm = [0, 2, 3, 1, 4, 5]> (r)
    d = Reshape (p, i4)"""
CYCLE_SIZES = "int64[6] i6 = {0, 2, 2, 2, 4, 4}, int64[4] i4 = {0, 8, 4, 4}"

MUTANTS = [
    Mutant(untied_add, "Add", framed(f"{SECOND}\n d = Add (c, e)", TWO), {"c": (1,)}),
    Mutant(
        untied_add,
        "Add",
        framed("e = Conv <pads = [1, 1, 1, 1]> (x, w2)\n d = Add (c, e)", "float[2, 2, 3, 3] w2", width=2, read=2),
        {"c": (1,)},
    ),
    Mutant(unsliced_join, "Mul", framed("d = Mul (c, k)", "float[4, 1, 1] k"), {"c": (0,)}),
    Mutant(reversed_concat, "Concat", framed(f"{SECOND}\n d = Concat <axis = 1> (c, e)", TWO, read=8), {"c": (0,)}),
    Mutant(
        swapped_depth_to_space,
        "DepthToSpace",
        framed("d = DepthToSpace <blocksize = 2> (c)", width=8, read=2),
        {"d": (0,)},
    ),
    Mutant(
        swapped_depth_to_space,
        "DepthToSpace",
        framed('d = DepthToSpace <blocksize = 2, mode = "CRD"> (c)', width=8, read=2),
        {"d": (0,)},
    ),
    Mutant(
        repeated_space_to_depth,
        "SpaceToDepth",
        framed("d = SpaceToDepth <blocksize = 2> (c)", width=2, read=8),
        {"c": (0,)},
    ),
    Mutant(swapped_split, "Split", framed(f"{HALVES}\n d = Concat <axis = 1> (t, s)"), {"c": (0, 3)}),
    Mutant(swapped_split, "Split", framed(f"{HALVES}\n d = Concat <axis = 1> (t, s)"), {"c": (0, 1, 2)}),
    Mutant(unmoved_transpose, "Transpose", framed(SHUFFLE, SIZES), {"c": (1,)}),
    Mutant(inverse_transpose, "Transpose", framed(CYCLE, CYCLE_SIZES, width=8, read=8), {"c": (1,)}),
    Mutant(tiled_flatten, "Flatten", FLATTEN, {"c": (1,)}),
    Mutant(
        unrewritten_reshape,
        "Reshape",
        framed("d = Reshape (c, i)", "int64[4] i = {1, 4, 8, 2}"),
        {"c": (1, 2)},
    ),
    Mutant(repeated_tile, "Tile", framed("d = Tile (c, i)", "int64[4] i = {1, 2, 1, 1}", read=8), {"c": (1,)}),
    Mutant(
        gather_off_by_one,
        "Gather",
        framed("d = Gather <axis = 1> (c, i)", "int64[3] i = {2, 0, 3}", read=3),
        {"c": (0,)},
    ),
    Mutant(
        shifted_slice,
        "Slice",
        framed("d = Slice (c, i, j, k)", "int64[1] i = {0}, int64[1] j = {2}, int64[1] k = {1}", read=2),
        {"c": (0, 2)},
    ),
    Mutant(
        swapped_pad,
        "Pad",
        framed("d = Pad (c, i)", "int64[8] i = {0, 1, 0, 0, 0, 0, 0, 0}", read=5),
        {"c": (0,)},
    ),
    Mutant(untied_groups, "Conv", framed("d = Conv <group = 2> (c, g)", "float[4, 2, 1, 1] g"), {"c": (0,)}),
    Mutant(
        interleaved_multiplier,
        "Conv",
        framed("d = Conv <group = 4> (c, g)", "float[8, 1, 1, 1] g", read=8),
        {"c": (1,)},
    ),
    Mutant(
        swapped_conv_transpose,
        "ConvTranspose",
        framed("d = ConvTranspose (c, g)", "float[4, 4, 2, 2] g"),
        {"c": (0,), "d": (1,)},
    ),
    Mutant(unturned_gemm, "Gemm", GEMM, {"c": (0,), "d": (1,)}),
    Mutant(
        unsliced_batch_norm,
        "BatchNormalization",
        framed(
            "d = BatchNormalization <epsilon = 2.0> (c, k, l, m, k2)", "float[4] k, float[4] l, float[4] m, float[4] k2"
        ),
        {"c": (0,)},
    ),
    Mutant(
        reversed_instance_norm,
        "InstanceNormalization",
        framed("d = InstanceNormalization (c, k, l)", "float[4] k, float[4] l"),
        {"c": (0,)},
    ),
    Mutant(
        untied_group_norm,
        "GroupNormalization",
        framed("d = GroupNormalization <num_groups = 2> (c, k, l)", "float[4] k, float[4] l", opset=21),
        {"c": (0,)},
    ),
    Mutant(unrewritten_resize, "Resize", framed("d = Resize (c, , , i)", "int64[4] i = {1, 4, 8, 8}"), {"c": (0,)}),
    Mutant(unpinned_maximum, "ReduceMax", framed("d = ReduceMax <axes = [1]> (c)", read=1), {"c": (0,)}, pins=True),
    Mutant(unscaled_mean, "ReduceMean", framed("d = ReduceMean <axes = [1]> (c)", read=1), {"c": (0,)}),
    Mutant(unmasked_sum, "ReduceL2", framed("d = ReduceL2 <axes = [1]> (c)", read=1), {"c": (0,)}),
    Mutant(passed_through, "Softmax", framed("d = Softmax <axis = 1> (c)"), {"c": (0,)}, pins=True),
    Mutant(passed_through, "LRN", framed("d = LRN <size = 3> (c)"), {"c": (0,)}, pins=True),
]


def keep_set(dag: ChannelDag, dead: Dead) -> Mask:
    """Keep mask [channels] when these channels are removed together with their consumers."""
    gone = np.zeros(dag.pinned_groups.size, bool)
    for tensor, channels in dead.items():
        gone[dag.groups[dag.channel_ids[tensor].reshape(-1)[list(channels)]]] = True
    alive = ~gone[dag.groups]
    for _, (channels, readers) in dag.concat_slots:
        alive[readers] &= alive[channels]
    return alive


def verdict(text: str, rules: Rules, dead: Dead) -> str:
    """'pinned', 'equal', 'different', or which stage refuses the compact model."""
    with tempfile.TemporaryDirectory() as folder:
        model = load(saved(build(text), Path(folder) / "model.onnx"))
        dag = build_channel_dag(model, observe(model, {}), rules)
        alive = keep_set(dag, dead)
        if any(not alive[pin.channel_ids].all() for pin in dag.pins):
            return "pinned"
        stage = "surgery"
        try:
            compact = apply_patch(model, plan_patch(dag, alive))
            masked = apply_patch(model, masking_patch(dag, alive))
            stage = "checker"
            onnx.checker.check_model(compact, full_check=True)
            stage = "onnxruntime"
            proof = compare_with_reference(model, masked, compact, random_inputs(model, dag.shapes))
        except Exception:  # the checker and onnxruntime raise many unrelated types
            return stage
        return "different" if proof.status == FAILED else "equal"


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda m: m.rule.__name__)
def test_wrong_rule_is_caught_and_the_right_one_passes(mutant: Mutant) -> None:
    assert verdict(mutant.model, DEFAULT_RULES, mutant.dead) == ("pinned" if mutant.pins else "equal")
    caught = verdict(mutant.model, {**DEFAULT_RULES, ("", mutant.op): mutant.rule}, mutant.dead)
    assert caught in ("surgery", "checker", "onnxruntime", "different")


def test_most_mutants_reach_the_proof_and_are_caught_there() -> None:
    """A wrong rule whose shapes agree gets past the checker and onnxruntime: only numbers show it."""
    caught = [verdict(m.model, {**DEFAULT_RULES, ("", m.op): m.rule}, m.dead) for m in MUTANTS]
    assert caught.count("different") >= 12


@pytest.mark.parametrize("text", [HEADS, ROWS], ids=["heads", "rows"])
def test_sizes_of_the_observed_run_are_refused(text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Surgery that writes the sizes of one run where axes are free: the proof runs at others."""
    source, target = saved(build(text), tmp_path / "in.onnx"), tmp_path / "out.onnx"
    options = Options(Budget("kernels", 0.5), best_effort=True)
    result = compress_file(source, target, options)
    assert result.proof.passed
    assert result.after.kernels < result.before.kernels
    target.unlink()
    monkeypatch.setattr(pruning, "plan_patch", lambda dag, alive: as_observed(plan_patch(dag, alive)))
    with pytest.raises(ProofFailed):
        compress_file(source, target, options)
    assert not target.exists()

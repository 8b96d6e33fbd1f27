"""A proof that compared nothing does not pass: decisions, empty and constant outputs do not hide a wrong rule."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import leanonnx
from leanonnx.commands.compress.pipeline import compress_file
from leanonnx.errors import ProofFailed
from leanonnx.graph.model import load
from leanonnx.inputs.random import class_number_inputs, random_inputs
from leanonnx.proof.decisions import behind_decisions
from leanonnx.proof.proof import Proof
from leanonnx.rules.call import Call, Effect
from leanonnx.rules.convolution import conv
from leanonnx.rules.table import DEFAULT_RULES, Rules
from leanonnx.runtime.observation import observe
from leanonnx.selection.metrics import Budget
from tests.helpers import Options, build, called, saved

TRUNK = """
<ir_version: 8, opset_import: ["" : {opset}]>
telling ({kind}[N, 3, 8, 8] x) => ({outputs})
<float[8, 3, 3, 3] w1, float[8] b1, float[8, 8, 3, 3] w2, float[8] b2, float[4, 8, 3, 3] w3, float[4] b3{constants}>
{{
    {head}
    c1 = Conv <pads = [1, 1, 1, 1]> (z, w1, b1)
    r1 = Relu (c1)
    c2 = Conv <pads = [1, 1, 1, 1]> (r1, w2, b2)
    r2 = Relu (c2)
    c = Conv <pads = [1, 1, 1, 1]> (r2, w3, b3)
    {tail}
}}
"""


def trunk(
    tail: str, outputs: str, constants: str = "", kind: str = "float", head: str = "z = Identity (x)", opset: int = 17
) -> str:
    """Three convolutions, and a tail that reads the last one's output ``c`` [N, 4, 8, 8]."""
    more = f", {constants}" if constants else ""
    return TRUNK.format(tail=tail, outputs=outputs, constants=more, kind=kind, head=head, opset=opset)


def rolled(call: Call) -> Effect:
    """A wrong rule: the bias of a convolution is sliced a channel off."""
    effect = conv(call)
    slices = [replace(s, factors=(np.roll(s.factors[0], 1),)) if s.slot == 2 else s for s in effect.slices]
    return replace(effect, slices=tuple(slices))


WRONG: Rules = {**DEFAULT_RULES, ("", "Conv"): rolled}

TAILS = {
    "heat map": trunk(
        "s = Sigmoid (c) g = Greater (s, two) m = Cast <to = 1> (g) y = Mul (s, m)",
        "float[N, 4, 8, 8] y",
        "float two = {2}",
    ),
    "class map": trunk(
        "a = ArgMax <axis = 1, keepdims = 0> (c) y = Cast <to = 2> (a)",
        "uint8[N, H, W] y",
        kind="uint8",
        head="f = Cast <to = 1> (x) z = Div (f, s)",
        constants="float s = {64}",
    ),
    "hard classes": trunk("y = Hardmax <axis = 1> (c)", "float[N, 4, 8, 8] y"),
    "best places": trunk("f = Flatten (c) v, y = TopK (f, k)", "int64[N, M] y", "int64[1] k = {2}"),
    "mask": trunk("g = Greater (c, far) y = Cast <to = 2> (g)", "uint8[N, 4, 8, 8] y", "float far = {1e6}"),
    "places": trunk("g = Greater (c, far) y = NonZero (g)", "int64[4, k] y", "float far = {1e6}"),
    "chosen": trunk(
        "g = Greater (c, far) y = Where (g, c, no)", "float[N, 4, 8, 8] y", "float far = {1e6}, float no = {-1}"
    ),
    "levels": trunk("s = Sigmoid (c) t = Mul (s, tenth) y = Round (t)", "float[N, 4, 8, 8] y", "float tenth = {0.1}"),
    "quantised": trunk(
        "y = QuantizeLinear (c, step, zero)", "uint8[N, 4, 8, 8] y", "float step = {1e6}, uint8 zero = {7}"
    ),
    "both at once": trunk(
        "h = Less (c, far) n = Not (h) g = Greater (c, far) b = And (g, n) y = Cast <to = 6> (b)",
        "int32[N, 4, 8, 8] y",
        "float far = {1e6}",
    ),
    "saturated": trunk(
        "a = Add (c, far) y = Clip (a, low, high)",
        "float[N, 4, 8, 8] y",
        "float far = {1000}, float low = {0}, float high = {6}",
    ),
    "boxes": trunk(
        """p = Reshape (c, four) b = Transpose <perm = [0, 2, 1]> (p) t = ReduceMax <axes = [1]> (p) o = Sub (t, off)
        s = Sigmoid (o) k = NonMaxSuppression (b, s, most, half, half) i = Gather <axis = 1> (k, two)
        q = Squeeze (b, first) y = Gather <axis = 0> (q, i)""",
        "float[k, 4] y, int64[n, 3] k",
        """int64[3] four = {1, 4, 64}, float off = {4000}, int64[1] most = {20}, float[1] half = {0.5},
        int64 two = {2}, int64[1] first = {0}""",
    ).replace("[N, 3, 8, 8]", "[1, 3, 8, 8]"),
}


def halved(text: str, folder: Path, rules: Rules = DEFAULT_RULES, **options: Any) -> Proof | str:
    """The proof of half of a network, or why it was refused."""
    source, target = saved(build(text), folder / "in.onnx"), folder / "out.onnx"
    try:
        return compress_file(source, target, Options(Budget("kernels", 0.5), **options), rules=rules).proof
    except ProofFailed as error:
        assert not target.exists()
        return str(error)


@pytest.mark.parametrize("name", TAILS)
def test_wrong_rule_is_refused_for_every_decision_of_the_network(name: str, tmp_path: Path) -> None:
    wrong = halved(TAILS[name], tmp_path, WRONG)
    assert isinstance(wrong, str)
    assert "a rule is wrong" in wrong
    right = halved(TAILS[name], tmp_path)
    assert isinstance(right, Proof)
    assert right.passed


DEAD = trunk("y = Sigmoid (c)", "float[N, 4, 8, 8] y", "float far = {1e9}", head="f = Sub (x, far) z = Relu (f)")
"""The convolutions read zeros, unless the input is very large."""
LARGE = (np.random.default_rng(0).standard_normal((8, 3, 8, 8)) * 1e9 + 2e9).astype(np.float32)


def test_a_proof_without_information_is_vacuous_and_real_inputs_help(tmp_path: Path) -> None:
    refused = halved(DEAD, tmp_path)
    assert isinstance(refused, str)
    assert (
        "no output of the model can be compared on the inputs tried (outputs: 'y' constant; inputs: normal, unif"
        in refused
    )
    assert refused.endswith("nothing written; give real inputs with calib")
    proof = halved(DEAD, tmp_path, calib={"x": LARGE}, recover="none")
    assert isinstance(proof, Proof)
    assert proof.passed


def test_vacuous_is_a_no(tmp_path: Path) -> None:
    source = saved(build(DEAD), tmp_path / "in.onnx")
    done = called("compress", source, tmp_path / "out.onnx", "--keep", 0.5)
    assert done.returncode == 1
    assert "'y' constant" in done.stderr
    assert not (tmp_path / "out.onnx").exists()


def test_vacuous_proof_in_python(tmp_path: Path) -> None:
    source = saved(build(DEAD), tmp_path / "in.onnx")
    found = leanonnx.prove(source, source)
    assert (found.status, found.passed, dict(found.silent)) == ("vacuous", False, {"y": "constant"})
    assert "smooth" in found.kinds


def taps(tail: str, outputs: str, constants: str = "", **more: Any) -> list[str]:
    """The tensors that are compared beside the outputs."""
    with tempfile.TemporaryDirectory() as folder:
        model = load(saved(build(trunk(tail, outputs, constants, **more)), Path(folder) / "in.onnx"))
        return behind_decisions(model)


def test_nearest_floats_before_decisions() -> None:
    """Through integers, for float outputs too; not a float output itself, nor behind another decision."""
    chain = "a = ArgMax <axis = 1> (c) i = Cast <to = 6> (a) j = Cast <to = 2> (i) y = Identity (j)"
    assert taps(chain, "uint8[N, 1, 8, 8] y") == ["c"]
    leaky = "g = Greater (c, o) m = Mul (c, s) y = Where (g, c, m)"
    assert taps(leaky, "float[N, 4, 8, 8] y", "float o = {0}, float s = {0.1}") == []
    gate = "s = Sigmoid (c) g = Greater (s, half) f = Cast <to = 1> (g) y = Mul (c, f)"
    assert taps(gate, "float[N, 4, 8, 8] y", "float half = {0.5}") == ["s"]
    steps = "s = Sigmoid (c) r = Round (s) g = Greater (r, half) y = Cast <to = 2> (g)"
    assert taps(steps, "uint8[N, 4, 8, 8] y", "float half = {0.5}") == ["r"]
    quantised = "q = QuantizeLinear (c, s, o) y = DequantizeLinear (q, s, o)"
    assert taps(quantised, "float[N, 4, 8, 8] y", "float s = {0.1}, uint8 o = {7}") == ["c"]
    assert taps("y = Sigmoid (c)", "float[N, 4, 8, 8] y") == []


PIXELS = """
<ir_version: 8, opset_import: ["" : 17]>
pixels (uint8[1, 8, 8, 3] image, uint8[4] place, int64[4] word) => (float[1, 3, 8, 8] y, float[4, 2] z, float[4, 2] e)
<float[200, 2] table, float[9, 2] words>
{
    t = Transpose <perm = [0, 3, 1, 2]> (image)
    y = Cast <to = 1> (t)
    p = Cast <to = 7> (place)
    z = Gather (table, p)
    e = Gather (words, word)
}
"""


def test_pixels_have_their_whole_range_and_places_do_not(tmp_path: Path) -> None:
    model = load(saved(build(PIXELS), tmp_path / "in.onnx"))
    shapes = observe(model, {}).shapes
    for feed in random_inputs(model, shapes):
        assert feed["image"].min() < 32
        assert feed["image"].max() > 223
        assert set(feed["place"].tolist()) | set(feed["word"].tolist()) <= {0, 1}
    (more,) = class_number_inputs(model, shapes)
    assert more["word"].max() > 1

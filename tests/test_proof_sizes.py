"""The proof runs at every size at which the original was observed to run, and batches consist of single inputs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

from leanonnx.commands.compress.pipeline import compress_file
from leanonnx.commands.compress.report import compression_report
from leanonnx.graph.model import Model, load
from leanonnx.inputs.random import class_number_inputs, further_inputs, nudge_floats, random_inputs, sized_inputs
from leanonnx.proof.proof import Proof, compare_with_reference
from leanonnx.runtime.observation import observe
from leanonnx.runtime.sessions import Feed, RunFailed, run
from leanonnx.selection.metrics import Budget
from tests.helpers import CNN, Options, build, called, saved

FREE = """
<ir_version: 8, opset_import: ["" : 17]>
free (float[N, 3, H, 8] x, float[1] s) => (float[N, 3, H, 8] y)
<int64[4] shape = {{{shape}}}, int64[1] first = {{0}}>
{{
    {body}
    y = Mul (m, s)
}}
"""
SIZES = [{"x": (2, 3, 8, 8), "s": (1,)}, {"x": (3, 3, 8, 8), "s": (1,)}, {"x": (1, 3, 16, 8), "s": (1,)}]
BASE = {"x": (1, 3, 8, 8), "s": (1,)}


def free(body: str, shape: str = "0, 0, -1, 8") -> onnx.ModelProto:
    return build(FREE.format(body=body, shape=shape))


RIGHT = free("m = Mul (x, x)")


@pytest.fixture
def model(tmp_path: Path) -> Model:
    return load(saved(RIGHT, tmp_path / "in.onnx"))


def feeds(model: Model) -> list[Feed]:
    base = random_inputs(model, BASE)
    return [*base, *sized_inputs(model, base, SIZES)]


def proof(model: Model, candidate: onnx.ModelProto) -> Proof:
    return compare_with_reference(model, RIGHT, candidate, feeds(model))


def test_batches_are_made_of_single_inputs(model: Model) -> None:
    """So a batch that differs from its samples differs from the reference, where that agrees with itself."""
    first, second, third, two, three, tall = feeds(model)
    np.testing.assert_array_equal(two["x"], np.concatenate([first["x"], second["x"]]))
    np.testing.assert_array_equal(three["x"], np.concatenate([first["x"], second["x"], third["x"]]))
    np.testing.assert_array_equal(two["s"], first["s"])
    assert tall["x"].shape == (1, 3, 16, 8)


def test_all_sizes_are_compared(model: Model) -> None:
    found = proof(model, RIGHT)
    assert (found.passed, found.inputs, found.sizes) == (True, 6, 4)


def test_mixed_samples_are_found(model: Model) -> None:
    """Equal at a batch of one, wrong at two."""
    mixed = free("a = ReduceMax <axes = [0]> (x) m = Mul (x, a)")
    assert compare_with_reference(model, RIGHT, mixed, random_inputs(model, BASE)).passed
    assert proof(model, mixed).status == "failed"


def test_size_of_the_observed_run_is_found(model: Model) -> None:
    """A model that is right at the size of the first run only; the message names the failing size."""
    fixed = free("r = Reshape (x, shape) m = Mul (r, r)", shape="0, 3, 8, 8")
    assert compare_with_reference(model, RIGHT, fixed, random_inputs(model, BASE)).passed
    with pytest.raises(RunFailed, match=r"at the input sizes x=1,3,16,8, s=1, where the original runs"):
        proof(model, fixed)


def test_sizes_at_which_the_reference_fails_are_skipped(model: Model) -> None:
    fixed = free("r = Reshape (x, shape) m = Mul (r, r)", shape="0, 3, 8, 8")
    found = compare_with_reference(model, fixed, RIGHT, feeds(model))
    assert (found.passed, found.inputs, found.sizes) == (True, 5, 3)


def test_sizes_are_reported(tmp_path: Path) -> None:
    text = CNN.replace("float[1, 3, 8, 8] x", "float[N, 3, 8, 8] x").replace("float[1, 5] y", "float[N, 5] y")
    source = saved(build(text), tmp_path / "in.onnx")
    result = compress_file(source, tmp_path / "out.onnx", Options(Budget("kernels", 0.5)))
    assert compression_report(result).proof.sizes == 3
    done = called("compress", source, tmp_path / "out.onnx", "--keep", 0.5)
    assert "on 5 inputs at 3 sizes" in done.stdout
    alone = called("compress", saved(build(CNN), tmp_path / "one.onnx"), tmp_path / "out.onnx", "--keep", 0.5)
    assert "on 3 inputs\n" in alone.stdout


SCALARS = """
<ir_version: 8, opset_import: ["" : 17]>
scalars (float[1, 3, 4, 4] x, float gain, float16 half, uint8 level, int64 class) => (float[1, 2, 4, 4] y)
<float[2, 3, 1, 1] w>
{
    a = Conv (x, w)
    b = Mul (a, gain)
    c = Cast <to = 1> (half)
    d = Mul (b, c)
    e = Cast <to = 1> (level)
    f = Add (d, e)
    g = Cast <to = 1> (class)
    y = Add (f, g)
}
"""


def test_scalar_inputs_stay_arrays(tmp_path: Path) -> None:
    """onnxruntime refuses the scalars of numpy that arithmetic makes of arrays without axes."""
    model = load(saved(build(SCALARS), tmp_path / "in.onnx"))
    shapes = observe(model, {}).shapes
    feeds = [*random_inputs(model, shapes), *class_number_inputs(model, shapes)]
    feeds += [feed for _, feed in further_inputs(model, shapes)]
    feeds += [nudge_floats(feed) for feed in feeds]
    assert {type(value) for feed in feeds for value in feed.values()} == {np.ndarray}
    assert len(run(model.path, feeds)) == len(feeds)

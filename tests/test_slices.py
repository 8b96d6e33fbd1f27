"""Deviation by channel: channels that are small beside the rest of an output are measured on their own scale."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest

from leanonnx.data.samples import open_data
from leanonnx.evaluation import tally
from leanonnx.evaluation.deviation import Fidelity, compare_outputs
from leanonnx.evaluation.kinds import CLASSES, DISCRETE, IMAGE, MAP, OTHER, slice_axes
from leanonnx.evaluation.slices import FLOAT32_NOISE, PROBABILITY_FLOOR, SliceErrors, bound_errors, slices_along
from leanonnx.evaluation.tally import Deviation
from leanonnx.graph.model import load
from leanonnx.recovery import draft
from leanonnx.runtime.observation import observe
from tests.helpers import build, called, saved

COUNT = 40
PIXELS = 300.0
"""Size of a box beside scores of one."""
SCORES = [2, 3, 4]
"""The channels of scores, after two of boxes."""


def detector(factor: float) -> onnx.ModelProto:
    """Boxes of hundreds of pixels and scores in one output; the scores are multiplied by a factor."""
    return onnx.parser.parse_model(
        f"""<ir_version: 8, opset_import: ["" : 17]> g (float[N, 5, 9] x) => (float[N, 5, 9] y) {{
            k = Constant <value = float[1, 5, 1] {{ {PIXELS}, {PIXELS}, {factor}, {factor}, {factor} }}> ()
            y = Mul (x, k)
        }}"""
    )


def judge_scores(folder: Path) -> Deviation:
    """Wrong scores beside right boxes are seen."""
    found = fidelity(folder, detector(0.01), detector(-0.01)).outputs[0]
    assert found.relative_l2 < 1e-3
    assert found.worst == pytest.approx(2.0, rel=1e-4)
    return found


def fidelity(folder: Path, before: onnx.ModelProto, after: onnx.ModelProto, batch: int = 7) -> Fidelity:
    x = np.random.default_rng(0).standard_normal((COUNT, 5, 9)).astype(np.float32)
    np.savez(folder / "x.npz", x=x)
    paths = [saved(proto, folder / f"{name}.onnx") for name, proto in (("a", before), ("b", after))]
    model = load(paths[0])
    data = open_data(folder / "x.npz", model, observe(model, {}).shapes)
    return compare_outputs(model, paths[0], [paths[1]], data, batch, axes={"y": (1,)})[0]


def test_small_channels_beside_large_ones(tmp_path: Path) -> None:
    found = judge_scores(tmp_path)
    assert found.channels is not None
    assert found.channels.axis == 1 and found.channels.index in SCORES
    assert found.channels.balanced == pytest.approx(3 / 5 * 2 / math.sqrt(5), rel=1e-4)


def test_one_norm_for_all_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The mutant: an output has no slices, so one norm covers all of it."""
    monkeypatch.setattr(tally, "slice_axes", lambda *_: ())
    with pytest.raises(AssertionError):
        judge_scores(tmp_path)


def test_recovery_weighs_channels_alike(tmp_path: Path) -> None:
    """Of two candidates the one with slightly worse boxes and right scores is nearer than one with wrong scores."""
    close = detector(0.01)
    tensor = close.graph.node[0].attribute[0].t
    boxes = onnx.numpy_helper.to_array(tensor) * np.array([1.01, 1.01, 1, 1, 1], np.float32).reshape(1, 5, 1)
    tensor.CopyFrom(onnx.numpy_helper.from_array(boxes))
    right, wrong = fidelity(tmp_path, detector(0.01), close), fidelity(tmp_path, detector(0.01), detector(-0.01))
    assert right.outputs[0].relative_l2 > wrong.outputs[0].relative_l2
    assert draft._distance(right) < 0.05 < 0.5 < draft._distance(wrong)


def test_the_larger_distance_sees_small_channels_and_rare_large_numbers(tmp_path: Path) -> None:
    """Of the second candidate only the largest numbers of one channel of five are cut, as a range cuts them."""
    wrong_scores = fidelity(tmp_path, detector(0.01), detector(-0.01))
    assert (
        draft.larger_distance(wrong_scores) == draft._distance(wrong_scores) > 10 * wrong_scores.outputs[0].relative_l2
    )
    clipped = detector(0.01)
    clipped.graph.node[1].output[0] = "all"
    limits = "float[1, 5, 1] high = {400, 1e9, 1e9, 1e9, 1e9}"
    bound = onnx.parser.parse_graph(
        f"g (float[N, 5, 9] all) => (float[N, 5, 9] y) <{limits}> {{ y = Min (all, high) }}"
    )
    clipped.graph.node.extend(bound.node)
    clipped.graph.initializer.extend(bound.initializer)
    cut = fidelity(tmp_path, detector(0.01), clipped)
    whole = float(bound_errors(np.array(cut.outputs[0].relative_l2)))
    assert draft.larger_distance(cut) == whole > 2 * draft._distance(cut) > 0


def test_a_distance_that_is_infinite_stays_so() -> None:
    assert draft._distance(Fidelity(samples=1, outputs=(Deviation("y", math.inf), Deviation("z", 0.0)))) == math.inf
    assert draft._distance(Fidelity(samples=1, outputs=(Deviation("y", 0.0), Deviation("z", 1.0)))) == pytest.approx(
        0.5**0.5 / 2
    )
    assert (
        draft._distance(Fidelity(samples=1, outputs=())) == draft.larger_distance(Fidelity(samples=1, outputs=())) == 0
    )
    broken = Fidelity(samples=1, outputs=(Deviation("y", math.inf), Deviation("z", 0.0)))
    assert draft.larger_distance(broken) == math.inf


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_sums_are_those_of_plain_numpy(axis: int) -> None:
    rng = np.random.default_rng(axis)
    parts = [rng.standard_normal((3, 4, 5)) ** 2 for _ in range(4)]
    found = slices_along(axis, parts[0], parts[1]).plus(slices_along(axis, parts[2], parts[3]))
    assert found is not None
    rows = [np.moveaxis(each, axis, 0).reshape(each.shape[axis], -1).sum(1) for each in parts]
    np.testing.assert_allclose(found.error, rows[0] + rows[2])
    np.testing.assert_allclose(found.power, rows[1] + rows[3])
    assert found.each == 2 * 60 // parts[0].shape[axis]
    np.testing.assert_allclose(found.relative_errors(), np.sqrt(found.error / found.power))
    assert found.plus(slices_along(axis, np.ones((7, 7, 7)), np.ones((7, 7, 7)))) is None


def of(error: list[float], norms: list[float], each: int) -> SliceErrors:
    return SliceErrors(axis=1, error=np.array(error) ** 2, power=np.array(norms) ** 2, each=each)


@pytest.mark.parametrize(
    ("slices", "probabilities", "expected"),
    [
        (of([0.1, 0.1, 1e-9], [1, 1, 1e-12], 10_000), False, [0.1, 0.1, 1e-9 / (FLOAT32_NOISE * math.sqrt(2 / 3))]),
        (of([0.1, 0.1, 1e-3], [1, 1, 1e-3], 1000), False, [0.1, 0.1, 1]),
        (of([0.1, 0.1, 1e-3], [1, 1, 1e-3], 4), False, [0.1, 0.1, 16e-3]),
        (of([0.1, 0.1, 1e-3], [1, 1, 1e-3], 1000), True, [0.1, 0.1, 1e-3 / (PROBABILITY_FLOOR * math.sqrt(2 / 3))]),
        (of([0.1, 0.1, 1e-3], [1, 1, 0], 1000), False, [0.1, 0.1, 1e-3]),
        (of([0, 0, 0], [1, 1, 0], 1), False, [0, 0, 0]),
        (of([0, 1e-9], [0, 0], 1), False, [0, math.inf]),
    ],
    ids=["rounding", "own scale", "few numbers", "probabilities", "zero beside others", "equal", "all zero"],
)
def test_values_near_zero_are_not_their_own_scale(
    slices: SliceErrors, probabilities: bool, expected: list[float]
) -> None:
    np.testing.assert_allclose(slices.relative_errors(probabilities), expected, rtol=1e-5)


def test_few_samples_are_measured_by_the_scale_that_more_have() -> None:
    """Of two samples the second channel is small by chance; of a thousand it is known to be one."""
    few, many = of([0.1, 0.1], [1.5, 0.5], 2), of([9, 9], [1000**0.5, 1000**0.5], 1000)
    known = many.worst()
    np.testing.assert_allclose(few.relative_errors(), [0.1 / 1.5, 0.2])
    np.testing.assert_allclose(few.relative_errors(known=known), [0.1 / 1.5, 0.1 / 2**0.5])
    np.testing.assert_allclose(few.relative_errors(known=replace(known, axis=2)), [0.1 / 1.5, 0.2])


def test_bounded_errors_keep_their_order() -> None:
    found = bound_errors(np.array([0, 1e-3, 1, 50, math.inf]))
    assert found[0] == 0 and found[1] == pytest.approx(1e-3) and found[-1] == 1
    assert (np.diff(found) > 0).all()


@pytest.mark.parametrize(
    ("shape", "kind", "labelled", "axes"),
    [
        ((4, 9), (CLASSES, 1), (), (1,)),
        ((4, 8, 8, 3), (IMAGE, 3), (), (3,)),
        ((4, 7, 8, 8), (MAP, 1), (), (1,)),
        ((4, 7, 8), (OTHER, 0), (), (1, 2)),
        ((4, 7, 8), (OTHER, 0), (2,), (2,)),
        ((4, 3, 85, 8, 8), (OTHER, 0), (1, 2), (1, 2)),
        ((4, 1, 8), (OTHER, 0), (), (2,)),
        ((4,), (OTHER, 0), (), ()),
        ((), (OTHER, 0), (), ()),
        ((4, 9), (DISCRETE, 0), (1,), ()),
    ],
)
def test_axes_of_slices(
    shape: tuple[int, ...], kind: tuple[str, int], labelled: tuple[int, ...], axes: tuple[int, ...]
) -> None:
    assert slice_axes(np.zeros(shape, np.float32), kind, labelled) == axes


def test_samples_without_information_are_reported(tmp_path: Path) -> None:
    """Scores below the threshold on every sample: the deviation of 0 carries no information."""
    model = build(
        """
        <ir_version: 8, opset_import: ["" : 17]>
        net (float[N, 3, 8, 8] x) => (float[N, 2, 8, 8] y, float[N, 6, 8, 8] z)
        <float[6, 3, 3, 3] w, float[6, 6, 3, 3] v, float[2, 6, 1, 1] u>
        {
            c = Conv <pads = [1, 1, 1, 1]> (x, w)
            r = Relu (c)
            z = Conv <pads = [1, 1, 1, 1]> (r, v)
            s = Conv (r, u)
            far = Constant <value = float {1000}> ()
            t = Sub (s, far)
            y = Relu (t)
        }
        """
    )
    saved(model, tmp_path / "m.onnx")
    np.savez(tmp_path / "x.npz", x=np.random.default_rng(0).standard_normal((20, 3, 8, 8)).astype(np.float32))
    asked = ("compress", "m.onnx", "out.onnx", "--keep", 0.6, "--align", 1, "--calib", "x.npz", "--json")
    row = json.loads(called(*asked, cwd=tmp_path).stdout)
    (said,) = (text for text in row["warnings"] if "deviation says nothing" in text)
    assert "'y' is one number throughout" in said and "'z'" not in said
    outputs = row["recovery"]["deviation"]["outputs"]
    assert outputs["y"]["vacuous"] == "one number throughout" and outputs["z"]["vacuous"] is None
    assert outputs["z"]["worst_channel"]["axis"] == 1

"""Deviation of a candidate from the original: every number against plain numpy over all samples at once."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from leanonnx.data.samples import Dataset, open_data
from leanonnx.errors import DataError
from leanonnx.evaluation.deviation import Fidelity, compare_outputs
from leanonnx.evaluation.kinds import CLASSES, DISCRETE, IMAGE, IMAGE_OR_MAP, MAP, OTHER, output_kind
from leanonnx.evaluation.scores import metric_for_labels
from leanonnx.evaluation.tally import Deviation
from leanonnx.graph.formats import HALF_TYPES
from leanonnx.graph.model import Model, load
from leanonnx.runtime.observation import observe
from leanonnx.runtime.sessions import RunFailed
from tests.helpers import saved

RNG = np.random.default_rng(0)


@pytest.fixture(autouse=True)
def same_numbers_in_every_order(monkeypatch: pytest.MonkeyPatch) -> None:
    """Random numbers of a test do not depend on what ran before it."""
    monkeypatch.setitem(globals(), "RNG", np.random.default_rng(0))


COUNT = 11
HALF = np.float32(0.5)


def model_of(shape: str, nodes: str, output: str, kind: str = "float") -> onnx.ModelProto:
    """A model of one input ``x`` and a second ``e`` of the same shape, which ``nodes`` may mix in, and output ``y``."""
    head = f"{kind}[{shape}] x, {kind}[{shape}] e"
    return onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["" : 17]> g ({head}) => ({output}) {{ {nodes} }}')


def compared(
    folder: Path,
    before: onnx.ModelProto,
    after: onnx.ModelProto,
    batch: int = 1,
    replaced: Any = frozenset(),
    **arrays: Any,
) -> Fidelity:
    np.savez(folder / "data.npz", **arrays)
    paths = saved(before, folder / "a.onnx"), saved(after, folder / "b.onnx")
    model, data = opened(folder, paths[0])
    return compare_outputs(model, paths[0], [paths[1]], data, batch, replaced)[0]


def opened(folder: Path, path: Path) -> tuple[Model, Dataset]:
    model = load(path)
    return model, open_data(folder / "data.npz", model, observe(model, {}).shapes)


def added(
    folder: Path, a: np.ndarray, e: np.ndarray, batch: int = 1, post: str = "Identity", **labels: Any
) -> Fidelity:
    """The original outputs ``post(x)``, the candidate ``post(x + e)``."""
    shape = ",".join(["N", *map(str, a.shape[1:])])
    kind = {"f": "float", "i": "int64", "b": "bool"}[a.dtype.kind]
    before = model_of(shape, f"y = {post} (x)", f"{kind}[{shape}] y", kind)
    after = model_of(shape, f"z = Add (x, e) y = {post} (z)", f"{kind}[{shape}] y", kind)
    return compared(folder, before, after, batch, x=a, e=e, **labels)


def whole(deviation: Deviation) -> Deviation:
    """The deviation of the output as a whole."""
    return replace(deviation, channels=None, vacuous="")


def normal(*shape: int) -> np.ndarray:
    return RNG.standard_normal((COUNT, *shape)).astype(np.float32)


def relative(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.linalg.norm((b.astype(float) - a).ravel()) / np.linalg.norm(a.astype(float).ravel()))


@pytest.mark.parametrize("batch", [1, 4])
@pytest.mark.parametrize("tail", [(), (1, 1)])
def test_classes(batch: int, tail: tuple[int, ...], tmp_path: Path) -> None:
    a, e = normal(9, *tail), normal(9, *tail)
    found = added(tmp_path, a, e, batch)
    flat, other = a.reshape(COUNT, 9), (a + e).reshape(COUNT, 9)
    best = np.argsort(-other, axis=1)[:, :5]
    deviation = found.outputs[0]
    assert (found.samples, len(found.outputs), deviation.output, deviation.psnr) == (COUNT, 1, "y", None)
    assert deviation.relative_l2 == pytest.approx(relative(a, a + e), rel=1e-5)
    assert deviation.top1 == np.mean(flat.argmax(1) == other.argmax(1)) not in (0, 1)
    assert deviation.top5 == np.mean([c in row for c, row in zip(flat.argmax(1), best, strict=True)]) not in (0, 1)
    assert (found.metric, found.before, found.after, found.unused, found.better_direction) == (
        None,
        None,
        None,
        None,
        None,
    )


def test_five_classes_have_no_top5(tmp_path: Path) -> None:
    assert added(tmp_path, normal(5), normal(5)).outputs[0].top5 is None


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("shape", [(1, 8, 9), (3, 9, 8), (9, 8, 3), (4, 8, 8)])
def test_images(batch: int, shape: tuple[int, ...], tmp_path: Path) -> None:
    a, e = normal(*shape) + 3, HALF * normal(*shape)
    deviation = added(tmp_path, a, e, batch).outputs[0]
    peak, error = float(a.max()) - float(a.min()), np.mean(((a + e).astype(float) - a) ** 2)
    assert deviation.psnr == pytest.approx(10 * math.log10(peak**2 / error), rel=1e-5)
    assert deviation.relative_l2 == pytest.approx(relative(a, a + e), rel=1e-5)
    assert (deviation.top1, deviation.top5) == (None, None)


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize(("shape", "axis"), [((6, 8, 9), 1), ((9, 8, 6), 3), ((12, 9, 10), 1)])
def test_class_maps(batch: int, shape: tuple[int, ...], axis: int, tmp_path: Path) -> None:
    a, e = normal(*shape), HALF * normal(*shape)
    deviation = added(tmp_path, a, e, batch).outputs[0]
    assert deviation.top1 == np.mean(a.argmax(axis) == (a + e).argmax(axis))
    assert (deviation.psnr, deviation.top5) == (None, None)
    assert 0 < deviation.top1 < 1


def test_a_mask_of_ones_is_an_image(tmp_path: Path) -> None:
    ones = np.ones((COUNT, 1, 8, 8), np.float32)
    assert whole(added(tmp_path, ones, ones).outputs[0]) == Deviation("y", 1.0, psnr=-math.inf)


def test_a_choice_among_nan_is_no_choice(tmp_path: Path) -> None:
    """The candidate divides zero by zero where the original's choice is, which is right."""
    a = np.zeros((COUNT, 6), np.float32)
    a[:, 2] = 1
    before, after = (model_of("N,6", f"y = {nodes}", "float[N,6] y") for nodes in ("Identity (x)", "Div (e, e)"))
    found = compared(tmp_path, before, after, 3, x=a, e=1 - a, labels=np.full(COUNT, 2))
    assert whole(found.outputs[0]) == Deviation("y", math.inf, top1=0.0, top5=0.0, broken=COUNT)
    assert (found.before, found.after) == (1, 0)


def test_probabilities_are_no_image(tmp_path: Path) -> None:
    a, e = normal(3, 8, 8), normal(3, 8, 8)
    deviation = added(tmp_path, a, e, 2, "Softmax <axis = 1>").outputs[0]
    assert deviation.psnr is None
    assert deviation.top1 == np.mean(a.argmax(1) == (a + e).argmax(1))


@pytest.mark.parametrize(
    ("shape", "rows", "last", "kind"),
    [
        ((4, 2), 4, False, (CLASSES, 1)),
        ((4, 1, 1, 7), 4, False, (CLASSES, 3)),
        ((4, 1), 4, False, (OTHER, 0)),
        ((5, 2), 4, False, (OTHER, 0)),
        ((), 1, False, (OTHER, 0)),
        ((4, 2, 3), 4, False, (OTHER, 0)),
        ((4, 3, 7, 8), 4, False, (OTHER, 0)),
        ((4, 2, 8, 8), 4, False, (IMAGE_OR_MAP, 1)),
        ((4, 5, 8, 8), 4, False, (MAP, 1)),
        ((4, 10, 9, 8), 4, False, (MAP, 1)),
        ((4, 10, 9, 8), 4, True, (MAP, 3)),
        ((4, 10, 9, 3), 4, False, (IMAGE, 3)),
        ((4, 10, 9, 2), 4, False, (IMAGE_OR_MAP, 3)),
        ((4, 10, 9, 2), 4, True, (IMAGE_OR_MAP, 3)),
        ((4, 10, 9, 5), 4, True, (MAP, 3)),
        ((2, 1, 33, 16), 1, False, (OTHER, 0)),
    ],
)
def test_kinds_of_outputs(shape: tuple[int, ...], rows: int, last: bool, kind: tuple[str, int]) -> None:
    assert output_kind(np.zeros(shape, np.float32), rows, last) == kind
    assert output_kind(np.zeros(shape, np.int64), rows, last) == (DISCRETE, 0)


def test_complex_images_have_a_noise_ratio(tmp_path: Path) -> None:
    """Two channels beside an input of two are a complex image; beside others they may be two classes as well."""
    assert output_kind(np.zeros((4, 2, 8, 8), np.float32), 4, False, complex_input=True) == (IMAGE, 1)
    a, e = normal(2, 8, 8), 0.1 * normal(2, 8, 8)
    deviation = added(tmp_path, a, e).outputs[0]
    peak = np.ptp(a)
    assert deviation.psnr == pytest.approx(10 * np.log10(peak**2 / np.mean(np.square(e))), abs=1e-3)
    assert deviation.top1 is None
    a, e = normal(3, 8, 8), 0.1 * normal(3, 8, 8)
    nodes = ("c = Constant <value = float[2, 3, 1, 1] {1, 0, 0, 0, 1, 0}> ()", "y = Conv (s, c)")
    before, after = (
        model_of("N,3,8,8", f"s = {first} {' '.join(nodes)}", "float[N,2,8,8] y")
        for first in ("Identity (x)", "Add (x, e)")
    )
    either = compared(tmp_path, before, after, 1, x=a, e=e).outputs[0]
    assert either.psnr is not None and either.psnr > 10
    assert either.top1 == pytest.approx(np.mean(a[:, :2].argmax(1) == (a + e)[:, :2].argmax(1)))


def test_whole_numbers(tmp_path: Path) -> None:
    a, e = RNG.integers(0, 5, (COUNT, 3, 2)), RNG.integers(0, 2, (COUNT, 3, 2))
    deviation = added(tmp_path, a, e, 4).outputs[0]
    assert whole(deviation) == Deviation("y", pytest.approx(relative(a, a + e)), top1=np.mean(e == 0))


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("shape", [(6,), (3, 8, 8), (6, 8, 8), (6, 2)])
def test_non_finite_values_deviate_infinitely(bad: float, shape: tuple[int, ...], tmp_path: Path) -> None:
    """0 / 0 or 1 / 0 in one element of the candidate."""
    a, e = np.ones((COUNT, *shape), np.float32), np.ones((COUNT, *shape), np.float32)
    a[(4, *[0] * len(shape))], e[(4, *[0] * len(shape))] = (0 if np.isnan(bad) else 1), 0
    text = ",".join(["N", *map(str, shape)])
    before = model_of(text, "y = Identity (x)", f"float[{text}] y")
    after = model_of(text, "y = Div (x, e)", f"float[{text}] y")
    deviation = compared(tmp_path, before, after, 3, x=a, e=e).outputs[0]
    assert deviation.relative_l2 == math.inf
    assert deviation.psnr == (-math.inf if shape == (3, 8, 8) else None)
    if deviation.top1 is not None and np.isnan(bad):
        assert 1 - deviation.top1 == pytest.approx(shape[0] / a.size)


def test_values_infinite_in_both_are_equal(tmp_path: Path) -> None:
    a = np.zeros((COUNT, 6), np.float32)
    a[:, 2] = 1
    log = model_of("N,6", "y = Log (x)", "float[N,6] y")
    assert whole(compared(tmp_path, log, log, x=a, e=a).outputs[0]) == Deviation("y", 0.0, top1=1.0, top5=1.0)


def test_equal_models_do_not_deviate(tmp_path: Path) -> None:
    zero = np.zeros((COUNT, 3, 8, 8), np.float32)
    assert whole(added(tmp_path, normal(3, 8, 8), zero).outputs[0]) == Deviation("y", 0.0, psnr=math.inf)
    assert whole(added(tmp_path, zero, zero).outputs[0]) == Deviation("y", 0.0, psnr=math.inf)
    deviation = added(tmp_path, zero, zero + 1).outputs[0]
    assert (deviation.relative_l2, deviation.psnr) == (math.inf, -math.inf)


def test_another_shape_deviates_infinitely(tmp_path: Path) -> None:
    before = model_of("N,6", "y = Identity (x)", "float[N,M] y")
    after = model_of("N,6", "y = Concat <axis = 1> (x, e)", "float[N,M] y")
    found = compared(tmp_path, before, after, x=normal(6), e=normal(6), labels=np.zeros(COUNT, int))
    assert whole(found.outputs[0]) == Deviation("y", math.inf, top1=0.0, reshaped=True)
    assert found.after == 0 != found.before


def test_all_outputs_are_compared(tmp_path: Path) -> None:
    head = '<ir_version: 8, opset_import: ["" : 17]> g (float[N,6] x) => (float[N,6] y, int64[N] c, float[N,2,3] z)'
    before, after = (
        onnx.parser.parse_model(
            f"""{head} {{
                k = Constant <value_float = {factor}> ()
                h = Constant <value_ints = [0, 2, 3]> ()
                y = Mul (x, k)
                c = ArgMax <axis = 1, keepdims = 0> (y)
                z = Reshape (y, h)
            }}"""
        )
        for factor in (2.0, -3.0)
    )
    x = normal(6)
    found = compared(tmp_path, before, after, 4, x=x)
    assert [d.output for d in found.outputs] == ["y", "c", "z"]
    assert [d.relative_l2 for d in found.outputs[::2]] == pytest.approx([2.5, 2.5])
    assert found.outputs[1].top1 == np.mean(x.argmax(1) == (-x).argmax(1))
    assert whole(found.outputs[2]) == Deviation("z", pytest.approx(2.5))


@pytest.mark.parametrize("batch", [1, 4])
@pytest.mark.parametrize("shape", [(COUNT,), (COUNT, 1)])
def test_accuracy_of_classes(batch: int, shape: tuple[int, ...], tmp_path: Path) -> None:
    a, e, labels = normal(4), normal(4), RNG.integers(-1, 5, COUNT)
    found = added(tmp_path, a, e, batch, labels=labels.reshape(shape))
    known = (labels >= 0) & (labels < 4)
    assert 0 < known.sum() < COUNT
    assert (found.metric, found.better_direction, found.unused) == ("top-1 accuracy", "higher", None)
    assert found.before == np.mean(a.argmax(1)[known] == labels[known])
    assert found.after == np.mean((a + e).argmax(1)[known] == labels[known])


@pytest.mark.parametrize("batch", [1, 4])
@pytest.mark.parametrize(("shape", "axis"), [((5, 8, 9), 1), ((8, 9, 5), 3), ((3, 8, 9), 1)])
def test_accuracy_of_pixels(batch: int, shape: tuple[int, ...], axis: int, tmp_path: Path) -> None:
    a, e = normal(*shape), normal(*shape)
    labels = RNG.integers(0, 6, (COUNT, 8, 9)).astype(np.uint8)
    found = added(tmp_path, a, e, batch, label=labels)
    known = labels < shape[axis - 1]
    assert (found.metric, found.better_direction) == ("pixel accuracy", "higher")
    assert found.before == np.mean(a.argmax(axis)[known] == labels[known])
    assert found.after == np.mean((a + e).argmax(axis)[known] == labels[known])


def test_accuracy_of_whole_numbers(tmp_path: Path) -> None:
    a, e, labels = (RNG.integers(0, 3, (COUNT, 4, 4)) for _ in range(3))
    found = added(tmp_path, a, e, 2, labels=labels)
    assert (found.metric, found.before, found.after) == (
        "pixel accuracy",
        np.mean(a == labels),
        np.mean(a + e == labels),
    )


@pytest.mark.parametrize("batch", [1, 4])
@pytest.mark.parametrize("shape", [(3, 8, 8), (1,), (7, 2)])
def test_squared_error(batch: int, shape: tuple[int, ...], tmp_path: Path) -> None:
    a, e, labels = normal(*shape), normal(*shape), normal(*shape)
    found = added(tmp_path, a, e, batch, labels=labels.reshape(COUNT, *[n for n in shape if n > 1]))
    assert (found.metric, found.better_direction) == ("mean squared error", "lower")
    assert found.before == pytest.approx(np.mean((a - labels) ** 2), rel=1e-5)
    assert found.after == pytest.approx(np.mean((a + e - labels) ** 2), rel=1e-5)


@pytest.mark.parametrize("labels", [np.zeros((COUNT, 5)), np.zeros((COUNT, 5), int), np.full(COUNT, -1)])
def test_unused_labels_are_reported(labels: np.ndarray, tmp_path: Path) -> None:
    found = added(tmp_path, normal(4), normal(4), labels=labels)
    assert (found.metric, found.before, found.after, found.better_direction) == (None, None, None, None)
    assert found.unused == "the labels 'labels' fit no output of the model: there is no metric"


def test_the_first_output_that_fits_is_taken() -> None:
    outputs = [np.zeros((4, 7), np.float32), np.zeros((4, 2), np.float32), np.zeros((4,), np.int64)]
    measure = metric_for_labels(np.zeros(4, int), outputs, [None, 1, None])
    assert measure is not None and (measure.output, measure.axis) == (1, 1)
    measure = metric_for_labels(np.zeros((4, 2)), outputs, [None, 1, None])
    assert measure is not None and (measure.output, measure.metric) == (1, "mean squared error")


def test_half_precision_is_seen_as_single(tmp_path: Path) -> None:
    a = normal(6)
    before = model_of("N,6", "y = Relu (x)", "float16[N,6] y", "float16")
    after = model_of("N,6", "z = Add (x, e) y = Relu (z)", "float16[N,6] y", "float16")
    found = compared(tmp_path, before, after, 2, HALF_TYPES, x=a, e=a)
    assert found.outputs[0].relative_l2 == pytest.approx(1)


def test_data_that_the_model_cannot_take_are_refused(tmp_path: Path) -> None:
    reshape = "h = Constant <value = int64[2] {2, 3}> () y = Reshape (x, h)"
    model = model_of("N,6", reshape, "float[2,3] y")
    with pytest.raises(DataError, match=r"data\.npz: the model cannot run on the data \('x' \[2, 6\], 'e' \[2, 6\]\)"):
        compared(tmp_path, model, model, 2, x=normal(6), e=normal(6))


def test_a_candidate_that_cannot_run_is_a_failed_run(tmp_path: Path) -> None:
    before = model_of("N,6", "y = Identity (x)", "float[N,M] y")
    after = model_of("N,6", "h = Constant <value = int64[2] {2, 3}> () y = Reshape (x, h)", "float[N,M] y")
    with pytest.raises(RunFailed):
        compared(tmp_path, before, after, 2, x=normal(6), e=normal(6))
    after.graph.node[0].op_type = "Nonsense"
    model, data = opened(tmp_path, tmp_path / "a.onnx")
    with pytest.raises(RunFailed):
        compare_outputs(model, tmp_path / "a.onnx", [after], data)


def test_several_candidates_are_distinguished(tmp_path: Path) -> None:
    before, after = (model_of("N,6", f"y = {nodes}", "float[N,6] y") for nodes in ("Identity (x)", "Add (x, e)"))
    alone = compared(tmp_path, before, after, 3, x=normal(6), e=normal(6), labels=np.arange(COUNT) % 6)
    model, data = opened(tmp_path, tmp_path / "a.onnx")
    same, other = compare_outputs(model, model.path, [before, after], data, 3)
    assert other == alone
    assert (same.outputs[0].relative_l2, same.before) == (0, same.after) and other.after != other.before


def test_no_samples_are_refused(tmp_path: Path) -> None:
    added(tmp_path, normal(4), normal(4))
    model, data = opened(tmp_path, tmp_path / "a.onnx")
    with pytest.raises(DataError, match="no samples to compare on"):
        compare_outputs(model, model.path, [model.path], data.part(held_out=True, every=50))

"""The weights that fine-tuning trains: step sizes are, physics and numbers of the architecture are not."""

from __future__ import annotations

import io
import subprocess
from pathlib import Path
from typing import get_args

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from rich.console import Console

from leanonnx.numeric.arrays import Array
from leanonnx.numeric.transforms import (
    ADJOINT,
    COMPLEX_PART,
    FEW_VALUED,
    MIRRORED,
    ORTHOGONAL,
    SHIFTED,
    SINUSOIDAL,
    WINDOWED,
    adjoints,
    complex_parts,
    designed_kernel,
    designed_matrix,
)
from tests.helpers import COMMAND, build

torch = pytest.importorskip("torch", reason="torch is not installed: pip install torch")

from leanonnx.commands.finetune.driver import run_finetune
from leanonnx.commands.finetune.holding import (
    ASKED,
    MIXES_PIXELS,
    NO_WEIGHT,
    SEVERAL_KINDS,
    choose_weights,
    held_reasons,
)
from leanonnx.commands.finetune.options import FinetuneOptions
from leanonnx.commands.finetune.report import finetune_report
from leanonnx.commands.finetune.scalars import ARCHITECTURE, PROCESSING, is_round
from leanonnx.commands.finetune.strategies import SignalOptions, Strategy
from leanonnx.commands.finetune.tables import finetune_tables
from leanonnx.errors import ModelError, OptionError
from leanonnx.graph.model import Model, load
from leanonnx.runtime.observation import observe
from tests.tuning import saved, settings
from tests.unrolled import SIDE, dft, measured, saved_unrolled

LEARNT = ("b1", "b2", "step", "w1", "w2")


def constants(path: Path) -> dict[str, Array]:
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in onnx.load(path).graph.initializer}


def distance_from_unitary(path: Path) -> float:
    held = constants(path)
    matrix = held["real"] + 1j * held["imag"]
    return float(np.abs(matrix @ matrix.conj().T - np.eye(len(matrix))).max())


@pytest.mark.parametrize("strategy", get_args(Strategy))
def test_the_transform_stays_to_the_last_bit(tmp_path: Path, strategy: Strategy) -> None:
    split = strategy == "noise2inverse"
    base, new = (
        saved_unrolled(tmp_path / f"{width}.onnx", width, seed, with_mask=not split) for width, seed in ((8, 0), (4, 1))
    )
    out, data = tmp_path / "out.onnx", measured(tmp_path / "data.npz")
    if split:
        with np.load(data) as arrays:
            noise = np.random.default_rng(0).standard_normal((20, 3, 2, SIDE, SIDE))
            np.savez(data, y=(arrays["y"][:, None] + 0.1 * noise).astype(np.float32))
    signal = SignalOptions(operator="x0:m0") if strategy == "measurement" else SignalOptions()
    options = FinetuneOptions(strategy=strategy, signal=signal, settings=settings(epochs=20))
    result = run_finetune(new, out, base, data, options)
    assert result is not None and result.training.best_epoch
    assert result.weights.trained == LEARNT
    before, after = constants(new), constants(out)
    assert all(before[name].tobytes() == after[name].tobytes() for name in before.keys() - set(LEARNT))
    assert distance_from_unitary(out) == distance_from_unitary(new) < 1e-6
    assert all((before[name] != after[name]).any() for name in LEARNT)


def test_the_report_lists_what_is_trained_and_held(tmp_path: Path) -> None:
    new, data = saved_unrolled(tmp_path / "new.onnx"), measured(tmp_path / "data.npz")
    options = FinetuneOptions(strategy="supervised", hold=("b*",), settings=settings(epochs=1))
    result = run_finetune(new, tmp_path / "out.onnx", None, data, options)
    assert result is not None
    report = finetune_report(result)
    assert report.training.trained == ("step", "w1", "w2")
    held = {row.reason: row.names for row in report.training.held}
    assert held == {SEVERAL_KINDS: ("imag", "real"), ASKED: ("b1", "b2")}
    console = Console(width=1000, file=io.StringIO())
    with console.capture() as capture:
        console.print(finetune_tables(report, "out.onnx"))
    assert "trained: step, w1, w2\n" in capture.get()
    assert f"held: imag, real ({SEVERAL_KINDS})\n" in capture.get()


def model_of(body: str, given: dict[str, Array], path: Path) -> Model:
    """A model of ONNX text, with some of its constants given."""
    proto = build(f'<ir_version: 8, opset_import: ["" : 17]> g {body}')
    for tensor in proto.graph.initializer:
        if tensor.name in given:
            value = np.asarray(given[tensor.name], np.float32)
            assert value.shape == tuple(tensor.dims)
            tensor.CopyFrom(numpy_helper.from_array(value, tensor.name))
    return load(saved(proto, path))


def reasons(body: str, given: dict[str, Array], path: Path) -> dict[str, str]:
    model = model_of(body, given, path)
    return held_reasons(model, observe(model, {}).shapes)


def hadamard(side: int) -> Array:
    return np.array([[1.0]]) if side == 1 else np.kron([[1, 1], [1, -1]], hadamard(side // 2))


def resampling(to: int, side: int) -> Array:
    """Linear interpolation."""
    places = (np.arange(to) + 0.5) * side / to - 0.5
    return np.maximum(0, 1 - np.abs(places[:, None] - np.arange(side)))


SINES = np.outer(np.arange(16), np.arange(16) + 0.5) * np.pi / 16
GAUSSIAN = np.exp(-np.square(np.arange(-2, 3)) / 2)
HAAR = np.array([[[[a, a * b], [c, a * b * c]]] for a, b, c in ((1, 1, 1), (1, -1, 1), (1, 1, -1), (1, -1, -1))]) / 2


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (np.cos(SINES), SINUSOIDAL),
        (np.cos(SINES)[:5], SINUSOIDAL),
        (dft()[0], SINUSOIDAL),
        (dft()[1], SINUSOIDAL),
        (hadamard(8), ORTHOGONAL),
        (np.linalg.qr(np.random.default_rng(0).standard_normal((6, 6)))[0], ORTHOGONAL),
        (np.eye(12)[[1, 5, 7]], ORTHOGONAL),
        (resampling(32, 16), SHIFTED),
        (resampling(16, 32), ORTHOGONAL),
        (np.exp(-np.square(np.subtract.outer(np.arange(12), np.arange(12)))), SHIFTED),
        (np.random.default_rng(0).integers(0, 2, (12, 9)), FEW_VALUED),
        (np.concatenate([part[:8] * np.hanning(16) for part in dft()]), WINDOWED),
        (np.random.default_rng(0).standard_normal((16, 16)), ""),
        (np.random.default_rng(0).standard_normal((2, 2)), ""),
        (np.random.default_rng(0).random((64, 3)), ""),
        (np.zeros((8, 8)), ""),
    ],
)
def test_designed_matrices_are_told_from_others(value: Array, expected: str) -> None:
    for kind in (np.float32, np.float16):
        assert designed_matrix(np.asarray(value, kind)) == expected


@pytest.mark.parametrize(
    ("value", "groups", "expected"),
    [
        (np.outer([1, 2, 1], [1, 0, -1])[None, None], 1, MIRRORED),
        (np.outer(GAUSSIAN, GAUSSIAN)[None, None].repeat(3, 0), 3, MIRRORED),
        (np.array([[[[0, 0, 0], [0, -1, 1], [0, 0, 0]]]]), 1, MIRRORED),
        (HAAR, 1, ORTHOGONAL),
        (HAAR.repeat(1, 1), 2, ORTHOGONAL),
        (np.random.default_rng(0).standard_normal((1, 1, 3, 3)), 1, ""),
        (np.random.default_rng(0).standard_normal((4, 4, 1, 1)), 1, ""),
        (np.random.default_rng(0).standard_normal((8, 1, 3)), 8, ""),
    ],
)
def test_designed_kernels_are_told_from_others(value: Array, groups: int, expected: str) -> None:
    assert designed_kernel(np.asarray(value, np.float32), groups) == expected


def test_parts_and_adjoints_belong_together() -> None:
    rng = np.random.default_rng(0)
    unitary = np.linalg.qr(rng.standard_normal((6, 6)) + 1j * rng.standard_normal((6, 6)))[0]
    other = rng.standard_normal((6, 6))
    matrices = {"r": unitary.real, "i": -unitary.imag, "o": other, "t": 3 * other.T}
    assert complex_parts(matrices) == {"r", "i"}
    assert adjoints(matrices) == {"o", "t"}


def test_matrices_that_enter_places_of_several_kinds_are_held(tmp_path: Path) -> None:
    body = """(float[N, 6, 6] x) => (float[N, 6, 6] y) <float[6, 6] a, float[6, 6] b, float[6, 6] c, float[6] d> {
        l = MatMul (a, x) r = MatMul (l, a)
        t = Transpose <perm = [1, 0]> (b) p = MatMul (r, b) q = MatMul (p, t)
        s = MatMul (q, c) u = Add (s, d) v = Relu (u) w = MatMul (v, c) y = Mul (w, d) }"""
    found = reasons(body, {}, tmp_path / "m.onnx")
    assert found == {"a": SEVERAL_KINDS, "b": SEVERAL_KINDS, "c": "", "d": SEVERAL_KINDS}


def test_kernels_of_an_operator_and_its_adjoint_are_held(tmp_path: Path) -> None:
    body = """(float[N, 1, 8, 8] x) => (float[N, 1, 8, 8] y) <float[1, 1, 4, 4] k, float[1, 1, 4, 4] same, float[3] n> {
        d = Conv <strides = [2, 2], pads = [1, 1, 1, 1]> (x, k)
        y = ConvTranspose <strides = [2, 2], pads = [1, 1, 1, 1]> (d, same) }"""
    kernel = np.random.default_rng(0).standard_normal((1, 1, 4, 4))
    path = tmp_path / "m.onnx"
    assert reasons(body.replace(", float[3] n", ""), {"k": kernel, "same": kernel}, path) == dict.fromkeys(
        ("k", "same"), SEVERAL_KINDS
    )
    assert reasons(body.replace(", float[3] n", ""), {}, path) == dict.fromkeys(("k", "same"), "")


def test_complex_parts_are_held(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    unitary = np.linalg.qr(rng.standard_normal((6, 6)) + 1j * rng.standard_normal((6, 6)))[0]
    body = """(float[N, 6] x) => (float[N, 6] y) <float[6, 6] r, float[6, 6] i, float[6, 6] o, float[6, 4] a,
        float[4, 6] b> { p = MatMul (x, r) q = MatMul (x, i) s = Add (p, q) t = MatMul (s, o) u = Relu (t)
        v = MatMul (u, a) y = MatMul (v, b) }"""
    a = rng.standard_normal((6, 4))
    given = {"r": unitary.real, "i": unitary.imag, "a": a, "b": 2 * a.T}
    found = reasons(body, given, tmp_path / "m.onnx")
    assert found == {"r": COMPLEX_PART, "i": COMPLEX_PART, "o": "", "a": ADJOINT, "b": ADJOINT}


IMAGE = """(float[N, 2, 8, 8] x) => (float[N, 2, 8, 8] y)
    <float[8, 8] a, float[2, 2, 3, 3] k, float[8, 8] b, float[8] c, float[8, 8] e> {
    l = MatMul (x, a) h = Conv <pads = [1, 1, 1, 1]> (l, k) m = MatMul (h, b) n = Add (m, c) o = Relu (n)
    t = Transpose <perm = [0, 2, 3, 1]> (o) s = Reshape (t, shape) q = MatMul (s, e) z = Relu (q)
    w = Reshape (z, back) y = Transpose <perm = [0, 3, 1, 2]> (w) }"""


def test_products_that_mix_positions_are_held_unless_they_are_layers(tmp_path: Path) -> None:
    body = IMAGE.replace("> {", ", int64[3] shape, int64[4] back> {", 1)
    proto = build(f'<ir_version: 8, opset_import: ["" : 17]> g {body}')
    for tensor in proto.graph.initializer:
        shape = {"shape": [-1, 16, 8], "back": [-1, 8, 8, 2]}.get(tensor.name)
        if shape:
            tensor.CopyFrom(numpy_helper.from_array(np.array(shape), tensor.name))
    model = load(saved(proto, tmp_path / "m.onnx"))
    found = held_reasons(model, observe(model, {}).shapes)
    assert found == {"a": MIXES_PIXELS, "k": "", "b": "", "c": "", "e": ""}


SCALARS = """(float[N, 1, 8, 8] x, float[N, 1, 8, 8] z) => (float[N, 1, 8, 8] y)
    <float range, float[1] step, float half, float learnt, float root, float out, float[1,1,3,3] k, float[1,1,3,3] l> {
    p = Mul (x, range) c = Conv <pads = [1, 1, 1, 1]> (p, k) s = Mul (c, step) a = Sub (p, s)
    h = Mul (a, half) g = Div (a, root) e = Erf (g) f = Mul (h, e) v = Mul (f, learnt)
    m = Conv <pads = [1, 1, 1, 1]> (v, l) y = Mul (m, out) }"""


def test_step_sizes_are_trained_and_numbers_of_the_architecture_are_not(tmp_path: Path) -> None:
    given = {"range": 1 / 255, "step": [1.0], "half": 0.5, "learnt": 0.7134298, "root": 2**0.5, "out": 0.7134298}
    body = SCALARS.replace(", float[N, 1, 8, 8] z", "")
    found = reasons(body, {name: np.asarray(value) for name, value in given.items()}, tmp_path / "m.onnx")
    held = {"half": ARCHITECTURE, "root": ARCHITECTURE, "range": PROCESSING, "out": PROCESSING}
    assert found == {**held, "step": "", "learnt": "", "k": "", "l": ""}


def test_a_constant_of_a_pointwise_polynomial_is_no_step_size(tmp_path: Path) -> None:
    """In the GELU by tanh, a multiple of x³ is added to x."""
    body = """(float[N, 4] x) => (float[N, 4] y) <float[4, 4] w, float cube, float three, float[4, 4] v> {
        a = MatMul (x, w) p = Mul (a, a) q = Mul (p, a) s = Mul (q, cube) t = Add (a, s) u = Tanh (t)
        y = MatMul (u, v) }""".replace(", float three", "")
    found = reasons(body, {"cube": np.asarray(0.044715)}, tmp_path / "m.onnx")
    assert found == {"w": "", "v": "", "cube": ARCHITECTURE}


def test_round_numbers() -> None:
    single = [
        float(np.float32(v)) for v in (0.5, 1 / 255, 2**-0.5, 80**-0.5, 1.702, 0.044715, (2 / np.pi) ** 0.5, 1e-5)
    ]
    assert [v for v in single if not is_round(v)] == []
    drawn = np.random.default_rng(0).uniform(0.1, 3, 1000).astype(np.float32)
    assert sum(is_round(float(v)) for v in drawn) < 20


def test_means_and_deviations_of_the_inputs_are_held(tmp_path: Path) -> None:
    body = """(float[N, 3, 8, 8] x) => (float[N, 3, 8, 8] y)
        <float[3, 1, 1] mean, float[3, 1, 1] std, float[3, 3, 1, 1] k, float[3, 1, 1] bias> {
        a = Sub (x, mean) b = Div (a, std) c = Conv (b, k) y = Add (c, bias) }"""
    assert reasons(body, {}, tmp_path / "m.onnx") == {"mean": PROCESSING, "std": PROCESSING, "k": "", "bias": ""}


def chosen(tmp_path: Path, **patterns: tuple[str, ...]) -> tuple[str, ...]:
    model = load(saved_unrolled(tmp_path / "m.onnx"))
    shapes = observe(model, {}).shapes
    return choose_weights(model, shapes, **patterns).trained


def test_patterns_name_weights_and_nodes(tmp_path: Path) -> None:
    assert chosen(tmp_path) == LEARNT
    assert chosen(tmp_path, train=("real",)) == ("b1", "b2", "real", "step", "w1", "w2")
    assert chosen(tmp_path, hold=("w?",)) == ("b1", "b2", "step")
    assert chosen(tmp_path, hold=("A0",)) == ("b2", "step", "w2")
    assert chosen(tmp_path, hold=("*",), train=("w*",)) == ("w1", "w2")
    assert chosen(tmp_path, hold=("step",), train=("*",)) == ("b1", "b2", "imag", "real", "w1", "w2")


def test_patterns_that_match_nothing_are_refused(tmp_path: Path) -> None:
    for patterns, says in (
        ({"train": ("nowhere*",)}, "train='nowhere\\*'"),
        ({"hold": ("nowhere",)}, "hold='nowhere'"),
    ):
        with pytest.raises(OptionError, match=says):
            chosen(tmp_path, **patterns)
    with pytest.raises(ModelError, match="you asked for it"):
        chosen(tmp_path, hold=("*",))
    body = "(float[N, 4] x) => (float[N, 4] y) <float[4, 4] w, float two> { a = MatMul (x, w) y = Pow (a, two) }"
    model = model_of(body, {"two": np.asarray(2.0)}, tmp_path / "p.onnx")
    assert held_reasons(model, observe(model, {}).shapes) == {"w": "", "two": NO_WEIGHT}


@pytest.mark.parametrize("word", ["--train", "--hold"])
def test_exit_code_2(tmp_path: Path, word: str) -> None:
    new, data = saved_unrolled(tmp_path / "new.onnx"), measured(tmp_path / "data.npz")
    words = ["finetune", str(new), str(tmp_path / "out.onnx"), "--data", str(data), "--strategy", "supervised"]
    done = subprocess.run([*COMMAND, *words, word, "nowhere"], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert f"{word} nowhere" in done.stderr

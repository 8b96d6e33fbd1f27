"""Operator norms against the singular values of the dense circular operator."""

from itertools import product
from math import prod
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from leanonnx.analysis.dag import build_channel_dag
from leanonnx.graph.model import load
from leanonnx.numeric import norms
from leanonnx.numeric.norms import kernel_norms
from leanonnx.ranking.weighting import weighted_blocks
from leanonnx.runtime.observation import observe
from tests.graphs import saved
from tests.variants import build

Array = NDArray[np.float64]


def operator(kernel: Array, strides: tuple[int, ...], dilations: tuple[int, ...], size: tuple[int, ...]) -> Array:
    """The dense matrix [outputs, pixels] of circular correlation with one kernel, then subsampling."""
    low = tuple(n // s for n, s in zip(size, strides, strict=True))
    matrix = np.zeros((prod(low), prod(size)))
    for out in np.ndindex(*low):
        for tap in np.ndindex(*kernel.shape):
            axes = zip(out, strides, tap, dilations, size, strict=True)
            pixel = tuple((o * s + t * d) % n for o, s, t, d, n in axes)
            matrix[np.ravel_multi_index(out, low), np.ravel_multi_index(pixel, size)] += kernel[tap]
    return matrix


def largest_singular_values(kernels: Array, *geometry: tuple[int, ...]) -> Array:
    return np.array([np.linalg.svd(operator(kernel, *geometry), compute_uv=False)[0] for kernel in kernels])


@st.composite
def geometries(draw: st.DrawFn) -> tuple[Array, tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
    rank = draw(st.integers(1, 2))
    extents = draw(st.tuples(*[st.integers(1, 5)] * rank))
    strides = draw(st.tuples(*[st.integers(1, 4)] * rank))
    dilations = draw(st.tuples(*[st.integers(1, 3)] * rank))
    low = draw(st.tuples(*[st.integers(1, 4 if rank == 2 else 12)] * rank))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    return rng.normal(size=(3, *extents)), strides, dilations, tuple(s * n for s, n in zip(strides, low, strict=True))


@settings(deadline=None, max_examples=60)
@given(geometries(), st.booleans())
def test_norm_is_the_largest_singular_value(
    geometry: tuple[Array, tuple[int, ...], tuple[int, ...], tuple[int, ...]], transform: bool
) -> None:
    kernels, strides, dilations, size = geometry
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(norms, "MAX_LAGS", 0 if transform else 256)
        found = kernel_norms(kernels, strides=strides, dilations=dilations, size=size)
    np.testing.assert_allclose(found, largest_singular_values(kernels, strides, dilations, size), rtol=1e-5, atol=1e-6)


def test_three_axes() -> None:
    kernels = np.random.default_rng(1).normal(size=(2, 3, 2, 3))
    geometry = ((2, 1, 1), (1, 2, 1), (4, 5, 4))
    found = kernel_norms(kernels, strides=geometry[0], dilations=geometry[1], size=geometry[2])
    np.testing.assert_allclose(found, largest_singular_values(kernels, *geometry), rtol=1e-5)


@pytest.mark.parametrize(("strides", "dilations"), [((2, 2), (1, 1)), ((3, 2), (1, 2))])
def test_transposed_convolution_has_the_same_norm(strides: tuple[int, int], dilations: tuple[int, int]) -> None:
    kernel = np.random.default_rng(2).normal(size=(3, 3))
    matrix = operator(kernel, strides, dilations, (12, 12))
    adjoint = np.linalg.svd(matrix.T, compute_uv=False)[0]
    found = kernel_norms(kernel, strides=strides, dilations=dilations, size=(12, 12))
    assert found.shape == ()
    np.testing.assert_allclose(found, adjoint, rtol=1e-5)


@pytest.mark.parametrize("extents", [(3,), (7,), (3, 3), (1, 7), (5, 5), (7, 7), (3, 3, 3)])
@pytest.mark.parametrize(("stride", "dilation"), [(1, 1), (2, 1), (3, 1), (1, 2), (2, 2), (2, 4), (4, 2), (2, 3)])
def test_default_size_is_within_two_percent_of_a_dense_one(
    extents: tuple[int, ...], stride: int, dilation: int
) -> None:
    kernels = np.random.default_rng(3).normal(size=(40, *extents))
    rank = len(extents)
    large = {1: 3840, 2: 240, 3: 96}[rank]
    dense = kernel_norms(kernels, strides=(stride,) * rank, dilations=(dilation,) * rank, size=(large,) * rank)
    found = kernel_norms(kernels, strides=(stride,) * rank, dilations=(dilation,) * rank)
    np.testing.assert_allclose(found, dense, rtol=0.02)


def test_large_kernels_agree_with_a_dense_grid() -> None:
    kernels = np.random.default_rng(4).normal(size=(3, 21, 21))
    found = kernel_norms(kernels, strides=(2, 1))
    spectrum = np.abs(np.fft.fft2(kernels, (336, 336))) ** 2
    expected = np.sqrt((spectrum[:, :168] + spectrum[:, 168:]).max(axis=(1, 2)) / 2)
    np.testing.assert_allclose(found, expected, rtol=0.02)


def test_tiles_do_not_change_the_result(monkeypatch: pytest.MonkeyPatch) -> None:
    kernels = np.random.default_rng(5).normal(size=(7, 61, 3, 3))
    whole = kernel_norms(kernels, strides=(1, 2), size=(10, 12))
    for name, value in {
        "MAX_TILE_ELEMENTS": 1,
        "MAX_FREQUENCIES": 16,
        "KERNELS_PER_PRODUCT": 4,
        "MACS_PER_PRODUCT": 64 * 13,
    }.items():
        monkeypatch.setattr(norms, name, value)
    assert whole.shape == (7, 61)
    np.testing.assert_allclose(kernel_norms(kernels, strides=(1, 2), size=(10, 12)), whole, rtol=1e-6)


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 2**32 - 1), st.integers(1, 3), st.integers(-60, 60))
def test_invariances(seed: int, stride: int, exponent: int) -> None:
    """Scaling scales; flips, transposition and zero padding by whole strides change nothing."""
    kernels = np.random.default_rng(seed).normal(size=(4, 3, 3)).astype(np.float32)
    size, strides = (12, 12), (stride, stride)
    expected = kernel_norms(kernels, strides=strides, size=size)
    np.testing.assert_array_equal(
        kernel_norms(kernels * np.float32(2.0**exponent), strides=strides, size=size), expected * 2.0**exponent
    )
    padded = np.pad(kernels, ((0, 0), (stride, 2 * stride), (0, stride)))
    for variant in (-kernels, kernels[:, ::-1], kernels.swapaxes(1, 2), padded):
        np.testing.assert_allclose(kernel_norms(variant, strides=strides, size=size), expected, rtol=1e-5)


def test_norm_lies_between_euclidean_and_absolute_sum() -> None:
    kernels = np.random.default_rng(6).normal(size=(50, 5, 5))
    found = kernel_norms(kernels, strides=(1, 1))
    assert (found >= np.sqrt((kernels**2).sum(axis=(1, 2))) * (1 - 1e-5)).all()
    assert (found <= np.abs(kernels).sum(axis=(1, 2)) * (1 + 1e-5)).all()
    np.testing.assert_allclose(kernel_norms(np.abs(kernels), strides=(1, 1)), np.abs(kernels).sum(axis=(1, 2)), 1e-5)


@pytest.mark.parametrize("wrong", ["aliases ignored", "decimated kernel"])
def test_oracle_distinguishes_wrong_formulas(wrong: str) -> None:
    """The two formulas most easily mistaken for the strided norm miss the singular value by far more than rounding."""
    kernel = np.random.default_rng(7).normal(size=(3, 3))
    exact = largest_singular_values(kernel[None], (2, 2), (1, 1), (12, 12))[0]
    np.testing.assert_allclose(kernel_norms(kernel, strides=(2, 2), size=(12, 12)), exact, rtol=1e-5)
    used = kernel if wrong == "aliases ignored" else kernel[::2, ::2]
    assert abs(np.abs(np.fft.fft2(used, (12, 12))).max() / exact - 1) > 0.05


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_single_taps_and_scalars(dtype: type[np.floating]) -> None:
    weights = np.array([[-2.0, 0.5, 0.0]], dtype)
    for kernels, strides in ((weights, ()), (weights[..., None], (2,)), (weights[..., None, None], (1, 3))):
        found = kernel_norms(kernels, strides=strides)
        assert found.dtype == np.float32
        np.testing.assert_array_equal(found, [[2.0, 0.5, 0.0]])


def test_zero_empty_and_extreme_kernels() -> None:
    assert kernel_norms(np.zeros((2, 3, 3)), strides=(1, 1)).tolist() == [0, 0]
    assert kernel_norms(np.zeros((0, 4, 3, 3)), strides=(1, 1)).shape == (0, 4)
    for scale in (1e-30, 1e30):
        kernels = np.full((1, 3, 3), scale, np.float32)
        np.testing.assert_allclose(kernel_norms(kernels, strides=(1, 1)), [9 * scale], rtol=1e-5)


@pytest.mark.parametrize("extent", [1, 3, 21])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_weights_that_are_not_finite_spoil_their_own_norm_only(extent: int, bad: float) -> None:
    kernels = np.ones((3, extent, extent), np.float32)
    kernels[1, 0, 0] = bad
    assert np.isfinite(kernel_norms(kernels, strides=(1, 1))).tolist() == [True, False, True]


@pytest.mark.parametrize(
    "arguments",
    [
        {"strides": (1,), "dilations": (1, 1)},
        {"strides": (1, 1, 1, 1)},
        {"strides": (0, 1)},
        {"strides": (1, 1), "dilations": (1, 0)},
        {"strides": (2, 2), "size": (8, 7)},
        {"strides": (1, 1), "size": (0, 8)},
        {"strides": (1, 1), "size": (8,)},
    ],
)
def test_wrong_geometry_is_an_error(arguments: dict[str, tuple[int, ...]]) -> None:
    with pytest.raises(ValueError, match="strides"):
        kernel_norms(np.ones((2, 3, 3, 3, 3)), **arguments)  # type: ignore[arg-type]


def test_empty_spatial_axis_is_an_error() -> None:
    with pytest.raises(ValueError, match="empty spatial axis"):
        kernel_norms(np.ones((2, 3, 0)), strides=(1, 1))


def test_dilation_coprime_to_the_size_permutes_frequencies() -> None:
    kernels = np.random.default_rng(8).normal(size=(5, 3, 3))
    plain = kernel_norms(kernels, strides=(1, 1), size=(16, 16))
    for dilations in product((1, 3, 5), repeat=2):
        found = kernel_norms(kernels, strides=(1, 1), dilations=dilations, size=(16, 16))
        np.testing.assert_allclose(found, plain, rtol=1e-5)


@pytest.mark.parametrize(("stride", "dilation"), [(1, 2), (2, 1), (2, 2), (4, 2), (3, 2), (4, 6)])
def test_gains_of_a_layer_are_the_norms_of_its_operator(stride: int, dilation: int, tmp_path: Path) -> None:
    text = f"""
        <ir_version: 8, opset_import: ["" : 17]>
        plain (float[1, 2, 24, 24] x) => (float[N, O, H, W] y) <float[3, 2, 3, 3] w>
        {{ y = Conv <strides = [{stride}, {stride}], dilations = [{dilation}, {dilation}]> (x, w) }}
    """
    model = load(saved(build(text), tmp_path))
    dag = build_channel_dag(model, observe(model, {}))
    (block,) = weighted_blocks(dag)
    strides, dilations = (stride, stride), (dilation, dilation)
    wanted = kernel_norms(model.constant("w"), strides=strides, dilations=dilations, size=(240, 240))
    np.testing.assert_allclose(block.gains[0], wanted, rtol=0.02)

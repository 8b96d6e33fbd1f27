"""Products of large matrices by another function than numpy's, as on a GPU."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from leanonnx import compress
from leanonnx.errors import OptionError
from leanonnx.numeric.arrays import Array
from leanonnx.numeric.products import computed_by, matrix_product
from leanonnx.statistics.moments import measure_statistics
from leanonnx.system.gpu import check_device, product_on
from tests.calibrated import dag_of, normal_feeds
from tests.helpers import saved

NET = dag_of(
    "(float[N,3,8,8] x) => (float[N,4,8,8] y)",
    "float[16,3,3,3] a, float[16] b, float[4,16,1,1] c, float[4] d",
    "h = Conv <pads=[1,1,1,1]> (x, a, b) r = Relu (h) y = Conv (r, c, d)",
)


def negative(left: Array, right: Array) -> Array:
    """A product that can be told from numpy's."""
    return -np.matmul(left, right)


def test_a_function_replaces_numpy_inside_the_context_only() -> None:
    one = np.ones((2, 3))
    with computed_by(negative):
        assert (matrix_product(one, one.T) == -3).all()
    assert (matrix_product(one, one.T) == 3).all()


def test_statistics_are_summed_by_the_function() -> None:
    feeds = normal_feeds(NET, 20, batch=4)
    usual = measure_statistics(NET, feeds, 20).moments["r", 1].covariance
    with computed_by(lambda left, right: 4 * np.matmul(left, right)):
        scaled = measure_statistics(NET, feeds, 20).moments["r", 1].covariance
    assert np.trace(scaled) > 2 * np.trace(usual)


def test_recovery_sums_by_the_function(tmp_path: Path) -> None:
    source, calib = saved(NET.model.proto, tmp_path / "in.onnx"), tmp_path / "calib.npz"
    np.savez(calib, x=np.random.default_rng(0).normal(size=(40, 3, 8, 8)).astype(np.float32))
    asked: list[tuple[int, ...]] = []

    def told(left: Array, right: Array) -> Array:
        asked.append(left.shape)
        return np.asarray(np.matmul(left, right))

    compress(source, tmp_path / "usual.onnx", keep=0.5, method="l2", calib=calib)
    with computed_by(told):
        compress(source, tmp_path / "told.onnx", keep=0.5, method="l2", calib=calib)
    assert asked and (tmp_path / "usual.onnx").read_bytes() == (tmp_path / "told.onnx").read_bytes()


def test_a_device_without_data_is_refused(tmp_path: Path) -> None:
    source = saved(NET.model.proto, tmp_path / "in.onnx")
    with pytest.raises(OptionError, match="speeds up calibration"):
        compress(source, tmp_path / "out.onnx", keep=0.5, device="cuda")


def test_a_machine_without_a_gpu_is_told() -> None:
    torch = pytest.importorskip("torch", reason="torch is not installed")
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    with pytest.raises(OptionError, match="torch sees no GPU"):
        check_device("cuda")


def test_a_missing_torch_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "torch", None)
    with pytest.raises(OptionError, match="needs torch: pip install"):
        check_device("cuda")


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_products_of_torch_are_those_of_numpy(device: str) -> None:
    torch = pytest.importorskip("torch", reason="torch is not installed")
    if device == "cuda" and not torch.cuda.is_available():
        pytest.skip("torch sees no GPU")
    rows = np.random.default_rng(0).normal(size=(2, 40, 300)).astype(np.float32)
    product = product_on(device, min_work=0)
    for left, right in ((rows, rows.swapaxes(1, 2)), (rows[0].T, rows[0]), (rows[0].astype(np.float64), rows[1].T)):
        if left.dtype == right.dtype:
            np.testing.assert_allclose(product(left, right), left @ right, rtol=1e-5, atol=1e-4)

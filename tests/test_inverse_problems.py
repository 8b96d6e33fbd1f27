"""The benchmark of inverse problems: its instruments are what they claim to be, and its tables show its results."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from benchmarks.inverse import operators, page, problems
from benchmarks.inverse.images import SIZE, objects, phantoms, photographs

RNG_SEED = 3


def rng() -> np.random.Generator:
    return np.random.default_rng(RNG_SEED)


def test_dft_is_orthonormal_and_symmetric() -> None:
    real, imag = operators.dft()
    matrix = real + 1j * imag
    assert np.abs(matrix @ matrix.conj().T - np.eye(SIZE)).max() < 1e-6
    assert np.array_equal(real, real.T)
    assert np.array_equal(imag, imag.T)


def test_scan_measures_where_the_mask_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without noise and with a full mask, the zero-filled image is the object."""
    images = operators.with_phase(phantoms(2, 1), rng())
    y = operators.scan(images, operators.masks(2, rng()), rng())
    assert np.array_equal(y[:, :1] == 0, operators.masks(2, rng()) == 0)
    monkeypatch.setattr(operators, "SCAN_NOISE", 0)
    full = operators.scan(images, np.ones((2, 1, SIZE, SIZE), np.float32), rng())
    assert problems.psnr(operators.zero_filled(full), images) > 100


def test_camera_blurs_and_thins(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(operators, "CAMERA_NOISE", 0)
    bright = np.ones((1, SIZE, SIZE), np.float32)
    low = operators.camera(bright, rng())
    assert low.shape == (1, 1, SIZE // 2, SIZE // 2)
    assert np.allclose(low[0, 0, 2:-2, 2:-2], 1, atol=1e-6)
    assert problems.psnr(operators.enlarged(operators.camera(phantoms(2, 1), rng())), phantoms(2, 1)[:, None]) > 20


def test_splits_reconstruct_the_object_and_have_independent_noise(monkeypatch: pytest.MonkeyPatch) -> None:
    images = phantoms(3, 1)
    noisy = problems.ct(images, rng())
    assert noisy.splits is not None
    assert noisy.splits.shape == (3, operators.SPLITS, 1, SIZE, SIZE)
    assert np.array_equal(noisy.inputs["x"], noisy.splits.mean(1))
    monkeypatch.setattr(operators, "RAY_NOISE", 0)
    clean = problems.ct(images, rng())
    assert clean.splits is not None
    assert problems.psnr(clean.plain, images[:, None]) > 27
    noise = (noisy.splits - clean.splits).reshape(3, operators.SPLITS, -1)
    between = np.abs([np.corrcoef(one)[np.triu_indices(operators.SPLITS, 1)] for one in noise]).mean()
    assert between < 0.1


def test_photographs_to_score_on_are_others(tmp_path: Path) -> None:
    for k in range(10):
        Image.fromarray(np.full((140, 150), 20 * k, np.uint8)).save(tmp_path / f"{k}.png")
    train, scored = photographs(tmp_path)
    assert {round(float(image.mean()) * 255 / 20) for image in scored} == {0, 5}
    assert {round(float(image.mean()) * 255 / 20) for image in train} == {1, 2, 3, 4, 6, 7, 8, 9}
    assert objects(4, train, 0).shape == objects(4, [], 0).shape == (4, SIZE, SIZE)


def test_psnr_of_complex_images_counts_both_channels() -> None:
    zero = np.zeros((1, 2, 4, 4), np.float32)
    assert problems.psnr(zero + np.float32(0.1), zero) == pytest.approx(-10 * np.log10(0.02), abs=1e-4)


def results() -> page.Cells:
    shown = {"plain": 20.0, "original": 30.0}
    rows = [{"problem": "mri", "ratio": 1.0, "method": method, "psnr": value} for method, value in shown.items()]
    rows += [{"problem": "mri", "ratio": 0.25, "method": "recovered", "psnr": 28.126, "macs": 0.2491}]
    rows += [{"problem": "mri", "ratio": 0.25, "method": "supervised", "psnr": 29.0, "epochs": 8, "cpu": 61.4}]
    rows += [{"problem": "mri", "ratio": 0.25, "method": "measurement", "psnr": 28.4}]
    rows += [{"problem": "mri", "ratio": 0.25, "method": "school", "exit_code": 2, "message": "refused"}]
    return page.Cells({"rows": rows, "samples": {"train": 4, "calib": 3, "score": 2}})


def test_table_shows_the_cells_and_leaves_empty_what_was_not_measured() -> None:
    text = page.quality("mri", results())
    assert "Zero-filled: 20.00 dB. The original: 30.00 dB." in text
    assert (
        "2 images; 3 inputs for recovery, 4 objects for fine-tuning, 8 epochs (61 to 61 seconds of one core)." in text
    )
    assert "| multiply-adds left |  | 0.249 |  |" in text
    assert "| recovered, no training (`--calib`) |  | 28.13 |  |" in text
    assert "school" not in text


def test_expectations_compare_what_was_measured() -> None:
    gain, within = page.comparisons(results())
    assert gain == ("MRI at 0.25: recovery keeps 81% of the gain over zero-filling", 28.126, pytest.approx(28.1))
    assert within == ("MRI at 0.25: `measurement` within 0.5 dB of `supervised`", 28.4, 28.5)

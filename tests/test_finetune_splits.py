"""Fine-tuning on reconstructions of splits (Noise2Inverse): data, pairs, result, refusals."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.helpers import build, saved
from tests.inverse import DENOISER, UNROLLED, splits, with_transform

torch = pytest.importorskip("torch", reason="torch is not installed: pip install torch")

from leanonnx.commands.compress.options import CompressOptions
from leanonnx.commands.finetune.driver import FinetuneResult, run_finetune
from leanonnx.commands.finetune.noise import one_and_others
from leanonnx.commands.finetune.options import FinetuneOptions
from leanonnx.commands.finetune.steps import PruningSchedule, finetune_in_steps
from leanonnx.commands.finetune.strategies import SignalOptions
from leanonnx.errors import DataError, OptionError
from leanonnx.runtime.sessions import run
from leanonnx.selection.metrics import Budget
from tests.tuning import settings

COUNT = 60
HELD_OUT = slice(4, None, 5)


@pytest.fixture
def tomograms(tmp_path: Path) -> dict[str, Path]:
    """A denoiser of random weights, and splits."""
    np.savez(tmp_path / "splits.npz", z=splits(COUNT)[1])
    return {
        "new": saved(build(DENOISER), tmp_path / "new.onnx"),
        "data": tmp_path / "splits.npz",
        "out": tmp_path / "out.onnx",
    }


def options(epochs: int = 30, **more: Any) -> FinetuneOptions:
    signal = SignalOptions(**more)
    return FinetuneOptions(strategy="noise2inverse", signal=signal, settings=settings(epochs))


def trained(tomograms: dict[str, Path], epochs: int = 30, **more: Any) -> FinetuneResult:
    result = run_finetune(tomograms["new"], tomograms["out"], None, tomograms["data"], options(epochs, **more))
    assert result is not None
    return result


@pytest.mark.parametrize("pairing", [None, "1:X"])
def test_noise_is_removed_without_clean_images(tomograms: dict[str, Path], pairing: Any) -> None:
    truth, parts = splits(COUNT)
    result = trained(tomograms, pairing=pairing)
    assert result.training.after < result.training.before
    assert result.samples == (48, 12)
    noisy = parts.mean(1) if pairing is None else parts[:, 0]
    values = [run(tomograms[name], [{"z": noisy[HELD_OUT]}])[0][0] for name in ("new", "out")]
    before, after = (np.square(value - truth[HELD_OUT]).mean() for value in values)
    assert after < 0.5 * before
    assert after < np.square(noisy - truth)[HELD_OUT].mean()


def test_the_deviation_is_that_on_means_of_all_splits(tomograms: dict[str, Path]) -> None:
    result = trained(tomograms, 2)
    feed = {"z": splits(COUNT)[1].mean(1)[HELD_OUT]}
    new, out = (run(tomograms[name], [feed])[0][0] for name in ("new", "out"))
    error = np.sqrt(np.square(out - new).sum() / np.square(new).sum())
    assert result.after.outputs[0].relative_l2 == pytest.approx(error, rel=1e-3)


def test_each_object_is_divided_into_one_split_and_the_mean_of_the_others() -> None:
    parts = torch.randn(5, 2, 4, 1, 3, 3)
    one, others = one_and_others(parts, np.random.default_rng(0))
    assert one.shape == others.shape == (5, 2, 1, 3, 3)
    assert torch.allclose((one + 3 * others) / 4, parts.mean(2), atol=1e-6)
    places = [next(k for k in range(4) if torch.equal(parts[i, j, k], one[i, j])) for i in range(5) for j in range(2)]
    assert len(set(places)) > 1
    assert not torch.equal(one, one_and_others(parts, np.random.default_rng(1))[0])


def test_the_seed_sets_the_pairs(tomograms: dict[str, Path]) -> None:
    written = []
    for seed in (0, 0, 1):
        chosen = FinetuneOptions(strategy="noise2inverse", settings=settings(2, seed=seed))
        run_finetune(tomograms["new"], tomograms["out"], None, tomograms["data"], chosen)
        written.append(tomograms["out"].read_bytes())
    assert written[0] == written[1] != written[2]


def test_steps_compress_with_the_means(tomograms: dict[str, Path]) -> None:
    schedule = PruningSchedule(2, CompressOptions(budget=Budget("params", 0.5), align=1))
    done = finetune_in_steps(tomograms["new"], tomograms["out"], None, tomograms["data"], options(2), schedule)
    assert done is not None
    assert [step.fraction for step in done.steps] == [pytest.approx(0.5**0.5), 0.5]
    assert tomograms["out"].exists()


@pytest.mark.parametrize(
    ("arrays", "says"),
    [
        ({"z": splits(COUNT, 1)[1]}, "holds 1 split of each measurement; split the measurement into at least 2"),
        (
            {"z": splits(COUNT)[1][:, 0]},
            r"\[60, 1, 16, 16\], but .* takes \[objects, splits, 1, 16, 16\]",
        ),
        ({"z": splits(COUNT)[1][..., :8]}, r"has the shape \[60, 4, 1, 16, 8\], but"),
        ({"a": splits(COUNT)[1], "b": splits(COUNT)[1]}, r"no array of numbers \[objects, splits, ...\] for"),
        ({"z": splits(3)[1]}, "3 samples are too few"),
    ],
    ids=["one split", "no splits", "other shape", "two arrays", "few"],
)
def test_data_that_do_not_fit_are_refused(tomograms: dict[str, Path], arrays: dict[str, Any], says: str) -> None:
    np.savez(tomograms["data"], **arrays)
    with pytest.raises(DataError, match=says):
        trained(tomograms)
    assert not tomograms["out"].exists()


SMALLER = DENOISER.replace("16, 16] image", "8, 8] image").replace(
    "image = Add (z, d1)", "s1 = Add (z, d1)\n    image = AveragePool <kernel_shape = [2, 2], strides = [2, 2]> (s1)"
)


def test_networks_that_do_not_fit_are_refused(tomograms: dict[str, Path]) -> None:
    saved(with_transform(UNROLLED), tomograms["new"])
    with pytest.raises(OptionError, match="trains a network of one input, a reconstruction, but its inputs are"):
        trained(tomograms)
    saved(build(SMALLER), tomograms["new"])
    with pytest.raises(OptionError, match=r"no output has the shape \[1, 1, 16, 16\] of input 'z'"):
        trained(tomograms)
    saved(build(DENOISER), tomograms["new"])
    with pytest.raises(OptionError, match="mask goes with strategy='measurement'"):
        trained(tomograms, mask="m")

"""Training data of fine-tuning: labels, noise, mixed images, batches."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.helpers import build

torch = pytest.importorskip("torch", reason="torch is not installed: pip install torch")


from leanonnx.commands.finetune.augment import flip_and_shift, image_inputs, mix_samples
from leanonnx.commands.finetune.batching import batched_network
from leanonnx.commands.finetune.driver import run_finetune
from leanonnx.commands.finetune.loading import group_by_shape, open_loader
from leanonnx.commands.finetune.module import TorchNetwork
from leanonnx.commands.finetune.noise import mean_of_neighbours
from leanonnx.commands.finetune.options import FinetuneOptions
from leanonnx.commands.finetune.targets import common_targets
from leanonnx.commands.finetune.weights import trainable_constants
from leanonnx.graph.model import load
from leanonnx.runtime.observation import observe
from leanonnx.runtime.sessions import run
from tests.tuning import DENOISER, classifier, samples, saved, settings


@pytest.fixture
def pair(tmp_path: Path) -> dict[str, Path]:
    """A teacher, a smaller student and data."""
    return {
        "base": saved(classifier(12, 0), tmp_path / "base.onnx"),
        "new": saved(classifier(4, 1), tmp_path / "new.onnx"),
        "data": samples(tmp_path / "data.npz"),
        "out": tmp_path / "out.onnx",
    }


@pytest.mark.parametrize("out", ["Identity", "Softmax"])
def test_labels_are_learnt(pair: dict[str, Path], tmp_path: Path, out: str) -> None:
    saved(classifier(6, 2, out), pair["new"])
    x = np.random.default_rng(0).standard_normal((60, 3, 8, 8)).astype(np.float32)
    labels = np.argmax(x.mean(axis=(2, 3)), axis=1)
    np.savez(pair["data"], x=x, labels=labels)
    options = FinetuneOptions(strategy="supervised", settings=settings(epochs=40))
    result = run_finetune(pair["new"], pair["out"], None, pair["data"], options)
    assert result is not None
    assert result.training.after < result.training.before
    assert result.after.metric == "top-1 accuracy"
    assert (result.after.after or 0) > (result.after.before or 0) + 0.2


def test_labels_of_pixels_and_numbers_are_learnt(tmp_path: Path) -> None:
    new, out, data = saved(build(DENOISER), tmp_path / "new.onnx"), tmp_path / "out.onnx", tmp_path / "data.npz"
    x = np.random.default_rng(0).standard_normal((20, 1, 16, 16)).astype(np.float32)
    options = FinetuneOptions(strategy="supervised", settings=settings(epochs=10))
    np.savez(data, x=x, y=2 * x)
    result = run_finetune(new, out, None, data, options)
    assert result is not None
    assert result.training.after < 0.5 * result.training.before
    two = build(
        DENOISER.replace("[N, 1, 16, 16] y", "[N, 2, 16, 16] y").replace(
            "[1, 4, 3, 3] w2, float[1]", "[2, 4, 3, 3] w2, float[2]"
        )
    )
    np.savez(data, x=x, y=(x[:, 0] > 0).astype(np.int64))
    result = run_finetune(saved(two, new), out, None, data, options)
    assert result is not None
    assert result.training.after < 0.6 * result.training.before


def test_noise_is_removed_without_clean_images(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    clean = np.cumsum(np.cumsum(rng.standard_normal((40, 1, 16, 16)), axis=2), axis=3) / 8
    noisy = (clean + 0.5 * rng.standard_normal(clean.shape)).astype(np.float32)
    new, out, data = saved(build(DENOISER), tmp_path / "new.onnx"), tmp_path / "out.onnx", tmp_path / "data.npz"
    np.savez(data, x=noisy)
    result = run_finetune(new, out, None, data, FinetuneOptions(strategy="noise2self", settings=settings(epochs=40)))
    assert result is not None
    held = slice(4, None, 5)
    errors = [np.square(run(path, [{"x": noisy[held]}])[0][0] - clean[held]).mean() for path in (new, out)]
    assert errors[1] < 0.5 * errors[0]
    assert errors[1] < np.square(noisy[held] - clean[held]).mean()


def test_images_are_mixed_in_shares_or_rectangles() -> None:
    images = image_inputs({"x": (1, 3, 16, 16), "n": (1,)})
    assert images is not None
    value = torch.arange(6.0).reshape(6, 1, 1, 1, 1).expand(6, 1, 3, 16, 16).clone()
    kinds = set()
    for seed in range(6):
        found = mix_samples({"x": value, "n": torch.zeros(6, 1)}, images, np.random.default_rng(seed))["x"]
        whole = bool((found == found[:, :, :1, :1, :1]).all())
        kinds.add("blend" if whole else "cut")
        assert whole or set(found.unique().tolist()) <= set(range(6))
        assert ((found - value).abs().flatten(1).mean(1) <= 0.6 * 5).all()
    assert kinds == {"blend", "cut"}


def test_images_are_flipped_and_shifted_alike() -> None:
    images = image_inputs({"x": (1, 16, 16, 3), "z": (1, 16, 16, 1)})
    assert images is not None
    line = torch.arange(16.0).reshape(1, 1, 1, 16, 1).expand(8, 1, 16, 16, 3).clone()
    found = flip_and_shift({"x": line, "z": line[..., :1].clone()}, images, np.random.default_rng(0))
    assert (found["x"][..., :1] == found["z"]).all()
    rows = found["x"][:, 0, 0, 4:12, 0]
    steps = (rows[:, 1:] - rows[:, :-1])[:, 2:5]
    assert {1.0, -1.0} == set(steps.reshape(-1).tolist())


def test_neighbours_leave_the_pixel_out() -> None:
    image = torch.zeros(1, 1, 4, 4)
    image[0, 0, 1, 2] = 4.0
    found = mean_of_neighbours(image, (2, 3))
    assert found[0, 0, 1, 2] == 0
    assert found[0, 0, 0, 2] == 2  # its neighbour above is the mirror image of the one below
    assert found[0, 0, 2, 2] == found[0, 0, 1, 1] == 1


def test_ways_of_batching_agree(pair: dict[str, Path], tmp_path: Path) -> None:
    feeds = [{"x": row[None]} for row in np.load(pair["data"])["x"][:3]]
    fixed = load(pair["new"])
    assert batched_network(TorchNetwork(fixed, trainable_constants(fixed)), feeds, ("y",)).mode == "mapped"
    free = load(saved(build(DENOISER), tmp_path / "free.onnx"))
    images = [{"x": np.ones((1, 1, 16, 16), np.float32) * k} for k in range(3)]
    assert batched_network(TorchNetwork(free, trainable_constants(free)), images, ("y",)).mode == "joined"


def test_samples_of_one_batch_have_one_shape_and_none_is_lost() -> None:
    rows = [({"x": np.zeros((1, 1, size))}, None) for size in (2, 3, 2, 2, 3, 3, 2)]
    batches = list(group_by_shape(rows, 3))
    assert sorted(len(batch) for batch in batches) == [1, 3, 3]
    assert all(len({feed["x"].shape for feed, _ in batch}) == 1 for batch in batches)


def test_streamed_data_are_shuffled_and_complete(pair: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    from leanonnx.commands.finetune import loading
    from leanonnx.data.samples import open_data

    monkeypatch.setattr(loading, "MAX_BYTES_IN_MEMORY", 10000)
    monkeypatch.setattr(loading, "SHUFFLE_BUFFER_BYTES", 1000)
    model = load(pair["new"])
    loader = open_loader(open_data(pair["data"], model, observe(model, {}).shapes), 8)
    assert loader.in_memory is None
    orders = [[float(f["x"][0, 0, 0, 0]) for g in loader.epoch((0, epoch)) for f, _ in g] for epoch in (0, 0, 1)]
    assert orders[0] == orders[1] != orders[2]
    assert sorted(orders[0]) == sorted(orders[2])
    assert len(set(orders[0])) == 32


def test_logits_are_compared_if_the_outputs_are_probabilities(tmp_path: Path) -> None:
    models = [load(saved(classifier(w, 0, "Softmax"), tmp_path / f"{w}.onnx")) for w in (8, 4)]
    shapes = [observe(model, {}).shapes for model in models]
    targets = common_targets(models[0], models[1], shapes[1], shapes[0])
    assert [(t.name, t.axis) for t in targets if not t.inner] == [("g1", 1)]

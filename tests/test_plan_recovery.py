"""Plans of runs that changed weights: what is recorded, and what a replay warns of."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from leanonnx.data.samples import ImageFormat, SampleSource, open_data
from leanonnx.graph.model import load
from tests.helpers import called, saved
from tests.replays import MODEL, NETS, PLAN, inputs, made, recorded, replayed, same

ELSE = "the weights are not those of the run that made the plan, which "


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    saved(MODEL, tmp_path / "m.onnx")
    np.savez(tmp_path / "x.npz", x=inputs())
    np.savez(tmp_path / "other.npz", x=inputs(seed=1))
    return tmp_path


# what is recorded


def test_a_plan_records_the_fit_of_weights(folder: Path) -> None:
    made(folder, "--calib", "./x.npz", "--seed", 3, *PLAN)
    found = recorded(folder)
    digest = found.pop("calib_sha256")
    wanted = {"recover": "auto", "calib": "x.npz", "seed": 3, "images": None, "weights": None}
    assert found == wanted
    assert len(bytes.fromhex(digest)) == 32


def test_a_plan_records_recovery_without_data(folder: Path) -> None:
    saved(NETS["norms"], folder / "m.onnx")
    made(folder, "--recover", "auto", *PLAN)
    nothing = dict.fromkeys(("calib", "calib_sha256", "images", "weights"))
    assert recorded(folder) == {"recover": "auto", "seed": 0, **nothing}


@pytest.mark.parametrize("options", [(), ("--calib", "x.npz", "--recover", "none")])
def test_a_plan_of_a_run_that_left_weights_alone_says_so(folder: Path, options: tuple[str, ...]) -> None:
    made(folder, *options, *PLAN)
    assert recorded(folder) is None
    assert replayed(folder) == []
    assert same(folder)


def digest(source: SampleSource, model: Path, images: ImageFormat | None = None) -> str:
    return open_data(source, load(model), {"x": (1, 3, 8, 8)}, images or ImageFormat()).digest()


def test_the_digest_is_that_of_the_samples_as_they_are_fed(folder: Path) -> None:
    x, model = inputs(), folder / "m.onnx"
    (folder / "parts").mkdir()
    np.savez(folder / "parts" / "1.npz", x=x[:50])
    np.savez_compressed(folder / "parts" / "2.npz", x=x[50:].astype(np.float64))
    labelled = {"x": x, "labels": np.arange(len(x))}
    shared = {digest(source, model) for source in (folder / "x.npz", folder / "parts", {"x": x}, labelled)}
    assert len(shared) == 1
    others = [x[::-1], x[:-1], x + np.float32(1e-6)]
    assert len(shared | {digest({"x": other}, model) for other in others}) == 4


def test_the_digest_depends_on_image_decoding(folder: Path) -> None:
    (folder / "photos").mkdir()
    Image.new("RGB", (8, 8), (9, 99, 199)).save(folder / "photos" / "1.png")
    formats = [ImageFormat(), ImageFormat(scale=1), ImageFormat(order="bgr")]
    assert len({digest(folder / "photos", folder / "m.onnx", images) for images in formats}) == 3


# what a replay warns of


@pytest.mark.parametrize("seed", [(), ("--seed", 3)])
def test_a_replay_without_data_is_warned_of_and_one_with_them_is_the_same(folder: Path, seed: tuple[Any, ...]) -> None:
    made(folder, "--calib", "x.npz", *seed, *PLAN)
    again = " ".join(map(str, ("--calib", "x.npz", *seed)))
    (warning,) = replayed(folder)
    assert warning.startswith(f"{ELSE}changed them with x.npz: ")
    assert warning.endswith(f"add {again}")
    assert not same(folder)
    assert replayed(folder, *again.split()) == []
    assert same(folder)
    assert replayed(folder, "--recover", "none") == []
    assert len(replayed(folder, "--recover", "auto")) == 1


def test_people_are_warned(folder: Path) -> None:
    made(folder, "--calib", "x.npz", *PLAN)
    done = called("compress", "m.onnx", "again.onnx", "--plan", "p.json", cwd=folder)
    assert f"Warning: {ELSE}changed them with x.npz" in " ".join(done.stdout.split())


def test_a_replay_of_recovery_without_data(folder: Path) -> None:
    saved(NETS["norms"], folder / "m.onnx")
    made(folder, "--recover", "auto", *PLAN)
    (warning,) = replayed(folder)
    assert warning.startswith(f"{ELSE}changed them without data: ")
    assert warning.endswith("add --recover auto")
    assert not same(folder)
    assert replayed(folder, "--recover", "auto") == []
    assert same(folder)


def test_other_samples_and_another_seed_are_warned_of(folder: Path) -> None:
    made(folder, "--calib", "x.npz", *PLAN)
    (warning,) = replayed(folder, "--calib", "other.npz")
    assert warning.startswith(f"{ELSE}had other samples (sha256 {recorded(folder)['calib_sha256'][:12]}…, these have ")
    assert warning.endswith("); for the same weights give --calib x.npz")
    (warning,) = replayed(folder, "--calib", "x.npz", "--seed", 5)
    assert warning.startswith(f"{ELSE}had --seed 0; ")
    shutil.copy(folder / "x.npz", folder / "copy.npz")
    assert replayed(folder, "--calib", "copy.npz") == []
    assert same(folder)


def test_the_options_of_images_are_named(folder: Path) -> None:
    (folder / "my photos").mkdir()
    for index, pixels in enumerate((127 + 30 * inputs()).clip(0, 255).astype(np.uint8).transpose(0, 2, 3, 1)):
        Image.fromarray(pixels).save(folder / "my photos" / f"{index:03}.png")
    options = ("--calib", "my photos", "--mean", "4,4.1,4.2", "--scale", 30, "--layout", "nchw,bgr", "--size", "8x8")
    made(folder, *options, *PLAN)
    (warning,) = replayed(folder)
    assert warning.endswith("--calib 'my photos' --mean 4,4.1,4.2 --std 1 --scale 30 --layout nchw,bgr --size 8x8")
    assert replayed(folder, *options) == []
    assert same(folder)


def test_a_plan_that_records_no_recovery_but_asked_for_it_is_warned_of(folder: Path) -> None:
    """Plans had options alone before."""
    made(folder, "--calib", "x.npz", *PLAN)
    plan = json.loads((folder / "p.json").read_text())
    del plan["recovery"]
    (folder / "p.json").write_text(json.dumps(plan))
    (warning,) = replayed(folder)
    assert warning.endswith("add --calib x.npz")
    assert replayed(folder, "--calib", "other.npz") == []

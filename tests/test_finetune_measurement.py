"""Fine-tuning on incomplete measurements: what is hidden, operators from files and from the graph, refusals."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from tests.helpers import build, saved
from tests.inverse import DENOISER, OPERATOR, UNROLLED, cosines, measured, operator, with_transform

torch = pytest.importorskip("torch", reason="torch is not installed: pip install torch")

from leanonnx.commands.finetune.divisions import plan_division
from leanonnx.commands.finetune.driver import FinetuneResult, run_finetune
from leanonnx.commands.finetune.options import FinetuneOptions
from leanonnx.commands.finetune.strategies import SignalOptions
from leanonnx.errors import DataError, OptionError, UserError
from leanonnx.runtime.sessions import run
from tests.tuning import halved, settings

COUNT = 60
HELD_OUT = slice(4, None, 5)


@pytest.fixture
def scan(tmp_path: Path) -> dict[str, Path]:
    """An unrolled network of random weights, its operator, and measurements."""
    data = measured(COUNT)
    np.savez(tmp_path / "data.npz", y=data["y"], mask=data["mask"])
    return {
        "new": saved(with_transform(UNROLLED), tmp_path / "new.onnx"),
        "operator": operator(tmp_path / "operator.onnx"),
        "data": tmp_path / "data.npz",
        "out": tmp_path / "out.onnx",
    }


def trained(scan: dict[str, Path], epochs: int = 12, data: Path | None = None, **signal: Any) -> FinetuneResult:
    given = SignalOptions(**{"operator": str(scan["operator"]), **signal})
    options = FinetuneOptions(strategy="measurement", signal=given, settings=settings(epochs))
    result = run_finetune(scan["new"], scan["out"], None, data or scan["data"], options)
    assert result is not None
    return result


def distance(path: Path, feed: dict[str, np.ndarray], truth: np.ndarray) -> float:
    """Mean squared error of the first output on the held-out samples."""
    value = run(path, [{name: array[HELD_OUT] for name, array in feed.items()}])[0][0]
    return float(np.square(value - truth[HELD_OUT]).mean())


def test_images_are_learnt_from_parts_of_measurements(scan: dict[str, Path]) -> None:
    data = measured(COUNT)
    truth, feed = data["truth"], {name: data[name] for name in ("y", "mask")}
    result = trained(scan, 40)
    assert result.training.after < 0.6 * result.training.before
    before, after = (distance(scan[name], feed, truth) for name in ("new", "out"))
    plain = np.square(cosines().T @ data["y"] @ cosines() - truth)[HELD_OUT].mean()
    assert after < 0.4 * before
    assert after < 0.9 * plain


def test_what_no_sample_measures_is_told(scan: dict[str, Path], tmp_path: Path) -> None:
    data = measured(COUNT)
    alike = np.broadcast_to(data["mask"][:1], data["mask"].shape)
    np.savez(tmp_path / "alike.npz", y=data["y"] * alike, mask=alike)
    count = int(alike[0].sum())
    says = f"the samples together measure {count} of the 256 numbers of an output"
    assert any(note.startswith(says) for note in trained(scan, 1, tmp_path / "alike.npz").warnings)
    assert not any("together measure" in note for note in trained(scan, 1).warnings)


def test_an_operator_between_two_tensors_is_that_of_the_file(scan: dict[str, Path]) -> None:
    results = [trained(scan, 2, operator=given).training for given in (str(scan["operator"]), "x1:k1", "x1:m1")]
    losses = [np.array(result.history) for result in results]
    assert np.allclose(losses[0], losses[1], rtol=1e-3)
    assert np.allclose(losses[0], losses[2], rtol=1e-3)


def test_half_precision_is_measured_in_single(scan: dict[str, Path]) -> None:
    cast = "whole = Constant <value_float = 1.0> ()\n    one = Cast <to = 10> (whole)"
    saved(halved(with_transform(UNROLLED.replace("one = Constant <value_float = 1.0> ()", cast))), scan["new"])
    for given in (str(scan["operator"]), "x1:m1"):
        result = trained(scan, 4, operator=given)
        assert result.training.after < result.training.before


def test_the_network_gets_what_the_adjoint_makes_of_the_rest(scan: dict[str, Path], tmp_path: Path) -> None:
    data, matrix = measured(COUNT), cosines()
    zero_filled = matrix.T @ data["y"] @ matrix
    np.savez(scan["data"], z=zero_filled, mask=data["mask"], measurement=data["y"])
    saved(build(DENOISER), scan["new"])
    adjoint = operator(tmp_path / "adjoint.onnx", adjoint=True)
    with pytest.raises(OptionError, match=r"no input is the measurement 'measurement'.* with adjoint"):
        trained(scan)
    result = trained(scan, 40, adjoint=str(adjoint))
    assert result.training.after < 0.5 * result.training.before
    before, after = (distance(scan[name], {"z": zero_filled}, data["truth"]) for name in ("new", "out"))
    assert after < 0.5 * before
    with pytest.raises(OptionError, match=r"adjoint=.*differs from input 'z' of the data by"):
        trained(scan, adjoint=str(scan["operator"]))


def test_rare_locations_are_hidden_more_often_and_stand_for_those_not_measured() -> None:
    rng = np.random.default_rng(0)
    often = np.linspace(0.1, 0.9, 64).reshape(1, 1, 8, 8)
    often[..., :2, :2] = 1
    masks = (rng.random((500, 1, 8, 8)) < often).astype(np.float32)
    division = plan_division([(mask[None], mask[None].repeat(2, 1)) for mask in masks], 0.4)
    share, seen = division.share.numpy(), masks.mean(0)[None]
    assert not share[..., :2, :2].any()
    assert (division.always.numpy() == (seen == 1)).all()
    assert not division.given.numpy()[seen == 1].any()
    assert not division.hidden.numpy()[seen == 1].any()
    varied = seen < 1
    assert (seen * share)[varied].sum() / seen[varied].sum() == pytest.approx(0.4, abs=1e-3)
    order = np.argsort(seen[varied])
    assert (np.diff(share[varied][order]) <= 1e-6).all()
    assert np.allclose((seen * share * division.hidden.numpy())[varied], 1 - seen[varied], rtol=1e-3)
    assert np.allclose((seen * (1 - share) * division.given.numpy())[varied], seen[varied], rtol=1e-3)
    assert division.scale == pytest.approx(1, rel=1e-6)


def test_the_loss_is_that_of_the_whole_measurement() -> None:
    """Errors that differ where a location is given and where it is guessed: the mean weighs both as they will occur."""
    rng = np.random.default_rng(0)
    often = np.linspace(0.15, 0.85, 64).reshape(1, 1, 8, 8)
    masks = (rng.random((4000, 1, 8, 8)) < often).astype(np.float32)
    division = replace(plan_division([(mask[None], mask[None]) for mask in masks], 0.4), noise=0.0)
    of_given, of_guessed = rng.uniform(0.5, 1, often.shape), rng.uniform(1, 4, often.shape)
    kept, weights = division.draw(torch.from_numpy(masks), np.random.default_rng(0))
    errors = np.where(kept.numpy() > 0, of_given, of_guessed)
    loss = float(division.loss(torch.from_numpy(errors), weights))
    assert loss == pytest.approx((often * of_given + (1 - often) * of_guessed).mean(), rel=0.02)


def test_noise_where_given_is_no_error() -> None:
    rng = np.random.default_rng(0)
    masks = (rng.random((400, 1, 16, 16)) < np.linspace(0.3, 0.8, 256).reshape(1, 16, 16)).astype(np.float32)
    signal = np.zeros((16, 16))
    signal[:8] = 10 * rng.standard_normal((8, 16))
    noise = 0.3 * rng.standard_normal(masks.shape)
    division = plan_division(
        [(mask[None], (mask * (signal + n))[None]) for mask, n in zip(masks, noise, strict=True)], 0.4
    )
    assert division.noise == pytest.approx(0.09, rel=0.2)
    _, weights = division.draw(torch.from_numpy(masks), np.random.default_rng(0))
    given = (weights.noisy > 0).float()
    losses = [float(division.loss(given * size * division.noise, weights)) for size in (0.0, 0.9, 1.5, 2.0)]
    assert losses[:2] == [0, 0]
    assert losses[3] == pytest.approx(2 * losses[2], rel=1e-4)


def test_the_strongest_of_equal_locations_stay() -> None:
    rng = np.random.default_rng(0)
    mask = (rng.random((1, 1, 32, 32)) < 0.5).astype(np.float32)
    mask[..., 0, 0] = 1
    measured = rng.standard_normal((20, 1, 1, 32, 32)) * mask
    measured[..., 0, 0] = 1000
    division = plan_division([(mask, one) for one in measured], 0.3)
    assert division.share[0, 0, 0, 0] == 0
    assert division.always[0, 0, 0, 0] == 1
    kept, weights = division.draw(torch.from_numpy(mask)[None].repeat(50, 1, 1, 1, 1), np.random.default_rng(0))
    assert float(kept.sum()) / (50 * mask.sum()) == pytest.approx(0.7, abs=0.02)
    assert (kept[:, 0, 0, 0, 0] == 1).all()
    assert torch.equal(weights.whole > 0, (torch.from_numpy(mask) > kept) | (kept * division.always > 0))
    assert not weights.noisy.any()
    other = division.draw(torch.from_numpy(mask)[None], np.random.default_rng(1))[0]
    again = division.draw(torch.from_numpy(mask)[None], np.random.default_rng(1))[0]
    assert torch.equal(other, again)
    assert not torch.equal(other[0], kept[0])


def test_masks_of_several_shapes_are_divided_evenly() -> None:
    samples = [(np.ones((1, 1, size, size), bool), np.full((1, 2, size, size), 3.0)) for size in (4, 6, 4)]
    division = plan_division(samples, 0.25)
    assert (float(division.share), float(division.hidden), float(division.given)) == (0.25, 1.0, 0.0)
    assert division.scale == pytest.approx(9)
    kept, weights = division.draw(torch.ones(2, 1, 1, 64, 64, dtype=torch.bool), np.random.default_rng(0))
    assert kept.dtype == torch.bool
    assert torch.equal(weights.whole, (~kept).float())
    assert float(weights.whole.mean()) == pytest.approx(0.25, abs=0.02)


def test_what_is_hidden_reaches_neither_input_nor_adjoint(scan: dict[str, Path], monkeypatch: Any) -> None:
    """The feed of the network depends on the kept part of the measurement alone."""
    from leanonnx.commands.finetune import driver
    from leanonnx.commands.finetune.objectives import Objective

    caught: list[Objective] = []
    train = driver.train

    def spied(student: Any, objective: Objective, *rest: Any) -> Any:
        caught.append(objective)
        return train(student, objective, *rest)

    monkeypatch.setattr(driver, "train", spied)
    trained(scan, 1)
    data = measured(COUNT)
    batch = {name: torch.from_numpy(data[name][:8, None]) for name in ("y", "mask")}
    fed, (_, weights) = caught[0].prepare(batch, None, np.random.default_rng(0), True)
    hidden = batch["mask"] - fed["mask"]
    assert hidden.sum() > 0.2 * batch["mask"].sum()
    assert ((hidden == 0) | (weights.whole > 0)).all()
    assert not fed["y"][fed["mask"] == 0].any()
    changed = {**batch, "y": torch.where(hidden > 0, batch["y"] + 5, batch["y"])}
    again, _ = caught[0].prepare(changed, None, np.random.default_rng(0), True)
    assert all(torch.equal(fed[name], again[name]) for name in fed)


def altered(scan: dict[str, Path], **arrays: Any) -> None:
    data = {name: value for name, value in measured(COUNT).items() if name != "truth"} | arrays
    np.savez(scan["data"], **{name: value for name, value in data.items() if value is not None})


@pytest.mark.parametrize(
    ("arrays", "says"),
    [
        ({"mask": np.full((COUNT, 1, 16, 16), 0.5, np.float32)}, "the mask 'mask' holds 0.5; give 1 where"),
        ({"mask": np.zeros((COUNT, 1, 16, 16), np.float32)}, "has 0 locations, too few to divide"),
    ],
)
def test_measurements_that_do_not_fit_are_refused(scan: dict[str, Path], arrays: dict[str, Any], says: str) -> None:
    altered(scan, **arrays)
    with pytest.raises(DataError, match=says):
        trained(scan)
    assert not scan["out"].exists()


ROUNDED = OPERATOR.replace("spectrum = MatMul (half, RIGHT)", "s = MatMul (half, RIGHT)\n    spectrum = Round (s)")
HALVED = OPERATOR.replace("float[N, 1, 16, 16] spectrum", "float[N, 1, 16, 8] spectrum").replace(
    "float[16, 16] RIGHT", "float[16, 8] RIGHT"
)
WIDER = OPERATOR.replace("float[N, 1, 16, 16] x", "float[N, 2, 16, 16] x").replace(
    "float[N, 1, 16, 16] spectrum", "float[N, 2, 16, 16] spectrum"
)
TWO_INPUTS = OPERATOR.replace("16] x)", "16] x, float[N, 1, 16, 16] coils)").replace("half, RIGHT", "coils, RIGHT")
TWO_OUTPUTS = OPERATOR.replace("16] spectrum)", "16] spectrum, float[N, 1, 16, 16] half)")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (ROUNDED, "is not differentiable"),
        (HALVED, r"makes \[1, 1, 16, 8\] of output 'image', but the measurement 'y' is \[1, 1, 16, 16\]"),
        (WIDER, r"takes \[\?, 2, 16, 16\], but the network's outputs are 'image' \[1, 1, 16, 16\]"),
        (TWO_INPUTS, "its inputs are 'x', 'coils'; give an operator of one input"),
        (TWO_OUTPUTS, "has 2 outputs"),
    ],
    ids=["rounded", "halved", "wider", "two inputs", "two outputs"],
)
def test_operators_that_do_not_fit_are_refused(scan: dict[str, Path], text: str, says: str) -> None:
    saved(build(text.replace("LEFT", "left").replace("RIGHT", "right")), scan["operator"])
    with pytest.raises(OptionError, match=says):
        trained(scan)
    assert not scan["out"].exists()


@pytest.mark.parametrize(
    ("signal", "says"),
    [
        ({"operator": None}, r"give the operator from image to measurement with operator='FILE.onnx'"),
        ({"operator": "absent.onnx"}, "absent.onnx: no such file"),
        ({"operator": "x1:nowhere"}, "neither a file nor two tensors"),
        ({"operator": "k1:x1"}, "no path leads from 'k1' to 'x1'"),
        ({"operator": "x1:e1"}, "takes 'y' besides 'x1'"),
        ({"mask": "m"}, r"named 'm'; name the one that is 1 where .* with mask='NAME' \(there are mask, y\)"),
        ({"measurement": "k"}, r"named 'k'; name the one that is measured with measurement='NAME'"),
        ({"measurement": "mask"}, "is the measurement as well"),
        ({"loss_share": 1.0}, "loss_share=1: expected a number above 0 and below 1"),
        ({"pairing": "X:1"}, "pairing goes with strategy='noise2inverse'"),
        ({"adjoint": "absent.onnx", "measurement": "y"}, "no such file"),
        ({"adjoint": "y:x0", "measurement": "y"}, "which is the shape of no input to compute"),
    ],
    ids=str,
)
def test_options_that_do_not_fit_are_refused(scan: dict[str, Path], signal: dict[str, Any], says: str) -> None:
    with pytest.raises(UserError, match=says):
        trained(scan, **signal)
    assert not scan["out"].exists()


def test_a_mask_has_the_axes_of_the_measurement(scan: dict[str, Path]) -> None:
    saved(
        build(DENOISER.replace("(float[N, 1, 16, 16] z)", "(float[N, 1, 16, 16] y)").replace("(z", "(y")), scan["new"]
    )
    altered(scan, mask=np.ones((COUNT, 16, 16), np.float32))
    with pytest.raises(DataError, match=r"has the shape \[1, 16, 16\], the measurement 'y' \[1, 1, 16, 16\]"):
        trained(scan)


def test_rows_of_a_mask_are_hidden_as_a_whole(scan: dict[str, Path]) -> None:
    """A mask of length 1 along an axis says of whole lines that they were measured."""
    proto = onnx.load(scan["new"])
    proto.graph.input[1].type.tensor_type.shape.dim[3].dim_value = 1
    saved(proto, scan["new"])
    mask = (np.random.default_rng(3).random((COUNT, 1, 16, 1)) < 0.7).astype(np.float32)
    mask[:, :, :2] = 1
    altered(scan, mask=mask, y=mask * (cosines() @ measured(COUNT)["truth"] @ cosines().T))
    result = trained(scan, 8)
    assert result.training.after < result.training.before
    assert result.strategy == "measurement"


def test_options_of_measurement_go_with_it_alone(scan: dict[str, Path]) -> None:
    options = FinetuneOptions(strategy="supervised", signal=SignalOptions(operator="x"), settings=settings(1))
    with pytest.raises(OptionError, match="operator goes with strategy='measurement'"):
        run_finetune(scan["new"], scan["out"], None, scan["data"], options)


def test_an_operator_is_neither_overwritten_nor_exchanged(scan: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="would overwrite"):
        trained({**scan, "out": scan["operator"]})
    kept = settings(1, checkpoint=tmp_path / "state.pt")
    options = FinetuneOptions(
        strategy="measurement", signal=SignalOptions(operator=str(scan["operator"])), settings=kept
    )
    run_finetune(scan["new"], scan["out"], None, scan["data"], options)
    scan["operator"].write_bytes(saved(with_transform(UNROLLED, 1), tmp_path / "other.onnx").read_bytes())
    resumed = FinetuneOptions(
        strategy="measurement",
        signal=options.signal,
        settings=settings(2, checkpoint=kept.checkpoint, resume=True),
    )
    with pytest.raises(UserError):
        run_finetune(scan["new"], scan["out"], None, scan["data"], resumed)

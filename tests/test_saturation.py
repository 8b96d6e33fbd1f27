"""Integers whose sums saturate on a processor: told with the number and the remedy, on any processor."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import leanonnx
from leanonnx.commands.compress import quantising
from leanonnx.graph.model import load
from leanonnx.quantization import saturation
from leanonnx.quantization.saturation import fused_difference, saturation_warnings
from leanonnx.runtime.sessions import RunFailed, run
from tests.helpers import CALIBRATION, CNN, build, called, called_json, saved
from tests.test_exact_integers import integer_sums

EXCESS = 3.5
"""Error of fused kernels in units of that of the format, as pretended."""
GROWTH = 1.98
"""Factor by which fused kernels are pretended to be wrong."""
ADVICE = ("write weights of 7 bits (--int8 with --target cpu-avx2)", "a processor with VNNI")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A float network, the same in integers, and inputs."""
    place = tmp_path_factory.mktemp("integers")
    saved(build(CNN), place / "m.onnx")
    np.savez(place / "x.npz", x=CALIBRATION)
    leanonnx.compress(place / "m.onnx", place / "i.onnx", int8=True, calib={"x": CALIBRATION}, measure=False)
    return place


@pytest.fixture
def saturating(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let fused kernels compute something else."""

    def wrong(model: Any, feeds: Sequence[Any], optimise: bool = True, libraries: Any = ()) -> Any:
        outputs = run(model, feeds, False, libraries)
        return [[value * np.float32(GROWTH if optimise else 1) for value in each] for each in outputs]

    monkeypatch.setattr(saturation, "run", wrong)
    monkeypatch.setattr(saturation, "sums_saturate", lambda: True)


def told(text: str, *parts: str) -> bool:
    """True if a text has all parts, however its lines are broken."""
    return all(part in " ".join(text.split()) for part in parts)


def test_the_difference_is_that_of_fused_and_plain_kernels(folder: Path, saturating: None) -> None:
    integers, floats = (load(folder / name) for name in ("i.onnx", "m.onnx"))
    feeds = [{"x": CALIBRATION[:1]}]
    assert fused_difference(integers, integers.path, feeds) == pytest.approx(GROWTH - 1)
    assert fused_difference(floats, floats.path, feeds) == 0


def test_a_model_that_does_not_run_saturates_not(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: Any) -> None:
        raise RunFailed("no kernel")

    monkeypatch.setattr(saturation, "run", fails)
    integers = load(folder / "i.onnx")
    assert fused_difference(integers, integers.path, [{"x": CALIBRATION[:1]}]) == 0


@pytest.mark.parametrize(
    ("saturates", "cause"),
    [
        (True, "their sums saturate"),
        (False, "float layers between integers are put into integers as well, or numbers are"),
    ],
)
def test_rounding_is_not_told_and_two_models_take_one_warning(
    folder: Path, monkeypatch: pytest.MonkeyPatch, saturates: bool, cause: str
) -> None:
    models = [load(folder / name) for name in ("m.onnx", "i.onnx")]
    monkeypatch.setattr(saturation, "sums_saturate", lambda: saturates)
    assert saturation_warnings({"BASE": 0.05, "NEW": 0.0}, models, "as run") == ()
    (text,) = saturation_warnings({"BASE": 0.051, "NEW": float("inf")}, models, "as run")
    assert told(text, f"the output of BASE by 5% and the output of NEW by inf%: {cause}", "; as run; ")
    assert "without onnxruntime's optimisations" in text and ("7 bits" in text) == saturates


@pytest.mark.parametrize(
    ("saturates", "remedies"),
    [(True, ("7 bits", "a processor with VNNI")), (False, ("QuantizeLinear and DequantizeLinear nodes",))],
)
def test_operators_on_integers_have_no_plain_kernels(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, saturates: bool, remedies: tuple[str, ...]
) -> None:
    monkeypatch.setattr(saturation, "sums_saturate", lambda: saturates)
    model = load(saved(integer_sums()[0], tmp_path / "m.onnx"))
    (text,) = saturation_warnings({"NEW": 0.5}, [model], "as run")
    assert told(text, *remedies)
    assert "without onnxruntime's optimisations" not in text


def test_check_tells_which_model_and_what_its_gates_compare(folder: Path, saturating: None) -> None:
    row = called_json("check", folder / "m.onnx", folder / "i.onnx", "--max-deviation", 9)
    (note,) = [each for each in row["notes"] if "saturate" in each]
    compared = "the gates and deviations compare the outputs of the fused kernels"
    assert told(note, "change the output of NEW by 98%", compared, *ADVICE)


def test_networks_too_large_to_optimise_are_compared_by_plain_kernels(
    folder: Path, saturating: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("leanonnx.proof.proof.MANY_NODES", 1)
    row = called_json("check", folder / "m.onnx", folder / "i.onnx", "--max-deviation", 9)
    assert any("the gates and deviations compare the outputs of the plain kernels" in each for each in row["notes"])
    words = ("compress", folder / "i.onnx", tmp_path / "o.onnx", "--keep", 0.5, "--align", 1)
    warnings = called_json(*words)["warnings"]
    assert any("the proof and a deviation compare the plain kernels" in each for each in warnings)


def test_bench_tells_it_once_for_each_measurement(folder: Path, saturating: None) -> None:
    row = called_json("bench", folder / "m.onnx", folder / "i.onnx", "--seconds", 0.01, "--threads", 1)
    (note,) = [each for each in row["results"][0]["warnings"] if "saturate" in each]
    assert told(note, f"change the output of {folder / 'i.onnx'} by 98%", "the times are those of the fused", *ADVICE)
    alone = called_json("bench", folder / "m.onnx", "--seconds", 0.01, "--threads", 1)
    assert not [each for each in alone["results"][0]["warnings"] if "saturate" in each]


def test_compress_tells_it_of_networks_that_hold_integers(folder: Path, saturating: None, tmp_path: Path) -> None:
    words = ("compress", folder / "i.onnx", tmp_path / "o.onnx", "--keep", 0.5, "--align", 1)
    (note,) = [each for each in called_json(*words)["warnings"] if "saturate" in each]
    assert told(note, "change the output of the result by 98%", "a deviation the fused ones", *ADVICE)


def test_compress_tells_it_of_integers_that_it_makes(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(quantising, "fusion_excess", lambda *_: EXCESS)
    monkeypatch.setattr(saturation, "sums_saturate", lambda: True)
    done = called("compress", folder / "m.onnx", tmp_path / "o.onnx", "--int8", "--calib", folder / "x.npz")
    assert done.returncode == 0, done.stderr
    assert told(
        done.stdout + done.stderr,
        "add 3.5 times the error",
        "their sums saturate; the deviation is that without it",
        *ADVICE,
    )


def test_nothing_is_told_where_sums_do_not_saturate(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(saturation, "run", lambda model, feeds, _=True, libraries=(): run(model, feeds, False))
    row = called_json("check", folder / "m.onnx", folder / "i.onnx")
    assert not [each for each in row["notes"] if "saturate" in each]
    words = ("compress", folder / "i.onnx", tmp_path / "o.onnx", "--keep", 0.5, "--align", 1)
    assert not [each for each in called_json(*words)["warnings"] if "saturate" in each]

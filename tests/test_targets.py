"""Hardware tables: reading and choosing them, the resulting widths, and predicted latencies."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from leanonnx.analysis.dag import ChannelDag
from leanonnx.commands.calibrate.probes import Probe, mobile_network, probe_network, residual_network
from leanonnx.commands.compress.pipeline import load_dag
from leanonnx.errors import OptionError
from leanonnx.hardware.targets import (
    HARDWARE_ENTRIES,
    Hardware,
    builtin_hardware,
    entries_legend,
    read_hardware,
    tables_text,
)
from leanonnx.numeric.channel_ids import Mask
from leanonnx.runtime.machine import detect_hardware
from leanonnx.runtime.providers import Setting
from leanonnx.selection.latency import latency_model
from tests.helpers import called, constant_shapes, refused, saved

COMPRESS = ("compress", "model.onnx", "out.onnx", "--keep", "0.4")
AVX2, AVX512 = builtin_hardware()["cpu-avx2"], builtin_hardware()["cpu-avx512"]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a model; no table is stored."""
    monkeypatch.setenv("LEANONNX_TARGETS", str(tmp_path / "targets.toml"))
    saved(residual_network(64, 48, 4), tmp_path / "model.onnx")
    return tmp_path


# tables


def test_every_entry_is_explained_in_place() -> None:
    assert list(HARDWARE_ENTRIES) == [key for key in asdict(AVX2) if key != "name"]
    text = (Path(__file__).parent.parent / "leanonnx" / "hardware" / "targets.toml").read_text(encoding="utf-8")
    assert entries_legend() in text


def test_a_table_reads_as_it_was_written(tmp_path: Path) -> None:
    tables = [AVX2, replace(AVX512, name='my "old" box.2')]
    (tmp_path / "t.toml").write_text(tables_text(tables, "Tables."), encoding="utf-8")
    assert list(read_hardware(tmp_path / "t.toml").values()) == tables


def test_a_table_without_integers_gets_the_built_in_ratios(tmp_path: Path) -> None:
    """Tables of earlier versions lack these entries."""
    floats = {key: value for key, value in asdict(replace(AVX2, conv=58.0)).items() if not key.startswith("int8")}
    lines = [f"{key} = {value}" for key, value in floats.items() if key != "name"]
    (tmp_path / "t.toml").write_text("\n".join(["[cpu-avx2]", *lines, "[mine]", *lines]), encoding="utf-8")
    tables = read_hardware(tmp_path / "t.toml")
    assert tables["cpu-avx2"].int8_conv == pytest.approx(2 * AVX2.int8_conv)
    assert tables["cpu-avx2"].int8_grouped == pytest.approx(2 * AVX2.int8_grouped)
    assert tables["cpu-avx2"].int8_gemm == pytest.approx(AVX2.int8_gemm)
    plain = builtin_hardware()["cpu-plain"]
    assert tables["mine"].int8_conv / tables["mine"].conv == pytest.approx(plain.int8_conv / plain.conv)
    assert (tables["cpu-avx2"].int8_block, tables["mine"].int8_block) == (AVX2.int8_block, plain.int8_block)


def spoilt(**entries: object) -> str:
    """A table with other entries; None leaves one out."""
    values = {key: value for key, value in asdict(AVX2).items() if key != "name"} | entries
    return "[mine]\n" + "".join(f"{key} = {value}\n" for key, value in values.items() if value is not None)


BAD = {
    "entry missing": (spoilt(gemm=None), "gemm"),
    "entry too many": (spoilt(colour=3), "just the entries"),
    "zero": (spoilt(block=0), "block = 0"),
    "below zero": (spoilt(node=-1.0), "node = -1.0"),
    "not finite": (spoilt(conv="inf"), "conv = Infinity"),
    "no number": (spoilt(conv="nan"), "conv = NaN"),
    "text": (spoilt(slow='"much"'), 'slow = "much"'),
    "list": (spoilt(slow="[1.0]"), "slow = [1.0]"),
    "date": (spoilt(slow="2020-01-01"), "2020-01-01"),
    "truth": (spoilt(multiple="true"), "multiple = true"),
    "part of a channel": (spoilt(block=7.5), "block = 7.5, expected a whole number"),
    "no table": ("block = 8\n", "'block'"),
    "no TOML": ("block: 8\n", "not TOML"),
    "nested without end": (f"block = {'[' * 100_000}", "not TOML"),
    "keys without end": (f"block{'.a' * 5_000} = 1", "not TOML"),
    "integer without end": (f"block = 0x{'F' * 5_000}", "not TOML: an integer of more than 64 bits"),
}


@pytest.mark.parametrize(("text", "says"), BAD.values(), ids=BAD)
def test_a_bad_table_is_refused_with_advice(folder: Path, text: str, says: str) -> None:
    (folder / "targets.toml").write_text(text, encoding="utf-8")
    refused(folder, *COMPRESS, says=("targets.toml", says, "leanonnx calibrate-device"))


def test_a_file_that_is_no_text_is_refused(folder: Path) -> None:
    (folder / "targets.toml").write_bytes(b"\xff\xfe\x00")
    refused(folder, *COMPRESS, says=("targets.toml", "not TOML", "leanonnx calibrate-device"))


def test_a_file_that_is_not_there_is_refused_with_advice(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match=r"cannot be read: .*calibrate_device"):
        read_hardware(tmp_path / "none.toml")


# the choice of a target


def widths(path: Path) -> set[int]:
    """Output channels of the convolutions of a residual network."""
    return {shape[0] for name, shape in constant_shapes(path).items() if len(shape) == 4}


def run(folder: Path, *options: str) -> tuple[set[int], dict[str, Any]]:
    """Widths of the compressed model, and the options in its plan."""
    done = called(*COMPRESS, "--plan-out", "plan.json", *options, cwd=folder)
    assert done.returncode == 0, done.stderr
    return widths(folder / "out.onnx"), json.loads((folder / "plan.json").read_text())["options"]


def test_a_named_target_gives_its_widths_and_the_plan_says_so(folder: Path) -> None:
    found, options = run(folder, "--target", "cpu-avx2")
    assert {width % 8 for width in found} == {0}
    assert min(found) < 48
    assert options["target"] == "cpu-avx2"
    assert any(width % 8 for width in run(folder, "--align", "1")[0]), "without a grid the widths are others"


def test_an_unknown_target_is_refused_and_the_known_ones_are_listed(folder: Path) -> None:
    refused(folder, *COMPRESS, "--target", "abacus", says=("--target abacus", "auto", *builtin_hardware()))


def test_stored_targets_are_found_by_name(folder: Path) -> None:
    store = folder / "targets.toml"
    store.write_text(replace(AVX2, name="mine", block=12, multiple=12).to_toml(), encoding="utf-8")
    found, options = run(folder, "--target", "mine")
    assert {width % 12 for width in found if width < 48} == {0}
    assert options["target"] == "mine"
    refused(folder, *COMPRESS, "--target", "abacus", says=("mine",))


def test_auto_means_the_stored_target_of_this_machine(folder: Path) -> None:
    name = detect_hardware(Setting())
    (folder / "targets.toml").write_text(replace(AVX2, name=name, block=12, multiple=12).to_toml(), encoding="utf-8")
    found, _ = run(folder)
    assert {width % 12 for width in found if width < 48} == {0}


# predicted latencies


def inspected(folder: Path, inner: int = 64) -> ChannelDag:
    """A network of one chain of two 3×3 convolutions: only the channels between them are removable."""
    return load_dag(saved(probe_network(Probe(layer="conv", width=inner, layers=2, side=8)), folder / "chain.onnx"))


def with_inner(dag: ChannelDag, width: int) -> Mask:
    """The keep set with so many channels between the two convolutions."""
    alive = np.ones(dag.count, bool)
    alive[np.unique(dag.channel_ids["t0"])[width:]] = False
    return alive


def test_predictions_fall_block_by_block(tmp_path: Path) -> None:
    """Without the cost of numbers written, widths within a block on the fast path take the same."""
    dag = inspected(tmp_path)
    predicted = latency_model(dag, replace(AVX512, element=0.0))
    times = [predicted(with_inner(dag, width)) for width in range(16, 65, 4)]
    blocks = [times[0], *times[1::4]]
    assert blocks == sorted(set(blocks))
    assert [times[k] for k in (1, 5, 9)] == [times[k] for k in (4, 8, 12)]
    written = latency_model(dag, AVX512)
    assert written(with_inner(dag, 60)) < written(with_inner(dag, 64))


def test_predictions_know_the_widths_that_leave_the_fast_kernels(tmp_path: Path) -> None:
    dag = inspected(tmp_path)
    predicted = latency_model(dag, replace(AVX512, element=0.0, node=0.0))
    assert predicted(with_inner(dag, 63)) > predicted(with_inner(dag, 64))
    kernels = 64 * 64 + AVX512.slow * 63 * 64
    assert predicted(with_inner(dag, 63)) == pytest.approx(kernels * 9 * 8 * 8 / AVX512.conv / 1e6)


def test_predictions_are_in_proportion_to_the_rates(tmp_path: Path) -> None:
    path = saved(mobile_network(16, 64, 8), tmp_path / "mobile.onnx")
    dag = load_dag(path)
    everything = np.ones(dag.count, bool)
    quick = {key: 2 * getattr(AVX2, key) for key in ("conv", "pointwise", "depthwise", "gemm")}
    twice = replace(AVX2, element=AVX2.element / 2, node=AVX2.node / 2, **quick)
    assert latency_model(dag, AVX2)(everything) == pytest.approx(2 * latency_model(dag, twice)(everything))


def test_an_empty_keep_set_takes_no_time(tmp_path: Path) -> None:
    dag = inspected(tmp_path)
    assert latency_model(dag, AVX2)(np.zeros(dag.count, bool)) == 0


def test_blocks_are_filled_up() -> None:
    assert [AVX2.fill_block(n) for n in (0, 1, 8, 9)] == [0, 8, 8, 16]
    assert isinstance(Hardware(**asdict(AVX2)).fill_block(3), int)

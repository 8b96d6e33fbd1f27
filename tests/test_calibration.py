"""``leanonnx calibrate-device``: deriving a table from times, storing it, reporting it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest

from leanonnx.commands.calibrate import calibrate
from leanonnx.commands.calibrate.fit import (
    BLOCK_CANDIDATES,
    MULTIPLE_CANDIDATES,
    PROBE_WIDTHS,
    FastWidths,
    Probes,
    best_block,
    best_multiple,
    fit_table,
)
from leanonnx.commands.calibrate.probes import Probe, held_out_networks, probe_network, residual_network
from leanonnx.commands.compress.pipeline import load_dag
from leanonnx.errors import OutputError
from leanonnx.hardware.costs import conversion_ms
from leanonnx.hardware.targets import HARDWARE_ENTRIES, Hardware, builtin_hardware, read_hardware
from leanonnx.quantization.agreement import IntegerNodes, integer_nodes
from leanonnx.quantization.savings import saved_ms
from leanonnx.runtime.fastpath import convolution_layouts
from leanonnx.runtime.machine import channel_steps, detect_hardware, is_blocked
from leanonnx.runtime.providers import Setting
from leanonnx.runtime.timing import Timing
from leanonnx.selection.latency import latency_model
from tests.helpers import called, refused, saved
from tests.schemas import follow_schema

ONE = Setting(threads=1)
AVX2 = replace(builtin_hardware()["cpu-avx2"], slow=1.5, slow_depthwise=4.0)
AVX512 = builtin_hardware()["cpu-avx512"]
PROBES = Probes(16)
START = 0.02
"""Milliseconds by which a run is longer than its nodes."""

# fits


def stepped(step: int, start: float = 0.3, each: float = 0.02, noise: float = 0.0) -> list[float]:
    """Times of ``WIDTHS`` on a machine whose blocks are ``step`` channels wide."""
    rng = np.random.default_rng(step)
    work = np.ceil(np.array(PROBE_WIDTHS) / step) ** 2 * step**2 / 16
    return list((start + each * work) * (1 + noise * rng.standard_normal(len(PROBE_WIDTHS))))


@pytest.mark.parametrize("noise", [0.0, 0.01])
@pytest.mark.parametrize("step", BLOCK_CANDIDATES)
def test_the_block_is_found(step: int, noise: float) -> None:
    assert best_block(PROBE_WIDTHS, stepped(step, noise=noise)) == step


def test_the_block_is_the_smallest_if_the_width_does_not_matter() -> None:
    assert best_block(PROBE_WIDTHS, [1.0] * len(PROBE_WIDTHS)) == BLOCK_CANDIDATES[0]


def test_a_smaller_block_is_preferred_when_it_fits_about_as_well() -> None:
    """Times half way between those of blocks of 4 and of 8, a little nearer to the latter."""
    small, large = np.array(stepped(4)), np.array(stepped(8))
    assert best_block(PROBE_WIDTHS, list(0.495 * small + 0.505 * large), steps=(4, 8)) == 4
    assert best_block(PROBE_WIDTHS, list(0.3 * small + 0.7 * large), steps=(4, 8)) == 8


@pytest.mark.parametrize("multiple", MULTIPLE_CANDIDATES)
def test_the_multiple_is_found(multiple: int) -> None:
    times = {count: 1.03 if count % multiple == 0 else 1.6 for count in MULTIPLE_CANDIDATES}
    assert best_multiple(times) == multiple


def predicted(probe: Probe, target: Hardware, folder: Path) -> float:
    """Latency of a probe by the latency model; in integers, less what its layers save, and with its conversions."""
    proto = probe_network(replace(probe, integers=False))
    dag = load_dag(saved(proto, folder / "probe.onnx"))
    floats = latency_model(dag, target)(np.ones(dag.count, bool))
    if not probe.integers:
        return floats
    saved_times = saved_ms(proto, dag.shapes, target).values() if probe.multiply_adds else ()
    assert len(saved_times) == (probe.layers if probe.multiply_adds else 0)
    return floats - sum(saved_times) + probe.conversions * conversion_ms(target, probe.numbers)


def times_of(probes: Iterable[Probe], truth: Hardware, folder: Path) -> dict[Probe, float]:
    return {probe: START + predicted(probe, truth, folder) for probe in probes}


@pytest.mark.parametrize("truth", [AVX512, replace(AVX2, slow_depthwise=1.0, node=0.3)], ids=["wide", "narrow"])
def test_the_table_explains_the_times_that_it_is_made_from(truth: Hardware, tmp_path: Path) -> None:
    """Times as the latency model has them give back its table."""
    times = times_of(PROBES.all(stepped=True), truth, tmp_path)
    other = replace(builtin_hardware()["cpu-arm"], name=truth.name, int8_block=truth.int8_block)
    found = fit_table(other, times, PROBES, FastWidths(truth.block, truth.multiple, truth.grouped))
    for key in HARDWARE_ENTRIES:
        assert getattr(found, key) == pytest.approx(getattr(truth, key), rel=0.01), key


def test_integers_that_are_not_timed_keep_the_built_in_ratios(tmp_path: Path) -> None:
    floats = replace(PROBES, has_integers=False)
    assert not any(probe.integers for probe in floats.all(stepped=True))
    truth = replace(AVX512, conv=30.0, element=0.2)
    widths = FastWidths(truth.block, truth.multiple, truth.grouped)
    found = fit_table(AVX512, times_of(floats.all(stepped=True), truth, tmp_path), floats, widths)
    assert found.int8_conv / AVX512.int8_conv == pytest.approx(found.conv / AVX512.conv, rel=0.01)
    assert found.int8_grouped / AVX512.int8_grouped == pytest.approx(found.conv / AVX512.conv, rel=0.01)
    assert found.int8_convert / AVX512.int8_convert == pytest.approx(found.element / AVX512.element, rel=0.01)
    assert found.int8_pointwise == pytest.approx(AVX512.int8_pointwise, rel=0.05)
    assert found.int8_block == AVX512.int8_block


def test_steps_are_found_by_timing_if_the_graph_does_not_show_them(tmp_path: Path) -> None:
    truth = replace(AVX2, grouped=AVX2.multiple)
    found = fit_table(truth, times_of(PROBES.all(stepped=False), truth, tmp_path), PROBES, known=None)
    for key in HARDWARE_ENTRIES:
        assert getattr(found, key) == pytest.approx(getattr(truth, key), rel=0.01), key


def test_a_machine_without_slow_widths(tmp_path: Path) -> None:
    truth = replace(AVX2, block=4, multiple=1, grouped=1, slow=1.0, slow_depthwise=1.0)
    found = fit_table(truth, times_of(PROBES.all(stepped=False), truth, tmp_path), PROBES, known=None)
    assert (found.block, found.multiple, found.slow, found.slow_depthwise) == (4, 1, 1.0, 1.0)


def test_wild_times_give_a_table_all_the_same() -> None:
    """Contradictory times: every entry stays above 0, so that the table can be read again."""
    rng = np.random.default_rng(0)
    for _ in range(50):
        probes = PROBES.all(stepped=False)
        times = dict(zip(probes, np.exp(rng.normal(0, 3, len(probes))).tolist(), strict=True))
        found = fit_table(AVX2, times, PROBES, known=None)
        assert min(getattr(found, key) for key in HARDWARE_ENTRIES) > 0
        assert min(found.slow, found.slow_depthwise) >= 1


# what is measured


def test_detection_agrees_with_the_graphs_as_they_are_run(tmp_path: Path) -> None:
    """On a machine with blocked kernels, chains on the path that was found are fast, those off it are not."""
    steps, target = channel_steps(), builtin_hardware()[detect_hardware(ONE)]
    assert (steps is None) == (target.name in ("cpu-arm", "cpu-plain"))
    if steps is None:
        return
    assert steps == (target.block, target.multiple, target.grouped)
    block, multiple, grouped = steps
    for width, fast in ((2 * block, 6), (2 * block + multiple, 6), (2 * block + 1, 0)):
        found = convolution_layouts(
            saved(probe_network(Probe(layer="conv", width=width, layers=6, side=8)), tmp_path / "probe.onnx"), ONE
        )
        assert found is not None
        assert found.fast == fast
    assert is_blocked(grouped, groups=2)
    assert not is_blocked(grouped // 2, groups=2)


def test_onnxruntime_runs_each_elementwise_node_of_the_probes(tmp_path: Path) -> None:
    options = ort.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
    ort.InferenceSession(probe_network(PROBES.node).SerializeToString(), options, providers=["CPUExecutionProvider"])
    nodes = load_dag(tmp_path / "optimised.onnx").model.proto.graph.node
    assert len(nodes) == PROBES.node.layers


def test_onnxruntime_runs_each_layer_of_the_probes_in_integers(tmp_path: Path) -> None:
    for probe in (PROBES.conversion, *PROBES.integers.values()):
        path = saved(probe_network(probe), tmp_path / "probe.onnx")
        layers = probe.layers if probe.multiply_adds else 0
        assert integer_nodes(path, ONE) == IntegerNodes(layers, probe.conversions)


@pytest.mark.parametrize("stepped", [True, False])
def test_probes_run_and_return_numbers_of_a_usual_size(stepped: bool) -> None:
    rng = np.random.default_rng(0)
    for probe in PROBES.all(stepped):
        session = ort.InferenceSession(probe_network(probe).SerializeToString(), providers=["CPUExecutionProvider"])
        (found,) = session.run(None, {"x": rng.standard_normal(probe.shape, np.float32)})
        assert found.shape == probe.shape
        assert 1e-3 < np.abs(found).mean() < 1e3


def test_held_out_networks_are_other_networks_than_the_probes() -> None:
    texts = {probe_network(probe).SerializeToString() for probe in PROBES.all(stepped=False)}
    for _, whole, narrow in held_out_networks(PROBES.side):
        assert {whole.SerializeToString(), narrow.SerializeToString()}.isdisjoint(texts)


def test_a_short_calibration_of_this_machine() -> None:
    """Everything in earnest, but in too little time for good numbers."""
    found = calibrate.run_calibration(ONE, seconds=0.1)
    assert found.target.name == detect_hardware(ONE)
    assert (found.target.block, found.target.multiple) == (found.built_in.block, found.built_in.multiple)
    assert len(found.forecasts) == 2
    assert min(min(check.measured, check.predicted, check.built_in) for check in found.forecasts) > 1


# the file


def test_a_table_is_added_to_the_file_or_replaced_in_it(tmp_path: Path) -> None:
    path = tmp_path / "new" / "folder" / "targets.toml"
    calibrate.store_table(AVX2, path)
    calibrate.store_table(replace(AVX512, name="another box"), path)
    calibrate.store_table(replace(AVX2, conv=99.0), path)
    assert read_hardware(path) == {
        "cpu-avx2": replace(AVX2, conv=99.0),
        "another box": replace(AVX512, name="another box"),
    }
    assert list(path.parent.iterdir()) == [path]


def test_a_file_that_is_linked_stays_linked(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    calibrate.store_table(AVX2, tmp_path / "real" / "targets.toml")
    link = tmp_path / "targets.toml"
    link.symlink_to(tmp_path / "real" / "targets.toml")
    calibrate.store_table(AVX512, link)
    assert link.is_symlink()
    assert set(read_hardware(tmp_path / "real" / "targets.toml")) == {"cpu-avx2", "cpu-avx512"}


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="with out"):
        calibrate.store_table(AVX2, tmp_path / "file" / "targets.toml")


# the command


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder, with fake timings: each network takes longer than the one before."""

    def untimed(paths: list[Path], *_: object) -> tuple[Timing, ...]:
        times = [1.0 + index / 10 for index in range(len(paths))]
        times[-4:] = [4.0, 2.0, 3.0, 2.0]
        return tuple(
            Timing(p10=t, median=t, p90=2 * t if t == 4 else t, session=0, first=0, runs=1, memory=0, layouts=None)
            for t in times
        )

    monkeypatch.setattr(calibrate, "time_all_in_subprocess", untimed)
    monkeypatch.setenv("LEANONNX_TARGETS", str(tmp_path / "store" / "targets.toml"))
    return tmp_path


def test_json(folder: Path) -> None:
    done = called("calibrate-device", "--threads", "1", "--json", cwd=folder)
    assert done.returncode == 0, done.stderr
    row: dict[str, Any] = follow_schema("calibrate-device", done.stdout)
    stored = read_hardware(folder / "store" / "targets.toml")
    assert row["schema"] == 1
    assert (row["provider"], row["threads"], row["target"]) == ("cpu", 1, detect_hardware(ONE))
    assert (row["file"], row["used_by_auto"]) == (str(folder / "store" / "targets.toml"), True)
    assert {key: entry["measured"] for key, entry in row["entries"].items()} == {
        key: getattr(stored[row["target"]], key) for key in HARDWARE_ENTRIES
    }
    assert [check["measured"] for check in row["checks"]] == [2.0, 1.5]
    for check in row["checks"]:
        assert check["error"] == pytest.approx(check["predicted"] / check["measured"] - 1, abs=1e-3)
        assert check["built_in_error"] == pytest.approx(check["built_in"] / check["measured"] - 1, abs=1e-3)
    assert len(row["warnings"]) == 1
    assert "1 of 19 networks" in row["warnings"][0]


def test_text_explains_each_entry_and_its_error(folder: Path) -> None:
    done = called("calibrate-device", "--out", folder / "mine.toml", cwd=folder)
    assert done.returncode == 0, done.stderr
    for name, entry in HARDWARE_ENTRIES.items():
        line = next(line for line in done.stdout.splitlines() if line.startswith(f"{name} "))
        assert entry.meaning in line
        assert entry.unit in line
    assert "off by up to" in done.stdout
    said = done.stdout.replace("\n", "")
    assert str(folder / "mine.toml") in said
    assert f"LEANONNX_TARGETS={folder / 'mine.toml'}" in said
    assert "from now on" not in said
    assert detect_hardware(ONE) in read_hardware(folder / "mine.toml")
    assert not (folder / "store").exists()


USED = "--targetautousesitfromnowon"


def test_it_is_said_whether_auto_uses_the_table(folder: Path, monkeypatch: Any) -> None:
    """A table elsewhere than where ``--target auto`` looks is not used until the environment names it."""
    saved(residual_network(64, 48, 4), folder / "model.onnx")

    def ending(*options: object) -> str:
        done = called("calibrate-device", *options, cwd=folder)
        assert done.returncode == 0, done.stderr
        return "".join(done.stdout[done.stdout.index("Stored in") :].split())

    def compressed() -> str:
        assert called("compress", "model.onnx", "out.onnx", "--keep", 0.4, cwd=folder).returncode == 0
        return (folder / "out.onnx").read_bytes().hex()

    plain = compressed()
    text = ending("--out", "mine.toml")
    assert USED not in text
    assert f"for--targetautotouseit,setLEANONNX_TARGETS={folder / 'mine.toml'}" in text
    widened = replace(read_hardware(folder / "mine.toml")[detect_hardware(ONE)], block=12, multiple=12)
    (folder / "mine.toml").write_text(widened.to_toml(), encoding="utf-8")
    assert compressed() == plain
    monkeypatch.setenv("LEANONNX_TARGETS", str(folder / "mine.toml"))
    assert compressed() != plain
    assert USED in ending()
    (folder / "link.toml").symlink_to(folder / "mine.toml")
    assert USED in ending("--out", "link.toml")


def test_a_file_that_holds_something_else_is_refused_before_any_work(folder: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(calibrate, "time_all_in_subprocess", None)
    (folder / "notes.toml").write_text("shopping = ['bread']\n")
    refused(folder, "calibrate-device", "--out", "notes.toml", says=("notes.toml", "shopping"))
    refused(folder, "calibrate-device", "--out", ".", says=("no regular file", "--out"))
    refused(folder, "calibrate-device", "--out", "notes.toml/targets.toml", says=("no folder", "--out"))


def test_a_provider_that_is_not_there_is_refused(folder: Path, monkeypatch: Any) -> None:
    if "CUDAExecutionProvider" in ort.get_available_providers() and Path("/dev/nvidia0").exists():
        pytest.skip("there is a GPU")
    monkeypatch.undo()
    refused(folder, "calibrate-device", "--provider", "cuda", "--out", "t.toml", says=("--provider cuda",))

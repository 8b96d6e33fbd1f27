"""Measure the hardware table of this machine, validate it on held-out networks, and store it."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx

from leanonnx.commands.calibrate.fit import FastWidths, Probes, fit_table, prediction_error
from leanonnx.commands.calibrate.probes import held_out_networks, probe_network
from leanonnx.commands.compress.pipeline import load_dag
from leanonnx.errors import OptionError, OutputError
from leanonnx.formatting import count_text
from leanonnx.hardware.targets import HARDWARE_ENTRIES, Hardware, builtin_hardware, read_hardware, tables_text
from leanonnx.runtime.machine import channel_steps, detect_hardware
from leanonnx.runtime.providers import Setting
from leanonnx.runtime.sessions import RunFailed
from leanonnx.runtime.subprocess_timing import time_all_in_subprocess
from leanonnx.runtime.timing import Timing
from leanonnx.selection.latency import latency_model
from leanonnx.spelling import option
from leanonnx.system.clock import Progress, ignore_progress
from leanonnx.system.notebook import ResultTable, View, result_csv, result_frame, result_html
from leanonnx.system.outputs import temporary_folder_beside

TIMING_SECONDS = 22.0
"""Total time of measurement; opening and warming up the networks comes on top."""
IMAGE_SIDES = {"cpu": 28, "cuda": 112, "tensorrt": 112}
"""Image side of the probes by provider, large enough to give a run enough work."""
FILE_HEADER = "What execution providers ran at full speed on this machine, measured by `leanonnx calibrate-device`."


@dataclass(frozen=True)
class Forecast:
    """Speed-up of a network with fewer channels: measured, and predicted from two tables."""

    network: str
    measured: float
    predicted: float
    built_in: float

    @property
    def error(self) -> float:
        """Relative error of the prediction from the measured table."""
        return prediction_error(self.predicted, self.measured)

    @property
    def built_in_error(self) -> float:
        """Relative error of the prediction from the built-in table."""
        return prediction_error(self.built_in, self.measured)


@dataclass(frozen=True, kw_only=True)
class DeviceCalibration:
    """A measured table, the built-in one of the same name, and predictions from both.

    ``has_timed_widths`` is True if the fast widths were found by timing, not read from optimised graphs.
    """

    target: Hardware
    built_in: Hardware
    setting: Setting
    forecasts: tuple[Forecast, ...]
    has_timed_widths: bool
    seconds: float
    warnings: tuple[str, ...]

    def _view(self) -> View:
        entries: tuple[dict[str, object], ...] = tuple(
            {
                "entry": key,
                "measured": getattr(self.target, key),
                "built_in": getattr(self.built_in, key),
                "unit": entry.unit,
                "meaning": entry.meaning,
            }
            for key, entry in HARDWARE_ENTRIES.items()
        )
        names = ("network", "measured", "predicted", "error", "built_in", "built_in_error")
        forecasts = tuple({name: getattr(each, name) for name in names} for each in self.forecasts)
        threads = count_text(self.setting.threads, "thread")
        return View(
            line=f"Table '{self.target.name}', measured on {self.setting.provider} with {threads}",
            tables=(ResultTable("entries", entries), ResultTable("forecasts", forecasts)),
            notes=self.warnings,
        )

    _repr_html_ = result_html
    to_pandas = result_frame
    to_csv = result_csv


def run_calibration(
    setting: Setting, progress: Progress = ignore_progress, seconds: float = TIMING_SECONDS
) -> DeviceCalibration:
    """Measure the table of this machine in a setting.

    Raises:
        OptionError: the provider is missing, or cannot run the networks.
    """
    start = time.perf_counter()
    setting = setting.with_thread_count
    built_in = builtin_hardware()[detect_hardware(setting)]
    blocked = None if setting.uses_gpu else channel_steps()
    probes = Probes(IMAGE_SIDES[setting.provider], has_integers=not setting.uses_gpu)
    chains = probes.all(stepped=blocked is not None)
    pairs = list(held_out_networks(probes.side))
    with tempfile.TemporaryDirectory(prefix="leanonnx-") as folder:
        models = [probe_network(chain) for chain in chains] + [model for _, *pair in pairs for model in pair]
        paths = _write_models(models, Path(folder))
        progress(f"measure {len(paths)} small networks")
        timings = _time_models(models, paths, setting, seconds)
        times = [timing.p10 for timing in timings]  # other processes only add time
        steps = None if blocked is None else FastWidths(*blocked)
        target = fit_table(built_in, dict(zip(chains, times, strict=False)), probes, steps)
        progress("check")
        predicted = [
            [_predict_milliseconds(path, each) for path in paths[len(chains) :]] for each in (target, built_in)
        ]
    ratios_by_source = (_pair_ratios(each) for each in (times[len(chains) :], *predicted))
    forecasts = tuple(Forecast(pair[0], *ratios) for pair, *ratios in zip(pairs, *ratios_by_source, strict=True))
    elapsed = time.perf_counter() - start
    return DeviceCalibration(
        target=target,
        built_in=built_in,
        setting=setting,
        forecasts=forecasts,
        has_timed_widths=steps is None,
        seconds=elapsed,
        warnings=_noise_warnings(timings),
    )


def _write_models(models: Sequence[onnx.ModelProto], folder: Path) -> list[Path]:
    paths = [folder / f"probe-{index}.onnx" for index in range(len(models))]
    for model, path in zip(models, paths, strict=True):
        onnx.save(model, path)
    return paths


def _time_models(
    models: Sequence[onnx.ModelProto], paths: Sequence[Path], setting: Setting, seconds: float
) -> tuple[Timing, ...]:
    rng = np.random.default_rng(0)
    sizes = [[d.dim_value for d in model.graph.input[0].type.tensor_type.shape.dim] for model in models]
    feeds = [{"x": rng.standard_normal(size, np.float32)} for size in sizes]
    try:
        return time_all_in_subprocess(paths, feeds, setting, seconds)
    except RunFailed as error:
        raise OptionError(
            f"{option('provider', setting.provider)}: the networks of the calibration cannot be timed: {error}; see "
            "that nothing else uses the device or its memory"
        ) from error


def _predict_milliseconds(path: Path, target: Hardware) -> float:
    """Predict the milliseconds of one run from a table."""
    dag = load_dag(path)
    return latency_model(dag, target)(dag.all_alive)


def _pair_ratios(times: Sequence[float]) -> list[float]:
    """Ratio of each two consecutive times."""
    return [before / after for before, after in zip(times[::2], times[1::2], strict=True)]


def _noise_warnings(timings: Sequence[Timing]) -> tuple[str, ...]:
    noisy = sum(timing.is_busy for timing in timings)
    if not noisy:
        return ()
    return (
        f"the times of {noisy} of {len(timings)} networks vary much: the machine is busy, or has fewer cores free than "
        "threads were asked for; calibrate again when it is idle",
    )


def check_storable(path: Path) -> dict[str, Hardware]:
    """Tables in a file that a new table is to be added to; checked before any measurement.

    Raises:
        OptionError: the file has other contents.
        OutputError: the file cannot be written.
    """
    if path.exists() and not path.is_file():
        raise OutputError(f"{path}: is no regular file; give another one with {option('out')}")
    nearest = next(folder for folder in path.absolute().parents if folder.exists())
    if not nearest.is_dir():
        raise OutputError(f"{path}: '{nearest}' is no folder; give another file with {option('out')}")
    return read_hardware(path) if path.exists() else {}


def store_table(target: Hardware, path: Path) -> None:
    """Store a table in a file, replacing one of the same name; other tables stay, missing folders are created.

    Raises:
        OptionError: the file has other contents.
        OutputError: the file cannot be written.
    """
    tables = check_storable(path) | {target.name: target}
    destination = path.resolve()
    try:
        destination.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(
            f"{destination.parent}: cannot be made: {error.strerror}; give another file with {option('out')}"
        ) from error
    with temporary_folder_beside(destination) as folder:
        draft = folder / destination.name
        draft.write_text(tables_text(tables.values(), FILE_HEADER), encoding="utf-8")
        draft.replace(destination)

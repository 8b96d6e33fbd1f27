"""Measures the table of the machine at hand, tries it on networks that it is not made from, and stores it."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx

from leanonnx.commands.calibrate.fit import Probes, Steps, relative_error, table
from leanonnx.commands.calibrate.probes import held_out, network
from leanonnx.commands.compress.pipeline import inspect
from leanonnx.errors import OptionError, OutputError
from leanonnx.hardware.targets import Hardware, known_targets, read_targets, tables_text
from leanonnx.runtime.machine import blocked_steps, detected
from leanonnx.runtime.providers import Setting
from leanonnx.runtime.sessions import RunFailed
from leanonnx.runtime.subprocess_timing import measured_many
from leanonnx.runtime.timing import Timing
from leanonnx.selection.latency import latency_model
from leanonnx.spelling import option
from leanonnx.system.clock import Progress, quiet
from leanonnx.system.outputs import temporary_beside

SECONDS = 16.0
"""Seconds that the networks are timed for, all together; opening them and warming up comes on top."""
SIDES = {"cpu": 28, "cuda": 112, "tensorrt": 112}
"""Image sides of the probes: enough work for one run."""
HEAD = "What execution providers ran at full speed on this machine, measured by `leanonnx calibrate-device`."


@dataclass(frozen=True)
class Forecast:
    """A network's time over that of the same with fewer channels: measured, and predicted from two tables."""

    network: str
    measured: float
    predicted: float
    built_in: float

    @property
    def error(self) -> float:
        """By how much, as a share, the prediction from the measured table is off."""
        return relative_error(self.predicted, self.measured)

    @property
    def built_in_error(self) -> float:
        """By how much that from the built-in table is."""
        return relative_error(self.built_in, self.measured)


@dataclass(frozen=True)
class Calibration:
    """A measured table next to the built-in one of the same name, and how well both predict."""

    target: Hardware
    built_in: Hardware
    setting: Setting
    forecasts: tuple[Forecast, ...]
    timed_steps: bool
    seconds: float
    warnings: tuple[str, ...]


def calibrate(setting: Setting, progress: Progress = quiet, seconds: float = SECONDS) -> Calibration:
    """Measure the table of this machine in a setting.

    Raises:
        OptionError: the provider is not there, or cannot run the networks.
    """
    begun = time.perf_counter()
    setting = setting.resolved
    name = detected(setting)
    found = None if setting.on_device else blocked_steps()
    probes = Probes(SIDES[setting.provider])
    chains = probes.all(stepped=found is not None)
    pairs = list(held_out(probes.side))
    with tempfile.TemporaryDirectory(prefix="leanonnx-") as folder:
        models = [network(chain) for chain in chains] + [model for _, *pair in pairs for model in pair]
        paths = _written(models, Path(folder))
        progress(f"measure {len(paths)} small networks")
        timings = _timed(models, paths, setting, seconds)
        times = [timing.p10 for timing in timings]  # what else runs on the machine only adds
        steps = None if found is None else Steps(*found)
        target = table(name, dict(zip(chains, times, strict=False)), probes, steps)
        progress("check")
        built_in = known_targets()[name]
        predicted = [[_predicted(path, each) for path in paths[len(chains) :]] for each in (target, built_in)]
    wholes = (_ratios(each) for each in (times[len(chains) :], *predicted))
    forecasts = tuple(Forecast(pair[0], *ratios) for pair, *ratios in zip(pairs, *wholes, strict=True))
    taken = time.perf_counter() - begun
    return Calibration(target, built_in, setting, forecasts, steps is None, taken, _warnings(timings))


def _written(models: Sequence[onnx.ModelProto], folder: Path) -> list[Path]:
    paths = [folder / f"probe-{index}.onnx" for index in range(len(models))]
    for model, path in zip(models, paths, strict=True):
        onnx.save(model, path)
    return paths


def _timed(
    models: Sequence[onnx.ModelProto], paths: Sequence[Path], setting: Setting, seconds: float
) -> tuple[Timing, ...]:
    rng = np.random.default_rng(0)
    sizes = [[d.dim_value for d in model.graph.input[0].type.tensor_type.shape.dim] for model in models]
    feeds = [{"x": rng.standard_normal(size, np.float32)} for size in sizes]
    try:
        return measured_many(paths, feeds, setting, seconds)
    except RunFailed as error:
        raise OptionError(
            f"{option('provider', setting.provider)}: the networks of the calibration cannot be timed: {error}; see "
            "that nothing else uses the device or its memory"
        ) from error


def _predicted(path: Path, target: Hardware) -> float:
    """Milliseconds of one run by a table."""
    dag = inspect(path)
    return latency_model(dag, target)(dag.whole)


def _ratios(times: Sequence[float]) -> list[float]:
    """Of each two times that follow each other."""
    return [before / after for before, after in zip(times[::2], times[1::2], strict=True)]


def _warnings(timings: Sequence[Timing]) -> tuple[str, ...]:
    wild = sum(timing.busy for timing in timings)
    if not wild:
        return ()
    return (
        f"the times of {wild} of {len(timings)} networks vary much: the machine is busy, or has fewer cores free than "
        "threads were asked for; calibrate again when it is idle",
    )


def check_storable(path: Path) -> dict[str, Hardware]:
    """The tables that a file holds already; refused, before any work, if a table cannot be added to it.

    Raises:
        OptionError: the file holds something else.
        OutputError: it cannot be written.
    """
    if path.exists() and not path.is_file():
        raise OutputError(f"{path}: is no regular file; give another one with {option('out')}")
    nearest = next(folder for folder in path.absolute().parents if folder.exists())
    if not nearest.is_dir():
        raise OutputError(f"{path}: '{nearest}' is no folder; give another file with {option('out')}")
    return read_targets(path) if path.exists() else {}


def store(target: Hardware, path: Path) -> None:
    """Put a table into a file, in place of one of the same name; other tables in it stay, folders are made.

    Raises:
        OptionError: the file holds something else.
        OutputError: it cannot be written.
    """
    tables = check_storable(path) | {target.name: target}
    place = path.resolve()
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(
            f"{place.parent}: cannot be made: {error.strerror}; give another file with {option('out')}"
        ) from error
    with temporary_beside(place) as folder:
        draft = folder / place.name
        draft.write_text(tables_text(tables.values(), HEAD), encoding="utf-8")
        draft.replace(place)

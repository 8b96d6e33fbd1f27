"""``calibrate-device`` in Python: a table of what work costs on this machine."""

from __future__ import annotations

from pathlib import Path

from leanonnx.api.progress import listening
from leanonnx.commands.calibrate import calibrate
from leanonnx.commands.calibrate.calibrate import DeviceCalibration
from leanonnx.runtime.providers import Provider, Setting
from leanonnx.system.clock import Progress
from leanonnx.system.outputs import StrPath


def calibrate_device(
    out: StrPath, *, provider: Provider = "cpu", threads: int = 0, progress: Progress | None = None
) -> DeviceCalibration:
    """Measure which widths this machine runs at full speed and what work costs on it, and store that as a target.

    Takes less than a minute on a CPU. ``compress`` uses the table where its ``targets`` names the file.

        calibration = leanonnx.calibrate_device("targets.toml")
        small = leanonnx.compress("in.onnx", latency=0.5, targets="targets.toml")

    Args:
        out: the TOML file; other tables in it are kept.
        provider: where models are to run.
        threads: within an operator; 0 is all physical cores.
        progress: called with each stage; None: log, or bar in a notebook.

    Raises:
        UserError: a provider that is not there, or a file that cannot be written or holds something else.
    """
    path = Path(out)
    calibrate.check_storable(path)
    with listening(progress) as listener:
        calibration = calibrate.run_calibration(Setting(provider, threads), listener)
    calibrate.store_table(calibration.target, path)
    return calibration

"""Build the report of ``leanonnx calibrate-device`` from its measurements."""

from __future__ import annotations

from pathlib import Path

from leanonnx.commands.calibrate.calibrate import DeviceCalibration, Forecast
from leanonnx.commands.calibrate.rows import CalibrationReport, EntryRow, ForecastRow
from leanonnx.hardware.targets import HARDWARE_ENTRIES
from leanonnx.runtime.providers import runtime_version
from leanonnx.system.cores import processor_name


def calibration_report(result: DeviceCalibration, path: Path, usual: Path) -> CalibrationReport:
    """The report of ``leanonnx calibrate-device``; ``usual`` is the file that ``--target auto`` reads."""
    return CalibrationReport(
        target=result.target.name,
        file=str(path),
        used_by_auto=path.resolve() == usual.resolve(),
        provider=result.setting.provider,
        threads=result.setting.threads,
        onnxruntime=runtime_version(),
        processor=processor_name(),
        steps="timed" if result.has_timed_widths else "read",
        entries={
            key: EntryRow(
                measured=getattr(result.target, key),
                built_in=getattr(result.built_in, key),
                unit=entry.unit,
                meaning=entry.meaning,
            )
            for key, entry in HARDWARE_ENTRIES.items()
        },
        checks=tuple(_forecast_row(forecast) for forecast in result.forecasts),
        seconds=round(result.seconds, 1),
        warnings=tuple(result.warnings),
    )


def _forecast_row(forecast: Forecast) -> ForecastRow:
    return ForecastRow(
        network=forecast.network,
        measured=round(forecast.measured, 4),
        predicted=round(forecast.predicted, 4),
        error=round(forecast.error, 4),
        built_in=round(forecast.built_in, 4),
        built_in_error=round(forecast.built_in_error, 4),
    )

"""``sweep`` in Python: the trade-off curves of models."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from leanonnx.api.keywords import budget_limits, compress_options
from leanonnx.api.progress import listening
from leanonnx.api.sources import optional_path, several
from leanonnx.checks import check_fraction, exactly_one
from leanonnx.commands.compress.options import Blocks, Minimise, Recover
from leanonnx.commands.sweep import driver
from leanonnx.commands.sweep.extras import maker, plotter
from leanonnx.commands.sweep.request import SweepRequest
from leanonnx.commands.sweep.rows import PointRow, SweepReport
from leanonnx.commands.sweep.tables import sweep_next_step
from leanonnx.data.images import ImageFormat
from leanonnx.data.samples import DEFAULT_IMAGE_FORMAT
from leanonnx.effort import DEFAULT_EFFORT, EffortName
from leanonnx.ranking.criteria import Chains, Method
from leanonnx.reporting.encoding import Json, to_json
from leanonnx.runtime.observation import Shapes
from leanonnx.runtime.providers import Provider
from leanonnx.selection.metrics import Budget
from leanonnx.spelling import option
from leanonnx.system.clock import Progress
from leanonnx.system.gpu import Device
from leanonnx.system.notebook import ResultTable, View, measures_of, result_csv, result_frame, result_html
from leanonnx.system.outputs import StrPath


@dataclass(frozen=True, kw_only=True)
class SweepPoint:
    """A compression of a sweep; the numbers are None where the budget could not be reached.

    Attributes:
        model: path of the original.
        fraction: what was asked for, of the unit of the sweep.
        message: why there is no result; empty for a result.
        kernels, macs, params, bytes: fractions of the original that remain.
        speedup: relative to the original; None where it was not measured.
        deviation: mean relative L2 error of the outputs.
        is_knee: True for the point at the knee of its curve.
        meets: True if it was shown to be within the tolerances; None without any.
        file: the compressed model, where models are saved.
    """

    model: str
    fraction: float
    message: str
    kernels: float | None
    macs: float | None
    params: float | None
    bytes: float | None
    speedup: float | None
    deviation: float | None
    is_knee: bool
    meets: bool | None
    file: Path | None


@dataclass(frozen=True, eq=False, repr=False, kw_only=True)
class SweepResult:
    """The trade-off curves of models.

    Attributes:
        unit: of the fractions.
        points: of all models, each model's from the largest fraction to the smallest.
        warnings: remarks on the curves.
        files: the table, the JSON object and pictures that were written, by kind.
        report: what ``leanonnx sweep`` prints.
    """

    unit: str
    points: tuple[SweepPoint, ...]
    warnings: tuple[str, ...]
    files: dict[str, Path]
    report: SweepReport

    def to_dict(self) -> Json:
        """The JSON object that ``leanonnx sweep --json`` prints."""
        return to_json(self.report)

    def __repr__(self) -> str:
        missing = sum(bool(point.message) for point in self.points)
        return f"<{len(self.points)} points by {self.unit}, {missing} of them not reached>"

    def _view(self) -> View:
        rows = [(curve.model, row) for curve in self.report.models for row in curve.points]
        deviation: tuple[dict[str, object], ...] = tuple(
            {"model": model, "fraction": row.asked, "output": name, **measures_of(one, one.known)}
            for model, row in rows
            if row.deviation
            for name, one in row.deviation.outputs.items()
        )
        return View(
            line=repr(self).strip("<>"),
            mood="plain" if self.report.headline is None else "bad",
            tables=(ResultTable("points", tuple(map(_point_cells, self.points))), ResultTable("deviation", deviation)),
            notes=self.warnings,
            next_step=sweep_next_step(self.report),
        )

    _repr_html_ = result_html
    to_pandas = result_frame
    to_csv = result_csv


def _point_cells(point: SweepPoint) -> dict[str, object]:
    """A point as a row of a table."""
    return {**vars(point), "message": point.message or None, "file": point.file and str(point.file)}


def sweep(
    models: StrPath | Sequence[StrPath],
    out: StrPath,
    *,
    keep: float | Sequence[float] | None = None,
    macs: float | Sequence[float] | None = None,
    params: float | Sequence[float] | None = None,
    latency: float | Sequence[float] | None = None,
    bytes: float | Sequence[float] | None = None,
    save_models: bool = False,
    restart: bool = False,
    jobs: int | None = None,
    dask: str | None = None,
    rules: StrPath | None = None,
    method: Method = "auto",
    chains: Chains = "cover",
    shape: Shapes | None = None,
    pin: str | Sequence[str] = (),
    ignore: str | Sequence[str] = (),
    calib: StrPath | None = None,
    images: ImageFormat = DEFAULT_IMAGE_FORMAT,
    teacher: StrPath | None = None,
    recover: Recover | None = None,
    effort: EffortName = DEFAULT_EFFORT,
    minutes: float | None = None,
    align: Literal["auto"] | int = "auto",
    target: str = "auto",
    targets: StrPath | None = None,
    provider: Provider = "cpu",
    threads: int = 0,
    blocks: Blocks = "auto",
    device: Device = "cpu",
    min_agreement: float | None = None,
    max_deviation: float | None = None,
    min_psnr: float | None = None,
    score: str | None = None,
    max_drop: float | None = None,
    minimise: Minimise | None = None,
    library: StrPath | Sequence[StrPath] = (),
    freeze: bool = False,
    unshare: bool = False,
    int8: bool = False,
    best_effort: bool = False,
    prove_twice: bool = False,
    measure: bool = False,
    seed: int = 0,
    progress: Progress | None = None,
) -> SweepResult:
    """Compress models to several fractions: the trade-off curves, with the knee of each.

    A sweep that was stopped is continued by the same call. Points that cannot be reached have a message.

        curve = leanonnx.sweep("in.onnx", "curve", keep=[0.75, 0.5, 0.25], calib="inputs.npz", measure=True)
        best = next(point for point in curve.points if point.is_knee)

    Args:
        models: paths of models, one or several.
        out: the folder of the results.
        keep, macs, params, latency, bytes: fractions, one or several; pass exactly one of these.
        save_models, restart: True keeps the model of each point; True discards earlier results in the folder.
        jobs, dask: compressions at once (None: one on each physical core); address of a Dask scheduler.
        rules: a Python file of rules.
        method, chains, shape, pin, ignore, align, target, targets: as in ``compress``; methods by name.
        calib, images, teacher, recover, effort, minutes, blocks, device: as in ``compress``; data by path, time for
            each point.
        min_agreement, max_deviation, min_psnr, score, max_drop: tolerances, as in ``compress``; each point tells if it
            meets them, and the report names the one that has least of ``minimise`` (None: of what is budgeted).
        minimise: as in ``compress``.
        provider, threads, library, freeze, unshare, int8, best_effort, prove_twice, seed: as in ``compress``.
        measure: True times each point (``latency`` always does).
        progress: called with each stage; None: log, or bar in a notebook.

    Raises:
        UserError: a wrong option, no point that can be made, or a folder that is in use or holds another sweep.
    """
    request = _request(locals())
    make = maker(request.options.budget.metric, jobs, dask, len(request.models) * len(request.fractions))
    with listening(progress) as listener:
        return _result(driver.run_sweep(request, make, plotter(), listener), Path(out))


def _request(given: Mapping[str, Any]) -> SweepRequest:
    """The request that the arguments of ``sweep`` make.

    Raises:
        OptionError: a wrong option.
    """
    name, asked = exactly_one(budget_limits(given), option("keep", [0.5]))
    fractions = several(asked, float)
    for fraction in fractions:
        check_fraction(name, fraction)
    return SweepRequest(
        models=several(given["models"], Path),
        fractions=tuple(sorted(set(fractions), reverse=True)),
        options=compress_options(given, budget=Budget.of_option(name, 1.0)),
        folder=Path(given["out"]),
        rules=optional_path(given["rules"]),
        save_models=given["save_models"],
        restart=given["restart"],
    )


def _result(report: SweepReport, folder: Path) -> SweepResult:
    points = tuple(_point(curve.model, point, folder) for curve in report.models for point in curve.points)
    files = {kind: Path(path) for kind, path in report.files.items()}
    return SweepResult(unit=report.unit, points=points, warnings=report.warnings, files=files, report=report)


def _point(model: str, row: PointRow, folder: Path) -> SweepPoint:
    shares = {name: change.fraction for name, change in row.costs.items()} if row.costs else {}
    return SweepPoint(
        model=model,
        fraction=row.asked,
        message=row.message,
        kernels=shares.get("kernels"),
        macs=shares.get("macs"),
        params=shares.get("params"),
        bytes=shares.get("bytes"),
        speedup=row.latency.comparison.speedup if row.latency else None,
        deviation=row.deviation.relative_l2 if row.deviation else None,
        is_knee=row.knee,
        meets=None if row.tolerance is None else row.tolerance.met,
        file=folder / row.file if row.file else None,
    )

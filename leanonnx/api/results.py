"""Results of the functions of ``leanonnx.api.verbs``: values to be read, saved, or turned into JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import onnx

from leanonnx.analysis.dag import ChannelDag
from leanonnx.api.sources import ModelSource, model_title
from leanonnx.commands.bench.benchmark import BenchCase
from leanonnx.commands.bench.rows import BenchReport
from leanonnx.commands.bench.tables import bench_next_step
from leanonnx.commands.compress.pipeline import CompressResult
from leanonnx.commands.compress.report import compression_report, summary_context
from leanonnx.evaluation.deviation import Fidelity
from leanonnx.formatting import count_text, shape_text
from leanonnx.graph.storage import write_model
from leanonnx.proof.proof import Proof
from leanonnx.reporting.costs import CostChange
from leanonnx.reporting.encoding import Json, to_json
from leanonnx.reporting.inspection import channel_report
from leanonnx.reporting.reports import ChannelCounts, ChannelReport, CompressionReport, NetworkReport
from leanonnx.reporting.rows import LayerRow, PinRow, ProductRow, TieRow
from leanonnx.reporting.summary import SummaryContext, summarise
from leanonnx.runtime.timing import TimingComparison
from leanonnx.surgery.plan import Plan
from leanonnx.system.notebook import Estimate, ResultTable, View, result_csv, result_frame, result_html
from leanonnx.system.outputs import StrPath, check_no_overwrites, check_writable, publish, temporary_folder_beside

UNSAVED = "OUT.onnx"
"""Stands for the file that the user will save a result to."""


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Compressed:
    """A compressed model that has been proven.

    Attributes:
        plan: the channels that are kept; it can be saved, and carried out again.
        proof: equality with the original whose removed channels are masked (after ``exact``: with the original).
        latency: times of both models, taken in turns; None if they were not measured.
        deviation: deviation of the outputs from the original's on real inputs; None without any.
        report: what ``leanonnx compress`` prints.
    """

    plan: Plan
    proof: Proof
    latency: TimingComparison | None
    deviation: Fidelity | None
    report: CompressionReport
    _proto: onnx.ModelProto
    _context: SummaryContext
    _files: tuple[Path, ...] = field(default=())

    @classmethod
    def of(cls, result: CompressResult, written: Path, original: ModelSource) -> Compressed:
        """A result of the pipeline with the model that it has written."""
        report, files = compression_report(result), result.dag.model.files
        return cls(
            plan=result.plan,
            proof=result.proof,
            latency=result.latency,
            deviation=result.deviation,
            report=report,
            _proto=onnx.load(written),
            _context=summary_context(result, model_title(original), UNSAVED),
            _files=files,
        )

    @cached_property
    def model(self) -> onnx.ModelProto:
        """The compressed model, with its weights in memory; a copy, which may be changed."""
        copy = onnx.ModelProto()
        copy.CopyFrom(self._proto)
        return copy

    @property
    def kernels(self) -> CostChange:
        """Pairs of input and output channel of Conv, ConvTranspose, Gemm and MatMul."""
        return self.report.costs.kernels

    @property
    def macs(self) -> CostChange:
        """Multiply-adds of one run."""
        return self.report.costs.macs

    @property
    def params(self) -> CostChange:
        """Numbers stored as weights."""
        return self.report.costs.params

    @property
    def bytes(self) -> CostChange:
        """Bytes of the file with its external data."""
        return self.report.costs.bytes

    @property
    def pins(self) -> tuple[PinRow, ...]:
        """Channels that may not be removed."""
        return self.report.pins

    @property
    def layers(self) -> tuple[LayerRow, ...]:
        """Layers with kernels, before and after."""
        return self.report.layers

    @property
    def products(self) -> tuple[ProductRow, ...]:
        """Nodes with multiply-adds but no kernels, before and after."""
        return self.report.products

    @property
    def warnings(self) -> tuple[str, ...]:
        """Warnings on the result, as the command line prints them."""
        return self.report.warnings

    def save(self, path: StrPath) -> None:
        """Write the model as it was proven; it appears at once, whole, external data in ``path``.data beside it.

        Raises:
            OptionError: that would overwrite the original.
            OutputError: it cannot be written there.
        """
        output = Path(path)
        check_writable(self._files[0], output)
        check_no_overwrites(self._files, output)
        with temporary_folder_beside(output) as folder:
            write_model(self._proto, folder / output.name, external=len(self._files) > 1)
            publish(folder / output.name, output)

    def to_dict(self) -> Json:
        """The JSON object that ``leanonnx compress --json`` prints."""
        return to_json(self.report)

    def __repr__(self) -> str:
        changes = [f"{name} {c.before} → {c.after} ({c.fraction:.4f})" for name, c in self.report.costs.items()]
        return f"<{', '.join(changes)}; {'; '.join(self._evidence())}>"

    def _view(self) -> View:
        summary = summarise(self.report, self._context)
        costs: tuple[dict[str, object], ...] = tuple(
            {"cost": name, **vars(change)} for name, change in self.report.costs.items()
        )
        fidelity = self.deviation
        return View(
            line=summary.verdict,
            mood=summary.mood,
            tables=(
                ResultTable("layers", _row_cells(self.layers), folded=True),
                ResultTable("costs", costs),
                *(() if fidelity is None else (ResultTable("deviation", fidelity.rows()),)),
                *(() if fidelity is None else (ResultTable("metric", fidelity.metric_rows()),)),
                ResultTable("pins", _row_cells(self.pins), folded=True),
            ),
            notes=(self._evidence()[0], *self.warnings),
            next_step=summary.next_step,
        )

    _repr_html_ = result_html
    to_pandas = result_frame
    to_csv = result_csv

    def _evidence(self) -> list[str]:
        """Proof and latency in short."""
        latency = self.latency
        timed = "not measured" if latency is None else f"{latency.verdict}: {latency.speedup:.2f} times the speed"
        return [f"proof {self.proof.status} ({self.proof.max_relative_error:.1e})", timed]


@dataclass(frozen=True, eq=False, repr=False)
class Analysis:
    """The costs, layers, ties and pins of a model.

    Attributes:
        dag: the channels themselves, with their ties and pins.
        report: what ``leanonnx inspect`` prints.
    """

    dag: ChannelDag
    report: NetworkReport

    @property
    def kernels(self) -> int:
        """Pairs of input and output channel of Conv, ConvTranspose, Gemm and MatMul."""
        return self.report.costs.kernels

    @property
    def macs(self) -> int:
        """Multiply-adds of one run at the sizes in ``inputs``."""
        return self.report.costs.macs

    @property
    def params(self) -> int:
        """Numbers stored as weights."""
        return self.report.costs.params

    @property
    def bytes(self) -> int:
        """Bytes of the file with its external data."""
        return self.report.costs.bytes

    @property
    def inputs(self) -> Mapping[str, tuple[int, ...]]:
        """Shapes of the graph inputs."""
        return self.report.inputs

    @property
    def channels(self) -> ChannelCounts:
        """Number of groups of tied channels, and of those that are pinned."""
        return self.report.channels

    @property
    def layers(self) -> tuple[LayerRow, ...]:
        """Layers with kernels; numbers before and after are the same."""
        return self.report.layers

    @property
    def products(self) -> tuple[ProductRow, ...]:
        """Nodes with multiply-adds but no kernels; numbers before and after are the same."""
        return self.report.products

    @property
    def ties(self) -> tuple[TieRow, ...]:
        """Layers whose output channels are tied."""
        return self.report.ties

    @property
    def pins(self) -> tuple[PinRow, ...]:
        """Channels that may not be removed."""
        return self.report.pins

    def why(self, tensor: str, channel: int | None = None) -> ChannelReport:
        """The channels of a tensor, or one of them: their axes, the tensors that they are tied to, and their pins.

        Raises:
            OptionError: no tensor of that name carries channels, or it has fewer.
        """
        return channel_report(self.dag, tensor, channel)

    def to_dict(self) -> Json:
        """The JSON object that ``leanonnx inspect --json`` prints."""
        return to_json(self.report)

    def __repr__(self) -> str:
        groups, pinned = self.channels.groups, self.channels.pinned
        return f"<{len(self.layers)} layers, {self.kernels} kernels; {groups} channels, {pinned} of them pinned>"

    def _view(self) -> View:
        costs: tuple[dict[str, object], ...] = tuple(
            {"cost": name, "count": count} for name, count in self.report.costs.items()
        )
        tables = (
            ResultTable("layers", _row_cells(self.layers), folded=True),
            ResultTable("costs", costs),
            ResultTable("pins", _row_cells(self.pins)),
            ResultTable("ties", _row_cells(self.ties), folded=True),
        )
        return View(line=repr(self).strip("<>"), tables=tables)

    _repr_html_ = result_html
    to_pandas = result_frame
    to_csv = result_csv


@dataclass(frozen=True, eq=False, repr=False)
class Timings:
    """Times of one model, or of two taken in turns.

    Attributes:
        cases: one for each batch and number of threads; ``outcome`` is a ``TimingComparison``, or a ``Timing``.
        report: what ``leanonnx bench`` prints.
    """

    cases: tuple[BenchCase, ...]
    report: BenchReport

    def to_dict(self) -> Json:
        """The JSON object that ``leanonnx bench --json`` prints."""
        return to_json(self.report)

    def __repr__(self) -> str:
        return f"<{'; '.join(_case_text(case) for case in self.cases)}>"

    def _view(self) -> View:
        notes = dict.fromkeys(text for case in self.cases for text in case.warnings)
        table = ResultTable("cases", tuple(map(_case_cells, self.cases)))
        step = bench_next_step(self.report)
        return View(line=repr(self).strip("<>"), tables=(table,), notes=tuple(notes), next_step=step)

    _repr_html_ = result_html
    to_pandas = result_frame
    to_csv = result_csv


def _row_cells(rows: Sequence[object]) -> tuple[dict[str, object], ...]:
    """Rows of a report as those of a table."""
    return tuple(dict(vars(row)) for row in rows)


def _case_cells(case: BenchCase) -> dict[str, object]:
    """A measurement as a row of a table."""
    sizes = "; ".join(f"{name} {shape_text(shape)}" for name, shape in case.inputs.items())
    row: dict[str, object] = {"provider": case.setting.provider, "threads": case.setting.threads, "inputs": sizes}
    timing = case.outcome
    if not isinstance(timing, TimingComparison):
        return {**row, "p10_ms": timing.p10, "median_ms": timing.median, "p90_ms": timing.p90}
    speedup = Estimate(timing.speedup, timing.interval)
    row |= {"before_ms": timing.before.median, "after_ms": timing.after.median, "speedup": speedup}
    return {**row, "noise": timing.noise, "verdict": timing.verdict}


def _case_text(case: BenchCase) -> str:
    sizes = ", ".join(f"{name} {shape_text(shape)}" for name, shape in case.inputs.items())
    setting = f"{case.setting.provider}, {count_text(case.setting.threads, 'thread')}, {sizes}"
    timing = case.outcome
    if not isinstance(timing, TimingComparison):
        return f"{setting}: {timing.median:.3f} ms"
    times = f"{timing.before.median:.3f} ms and {timing.after.median:.3f} ms"
    return f"{setting}: {times}, {timing.verdict} ({timing.speedup:.2f} times as fast)"

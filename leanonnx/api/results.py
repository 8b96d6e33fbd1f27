"""What the functions of ``leanonnx.api.verbs`` give back: values to be read, saved, or turned into the verbs' JSON."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from html import escape
from pathlib import Path

import onnx

from leanonnx.analysis.dag import ChannelDag
from leanonnx.commands.bench.benchmark import Case
from leanonnx.commands.compress.pipeline import CompressResult
from leanonnx.evaluation.deviation import Fidelity
from leanonnx.formatting import counted, shape_text
from leanonnx.graph.storage import write_model
from leanonnx.proof.proof import Proof
from leanonnx.reporting import inspection, report
from leanonnx.reporting.report import Row
from leanonnx.runtime.timing import TimingComparison
from leanonnx.selection.metrics import COUNTED_METRICS
from leanonnx.surgery.plan import Plan
from leanonnx.system.outputs import StrPath, check_apart, check_writable, publish, temporary_beside


@dataclass(frozen=True)
class Change:
    """A number of the original and of the result, and the ``fraction`` that is left."""

    before: int
    after: int
    fraction: float


@dataclass(frozen=True, eq=False, repr=False)
class Compressed:
    """A compressed model that has been proven, and what is to be told of it.

    Attributes:
        plan: which channels survive; it can be saved, and carried out again.
        proof: equality with the original whose removed channels are masked (after ``exact``: with the original).
        latency: times of both models, taken in turns; None if they were not measured.
        deviation: how far the outputs are from the original's on real inputs; None without any.
    """

    plan: Plan
    proof: Proof
    latency: TimingComparison | None
    deviation: Fidelity | None
    _row: Row
    _proto: onnx.ModelProto
    _files: tuple[Path, ...] = field(default=())

    @classmethod
    def of(cls, found: CompressResult, written: Path) -> Compressed:
        """What came of a compression, and was written there."""
        deviation = None if found.recovery is None else found.recovery.final
        row, files = report.summary(found), found.dag.model.files
        return cls(found.plan, found.proof, found.latency, deviation, row, onnx.load(written), files)

    @cached_property
    def model(self) -> onnx.ModelProto:
        """The compressed model, with its weights in memory; a copy, which may be changed."""
        copy = onnx.ModelProto()
        copy.CopyFrom(self._proto)
        return copy

    @property
    def kernels(self) -> Change:
        """Pairs of input and output channel of Conv, ConvTranspose, Gemm and MatMul."""
        return Change(**self._row["kernels"])

    @property
    def macs(self) -> Change:
        """Multiply-adds of one run."""
        return Change(**self._row["macs"])

    @property
    def params(self) -> Change:
        """Numbers stored as weights."""
        return Change(**self._row["params"])

    @property
    def bytes(self) -> Change:
        """Bytes of the file with its external data."""
        return Change(**self._row["bytes"])

    @property
    def pins(self) -> list[Row]:
        """Channels that may not be removed: tensor, channels, reason, advice, kernels that touch them."""
        return list(self._row["pins"])

    @property
    def layers(self) -> list[Row]:
        """Layers with kernels: name, operator, and before and after: groups, channels in and out, kernels, macs."""
        return list(self._row["layers"])

    @property
    def warnings(self) -> tuple[str, ...]:
        """What should not be overlooked."""
        return tuple(self._row["warnings"])

    def save(self, path: StrPath) -> None:
        """Write the model as it was proven; it appears at once, whole, external data in ``path``.data beside it.

        Raises:
            OptionError: that would overwrite the original.
            OutputError: it cannot be written there.
        """
        target = Path(path)
        check_writable(self._files[0], target)
        check_apart(self._files, target)
        with temporary_beside(target) as folder:
            write_model(self._proto, folder / target.name, external=len(self._files) > 1)
            publish(folder / target.name, target)

    def to_dict(self) -> Row:
        """What ``leanonnx compress --json`` prints."""
        return dict(self._row)

    def __repr__(self) -> str:
        changes = [f"{name} {c.before} → {c.after} ({c.fraction:.4f})" for name, c in self._changes()]
        return f"<{', '.join(changes)}; {'; '.join(self._words())}>"

    def _repr_html_(self) -> str:
        """For notebooks."""
        rows = [(name, f"{c.before:,}", f"{c.after:,}", f"{c.fraction:.4f}") for name, c in self._changes()]
        cells = ["".join(f"<td>{cell}</td>" for cell in row) for row in rows]
        head = "".join(f"<th>{name}</th>" for name in ("", "before", "after", "fraction"))
        table = "".join(f"<tr>{row}</tr>" for row in (head, *cells))
        notes = "".join(f"<p>{escape(text)}</p>" for text in (*self._words(), *self.warnings))
        return f"<table>{table}</table>{notes}"

    def _changes(self) -> list[tuple[str, Change]]:
        return [(metric.name, Change(**self._row[metric.name])) for metric in COUNTED_METRICS]

    def _words(self) -> list[str]:
        """Proof and latency in short."""
        timed = "not measured" if self.latency is None else f"{self.latency.speedup:.2f} times the speed"
        return [f"proof {self.proof.status} ({self.proof.max_relative_error:.1e})", timed]


@dataclass(frozen=True, eq=False, repr=False)
class Analysis:
    """What can be pruned of a model, and what it costs.

    Attributes:
        dag: the channels themselves, with their ties and pins.
    """

    dag: ChannelDag
    _row: Row

    @property
    def kernels(self) -> int:
        """Pairs of input and output channel of Conv, ConvTranspose, Gemm and MatMul."""
        return int(self._row["kernels"])

    @property
    def macs(self) -> int:
        """Multiply-adds of one run at the sizes in ``inputs``."""
        return int(self._row["macs"])

    @property
    def params(self) -> int:
        """Numbers stored as weights."""
        return int(self._row["params"])

    @property
    def bytes(self) -> int:
        """Bytes of the file with its external data."""
        return int(self._row["bytes"])

    @property
    def inputs(self) -> dict[str, list[int]]:
        """Sizes of the graph inputs."""
        return dict(self._row["inputs"])

    @property
    def channels(self) -> dict[str, int]:
        """How many ``classes`` of channels live and die together, and how many of them are ``pinned``."""
        return dict(self._row["channels"])

    @property
    def layers(self) -> list[Row]:
        """Layers with kernels: name, operator, groups, channels in and out, kernels, macs (twice: nothing has gone)."""
        return list(self._row["layers"])

    @property
    def ties(self) -> list[Row]:
        """Layers whose output channels live and die together, and how many classes of them."""
        return list(self._row["ties"])

    @property
    def pins(self) -> list[Row]:
        """Channels that may not be removed: tensor, channels, reason, advice, kernels that touch them."""
        return list(self._row["pins"])

    def why(self, tensor: str, channel: int | None = None) -> Row:
        """Why a tensor's channels, or one of them, stay or go: its axes, what it is tied to, what pins it.

        Raises:
            OptionError: no tensor of that name carries channels, or it has fewer.
        """
        return inspection.why(self.dag, tensor, channel)

    def to_dict(self) -> Row:
        """What ``leanonnx inspect --json`` prints."""
        return dict(self._row)

    def __repr__(self) -> str:
        classes, pinned = self.channels["classes"], self.channels["pinned"]
        return f"<{len(self.layers)} layers, {self.kernels} kernels; {classes} channels, {pinned} of them pinned>"


@dataclass(frozen=True, eq=False, repr=False)
class Timings:
    """Times of one model, or of two taken in turns.

    Attributes:
        cases: one for each batch and number of threads; ``outcome`` is a ``Comparison``, or the ``Timing`` of one.
    """

    cases: tuple[Case, ...]
    _row: Row

    def to_dict(self) -> Row:
        """What ``leanonnx bench --json`` prints."""
        return dict(self._row)

    def __repr__(self) -> str:
        return f"<{'; '.join(_said(case) for case in self.cases)}>"


def _said(case: Case) -> str:
    sizes = ", ".join(f"{name} {shape_text(shape)}" for name, shape in case.inputs.items())
    setting = f"{case.setting.provider}, {counted(case.setting.threads, 'thread')}, {sizes}"
    found = case.outcome
    if not isinstance(found, TimingComparison):
        return f"{setting}: {found.median:.3f} ms"
    times = f"{found.before.median:.3f} ms and {found.after.median:.3f} ms"
    return f"{setting}: {times}, {found.words} ({found.speedup:.2f} times as fast)"

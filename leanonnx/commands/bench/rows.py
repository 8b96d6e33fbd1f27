"""The report of ``leanonnx bench``: frozen data with the keys of its JSON."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated

from leanonnx.reporting.encoding import INLINE, OPTIONAL_INLINE
from leanonnx.reporting.rows import REPORT_SCHEMA, ComparisonRow
from leanonnx.runtime.fastpath import ConvolutionLayouts


@dataclass(frozen=True)
class TimingRow:
    """Times of one model in milliseconds; ``memory_bytes`` and ``convolutions`` are None where they are unknown."""

    p10_ms: float
    median_ms: float
    p90_ms: float
    session_ms: float
    first_ms: float
    runs: int
    memory_bytes: int | None
    convolutions: ConvolutionLayouts | None


@dataclass(frozen=True)
class CaseRow:
    """One measurement; ``after`` and ``comparison`` are None for a model timed alone."""

    batch: int | None
    threads: int
    inputs: Mapping[str, tuple[int, ...]]
    before: TimingRow
    after: TimingRow | None
    comparison: Annotated[ComparisonRow | None, INLINE]
    warnings: tuple[str, ...]


@dataclass(frozen=True)
class GpuRow:
    """Settings of the GPU."""

    algo_search: str
    tf32: bool
    cuda_graph: bool


@dataclass(frozen=True)
class FixedRow:
    """Settings that all measurements share; ``gpu`` is None on the CPU."""

    onnxruntime: str
    processor: str
    inter_op_threads: int
    execution: str
    optimisation: str
    denormals: str
    spinning: str
    io_binding: bool
    gpu: Annotated[GpuRow | None, OPTIONAL_INLINE]
    input_values: str
    seconds: float
    seed: int


@dataclass(frozen=True, kw_only=True)
class BenchReport:
    """The report of ``leanonnx bench``: titles of the models, settings, and the measurements."""

    schema: int = REPORT_SCHEMA
    before: str
    after: str | None
    provider: str
    fixed: FixedRow
    results: tuple[CaseRow, ...]

"""``check`` in Python: a candidate model against its baseline, gate by gate."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from leanonnx.api.progress import listening
from leanonnx.api.sources import ModelSource, as_file, model_title, optional_path, several
from leanonnx.commands.bench.benchmark import BenchRequest
from leanonnx.commands.check import check as gatekeeper
from leanonnx.commands.check.gates import LIMITED_GATES, GateLimit, read_gates, read_limit
from leanonnx.commands.check.report import check_report
from leanonnx.commands.check.rows import CheckReport
from leanonnx.commands.check.texts import check_next_step, verdict_text
from leanonnx.commands.check.verdicts import Verdict
from leanonnx.data.images import ImageFormat
from leanonnx.data.samples import DEFAULT_IMAGE_FORMAT
from leanonnx.evaluation.user_scores import ScoreFunction
from leanonnx.reporting.encoding import Json, to_json
from leanonnx.runtime.observation import Shapes
from leanonnx.runtime.providers import Provider, Setting
from leanonnx.runtime.timing import DEFAULT_TIMING_SECONDS
from leanonnx.spelling import option
from leanonnx.system.clock import Progress
from leanonnx.system.notebook import ResultTable, View, measures_of, result_csv, result_frame, result_html
from leanonnx.system.outputs import StrPath

LimitText = float | str
"""A limit: a number, or text such as "5MB" or "0.5x" (a multiple of the baseline's)."""


@dataclass(frozen=True, eq=False, repr=False)
class CheckResult:
    """Verdicts on a candidate model.

    Attributes:
        verdicts: one for each gate that is always checked or has a limit.
        notes: changes that break no caller, and remarks on the measurements.
        report: what ``leanonnx check`` prints.
    """

    verdicts: tuple[Verdict, ...]
    notes: tuple[str, ...]
    report: CheckReport

    @property
    def failed(self) -> tuple[str, ...]:
        """Names of the gates that the candidate did not pass."""
        return self.report.failed

    @property
    def passed(self) -> bool:
        """True if the candidate passed all gates."""
        return not self.failed

    def to_dict(self) -> Json:
        """The JSON object that ``leanonnx check --json`` prints."""
        return to_json(self.report)

    def __repr__(self) -> str:
        return f"<{verdict_text(self.report)}>"

    def _view(self) -> View:
        deviation: tuple[dict[str, object], ...] = tuple(
            {"inputs": row.inputs, "samples": row.fidelity.samples, "output": name, **measures_of(one, one.known)}
            for row in (*self.report.deviation, *self.report.sizes)
            for name, one in row.fidelity.outputs.items()
        )
        tables = (ResultTable("gates", tuple(map(vars, self.report.gates))), ResultTable("deviation", deviation))
        return View(
            line=verdict_text(self.report),
            mood="good" if self.passed else "bad",
            tables=tables,
            notes=self.notes,
            next_step=check_next_step(self.report),
        )

    _repr_html_ = result_html
    to_pandas = result_frame
    to_csv = result_csv


def _limits(given: Mapping[str, Any]) -> dict[str, GateLimit]:
    """The limits by gate from the arguments of ``check``, which override those of its file.

    Raises:
        OptionError: a limit is of another form than its gate takes, or the file cannot be read.
    """
    keywords = {name: given[name.replace("-", "_")] for name in LIMITED_GATES}
    asked = {name: read_limit(name, limit, option(name)) for name, limit in keywords.items() if limit is not None}
    return (read_gates(Path(given["gates"])) if given["gates"] else {}) | asked


def check(
    base: ModelSource,
    new: ModelSource,
    *,
    max_deviation: LimitText | None = None,
    min_agreement: LimitText | None = None,
    min_psnr: LimitText | None = None,
    max_drop: LimitText | None = None,
    score: str | ScoreFunction | None = None,
    min_speedup: LimitText | None = None,
    max_latency_ms: LimitText | None = None,
    max_bytes: LimitText | None = None,
    max_params: LimitText | None = None,
    max_macs: LimitText | None = None,
    gates: StrPath | None = None,
    data: StrPath | None = None,
    images: ImageFormat = DEFAULT_IMAGE_FORMAT,
    provider: Provider = "cpu",
    skip_missing_provider: bool = False,
    threads: int | Sequence[int] = 0,
    batch: int | Sequence[int] = (),
    shape: Shapes | None = None,
    seconds: float = DEFAULT_TIMING_SECONDS,
    library: StrPath | Sequence[StrPath] = (),
    seed: int = 0,
    progress: Progress | None = None,
) -> CheckResult:
    """Compare a candidate model with its baseline, gate by gate; a failed gate is no error.

    Always checked: validity, interface, that it runs, NaN and infinity, determinism, denormal weights.

    >>> small = compress("models/cs_unet.onnx", keep=0.5)
    >>> checked = check("models/cs_unet.onnx", small.model, max_macs="0.6x", max_deviation=1e-6)
    >>> checked.passed, checked.failed
    (False, ('max-deviation',))

    Args:
        base: the baseline.
        new: the candidate.
        max_deviation, min_agreement: limits of ‖difference‖ / ‖baseline's‖ and of the share of equal decisions.
        min_psnr: limit of the PSNR in dB of outputs that are images.
        max_drop, score: limit of the fall of a score, and the function of it, as in ``compress``; needs ``data``.
        min_speedup, max_latency_ms: limits of the speed relative to the baseline, and of the median of one run.
        max_bytes, max_params, max_macs: limits as numbers, or as text such as "5MB", "2.5M" or "0.5x".
        gates: a TOML file of limits by the same names; keywords override it.
        data, images: file or folder of real inputs, None for random ones; the format of images among them.
        provider, skip_missing_provider: where latency is measured; True skips these gates if the provider is missing.
        threads, batch, shape, seconds, library: as in ``bench``.
        seed: of the inputs and of the interval.
        progress: called with each stage; None: log, or bar in a notebook.

    Raises:
        UserError: a baseline that cannot be used, a wrong limit or option, data that the baseline does not take.
    """
    request = gatekeeper.CheckRequest(
        limits=_limits(locals()),
        data=optional_path(data),
        score=score,
        images=images,
        timed=BenchRequest(
            shapes=shape or {},
            batches=several(batch, int),
            threads=several(threads, int),
            setting=Setting(provider),
            libraries=several(library, Path),
            seconds=seconds,
            seed=seed,
        ),
        skip_missing=skip_missing_provider,
    )
    with as_file(base) as base_path, as_file(new) as new_path, listening(progress) as listener:
        outcome = gatekeeper.run_check(base_path, new_path, request, listener)
    return CheckResult(
        outcome.verdicts, outcome.notes, check_report(model_title(base), model_title(new), request, outcome)
    )

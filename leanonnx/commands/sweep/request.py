"""Request of a sweep, and the header that distinguishes it from others in the same folder."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from leanonnx.commands.compress.choosing import resolved_target
from leanonnx.commands.compress.options import CompressOptions
from leanonnx.commands.sweep.rows import ConditionsRow, HeaderRow, SubjectRow
from leanonnx.commands.sweep.worker import Task, calibration_path
from leanonnx.data.files import sample_files
from leanonnx.errors import ModelError
from leanonnx.graph.formats import float_types
from leanonnx.graph.model import load
from leanonnx.graph.storage import digest
from leanonnx.selection.metrics import Budget
from leanonnx.spelling import current_spelling
from leanonnx.system.cores import processor_name
from leanonnx.version import __version__


@dataclass(frozen=True, kw_only=True)
class SweepRequest:
    """Request of ``sweep``.

    ``options``: options of every point, except the fraction of the budget; ``rules``: file of user rules;
    ``save_models``: keep the candidates in the folder; ``restart``: remove an earlier sweep from the folder.
    """

    models: tuple[Path, ...]
    fractions: tuple[float, ...]
    options: CompressOptions
    folder: Path
    rules: Path | None = None
    save_models: bool = False
    restart: bool = False

    @property
    def unit(self) -> str:
        """The unit of the budget."""
        return self.options.budget.unit


@dataclass(frozen=True, kw_only=True)
class Subject:
    """A model of a sweep.

    ``name``: its unique name in the sweep; ``external``: files of its external weights; ``target``: the hardware whose
    fast widths it gets; ``error``: why it cannot be swept, if so.
    """

    name: str
    path: Path
    sha256: str = ""
    external: tuple[Path, ...] = ()
    target: str = "auto"
    error: ModelError | None = None

    def candidate(self, request: SweepRequest, asked: float) -> str:
        """File name of the candidate of a fraction."""
        return f"{self.name}-{request.options.budget.option}-{asked}.onnx"

    def task(self, request: SweepRequest, asked: float) -> Task:
        """The compression for a fraction; it measures only if its search requires it."""
        budget, measure = Budget(request.unit, asked), request.options.budget.metric.measured
        points = len(request.fractions)
        options = replace(
            request.options, budget=budget, target=self.target, measure=measure, minimise=None, points=points
        )
        return Task(
            source=self.path,
            name=self.candidate(request, asked),
            options=options,
            external=self.external,
            rules=request.rules,
            caller=current_spelling(),
        )


def subjects(request: SweepRequest) -> list[Subject]:
    """The models of a sweep, under unique names.

    Raises:
        UserError: no model can be swept, or an option is wrong.
    """
    by_name: dict[str, Subject] = {}
    for path in request.models:
        name, count = path.stem, 1
        while name in by_name:
            count += 1
            name = f"{path.stem}-{count}"
        try:
            model = load(path, request.options.libraries, request.options.freeze)
        except ModelError as error:
            by_name[name] = Subject(name=name, path=path, error=error)
        else:
            target = resolved_target(request.options, float_types(model.proto)).name
            by_name[name] = Subject(
                name=name, path=path, sha256=model.sha256, external=model.external_files, target=target
            )
    errors = [subject.error for subject in by_name.values() if subject.error]
    if len(errors) == len(by_name):
        raise errors[0]
    return list(by_name.values())


def header(request: SweepRequest, models: Iterable[Subject]) -> HeaderRow:
    """Properties shared by all points of a folder; further fractions and models can be added."""
    options = request.options
    record, calib = options.record(), calibration_path(options)
    del record[request.unit]
    conditions = ConditionsRow(
        leanonnx=__version__,
        budget=request.unit,
        options=record,
        recover=options.recovers,
        measured=options.measures,
        models_saved=request.save_models,
        provider=options.setting.provider,
        threads=options.setting.with_thread_count.threads,
        processor=processor_name() if options.measures else "",
        images=options.images if options.calib else None,
        calib_sha256=_files_digest(*sample_files(calib)) if calib else None,
        rules_sha256=_files_digest(request.rules) if request.rules else None,
        libraries_sha256=_files_digest(*options.libraries),
        targets_sha256=_files_digest(options.targets) if options.targets else None,
    )
    return HeaderRow(conditions, {each.name: SubjectRow(each.sha256, each.target) for each in models if not each.error})


def _files_digest(*files: Path) -> str:
    """Digest of the names and contents of files."""
    return hashlib.sha256(b"".join(file.name.encode() + b"\0" + digest(file) for file in files)).hexdigest()

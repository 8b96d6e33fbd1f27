"""What a sweep is asked for, and what tells it from another one in the same folder."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from leanonnx.commands.compress.choosing import resolved_target
from leanonnx.commands.compress.options import CompressOptions
from leanonnx.commands.sweep.rows import ConditionsRow, HeaderRow, SubjectRow
from leanonnx.commands.sweep.worker import Task, calibration
from leanonnx.data.files import sample_files
from leanonnx.errors import ModelError
from leanonnx.graph.formats import float_kinds
from leanonnx.graph.model import load
from leanonnx.graph.storage import digest
from leanonnx.selection.selector import LATENCY, Budget
from leanonnx.system.cores import processor
from leanonnx.version import __version__


@dataclass(frozen=True)
class SweepRequest:
    """What to sweep.

    ``options`` are those of every point but for the fraction of their budget; ``rules`` is a file of the user's;
    candidates are kept in the folder with ``save_models``; ``restart`` forgets what the folder holds.
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


@dataclass(frozen=True)
class Subject:
    """A model of a sweep: its ``name`` in there, where its weights lie, the target that it is fitted to.

    ``error`` says why it cannot be swept.
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
        """What to do for a fraction; it measures only where its search has to."""
        budget, measure = Budget(request.unit, asked), request.unit == LATENCY
        options = replace(request.options, budget=budget, target=self.target, measure=measure)
        return Task(self.path, self.candidate(request, asked), options, self.external, request.rules)


def subjects(request: SweepRequest) -> list[Subject]:
    """The models, each under a name of its own.

    Raises:
        UserError: no model can be swept, or an option is wrong.
    """
    found: dict[str, Subject] = {}
    for path in request.models:
        name, count = path.stem, 1
        while name in found:
            count += 1
            name = f"{path.stem}-{count}"
        try:
            model = load(path, request.options.libraries, request.options.freeze)
        except ModelError as error:
            found[name] = Subject(name, path, error=error)
        else:
            target = resolved_target(request.options, float_kinds(model.proto)).name
            found[name] = Subject(name, path, model.sha256, model.external_files, target)
    errors = [subject.error for subject in found.values() if subject.error]
    if len(errors) == len(found):
        raise errors[0]
    return list(found.values())


def header(request: SweepRequest, models: Iterable[Subject]) -> HeaderRow:
    """What the points of a folder have in common; which fractions and models is left open."""
    options = request.options
    record, calib = options.record(), calibration(options)
    del record[request.unit]
    conditions = ConditionsRow(
        leanonnx=__version__,
        budget=request.unit,
        options=record,
        recover=options.recovers,
        measured=options.measure,
        models_saved=request.save_models,
        provider=options.setting.provider,
        threads=options.setting.resolved.threads,
        processor=processor() if options.measure else "",
        images=options.images if options.calib else None,
        calib_sha256=_content(*sample_files(calib)) if calib else None,
        rules_sha256=_content(request.rules) if request.rules else None,
        libraries_sha256=_content(*options.libraries),
        targets_sha256=_content(options.targets) if options.targets else None,
    )
    return HeaderRow(conditions, {each.name: SubjectRow(each.sha256, each.target) for each in models if not each.error})


def _content(*files: Path) -> str:
    """Digest of the names and contents of files."""
    return hashlib.sha256(b"".join(file.name.encode() + b"\0" + digest(file) for file in files)).hexdigest()

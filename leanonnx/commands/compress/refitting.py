"""The stage that changes the remaining weights, by recovery or as a plan recorded; and its record in the plan."""

from __future__ import annotations

import hashlib
import os
import shutil
from dataclasses import asdict, replace
from pathlib import Path

import onnx

from leanonnx.commands.compress.candidate import Candidate, CompressJob, Refit
from leanonnx.commands.compress.cautions import Caution
from leanonnx.commands.compress.notes import calibration_warnings, time_warnings
from leanonnx.commands.compress.options import CompressOptions, calib_name
from leanonnx.data.samples import DEFAULT_IMAGE_FORMAT
from leanonnx.effort import DEFAULT_EFFORT
from leanonnx.errors import OptionError
from leanonnx.graph.model import Model
from leanonnx.recovery.data_free_draft import DataFreeRecovery, recover_without_data
from leanonnx.recovery.draft import Recovery, recover_from_data
from leanonnx.recovery.weights import StoredWeights, changed_weights, read_weights, restore_weights
from leanonnx.spelling import option
from leanonnx.surgery.recipe import Recipe, WeightsFile
from leanonnx.system.outputs import data_file

DIGITS = 12
"""Digits of a digest that messages show."""


def weights_files(options: CompressOptions) -> tuple[Path, ...]:
    """The file of the weights that come with the plan, if they are to be used."""
    recipe = options.plan.recovery if options.plan else None
    return () if recipe is None or recipe.weights is None or _overrides_plan(options) else (recipe.weights.path,)


def stored_weights(options: CompressOptions) -> StoredWeights | None:
    """The weights that come with the plan, if they are to be used.

    Raises:
        PlanError: their file is missing, or is not the one that the plan was written with.
    """
    plan = options.plan
    if plan is None or plan.recovery is None or plan.recovery.weights is None or _overrides_plan(options):
        return None
    return read_weights(plan.recovery.weights, plan.origin)


def check_weights_wanted(options: CompressOptions, plan_weights: Path | None) -> None:
    """Refuse to write changed weights if none can be changed.

    Raises:
        OptionError: there are none.
    """
    if plan_weights is not None and not options.recovers and not weights_files(options):
        raise OptionError(
            f"{option('plan_weights', str(plan_weights))}: holds weights that were changed, and none are; add "
            f"{option('calib')} or {option('recover', 'auto')}, or leave it out"
        )


def recover_weights(candidate: Candidate) -> Candidate:
    """Change the weights of a proven candidate, from data or without, or take those that come with the plan.

    Raises:
        DataError, PlanError, ProofFailed: the data or the weights do not fit the network.
    """
    job = candidate.job
    target = job.new_file("recovered")
    evidence = _recover(candidate, target)
    path = target if evidence is not None and evidence.kept else candidate.path
    planned = job.options.plan.recovery if job.options.plan else None
    recipe, restored = None, None
    if job.stored is not None and planned is not None and planned.weights is not None:
        path = _restore(job, job.stored, path, job.new_file("restored"))
        recipe, restored = planned, planned.weights.path
    own = _recipe(job)
    if job.stand_ins or (evidence is not None and evidence.kept):
        recipe = own
    notes = [Caution("missed", text) for text in _differences(job.options, planned, own)]
    files = dict[Path, bytes]()
    if job.plan_weights is not None:
        if recipe is None:
            text = f"no weights were changed: {option('plan_weights')} was not written"
            notes.append(Caution("missed", text))
        else:
            pruned, recovered = (_load_candidate(job, file) for file in (candidate.path, path))
            recipe, content = _with_file(
                recipe, changed_weights(pruned, recovered.proto, job.stand_ins), job.plan_weights
            )
            files[job.plan_weights] = content
    refit = Refit(evidence=evidence, recipe=recipe, restored=restored, files=files)
    if job.data is not None and refit.recovery is not None:
        notes += calibration_warnings(job.data, refit.recovery, job.effort)
        notes += time_warnings(job, refit.recovery)
    return replace(candidate, path=path, refit=refit, warnings=(*candidate.warnings, *notes))


def _recover(candidate: Candidate, target: Path) -> Recovery | DataFreeRecovery | None:
    """Recover a candidate from data if there are any, otherwise without; None if there is nothing to recover.

    A recovered model is the file ``target``.
    """
    job, options = candidate.job, candidate.job.options
    if (candidate.is_whole and job.dag.teacher is None) or candidate.removal.is_lossless:
        return None
    if job.data is not None:
        refit, seed = options.recovers and not job.deadline.has_passed, options.seed
        return recover_from_data(
            job.dag,
            candidate.alive,
            candidate.path,
            target,
            job.data,
            refit,
            seed,
            job.clock,
            effort=job.effort,
            deadline=job.deadline,
            cross_fits=not options.int8 and not options.tolerances.limits and job.dag.teacher is None,
        )
    if not options.recovers:
        return None
    return recover_without_data(job.known, candidate.alive, candidate.path, target, options.seed, job.clock)


def _restore(job: CompressJob, weights: StoredWeights, path: Path, target: Path) -> Path:
    """Put stored weights into a copy of a model file; returns the copy."""
    with job.clock.stage("recover"):
        for source, copy in ((path, target), (data_file(path), data_file(target))):
            if source.exists():
                shutil.copyfile(source, copy)
        restore_weights(job.dag.model, target, weights, job.options.plan.origin if job.options.plan else "")
    return target


def _load_candidate(job: CompressJob, path: Path) -> Model:
    """A compressed model in memory."""
    return replace(job.dag.model, proto=onnx.load(path))


def _overrides_plan(options: CompressOptions) -> bool:
    """True if options, not the plan, say how to change the weights."""
    return options.calib is not None or options.recover is not None


def _recipe(job: CompressJob) -> Recipe:
    """The changes that this run makes to the weights."""
    options = job.options
    if options.calib is None or job.data is None or not options.recovers:
        return Recipe(calib=None, calib_sha256=None, seed=options.seed)
    images = None if options.images == DEFAULT_IMAGE_FORMAT else asdict(options.images)
    with job.clock.stage("recover"):
        return Recipe(calib=calib_name(options.calib), calib_sha256=job.data.digest(), seed=options.seed, images=images)


def _with_file(recipe: Recipe, weights: StoredWeights, path: Path) -> tuple[Recipe, bytes]:
    """The recipe with the file of the weights that differ, and the content of that file."""
    content = weights.to_bytes()
    file = WeightsFile(Path(os.path.abspath(path)), hashlib.sha256(content).hexdigest(), dict(weights.biases))
    return replace(recipe, weights=file), content


def _differences(options: CompressOptions, planned: Recipe | None, own: Recipe) -> list[str]:
    """Warnings if the weights are not those of the run that made the plan."""
    if planned is None or options.recover == "none" or weights_files(options):
        return []
    effort = options.plan.options.get("effort") if options.plan else None
    again = planned.as_options()
    if planned.calib is not None and effort not in (None, DEFAULT_EFFORT):
        again += f" {option('effort', effort)}"
    if not options.recovers or (own.calib is None and planned.calib is not None):
        how = "without data" if planned.calib is None else f"with {planned.calib}"
        return [
            f"the weights are not those of the run that made the plan, which changed them {how}: a plan holds the "
            f"channels that are left, not their weights; for the same weights add {again}"
        ]
    others = []
    if own.calib_sha256 and planned.calib_sha256 and own.calib_sha256 != planned.calib_sha256:
        digests = [digest[:DIGITS] for digest in (planned.calib_sha256, own.calib_sha256)]
        others.append(f"other samples (sha256 {digests[0]}…, these have {digests[1]}…)")
    if own.calib and effort is not None and effort != options.effort:
        others.append(option("effort", effort))
    if own.seed != planned.seed:
        others.append(option("seed", planned.seed))
    if not others:
        return []
    return [
        f"the weights are not those of the run that made the plan, which had {' and '.join(others)}; for the same "
        f"weights give {again}"
    ]

"""The weights that are left, changed: by recovery, or as in the run that made a plan; and what a plan records of it."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from leanonnx.commands.compress.options import CompressOptions, calib_name
from leanonnx.commands.compress.workshop import Workshop
from leanonnx.data.samples import PLAIN, Data
from leanonnx.errors import OptionError
from leanonnx.graph.model import Model
from leanonnx.numeric.channel_ids import Mask
from leanonnx.recovery.data_free import WAYS
from leanonnx.recovery.data_free_draft import DataFreeRecovery
from leanonnx.recovery.draft import Recovery
from leanonnx.recovery.weights import StoredWeights, changed_weights, read_weights, restore
from leanonnx.spelling import option
from leanonnx.surgery.recipe import Recipe, WeightsFile

START = 12
"""Digits of a digest that messages show."""


@dataclass(frozen=True)
class Refit:
    """What was done to the weights that are left.

    ``recipe`` is what the plan records (None: they are the original's), ``restored`` the file that they were taken
    from, ``files`` what is to be written with the result, by place.
    """

    recovery: Recovery | None
    blind: DataFreeRecovery | None
    recipe: Recipe | None
    restored: Path | None
    files: Mapping[Path, bytes]
    warnings: tuple[str, ...]

    @property
    def changed(self) -> bool:
        """Whether weights of the draft may be others than those that were proven."""
        kept = self.recovery is not None and self.recovery.kept
        return kept or self.blind is not None or self.restored is not None


def weights_files(options: CompressOptions) -> tuple[Path, ...]:
    """The file of the weights that a plan comes with, where these are to be put in."""
    recipe = options.plan.recovery if options.plan else None
    return () if recipe is None or recipe.weights is None or _fits(options) else (recipe.weights.path,)


def stored_weights(options: CompressOptions) -> StoredWeights | None:
    """The weights that a plan comes with, where these are to be put in.

    Raises:
        PlanError: their file is missing, or another than the plan was written with.
    """
    plan = options.plan
    if plan is None or plan.recovery is None or plan.recovery.weights is None or _fits(options):
        return None
    return read_weights(plan.recovery.weights, plan.origin)


def check_weights_wanted(options: CompressOptions, plan_weights: Path | None) -> None:
    """Refuse to write changed weights where none can be changed.

    Raises:
        OptionError: there are none.
    """
    if plan_weights is not None and not options.recovers and not weights_files(options):
        raise OptionError(
            f"{option('plan_weights', str(plan_weights))}: holds weights that were changed, and none are; add "
            f"{option('calib')} or {option('recover', 'auto')}, or leave it out"
        )


def refitted(
    workshop: Workshop, alive: Mask, data: Data | None, stored: StoredWeights | None, plan_weights: Path | None
) -> Refit:
    """Change the weights of the proven draft as is asked for.

    Args:
        workshop: holds the draft.
        alive: the channels that are left [labels].
        data: real inputs.
        stored: the weights that the plan comes with, where these are to be put in.
        plan_weights: where changed weights are to be written, for the plan.

    Raises:
        DataError, PlanError, ProofFailed: the data or the weights do not fit the network.
    """
    options = workshop.options
    bare = workshop.bare() if plan_weights is not None else None
    recovery = workshop.recovered(alive, data) if data is not None else None
    blind = workshop.recovered_blindly(alive) if data is None else None
    planned = options.plan.recovery if options.plan else None
    recipe, restored = None, None
    if stored is not None and planned is not None and planned.weights is not None:
        with workshop.clock.stage("recover"):
            restore(workshop.dag.model, workshop.draft, stored, options.plan.origin if options.plan else "")
        recipe, restored = planned, planned.weights.path
    made = _recipe(workshop, data)
    if (recovery and recovery.kept) or (blind and any(blind.counts[way] for way in WAYS)):
        recipe = made
    found = _differences(options, planned, made)
    files = {}
    if bare is not None and plan_weights is not None:
        if recipe is None:
            found.append(f"no weights were changed: {option('plan_weights')} was not written")
        else:
            recipe, content = _with_file(recipe, bare, workshop.bare(), plan_weights)
            files[plan_weights] = content
    return Refit(recovery, blind, recipe, restored, files, tuple(found))


def _fits(options: CompressOptions) -> bool:
    """Whether weights are fitted, or left alone, because that was asked for."""
    return options.calib is not None or options.recover is not None


def _recipe(workshop: Workshop, data: Data | None) -> Recipe:
    """What changes the weights in this run."""
    options = workshop.options
    if options.calib is None or data is None or not options.recovers:
        return Recipe(None, None, options.seed)
    images = None if options.images == PLAIN else asdict(options.images)
    with workshop.clock.stage("recover"):
        return Recipe(calib_name(options.calib), data.digest(), options.seed, images)


def _with_file(recipe: Recipe, bare: Model, draft: Model, path: Path) -> tuple[Recipe, bytes]:
    """The recipe with the file of the weights that differ, and what that holds."""
    weights = changed_weights(bare, draft.proto)
    content = weights.packed()
    file = WeightsFile(Path(os.path.abspath(path)), hashlib.sha256(content).hexdigest(), dict(weights.biases))
    return replace(recipe, weights=file), content


def _differences(options: CompressOptions, planned: Recipe | None, made: Recipe) -> list[str]:
    """What is to be said where the weights are not those of the run that made the plan."""
    if planned is None or options.recover == "none" or weights_files(options):
        return []
    again = planned.again()
    if not options.recovers or (made.calib is None and planned.calib is not None):
        how = "without data" if planned.calib is None else f"with {planned.calib}"
        return [
            f"the weights are not those of the run that made the plan, which changed them {how}: a plan holds the "
            f"channels that are left, not their weights; for the same weights add {again}"
        ]
    found = []
    if made.calib_sha256 and planned.calib_sha256 and made.calib_sha256 != planned.calib_sha256:
        digests = [digest[:START] for digest in (planned.calib_sha256, made.calib_sha256)]
        found.append(f"other samples (sha256 {digests[0]}…, these have {digests[1]}…)")
    if made.seed != planned.seed:
        found.append(option("seed", planned.seed))
    if not found:
        return []
    return [
        f"the weights are not those of the run that made the plan, which had {' and '.join(found)}; for the same "
        f"weights give {again}"
    ]

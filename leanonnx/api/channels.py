"""Removal of channels of the caller's own choice."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from leanonnx.api.keywords import compress_options
from leanonnx.api.progress import listening
from leanonnx.api.results import Compressed
from leanonnx.api.sources import (
    CalibrationData,
    ModelSource,
    RuleSource,
    as_file,
    as_rules,
    optional_path,
    result_file,
    several,
)
from leanonnx.commands.compress import pipeline
from leanonnx.commands.compress.options import Recover
from leanonnx.data.images import ImageFormat
from leanonnx.data.samples import DEFAULT_IMAGE_FORMAT
from leanonnx.effort import DEFAULT_EFFORT, EffortName
from leanonnx.runtime.observation import Shapes
from leanonnx.runtime.providers import Provider
from leanonnx.selection.removal import without_channels
from leanonnx.surgery.plan import make_plan
from leanonnx.system.clock import Progress
from leanonnx.system.outputs import StrPath
from leanonnx.version import __version__


def remove_channels(
    model: ModelSource,
    channels: Mapping[str, int | Sequence[int]],
    out: StrPath | None = None,
    *,
    shape: Shapes | None = None,
    plan_out: StrPath | None = None,
    plan_weights: StrPath | None = None,
    calib: CalibrationData | None = None,
    images: ImageFormat = DEFAULT_IMAGE_FORMAT,
    recover: Recover | None = None,
    effort: EffortName = DEFAULT_EFFORT,
    minutes: float | None = None,
    provider: Provider = "cpu",
    threads: int = 0,
    rules: RuleSource | None = None,
    library: StrPath | Sequence[StrPath] = (),
    freeze: bool = False,
    measure: bool = False,
    seed: int = 0,
    progress: Progress | None = None,
) -> Compressed:
    """Remove channels of your own choice with everything that has to follow, and prove the result.

    Channels that are tied to a removed one are removed with it, and so is what then feeds or reads nothing.

    >>> small = remove_channels("models/cs_unet.onnx", {"node_Conv_200": [3, 7]})
    >>> small.proof.passed, small.plan.options["removed"]
    (True, {'node_Conv_200': [3, 7]})

    Args:
        model: its path, or the model itself.
        channels: indices of output channels by the name of a node, or of channels by the name of a tensor.
        out, plan_out, plan_weights: files for the result, its plan and changed weights; None writes none.
        shape: sizes of graph inputs with free axes, by name.
        calib, images, recover: as in ``compress``: real inputs, to which the remaining weights are fitted.
        effort, minutes: as in ``compress``: the work that this may take, and a limit on its time.
        provider, threads, measure: where the result is to run; True times it there, and warns if it is not faster.
        rules, library, freeze: as in ``compress``.
        seed: of the proof's inputs.
        progress: called with each stage, its progress in [0, 1] where that is known, and what it is working on.

    Raises:
        OptionError: an unknown name, an index out of range or given twice, or a channel that may not be removed because
            it is pinned or tied to a pinned one; the message names the reason.
        UserError, ProofFailed: as in ``compress``.
    """
    chosen = {name: _indices(given) for name, given in channels.items()}
    keywords = locals()
    with as_file(model) as source, result_file(out) as target, listening(progress) as listener:
        dag = pipeline.load_dag(source, shape or {}, as_rules(rules), several(library, Path), freeze)
        plan = make_plan(dag, without_channels(dag, chosen), {}, __version__)
        removed = {name: tuple(map(int, indices)) for name, indices in chosen.items()}
        options = compress_options(keywords, plan=plan, removed=removed, best_effort=True)
        places = (optional_path(plan_out), as_rules(rules), listener, None, optional_path(plan_weights))
        return Compressed.of(pipeline.compress_file(source, target, options, *places), target, model)


def _indices(given: int | Sequence[int]) -> Sequence[int]:
    """One index or several."""
    return given if isinstance(given, Sequence | np.ndarray) else (given,)

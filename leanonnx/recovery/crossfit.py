"""Cross-fitting: the deviation of a recovery on all samples, where too few of them are held out.

The samples are divided into parts.  The recovery is carried out once without each part, in the same way as on all
samples, and its result is compared with the original on that part: no sample is compared by weights that were fitted to
it, or chosen by it.  The sums over the parts give the deviation of a recovery from a fifth of the samples less.  The
network that is written has been recovered from all samples in the usual way: four in five are fitted to, and the fifth
chooses the strengths of the fits, which is more than a fit to all of them could do.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import onnx

from leanonnx.analysis.cost import cost_model
from leanonnx.analysis.dag import ChannelDag
from leanonnx.data.samples import Dataset, batch_size
from leanonnx.effort import Deadline, Effort
from leanonnx.evaluation.deviation import DeviationSums, Fidelity, add_deviations
from leanonnx.evaluation.slices import channel_axes
from leanonnx.graph.formats import Source
from leanonnx.system.clock import StageProgress

CROSS_FIT_PARTS = 5
"""Number of parts that the samples are divided into."""
CROSS_FITTED_BELOW = 320
"""Number of samples from which those held out are enough."""
MAX_CROSS_FIT_MACS = 1e10
"""Multiply-adds of the original on all samples, for normal effort; larger efforts take more."""
PartFit = Callable[[Dataset, StageProgress], onnx.ModelProto]
"""A recovery from samples: the network with its weights changed."""


def cross_fit_parts(dag: ChannelDag, samples: Dataset, effort: Effort) -> tuple[tuple[Dataset, Dataset], ...]:
    """The other samples and those of each part; empty if the samples are many, or too few, or it is too much work."""
    if not CROSS_FIT_PARTS <= samples.count < CROSS_FITTED_BELOW:
        return ()
    if cost_model(dag)(dag.all_alive).macs * samples.count > effort.trial_work * MAX_CROSS_FIT_MACS:
        return ()
    every = CROSS_FIT_PARTS
    parts = tuple((samples.part(False, every, k), samples.part(True, every, k)) for k in range(every))
    return parts if all(one.count > one.dropped_count for pair in parts for one in pair) else ()


def cross_fit(
    dag: ChannelDag,
    pruned: Source,
    parts: Sequence[tuple[Dataset, Dataset]],
    fit: PartFit,
    deadline: Deadline,
    on_progress: StageProgress,
) -> list[Fidelity] | None:
    """Deviations of the pruned network and of its recovery, over all parts; None if the time is up before the last.

    Args:
        dag: the original.
        pruned: the pruned model, which is the same for all parts.
        parts: see ``cross_fit_parts``.
        fit: carries out the recovery.
        deadline: a network fitted after it is not complete.
        on_progress: called with the progress (0 to 1) over all parts.

    Raises:
        DataError: the samples cannot be read, or the original cannot run on them.
        RunFailed: a compressed network cannot run on them.
    """
    teacher, replaced, axes = dag.taught_by, dag.observation.replaced_formats, channel_axes(dag)
    sums = [DeviationSums(teacher, axes) for _ in range(2)]
    for k, (others, part) in enumerate(parts):

        def report(done: float, item: str = "", k: int = k) -> None:
            on_progress((k + done) / len(parts), f"part {k + 1} of {len(parts)}, {item}")

        recovered = fit(others, report)
        if deadline.has_passed:
            return None
        add_deviations(sums, teacher, teacher.path, [pruned, recovered], part, batch_size(part), replaced)
    count = sum(part.count - part.dropped_count for _, part in parts)
    return [one.fidelity(count, parts[0][1].label_name) for one in sums]

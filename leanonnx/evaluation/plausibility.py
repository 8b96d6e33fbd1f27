"""Signs that labels, or the preparation of the inputs, are not those that the original was trained with."""

from __future__ import annotations

from leanonnx.data.remarks import pixel_remark, unused_remark
from leanonnx.data.samples import Dataset
from leanonnx.evaluation.deviation import Fidelity
from leanonnx.evaluation.judgement import DOUBT, share_by_chance
from leanonnx.evaluation.scores import LOWER_IS_BETTER
from leanonnx.formatting import count_text, percent_text
from leanonnx.spelling import option_list


def data_remarks(data: Dataset, fidelity: Fidelity) -> tuple[str, ...]:
    """Remarks on data, and on how the original scores on their labels; that it scores well speaks for their range."""
    chance = chance_remark(fidelity)
    is_plausible = chance is None and fidelity.metric is not None and fidelity.metric not in LOWER_IS_BETTER
    pixels = None if is_plausible else pixel_remark(data)
    return tuple(remark for remark in (chance, pixels, unused_remark(data)) if remark)


def is_by_chance(fidelity: Fidelity) -> bool:
    """True if the original decides on the labels no better than by chance.

    Its score is compared with one in as many as it has different decisions (binomial test at ``DOUBT``), and has to be
    less than half of the way from there to all of them.
    """
    if fidelity.metric is None or fidelity.before is None or fidelity.metric in LOWER_IS_BETTER:
        return False
    counts = [one.baseline.decisions for one in fidelity.outputs if one.baseline and one.baseline.decisions]
    chance = 1 / max([2, *counts])
    by_chance = share_by_chance(fidelity.before, fidelity.samples, chance) > DOUBT
    return by_chance and fidelity.before < (1 + chance) / 2


def chance_remark(fidelity: Fidelity) -> str | None:
    """A remark that the original decides on the labels no better than by chance; None if it does better."""
    if fidelity.before is None or not is_by_chance(fidelity):
        return None
    return (
        f"the original itself scores no better than by chance: {fidelity.metric} {percent_text(fidelity.before)} on "
        f"{count_text(fidelity.samples, 'sample')}; check that labels count its classes from 0, in its order, and that "
        f"inputs are scaled as in training (images by {option_list('mean', 'std', 'scale')})"
    )

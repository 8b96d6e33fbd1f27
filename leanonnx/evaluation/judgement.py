"""The judgement on a result by its deviation on held-out samples: sound, or ruined, and by which numbers.

An output is ruined if it is one of these:

1. *Not finite* where the original's is.
2. *Chance*: its decisions agree with the original's no more often than by chance (binomial test at ``DOUBT``), and with
   that certainty not half of the way from chance to all of them.
3. *Half*: with that certainty, less than half of its decisions agree.
4. *Mean*: its error is at least ``RUINED_ERROR`` of that of the original's mean output and ``MIN_RUINED_ERROR`` of the
   output itself, and its decisions, if it has any, agree less than half of the way from chance to all.

Decisions of one sample, such as the pixels of a class map, depend on each other and count as one trial. Decisions that
change although little of the output does (``CLEAR_ERROR`` of the mean's error) were not clear: 2 and 3 do not apply.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import scipy

from leanonnx.evaluation.deviation import Fidelity
from leanonnx.evaluation.tally import Deviation

JudgementKind = Literal["sound", "mean", "half", "chance", "not finite"]
SEVERITY: tuple[JudgementKind, ...] = ("sound", "mean", "half", "chance", "not finite")
"""Kinds from the best to the worst."""
DOUBT = 0.05
"""Error probability of the tests."""
RUINED_ERROR = 0.9
MIN_RUINED_ERROR = 0.2
CLEAR_ERROR = 0.5
HALF = 0.5


@dataclass(frozen=True, kw_only=True)
class Judgement:
    """The judgement on the worst output, with the numbers that it rests on.

    Attributes:
        kind: ``sound``, or in which way the output is ruined.
        output: its name.
        samples: number of samples that it was judged on.
        relative_l2: its relative error.
        mean_l2: the relative error of the original's mean output; None if not known.
        agreement: share of its decisions that agree with the original's; None for an output without decisions.
        agreement_bound: upper bound of the agreement (95 %, Clopper and Pearson 1934).
        chance: the agreement by chance.
    """

    kind: JudgementKind
    output: str
    samples: int
    relative_l2: float
    mean_l2: float | None = None
    agreement: float | None = None
    agreement_bound: float | None = None
    chance: float | None = None

    @property
    def is_ruined(self) -> bool:
        """True unless the output is sound."""
        return self.kind != "sound"

    @property
    def lost(self) -> float:
        """Error in units of the error of the original's mean output, or of the output itself if that is not known."""
        return self.relative_l2 / self.mean_l2 if self.mean_l2 else self.relative_l2


def judge(fidelity: Fidelity) -> Judgement | None:
    """The judgement on the worst output; None if the samples say nothing about any."""
    outputs = [one for one in fidelity.outputs if not (one.vacuous or one.silent or one.reshaped)]
    judgements = [_judge_output(one, fidelity.samples) for one in outputs]
    return max(judgements, key=lambda each: (SEVERITY.index(each.kind), each.lost), default=None)


def _judge_output(deviation: Deviation, samples: int) -> Judgement:
    """The judgement on one output."""
    baseline = deviation.baseline
    numbers = Judgement(
        kind="sound",
        output=deviation.output,
        samples=samples,
        relative_l2=deviation.relative_l2,
        mean_l2=baseline.mean_l2 if baseline else None,
    )
    if baseline is not None and baseline.chance is not None and baseline.chance < 1 and deviation.top1 is not None:
        bound = upper_bound(deviation.top1, samples)
        numbers = replace(numbers, agreement=deviation.top1, agreement_bound=bound, chance=baseline.chance)
    return replace(numbers, kind="not finite" if deviation.broken else _kind(numbers))


def _kind(numbers: Judgement) -> JudgementKind:
    """The kind of an output that is finite."""
    lost = numbers.lost
    no_better_than_mean = lost >= RUINED_ERROR and numbers.relative_l2 >= MIN_RUINED_ERROR
    agreement, bound, chance = numbers.agreement, numbers.agreement_bound, numbers.chance
    if agreement is None or bound is None or chance is None:
        return "mean" if no_better_than_mean else "sound"
    half_way, clear = (1 + chance) / 2, lost >= CLEAR_ERROR
    if clear and bound < half_way and share_by_chance(agreement, numbers.samples, chance) > DOUBT:
        return "chance"
    if clear and bound < HALF:
        return "half"
    return "mean" if no_better_than_mean and agreement < half_way else "sound"


def upper_bound(share: float, samples: int) -> float:
    """Upper bound of a probability from the share of samples (1 − ``DOUBT``, one-sided, Clopper and Pearson 1934)."""
    count = share * samples
    return 1.0 if share >= 1 else float(scipy.special.betaincinv(count + 1, samples - count, 1 - DOUBT))


def share_by_chance(share: float, samples: int, probability: float) -> float:
    """Probability that at least this share of the samples agrees if each does with ``probability``."""
    count = share * samples
    return 1.0 if count <= 0 else float(scipy.special.betainc(count, samples - count + 1, probability))

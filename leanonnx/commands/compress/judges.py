"""Judge candidates by tolerances on held-out samples that neither selection nor recovery has seen."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

from leanonnx.analysis.dag import ChannelDag
from leanonnx.commands.compress.candidate import CompressJob
from leanonnx.commands.compress.options import CompressOptions
from leanonnx.data.files import further_arrays
from leanonnx.data.images import IMAGE_OPTIONS
from leanonnx.data.samples import DEFAULT_IMAGE_FORMAT, Dataset, batch_size, open_data, with_runnable_batch
from leanonnx.effort import EFFORTS, Effort
from leanonnx.errors import DataError, OptionError, ProofFailed
from leanonnx.evaluation.deviation import Fidelity, compare_outputs
from leanonnx.evaluation.slices import channel_axes
from leanonnx.evaluation.tolerances import ERROR_PROBABILITY, HeldOut, ToleranceReading, read_tolerances
from leanonnx.evaluation.user_scores import UserScore, gather_arrays, score_function, score_name
from leanonnx.formatting import count_text
from leanonnx.numeric.bounds import least_samples
from leanonnx.runtime.sessions import RunFailed
from leanonnx.spelling import option, option_list

JUDGED_RATE = 3
"""One sample in so many is held out to judge by, where all together are few."""
MAX_JUDGED = 4096
"""Largest number of samples to judge by."""
MIN_JUDGED = 8
"""Smallest number of samples that a bound of a mean is taken from."""


def open_samples(options: CompressOptions, dag: ChannelDag) -> tuple[Dataset | None, Dataset | None]:
    """The real inputs to choose and recover by, and those to judge tolerances by; None where there are none.

    Raises:
        OptionError: a format of images is given, but no data.
        DataError: they cannot be read, or do not fit the model.
    """
    if options.calib is None:
        if options.images != DEFAULT_IMAGE_FORMAT:
            raise OptionError(
                f"{option_list(*IMAGE_OPTIONS)} say how images become inputs, and there are none; add "
                f"{option('calib')}, or leave them out"
            )
        return None, None
    model, names = dag.model, [value.name for value in dag.model.inputs]
    extras = further_arrays(options.calib, names) if options.score is not None else ()
    whole = open_data(options.calib, model, dag.shapes, options.images, extras)
    data = with_runnable_batch(whole.only(names), model)
    if not options.tolerances.limits:
        return data, None
    return split_for_judging(data, replace(whole, fixed_batch=data.fixed_batch), EFFORTS[options.effort])


def split_for_judging(data: Dataset, whole: Dataset, effort: Effort) -> tuple[Dataset, Dataset]:
    """Divide samples into those to choose and recover by and those to judge by.

    Of few samples, one in ``JUDGED_RATE`` judges; of many, all that calibration does not need.

    Args:
        data: the samples.
        whole: the same with the arrays that a score reads.
        effort: bounds the samples that calibration takes.
    """
    spare = data.count // effort.max_samples
    every, judges = (JUDGED_RATE, True) if spare < 2 else (spare, False)
    return data.part(held_out=not judges, every=every), whole.part(held_out=judges, every=every).subsample(MAX_JUDGED)


class Judge:
    """Reads the tolerances of a job off candidates; ``allowed`` is the number of looks that its bounds allow for.

    All looks are judged by the same samples, and most are far from the limit: the error probability of each is that of
    the whole, divided by the square root of their number.  Simulated searches are wrong less often than the whole
    allows for, also on curves so flat that every look is at the limit.
    """

    def __init__(self, job: CompressJob, allowed: int) -> None:
        assert job.judging is not None
        self.job, self.allowed = job, allowed
        self.doubt = ERROR_PROBABILITY / math.sqrt(allowed + job.options.int8)
        model, names = job.dag.taught_by, [value.name for value in job.dag.model.inputs]
        data, axes = job.judging.only(names), channel_axes(job.dag)
        self.held_out = HeldOut(model, data, axes, job.dag.observation.replaced_formats)
        self.tolerances = job.options.tolerances
        self._check_count()
        self._check_outputs()
        given, self.score = job.options.score, None
        if given is not None:
            title = option("score", score_name(given))
            self.score = UserScore(title, score_function(given), gather_arrays(job.judging), model.path)

    def read(self, candidate: Path) -> tuple[Fidelity, tuple[ToleranceReading, ...]]:
        """The deviation of a candidate and the readings of all tolerances.

        Raises:
            ProofFailed: it does not run on the samples.
            DataError, OptionError: the samples cannot be read, or the user's score fails.
        """
        with self.job.clock.stage("judge"):
            by_channel = self.tolerances.max_deviation is not None
            try:
                fidelity, deviations = self.held_out.compare(candidate, by_channel)
            except RunFailed as error:
                raise ProofFailed(
                    f"the compressed model does not run on the data ({error}); nothing written"
                ) from error
            readings = read_tolerances(self.tolerances, fidelity, deviations, self.doubt)
            if self.score is not None and self.tolerances.max_drop is not None:
                readings = (*readings, self.score.fall(candidate, self.tolerances.max_drop, self.doubt))
        return fidelity, readings

    def compare(self, candidate: Path) -> Fidelity:
        """The deviation of a candidate on the samples."""
        held = self.held_out
        with self.job.clock.stage("judge"):
            (fidelity,) = compare_outputs(
                held.model, held.model.path, [candidate], held.data, batch_size(held.data), held.replaced, held.axes
            )
        return fidelity

    def _check_count(self) -> None:
        """Refuse samples that are too few to show any tolerance.

        Raises:
            DataError: they are.
        """
        count, share = self.held_out.count, self.tolerances.min_agreement
        needed = MIN_JUDGED if share is None else max(MIN_JUDGED, least_samples(share, self.doubt))
        if count >= needed:
            return
        assert self.job.data is not None
        name = next(iter(self.tolerances.limits))
        total, remedy, best = self.job.data.count + count, "", ""
        if share is not None:
            best = ", even if all agree"
            if count >= MIN_JUDGED:
                shown = math.floor(1000 * self.doubt ** (1 / count)) / 1000
                remedy = f", or ask for {option('min_agreement', shown)}"
        least = max(JUDGED_RATE * needed, total + 1)
        raise DataError(
            f"{option(name, self.tolerances.limits[name])} cannot be shown by "
            f"{count_text(count, 'held-out sample')} of {total}{best}: {needed} are needed; give "
            f"at least {least} samples in {option('calib')}{remedy}"
        )

    def _check_outputs(self) -> None:
        """Refuse tolerances of numbers that the outputs do not have.

        Raises:
            OptionError: there are no decisions, or no images.
            DataError: the original decides the same whatever the sample.
        """
        path, limits = self.job.dag.model.path, self.tolerances.limits
        if not set(limits) - {"max_drop"}:
            return
        with self.job.clock.stage("judge"):
            fidelity, _ = self.held_out.compare(path, by_channel=False)
        decisions = [one for one in fidelity.outputs if one.top1 is not None]
        if "min_agreement" in limits and not decisions:
            raise OptionError(
                f"{option('min_agreement', limits['min_agreement'])}: no output of the model holds classes or whole "
                f"numbers; use {option('max_deviation')}"
            )
        if "min_psnr" in limits and all(one.psnr is None for one in fidelity.outputs):
            raise OptionError(
                f"{option('min_psnr', limits['min_psnr'])}: no output of the model is an image; use "
                f"{option('max_deviation')}"
            )
        if "min_agreement" in limits and all(one.vacuous for one in decisions):
            raise DataError(
                f"{option('min_agreement', limits['min_agreement'])}: the original decides the same on all held-out "
                f"samples; give samples in {option('calib')} on which it does not"
            )
        silent = [one.output for one in fidelity.outputs if one.silent or one.vacuous]
        if "max_deviation" in limits and silent:
            raise DataError(
                f"{option('max_deviation', limits['max_deviation'])}: the output '{silent[0]}' is the same on all "
                f"held-out samples, or no number; give other samples in {option('calib')}"
            )

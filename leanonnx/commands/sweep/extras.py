"""Parts of a sweep that need optional packages, or none where these are not installed."""

from __future__ import annotations

from functools import partial
from importlib.util import find_spec

from leanonnx.commands.sweep.driver import Draw
from leanonnx.commands.sweep.worker import Make, make_locally
from leanonnx.errors import OptionError
from leanonnx.selection.metrics import Metric
from leanonnx.spelling import option, option_list
from leanonnx.system.cores import available_cores


def maker(metric: Metric, jobs: int | None, dask: str | None, points: int) -> Make:
    """The function that makes candidates, on a Dask cluster or in processes that share the cores of this machine.

    Args:
        metric: that the budget limits.
        jobs: processes at once; None for one on each physical core.
        dask: address of a Dask scheduler.
        points: number of candidates.

    Raises:
        OptionError: two options contradict each other, or Dask is not installed.
    """
    if metric.measured:
        if dask or (jobs or 1) > 1:
            raise OptionError(
                f"{option(metric.option)} measures as it searches, one point at a time on this machine; leave out "
                f"{option_list('dask', 'jobs')}"
            )
        return make_locally
    if dask is None:
        cores = available_cores()
        jobs = jobs or min(cores, points)
        return partial(make_locally, jobs=jobs, threads=max(1, cores // jobs))
    if jobs:
        raise OptionError(f"{option('dask')}: the cluster says how much runs at once; leave out {option('jobs')}")
    if find_spec("distributed") is None:
        raise OptionError(f"{option('dask')} needs Dask; install it with pip install distributed")
    from leanonnx.commands.sweep.cluster import make_on_cluster

    return partial(make_on_cluster, address=dask)


def plotter() -> Draw | None:
    """The function that draws the curves; None without matplotlib."""
    if find_spec("matplotlib") is None:
        return None
    from leanonnx.commands.sweep.plot import draw

    return draw

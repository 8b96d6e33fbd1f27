"""Threads of the linear algebra behind numpy and scipy."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from threadpoolctl import threadpool_limits


@contextmanager
def single_blas_thread() -> Iterator[None]:
    """Compute products of matrices in one thread inside the context.

    Calibration computes thousands of products of a few milliseconds, between which further threads would wait actively:
    on two cores they double the processor time and save no time on the clock.
    """
    with threadpool_limits(limits=1, user_api="blas"):
        yield

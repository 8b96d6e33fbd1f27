"""Faults planted in statistics, path mass, elimination and recovery: for each, a test's oracle kills it.

Every oracle passes on the unmodified code, so only the fault can be the cause.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest

from leanonnx.analysis.cost import kernel_rate
from leanonnx.graph import positions
from leanonnx.numeric import obs, regression
from leanonnx.numeric.regression import Fit, MomentSums
from leanonnx.ranking import elimination, pathmass
from leanonnx.recovery import changes, fold, recover, rows
from leanonnx.recovery import draft as drafts
from leanonnx.recovery import partial_runner as walk
from leanonnx.runtime import probes as taps
from leanonnx.statistics import moments
from tests import (
    test_moments,
    test_obs,
    test_partial_runner,
    test_path_mass,
    test_positions,
    test_recovery,
    test_regression,
)
from tests import test_recovery_cli as recovery_cli
from tests.calibrated import analysed, net, normal_feeds, smooth_images
from tests.graph_builder import Array
from tests.test_recovery import CONV, FLAT, LINEAR

Patch = pytest.MonkeyPatch


def kept_sign(work: Any, chosen: Any) -> None:
    """Elimination whose update has the wrong sign."""
    gone = np.isin(work.units, chosen)
    rest = ~gone
    m, p = work.half + work.half.T, work.precision
    taken = np.linalg.solve(p[np.ix_(gone, gone)], p[np.ix_(gone, rest)])
    cross = taken.T @ m[np.ix_(gone, rest)]
    whole = m[np.ix_(rest, rest)] + cross + cross.T + taken.T @ m[np.ix_(gone, gone)] @ taken
    work.half = np.asfortranarray(whole / 2)
    work.precision = np.asfortranarray(p[np.ix_(rest, rest)] - p[np.ix_(rest, gone)] @ taken)
    work.units, work.left = work.units[rest], np.ones(int(rest.sum()), bool)


def no_takeover(work: Any, chosen: Any) -> None:
    """Elimination that forgets what the others have taken over."""
    rest = ~np.isin(work.units, chosen)
    left = (np.asfortranarray(matrix[np.ix_(rest, rest)]) for matrix in (work.half, work.precision))
    work.half, work.precision = left
    work.units, work.left = work.units[rest], np.ones(int(rest.sum()), bool)


def uncentred(sums: Any, mean: Array) -> Array:
    """Second moments in place of covariances."""
    sums.flush()
    cross = np.outer(sums.first, sums.origin)
    return sums.second + cross + cross.T + sums.rows * np.outer(sums.origin, sums.origin)


def tiled(flat: Array, channels: Array) -> Array:
    """Rows of a repeated channel as if channels followed each other."""
    return flat.reshape(-1, np.unique(channels).size)


def equal_shares(dag: Any, statistics: Any) -> Callable[[int, Any], Array]:
    """Operands of an addition get the same, whatever their variance."""
    return lambda node, edges: 1.0 / np.bincount(edges.destinations, minlength=dag.count)[edges.destinations]


def without_energy(block: Any) -> Array:
    """Shares by weights alone."""
    return np.square(block.kernels).sum(2)


def before_readers(dag: Any, classes: Array, sequences: Any) -> dict[int, list[int]]:
    """Remove channels before their consumers."""
    return {}


def constant_savings(savings: Any, one: int) -> float:
    """Savings as they were at the beginning."""
    return 1.0


def turned_taps(window: Any, value: Array, size: Any, chosen: Array) -> Array:
    """Taps of each kernel in the reverse order."""
    return FEATURES(window, value, size, chosen)[:, :, ::-1]


def no_padding(window: Any, spatial: Any, size: Any) -> list[int]:
    """Padding forgotten."""
    return [0] * len(spatial)


def shifted_kept(place: Any) -> Array:
    """Use the channels next to the kept ones."""
    return np.roll(KEPT(place), 1)


def without_bias(change: Any, proto: Any, model: Any) -> None:
    """Weights change, biases do not."""
    CARRY(replace(change, bias=None), proto, model)


def reset_bias(change: Any, proto: Any, model: Any) -> None:
    """Reset the bias that a node after the product adds to zero."""
    CARRY(replace(change, bias=None if change.bias is None else np.zeros_like(change.bias)), proto, model)


def leaking(plain: Any, mirrored: Any, held: Any, starts: Any, free_bias: bool) -> Fit:
    """Fit to the held-out rows."""
    return BEST(held, mirrored, held, starts, free_bias)


def mixed_up(plain: Any, mirrored: Any, held: Any, starts: Any, free_bias: bool) -> Fit:
    """Mirrored rows are taken whether they help or not."""
    if mirrored.rows:
        plain.merge(mirrored)
    return BEST(
        plain, mirrored, held, [Fit(s.weights, s.bias, np.full_like(s.errors, np.inf)) for s in starts], free_bias
    )


def no_prior(pp: Array, pt: Array, prior: Array, scale: Array, betas: Any) -> Any:
    """A ridge towards zero."""
    return RIDGES(pp, pt, np.zeros_like(prior), scale, betas)


def free_origin(sums: Any, weights: Array, bias: Array) -> Array:
    """Errors as if features and targets were centred at zero."""
    return ERROR(sums, weights, bias + np.einsum("gok,gk->go", weights, -sums.features_at) + sums.targets_at)


def forgetful(one: Any, wanted: set[str]) -> None:
    """A walk that keeps everything."""


FEATURES, KEPT, CARRY = positions.features, rows.LayerSite.kept_outputs.func, changes.LayerChange.carry_out
BEST, RIDGES, ERROR = regression.best_fit, regression._ridges, MomentSums.errors


def costs(patch: Patch) -> None:
    patch.setattr(obs, "PRECISION_RIDGE", 1e-13)
    test_obs.judge_costs(0)


def order(patch: Patch) -> None:
    patch.setattr(obs, "PRECISION_RIDGE", 1e-13)
    for seed in range(3):
        test_obs.judge([test_obs.Naive(np.random.default_rng(seed), 7)], 7)


def tensor_moments(patch: Patch) -> None:
    test_moments.test_moments_are_those_of_the_tensor_that_kernels_read(test_moments.CONV, "r", 1)


def flattened(patch: Patch) -> None:
    test_moments.test_a_channel_that_a_flatten_repeats_has_a_row_for_each_position()


def chains(patch: Patch) -> None:
    for seed in range(6):
        test_path_mass.judge_by_chains(seed)


def merge(patch: Patch) -> None:
    test_path_mass.judge_merge(patch, kernel_rate, "kernels", 1.0, 0)


def geometry(patch: Patch) -> None:
    attributes = {"strides": [2, 1], "pads": [1, 0, 1, 2]}
    proto = test_positions.single("Conv", [1, 2, 6, 5], (3, 2, 3, 3), 3, attributes)
    test_positions.judge((proto, {"x": np.random.default_rng(0).standard_normal((1, 2, 6, 5)).astype(np.float32)}))


def outputs(patch: Patch) -> None:
    test_recovery.judge_removed_outputs()


def by_fold(patch: Patch) -> None:
    test_recovery.judge_fold(patch, FLAT, ("h", "a", "b"), 1, 8)


def better(patch: Patch) -> None:
    dag = analysed(net(*LINEAR))
    test_recovery.judge_better(dag, test_recovery.keep(dag, "h", range(5), 2), 0.9)


def ridge(patch: Patch) -> None:
    test_regression.judge(MomentSums, test_regression.Case(1), None)


def errors(patch: Patch) -> None:
    test_regression.test_error_is_that_of_the_rows(MomentSums)


def chosen(patch: Patch) -> None:
    test_regression.test_the_fit_with_the_least_held_out_error_is_chosen(MomentSums)


def start(patch: Patch) -> None:
    test_regression.judge_unchanged()


def frontier(patch: Patch) -> None:
    test_partial_runner.test_only_tensors_that_are_read_later_are_stored()


def unwatched(proto: Any, names: Any, feeds: Any, libraries: Any = ()) -> Any:
    """Tensors handed out under each other's names."""
    for found in WATCHED(proto, names, feeds, libraries):
        yield dict(zip(found, list(found.values())[::-1], strict=True))


WATCHED = taps.tensor_values


def operands(patch: Patch) -> None:
    test_moments.test_variances_of_operands_of_an_addition()


@dataclass(frozen=True)
class Mutant:
    """A fault, where it is planted, and the oracle that kills it."""

    fault: Callable[..., Any]
    owner: Any
    name: str
    oracle: Callable[[Patch], None]
    wrapped: Callable[[Any], Any] = lambda fault: fault


MUTANTS = [
    Mutant(kept_sign, obs._Elimination, "remove", costs),
    Mutant(kept_sign, obs._Elimination, "remove", order),
    Mutant(no_takeover, obs._Elimination, "remove", order),
    Mutant(uncentred, moments.Accumulator, "take_products", tensor_moments),
    Mutant(tiled, moments, "joined_repeats", flattened),
    Mutant(unwatched, moments, "tensor_values", operands),
    Mutant(equal_shares, pathmass, "_shares", chains),
    Mutant(without_energy, pathmass.KernelGroup, "energies", chains, property),
    Mutant(before_readers, elimination, "_waiting", lambda patch: test_path_mass.judge_readers()),
    Mutant(constant_savings, elimination._Savings, "saving_of", merge),
    Mutant(turned_taps, test_positions, "features", geometry),
    Mutant(no_padding, positions, "_leading_pads", geometry),
    Mutant(shifted_kept, rows.LayerSite, "kept_outputs", outputs, property),
    Mutant(without_bias, changes.LayerChange, "carry_out", better),
    Mutant(reset_bias, changes.LayerChange, "carry_out", better),
    Mutant(tiled, fold, "joined_repeats", by_fold),
    Mutant(leaking, test_regression, "best_fit", chosen),
    Mutant(mixed_up, test_regression, "best_fit", start),
    Mutant(no_prior, regression, "_ridges", ridge),
    Mutant(free_origin, MomentSums, "errors", errors),
    Mutant(forgetful, walk.PartialRunner, "_forget", frontier),
]


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda m: f"{m.fault.__name__}-{m.oracle.__name__}")
def test_a_planted_fault_is_killed_and_the_code_as_it_is_passes(mutant: Mutant) -> None:
    with pytest.MonkeyPatch.context() as patch:
        mutant.oracle(patch)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(mutant.owner, mutant.name, mutant.wrapped(mutant.fault))
        with pytest.raises((AssertionError, ValueError, IndexError, KeyError)):
            mutant.oracle(patch)


def test_a_layer_whose_rows_are_wrong_is_refused_rather_than_mended(monkeypatch: Patch) -> None:
    """Wrong geometry cannot do harm: the original's own output gives it away."""
    monkeypatch.setattr(rows, "features", turned_taps)
    dag = analysed(net(*CONV))
    alive = test_recovery.keep(dag, "h", range(5))
    found = recover.recover(dag, alive, test_recovery.draft(dag, alive), normal_feeds(dag, 10))
    assert {layer.name: bool(layer.reason) for layer in found.layers} == {"H": False, "M": True, "Y": False}


def test_a_draft_that_got_worse_would_be_seen(tmp_path_factory: pytest.TempPathFactory, monkeypatch: Patch) -> None:
    folder = tmp_path_factory.mktemp("worse")
    recovery_cli.saved(recovery_cli.MODEL, folder / "m.onnx")
    np.savez(folder / "x.npz", x=smooth_images(60))
    recovery_cli.judge_never_worse(folder, monkeypatch)
    distances = iter(range(10, 0, -1))  # the damaged draft seems the better one
    monkeypatch.setattr(drafts, "_distance", lambda found: next(distances))
    with pytest.raises(AssertionError):
        recovery_cli.judge_never_worse(folder, monkeypatch)

"""Run both sides of the proof on the same inputs and compare them tensor by tensor against limits.

The limit is the bound of the number format.  If an error exceeds it, both sides run again without onnxruntime's
optimisations, and the limit is widened by the reference's own sensitivity to a change of its inputs in the last place
and to another order of its sums.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import onnx

from leanonnx.formatting import shape_text
from leanonnx.graph.formats import Source, is_float, load_proto
from leanonnx.inputs.random import group_by_size, nudge_floats
from leanonnx.numeric.arrays import Array, Floats
from leanonnx.numeric.channel_ids import Mask
from leanonnx.proof.compare import (
    WHOLE_TENSOR,
    ChannelSlices,
    ComparedChannels,
    Profile,
    slice_distances,
    slice_scales,
    stillness_reason,
    varying_slices,
)
from leanonnx.runtime.probes import expose_tensors
from leanonnx.runtime.sessions import Feed, RunFailed, open_session, session_runner, translate_errors

RunTensors = list[Array]
"""Tensors of one run."""
NOISE_FACTOR = 10
"""Factor on the model's own noise, from a change of its inputs in the last place and another order of its sums."""
FEW_NUMBERS = 4
"""Numbers of a slice below which its own noise says little about the error that rounding may cause."""
WIDEST_BOUND = 3e-2
"""Widest bound that still separates equal from unequal."""
NUDGE_TARGETS = (np.inf, -np.inf, 0.0)
"""Values towards which inputs are moved by one unit in the last place."""


@dataclass(frozen=True, kw_only=True)
class Sides:
    """The models that are compared, and the tolerances.

    Attributes:
        original, reference, candidate: the three models; the original only provides scales.
        libraries: onnxruntime's libraries of custom operators.
        channels: channel ids of tensors, and the keep mask of the candidate.
        bound: relative error up to which two tensors are equal.
        rounding: share of a norm below which differences are rounding errors, 1 for the whole norm.
        optimise: True if onnxruntime may optimise the graphs.
        candidate_feed: maps inputs of the reference to inputs of the candidate.
    """

    original: Source
    reference: Source
    candidate: Source
    libraries: tuple[Path, ...]
    channels: ComparedChannels
    bound: float
    rounding: float
    optimise: bool
    candidate_feed: Callable[[Feed], Feed] = lambda feed: feed

    def tensors(self) -> set[str]:
        """Names of the node outputs that both sides have."""
        return set.intersection(*(_node_outputs(side) for side in (self.reference, self.candidate)))


def _node_outputs(side: Source) -> set[str]:
    proto = onnx.load(side, load_external_data=False) if isinstance(side, Path) else side
    return {name for node in proto.graph.node for name in node.output}


@contextmanager
def open_side(
    side: Source, outputs: bool, taps: Sequence[str], optimise: bool, libraries: Sequence[Path]
) -> Iterator[Callable[[Feed], RunTensors]]:
    """Open one side; yields a function from inputs to its outputs, if wanted, followed by the tensors ``taps``.

    Inner tensors are computed by a separate session.

    Raises:
        RunFailed: onnxruntime cannot load the model; when called: cannot run it.
    """
    with ExitStack() as stack:
        steps = []
        with translate_errors():
            if outputs:
                steps.append(
                    stack.enter_context(session_runner(stack.enter_context(open_session(side, optimise, libraries))))
                )
            if taps:
                with expose_tensors(load_proto(side), taps) as proto:
                    session = stack.enter_context(open_session(proto, optimise, libraries))
                steps.append(stack.enter_context(session_runner(session)))

        def once(feed: Feed) -> RunTensors:
            with translate_errors():
                return [np.asarray(value) for step in steps for value in step(feed)]

        yield once


@dataclass(frozen=True, kw_only=True)
class ErrorTable:
    """Errors of one tensor, over runs in which it has the same slices.

    ``errors`` and ``limits`` are [runs, 1 + slices], the whole first; a limit is NaN for an uninformative run.
    ``rows`` are the indices of these runs, ``varies`` [1 + slices] the slices that vary, ``varies_on_given`` those that
    vary without further inputs, ``kind`` the reason if nothing varies.
    """

    name: str
    rows: list[int]
    errors: Floats
    limits: Floats
    scale: Floats
    slices: list[ChannelSlices]
    varies: Mask
    varies_on_given: Mask
    kind: str

    @property
    def informative(self) -> Mask:
        """Mask of the slices [1 + slices] that vary and have an informative run."""
        return np.asarray(self.varies & ~np.isnan(self.limits).all(axis=0))

    @property
    def exceeds_limit(self) -> bool:
        """True if an error exceeds its limit."""
        return bool((self.errors > self.limits).any())

    @property
    def largest_error(self) -> float:
        """Largest error over the informative runs."""
        return float(np.where(np.isnan(self.limits), 0, self.errors).max(initial=0))


@dataclass(frozen=True, kw_only=True)
class Findings:
    """Tables of all tensors that could be compared, the inputs used, and the further kinds of inputs tried.

    ``nondeterministic``: the reference differs from itself between two runs.
    """

    tables: list[ErrorTable]
    feeds: list[Feed]
    kinds: tuple[str, ...] = ()
    nondeterministic: bool = False


class ProofRun:
    """One comparison of graph outputs, if wanted, and of inner tensors; those in ``fixed`` need not vary."""

    def __init__(self, sides: Sides, outputs: Sequence[str], taps: Sequence[str], fixed: Collection[str] = ()) -> None:
        self.sides, self.outputs, self.taps, self.fixed = sides, bool(outputs), list(taps), fixed
        self.names = [*outputs, *taps]
        self.inner = len(outputs)
        self.given = 0

    def compare_tensors(self, feeds: Sequence[Feed], further: Iterable[tuple[str, Feed]] = ()) -> Findings:
        """Compare on all inputs on which the reference runs, and on further ones while a tensor does not vary.

        Raises:
            RunFailed: the reference runs on no input, or the candidate fails on one on which the reference runs.
        """
        used, wanted, kinds = self._reference(feeds, further)
        computed = self._candidate(used)
        tables = self._tables(used, wanted, computed)
        rows = sorted(
            {table.rows[k] for table in tables for k in np.flatnonzero((table.errors > self.bound).any(axis=1))}
        )
        if not rows:
            return Findings(tables=tables, feeds=used, kinds=kinds)
        return self._again(used, wanted, computed, rows, kinds)

    @property
    def bound(self) -> float:
        """Relative error up to which two tensors are equal."""
        return self.sides.bound

    def _run(self, side: Source, feeds: Sequence[Feed], optimise: bool = False) -> list[RunTensors]:
        with open_side(side, self.outputs, self.taps, optimise, self.sides.libraries) as once:
            return [once(feed) for feed in feeds]

    def _reference(
        self, feeds: Sequence[Feed], further: Iterable[tuple[str, Feed]]
    ) -> tuple[list[Feed], list[RunTensors], tuple[str, ...]]:
        """Inputs on which the reference runs, its tensors on each, and the further kinds of inputs tried."""
        used: list[Feed] = []
        wanted: list[RunTensors] = []
        kinds: list[str] = []
        failure = RunFailed("there are no inputs")
        side = self.sides.reference
        with open_side(side, self.outputs, self.taps, self.sides.optimise, self.sides.libraries) as once:
            for feed in feeds:
                try:
                    wanted.append(once(feed))
                    used.append(feed)
                except RunFailed as error:
                    failure = error
            if not used:
                raise failure
            self.given = len(used)
            still = self._still(used, wanted)
            for kind, feed in further if still else ():
                kinds.append(kind)
                try:
                    row = once(feed)
                except RunFailed:
                    continue
                left = self._still([*used, feed], [*wanted, row])
                if left < still:
                    used, wanted, still = [*used, feed], [*wanted, row], left
                if not still:
                    break
        return used, wanted, tuple(dict.fromkeys(kinds))

    def _still(self, used: list[Feed], wanted: list[RunTensors]) -> set[int]:
        """Indices of the tensors that do not vary although they should."""
        groups = group_by_size(used)
        moving = (k for k in range(len(self.names)) if any(self._varies(k, [wanted[n][k] for n in g]) for g in groups))
        return {k for k, name in enumerate(self.names) if name not in self.fixed} - set(moving)

    def _varies(self, k: int, values: Sequence[Array]) -> bool:
        """True if the comparable part of a tensor varies, or cannot be determined."""
        left = [self._kept_part(k, value) for value in values]
        known = [value for value in left if value is not None]
        return not known or bool(varying_slices(known, self._slices(k, values[0]))[0])

    def _slices(self, k: int, value: Array) -> ChannelSlices:
        return self.sides.channels.slices(self.names[k], value.shape) if is_float(value) else WHOLE_TENSOR

    def _candidate(self, used: Sequence[Feed]) -> list[RunTensors]:
        computed = []
        with open_side(
            self.sides.candidate, self.outputs, self.taps, self.sides.optimise, self.sides.libraries
        ) as once:
            for feed in used:
                try:
                    computed.append(once(self.sides.candidate_feed(feed)))
                except RunFailed as error:
                    where = ", ".join(f"{name}={shape_text(value.shape)}" for name, value in feed.items())
                    raise RunFailed(f"at the input sizes {where}, where the original runs: {error}") from error
        return computed

    def _tables(
        self,
        used: Sequence[Feed],
        wanted: Sequence[RunTensors],
        computed: Sequence[RunTensors],
        unmasked: Sequence[RunTensors] = (),
    ) -> list[ErrorTable]:
        """Errors of all tensors under the plain bound; scales also use the runs ``unmasked`` of the original."""
        tables: list[ErrorTable] = []
        for k, name in enumerate(self.names):
            parts: dict[int, list[tuple[int, Array, Array, ChannelSlices]]] = {}
            for row, (one, other) in enumerate(zip(wanted, computed, strict=True)):
                left = self._kept_part(k, one[k])
                if left is not None and (k < self.inner or left.shape == other[k].shape):
                    slices = self._slices(k, one[k])
                    parts.setdefault(slices.count, []).append((row, left, other[k], slices))
            lent = [(self._kept_part(k, row[k]), self._slices(k, row[k])) for row in unmasked]
            more = [Profile.of(value, slices) for value, slices in lent if value is not None]
            tables += [self._table(name, used, part, more) for part in parts.values()]
        return tables

    def _kept_part(self, k: int, value: Array) -> Array | None:
        return value if k < self.inner else self.sides.channels.kept_part(self.names[k], value)

    def _table(
        self,
        name: str,
        used: Sequence[Feed],
        part: list[tuple[int, Array, Array, ChannelSlices]],
        more: Sequence[Profile],
    ) -> ErrorTable:
        rows = [row for row, _, _, _ in part]
        slices = [each for _, _, _, each in part]
        profiles = [Profile.of(one, each) for _, one, _, each in part]
        gaps = np.stack([slice_distances(one, other, each) for _, one, other, each in part])
        scale = np.ones(gaps.shape)
        if is_float(part[0][1]):
            lent = [profile for profile in more if profile.rms.size == gaps.shape[1]]
            scale = slice_scales(profiles, self.sides.rounding, lent)
        errors = gaps / scale
        limits = np.full(errors.shape, self.bound)
        limits[[k for k, profile in enumerate(profiles) if not profile.sound and not np.isinf(errors[k]).any()]] = (
            np.nan
        )
        groups = group_by_size([used[row] for row in rows])
        varies = np.any([varying_slices([part[k][1] for k in group], slices[0]) for group in groups], axis=0)
        given = [[k for k in group if rows[k] < self.given] for group in groups]
        at_once = np.any([varying_slices([part[k][1] for k in group], slices[0]) for group in given], axis=0)
        return ErrorTable(
            name=name,
            rows=rows,
            errors=errors,
            limits=limits,
            scale=scale,
            slices=slices,
            varies=varies,
            varies_on_given=at_once,
            kind=stillness_reason(part[0][1]),
        )

    def _again(
        self,
        used: list[Feed],
        wanted: list[RunTensors],
        computed: list[RunTensors],
        rows: list[int],
        kinds: tuple[str, ...],
    ) -> Findings:
        """Compare again without optimisations on the inputs ``rows``; limits allow for the reference's own noise."""
        feeds = [used[row] for row in rows]
        unmasked = self._run(self.sides.original, feeds)
        with open_side(self.sides.reference, self.outputs, self.taps, False, self.sides.libraries) as once:
            plain = [once(feed) for feed in feeds]
            moved = [[once(nudge_floats(feed, to)) for feed in feeds] for to in NUDGE_TARGETS]
            twice = once(feeds[0])
        fresh = self._run(self.sides.candidate, [self.sides.candidate_feed(feed) for feed in feeds])
        first = [wanted[row] for row in rows]
        place = {row: k for k, row in enumerate(rows)}
        wanted, computed = (
            [new[place[row]] if row in place else old for row, old in enumerate(side)]
            for side, new in ((wanted, plain), (computed, fresh))
        )
        tables = []
        restless = False
        for table in self._tables(used, wanted, computed, unmasked):
            k = self.names.index(table.name)
            limits = table.limits.copy()
            for n, row in enumerate(table.rows):
                if row in place and not np.isnan(limits[n]).any():
                    others = [first[place[row]][k], *(side[place[row]][k] for side in moved)]
                    noise = self._noise(k, plain[place[row]][k], others, table, n)
                    limits[n] = np.where(noise <= WIDEST_BOUND, np.maximum(noise, self.bound), np.nan)
                    if row == rows[0]:
                        restless |= bool((self._gap(k, plain[0][k], twice[k], table, n) > self.bound).any())
            limits[table.errors <= self.bound] = self.bound
            limits[np.isnan(table.limits)] = np.nan
            tables.append(replace(table, limits=limits))
        return Findings(tables=tables, feeds=used, kinds=kinds, nondeterministic=restless)

    def _noise(self, k: int, value: Array, others: Sequence[Array], table: ErrorTable, n: int) -> Floats:
        """Allowed deviation [1 + slices]: ``NOISE_FACTOR`` times the distance between runs of the reference itself.

        A slice of few numbers may by chance move less than it can: it is allowed the median over the slices. If each
        has hardly more than one number, or quantised ones that move in single steps, the maximum is used.
        """
        own = np.max([self._gap(k, value, other, table, n) for other in others], axis=0)
        if own.size > 1:
            most = min(float(own[1:].max()), WIDEST_BOUND / NOISE_FACTOR)
            few = value.size < FEW_NUMBERS * (own.size - 1)
            usual = own[1:].max() if self.sides.rounding == 1 else most if few else np.median(own[1:])
            own[1:] = np.maximum(own[1:], usual)
        return np.asarray(NOISE_FACTOR * own)

    def _gap(self, k: int, value: Array, other: Array, table: ErrorTable, n: int) -> Floats:
        """Relative distance of two runs of the reference [1 + slices]."""
        one, two = self._kept_part(k, value), self._kept_part(k, other)
        if one is None or two is None:
            return np.full(table.errors.shape[1], np.inf)
        return np.asarray(slice_distances(one, two, table.slices[n]) / table.scale[n])

"""Targets of the layers: outputs of the original at sampled positions.

The original does not change, so it is run ahead of the compressed network, over as many layers at a time as their
targets fit into ``TARGET_BYTES``; only the sampled positions are stored.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from leanonnx.graph.positions import spread_positions
from leanonnx.numeric.arrays import Array, Ints
from leanonnx.numeric.channel_ids import Mask
from leanonnx.recovery.pair import NetworkPair, PairedRun
from leanonnx.recovery.partial_runner import ValueOf

TARGET_BYTES = 1 << 26
"""Bytes of targets, and of the tensors that they are taken from in one run, up to which layers are run together."""
HELD_OUT_SHARE = 4
"""A layer is judged on this share of the number of rows that it is fitted to: one held-out row for each four."""
MIRRORED_SHARE = 0.6
"""Share of the rows that come from plain inputs if there are mirrored ones, which give as many."""
FLOAT_BYTES = 4


class Site(Protocol):
    """A layer to be fitted, as far as its targets go."""

    @property
    def key(self) -> int:
        """Node of the layer in the compressed network, which seeds its positions."""
        ...

    @property
    def y(self) -> str:
        """Tensor of the original that the layer is fitted to."""
        ...

    @property
    def reads(self) -> Sequence[str]:
        """Tensors of the original that are sampled."""
        ...

    @property
    def rows(self) -> int:
        """Number of rows to fit to."""
        ...

    @property
    def row_numbers(self) -> int:
        """Numbers that are stored for each row."""
        ...

    def positions(self, shape: Sequence[int]) -> int:
        """Number of positions of a run whose output has this shape."""
        ...

    def sample(self, value: ValueOf, chosen: Ints, run: PairedRun) -> Mapping[str, Array] | None:
        """Return arrays of one run at the chosen positions; None if the layer cannot be fitted."""
        ...


@dataclass(frozen=True, kw_only=True)
class TargetRows:
    """Targets of one run: the positions, which of them are held out, the shape of the output, and the arrays."""

    run: PairedRun
    chosen: Ints
    held: Mask
    shape: tuple[int, ...]
    arrays: Mapping[str, Array]


class TargetSampler:
    """Samples the original for a sequence of sites, each with the bytes of its output in one run."""

    def __init__(self, pair: NetworkPair, sites: Sequence[Site], run_bytes: Sequence[int], seed: int) -> None:
        self.pair, self.sites, self.run_bytes, self.seed = pair, sites, run_bytes, seed
        self.shapes: list[dict[int, tuple[int, ...]]] = [{} for _ in sites]
        self.names: list[dict[int, list[str]]] = [{} for _ in sites]
        self.chosen: list[dict[int, tuple[Ints, Mask]]] = [{} for _ in sites]
        self.refused: set[int] = set()
        self.sampled = 0
        fitted = [run for run in pair.runs if not run.held_out and not run.mirrored]
        held = [run for run in pair.runs if run.held_out]
        self.counts = len(fitted), len(held)
        self.share = MIRRORED_SHARE if any(run.mirrored for run in pair.runs) else 1.0

    def prepare(self, site: int) -> bool:
        """Run the original as far as a site; False if the site cannot be fitted."""
        if site >= self.sampled:
            stop, size = site, 0
            while stop < len(self.sites):
                size += self._bytes(stop)
                if stop > site and size > TARGET_BYTES:
                    break
                stop += 1
            part = range(site, stop)
            names = dict.fromkeys(name for k in part for name in self.sites[k].reads)
            self.pair.original.advance(list(names), lambda run, value: self._visit(part, run, value))
            self.sampled = stop
        return site not in self.refused

    def sample(self, site: int, index: int) -> TargetRows:
        """Return the targets of a site in one run."""
        run, shape = self.pair.runs[index], self.shapes[site][index]
        chosen, held = self.chosen[site][index]
        arrays = {name: self.pair.shelf.take(f"{name}:{site}", index) for name in self.names[site][index]}
        return TargetRows(run=run, chosen=chosen, held=held, shape=shape, arrays=arrays)

    def count(self, site: int) -> int:
        """Number of rows of a site that are neither held out nor mirrored."""
        return sum(
            int(len(held) - held.sum())
            for index, (_, held) in self.chosen[site].items()
            if not self.pair.runs[index].mirrored
        )

    def forget(self, site: int) -> None:
        """Delete the targets of a site."""
        self.chosen[site].clear()
        for name in {name for names in self.names[site].values() for name in names}:
            self.pair.shelf.drop(f"{name}:{site}")

    def _bytes(self, site: int) -> int:
        one = self.sites[site]
        return self.run_bytes[site] + 2 * FLOAT_BYTES * one.rows * one.row_numbers

    def _visit(self, part: range, index: int, value: ValueOf) -> None:
        run, value = self.pair.runs[index], self.pair.target(value)
        for k in part:
            if k in self.refused:
                continue
            shape = value(self.sites[k].y).shape
            chosen, held = self._choose(k, run, shape)
            arrays = self.sites[k].sample(value, chosen, run)
            if arrays is None:
                self.refused.add(k)
                continue
            self.shapes[k][index] = shape
            self.chosen[k][index] = chosen, held
            self.names[k][index] = list(arrays)
            for name, array in arrays.items():
                self.pair.shelf.put(f"{name}:{k}", index, array)

    def _choose(self, site: int, run: PairedRun, shape: tuple[int, ...]) -> tuple[Ints, Mask]:
        """Positions of a run, and which of them are held out."""
        rng = np.random.default_rng((self.seed, self.sites[site].key, run.index))
        fitted, held = self.counts
        rows = self.sites[site].rows
        each = rows / HELD_OUT_SHARE / max(held, 1) if run.held_out else self.share * rows / max(fitted, 1)
        chosen = spread_positions(self.sites[site].positions(shape), math.ceil(each), rng)
        return chosen, self.pair.held_out_rows(run, len(chosen), rng)

"""Criteria that rank the groups of channels from the most to the least worth keeping.

A criterion is one function, its name in ``Method`` and its entry in ``METHODS`` at the end.  The first paragraph of its
docstring is its help on the command line.  A caller's own criterion is an ``Importance``.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from leanonnx.analysis.cost import Rate, kernel_rate
from leanonnx.analysis.dag import ChannelDag
from leanonnx.errors import OptionError
from leanonnx.numeric.arrays import Floats, Ints
from leanonnx.numeric.chains import best_through, extract_chains, normalise_rows
from leanonnx.numeric.norms import kernel_norms
from leanonnx.ranking.elimination import DEFAULT_EXPONENTS, Exponents
from leanonnx.ranking.groups import channel_groups, layers_of
from leanonnx.ranking.weighting import WeightedDag
from leanonnx.spelling import option

Chains = Literal["cover", "through", "free"]
Mode = Literal["through", "free"]
EXTRACTED: dict[str, Mode] = {"through": "through", "free": "free"}
FIRST_CHECK = 256
"""Extracted chains after which the budget is checked for the first time."""


@dataclass(frozen=True, kw_only=True)
class Ranking:
    """Groups of channels from the most to the least worth keeping, with a score for comparison within a layer.

    ``groups`` [channels] is the group of each channel id, ``order`` [groups] the groups from best to worst, ``losses``
    [groups] the cost of losing each, comparable across layers, where the criterion knows it.
    """

    groups: Ints
    order: Ints
    scores: Floats
    losses: Floats | None = None


@dataclass(frozen=True, kw_only=True)
class RankingInputs:
    """The weighted channel DAG, and settings that some criteria read.

    ``chains`` selects the chains of ``lean``; ``enough`` returns True for a partial ranking that exceeds the budget;
    ``seed`` of random draws; ``rate`` is the cost of a kernel in the unit of the budget, weighted by ``exponents``.
    """

    weighted: WeightedDag
    chains: Chains
    seed: int
    enough: Callable[[Ranking], bool]
    rate: Rate = kernel_rate
    exponents: Exponents = DEFAULT_EXPONENTS

    @property
    def dag(self) -> ChannelDag:
        """The channel DAG."""
        return self.weighted.dag

    def groups(self, separate_slots: bool = False) -> Ints:
        """Group of each channel id [channels]."""
        return channel_groups(self.dag, separate_slots, self.weighted.ignored)


Criterion = Callable[[RankingInputs], Ranking]
FilterSize = Callable[[NDArray[np.float32], Sequence[int]], Floats]
"""From kernels [G, O, I, *k] and strides to a number for each filter [G, O]."""
Importance = Callable[[NDArray[np.float32]], ArrayLike]
"""A criterion of the caller's: kernels [conv groups, outputs, inputs, *taps] → scores [conv groups, outputs]."""


def rank(inputs: RankingInputs, method: Method | Importance) -> Ranking:
    """Rank the groups of channels by a method, or by a function of the caller's.

    Raises:
        OptionError: the method lacks its inputs, or the caller's function fails.
    """
    return _by_importance(inputs, method) if callable(method) else METHODS[method](inputs)


def method_name(method: Method | Importance) -> str:
    """The name that plans record: of a method, or of the caller's function."""
    return str(getattr(method, "__name__", type(method).__name__)) if callable(method) else method


def meaning(method: Method) -> str:
    """Help text of a method: the first paragraph of its docstring."""
    return " ".join((inspect.getdoc(METHODS[method]) or "").partition("\n\n")[0].split())


def auto(inputs: RankingInputs) -> Ranking:
    """Path-mass with --calib, or where BatchNormalizations hold statistics, else lean."""
    return (lean if inputs.weighted.elimination is None else path_mass)(inputs)


def lean(inputs: RankingInputs) -> Ranking:
    """Chains from input to output by the gains of their kernels, see --chains (LEAN, arXiv 2011.06923)."""
    mode = EXTRACTED.get(inputs.chains)
    return _by_cover(inputs) if mode is None else _by_extraction(inputs, mode)


def path_mass(inputs: RankingInputs) -> Ranking:
    """Sum over all chains through a channel, with its activations, less what others make up for.

    Groups in the reverse order of their elimination (see ``elimination``).

    Raises:
        OptionError: there are no statistics of the activations.
    """
    elimination = inputs.weighted.elimination
    if elimination is None:
        raise OptionError(
            f"{option('method', 'path-mass')} needs activations: give inputs with {option('calib')}; the "
            "BatchNormalizations of the model tell the statistics of too few channels"
        )
    removed, losses = elimination.removal_order(inputs.rate, inputs.exponents)
    order = removed[::-1]
    scores = np.empty(order.size)
    scores[order] = -np.arange(order.size)
    return Ranking(groups=elimination.groups, order=order, scores=scores, losses=losses)


def norm(inputs: RankingInputs) -> Ranking:
    """Spectral norm of the filters that make a channel."""
    return _by_filters(inputs, lambda kernels, strides: kernel_norms(kernels, strides=tuple(strides)).sum(-1))


def l1(inputs: RankingInputs) -> Ranking:
    """Sum of |w| of the filters that make a channel (Li et al., ICLR 2017, arXiv 1608.08710)."""
    return _by_filters(inputs, lambda kernels, _: np.abs(_flat(kernels)).sum(-1))


def l2(inputs: RankingInputs) -> Ranking:
    """Euclidean norm of the filters that make a channel."""
    return _by_filters(inputs, lambda kernels, _: np.linalg.norm(_flat(kernels), axis=-1))


def fpgm(inputs: RankingInputs) -> Ranking:
    """Distance from the other filters of the layer (He et al., CVPR 2019, arXiv 1811.00250)."""
    return _by_filters(inputs, _distances)


def random(inputs: RankingInputs) -> Ranking:
    """A shuffle, by --seed."""
    groups = inputs.groups()
    scores = np.random.default_rng(inputs.seed).random(int(groups.max()) + 1)
    return _layerwise(inputs.dag, groups, scores, np.ones_like(scores))


def _by_filters(inputs: RankingInputs, size: FilterSize) -> Ranking:
    """Rank by a number for each filter, added up over the channels of a group."""
    dag, groups = inputs.dag, inputs.groups()
    scores = _per_group(groups, _filter_scores(dag, groups, size), np.add)
    return _layerwise(dag, groups, scores, np.ones_like(scores))


def _by_importance(inputs: RankingInputs, importance: Importance) -> Ranking:
    """Rank by the caller's scores of filters."""
    title = option("method", method_name(importance), method_name(importance))

    def size(kernels: NDArray[np.float32], _: Sequence[int]) -> Floats:
        where = f"{title} on kernels {list(kernels.shape)}"
        try:
            scores = np.asarray(importance(kernels.copy()), np.float64)
        except Exception as error:
            raise OptionError(f"{where}: {type(error).__name__}: {error}; correct the function") from error
        if scores.shape != kernels.shape[:2]:
            expected = f"{list(kernels.shape[:2])}, one score for each conv group and output channel"
            raise OptionError(f"{where}: returned the shape {list(scores.shape)}, expected {expected}")
        if not np.isfinite(scores).all():
            raise OptionError(f"{where}: returned NaN or infinity, expected finite scores")
        return scores

    return _by_filters(inputs, size)


def _by_cover(inputs: RankingInputs) -> Ranking:
    """LEAN at channel level: the value of the best chain from an input to an output through a channel."""
    dag, groups = inputs.dag, inputs.groups()
    blocks = [normalise_rows(block) for block in inputs.weighted.blocks]
    values = best_through(dag.count, blocks, dag.starts, dag.ends)
    scores = _per_group(groups, values, np.maximum)
    return _layerwise(dag, groups, scores, _relative(dag, groups, scores))


def _relative(dag: ChannelDag, groups: Ints, scores: Floats) -> Floats:
    """Chain values of each group relative to the best of its layer, no longer logarithms."""
    layers = layers_of(dag, groups)
    best = np.full(int(layers.max()) + 1, -np.inf)
    np.maximum.at(best, layers, scores)
    shift = np.where(np.isfinite(best), best, 0.0)[layers]
    return np.exp(scores - shift)


def _by_extraction(inputs: RankingInputs, mode: Mode) -> Ranking:
    """Rank groups by the first edge-disjoint chain, best first, that touches them; the rest by their best chain.

    The chains run from an input to an output (``through``), or start and end anywhere (``free``), as in the paper.
    """
    dag, blocks = inputs.dag, inputs.weighted.blocks
    groups = inputs.groups(separate_slots=True)
    values = _per_group(groups, best_through(dag.count, blocks, dag.starts, dag.ends), np.maximum)
    rest = np.lexsort((np.arange(values.size), -values))
    touched: dict[int, None] = {}
    checkpoint = FIRST_CHECK
    for count, chain in enumerate(extract_chains(dag.count, blocks, dag.starts, dag.ends, mode)):
        touched.update(dict.fromkeys(groups[list(chain.channel_ids)].tolist()))
        if count >= checkpoint:
            checkpoint += checkpoint // 2
            ranking = _in_order(groups, touched, rest)
            if len(touched) == values.size or inputs.enough(_only(ranking, len(touched))):
                return ranking
    return _in_order(groups, touched, rest)


def _in_order(groups: Ints, touched: dict[int, None], rest: Ints) -> Ranking:
    order = np.fromiter(dict.fromkeys([*touched, *rest.tolist()]), np.int64, rest.size)
    scores = np.empty(order.size)
    scores[order] = -np.arange(order.size)
    return Ranking(groups=groups, order=order, scores=scores)


def _only(ranking: Ranking, count: int) -> Ranking:
    return Ranking(groups=ranking.groups, order=ranking.order[:count], scores=ranking.scores)


def _per_group(groups: Ints, values: Floats, join: np.ufunc) -> Floats:
    """Join the values of each group's channels; channels without a value (NaN) do not count."""
    known = ~np.isnan(values)
    totals = np.full(int(groups.max()) + 1, -np.inf if join is np.maximum else 0.0)
    join.at(totals, groups[known], values[known])
    return totals


def _layerwise(dag: ChannelDag, groups: Ints, scores: Floats, shares: Floats) -> Ranking:
    """Rank within each layer by score, across layers by the share of the layer that would be lost.

    The key of the j-th best group of a layer is Σ_{i ≥ j} share_i / Σ share_i.
    """
    layers = layers_of(dag, groups)
    order = np.lexsort((np.arange(scores.size), -scores, layers))
    sorted_layers, sorted_shares = layers[order], shares[order]
    starts = np.flatnonzero(np.r_[True, sorted_layers[1:] != sorted_layers[:-1]])
    totals = np.add.reduceat(sorted_shares, starts)
    group = np.cumsum(np.r_[False, sorted_layers[1:] != sorted_layers[:-1]])
    before = np.cumsum(sorted_shares) - sorted_shares
    tail = totals[group] - (before - before[starts][group])
    keys = np.empty(scores.size)
    keys[order] = tail / np.where(totals > 0, totals, 1)[group]
    return Ranking(groups=groups, order=np.lexsort((np.arange(keys.size), -scores, -keys)), scores=scores)


def _filter_scores(dag: ChannelDag, groups: Ints, size: FilterSize) -> Floats:
    """Size of the filter of each channel that a mixing operator outputs [channels]; NaN for other channels.

    For concat slots that are chosen one by one it is the size of the kernels that read them.
    """
    scores = np.full(dag.count, np.nan)
    alone = np.zeros(dag.count, bool)
    for _, (channels, slots) in dag.concat_slots:
        alone[slots[groups[channels] != groups[slots]]] = True
    for _, block in dag.kernel_blocks:
        if block.input_channel_ids is not None:
            kernels = np.asarray(block.kernels(), np.float32)
            scores[block.destinations.reshape(-1)] = size(kernels, block.strides).astype(np.float64).reshape(-1)
            if alone[block.sources].any():
                sizes = size(kernels.swapaxes(1, 2), block.strides).astype(np.float64)
                chosen = alone[block.sources]
                scores[block.sources[chosen]] = np.nan_to_num(scores[block.sources[chosen]]) + sizes[chosen]
    return scores


def _flat(kernels: NDArray[np.float32]) -> NDArray[np.float32]:
    """The weights of each filter in a row [G, O, n]."""
    return kernels.reshape(*kernels.shape[:2], -1)


def _distances(kernels: NDArray[np.float32], _: Sequence[int]) -> Floats:
    """Sum of the distances of each filter from the others of all groups."""
    filters = _flat(kernels).reshape(-1, kernels[0, 0].size).astype(np.float64)
    squares = (filters**2).sum(1)
    between = squares[:, None] + squares[None] - 2 * filters @ filters.T
    return np.asarray(np.sqrt(np.maximum(between, 0)).sum(1)).reshape(kernels.shape[:2])


Method = Literal["auto", "lean", "path-mass", "norm", "l1", "l2", "fpgm", "random"]
METHODS: Mapping[Method, Criterion] = {
    "auto": auto,
    "lean": lean,
    "path-mass": path_mass,
    "norm": norm,
    "l1": l1,
    "l2": l2,
    "fpgm": fpgm,
    "random": random,
}
BY_ACTIVATIONS: tuple[Method, ...] = ("auto", "path-mass")
"""Methods that use activation statistics where there are any."""

"""Ways to rank channels.  Each gives the classes of channels from the most to the least worth keeping.

A way is one function, its name in ``Method`` and its entry in ``METHODS`` at the end.  The first paragraph of its
docstring is what the command line says of it.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from leanonnx.analysis.cost import Rate, by_kernels
from leanonnx.analysis.dag import ChannelDag
from leanonnx.errors import OptionError
from leanonnx.numeric.arrays import Floats, Ints
from leanonnx.numeric.chains import best_through, extract, normalise_rows
from leanonnx.numeric.norms import kernel_norms
from leanonnx.ranking.elimination import DEFAULT_EXPONENTS, Exponents
from leanonnx.ranking.groups import channel_groups, layers_of
from leanonnx.ranking.weighting import WeightedDag
from leanonnx.spelling import option

Chains = Literal["cover", "through", "free"]
Mode = Literal["through", "free"]
EXTRACTED: dict[str, Mode] = {"through": "through", "free": "free"}
FIRST_CHECK = 256


@dataclass(frozen=True)
class Ranking:
    """Classes of channels from the most to the least worth keeping, and how good each one is within its layer.

    ``losses`` [classes]: what losing each costs, comparable across layers, where that is known.
    """

    groups: Ints
    order: Ints
    scores: Floats
    losses: Floats | None = None


@dataclass(frozen=True)
class RankingInputs:
    """What a ranking is made of: the weighted channel DAG, and what some ways have to be told.

    ``chains``: which chains are looked at; ``enough``: whether those extracted so far exceed the budget; ``seed`` of
    what is drawn by chance; ``rate``: what a kernel costs in the unit of the budget, ``terms`` how much of that counts.
    """

    weighted: WeightedDag
    chains: Chains
    seed: int
    enough: Callable[[Ranking], bool]
    rate: Rate = by_kernels
    exponents: Exponents = DEFAULT_EXPONENTS

    @property
    def dag(self) -> ChannelDag:
        """The channel DAG."""
        return self.weighted.dag

    def groups(self, separate_readers: bool = False) -> Ints:
        """Class of each label [labels]."""
        return channel_groups(self.dag, separate_readers, self.weighted.ignored)


Criterion = Callable[[RankingInputs], Ranking]
Size = Callable[[NDArray[np.float32], Sequence[int]], Floats]
"""From kernels [G, O, I, *k] and strides to a number for each filter [G, O]."""


def rank(question: RankingInputs, method: Method) -> Ranking:
    """Rank the classes of channels."""
    return METHODS[method](question)


def meaning(method: Method) -> str:
    """What the docstring of a way says of it."""
    return " ".join((inspect.getdoc(METHODS[method]) or "").partition("\n\n")[0].split())


def auto(question: RankingInputs) -> Ranking:
    """Path-mass with --calib, or where BatchNormalizations hold statistics, else lean."""
    return (lean if question.weighted.elimination is None else path_mass)(question)


def lean(question: RankingInputs) -> Ranking:
    """Chains from input to output by the gains of their kernels, see --chains (LEAN, arXiv 2011.06923)."""
    mode = EXTRACTED.get(question.chains)
    return _by_cover(question) if mode is None else _by_extraction(question, mode)


def path_mass(question: RankingInputs) -> Ranking:
    """Sum over all chains through a channel, with its activations, less what others make up for.

    Classes in the reverse order of their elimination (see ``elimination``).

    Raises:
        OptionError: there are no statistics of the activations.
    """
    elimination = question.weighted.elimination
    if elimination is None:
        raise OptionError(
            f"{option('method', 'path-mass')} needs activations: give inputs with {option('calib')}; the "
            "BatchNormalizations of the model tell the statistics of too few channels"
        )
    removed, losses = elimination.order(question.rate, question.exponents)
    order = removed[::-1]
    scores = np.empty(order.size)
    scores[order] = -np.arange(order.size)
    return Ranking(elimination.groups, order, scores, losses)


def norm(question: RankingInputs) -> Ranking:
    """Spectral norm of the filters that make a channel."""
    return _by_filters(question, lambda kernels, strides: kernel_norms(kernels, strides=tuple(strides)).sum(-1))


def l1(question: RankingInputs) -> Ranking:
    """Sum of |w| of the filters that make a channel (Li et al., ICLR 2017, arXiv 1608.08710)."""
    return _by_filters(question, lambda kernels, _: np.abs(_flat(kernels)).sum(-1))


def l2(question: RankingInputs) -> Ranking:
    """Euclidean norm of the filters that make a channel."""
    return _by_filters(question, lambda kernels, _: np.linalg.norm(_flat(kernels), axis=-1))


def fpgm(question: RankingInputs) -> Ranking:
    """Distance from the other filters of the layer (He et al., CVPR 2019, arXiv 1811.00250)."""
    return _by_filters(question, _distances)


def random(question: RankingInputs) -> Ranking:
    """A shuffle, by --seed."""
    groups = question.groups()
    scores = np.random.default_rng(question.seed).random(int(groups.max()) + 1)
    return _layerwise(question.dag, groups, scores, np.ones_like(scores))


def _by_filters(question: RankingInputs, size: Size) -> Ranking:
    """Rank by a number for each filter; what a class holds of it is added up."""
    dag, groups = question.dag, question.groups()
    scores = _per_class(groups, _filter_scores(dag, groups, size), np.add)
    return _layerwise(dag, groups, scores, np.ones_like(scores))


def _by_cover(question: RankingInputs) -> Ranking:
    """LEAN at channel level: the value of the best chain from an input to an output through a channel."""
    dag, groups = question.dag, question.groups()
    blocks = [normalise_rows(block) for block in question.weighted.blocks]
    values = best_through(dag.count, blocks, dag.starts, dag.ends)
    scores = _per_class(groups, values, np.maximum)
    return _layerwise(dag, groups, scores, _relative(dag, groups, scores))


def _relative(dag: ChannelDag, groups: Ints, scores: Floats) -> Floats:
    """Chain values (log) of each class relative to the best of its layer, as plain numbers."""
    layers = layers_of(dag, groups)
    best = np.full(int(layers.max()) + 1, -np.inf)
    np.maximum.at(best, layers, scores)
    shift = np.where(np.isfinite(best), best, 0.0)[layers]
    return np.exp(scores - shift)


def _by_extraction(question: RankingInputs, mode: Mode) -> Ranking:
    """Classes in the order in which edge-disjoint chains, best first, touch them; the rest by their best chain.

    The chains run from an input to an output (``through``), or start and end anywhere (``free``), as in the paper.
    """
    dag, blocks = question.dag, question.weighted.blocks
    groups = question.groups(separate_readers=True)
    values = _per_class(groups, best_through(dag.count, blocks, dag.starts, dag.ends), np.maximum)
    rest = np.lexsort((np.arange(values.size), -values))
    touched: dict[int, None] = {}
    checkpoint = FIRST_CHECK
    for count, chain in enumerate(extract(dag.count, blocks, dag.starts, dag.ends, mode)):
        touched.update(dict.fromkeys(groups[list(chain.channel_ids)].tolist()))
        if count >= checkpoint:
            checkpoint += checkpoint // 2
            ranking = _in_order(groups, touched, rest)
            if len(touched) == values.size or question.enough(_only(ranking, len(touched))):
                return ranking
    return _in_order(groups, touched, rest)


def _in_order(groups: Ints, touched: dict[int, None], rest: Ints) -> Ranking:
    order = np.fromiter(dict.fromkeys([*touched, *rest.tolist()]), np.int64, rest.size)
    scores = np.empty(order.size)
    scores[order] = -np.arange(order.size)
    return Ranking(groups, order, scores)


def _only(ranking: Ranking, count: int) -> Ranking:
    return Ranking(ranking.groups, ranking.order[:count], ranking.scores)


def _per_class(groups: Ints, values: Floats, join: np.ufunc) -> Floats:
    """Join the values of the labels of each class; labels without a value (NaN) do not count."""
    known = ~np.isnan(values)
    found = np.full(int(groups.max()) + 1, -np.inf if join is np.maximum else 0.0)
    join.at(found, groups[known], values[known])
    return found


def _layerwise(dag: ChannelDag, groups: Ints, scores: Floats, shares: Floats) -> Ranking:
    """Rank within each layer by score, across layers by the share of the layer that would be lost.

    The key of the j-th best class of a layer is Σ_{i ≥ j} share_i / Σ share_i.
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
    return Ranking(groups, np.lexsort((np.arange(keys.size), -scores, -keys)), scores)


def _filter_scores(dag: ChannelDag, groups: Ints, size: Size) -> Floats:
    """Size of the filter of each channel that a mixing operator puts out [labels]; NaN for other channels.

    For readers that are chosen one by one it is the size of the kernels that read.
    """
    scores = np.full(dag.count, np.nan)
    alone = np.zeros(dag.count, bool)
    for _, (channels, readers) in dag.concat_slots:
        alone[readers[groups[channels] != groups[readers]]] = True
    for _, mix in dag.kernel_blocks:
        if mix.inward is not None:
            kernels = np.asarray(mix.kernels(), np.float32)
            scores[mix.destinations.reshape(-1)] = size(kernels, mix.strides).astype(np.float64).reshape(-1)
            if alone[mix.sources].any():
                sizes = size(kernels.swapaxes(1, 2), mix.strides).astype(np.float64)
                chosen = alone[mix.sources]
                scores[mix.sources[chosen]] = np.nan_to_num(scores[mix.sources[chosen]]) + sizes[chosen]
    return scores


def _flat(kernels: NDArray[np.float32]) -> NDArray[np.float32]:
    """The numbers of each filter in a row [G, O, n]."""
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
"""Methods that look at activations, where there are any."""

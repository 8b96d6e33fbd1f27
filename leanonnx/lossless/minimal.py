"""The smallest network with the same outputs: remove channels, operands and nodes that contribute nothing, repeatedly.

Operands that add nothing are removed from the graph and the rest is analysed again, as the removed branch may have been
all that kept its channels.  Constants keep the names of the input file, so that one plan describes the result.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import onnx

from leanonnx.analysis.cost import cost_model
from leanonnx.analysis.dag import ChannelDag, build_channel_dag
from leanonnx.analysis.naming import pin_outputs, resolve_nodes, resolve_pin, resolve_tensors
from leanonnx.graph.tidy import TidyResult, tidy
from leanonnx.lossless.exact import ContributingChannels, exact_patch, find_contributing_channels
from leanonnx.numeric.channel_ids import Mask
from leanonnx.proof.decisions import behind_decisions
from leanonnx.rules.call import Pin
from leanonnx.rules.table import Rules
from leanonnx.runtime.observation import Shapes, observe
from leanonnx.selection.selector import Selection
from leanonnx.surgery.operate import apply_patch


@dataclass(frozen=True, kw_only=True)
class Minimum:
    """The channels that contribute to an output, in a model that has been cleaned up.

    Attributes:
        dag: the channel DAG of the cleaned model.
        contributing: the channels to keep.
        selection: their keep mask, with the cost of the original and of the result.
        done: numbers of clean-ups so far, by kind.
        layers: names of the layers that are removed.
        keep: tensors that have to stay.
    """

    dag: ChannelDag
    contributing: ContributingChannels
    selection: Selection
    done: Mapping[str, int]
    layers: tuple[str, ...]
    keep: frozenset[str]

    @property
    def is_lossless(self) -> bool:
        """Always True."""
        return True

    @property
    def is_whole(self) -> bool:
        """True if nothing is to be removed or was cleaned up."""
        return not self.done and bool(self.contributing.alive.all()) and not self.contributing.shifts

    def prune(self) -> TidyResult:
        """Remove the channels and clean up the graph."""
        proto = self.dag.model.proto
        if not self.is_whole:
            proto = apply_patch(self.dag.model, exact_patch(self.dag, self.contributing))
        tidied = tidy(proto, self.contributing.uniform, self.keep)
        return replace(tidied, done=dict(sorted((Counter(self.done) + Counter(tidied.done)).items())))

    def tidy(self, proto: onnx.ModelProto) -> TidyResult:
        """Merge adjacent linear layers of the pruned model; of a whole one in memory, where its weights are folded."""
        source = self.dag.model.proto if self.is_whole else proto
        return tidy(source, self.contributing.uniform, self.keep, merge=True)

    def reasons(self) -> dict[str, Any]:
        """Numbers of groups of channels that are removed by reason, and the removed layers."""
        return {"channels": dict(self.contributing.reasons), "layers": list(self.layers)}


def minimise(
    dag: ChannelDag, rules: Rules, shapes: Shapes, pin: tuple[str, ...] = (), ignore: tuple[str, ...] = ()
) -> Minimum:
    """Find the channels that contribute to an output; those that ``pin`` and ``ignore`` name stay in any case."""
    keep = frozenset({*behind_decisions(dag.model), *resolve_tensors(dag.model, pin + ignore)})
    layers, done, cost = _layers(dag), Counter[str](), cost_model(dag)(dag.all_alive)
    while True:
        result = find_contributing_channels(dag, _pins(dag, pin, ignore))
        tidied = tidy(dag.model.proto, result.constants, keep)
        if not tidied.done:
            selection = Selection(alive=result.alive, before=cost, after=cost_model(dag)(result.alive), reached=True)
            left = _layers(dag, result.alive)
            removed = tuple(name for name in layers if name not in left)
            return Minimum(
                dag=dag, contributing=result, selection=selection, done=dict(done), layers=removed, keep=keep
            )
        done.update(tidied.done)
        model = replace(dag.model, proto=tidied.proto)
        dag = build_channel_dag(model, observe(model, shapes), rules)


def _pins(dag: ChannelDag, pin: tuple[str, ...], ignore: tuple[str, ...]) -> tuple[Pin, ...]:
    nodes = [node for name in ignore for node in resolve_nodes(dag.model, name)]
    return (*(resolve_pin(dag, name) for name in pin), *(pin_outputs(dag, node) for node in nodes))


def _layers(dag: ChannelDag, alive: Mask | None = None) -> list[str]:
    """Names of the nodes with kernels that output a channel that is kept."""
    nodes = dag.model.proto.graph.node
    kept = [node for node, mix in dag.kernel_blocks if alive is None or alive[mix.destinations].any()]
    return list(dict.fromkeys(nodes[node].name or nodes[node].output[0] for node in kept))

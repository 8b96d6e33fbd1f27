"""The least network that computes the same: channels, operands and nodes that contribute nothing, until none is left.

Operands that add nothing are taken out of the graph, and the rest is analysed again: its channels may have been kept by
the branch that went.  The constants keep the names of the input file, so that one plan describes the result.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from leanonnx.analysis.cost import cost_model
from leanonnx.analysis.dag import ChannelDag, analyse
from leanonnx.analysis.naming import ignored_pin, named_nodes, named_pin, named_tensors
from leanonnx.graph.tidy import Tidied, tidy
from leanonnx.lossless.exact import Contributing, contributing, exact_patch
from leanonnx.numeric.channel_ids import Mask
from leanonnx.proof.decisions import behind_decisions
from leanonnx.rules.call import Pin
from leanonnx.rules.table import Rules
from leanonnx.runtime.observation import Shapes, observe
from leanonnx.selection.selector import Selection
from leanonnx.surgery.operate import apply


@dataclass(frozen=True)
class Minimum:
    """What contributes, in a model that has been cleaned already; ``done`` counts how, ``layers`` names those gone."""

    dag: ChannelDag
    found: Contributing
    done: Mapping[str, int]
    layers: tuple[str, ...]
    keep: frozenset[str]

    @property
    def whole(self) -> bool:
        """Whether nothing has gone so far."""
        return not self.done and bool(self.found.alive.all()) and not self.found.shifts

    def selection(self, original: ChannelDag) -> Selection:
        """The keep set, with the cost of the original and of what is left."""
        everything = original.whole
        costs = cost_model(original)(everything), cost_model(self.dag)(self.found.alive)
        return Selection(self.found.alive, *costs, reached=True)

    def row(self) -> dict[str, Any]:
        """What went and why."""
        return {"channels": dict(self.found.reasons), "layers": list(self.layers)}

    def carried_out(self, merge: bool) -> Tidied:
        """The minimal model; with ``merge`` adjacent linear layers become one."""
        proto = self.dag.model.proto if self.whole else apply(self.dag.model, exact_patch(self.dag, self.found))
        tidied = tidy(proto, self.found.uniform, self.keep, merge)
        return replace(tidied, done=dict(sorted((Counter(self.done) + Counter(tidied.done)).items())))


def minimise(
    dag: ChannelDag, rules: Rules, shapes: Shapes, pin: tuple[str, ...] = (), ignore: tuple[str, ...] = ()
) -> Minimum:
    """Find what a model can do without; what ``pin`` and ``ignore`` name stays, whatever it contributes."""
    keep = frozenset({*behind_decisions(dag.model), *named_tensors(dag.model, pin + ignore)})
    before, done = _layers(dag), Counter[str]()
    while True:
        found = contributing(dag, _pinned(dag, pin, ignore))
        tidied = tidy(dag.model.proto, found.uniform, keep)
        if not tidied.done:
            left = _layers(dag, found.alive)
            return Minimum(dag, found, dict(done), tuple(name for name in before if name not in left), keep)
        done.update(tidied.done)
        model = replace(dag.model, proto=tidied.proto)
        dag = analyse(model, observe(model, shapes), rules)


def _pinned(dag: ChannelDag, pin: tuple[str, ...], ignore: tuple[str, ...]) -> tuple[Pin, ...]:
    nodes = [node for name in ignore for node in named_nodes(dag.model, name)]
    return (*(named_pin(dag, name) for name in pin), *(ignored_pin(dag, node) for node in nodes))


def _layers(dag: ChannelDag, alive: Mask | None = None) -> list[str]:
    """Names of the nodes with kernels that put out a living channel."""
    nodes = dag.model.proto.graph.node
    living = [node for node, mix in dag.kernel_blocks if alive is None or alive[mix.destinations].any()]
    return list(dict.fromkeys(nodes[node].name or nodes[node].output[0] for node in living))

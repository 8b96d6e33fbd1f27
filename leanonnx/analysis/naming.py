"""What the names given by a user mean: channels and nodes."""

from __future__ import annotations

import numpy as np

from leanonnx.analysis.dag import ChannelDag
from leanonnx.errors import OptionError
from leanonnx.graph.model import Model
from leanonnx.rules.call import Pin
from leanonnx.spelling import option, verb


def named_pin(dag: ChannelDag, name: str) -> Pin:
    """The pin of ``--pin NAME``: a tensor, or the outputs of a node."""
    if name in dag.channel_ids:
        return Pin(np.unique(dag.channel_ids[name]), name, option("pin", name))
    nodes = [n for n in dag.model.proto.graph.node if name and n.name == name]
    channel_ids = [np.unique(dag.channel_ids[o]) for node in nodes for o in node.output if o in dag.channel_ids]
    if not channel_ids:
        raise OptionError(
            f"{option('pin', name)}: no tensor and no node of that name carries channels; see `{verb('inspect')}`"
        )
    return Pin(np.unique(np.concatenate(channel_ids)), name, option("pin", name))


def named_nodes(model: Model, name: str) -> list[int]:
    """``--ignore LAYER``: a node by its name or by the name of its output."""
    found = [k for k, n in enumerate(model.proto.graph.node) if name and (n.name == name or name in n.output)]
    if not found:
        raise OptionError(
            f"{option('ignore', name)}: no node has this name or puts out this tensor; see `{verb('inspect')}`"
        )
    return found


def ignored_pin(dag: ChannelDag, node: int) -> Pin:
    """All outputs of a node that is ignored."""
    outputs = dag.model.proto.graph.node[node].output
    channel_ids = [np.unique(dag.channel_ids[o]) for o in outputs if o in dag.channel_ids]
    return Pin(
        np.unique(np.concatenate(channel_ids)) if channel_ids else np.zeros(0, np.int64), outputs[0], option("ignore")
    )


def named_tensors(model: Model, names: tuple[str, ...]) -> set[str]:
    """Tensors that are called so, and outputs of nodes that are."""
    return {n for node in model.proto.graph.node for n in node.output if node.name in names or n in names} - {""}

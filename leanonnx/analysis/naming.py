"""Resolve names given by a user to channels and nodes."""

from __future__ import annotations

import numpy as np

from leanonnx.analysis.dag import ChannelDag
from leanonnx.errors import OptionError
from leanonnx.graph.model import Model
from leanonnx.rules.call import Pin
from leanonnx.spelling import option, verb


def resolve_pin(dag: ChannelDag, name: str) -> Pin:
    """Pin of a tensor, or of the outputs of a node (``--pin NAME``)."""
    if name in dag.channel_ids:
        return Pin(channel_ids=np.unique(dag.channel_ids[name]), tensor=name, reason=option("pin", name))
    nodes = [n for n in dag.model.proto.graph.node if name and n.name == name]
    channel_ids = [np.unique(dag.channel_ids[o]) for node in nodes for o in node.output if o in dag.channel_ids]
    if not channel_ids:
        raise OptionError(
            f"{option('pin', name)}: no tensor and no node of that name carries channels; see `{verb('inspect')}`"
        )
    return Pin(channel_ids=np.unique(np.concatenate(channel_ids)), tensor=name, reason=option("pin", name))


def resolve_nodes(model: Model, name: str) -> list[int]:
    """Indices of the nodes with this name or with an output of this name (``--ignore LAYER``)."""
    nodes = [k for k, n in enumerate(model.proto.graph.node) if name and (n.name == name or name in n.output)]
    if not nodes:
        raise OptionError(
            f"{option('ignore', name)}: no node has this name or outputs this tensor; see `{verb('inspect')}`"
        )
    return nodes


def pin_outputs(dag: ChannelDag, node: int) -> Pin:
    """Pin of all outputs of an ignored node."""
    outputs = dag.model.proto.graph.node[node].output
    channel_ids = [np.unique(dag.channel_ids[o]) for o in outputs if o in dag.channel_ids]
    return Pin(
        channel_ids=np.unique(np.concatenate(channel_ids)) if channel_ids else np.zeros(0, np.int64),
        tensor=outputs[0],
        reason=option("ignore"),
    )


def resolve_tensors(model: Model, names: tuple[str, ...]) -> set[str]:
    """Names of the tensors, and of the outputs of the nodes, with one of these names."""
    return {n for node in model.proto.graph.node for n in node.output if node.name in names or n in names} - {""}

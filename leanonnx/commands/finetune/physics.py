"""Operators of an inverse problem as torch functions: ONNX files, or the part of the network between two tensors."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import torch

from leanonnx.commands.finetune.batching import Batch, BatchedNetwork, batched_network, stack_feeds
from leanonnx.commands.finetune.module import TorchNetwork
from leanonnx.commands.finetune.operators.call import Tensor
from leanonnx.commands.finetune.parity import round_trip
from leanonnx.errors import OptionError
from leanonnx.graph.formats import REPLACED_TYPES, convert_feed, convert_to_float32, float_types
from leanonnx.graph.model import Model, load
from leanonnx.graph.nodes import captured_names
from leanonnx.graph.view import FREE_INITIALIZERS
from leanonnx.numeric.arrays import Array
from leanonnx.runtime.sessions import Feed, RunFailed
from leanonnx.spelling import option

BETWEEN = ":"
"""Separates the names of two tensors of a network."""
VALUE = ""
"""Name of what an operator maps, beside the names of its other inputs."""


@dataclass(frozen=True, kw_only=True)
class PhysicalModel:
    """An operator before it is bound to data.

    ``title``: the option that names it; ``source``: the input that takes what the operator maps; ``arrays``: its other
    inputs, each named as an array of the data; ``output``: its output.
    """

    title: str
    model: Model
    source: str
    arrays: tuple[str, ...]
    output: str

    @property
    def dims(self) -> tuple[int | None, ...] | None:
        """Declared sizes of the source, None where they are free; None if not even their number is declared."""
        kind = next(value.type.tensor_type for value in self.model.inputs if value.name == self.source)
        if not kind.HasField("shape"):
            return None
        return tuple(d.dim_value if d.dim_value > 0 else None for d in kind.shape.dim)

    def takes(self, shape: Sequence[int]) -> bool:
        """Return True if the source's declared shape admits this one."""
        dims = self.dims
        return dims is None or (
            len(dims) == len(shape) and all(d in (None, size) for d, size in zip(dims, shape, strict=True))
        )

    def bind(self, values: Sequence[Array], feeds: Sequence[Mapping[str, Array]], device: str) -> PhysicalOperator:
        """The operator as a torch function, compared with onnxruntime on these values and the arrays beside them.

        Raises:
            OptionError: it does not run on these values.
            ModelError: torch cannot run it.
            ProofFailed: torch and onnxruntime disagree on it.
        """
        known: list[Feed] = [
            convert_feed({self.source: value, **{name: feed[name] for name in self.arrays}}, REPLACED_TYPES)
            for value, feed in zip(values, feeds, strict=True)
        ]
        network = TorchNetwork(self.model, ()).eval()
        try:
            round_trip(self.model, self.model.proto, network, known)
        except RunFailed as error:
            shapes = ", ".join(f"'{name}' {list(value.shape)}" for name, value in known[0].items())
            raise OptionError(f"{self.title}: cannot run on {shapes}: {error}; give an operator of the data") from error
        batched = batched_network(network, known, (self.output,))
        network.place(device)
        return PhysicalOperator(self, batched, device)


@dataclass(frozen=True)
class PhysicalOperator:
    """An operator as a differentiable function of batches."""

    physics: PhysicalModel
    network: BatchedNetwork
    device: str

    def __call__(self, value: Tensor, batch: Batch) -> Tensor:
        """Apply the operator to values [batch, ...], with the other arrays it needs from the batch."""
        feed = {self.physics.source: value, **{name: batch[name] for name in self.physics.arrays}}
        return self.network(feed, (self.physics.output,))[0].float()

    def one(self, value: Array, feed: Mapping[str, Array]) -> Array:
        """Apply the operator to the value of a single run."""
        batch = stack_feeds([{**{name: feed[name] for name in self.physics.arrays}, VALUE: value}], self.device)
        with torch.no_grad():
            return np.asarray(self(batch[VALUE], batch)[0].cpu().numpy())


def open_physics(name: str, given: str, network: Model, arrays: Iterable[str]) -> PhysicalModel:
    """Open an operator.

    Args:
        name: the option.
        given: its value: the path of an ONNX file, or ``FROM:TO``, two tensors of the network.
        network: the model to train.
        arrays: names of the arrays that an operator may take as further inputs.

    Raises:
        UserError: no such file or tensors, or the inputs or outputs are not those of an operator.
    """
    title = option(name, given)
    pair = _named_tensors(given, network)
    if Path(given).is_file() or pair is None:
        if not Path(given).is_file() and Path(given).suffix != ".onnx":
            raise OptionError(
                f"{title}: neither a file nor two tensors of {network.path}; give an .onnx file, or the names of two "
                f"tensors as FROM{BETWEEN}TO"
            )
        model = load(Path(given), network.libraries)
        source = _source(title, model, arrays)
    else:
        source = pair[0]
        model = _between(title, network, *pair)
    others = tuple(value.name for value in model.inputs if value.name != source)
    unknown = [each for each in others if each not in set(arrays)]
    if unknown:
        raise OptionError(
            f"{title}: takes '{unknown[0]}' besides '{source}'; give an operator of one input, or of further ones "
            f"among the other arrays of the data ({', '.join(sorted(arrays))})"
        )
    if len(model.proto.graph.output) != 1:
        raise OptionError(f"{title}: has {len(model.proto.graph.output)} outputs; give an operator with one")
    return PhysicalModel(
        title=title, model=model, source=source, arrays=others, output=model.proto.graph.output[0].name
    )


def _source(title: str, model: Model, arrays: Iterable[str]) -> str:
    """The input that is mapped: the only one, or the only one that is not named as an array of the data."""
    names = [value.name for value in model.inputs]
    left = names if len(names) == 1 else [name for name in names if name not in set(arrays)]
    if len(left) != 1:
        raise OptionError(
            f"{title}: its inputs are {', '.join(map(repr, names)) or 'none'}; give an operator of one input, or of "
            f"further ones among the other arrays of the data ({', '.join(sorted(arrays))})"
        )
    return left[0]


def _named_tensors(given: str, network: Model) -> tuple[str, str] | None:
    """Split ``FROM:TO`` into names of two tensors; names may hold colons themselves."""
    names = {value.name for value in network.inputs} | set(network.producers)
    places = [k for k, letter in enumerate(given) if letter == BETWEEN]
    return next(((given[:k], given[k + 1 :]) for k in places if {given[:k], given[k + 1 :]} <= names), None)


def _between(title: str, network: Model, source: str, output: str) -> Model:
    """The part of a network that computes one tensor from another, as a model with its weights as they are."""
    proto = convert_to_float32(network.proto, float_types(network.proto) & REPLACED_TYPES)
    wanted, nodes, queue = {output}, set[int](), [output]
    while queue:
        name = queue.pop()
        place = network.producers.get(name) if name != source else None
        if place is None or place in nodes:
            continue
        nodes.add(place)
        node = proto.graph.node[place]
        fresh = ({*node.input} | captured_names(node)) - {""} - wanted
        wanted |= fresh
        queue += sorted(fresh)
    if not nodes or source not in wanted:
        raise OptionError(f"{title}: no path leads from '{source}' to '{output}'; name a tensor before and one after")
    graph = proto.graph
    fed = {value.name for value in network.inputs} & wanted - {source}
    inputs = [value for value in graph.input if value.name in fed]
    entry = next((value for value in graph.input if value.name == source), None) or onnx.helper.make_tensor_value_info(
        source, onnx.TensorProto.FLOAT, None
    )
    cut = onnx.helper.make_graph(
        [graph.node[place] for place in sorted(nodes)],
        graph.name,
        [entry, *inputs],
        [onnx.helper.make_tensor_value_info(output, onnx.TensorProto.FLOAT, None)],
        [tensor for tensor in graph.initializer if tensor.name in wanted],
    )
    result = onnx.helper.make_model(
        cut, opset_imports=proto.opset_import, ir_version=max(proto.ir_version, FREE_INITIALIZERS)
    )
    return Model(path=network.path, proto=result, sha256=network.sha256, external_files=(), libraries=network.libraries)

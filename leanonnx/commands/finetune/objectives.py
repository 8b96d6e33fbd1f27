"""Training objectives: what a strategy feeds the network, and the loss of its tensors."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeAlias

import numpy as np

from leanonnx.commands.finetune.augment import ImageInputs, image_inputs
from leanonnx.commands.finetune.batching import Batch
from leanonnx.commands.finetune.equivariance import verified_images
from leanonnx.commands.finetune.loading import Loader
from leanonnx.commands.finetune.module import TorchNetwork
from leanonnx.commands.finetune.operators.call import Tensor
from leanonnx.commands.finetune.options import FinetuneOptions
from leanonnx.graph.model import Model
from leanonnx.runtime.observation import Shapes
from leanonnx.runtime.sessions import Feed

Prepare: TypeAlias = Callable[["Batch", "Tensor | None", np.random.Generator, bool], "tuple[Batch, Any]"]


@dataclass(frozen=True)
class Objective:
    """A training objective.

    names: the network's tensors that the loss needs.
    prepare: maps a batch, its labels, a random generator and a training flag to the network's feed and the loss's
        reference.
    loss: maps these tensors and the reference to a mean over the batch.
    """

    names: tuple[str, ...]
    prepare: Prepare
    loss: Callable[[Sequence[Tensor], Any], Tensor]


@dataclass(frozen=True, kw_only=True)
class Scene:
    """All that an objective is made from.

    Attributes:
        model, network: the model to train, and its torch module.
        shapes: shapes of its tensors.
        loader: training and held-out data; samples may hold more arrays than the model has inputs.
        feeds: inputs of some held-out samples.
        base: the original, if it is given.
        options: those of the training.
        device: device of the batches.
        notes: the report's warnings, to which an objective may add.
    """

    model: Model
    network: TorchNetwork
    shapes: Shapes
    loader: Loader
    feeds: tuple[Feed, ...]
    base: Model | None
    options: FinetuneOptions
    device: str
    notes: list[str]

    @property
    def images(self) -> ImageInputs | None:
        """The image inputs; None unless they have one layout."""
        return image_inputs({name: value.shape for name, value in self.feeds[0].items()})

    @cached_property
    def augmented(self) -> ImageInputs | None:
        """The image inputs with the augmentations that the original follows, if they are to be flipped and shifted.

        A note says which it does not follow.
        """
        if self.images is None or not self.options.augment:
            return None
        labelled = self.options.strategy == "supervised"
        images, notes = verified_images(self.images, self.base or self.model, self.feeds, labelled)
        self.notes.extend(notes)
        return images

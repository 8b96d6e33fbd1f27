"""Options and settings of ``finetune``."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from leanonnx.commands.finetune.strategies import SignalOptions, Strategy
from leanonnx.data.samples import ImageFormat
from leanonnx.runtime.observation import Shapes


@dataclass(frozen=True, kw_only=True)
class TrainingSettings:
    """Settings of a training.

    ``epochs``: None for as many as fit into ``minutes`` or, without these, as give ``DEFAULT_STEPS`` steps; ``rate``:
    the highest learning rate; ``minutes``: time limit; ``patience``: epochs without a gain before the training stops.
    """

    epochs: int | None = None
    rate: float = 2e-3
    batch: int = 32
    minutes: float | None = None
    patience: int | None = None
    seed: int = 0
    amp: bool = False
    checkpoint: Path | None = None
    resume: bool = False


@dataclass(frozen=True, kw_only=True)
class FinetuneOptions:
    """Options of ``finetune``.

    ``signal``: those of single strategies; ``train`` and ``hold``: patterns of names of weights, see ``holding``.
    """

    strategy: Strategy = "school"
    train: tuple[str, ...] = ()
    hold: tuple[str, ...] = ()
    signal: SignalOptions = field(default_factory=SignalOptions)
    shapes: Shapes = field(default_factory=dict)
    images: ImageFormat = field(default_factory=ImageFormat)
    augment: bool = True
    device: str = "cpu"
    libraries: tuple[Path, ...] = ()
    settings: TrainingSettings = field(default_factory=TrainingSettings)

"""Names of the strategies of a training, for callers that do not import torch."""

from __future__ import annotations

from typing import Literal

Strategy = Literal["school", "supervised", "noise2self"]
"""The source of the training signal: the original, labels in the data, or noisy images themselves."""

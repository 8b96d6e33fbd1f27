"""Losses.  All tensors are batches of whole outputs [batch, *shape]; all losses are means, 0 for a perfect network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch.nn import functional as F

from leanonnx.commands.finetune.operators.call import Tensor
from leanonnx.commands.finetune.targets import DistillationTarget

TEMPERATURE = 4.0
"""By which logits are divided, so that small probabilities are taught too (Hinton et al. 2015, arXiv 1503.02531)."""
CLASSES = 0.1
"""Weight of the divergence of probabilities beside the squared error of logits."""
INNER = 0.1
"""Weight of all tensors within the networks together."""


def school(
    targets: Sequence[DistillationTarget],
    scales: Mapping[str, float],
    found: Sequence[Tensor],
    wanted: Sequence[Tensor],
) -> Tensor:
    """How far a network is from its teacher: squared errors relative to ``scales``, and divergence where classes are.

    Args:
        targets: what the tensors are.
        scales: mean square of each of the teacher's tensors about its mean.
        found: the network's tensors.
        wanted: the teacher's.
    """
    inner = sum(target.inner for target in targets)
    total = found[0].new_zeros(())
    for target, a, b in zip(targets, found, wanted, strict=True):
        error = F.mse_loss(a.float(), b.float()) / scales[target.name]
        weight = INNER / inner if target.inner else 1 / (len(targets) - inner)
        total = total + weight * error
        if target.axis is not None:
            total = total + weight * CLASSES * divergence(a.float(), b.float(), target.axis + 1)
    return total


def divergence(found: Tensor, wanted: Tensor, axis: int) -> Tensor:
    """T² KL(softmax(wanted/T) ‖ softmax(found/T)) along an axis, mean over all others."""
    a, b = (torch.log_softmax(value / TEMPERATURE, axis) for value in (found, wanted))
    return TEMPERATURE**2 * (b.exp() * (b - a)).sum(axis).mean()


def cross_entropy(logits: Tensor, labels: Tensor, axis: int) -> Tensor:
    """Cross-entropy of integer labels; negative ones count for nothing.

    Args:
        logits: [..., classes, ...].
        labels: the same without the axis of the classes.
        axis: of the classes.
    """
    flat = logits.float().movedim(axis, -1)
    flat = flat.reshape(-1, flat.shape[-1])
    chosen = labels.reshape(-1).to(torch.int64)
    return F.cross_entropy(flat, torch.where(chosen < 0, -100, chosen))


def spread(value: Tensor) -> float:
    """Mean square about the mean; 1 for a constant."""
    found = float(value.float().var(unbiased=False))
    return found if found > 0 else 1.0

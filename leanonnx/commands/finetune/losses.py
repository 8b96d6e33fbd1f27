"""Losses.  Tensors are batches of whole outputs [batch, *shape]; each loss is a mean, 0 for a perfect network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch.nn import functional as F

from leanonnx.commands.finetune.operators.call import Tensor
from leanonnx.commands.finetune.targets import DistillationTarget

TEMPERATURE = 4.0
"""Divisor of the logits, so that small probabilities count too (Hinton et al. 2015, arXiv 1503.02531)."""
DIVERGENCE_WEIGHT = 0.1
"""Weight of the divergence of class probabilities, relative to the squared error of the logits."""
INNER_WEIGHT = 0.1
"""Total weight of the inner tensors; the outputs have a total weight of 1."""


def distillation_loss(
    targets: Sequence[DistillationTarget],
    scales: Mapping[str, float],
    outputs: Sequence[Tensor],
    wanted: Sequence[Tensor],
) -> Tensor:
    """Distillation loss: squared errors relative to ``scales``, plus a divergence where there are classes.

    Args:
        targets: the compared tensors.
        scales: variance of each of the teacher's tensors, by name.
        outputs: the network's tensors.
        wanted: the teacher's.
    """
    inner = sum(target.inner for target in targets)
    total = outputs[0].new_zeros(())
    for target, a, b in zip(targets, outputs, wanted, strict=True):
        error = F.mse_loss(a.float(), b.float()) / scales[target.name]
        weight = INNER_WEIGHT / inner if target.inner else 1 / (len(targets) - inner)
        total = total + weight * error
        if target.axis is not None:
            total = total + weight * DIVERGENCE_WEIGHT * divergence(a.float(), b.float(), target.axis + 1)
    return total


def divergence(logits: Tensor, wanted: Tensor, axis: int) -> Tensor:
    """T² KL(softmax(wanted/T) ‖ softmax(logits/T)) along an axis, mean over all others."""
    a, b = (torch.log_softmax(value / TEMPERATURE, axis) for value in (logits, wanted))
    return TEMPERATURE**2 * (b.exp() * (b - a)).sum(axis).mean()


def cross_entropy(logits: Tensor, labels: Tensor, axis: int) -> Tensor:
    """Cross-entropy of integer labels; negative labels are ignored.

    Args:
        logits: [..., classes, ...].
        labels: the same shape without the class axis.
        axis: class axis of the logits.
    """
    flat = logits.float().movedim(axis, -1)
    flat = flat.reshape(-1, flat.shape[-1])
    chosen = labels.reshape(-1).to(torch.int64)
    return F.cross_entropy(flat, torch.where(chosen < 0, -100, chosen))


def loss_scale(value: Tensor) -> float:
    """Variance of a tensor; 1 for a constant."""
    variance = float(value.float().var(unbiased=False))
    return variance if variance > 0 else 1.0

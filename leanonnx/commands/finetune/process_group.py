"""The processes that train together: one, or as many as torch's own launcher (torchrun) has started."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.distributed as dist

from leanonnx.commands.finetune.operators.call import Tensor
from leanonnx.errors import OptionError
from leanonnx.spelling import option


@dataclass(frozen=True)
class ProcessGroup:
    """This process among those that train together, and its device."""

    rank: int
    size: int
    device: str

    @property
    def leads(self) -> bool:
        """Whether this process writes what all have made."""
        return self.rank == 0

    def agreed(self, value: float) -> float:
        """A number on which all processes agree: that of the first."""
        if self.size == 1:
            return value
        shared: Tensor = torch.tensor([value], dtype=torch.float64, device=self.device)
        dist.broadcast(shared, 0)
        return float(shared)

    def shared(self, module: torch.nn.Module) -> torch.nn.Module:
        """A module whose gradients are averaged over all processes."""
        if self.size == 1:
            return module
        return torch.nn.parallel.DistributedDataParallel(module, find_unused_parameters=True)

    def leave(self) -> None:
        """End the work with the others."""
        if self.size > 1 and dist.is_initialized():
            dist.destroy_process_group()


def join(device: str) -> ProcessGroup:
    """This process alone, or among the others where torchrun has started it.

    Raises:
        OptionError: torch sees no GPU.
    """
    if device == "cuda" and not torch.cuda.is_available():
        raise OptionError(
            f"{option('device', 'cuda')}: torch sees no GPU; install torch for CUDA, or use {option('device', 'cpu')}"
        )
    if not (dist.is_available() and dist.is_torchelastic_launched()):
        return ProcessGroup(0, 1, device)
    if device == "cuda":
        device = f"cuda:{dist.get_node_local_rank()}"
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if device != "cpu" else "gloo")
    return ProcessGroup(dist.get_rank(), dist.get_world_size(), device)

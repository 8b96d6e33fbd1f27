"""The processes that train together: a single one, or those started by torch's launcher (torchrun)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.distributed as dist

from leanonnx.commands.finetune.operators.call import Tensor
from leanonnx.system.gpu import check_device


@dataclass(frozen=True)
class ProcessGroup:
    """Rank of this process, number of processes that train together, and device of this process."""

    rank: int
    size: int
    device: str

    @property
    def is_leader(self) -> bool:
        """Return True if this process writes the result."""
        return self.rank == 0

    def broadcast(self, value: float) -> float:
        """Return the first process's value in all processes."""
        if self.size == 1:
            return value
        tensor: Tensor = torch.tensor([value], dtype=torch.float64, device=self.device)
        dist.broadcast(tensor, 0)
        return float(tensor)

    def share_gradients(self, module: torch.nn.Module) -> torch.nn.Module:
        """Wrap a module so that its gradients are averaged over all processes."""
        if self.size == 1:
            return module
        return torch.nn.parallel.DistributedDataParallel(module, find_unused_parameters=True)

    def leave(self) -> None:
        """Leave the process group."""
        if self.size > 1 and dist.is_initialized():
            dist.destroy_process_group()


def join_processes(device: str) -> ProcessGroup:
    """Join the processes started by torchrun; a group of this process alone otherwise.

    Raises:
        OptionError: torch sees no GPU.
    """
    check_device(device)
    if not (dist.is_available() and dist.is_torchelastic_launched()):
        return ProcessGroup(0, 1, device)
    if device == "cuda":
        device = f"cuda:{dist.get_node_local_rank()}"
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if device != "cpu" else "gloo")
    return ProcessGroup(dist.get_rank(), dist.get_world_size(), device)

"""Several processes that train and evaluate one cell together, each on a device of its own.

The trained parameters of a cell are a few megabytes, which DistributedDataParallel would reduce in one bucket after backward too. They
are reduced here in that one call, because then a process without an image in a batch, a parameter without a gradient, micro-batches
and checkpointing need no exception, and the sum is the global batch's gradient itself.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed
from torch import Tensor, nn

from bench.training.launch import is_distributed


@dataclass(frozen=True)
class ProcessGroup:
    """This process is number `rank`, from 0, of `size`; number 0 writes."""

    rank: int = 0
    size: int = 1

    def share(self, count: int) -> tuple[int, int]:
        """The first of `count` things that is this process's, and the first that is not any more."""
        return self.rank * count // self.size, (self.rank + 1) * count // self.size

    def summed(self, parameters: Sequence[nn.Parameter], losses: Tensor) -> Tensor:
        """Makes each parameter's gradient the sum over the group, and returns the sum of `losses` (n,).

        A parameter that has a gradient nowhere keeps none: an optimizer passes it over, and would decay it if it were zero.
        """
        if self.size == 1:
            return losses
        own = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
        given = losses.new_tensor([p.grad is not None for p in parameters])
        together = torch.cat([*(gradient.flatten().to(losses.dtype) for gradient in own), given, losses])
        torch.distributed.all_reduce(together)
        *gradients, given, losses = together.split([*(p.numel() for p in parameters), len(given), len(losses)])
        for parameter, gradient, count in zip(parameters, gradients, given.tolist(), strict=True):
            parameter.grad = gradient.view_as(parameter).to(parameter.dtype) if count else None
        return losses

    def shard(self, names: Sequence[str]) -> Sequence[str]:
        """Every size-th name; `gather` puts what came of them into the names' order."""
        return names[self.rank :: self.size]

    def gather(self, rows: list[Any]) -> list[Any]:
        """The rows of all processes, which each have those of their `shard`, in the names' order."""
        if self.size == 1:
            return rows
        found: list[Any] = [None] * self.size
        torch.distributed.all_gather_object(found, rows)
        return [found[i % self.size][i // self.size] for i in range(sum(map(len, found)))]

    def broadcast(self, value: Any) -> Any:
        """What process 0 has as `value`; no process goes on before it has heard it."""
        if self.size == 1:
            return value
        heard = [value]
        torch.distributed.broadcast_object_list(heard)
        return heard[0]


SINGLE_PROCESS = ProcessGroup()


def join_process_group(device: str) -> tuple[ProcessGroup, str]:
    """The process group that torchrun's environment variables (or `bench.training.launch`'s) name, and this process's own device of the
    kind; alone, SINGLE_PROCESS."""
    if not is_distributed():
        return SINGLE_PROCESS, device
    if device == "cuda":
        device = f"cuda:{os.environ['LOCAL_RANK']}"
        torch.cuda.set_device(device)
    if not torch.distributed.is_initialized():
        torch.distributed.init_process_group("nccl" if device.startswith("cuda") else "gloo")
    return ProcessGroup(torch.distributed.get_rank(), torch.distributed.get_world_size()), device


def leave_process_group(process_group: ProcessGroup) -> None:
    """Waits for all processes of the group and ends it."""
    if process_group.size > 1:
        process_group.broadcast(None)
        torch.distributed.destroy_process_group()


def is_lost(error: Exception) -> bool:
    """Whether an error says that another process of the group is gone."""
    return isinstance(error, RuntimeError) and any(word in str(error) for word in ("onnection", "NCCL", "peer"))

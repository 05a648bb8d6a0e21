"""Data parallelism in a few functions: who am I, sum or gather a tensor (with gradient), average gradients, set up.

Every statistic that must be exact over the global batch (SIGReg, BatchNorm) goes through `sum_over_ranks`; what is no
sum (sorting, comparing every sample with every other) goes through `gather_ranks`.
torch's own `distributed.nn.all_reduce` is deprecated and its successor cannot differentiate an average, so the sum is
taken here and the division by the world size is written where it happens.
"""

import os

import torch
import torch.distributed as dist
from torch import Tensor, nn


def world_size() -> int:
    """Number of data-parallel processes; 1 without torchrun."""
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    """This process's index in [0, world_size)."""
    return dist.get_rank() if dist.is_initialized() else 0


class _SumOverRanks(torch.autograd.Function):
    """y = sum over ranks of x. Every rank's loss depends on every rank's x, so the gradient is summed as well."""

    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, x: Tensor) -> Tensor:
        y = x.contiguous().clone()
        dist.all_reduce(y)
        return y

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, *grads: Tensor) -> Tensor:
        grad = grads[0].contiguous().clone()
        dist.all_reduce(grad)
        return grad


def sum_over_ranks(x: Tensor) -> Tensor:
    """Sum `x` (any shape, the same on every rank) over all processes, differentiably; `x` itself with one process.

    With gradients averaged over ranks afterwards (`average_gradients`), a loss built from the sums has exactly the
    gradient of the same loss computed by one process on the concatenated batch.
    """
    if world_size() == 1:
        return x
    summed: Tensor = _SumOverRanks.apply(x)
    return summed


class _GatherRanks(torch.autograd.Function):
    """y = x of all ranks, rank by rank. Every rank's loss depends on every rank's x, so the gradient is summed."""

    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, x: Tensor) -> Tensor:
        x = x.contiguous()
        parts = [torch.empty_like(x) for _ in range(world_size())]
        dist.all_gather(parts, x)
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, *grads: Tensor) -> Tensor:
        grad = grads[0].contiguous().clone()
        dist.all_reduce(grad)
        return grad.chunk(world_size())[rank()]


def gather_ranks(x: Tensor) -> Tensor:
    """Concatenate `x` (one or more axes, the same shape on every rank) over all processes along its first axis,
    differentiably; `x` itself with one process.

    This process's rows are those from rank() * len(x) on. Gradients are exact in the sense of `sum_over_ranks`.
    """
    if world_size() == 1:
        return x
    gathered: Tensor = _GatherRanks.apply(x)
    return gathered


def average_gradients(module: nn.Module) -> None:
    """Replace every gradient by its mean over ranks, in one flat all-reduce."""
    if world_size() == 1:
        return
    grads = [p.grad for p in module.parameters() if p.grad is not None]
    flat = torch.cat([g.reshape(-1) for g in grads])
    dist.all_reduce(flat)
    flat /= world_size()
    for grad, mean in zip(grads, flat.split([g.numel() for g in grads]), strict=True):
        grad.copy_(mean.view_as(grad))


def any_rank(flag: bool, device: torch.device) -> bool:
    """Whether the flag is set on any process; every process must ask at the same step."""
    if world_size() == 1:
        return flag
    count = torch.tensor(float(flag), device=device)
    dist.all_reduce(count)
    return count.item() > 0


def init_from_env(device: torch.device) -> None:
    """Join the process group that torchrun describes in the environment; do nothing outside torchrun."""
    if "WORLD_SIZE" in os.environ and int(os.environ["WORLD_SIZE"]) > 1 and not dist.is_initialized():
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo")


def finish() -> None:
    """Leave the process group, if there is one."""
    if dist.is_initialized():
        dist.destroy_process_group()

"""Sums and gathers over the processes of a distributed run, with gradients; on one process they return their argument.

The gradient is that of the sum of all ranks' losses, so that a loss divided by a global count is the single-process loss.
"""

from __future__ import annotations

from typing import Any, Literal, cast

import torch
from jaxtyping import Shaped
from torch import Tensor, distributed
from torch.autograd import Function


def world_size() -> int:
    """Number of processes; 1 where torch.distributed is not initialised."""
    return distributed.get_world_size() if _running() else 1


def rank() -> int:
    """This process's number in 0..world_size()-1."""
    return distributed.get_rank() if _running() else 0


def barrier() -> None:
    """Wait until every process is here; nothing on one process."""
    if world_size() > 1:
        distributed.barrier()


def gather_objects(value: object) -> list[object]:
    """`value` (anything picklable) of every process in rank order; [value] on one process."""
    if world_size() == 1:
        return [value]
    parts: list[object] = [None] * world_size()
    distributed.all_gather_object(parts, value)
    return parts


def all_reduce(value: Shaped[Tensor, "*n"], reduction: Literal["sum", "mean"] = "sum") -> Shaped[Tensor, "*n"]:
    """The sum or mean of `value` over all processes, on every process; differentiable. The argument is not changed."""
    world = world_size()
    if world == 1:
        return value
    total = cast(Tensor, _AllReduce.apply(value))
    return total if reduction == "sum" else total / world


def all_gather(value: Shaped[Tensor, "*n"]) -> Shaped[Tensor, "world *n"]:
    """`value` of every process, stacked in rank order (world, ...); shapes must agree. Differentiable."""
    return value[None] if world_size() == 1 else cast(Tensor, _AllGather.apply(value))


def _running() -> bool:
    return distributed.is_available() and distributed.is_initialized()


def _summed(value: Tensor) -> Tensor:
    total = value.detach().clone(memory_format=torch.contiguous_format)
    distributed.all_reduce(total)
    return total


class _AllReduce(Function):
    @staticmethod
    def forward(ctx: Any, value: Tensor) -> Tensor:
        return _summed(value)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        return _summed(grads[0])


class _AllGather(Function):
    @staticmethod
    def forward(ctx: Any, value: Tensor) -> Tensor:
        parts = [torch.empty_like(value, memory_format=torch.contiguous_format) for _ in range(world_size())]
        distributed.all_gather(parts, value.detach().contiguous())
        return torch.stack(parts)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        return _summed(grads[0])[rank()]

"""Batch normalisation with frozen statistics, and with statistics over all processes."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from opticus.ops.collectives import all_reduce, world_size
from opticus.structures import UsageError


class FrozenBatchNorm(nn.Module):
    """Batch norm whose weight, bias and statistics are buffers: y = (x - mean) / sqrt(var + eps) * weight + bias, any rank >= 2.

    DETR uses eps 1e-5; torchvision's published detectors use eps 0.
    """

    weight: Tensor
    bias: Tensor
    running_mean: Tensor
    running_var: Tensor

    def __init__(self, width: int, *, eps: float = 1e-5) -> None:
        super().__init__()
        self.width, self.eps = width, eps
        self.register_buffer("weight", torch.ones(width))
        self.register_buffer("bias", torch.zeros(width))
        self.register_buffer("running_mean", torch.zeros(width))
        self.register_buffer("running_var", torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, False, 0.0, self.eps)

    def extra_repr(self) -> str:
        return f"{self.width}, eps={self.eps}"


class SyncNorm(nn.Module):
    """Batch norm over the batches of all processes together (CPU, gloo and CUDA), any rank >= 2.

    Every process may hold another number of values: mean and variance are weighted by counts, and `running_var` takes the unbiased
    variance of the global batch. The state dict is that of nn.BatchNorm2d; `momentum=None` is the cumulative average.
    """

    running_mean: Tensor
    running_var: Tensor
    num_batches_tracked: Tensor

    def __init__(self, width: int, *, eps: float = 1e-5, momentum: float | None = 0.1, affine: bool = True) -> None:
        super().__init__()
        self.width, self.eps, self.momentum = width, eps, momentum
        self.weight = nn.Parameter(torch.ones(width)) if affine else None
        self.bias = nn.Parameter(torch.zeros(width)) if affine else None
        self.register_buffer("running_mean", torch.zeros(width))
        self.register_buffer("running_var", torch.ones(width))
        self.register_buffer("num_batches_tracked", torch.tensor(0))

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, False, 0.0, self.eps)
        self.num_batches_tracked += 1
        rate = 1 / int(self.num_batches_tracked) if self.momentum is None else self.momentum
        if world_size() == 1:
            return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, True, rate, self.eps)
        return self._normalised(x, rate)

    def _normalised(self, x: Tensor, rate: float) -> Tensor:
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        others = [axis for axis in range(x.ndim) if axis != 1]
        shape = [1, -1] + [1] * (x.ndim - 2)
        # two passes (mean first) cost one collective more than sum and sum of squares, and do not cancel where mean >> deviation
        here = wide.new_full((1,), x.numel() // self.width)
        sums = all_reduce(torch.cat([wide.sum(others), here]))
        count = float(sums[-1].detach())
        if count < 2:
            raise UsageError(f"SyncNorm: training needs more than one value per channel over all processes, found {count:.0f}")
        mean = sums[:-1] / count
        centred = wide - mean.reshape(shape)
        var = all_reduce(centred.square().sum(others)) / count
        with torch.no_grad():
            self.running_mean.lerp_(mean.to(self.running_mean.dtype), rate)
            self.running_var.lerp_((var * (count / (count - 1))).to(self.running_var.dtype), rate)
        scale = torch.rsqrt(var + self.eps)
        if self.weight is None or self.bias is None:
            return (centred * scale.reshape(shape)).to(x.dtype)
        return (centred * (scale * self.weight).reshape(shape) + self.bias.reshape(shape)).to(x.dtype)

    def extra_repr(self) -> str:
        return f"{self.width}, eps={self.eps}, momentum={self.momentum}"


def in_groups(network: nn.Module, pixels: Tensor, groups: int) -> Tensor:
    """network(pixels) (B, D) whose batch norms see the pictures in `groups` random groups of nearly equal size (MoCo's shuffling).

    The groups change with every call, so that no picture can be told by those that it is normalised with. UsageError for groups of
    fewer than two pictures.
    """
    if groups == 1:
        return network(pixels)
    if len(pixels) < 2 * groups:
        raise UsageError(f"a batch norm needs two pictures or more: {len(pixels)} pictures cannot be cut into {groups} groups")
    order = torch.randperm(len(pixels), device=pixels.device)
    vectors = torch.cat([network(part) for part in pixels[order].tensor_split(groups)])
    return vectors[order.argsort()]


def sync_norms(module: nn.Module) -> nn.Module:
    """Every nn.BatchNorm1d/2d/3d of `module` replaced by a SyncNorm that holds the same parameters and buffers, in place.

    Returns `module`, or the SyncNorm if `module` itself is a batch norm. UsageError for a batch norm without running statistics.
    """
    if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d):
        return _synced(module)
    for name, child in module.named_children():
        setattr(module, name, sync_norms(child))
    return module


def _synced(norm: nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d) -> SyncNorm:
    if norm.running_mean is None or norm.running_var is None or norm.num_batches_tracked is None:
        raise UsageError("sync_norms: expected batch norms with running statistics, found one with track_running_stats=False")
    synced = SyncNorm(norm.num_features, eps=norm.eps, momentum=norm.momentum, affine=norm.affine)
    # the very same tensors: optimisers that already hold the parameters go on training them
    synced.weight, synced.bias = norm.weight if norm.affine else None, norm.bias if norm.affine else None
    synced.running_mean, synced.running_var = norm.running_mean, norm.running_var
    synced.num_batches_tracked = norm.num_batches_tracked
    return synced.train(norm.training)

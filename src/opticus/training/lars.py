"""LARS: steps as long as a fixed share of each weight tensor (You, Gitman and Ginsburg 2017, arXiv 1708.03888)."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

TRUST = 1e-3  # eta in the paper


class LARS(Optimizer):
    """Momentum SGD whose gradient, weight decay included, is scaled to TRUST times the norm of its tensor.

    u = g + weight_decay w; u <- u TRUST |w| / |u| (where neither norm is 0); m <- momentum m + u; w <- w - lr m. Vectors (biases, scales
    and shifts of norms) are not scaled. The rate multiplies the momentum as in BYOL and Barlow Twins; SimCLR's code has it inside the
    momentum, which differs only while the rate changes.
    """

    def __init__(self, params: Iterable[Any], lr: float, *, momentum: float = 0.9, weight_decay: float = 0.0) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """One update of every parameter that has a gradient."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                update = parameter.grad.add(parameter, alpha=group["weight_decay"])
                if parameter.ndim > 1:
                    weight, length = parameter.norm(), update.norm()
                    # no branch on values: the device is not waited for
                    update.mul_(torch.where((weight > 0) & (length > 0), TRUST * weight / length, torch.ones_like(weight)))
                state = self.state[parameter]
                if "momentum" not in state:
                    state["momentum"] = torch.zeros_like(parameter)
                momentum: Tensor = state["momentum"].mul_(group["momentum"]).add_(update)
                parameter.add_(momentum, alpha=-group["lr"])
        return loss

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
            parameters = [p for p in group["params"] if p.grad is not None]
            if not parameters:
                continue
            updates = torch._foreach_add([p.grad for p in parameters], parameters, alpha=group["weight_decay"])
            wide = [i for i, p in enumerate(parameters) if p.ndim > 1]
            if wide:
                shares = _shares([parameters[i] for i in wide], [updates[i] for i in wide])
                torch._foreach_mul_([updates[i] for i in wide], shares)
            momenta = [self._momentum(p) for p in parameters]
            torch._foreach_mul_(momenta, group["momentum"])
            torch._foreach_add_(momenta, updates)
            torch._foreach_add_(parameters, momenta, alpha=-group["lr"])
        return loss

    def _momentum(self, parameter: Tensor) -> Tensor:
        state = self.state[parameter]
        if "momentum" not in state:
            state["momentum"] = torch.zeros_like(parameter)
        return state["momentum"]


def _shares(weights: list[Tensor], updates: list[Tensor]) -> list[Tensor]:
    """TRUST |w| / |u| per tensor; 1 where a norm is 0."""
    pairs = zip(torch._foreach_norm(weights), torch._foreach_norm(updates))
    return [torch.where((w > 0) & (u > 0), TRUST * w / u, torch.ones_like(w)) for w, u in pairs]

"""A moving average of a network's weights."""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn


class Average(nn.Module):
    """An exponential moving average: average <- d average + (1 - d) network, d = `decay` or `decay(step)` with step = 0, 1, ...

    Parameters and floating buffers (batch-norm statistics) are averaged alike; integer and boolean buffers are copied. The copy
    takes no gradient. `step` is part of the state dict, so a resumed run continues the same decay curve.
    """

    step: Tensor

    def __init__(self, network: nn.Module, *, decay: float | Callable[[int], float]) -> None:
        super().__init__()
        self.network = copy.deepcopy(network).requires_grad_(False)
        self.decay = decay
        self.register_buffer("step", torch.tensor(0))

    def forward(self, *inputs: object, **options: object) -> object:
        return self.network(*inputs, **options)

    @torch.no_grad()
    def update(self, network: nn.Module) -> None:
        """One averaging step towards `network`, which has the same structure as the one this was made from."""
        decay = self.decay(int(self.step)) if callable(self.decay) else self.decay
        self.step += 1
        mine, theirs = _tensors(self.network), _tensors(network)
        for key, value in mine.items():
            if value.is_floating_point():
                value.lerp_(theirs[key].to(value), 1 - decay)
            else:
                value.copy_(theirs[key])


@torch.no_grad()
def follow(slow: nn.Module, fast: nn.Module, decay: float) -> None:
    """slow <- decay slow + (1 - decay) fast on the parameters alone: a momentum encoder, whose buffers are its own."""
    theirs = dict(fast.named_parameters())
    for name, value in slow.named_parameters():
        value.lerp_(theirs[name].to(value), 1 - decay)


def ramp(decay: float, *, growth: float = 10.0) -> Callable[[int], float]:
    """The decay min(decay, (1 + step) / (growth + step)): short runs forget their random start sooner (TensorFlow's rule)."""
    return lambda step: min(decay, (1 + step) / (growth + step))


def _tensors(network: nn.Module) -> dict[str, Tensor]:
    return {**dict(network.named_parameters()), **dict(network.named_buffers())}

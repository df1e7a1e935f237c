"""Drawing with a network that makes a picture of its latents in one pass."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from opticus.structures import UsageError


@torch.no_grad()
def render(network: nn.Module, latents: Tensor, condition: Any, steps: int | None) -> Tensor:
    """`network(latents)` as in evaluation, on its device; UsageError for a condition or steps, which there are none of."""
    if condition is not None or steps is not None:
        name = type(network).__module__.rpartition(".")[2]
        raise UsageError(f"{name}: pictures are drawn without a condition and in one step; leave condition and steps away")
    training = network.training
    pictures = network.eval()(latents.to(next(network.parameters())))
    network.train(training)
    return pictures

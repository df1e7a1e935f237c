"""The plainest objective: one network, one phase, a criterion on its output."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, cast

import torch
from torch import Tensor, nn

from opticus.structures import Batch, CapabilityError, Progress

Criterion = Callable[[Any, Batch], dict[str, Tensor]]


def widened(out: Any) -> Any:
    """A network's output with half-precision parts as float32: targets in pixels or near 1 have no room in eight bits."""
    if isinstance(out, Tensor):
        return out.float() if out.dtype in (torch.bfloat16, torch.float16) else out
    if isinstance(out, tuple) and hasattr(out, "_fields"):
        return type(out)(*(widened(part) for part in cast("tuple[Any, ...]", out)))
    return out


class Supervised(nn.Module):
    """Trains `network` on labelled pictures: `criterion(out, batch)` returns the weighted terms whose sum is the loss.

    It implements the Objective protocol with the single phase "all". Inputs of a batch that the network names in `inputs` are keywords
    of its `forward`. A criterion that is a module may hold parameters and
    buffers of its own (learned loss weights): they are trained and saved with the objective, not with the network.
    """

    def __init__(self, network: nn.Module, criterion: Criterion) -> None:
        super().__init__()
        self.network = network
        self.criterion = criterion

    def phases(self, step: int) -> tuple[str, ...]:
        """("all",) at every step."""
        return ("all",)

    def parameters_of(self, phase: str) -> Iterable[nn.Parameter]:
        """Every parameter that wants a gradient."""
        return (parameter for parameter in self.parameters() if parameter.requires_grad)

    def forward(self, batch: Batch, at: Progress) -> dict[str, Tensor]:
        """The criterion's terms for one batch; CapabilityError if the batch has no images."""
        if batch.images is None:
            raise CapabilityError(f"{type(self.network).__name__} is trained on images, but batch {batch.ids[:1]} has none")
        further = {name: batch.inputs[name] for name in getattr(self.network, "inputs", ()) if name in batch.inputs}
        return self.criterion(widened(self.network(batch.images.pixels, batch.images.valid, **further)), batch)

    def before_update(self, at: Progress) -> None:
        """Nothing: gradients go to the optimiser as they are."""

    def after_step(self, at: Progress) -> None:
        """Nothing: there is no training-only state."""

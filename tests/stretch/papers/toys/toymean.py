"""A toy system with a loop of its own and no gradient: nearest class mean."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from opticus.losses.classify import ranked
from opticus.structures import Batch, Classes, Images, Prepare, Progress, Result, Task
from opticus.training.recipe import Job, Outcome
from opticus.training.state import load_state, save_state
from opticus.weights.save import save

TASK: Task = "classify"
PREPARE = Prepare(channels=1, resize="fixed", size=(28, 28), mean=(0.0,), std=(1.0,))


@dataclass(frozen=True)
class Config:
    classes: int = 10


class Means(nn.Module):
    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        self.sums: Tensor
        self.counts: Tensor
        self.register_buffer("sums", torch.zeros(config.classes, 784, dtype=torch.float64))
        self.register_buffer("counts", torch.zeros(config.classes))

    def forward(self, pixels: Tensor, valid: Tensor | None = None) -> Tensor:
        means = (self.sums / self.counts.clamp(min=1)[:, None]).float()
        return -torch.cdist(pixels.flatten(1).float(), means)

    def results(self, out: Tensor, images: Images) -> list[Result]:
        return ranked(out)


class Counting(nn.Module):
    def __init__(self, network: Means) -> None:
        super().__init__()
        self.network = network

    def phases(self, step: int) -> tuple[str, ...]:
        return ("all",)

    def parameters_of(self, phase: str) -> Iterable[nn.Parameter]:
        return ()

    def forward(self, batch: Batch, at: Progress) -> dict[str, Tensor]:
        return {}

    def before_update(self, at: Progress) -> None: ...
    def after_step(self, at: Progress) -> None: ...


def loop(job: Job) -> Outcome:
    network: Any = job.objective.network
    step = 0
    if job.resume:
        saved = load_state(job.out)
        network.load_state_dict(saved["objective"])
        step = saved["step"]
    batches = job.batches(step, 0, 1)
    while step < job.steps:
        batch = next(batches)
        assert batch.images is not None
        labels = torch.cat([t.labels for t in batch.targets if isinstance(t, Classes)])
        network.sums.index_add_(0, labels, batch.images.pixels.flatten(1).double())
        network.counts.index_add_(0, labels, torch.ones(len(labels)))
        step += 1
        if step % job.recipe.save_every == 0 or step == job.steps:
            save(network, job.out / "weights" / "last.safetensors", meta=job.meta)
            save_state(job.out, {"step": step, "objective": network.state_dict()})
    values = {} if job.evaluate is None else job.evaluate(network)
    return Outcome(network, job.out, step, values)


VARIANTS = {"plain": Config()}
NETWORK = Means
FORMATS: dict[str, Any] = {}
WEIGHTS: dict[str, Any] = {}
PARAMETERS: dict[str, int] = {}
objective = Counting

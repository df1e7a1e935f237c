"""A toy student with an EMA teacher and another network as its Part."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from opticus.layers.average import Average
from opticus.losses.classify import ranked
from opticus.structures import Backbone, Batch, Classes, Images, Part, Prepare, Progress, Result, Task

TASK: Task = "classify"
PREPARE = Prepare(resize="fixed", size=(32, 32))


@dataclass(frozen=True)
class Config:
    classes: int = 10
    backbone: Part = Part("resnet/tiny", classes=0, width=8)


class Student(nn.Module):
    def __init__(self, config: Config, backbone: Backbone) -> None:
        super().__init__()
        self.config = config
        self.backbone = backbone
        self.head = nn.Linear(backbone.widths[-1], config.classes)

    def forward(self, pixels: Tensor, valid: Tensor | None = None) -> Tensor:
        return self.head(F.dropout(self.backbone.features(pixels)[-1].mean((2, 3)), 0.1, self.training))

    def results(self, out: Tensor, images: Images) -> list[Result]:
        return ranked(out)


class Distilled(nn.Module):
    def __init__(self, network: Student) -> None:
        super().__init__()
        self.network = network
        self.teacher = Average(network, decay=0.9)

    def phases(self, step: int) -> tuple[str, ...]:
        return ("all",)

    def parameters_of(self, phase: str) -> Iterable[nn.Parameter]:
        return self.network.parameters()

    def forward(self, batch: Batch, at: Progress) -> dict[str, Tensor]:
        assert batch.images is not None
        logits = self.network(batch.images.pixels)
        with torch.no_grad():
            taught = self.teacher(batch.images.pixels)
        labels = torch.cat([t.labels for t in batch.targets if isinstance(t, Classes)])
        consistency = F.mse_loss(logits.softmax(1), taught.softmax(1))  # type: ignore[union-attr]
        return {"class": F.cross_entropy(logits, labels), "teacher": at.fraction * consistency}

    def before_update(self, at: Progress) -> None:
        if at.step == 0:  # a frozen last layer in the first step, as DINO does for its first epoch
            self.network.head.weight.grad = None

    def after_step(self, at: Progress) -> None:
        self.teacher.update(self.network)


VARIANTS = {"tiny": Config()}
NETWORK = Student
FORMATS: dict[str, Any] = {}
WEIGHTS: dict[str, Any] = {}
PARAMETERS: dict[str, int] = {}
objective = Distilled

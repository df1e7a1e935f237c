"""Bootstrap your own latent: a new approach to self-supervised learning (BYOL).

Grill, Strub, Altche, Tallec, Richemond et al., NeurIPS 2020, arXiv 2006.07733.
Reference: deepmind/deepmind-research byol (Apache-2.0, its weights CC-BY-NC-4.0; JAX: facts and published figures), loss and heads
compared with lightly-ai/lightly (MIT).

*Differs*: the linear layer before a batch norm has no bias (the norm takes it away again); the target starts as a copy of the online
network. The authors' pickled JAX checkpoints cannot be read, as that would run code of theirs. `Recipe.accumulate` changes nothing
but the batch norms' statistics, which are those of a micro-batch.
*Map*: eq. 1 -> `layers.average.follow`, `BYOL.decay`; eq. 2 -> `losses.contrastive.regression`; algorithm 1 -> `BYOL`; section 3.3,
architecture -> `layers.projection`; appendix B -> `transforms.views.two_views`.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from opticus.layers.average import follow
from opticus.layers.encoder import Encoder, width_of
from opticus.layers.projection import projection
from opticus.losses.collapse import alignment, sentence, spread
from opticus.losses.contrastive import regression, views_of
from opticus.ops.schedules import cosine
from opticus.structures import Batch, Part, Prepare, Progress, Task, UsageError, Weights
from opticus.weights.names import Names, drop, rename

TASK: Task = "embed"


@dataclass(frozen=True)
class Config:
    """`backbone` is what is learned: any network of opticus that embeds or has feature maps."""

    backbone: Part = field(default_factory=lambda: Part("resnet/50", classes=0))


NETWORK = Encoder  # the online encoder


# --- objective ---------------------------------------------------------------------------------------------------------


class BYOL(nn.Module):
    """The online network predicts, from one view of a picture, what the target network makes of the other."""

    def __init__(self, network: Encoder, *, momentum: float = 0.996, hidden: int = 4096, outputs: int = 256) -> None:
        super().__init__()
        if not 0 <= momentum <= 1 or min(hidden, outputs) < 1:
            raise UsageError(
                f"byol: momentum must be in [0, 1], hidden and outputs at least 1, found {momentum}, {hidden} and {outputs}"
            )
        self.network, self.momentum = network, momentum
        self.projector = projection((width_of(network), hidden, outputs), bias=False)
        self.predictor = projection((outputs, hidden, outputs), bias=False)
        self.target, self.target_projector = (copy.deepcopy(part).requires_grad_(False) for part in (network, self.projector))
        self._last: tuple[Tensor, Tensor, Tensor] | None = None

    def phases(self, step: int) -> tuple[str, ...]:
        """One phase."""
        return ("all",)

    def parameters_of(self, phase: str) -> Iterable[nn.Parameter]:
        """The online network's, with projector and predictor."""
        return (p for p in self.parameters() if p.requires_grad)

    def forward(self, batch: Batch, at: Progress) -> dict[str, Tensor]:
        """Eq. 2 and its mirror image on the first two global views; each view goes through the networks, and their norms, alone."""
        first, second = views_of(batch)[:2]
        vectors = self.network(first)
        one, two = (self.predictor(self.projector(y)) for y in (vectors, self.network(second)))
        with torch.no_grad():
            goals = [self.target_projector(self.target(view)) for view in (first, second)]
        self._last = (one.detach(), goals[1], vectors.detach())
        return {"byol": regression(one, goals[1]) + regression(two, goals[0])}

    def decay(self, fraction: float) -> float:
        """The target's momentum at a fraction of the run: from `momentum` to 1 on a half cosine (section 3.3)."""
        return cosine(fraction, start=self.momentum, end=1.0)

    def before_update(self, at: Progress) -> None:
        """Nothing."""

    def after_step(self, at: Progress) -> None:
        """The target follows (eq. 1)."""
        decay = self.decay(at.fraction)
        follow(self.target, self.network, decay)
        follow(self.target_projector, self.projector, decay)

    def figures(self) -> dict[str, float]:
        """Of the last batch: spread of the vectors, and how far predictions are from the target's projections."""
        assert self._last is not None, "figures follow a forward pass"
        predicted, goal, vectors = self._last
        return {"spread": float(spread(vectors)), "alignment": float(alignment(predicted, goal))}

    def alarm(self, figures: Mapping[str, float]) -> str | None:
        """Collapsed vectors (`losses.collapse`)."""
        return sentence(dict(figures), 0)


def objective(network: Encoder, **options: Any) -> BYOL:
    """BYOL's objective: `momentum` of the target at the start, `hidden` units and `outputs` of projector and predictor."""
    return BYOL(network, **options)


# --- variants ----------------------------------------------------------------------------------------------------------

VARIANTS: dict[str, Config] = {
    "tiny": Config(Part("resnet/tiny", classes=0)),
    "r50": Config(),
    "r50w2": Config(Part("resnet/50w2", classes=0)),
    "r50w4": Config(Part("resnet/50w4", classes=0)),
    "r200w2": Config(Part("resnet/200w2", classes=0)),
}
PARAMETERS: dict[str, int] = {}
OVERFIT = {
    "observable": "views",
    "floor": 0.0,
    "samples": 8,
    "lr": 2e-3,
    "options": {"hidden": 64, "outputs": 32, "momentum": 0.99},
}
PREPARE = Prepare(resize="shortest", size=(256, 0), crop=(224, 224), interpolation="bicubic")

# --- weights -----------------------------------------------------------------------------------------------------------

FORMATS: dict[str, Names] = {
    "lightly": Names(
        rename(r"backbone\.(.+)", r"backbone.\1"),
        drop(r"(?:(?:projection|prediction)_head|teacher_backbone|teacher_projection_head|online_classifier)\..+"),
    ),
}
TRAINING = Names(  # modules of lightly's BYOL
    rename(r"backbone\.(.+)", r"network.backbone.\1"),
    rename(r"projection_head\.layers\.(.+)", r"projector.\1"),
    rename(r"prediction_head\.layers\.(.+)", r"predictor.\1"),
    rename(r"teacher_backbone\.(.+)", r"target.backbone.\1"),
    rename(r"teacher_projection_head\.layers\.(.+)", r"target_projector.\1"),
)
WEIGHTS: dict[str, Weights] = {
    "r50:lightly": Weights(
        url="https://lightly-ssl-checkpoints.s3.amazonaws.com/imagenet_resnet50_byol_2024-02-14_16-10-09/"
        "pretrain/version_0/checkpoints/epoch%3D99-step%3D500400.ckpt",
        format="lightly",
        license="MIT",
        source="https://github.com/lightly-ai/lightly README.md, docs/source/getting_started/benchmarks.rst",
        prepare=PREPARE,
        reports={"linear": 62.5, "knn200": 46.0},
    ),
}

"""Barlow Twins: Self-Supervised Learning via Redundancy Reduction.

Zbontar, Jing, Misra, LeCun and Deny, ICML 2021, arXiv 2103.03230.
Reference: facebookresearch/barlowtwins (MIT).

*Differs*: the last norm of a residual block starts at 1, not at 0. With `Recipe.accumulate` above 1, the cross-correlation is that of
a micro-batch.
*Map*: eq. 1 and 2 -> `losses.contrastive.cross_correlation`; algorithm 1 -> `Twins.forward`; section 2.2, projector ->
`layers.projection`; image augmentations -> `transforms.views.two_views`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from opticus.layers.encoder import Encoder, width_of
from opticus.layers.projection import projection
from opticus.losses.collapse import alignment, sentence, spread
from opticus.losses.contrastive import cross_correlation, views_of
from opticus.structures import Batch, Part, Prepare, Progress, Task, UsageError, Weights
from opticus.weights.names import Names, drop, rename

TASK: Task = "embed"


@dataclass(frozen=True)
class Config:
    """`backbone` is what is learned: any network of opticus that embeds or has feature maps."""

    backbone: Part = field(default_factory=lambda: Part("resnet/50", classes=0))


NETWORK = Encoder


# --- objective ---------------------------------------------------------------------------------------------------------


class Twins(nn.Module):
    """Every output of the projector agrees with itself in the other view and says nothing about the other outputs."""

    def __init__(self, network: Encoder, *, off_weight: float = 0.0051, hidden: int = 8192, outputs: int = 8192) -> None:
        super().__init__()
        if off_weight < 0 or hidden < 1 or outputs < 2:
            raise UsageError(
                f"barlow: off_weight must be 0 or more, hidden at least 1 and outputs at least 2, found {off_weight}, {hidden}, {outputs}"
            )
        self.network, self.off_weight = network, off_weight
        self.projector = projection((width_of(network), hidden, hidden, outputs), bias=False, last_norm=True)
        self._last: tuple[Tensor, Tensor, Tensor] | None = None

    def phases(self, step: int) -> tuple[str, ...]:
        """One phase."""
        return ("all",)

    def parameters_of(self, phase: str) -> Iterable[nn.Parameter]:
        """The network's and the projector's."""
        return (p for p in self.parameters() if p.requires_grad)

    def forward(self, batch: Batch, at: Progress) -> dict[str, Tensor]:
        """Algorithm 1 on the first two global views; each goes through the networks, and their norms, alone."""
        first, second = views_of(batch)[:2]
        vectors = self.network(first)
        one, two = self.projector(vectors), self.projector(self.network(second))
        self._last = (one.detach(), two.detach(), vectors.detach())
        wide = torch.float64 if one.dtype == torch.float64 else torch.float32
        return {"barlow": cross_correlation(one.to(wide), two.to(wide), self.off_weight)}

    def before_update(self, at: Progress) -> None:
        """Nothing."""

    def after_step(self, at: Progress) -> None:
        """Nothing."""

    def figures(self) -> dict[str, float]:
        """Of the last batch: spread of the vectors, and how far apart the two views of a picture are."""
        assert self._last is not None, "figures follow a forward pass"
        one, two, vectors = self._last
        return {"spread": float(spread(vectors)), "alignment": float(alignment(one, two))}

    def alarm(self, figures: Mapping[str, float]) -> str | None:
        """Collapsed vectors (`losses.collapse`)."""
        return sentence(dict(figures), 0)


def objective(network: Encoder, **options: Any) -> Twins:
    """Barlow Twins' objective: weight of the off-diagonal (`off_weight`), `hidden` units and `outputs` of the projector."""
    return Twins(network, **options)


# --- variants ----------------------------------------------------------------------------------------------------------

VARIANTS: dict[str, Config] = {"tiny": Config(Part("resnet/tiny", classes=0)), "r50": Config()}
PARAMETERS: dict[str, int] = {}
# a batch of 8 leaves room for 7 uncorrelated outputs
OVERFIT = {"observable": "views", "floor": 0.0, "samples": 8, "lr": 2e-3, "options": {"hidden": 64, "outputs": 4}}
PREPARE = Prepare(resize="shortest", size=(256, 0), crop=(224, 224))

# --- weights -----------------------------------------------------------------------------------------------------------

FORMATS: dict[str, Names] = {
    "barlowtwins": Names(rename(r"((?:conv1|bn1|layer\d)\..+)", r"backbone.\1")),
    "barlowtwins_full": Names(rename(r"module\.backbone\.(.+)", r"backbone.\1"), drop(r"module\.(?:projector|bn)\..+")),
    "lightly": Names(rename(r"backbone\.(.+)", r"backbone.\1"), drop(r"(?:projection_head|online_classifier)\..+")),
}
TRAINING = Names(  # the authors' full checkpoint
    rename(r"module\.backbone\.(.+)", r"network.backbone.\1"),
    rename(r"module\.projector\.(.+)", r"projector.\1"),
    rename(r"module\.bn\.(.+)", r"projector.7.\1"),
)


def _row(file: str, kind: str) -> Weights:
    return Weights(
        url=f"https://dl.fbaipublicfiles.com/barlowtwins/ljng/{file}.pth",
        format=kind,
        license="MIT",
        source="https://github.com/facebookresearch/barlowtwins README.md",
        prepare=PREPARE,
        reports={"linear": 73.5},
    )


WEIGHTS: dict[str, Weights] = {
    "r50:pretrained": _row("resnet50", "barlowtwins"),
    "r50:full": _row("checkpoint", "barlowtwins_full"),
    "r50:lightly": Weights(
        url="https://lightly-ssl-checkpoints.s3.amazonaws.com/imagenet_resnet50_barlowtwins_2023-08-18_00-11-03/"
        "pretrain/version_0/checkpoints/epoch%3D99-step%3D500400.ckpt",
        format="lightly",
        license="MIT",
        source="https://github.com/lightly-ai/lightly README.md, docs/source/getting_started/benchmarks.rst",
        prepare=PREPARE,
        reports={"linear": 62.9, "knn200": 45.6},
    ),
}

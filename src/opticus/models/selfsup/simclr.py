"""A Simple Framework for Contrastive Learning of Visual Representations (SimCLR).

Chen, Kornblith, Norouzi and Hinton, ICML 2020, arXiv 2002.05709; and its second version, Big Self-Supervised Models are Strong
Semi-Supervised Learners (Chen, Kornblith, Swersky, Norouzi and Hinton, NeurIPS 2020, arXiv 2006.10029).
Reference: google-research/simclr (Apache-2.0; TensorFlow: facts and published figures), loss and head compared with
lightly-ai/lightly (MIT), networks with tonylins/simclr-converter (Apache-2.0), which makes PyTorch files of the authors' checkpoints.

*Differs*: the loss is the mean over the 2B views as in eq. 1, the authors' code has twice that (which LARS cancels); pictures are
normalised as the backbone's are, where the authors' networks take values of [0, 1] (`UNIT`); the selective-kernel encoders of
the second version are left out. With `Recipe.accumulate` above 1, pictures meet only those of their micro-batch.
*Map*: eq. 1 -> `losses.contrastive.nt_xent`; section 2.1, g -> `layer`, `SimCLR.head`; section 2.2, global batch norm ->
`layers.norm.sync_norms`; appendix A -> `transforms.views.two_views`; SimCLRv2 section 2, fine-tuning from a middle layer of g
-> `Config.kept`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn

from opticus.losses.collapse import alignment, sentence, spread
from opticus.losses.contrastive import nt_xent, views_of
from opticus.structures import Batch, Embedding, Images, Part, Prepare, Progress, Result, Task, UsageError, Weights
from opticus.weights.names import Names, drop, rename

TASK: Task = "embed"


@dataclass(frozen=True)
class Config:
    """`kept`: layers of the projection head that stay in the network when it is used: 0 in SimCLR, 1 in SimCLRv2."""

    backbone: Part = field(default_factory=lambda: Part("resnet/50", classes=0))
    kept: int = 0

    def __post_init__(self) -> None:
        if self.kept < 0:
            raise UsageError(f"simclr: kept must be 0 or more layers of the projection head, found {self.kept}")


# --- network -----------------------------------------------------------------------------------------------------------


def layer(width: int, outputs: int, *, last: bool = False) -> nn.Sequential:
    """A layer of the projection head: linear without bias, batch norm, ReLU; the last one only scales what it has normalised."""
    linear, norm = nn.Linear(width, outputs, bias=False), nn.BatchNorm1d(outputs)
    nn.init.normal_(linear.weight, std=0.01)
    norm.bias.requires_grad_(not last)
    return nn.Sequential(linear, norm) if last else nn.Sequential(linear, norm, nn.ReLU())


class Network(nn.Module):
    """The encoder f, followed by the first layers of g that SimCLRv2 fine-tunes from; maps and preparation are the backbone's."""

    def __init__(self, config: Config, backbone: nn.Module) -> None:
        super().__init__()
        self.config = config
        self.backbone = backbone
        inner = cast(Any, backbone)
        self.prepare: Prepare = inner.prepare
        self.strides: tuple[int, ...] = inner.strides
        self.widths: tuple[int, ...] = inner.widths
        width = self.widths[-1]
        self.kept = nn.Sequential(*(layer(width, width) for _ in range(config.kept)))

    def features(self, pixels: Float[Tensor, "B C H W"]) -> list[Tensor]:
        """The backbone's maps, fine to coarse."""
        return cast(Any, self.backbone).features(pixels)

    def embed(self, pixels: Float[Tensor, "B C H W"]) -> Float[Tensor, "B D"]:
        """h, the backbone's own vector or the average of its last map, through the kept layers."""
        own = getattr(self.backbone, "embed", None)
        return self.kept(self.features(pixels)[-1].mean((2, 3)) if own is None else own(pixels))

    def forward(self, pixels: Float[Tensor, "B C H W"], valid: Tensor | None = None) -> Float[Tensor, "B D"]:
        return self.embed(pixels)

    def results(self, out: Float[Tensor, "B D"], images: Images) -> list[Result]:
        """An Embedding per picture."""
        return [Embedding(vector) for vector in out.detach()]


NETWORK = Network


# --- objective ---------------------------------------------------------------------------------------------------------


class SimCLR(nn.Module):
    """Two views of every picture; each finds the other among all views of the batch by the similarity of z = g(f(x))."""

    def __init__(self, network: Network, *, temperature: float = 0.1, outputs: int = 128, layers: int = 2) -> None:
        super().__init__()
        kept = len(network.kept)
        if temperature <= 0 or outputs < 1:
            raise UsageError(f"simclr: temperature must be above 0 and outputs at least 1, found {temperature} and {outputs}")
        if layers <= kept:
            raise UsageError(f"simclr: layers must be more than the {kept} that the network keeps, found {layers}")
        self.network, self.temperature = network, temperature
        width = network.widths[-1]
        self.head = nn.Sequential(*(layer(width, width) for _ in range(layers - kept - 1)), layer(width, outputs, last=True))
        self._last: tuple[Tensor, Tensor, Tensor] | None = None

    def phases(self, step: int) -> tuple[str, ...]:
        """One phase."""
        return ("all",)

    def parameters_of(self, phase: str) -> Iterable[nn.Parameter]:
        """The network's and the head's."""
        return (p for p in self.parameters() if p.requires_grad)

    def forward(self, batch: Batch, at: Progress) -> dict[str, Tensor]:
        """Eq. 1 on the first two global views of the batch."""
        first, second = views_of(batch)[:2]
        vectors = self.network(torch.cat([first, second]))
        one, two = self.head(vectors).chunk(2)
        self._last = (one.detach(), two.detach(), vectors[: len(first)].detach())
        return {"simclr": nt_xent(one, two, self.temperature)}

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


def objective(network: Network, **options: Any) -> SimCLR:
    """SimCLR's objective: `temperature` of the similarities, `outputs` (length of z) and `layers` of the head (SimCLRv2: 3)."""
    return SimCLR(network, **options)


# --- variants ----------------------------------------------------------------------------------------------------------

VARIANTS: dict[str, Config] = {
    "tiny": Config(Part("resnet/tiny", classes=0)),
    "v2-tiny": Config(Part("resnet/tiny", classes=0), kept=1),
    "r50": Config(),
    "r50w2": Config(Part("resnet/50w2", classes=0)),
    "r50w4": Config(Part("resnet/50w4", classes=0)),
    "v2-r50": Config(kept=1),
    "v2-r50w2": Config(Part("resnet/50w2", classes=0), kept=1),
}
PARAMETERS: dict[str, int] = {}
OVERFIT = {"observable": "views", "floor": 0.0, "samples": 8, "lr": 2e-3, "options": {"outputs": 32}}
PREPARE = Prepare(resize="shortest", size=(256, 0), crop=(224, 224))
UNIT = replace(PREPARE, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))  # the authors' networks take values of [0, 1]

# --- weights -----------------------------------------------------------------------------------------------------------

FORMATS: dict[str, Names] = {
    "converter": Names(rename(r"((?:conv1|bn1|layer\d)\..+)", r"backbone.\1"), drop(r"fc\..+")),
    "lightly": Names(rename(r"backbone\.(.+)", r"backbone.\1"), drop(r"(?:projection_head|online_classifier)\..+")),
}
TRAINING = Names(  # modules of lightly's SimCLR: the backbone and the head's flat list of layers
    rename(r"backbone\.(.+)", r"network.backbone.\1"),
    rename(r"projection_head\.layers\.(\d+)\.(.+)", lambda m: f"head.{int(m[1]) // 3}.{int(m[1]) % 3}.{m[2]}"),
)
WEIGHTS: dict[str, Weights] = {
    "r50:lightly": Weights(
        url="https://lightly-ssl-checkpoints.s3.amazonaws.com/imagenet_resnet50_simclr_2023-06-22_09-11-13/"
        "pretrain/version_0/checkpoints/epoch%3D99-step%3D500400.ckpt",
        format="lightly",
        license="MIT",
        source="https://github.com/lightly-ai/lightly README.md, docs/source/getting_started/benchmarks.rst",
        prepare=PREPARE,
        reports={"linear": 63.2, "knn200": 44.8},
    ),
}

"""Improved Baselines with Momentum Contrastive Learning (MoCo v2).

Chen, Fan, Girshick and He, 2020, arXiv 2003.04297; after Momentum Contrast for Unsupervised Visual Representation Learning (MoCo; He,
Fan, Wu, Xie and Girshick, CVPR 2020, arXiv 1911.05722).
Reference: facebookresearch/moco (CC-BY-NC-4.0: names of keys, addresses and figures only); loss, heads and queue compared with
lightly-ai/lightly (MIT).

*Differs*: batch norm sees the batches of all processes (`layers.norm.sync_norms`), and `groups` cuts the keys' batch into random
groups, where the authors' GPUs have norms of their own and exchange pictures; the momentum encoder moves after the optimiser's step
instead of before the next one, which is the same sequence. With `Recipe.accumulate` the queue takes the keys of all micro-batches.
*Map*: 1911.05722 eq. 1 -> `losses.contrastive.info_nce`; eq. 2 -> `layers.average.follow`; algorithm 1 -> `MoCo.forward`,
`MoCo.after_step`; section 3.3, shuffling BN -> `layers.norm.in_groups`; 2003.04297 section 3 -> `mlp`, `transforms.views.two_views`.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from opticus.layers.average import follow
from opticus.layers.encoder import Encoder, width_of
from opticus.layers.norm import in_groups
from opticus.layers.projection import projection
from opticus.layers.queue import Queue
from opticus.losses.collapse import alignment, sentence, spread
from opticus.losses.contrastive import confusion, info_nce, views_of
from opticus.structures import Batch, Part, Prepare, Progress, Task, UsageError, Weights
from opticus.weights.names import Names, drop, rename, transpose
from opticus.weights.names import copy as both

TASK: Task = "embed"


@dataclass(frozen=True)
class Config:
    """`backbone` is what is learned: any network of opticus that embeds or has feature maps."""

    backbone: Part = field(default_factory=lambda: Part("resnet/50", classes=0))


NETWORK = Encoder  # the query encoder without its head: what is evaluated


# --- objective ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Method:
    """The defaults are MoCo v2; `mlp=False` and `temperature=0.07` are MoCo.

    `momentum` of the key encoder, number of keys in the `queue`, length `outputs` of a key; `mlp` puts a hidden layer as wide as the
    backbone's vector into the head; the key encoder's batch norms see the batch in so many random `groups` (the authors: 8 GPUs).
    """

    temperature: float = 0.2
    momentum: float = 0.999
    queue: int = 65536
    outputs: int = 128
    mlp: bool = True
    groups: int = 1

    def __post_init__(self) -> None:
        if self.temperature <= 0 or not 0 <= self.momentum <= 1:
            raise UsageError(
                f"moco: temperature must be above 0 and momentum in [0, 1], found {self.temperature} and {self.momentum}"
            )
        if min(self.queue, self.outputs, self.groups) < 1:
            raise UsageError(f"moco: queue, outputs and groups must be at least 1, found {self}")


class MoCo(nn.Module):
    """A query, one view of a picture, finds the key of the other view among the keys of earlier batches."""

    def __init__(self, network: Encoder, method: Method) -> None:
        super().__init__()
        self.network, self.method = network, method
        width = width_of(network)
        self.head = projection((width, width, method.outputs) if method.mlp else (width, method.outputs), norm=False)
        self.key, self.key_head = (copy.deepcopy(part).requires_grad_(False) for part in (network, self.head))
        self.queue = Queue(method.queue, method.outputs)
        self._keys: list[Tensor] = []
        self._last: tuple[Tensor, Tensor, Tensor] | None = None

    def phases(self, step: int) -> tuple[str, ...]:
        """One phase."""
        return ("all",)

    def parameters_of(self, phase: str) -> Iterable[nn.Parameter]:
        """The query encoder's and its head's."""
        return (p for p in self.parameters() if p.requires_grad)

    def forward(self, batch: Batch, at: Progress) -> dict[str, Tensor]:
        """Algorithm 1: the first global view is the query, the second the key."""
        first, second = views_of(batch)[:2]
        vectors = self.network(first)
        queries = F.normalize(self.head(vectors), dim=1)
        with torch.no_grad():
            keys = F.normalize(self.key_head(in_groups(self.key, second, self.method.groups)), dim=1)
        self._keys.append(keys)
        self._last = (queries.detach(), keys, vectors.detach())
        return {"moco": info_nce(queries, keys, self.queue.rows.clone(), self.method.temperature)}

    def before_update(self, at: Progress) -> None:
        """Nothing."""

    @torch.no_grad()
    def after_step(self, at: Progress) -> None:
        """The step's keys join the queue, and the key encoder follows (eq. 2)."""
        if self._keys:
            self.queue.push(torch.cat(self._keys))
            self._keys = []
        follow(self.key, self.network, self.method.momentum)
        follow(self.key_head, self.head, self.method.momentum)

    def figures(self) -> dict[str, float]:
        """Of the last batch: spread of the vectors, how far queries are from their keys, and how far those are told from other keys."""
        assert self._last is not None, "figures follow a forward pass"
        queries, keys, vectors = self._last
        return {
            "spread": float(spread(vectors)),
            "alignment": float(alignment(queries, keys)),
            "confusion": float(confusion(queries, keys, self.method.temperature)),
        }

    def alarm(self, figures: Mapping[str, float]) -> str | None:
        """Collapsed vectors (`losses.collapse`)."""
        return sentence(dict(figures), 0)


def objective(network: Encoder, **options: Any) -> MoCo:
    """MoCo's objective; options are the fields of `Method`."""
    return MoCo(network, Method(**options))


# --- variants ----------------------------------------------------------------------------------------------------------

VARIANTS: dict[str, Config] = {"tiny": Config(Part("resnet/tiny", classes=0)), "r50": Config()}
PARAMETERS: dict[str, int] = {}
OVERFIT = {
    "observable": "views",
    "figure": "confusion",
    "samples": 8,
    "lr": 2e-3,
    "options": {"queue": 64, "outputs": 32, "momentum": 0.9},
}
PREPARE = Prepare(resize="shortest", size=(256, 0), crop=(224, 224))

# --- weights -----------------------------------------------------------------------------------------------------------

_AUTHORS = Names(
    drop(r"module\.encoder_q\.fc\..+|module\.encoder_k\..+|module\.queue(?:_ptr)?"),
    rename(r"module\.encoder_q\.(.+)", r"backbone.\1"),
)
FORMATS: dict[str, Names] = {
    "moco": _AUTHORS,  # the query encoder
    "moco_full": _AUTHORS,  # with key encoder and queue
    "moco_v1": _AUTHORS,  # a linear head
    "lightly": Names(
        rename(r"backbone\.(.+)", r"backbone.\1"),
        drop(r"(?:projection_head|key_backbone|key_projection_head|online_classifier|criterion)\..+"),
    ),
}
TRAINING = Names(  # the authors' training checkpoint
    rename(r"module\.encoder_q\.fc\.(\d\..+)", r"head.\1"),
    rename(r"module\.encoder_q\.fc\.(weight|bias)", r"head.0.\1"),
    rename(r"module\.encoder_q\.(.+)", r"network.backbone.\1"),
    rename(r"module\.encoder_k\.fc\.(\d\..+)", r"key_head.\1"),
    rename(r"module\.encoder_k\.fc\.(weight|bias)", r"key_head.0.\1"),
    rename(r"module\.encoder_k\.(.+)", r"key.backbone.\1"),
    rename(r"module\.queue", r"queue.rows", transpose()),
    both(r"module\.queue_ptr", ["queue.place", "queue.filled"]),  # right until the queue is full for the first time
)


def _row(name: str, kind: str, linear: float) -> Weights:
    return Weights(
        url=f"https://dl.fbaipublicfiles.com/moco/moco_checkpoints/{name}/{name}_pretrain.pth.tar",
        format=kind,
        license="CC-BY-NC-4.0",
        source="https://github.com/facebookresearch/moco README.md (its table as given by readmex.com)",
        prepare=PREPARE,
        reports={"linear": linear},
    )


WEIGHTS: dict[str, Weights] = {
    "r50:800": _row("moco_v2_800ep", "moco", 71.1),
    "r50:200": _row("moco_v2_200ep", "moco", 67.7),
    "r50:v1": _row("moco_v1_200ep", "moco_v1", 60.6),
    "r50:lightly": Weights(
        url="https://lightly-ssl-checkpoints.s3.amazonaws.com/imagenet_resnet50_mocov2_2024-02-18_10-29-14/"
        "pretrain/version_0/checkpoints/epoch%3D99-step%3D500400.ckpt",
        format="lightly",
        license="MIT",
        source="https://github.com/lightly-ai/lightly README.md, docs/source/getting_started/benchmarks.rst",
        prepare=PREPARE,
        reports={"linear": 61.5, "knn200": 41.8},
    ),
}

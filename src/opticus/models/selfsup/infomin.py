"""What Makes for Good Views for Contrastive Learning? (InfoMin).

Tian, Sun, Poole, Krishnan, Schmid and Isola, NeurIPS 2020, arXiv 2005.10243.
Reference: HobbitLong/PyContrast (BSD-2-Clause).

*Differs*: the nine patches are put into random order where they are cut out, not in the head; RandAugment has torchvision's list and
ranges, not timm's; batch norm sees the batches of all processes (`layers.norm.sync_norms`) and `groups` cuts the keys' batch into
random groups. With `Recipe.accumulate` the queue takes the keys of all micro-batches.
*Map*: section 3, InfoNCE -> `losses.contrastive.info_nce`; the InfoMin augmentation, views that share little more than what is in the
picture -> `recipes.infomin.views`; the JigSaw branch (PIRL, Misra and van der Maaten 2020) -> `transforms.views.Jigsaw`, `JigsawHead`.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float
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
from opticus.weights.names import Names, drop, rename
from opticus.weights.names import copy as both

TASK: Task = "embed"


@dataclass(frozen=True)
class Config:
    """`backbone` is what is learned: any network of opticus that embeds or has feature maps."""

    backbone: Part = field(default_factory=lambda: Part("resnet/50", classes=0))


NETWORK = Encoder  # the query encoder without its heads


# --- objective ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Method:
    """As MoCo v2 with other settings; `jigsaw` is the weight of the patches' loss, 1 - jigsaw that of the whole view's (0 = no patches).

    `patches` a picture are expected in views of the role "patch".
    """

    temperature: float = 0.15
    momentum: float = 0.999
    queue: int = 65536
    outputs: int = 128
    jigsaw: float = 0.5
    patches: int = 9
    groups: int = 1

    def __post_init__(self) -> None:
        if self.temperature <= 0 or not (0 <= self.momentum <= 1 and 0 <= self.jigsaw <= 1):
            raise UsageError(f"infomin: temperature must be above 0, momentum and jigsaw in [0, 1], found {self}")
        if min(self.queue, self.outputs, self.patches, self.groups) < 1:
            raise UsageError(f"infomin: queue, outputs, patches and groups must be at least 1, found {self}")


class JigsawHead(nn.Module):
    """Vectors of K patches (B, K, D) of a picture as one (B, outputs): a perceptron on each, a linear layer on them all in a row."""

    def __init__(self, width: int, outputs: int, patches: int) -> None:
        super().__init__()
        self.each = projection((width, width, outputs), norm=False)
        self.all = nn.Linear(outputs * patches, outputs)

    def forward(self, x: Float[Tensor, "B K D"]) -> Float[Tensor, "B D2"]:
        return self.all(self.each(x).flatten(1))


class InfoMin(nn.Module):
    """A view of a picture, and nine shuffled patches of it, each find the key of another view among the keys of earlier batches."""

    def __init__(self, network: Encoder, method: Method) -> None:
        super().__init__()
        self.network, self.method = network, method
        width = width_of(network)
        self.head = projection((width, width, method.outputs), norm=False)
        self.jigsaw_head = JigsawHead(width, method.outputs, method.patches) if method.jigsaw else None
        self.key, self.key_head = (copy.deepcopy(part).requires_grad_(False) for part in (network, self.head))
        self.queue = Queue(method.queue, method.outputs)
        self._keys: list[Tensor] = []
        self._last: tuple[Tensor, Tensor, Tensor] | None = None

    def phases(self, step: int) -> tuple[str, ...]:
        """One phase."""
        return ("all",)

    def parameters_of(self, phase: str) -> Iterable[nn.Parameter]:
        """The query encoder's and its heads'."""
        return (p for p in self.parameters() if p.requires_grad)

    def forward(self, batch: Batch, at: Progress) -> dict[str, Tensor]:
        """The first global view is the query, the second the key; the patches are a query of their own."""
        first, second = views_of(batch)[:2]
        method, negatives = self.method, self.queue.rows.clone()
        vectors = self.network(first)
        queries = F.normalize(self.head(vectors), dim=1)
        with torch.no_grad():
            keys = F.normalize(self.key_head(in_groups(self.key, second, method.groups)), dim=1)
        self._keys.append(keys)
        self._last = (queries.detach(), keys, vectors.detach())
        whole = info_nce(queries, keys, negatives, method.temperature)
        if self.jigsaw_head is None:
            return {"infomin": whole}
        patches = views_of(batch, "patch")
        if len(patches) != method.patches:
            raise UsageError(f"infomin: expected {method.patches} views of the role 'patch', found {len(patches)}")
        pieces = self.network(torch.stack(patches, 1).flatten(0, 1)).unflatten(0, (-1, len(patches)))
        parts = info_nce(F.normalize(self.jigsaw_head(pieces), dim=1), keys, negatives, method.temperature)
        return {"infomin": (1 - method.jigsaw) * whole, "jigsaw": method.jigsaw * parts}

    def before_update(self, at: Progress) -> None:
        """Nothing."""

    @torch.no_grad()
    def after_step(self, at: Progress) -> None:
        """The step's keys join the queue, and the key encoder follows."""
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


def objective(network: Encoder, **options: Any) -> InfoMin:
    """InfoMin's objective; options are the fields of `Method`."""
    return InfoMin(network, Method(**options))


# --- variants ----------------------------------------------------------------------------------------------------------


def _resnext(name: str, width: int, groups: int = 32) -> Config:
    return Config(Part(f"resnet/{name}", groups=groups, group_width=width, classes=0))


VARIANTS: dict[str, Config] = {
    "tiny": Config(Part("resnet/tiny", classes=0)),
    "r50": Config(),
    "r101": Config(Part("resnet/101", classes=0)),
    "r152": Config(Part("resnet/152", classes=0)),
    "x101v1": _resnext("101", 4),
    "x101v2": _resnext("101", 8),
    "x101v3": _resnext("101", 4, 64),
    "x152v1": _resnext("152", 4),
    "x152v2": _resnext("152", 8),
}
PARAMETERS: dict[str, int] = {}
OVERFIT = {
    "observable": "views",
    "figure": "confusion",
    "samples": 8,
    "lr": 2e-3,
    "options": {"queue": 64, "outputs": 32, "momentum": 0.9, "jigsaw": 0.0},
}
PREPARE = Prepare(resize="shortest", size=(256, 0), crop=(224, 224))

# --- weights -----------------------------------------------------------------------------------------------------------

FORMATS: dict[str, Names] = {
    "pycontrast": Names(rename(r"module\.encoder\.(.+)", r"backbone.\1"), drop(r"module\.head(?:_jig)?\..+")),
}
TRAINING = Names(  # the authors' checkpoint, tables joined by dots
    rename(r"model\.module\.encoder\.(.+)", r"network.backbone.\1"),
    rename(r"model\.module\.head\.(.+)", r"head.\1"),
    rename(r"model\.module\.head_jig\.fc1\.(.+)", r"jigsaw_head.each.\1"),
    rename(r"model\.module\.head_jig\.fc2\.(.+)", r"jigsaw_head.all.\1"),
    rename(r"model_ema\.encoder\.(.+)", r"key.backbone.\1"),
    rename(r"model_ema\.head\.(.+)", r"key_head.\1"),
    drop(r"model_ema\.head_jig\..+"),  # which nothing reads
    rename(r"contrast\.memory", r"queue.rows"),
    both(r"contrast\.index", ["queue.place", "queue.filled"]),  # a plain number of theirs, no tensor of the file
)
WEIGHTS: dict[str, Weights] = {}  # the authors share folders, not files: pycontrast/docs/MODEL_ZOO.md has their addresses

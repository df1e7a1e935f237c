"""Unsupervised Learning of Visual Features by Contrasting Cluster Assignments (SwAV).

Caron, Misra, Mairal, Goyal, Bojanowski and Joulin, NeurIPS 2020, arXiv 2006.09882.
Reference: facebookresearch/swav (CC-BY-NC-4.0: not read; published files and figures as listed by facebookresearch/vissl, MIT),
loss and codes compared with lightly-ai/lightly (MIT).

*Differs*: codes are computed in float64; the prototypes rest for whole epochs (the authors count iterations: 313, one epoch
of batch 4096). With `Recipe.accumulate` above 1 the codes are balanced within a micro-batch (and the queue), not within the step.
*Map*: eq. 2 -> `swapped`; eq. 3 to 5 -> `matching.prototypes.sinkhorn`; section 3.1, working with small batches -> `SwAV.queues`;
section 3.2 -> `transforms.views.multi_crop`; appendix A, projection head -> `layers.projection`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from opticus.layers.encoder import Encoder, by_size, width_of
from opticus.layers.projection import projection
from opticus.layers.queue import Queue
from opticus.losses.collapse import entropies, sentence, spread
from opticus.losses.contrastive import views_of
from opticus.matching.prototypes import sinkhorn
from opticus.ops.collectives import all_reduce, rank, world_size
from opticus.structures import Batch, Part, Prepare, Progress, Task, UsageError, Weights
from opticus.weights.names import Names, drop, rename

TASK: Task = "embed"


@dataclass(frozen=True)
class Config:
    """`backbone` is what is learned: any network of opticus that embeds or has feature maps."""

    backbone: Part = field(default_factory=lambda: Part("resnet/50", classes=0))


# --- network -----------------------------------------------------------------------------------------------------------

NETWORK = Encoder


# --- objective ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Method:
    """Head (`hidden` units, `outputs` long vectors, `prototypes`), and how views are compared.

    `temperature` of the predictions; `epsilon` and `iterations` of Sinkhorn's; `queue`: vectors of earlier batches that take part in
    the assignment, from epoch `queue_epoch` on (0 = none; the authors use 3840 with batches of 256); `frozen_epochs`: the prototypes
    do not learn in the first epochs.
    """

    prototypes: int = 3000
    hidden: int = 2048
    outputs: int = 128
    temperature: float = 0.1
    epsilon: float = 0.05
    iterations: int = 3
    queue: int = 0
    queue_epoch: int = 15
    frozen_epochs: int = 1

    def __post_init__(self) -> None:
        if min(self.prototypes, self.hidden, self.outputs, self.iterations) < 1 or self.queue < 0:
            raise UsageError(f"swav: prototypes, hidden, outputs and iterations must be at least 1, queue at least 0, found {self}")
        if self.temperature <= 0 or self.epsilon <= 0:
            raise UsageError(f"swav: temperature and epsilon must be above 0, found {self.temperature} and {self.epsilon}")


def swapped(scores: Sequence[Float[Tensor, "B K"]], codes: Sequence[Float[Tensor, "B K"]], temperature: float) -> Float[Tensor, ""]:
    """Eq. 2: -sum_k q_k log p_k with the code q of one view and the prediction p of another one, the mean over all such pairs.

    `scores` of all views, of which the first ones have `codes`; p = softmax(scores / temperature).
    """
    logs = [(view / temperature).log_softmax(1) for view in scores]
    pairs = [-(code * log).sum(1).mean() for i, code in enumerate(codes) for j, log in enumerate(logs) if i != j]
    return torch.stack(pairs).mean()


class SwAV(nn.Module):
    """Each view predicts to which prototypes another view of the picture was assigned; assignments use all prototypes equally."""

    def __init__(self, network: Encoder, method: Method) -> None:
        super().__init__()
        self.network, self.method = network, method
        self.head = projection((width_of(network), method.hidden, method.outputs))
        self.prototypes = nn.Linear(method.outputs, method.prototypes, bias=False)
        self.queues = nn.ModuleList([Queue(method.queue, method.outputs) for _ in range(2)] if method.queue else [])
        self._fresh: list[Tensor] = []  # (2, B, D) per micro-batch
        self._last: dict[str, Tensor] = {}

    def phases(self, step: int) -> tuple[str, ...]:
        """One phase."""
        return ("all",)

    def parameters_of(self, phase: str) -> Iterable[nn.Parameter]:
        """The network's, the head's and the prototypes."""
        return (p for p in self.parameters() if p.requires_grad)

    def forward(self, batch: Batch, at: Progress) -> dict[str, Tensor]:
        """Eq. 2 on all views; codes are made of the first two global ones."""
        views = views_of(batch)
        views += [view.pixels for view, role in zip(batch.views, batch.roles) if role != "global"]
        self._to_sphere()
        vectors = by_size(self.network, views)
        units = F.normalize(self.head(vectors), dim=1)
        raw = self.prototypes(units)
        scores = list((raw if raw.dtype == torch.float64 else raw.float()).chunk(len(views)))
        pair = units.detach().reshape(len(views), -1, units.shape[1])[:2]
        codes = [self._code(scores[i].detach(), i, at) for i in range(2)]
        if at.epoch >= self.method.queue_epoch:
            self._fresh.append(pair)
        loss = swapped(scores, codes, self.method.temperature)
        logs = (scores[1].detach() / self.method.temperature).log_softmax(1)
        self._last = {"code": codes[0], "logs": logs, "vectors": vectors[: len(batch)].detach()}
        return {"swav": loss}

    @torch.no_grad()
    def _to_sphere(self) -> None:
        """Prototypes have unit length whenever they are used."""
        self.prototypes.weight.copy_(F.normalize(self.prototypes.weight, dim=1))

    @torch.no_grad()
    def _code(self, scores: Tensor, view: int, at: Progress) -> Float[Tensor, "B K"]:
        """The assignment of a batch; a queue that is full takes part in it, each process with its share of the rows."""
        count = len(scores)
        if len(self.queues) and at.epoch >= self.method.queue_epoch:
            queue = self.queues[view]
            assert isinstance(queue, Queue)
            if int(queue.filled) == len(queue.rows):
                own = queue.rows[rank() :: world_size()]
                scores = torch.cat([scores, self.prototypes(own.to(self.prototypes.weight)).to(scores)])
        return sinkhorn(scores, epsilon=self.method.epsilon, iterations=self.method.iterations)[:count]

    def before_update(self, at: Progress) -> None:
        """The prototypes keep still in the first epochs."""
        if at.epoch < self.method.frozen_epochs:
            self.prototypes.weight.grad = None

    @torch.no_grad()
    def after_step(self, at: Progress) -> None:
        """The vectors of the step, of all micro-batches and processes, enter the queues."""
        fresh, self._fresh = self._fresh, []
        if fresh:
            for queue, rows in zip(self.queues, torch.cat(fresh, 1)):
                assert isinstance(queue, Queue)
                queue.push(rows)

    def figures(self) -> dict[str, float]:
        """Of the last batch: H(q, p) = H(q) + KL(q, p), information and entropy of the predictions, spread of the vectors."""
        code, logs = self._last["code"], self._last["logs"]
        found = entropies(logs.exp())
        own = torch.special.entr(code).sum(1).mean()
        return {
            "kl": float(all_reduce(-(code * logs).sum(1).mean() - own, "mean")),
            "entropy": float(found.each),
            "information": float(found.information),
            "spread": float(spread(self._last["vectors"])),
        }

    def alarm(self, figures: Mapping[str, float]) -> str | None:
        """Collapsed predictions or vectors (`losses.collapse`)."""
        return sentence(dict(figures), self.method.prototypes)


def objective(network: Encoder, **options: Any) -> SwAV:
    """SwAV's objective; options are the fields of `Method`."""
    return SwAV(network, Method(**options))


# --- variants ----------------------------------------------------------------------------------------------------------

VARIANTS: dict[str, Config] = {
    "tiny": Config(Part("resnet/tiny", classes=0)),
    "r50": Config(),
    "r50w2": Config(Part("resnet/50w2", classes=0)),
    "r50w4": Config(Part("resnet/50w4", classes=0)),
    "r50w5": Config(Part("resnet/50w5", classes=0)),
}
PARAMETERS: dict[str, int] = {}
OVERFIT = {
    "observable": "views",
    "figure": "kl",
    "samples": 8,
    "lr": 2e-3,
    "options": {"prototypes": 24, "hidden": 64, "outputs": 32, "frozen_epochs": 0},
}
PREPARE = Prepare(resize="shortest", size=(256, 0), crop=(224, 224))

# --- weights -----------------------------------------------------------------------------------------------------------

FORMATS: dict[str, Names] = {
    "swav": Names(
        rename(r"module\.((?:conv1|bn1|layer\d)\..+)", r"backbone.\1"),
        drop(r"module\.(?:projection_head|prototypes)\..+"),
    ),
}
TRAINING = Names(  # the same file as the whole state of the training
    rename(r"module\.((?:conv1|bn1|layer\d)\..+)", r"network.backbone.\1"),
    rename(r"module\.projection_head\.(.+)", r"head.\1"),
    rename(r"module\.prototypes\.(.+)", r"prototypes.\1"),
    rename(r"queues\.(.+)", r"queues.\1"),
)
# variant, tag, file, linear top-1 on ImageNet in %: projects/SwAV/README.md of facebookresearch/vissl
_FILES = (
    ("r50", "800ep", "swav_800ep_pretrain", 75.3),
    ("r50", "400ep", "swav_400ep_pretrain", 74.6),
    ("r50", "200ep", "swav_200ep_pretrain", 73.9),
    ("r50", "100ep", "swav_100ep_pretrain", 72.1),
    ("r50", "400ep_bs256", "swav_400ep_bs256_pretrain", 74.3),
    ("r50", "200ep_bs256", "swav_200ep_bs256_pretrain", 72.7),
    ("r50", "400ep_2x224", "swav_400ep_2x224_pretrain", 70.1),
    ("r50w2", "400ep", "swav_RN50w2_400ep_pretrain", 77.3),
    ("r50w4", "400ep", "swav_RN50w4_400ep_pretrain", 77.9),
)
WEIGHTS: dict[str, Weights] = {
    f"{variant}:{tag}": Weights(
        url=f"https://dl.fbaipublicfiles.com/deepcluster/{file}.pth.tar",
        format="swav",
        license="CC-BY-NC-4.0",
        source="https://github.com/facebookresearch/vissl projects/SwAV/README.md",
        prepare=PREPARE,
        reports={"linear": linear},
    )
    for variant, tag, file, linear in _FILES
}

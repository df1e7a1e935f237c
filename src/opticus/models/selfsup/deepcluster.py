"""DeepCluster-v2: clusters of the pictures as their labels, with the centres as the last layer.

Caron, Bojanowski, Joulin and Douze, ECCV 2018, arXiv 1807.05520; the second version is in appendix D of Caron, Misra, Mairal, Goyal,
Bojanowski and Joulin, NeurIPS 2020, arXiv 2006.09882.
Reference: facebookresearch/swav (CC-BY-NC-4.0: not read; published files and figures as listed by facebookresearch/vissl, MIT),
loss and clustering compared with vturrisi/solo-learn (MIT), memory and settings with facebookresearch/vissl (MIT).

*Differs*: the first epoch only looks: it fills the memory and changes no weight, where the authors run through the data before they
begin. Every process holds the whole memory and clusters all of it; in float16 a step without any label cannot be skipped, so that the
recipe runs in bfloat16.
*Map*: 1807.05520 eq. 1 -> `DeepCluster.forward`; eq. 2 -> `matching.prototypes.spherical_kmeans`; 2006.09882 appendix D (memory of
the last epoch, several heads, centres as classifier) -> `Memory`, `DeepCluster.after_step`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Any, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from opticus.layers.encoder import Encoder, by_size, width_of
from opticus.layers.projection import projection
from opticus.losses.collapse import entropies, sentence, spread
from opticus.losses.contrastive import views_of
from opticus.matching.prototypes import spherical_kmeans
from opticus.ops.collectives import all_gather, all_reduce
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
    """One head of centres for each of `prototypes`; `hidden` and `outputs` of the projection; `temperature` of the predictions.

    `rounds` of k-means at the end of every epoch, or after every `every` steps; `memory`: pictures that there is room for at first.
    """

    prototypes: tuple[int, ...] = (3000, 3000, 3000)
    hidden: int = 2048
    outputs: int = 128
    temperature: float = 0.1
    rounds: int = 10
    every: int | None = None
    memory: int = 1024

    def __post_init__(self) -> None:
        object.__setattr__(self, "prototypes", tuple(self.prototypes))
        if not self.prototypes or min(*self.prototypes, self.hidden, self.outputs, self.rounds, self.memory, self.every or 1) < 1:
            raise UsageError(f"deepcluster: prototypes, hidden, outputs, rounds, every and memory must be at least 1, found {self}")
        if self.temperature <= 0:
            raise UsageError(f"deepcluster: temperature must be above 0, found {self.temperature}")


def number_of(ids: Sequence[str]) -> Int[Tensor, "B"]:
    """A number of 64 bits for the name of each picture, the same in every process and run."""
    return torch.tensor([int.from_bytes(blake2b(each.encode(), digest_size=8).digest(), "little", signed=True) for each in ids])


class Memory(nn.Module):
    """The latest vectors of every picture, one per global view, and the picture's label in every head (-1 = none yet).

    Part of the state of a run; grows by doubling. Every process stores what all have seen.
    """

    keys: Tensor
    rows: Tensor
    labels: Tensor
    filled: Tensor

    def __init__(self, size: int, width: int, heads: int) -> None:
        super().__init__()
        self.register_buffer("keys", torch.zeros(size, dtype=torch.long))
        self.register_buffer("rows", torch.zeros(2, size, width))
        self.register_buffer("labels", torch.full((heads, size), -1))
        self.register_buffer("filled", torch.zeros(1, dtype=torch.long))
        self._places: dict[int, int] = {}
        self.register_load_state_dict_pre_hook(_make_room)

    def places(self, keys: Int[Tensor, "B"]) -> Int[Tensor, "B"]:
        """Where pictures are stored, -1 for those that are not."""
        known = int(self.filled)
        if len(self._places) != known:
            self._places = {key: place for place, key in enumerate(self.keys[:known].tolist())}
        return torch.tensor([self._places.get(key, -1) for key in keys.tolist()], device=self.rows.device)

    def labels_of(self, keys: Int[Tensor, "B"]) -> Int[Tensor, "H B"]:
        """Labels in every head; -1 for pictures that have none."""
        places = self.places(keys)
        return self.labels[:, places].masked_fill(places < 0, -1)  # place -1 is the last one, whatever it holds

    @torch.no_grad()
    def store(self, keys: Int[Tensor, "B"], rows: Float[Tensor, "2 B D"]) -> None:
        """Keep the vectors of all processes' pictures in place of earlier ones."""
        keys = all_gather(keys.to(rows.device)).flatten()
        rows = all_gather(rows.detach()).transpose(0, 1).flatten(1, 2)
        self.places(keys[:0])
        for key in keys.tolist():
            self._places.setdefault(key, len(self._places))
        known = len(self._places)
        while known > len(self.keys):
            self.resize(2 * len(self.keys))
        places = torch.tensor([self._places[key] for key in keys.tolist()], device=rows.device)
        self.keys[places], self.rows[:, places] = keys, rows.to(self.rows)
        self.filled.fill_(known)

    def resize(self, size: int) -> None:
        """Room for `size` pictures."""
        more = size - len(self.keys)
        self.keys, self.labels = F.pad(self.keys, (0, more)), F.pad(self.labels, (0, more), value=-1)
        self.rows = F.pad(self.rows, (0, 0, 0, more))


def _make_room(memory: nn.Module, state: Mapping[str, Tensor], prefix: str, *_: object) -> None:
    """A saved memory may be larger than a new one."""
    assert isinstance(memory, Memory)
    memory.resize(len(state.get(f"{prefix}keys", memory.keys)))
    memory._places = {}  # pyright: ignore[reportPrivateUsage]


class DeepCluster(nn.Module):
    """All views of a picture predict to which cluster its vector of the last epoch belongs, once per head."""

    def __init__(self, network: Encoder, method: Method) -> None:
        super().__init__()
        self.network, self.method = network, method
        self.head = projection((width_of(network), method.hidden, method.outputs))
        self.prototypes = nn.ModuleList(nn.Linear(method.outputs, count, bias=False) for count in method.prototypes)
        self.prototypes.requires_grad_(False)
        self.memory = Memory(method.memory, method.outputs, len(method.prototypes))
        self._fresh: list[tuple[Tensor, Tensor]] = []
        self._labelled = False
        self._last: dict[str, Tensor] = {}

    def phases(self, step: int) -> tuple[str, ...]:
        """One phase."""
        return ("all",)

    def parameters_of(self, phase: str) -> Iterable[nn.Parameter]:
        """The network's and the head's; centres come from the clustering."""
        return (p for p in self.parameters() if p.requires_grad)

    def forward(self, batch: Batch, at: Progress) -> dict[str, Tensor]:
        """The cross-entropy of all views' predictions, the mean over heads and labelled pictures of all processes; 0 without any."""
        views = views_of(batch)
        views += [view.pixels for view, role in zip(batch.views, batch.roles) if role != "global"]
        vectors = by_size(self.network, views)
        units = F.normalize(self.head(vectors), dim=1)
        keys = number_of(batch.ids)
        labels = self.memory.labels_of(keys).repeat(1, len(views))
        count = all_reduce((labels[0] >= 0).sum().to(units), "mean")
        self._labelled = self._labelled or bool(count > 0)
        losses: list[Tensor] = []
        for prototypes, label in zip(self.prototypes, labels):
            raw = prototypes(units)
            scores = (raw if raw.dtype == torch.float64 else raw.float()) / self.method.temperature
            losses.append(F.cross_entropy(scores, label, ignore_index=-1, reduction="sum") / count.clamp(min=1e-9))
        loss = torch.stack(losses).mean()
        self._fresh.append((keys, units.detach().reshape(len(views), len(batch), -1)[:2]))
        guess = (self.prototypes[0](units[: len(batch)]).detach().float() / self.method.temperature).softmax(1)
        self._last = {"loss": loss.detach(), "guess": guess, "vectors": vectors[: len(batch)].detach()}
        return {"deepcluster": loss}

    def before_update(self, at: Progress) -> None:
        """A step without any labelled picture changes no weight, not even by decay."""
        if not self._labelled:
            for parameter in self.parameters_of("all"):
                parameter.grad = None

    @torch.no_grad()
    def after_step(self, at: Progress) -> None:
        """The step's vectors enter the memory, which is clustered at the end of an epoch, or every so many steps."""
        fresh, self._fresh, self._labelled = self._fresh, [], False
        for keys, rows in fresh:
            self.memory.store(keys, rows)
        every = self.method.every
        if at.last_of_epoch if every is None else (at.step + 1) % every == 0:
            self.cluster(at.step)

    def cluster(self, seed: int) -> None:
        """New centres and labels for all pictures in the memory; head h clusters the vectors of view h mod 2."""
        known = int(self.memory.filled)
        for h, prototypes in enumerate(self.prototypes):
            rows = self.memory.rows[h % 2, :known]
            found = spherical_kmeans(rows, self.method.prototypes[h], rounds=self.method.rounds, seed=seed + h)
            cast(nn.Linear, prototypes).weight.copy_(found.centres)
            self.memory.labels[h, :known] = found.owners

    @property
    def clustered(self) -> bool:
        """Whether there are labels yet."""
        return bool((self.memory.labels[0, :1] >= 0).any())

    def figures(self) -> dict[str, float]:
        """Of the last batch: nats that the labels surprise by (log K before there are any), entropy and information of the first head's
        predictions, spread of the vectors.
        """
        found = entropies(self._last["guess"])
        labelled = self.clustered and float(self._last["loss"]) > 0
        return {
            "surprise": float(all_reduce(self._last["loss"], "mean")) if labelled else math.log(self.method.prototypes[0]),
            "entropy": float(found.each),
            "information": float(found.information),
            "spread": float(spread(self._last["vectors"])),
        }

    def alarm(self, figures: Mapping[str, float]) -> str | None:
        """Collapsed predictions or vectors (`losses.collapse`); the predictions mean nothing before the first clustering."""
        seen = dict(figures) if self.clustered else {"spread": figures["spread"]}
        return sentence(seen, self.method.prototypes[0])


def objective(network: Encoder, **options: Any) -> DeepCluster:
    """DeepCluster-v2's objective; options are the fields of `Method`."""
    return DeepCluster(network, Method(**options))


# --- variants ----------------------------------------------------------------------------------------------------------

VARIANTS: dict[str, Config] = {"tiny": Config(Part("resnet/tiny", classes=0)), "r50": Config()}
PARAMETERS: dict[str, int] = {}
OVERFIT = {
    "observable": "views",
    "figure": "surprise",
    "samples": 8,
    "lr": 2e-3,
    "options": {"prototypes": (4, 4), "hidden": 64, "outputs": 32, "every": 2, "memory": 8},
}
PREPARE = Prepare(resize="shortest", size=(256, 0), crop=(224, 224))

# --- weights -----------------------------------------------------------------------------------------------------------

FORMATS: dict[str, Names] = {
    "deepcluster": Names(
        rename(r"module\.((?:conv1|bn1|layer\d)\..+)", r"backbone.\1"),
        drop(r"module\.(?:projection_head|prototypes)\..+"),
    ),
}
TRAINING = Names(  # the same file as the whole state of the training, and the memory
    rename(r"module\.((?:conv1|bn1|layer\d)\..+)", r"network.backbone.\1"),
    rename(r"module\.projection_head\.(.+)", r"head.\1"),
    rename(r"module\.prototypes\.prototypes(\d+)\.(.+)", r"prototypes.\1.\2"),
    rename(r"memory\.(.+)", r"memory.\1"),
)
# tag, file, linear top-1 on ImageNet in %: projects/SwAV/README.md of facebookresearch/vissl
_FILES = (
    ("800ep", "deepclusterv2_800ep_pretrain", 75.2),
    ("400ep", "deepclusterv2_400ep_pretrain", 74.3),
    ("400ep_2x224", "deepclusterv2_400ep_2x224_pretrain", 70.2),
)
WEIGHTS: dict[str, Weights] = {
    f"r50:{tag}": Weights(
        url=f"https://dl.fbaipublicfiles.com/deepcluster/{file}.pth.tar",
        format="deepcluster",
        license="CC-BY-NC-4.0",
        source="https://github.com/facebookresearch/vissl projects/SwAV/README.md",
        prepare=PREPARE,
        reports={"linear": linear},
    )
    for tag, file, linear in _FILES
}

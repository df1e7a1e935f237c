"""OBoW: Online Bag-of-Visual-Words Generation for Unsupervised Representation Learning.

Gidaris, Bursuc, Puy, Komodakis, Cord and Perez, CVPR 2021, arXiv 2012.11552.
Reference: valeoai/obow (Apache-2.0).

*Differs*: with `Recipe.accumulate` above 1, the mean distance (eq. 5) moves once per micro-batch and the vocabulary once per step; the
linear classifier that the authors train beside it to watch the features is left out. The published files lie in zip archives on the
page of the repository: unpack one and load it by its path.
*Map*: section 3.1 -> `OBoW.forward`; eq. 3 and 5, soft codes -> `Vocabulary.bags`; section 3.2, queue of words -> `Vocabulary.sample`;
section 3.3, dynamic prediction -> `Generator`; section 3.4, several levels and views -> `Method.levels`, `transforms.views.Patches`.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from opticus.layers.average import follow
from opticus.layers.encoder import Encoder, by_size, width_of
from opticus.layers.queue import Queue
from opticus.losses.collapse import entropies, sentence, spread
from opticus.losses.contrastive import views_of
from opticus.ops.collectives import all_reduce
from opticus.ops.schedules import cosine
from opticus.structures import Batch, Part, Prepare, Progress, Task, UsageError, Weights
from opticus.weights.names import Names, drop, rename

TASK: Task = "embed"


@dataclass(frozen=True)
class Config:
    """`backbone` is what is learned: a network of opticus with feature maps."""

    backbone: Part = field(default_factory=lambda: Part("resnet/50", classes=0))


# --- network -----------------------------------------------------------------------------------------------------------

NETWORK = Encoder  # the student: its features are what the authors evaluate


# --- objective ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Method:
    """`words` of the vocabulary of each of the last `levels` maps; `sharpness` of the codes; `kappa`, the scale of the predictions.

    `sample`: what of a teacher's map becomes a word: the mean of 3 x 3 neighbours at a random place ("local"), one vector ("single"),
    or the mean of the map ("global"). `momentum` of the teacher, which goes to 1 on a half cosine. `border`: cells of the map that are
    cut off. `hidden` units of the generator (None = twice the width of the vectors).
    """

    words: int = 8192
    levels: int = 2
    sharpness: float = 15.0
    kappa: float = 8.0
    sample: Literal["local", "single", "global"] = "local"
    momentum: float = 0.99
    border: int = 1
    hidden: int | None = None

    def __post_init__(self) -> None:
        if min(self.words, self.levels) < 1 or self.border < 0:
            raise UsageError(f"obow: words and levels must be at least 1, border at least 0, found {self}")
        if self.sample not in ("local", "single", "global"):
            raise UsageError(f"obow: sample must be one of local, single, global, found {self.sample!r}")
        if not 0 <= self.momentum <= 1 or min(self.sharpness, self.kappa) <= 0:
            raise UsageError(f"obow: momentum must be in [0, 1], sharpness and kappa above 0, found {self}")


class Vocabulary(nn.Module):
    """Visual words of one level: a queue of vectors (K, C) of the teacher's maps, and the mean distance of a vector to its word."""

    distance: Tensor

    def __init__(self, width: int, method: Method) -> None:
        super().__init__()
        self.method = method
        self.queue = Queue(method.words, width)
        self.queue.rows.copy_(torch.randn(method.words, width).clamp(min=0))  # maps come from a ReLU
        self.register_buffer("distance", torch.full((1,), 0.5))

    @property
    def words(self) -> Float[Tensor, "K C"]:
        """The words as they are now."""
        return self.queue.rows

    @torch.no_grad()
    def bags(self, maps: Float[Tensor, "B C H W"]) -> Float[Tensor, "B K"]:
        """Eq. 3: soft codes of all places, the largest of each word in the picture, summing to 1.

        The squared distance counts in units of its running mean over all pictures (eq. 5), which moves when this is in training mode.
        """
        vectors = maps.flatten(2).transpose(1, 2)
        squares = vectors.square().sum(2, keepdim=True) + self.words.square().sum(1) - 2 * vectors @ self.words.T
        if self.training:
            self.distance.lerp_(all_reduce(squares.amin(2).mean(), "mean").to(self.distance), 0.01)
        codes = (squares * (-self.method.sharpness / self.distance)).softmax(2)
        return F.normalize(codes.amax(1), p=1, dim=1)

    @torch.no_grad()
    def sample(self, maps: Float[Tensor, "B C H W"]) -> Float[Tensor, "B C"]:
        """One vector per picture that may become a word."""
        if self.method.sample == "global":
            return maps.mean((2, 3))
        if self.method.sample == "local":
            maps = F.avg_pool2d(maps, [min(3, side) for side in maps.shape[2:]], stride=1)
        vectors = maps.flatten(2)
        place = torch.randint(vectors.shape[2], (len(vectors),), device=maps.device)
        return vectors[torch.arange(len(vectors), device=maps.device), :, place]


class Generator(nn.Module):
    """Words (K, C) to the weights (K, D), of unit length, of the layer that predicts them."""

    def __init__(self, width: int, hidden: int, outputs: int) -> None:
        super().__init__()
        self.fc = nn.Linear(width, hidden, bias=False)
        self.bn = nn.BatchNorm1d(hidden)
        self.last_layer = nn.Linear(hidden, outputs)

    def forward(self, words: Float[Tensor, "K C"]) -> Float[Tensor, "K D"]:
        return F.normalize(self.last_layer(self.bn(self.fc(F.normalize(words, dim=1))).relu()), dim=1)


class OBoW(nn.Module):
    """From parts of a picture the student tells which visual words the teacher sees in the whole.

    The first global view is the teacher's, all others are the student's. Each kind of views (role) has its own loss.
    """

    def __init__(self, network: Encoder, method: Method) -> None:
        super().__init__()
        self.network, self.method = network, method
        if method.levels > len(network.widths):
            raise UsageError(f"obow: levels={method.levels} maps are asked for, the backbone has {len(network.widths)}")
        self.teacher = copy.deepcopy(network).requires_grad_(False)
        widths, outputs = network.widths[-method.levels :], width_of(network)
        hidden = 2 * outputs if method.hidden is None else method.hidden
        self.vocabularies = nn.ModuleList(Vocabulary(width, method) for width in widths)
        self.generators = nn.ModuleList(Generator(width, hidden, outputs) for width in widths)
        self.register_buffer("scale", torch.full((method.levels,), method.kappa))
        self._fresh: list[list[Tensor]] = []  # per micro-batch, per level
        self._last: dict[str, Tensor] = {}

    scale: Tensor

    def phases(self, step: int) -> tuple[str, ...]:
        """One phase."""
        return ("all",)

    def parameters_of(self, phase: str) -> Iterable[nn.Parameter]:
        """The student's and the generators'."""
        return (p for p in self.parameters() if p.requires_grad)

    def forward(self, batch: Batch, at: Progress) -> dict[str, Tensor]:
        """KL(bag of the teacher, softmax of the prediction): the mean over levels and views of a role, the sum over roles."""
        whole, *crops = views_of(batch)
        bags = self._bags(whole)
        weights = [generator(cast(Vocabulary, v).words.clone()) for generator, v in zip(self.generators, self.vocabularies)]
        kinds = {"global": crops}
        for view, role in zip(batch.views, batch.roles):
            if role != "global":
                kinds.setdefault(role, []).append(view.pixels)
        losses: list[Tensor] = []
        for views in kinds.values():
            vectors = by_size(self.network, views)
            for bag, weight, kappa in zip(bags, weights, self.scale):
                raw = (vectors * kappa) @ weight.T
                logs = (raw if raw.dtype == torch.float64 else raw.float()).log_softmax(1)
                losses.append(F.kl_div(logs, bag.to(logs).repeat(len(views), 1), reduction="batchmean") / len(bags))
            self._last = {"bags": bags[-1], "vectors": vectors[: len(batch)].detach()}
        return {"obow": torch.stack(losses).sum()}

    @torch.no_grad()
    def _bags(self, whole: Tensor) -> list[Float[Tensor, "B K"]]:
        """The teacher's words in the whole picture, per level; a sample of its vectors waits for the end of the step."""
        border, bags, fresh = self.method.border, [], []
        for vocabulary, maps in zip(self.vocabularies, self.teacher.features(whole)[-self.method.levels :]):
            assert isinstance(vocabulary, Vocabulary)
            if min(maps.shape[2:]) <= 2 * border:
                raise UsageError(
                    f"obow: nothing is left of a map of {maps.shape[2]} x {maps.shape[3]} cells without a border of {border}"
                )
            inner = maps[:, :, border : maps.shape[2] - border, border : maps.shape[3] - border]
            bags.append(vocabulary.bags(inner))
            fresh.append(vocabulary.sample(inner))
        self._fresh.append(fresh)
        return bags

    def before_update(self, at: Progress) -> None:
        """Nothing."""

    @torch.no_grad()
    def after_step(self, at: Progress) -> None:
        """The teacher follows, and the words that its maps gave in this step replace the oldest ones."""
        done = (at.step + 1) / max(at.steps, 1)  # the authors move the teacher at the start of the next step
        follow(self.teacher, self.network, cosine(done, start=self.method.momentum, end=1.0))
        fresh, self._fresh = self._fresh, []
        for level, vocabulary in enumerate(self.vocabularies):
            if fresh:
                cast(Vocabulary, vocabulary).queue.push(torch.cat([rows[level] for rows in fresh]))

    def figures(self) -> dict[str, float]:
        """Of the last batch: entropy and information of the last level's bags, spread of the vectors, mean distance to a word."""
        found = entropies(self._last["bags"])
        return {
            "entropy": float(found.each),
            "information": float(found.information),
            "spread": float(spread(self._last["vectors"])),
            "distance": float(cast(Vocabulary, self.vocabularies[-1]).distance),
        }

    def alarm(self, figures: Mapping[str, float]) -> str | None:
        """Collapsed bags or vectors (`losses.collapse`)."""
        return sentence(dict(figures), self.method.words)


def objective(network: Encoder, **options: Any) -> OBoW:
    """OBoW's objective; options are the fields of `Method`."""
    return OBoW(network, Method(**options))


# --- variants ----------------------------------------------------------------------------------------------------------

VARIANTS: dict[str, Config] = {
    "tiny": Config(Part("resnet/tiny", classes=0)),
    "r18": Config(Part("resnet/18", classes=0)),
    "r50": Config(),
}
PARAMETERS: dict[str, int] = {}
OVERFIT = {
    "observable": "views",
    "floor": 0.0,
    "samples": 8,
    "lr": 2e-3,
    "options": {"words": 32, "hidden": 64, "sample": "global"},
}
PREPARE = Prepare(resize="shortest", size=(256, 0), crop=(224, 224))

# --- weights -----------------------------------------------------------------------------------------------------------

_CONV = {"Conv": "conv1", "bn": "bn1"}
_BLOCKS = r"_feature_blocks\."
FORMATS: dict[str, Names] = {
    "obow": Names(
        rename(r"((?:conv1|bn1|layer\d)\..+)", r"backbone.\1"),
        drop(r"fc\..+"),  # the weights that predict the words of the last vocabulary
    ),
    "obow_blocks": Names(
        rename(_BLOCKS + r"0\.(Conv|bn)\.(.+)", lambda m: f"backbone.{_CONV[m[1]]}.{m[2]}"),
        rename(_BLOCKS + r"([1-4])\.(.+)", r"backbone.layer\1.\2"),
    ),
}


def _branch(suffix: str) -> str:
    return "teacher" if suffix else "network"


TRAINING = Names(  # the authors' OBoW module
    rename(
        r"feature_extractor(_teacher)?\." + _BLOCKS + r"0\.(Conv|bn)\.(.+)",
        lambda m: f"{_branch(m[1])}.backbone.{_CONV[m[2]]}.{m[3]}",
    ),
    rename(
        r"feature_extractor(_teacher)?\." + _BLOCKS + r"([1-4])\.(.+)", lambda m: f"{_branch(m[1])}.backbone.layer{m[2]}.{m[3]}"
    ),
    rename(r"bow_predictor\.layers_w\.(\d)\.b\d_(fc|bn|last_layer)\.(.+)", r"generators.\1.\2.\3"),
    rename(r"bow_predictor\.scale", "scale"),
    rename(r"bow_extractor\.bow_extractor\.(\d)\._embedding", r"vocabularies.\1.queue.rows"),
    rename(r"bow_extractor\.bow_extractor\.(\d)\._embedding_ptr", r"vocabularies.\1.queue.place"),
    rename(r"bow_extractor\.bow_extractor\.(\d)\._filled", r"vocabularies.\1.queue.filled"),
    rename(r"bow_extractor\.bow_extractor\.(\d)\._min_distance_mean", r"vocabularies.\1.distance"),
    drop(r"bow_extractor\.bow_extractor\.\d\._track_num_batches"),
)
WEIGHTS: dict[str, Weights] = {}

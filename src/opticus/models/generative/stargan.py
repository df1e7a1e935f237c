"""StarGAN: Unified Generative Adversarial Networks for Multi-Domain Image-to-Image Translation.

Choi, Choi, Kim, Ha, Kim and Choo, CVPR 2018, arXiv 1711.09020.
Reference: yunjey/stargan (MIT).

*Differs*: several label sets share one list of classes and come mixed in a batch, where the authors' code alternates between two data
sets; a wanted label is that of a random picture of the batch from the same label set. The authors' files hold running statistics
of instance norms, which their inference, in training mode, does not use: they are left out.
*Map*: eq. 8 (Wasserstein with gradient penalty) -> `losses.adversarial`; eqs. 2 and 3 -> `Domains.classified`; eq. 4 -> "g/cycle";
eqs. 5 and 6 -> `Domains.forward`; section 3.2 (mask vector, eq. 7) -> `StarGAN.condition`; tables 4 and 5 -> `StarGAN`, `Discriminator`.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple, cast

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from opticus.losses.adversarial import gradient_penalty, rule
from opticus.losses.pictures import mean, pictures, pixels_of
from opticus.structures import Batch, Classes, DataError, Dataset, Images, Picture, Prepare, Progress, Task, UsageError, Weights
from opticus.transforms.prepare import prepare
from opticus.weights.names import Names, drop, keep, rename

TASK: Task = "translate"
HEADLINE = "cycle"
TARGETS = "classes"  # the domain that a picture is of: there is no target picture
PREPARE = Prepare(resize="fixed", size=(128, 128), mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))


@dataclass(frozen=True)
class Config:
    """`classes` domains (or attributes); `sets`: how many of them belong to each label set, in order, where there are several.

    `target` is the domain that a picture is brought to when nothing is said: `opticus.load(run, target=2)`.
    """

    classes: int = 5
    sets: tuple[int, ...] = ()
    size: int = 128
    width: int = 64
    blocks: int = 6
    channels: int = 3
    target: int = 0

    def __post_init__(self) -> None:
        if self.sets and (sum(self.sets) != self.classes or min(self.sets) < 1 or len(self.sets) < 2):
            raise UsageError(f"stargan: sets={self.sets} must be two or more numbers whose sum is classes={self.classes}")
        if self.size < 8 or self.size % 4 or min(self.classes, self.width, self.channels) < 1:
            raise UsageError(f"stargan: size must be a multiple of 4, classes, width and channels at least 1, found {self}")
        if not 0 <= self.target < self.classes:
            raise UsageError(f"stargan: target must be a domain in 0..{self.classes - 1}, found {self.target}")

    @property
    def conditions(self) -> int:
        """Length of the vector that says what is wanted: a number per class and, of several label sets, one per set."""
        return self.classes + len(self.sets)


# --- network -----------------------------------------------------------------------------------------------------------


class Residual(nn.Module):
    """x + norm(conv(relu(norm(conv(x)))))."""

    def __init__(self, width: int) -> None:
        super().__init__()
        layers = [layer for _ in range(2) for layer in (nn.Conv2d(width, width, 3, 1, 1, bias=False), _norm(width), nn.ReLU())]
        self.main = nn.Sequential(*layers[:-1])

    def forward(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B C H W"]:
        return x + self.main(x)


def _norm(width: int) -> nn.InstanceNorm2d:
    return nn.InstanceNorm2d(width, affine=True)


class StarGAN(nn.Module):
    """The generator: picture and wanted domain in, picture out. The label is repeated at every pixel as further channels (table 4)."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config, self.scale = config, 1
        one = PREPARE.with_channels(config.channels)
        self.prepare = Prepare(config.channels, "fixed", (config.size, config.size), mean=one.mean, std=one.std)
        self.produces = self.prepare
        width = config.width
        layers: list[nn.Module] = [
            nn.Conv2d(config.channels + config.conditions, width, 7, 1, 3, bias=False), _norm(width), nn.ReLU()
        ]  # fmt: skip
        for _ in range(2):
            layers += [nn.Conv2d(width, 2 * width, 4, 2, 1, bias=False), _norm(2 * width), nn.ReLU()]
            width *= 2
        layers += [Residual(width) for _ in range(config.blocks)]
        for _ in range(2):
            layers += [nn.ConvTranspose2d(width, width // 2, 4, 2, 1, bias=False), _norm(width // 2), nn.ReLU()]
            width //= 2
        self.main = nn.Sequential(*layers, nn.Conv2d(width, config.channels, 7, 1, 3, bias=False), nn.Tanh())

    def forward(self, pixels: Float[Tensor, "B C H W"], labels: Tensor | None = None) -> Float[Tensor, "B C H W"]:
        """`labels`: the wanted domain of every picture (B,) int64, or its whole vector (B, conditions); None is the Config's `target`."""
        if labels is None:
            labels = torch.full((len(pixels),), self.config.target, device=pixels.device)
        wanted = (self.condition(labels) if labels.ndim == 1 else labels).to(pixels)
        if wanted.shape != (len(pixels), self.config.conditions):
            raise UsageError(
                f"stargan: {len(pixels)} pictures need labels of shape ({len(pixels)}, {self.config.conditions}), "
                f"found {tuple(wanted.shape)}"
            )
        return self.main(torch.cat([pixels, wanted[:, :, None, None].expand(-1, -1, *pixels.shape[2:])], 1))

    def condition(self, labels: Int[Tensor, "B"]) -> Float[Tensor, "B D"]:
        """One at the class of each label and, of several label sets, one at its set (the mask vector, eq. 7); UsageError names a bad one."""
        if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < self.config.classes:
            raise UsageError(f"stargan: domains are 0..{self.config.classes - 1}, found {labels.tolist()[:8]}")
        vector = F.one_hot(labels.long(), self.config.classes).float()
        if not self.config.sets:
            return vector
        return torch.cat([vector, F.one_hot(self.set_of(labels), len(self.config.sets)).float()], 1)

    def set_of(self, labels: Int[Tensor, "B"]) -> Int[Tensor, "B"]:
        """The number of the label set that every label belongs to."""
        ends = torch.tensor(self.config.sets or (self.config.classes,), device=labels.device).cumsum(0)
        return torch.searchsorted(ends, labels.contiguous(), right=True)

    def results(self, out: Float[Tensor, "B C H W"], images: Images) -> list[Picture]:
        """The translated pictures."""
        return pictures(out, self.produces)


NETWORK = StarGAN


def inputs(network: StarGAN, images: Images) -> tuple[Tensor, ...]:
    """Pictures and, by a formula of each picture, a domain that it is brought to."""
    labels = (images.pixels.double().abs().flatten(1).sum(1) * 997).long() % network.config.classes
    return images.pixels, network.condition(labels)


# --- objective ---------------------------------------------------------------------------------------------------------


class Judged(NamedTuple):
    """`source` (B, 1, h, w): the higher the more real; `classes` (B, K): logits of the domains."""

    source: Tensor
    classes: Tensor


class Discriminator(nn.Module):
    """`depth` convolutions k4s2 that double the width; on top one map of scores and one layer over everything for the domain."""

    def __init__(self, config: Config, width: int, depth: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        before = config.channels
        for i in range(depth):
            layers += [nn.Conv2d(before, width << i, 4, 2, 1), nn.LeakyReLU(0.01)]
            before = width << i
        self.main = nn.Sequential(*layers)
        self.conv1 = nn.Conv2d(before, 1, 3, 1, 1, bias=False)
        self.conv2 = nn.Conv2d(before, config.classes, config.size >> depth, bias=False)

    def forward(self, pixels: Float[Tensor, "B C H W"]) -> Judged:
        x = self.main(pixels)
        return Judged(self.conv1(x), self.conv2(x)[:, :, 0, 0])


class Domains(nn.Module):
    """The discriminator tells real from made and names the domain; the generator fools it, is named the wanted domain, and can go back.

    `attributes`: a picture may have several of the classes (CelebA), each a yes or no. `critics` discriminator steps per generator step.
    """

    def __init__(
        self, network: StarGAN, *, attributes: bool = False, classification: float = 1.0, cycle: float = 10.0, penalty: float = 10.0,
        critics: int = 5, width: int = 64, depth: int = 6,
    ) -> None:  # fmt: skip
        super().__init__()
        config = network.config
        if min(classification, cycle, penalty) < 0 or min(critics, width, depth) < 1 or config.size >> depth < 1:
            raise UsageError(
                f"stargan: weights must not be negative, critics, width and depth at least 1, and 2^depth at most the size "
                f"{config.size}, found depth={depth}"
            )
        if attributes and config.sets:
            raise UsageError("stargan: attributes=True is of one label set, but the network has several")
        self.network, self.attributes, self.critics = network, attributes, critics
        self.classification, self.cycle, self.penalty = classification, cycle, penalty
        self.discriminator = Discriminator(config, width, depth)
        self._figures: dict[str, float] = {}

    def phases(self, step: int) -> tuple[str, ...]:
        """("d",), and every `critics` steps ("d", "g")."""
        return ("d", "g") if (step + 1) % self.critics == 0 else ("d",)

    def parameters_of(self, phase: str) -> Iterable[nn.Parameter]:
        """Those of the discriminator in "d", those of the generator in "g"."""
        return (self.discriminator if phase == "d" else self.network).parameters()

    def vectors_of(self, batch: Batch, like: Tensor) -> tuple[Float[Tensor, "B D"], Int[Tensor, "B"]]:
        """What the pictures of a batch are, and the label set of each; DataError names a picture without a usable label."""
        rows: list[Tensor] = []
        for target, name in zip(batch.targets, batch.ids):
            if not isinstance(target, Classes) or (len(target) != 1 and not self.attributes):
                what = f"{len(target)} labels" if isinstance(target, Classes) else type(target).__name__
                raise DataError(f"{name}: a picture needs one domain (with attributes=True any number), found {what}")
            rows.append(F.one_hot(target.labels, self.network.config.classes).sum(0).clamp(max=1))
        labels = torch.stack(rows).to(like)
        if self.attributes:
            return labels, torch.zeros(len(rows), dtype=torch.int64, device=like.device)
        domains = labels.argmax(1)
        return self.network.condition(domains).to(like), self.network.set_of(domains)

    def wanted_of(self, vectors: Float[Tensor, "B D"], sets: Int[Tensor, "B"]) -> Float[Tensor, "B D"]:
        """For every picture the labels of a random picture of the batch from the same label set."""
        alike = (sets[:, None] == sets).float()
        return vectors[torch.multinomial(alike, 1)[:, 0]]

    def forward(self, batch: Batch, at: Progress) -> dict[str, Tensor]:
        """Eq. 5 in the phase "d", eq. 6 in "g", both with the Wasserstein rule of eq. 8."""
        real = pixels_of(batch)
        vectors, sets = self.vectors_of(batch, real)
        wanted, game = self.wanted_of(vectors, sets), rule("wasserstein")
        if at.phase == "d":
            with torch.no_grad():
                made = self.network(real, wanted).to(real)
            judged, scores = self.discriminator(real), self.discriminator(made).source
            slope = gradient_penalty(lambda x: self.discriminator(x).source, real, made, torch.rand(len(real)).to(real))
            self._figures = {"score_real": float(judged.source.detach().mean()), "score_fake": float(scores.detach().mean())}
            return {
                "d/real": mean(game.real(judged.source.float()), batch),
                "d/fake": mean(game.fake(scores.float()), batch),
                "d/penalty": self.penalty * mean(slope, batch),
                "d/classes": self.classification * mean(self.classified(judged.classes.float(), vectors, sets), batch),
            }
        made = self.network(real, wanted)
        judged, back = self.discriminator(made), self.network(made, vectors)
        return {
            "g/fool": mean(game.generator(judged.source.float()), batch),
            "g/classes": self.classification * mean(self.classified(judged.classes.float(), wanted, sets), batch),
            "g/cycle": self.cycle * mean((real - back.float()).abs().flatten(1).mean(1), batch),
        }

    def classified(self, logits: Float[Tensor, "B K"], vectors: Float[Tensor, "B D"], sets: Int[Tensor, "B"]) -> Float[Tensor, "B"]:
        """How surprising the labels are: a softmax over the classes of the picture's own label set, or a sigmoid per attribute."""
        labels = vectors[:, : logits.shape[1]]
        if self.attributes:
            return F.binary_cross_entropy_with_logits(logits, labels, reduction="none").sum(1)
        own = self.network.set_of(torch.arange(logits.shape[1], device=logits.device)) == sets[:, None]
        return F.cross_entropy(logits.masked_fill(~own, -torch.inf), labels.argmax(1), reduction="none")

    def realness(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Mean scores (B,) of real pictures and of those brought to random domains."""
        real = pixels_of(batch)
        wanted = self.wanted_of(*self.vectors_of(batch, real))
        made = self.network(real, wanted)
        return self.discriminator(real).source.flatten(1).mean(1), self.discriminator(made).source.flatten(1).mean(1)

    def before_update(self, at: Progress) -> None:
        """Nothing."""

    def after_step(self, at: Progress) -> None:
        """Nothing."""

    def figures(self) -> dict[str, float]:
        """Mean scores of real and of made pictures in the last step of the discriminator."""
        return self._figures

    def alarm(self, figures: Any) -> str | None:
        """Nothing to tell."""
        return None


def objective(network: StarGAN, **options: Any) -> Domains:
    """See `Domains`: `attributes`, the weights of the terms, `critics`, and the discriminator's `width` and `depth`."""
    return Domains(network, **options)


@torch.no_grad()
def evaluate(network: StarGAN, data: Dataset) -> tuple[dict[str, float], dict[str, Any]]:
    """Every picture is brought to the next domain of its label set and back: "cycle" is the mean PSNR in dB of what returns.

    A network that changes nothing returns everything: the figure tells what a translation loses, not whether it is right. "PSNR" does,
    against the right answers, where the data knows them (`answer(index, domain)`, as `tints` does). DataError names a picture
    that is not of one domain.
    """
    where, training, batch = next(network.parameters()), network.training, 64
    network.eval()
    ends = torch.tensor(network.config.sets or (network.config.classes,)).cumsum(0)
    cycle, right = list[float](), list[float]()
    for first in range(0, len(data), batch):
        indices = range(first, min(first + batch, len(data)))
        targets = [data.target_of(i) for i in indices]
        for i, target in zip(indices, targets):
            if not isinstance(target, Classes) or not len(target):
                raise DataError(f"{data.id_of(i)}: a domain is needed, found {type(target).__name__} without a label")
        labels = torch.stack([cast(Classes, target).labels[0] for target in targets])
        own = network.set_of(labels)
        starts = torch.cat([ends.new_zeros(1), ends[:-1]])[own]
        wanted = starts + (labels + 1 - starts) % (ends[own] - starts)
        real = prepare([data[i].picture for i in indices], network.prepare).pixels.to(where)
        made = network(real, wanted.to(where.device))
        cycle += _psnr(network(made, labels.to(where.device)), real)
        if hasattr(data, "answer"):
            answers = [cast(Any, data).answer(i, int(label)) for i, label in zip(indices, wanted)]
            right += _psnr(made, prepare(answers, network.prepare).pixels.to(where))
    network.train(training)
    values = {"cycle": sum(cycle) / len(cycle)} | ({"PSNR": sum(right) / len(right)} if right else {})
    return values, {"metric": "PSNR there and back", "channel": "rgb", "pictures": len(data), "size": network.config.size}


def _psnr(found: Float[Tensor, "B C H W"], wanted: Float[Tensor, "B C H W"]) -> list[float]:
    """PSNR in dB of every picture in [-1, 1], at most 60."""
    error = ((found.clamp(-1, 1) - wanted) / 2).square().flatten(1).mean(1)
    return (-10 * error.clamp(min=1e-6).log10()).tolist()


# --- variants and weights ------------------------------------------------------------------------------------------------

VARIANTS: dict[str, Config] = {
    "tiny": Config(classes=3, size=32, width=16, blocks=2),
    "celeba128": Config(),
    "celeba256": Config(size=256),
    "rafd128": Config(classes=8),
    "both256": Config(classes=13, sets=(5, 8), size=256),
}
PARAMETERS: dict[str, int] = {}
OVERFIT = {"observable": "realness", "samples": 4, "lr": 2e-3, "options": {"width": 16, "depth": 4, "critics": 1}}
_STATISTICS = r"(?:running_mean|running_var|num_batches_tracked)"
FORMATS: dict[str, Names] = {
    "yunjey": Names(drop(rf"main\..+\.{_STATISTICS}"), keep(r"main\..+")),
}
TRAINING = Names(drop(rf"network\..+\.{_STATISTICS}"), rename(r"network\.(main\..+)", r"network.\1"), keep(r"discriminator\..+"))
WEIGHTS: dict[str, Weights] = {}  # the authors' files are zip archives (README, download.sh): unpack, and load 200000-G.ckpt

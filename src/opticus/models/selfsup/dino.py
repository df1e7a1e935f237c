"""Emerging Properties in Self-Supervised Vision Transformers (DINO).

Caron et al., ICCV 2021, arXiv 2104.14294.
Reference: facebookresearch/dino (Apache-2.0).

*Differs*: one global gradient norm is clipped, the authors clip every tensor's own; the class token starts at nearly 0 as in `vit`;
position embeddings of another grid are resized to that grid exactly, the authors' scale factor is off by 0.1 of a patch.
*Map*: eq. 1 -> `temperatures`; eq. 3 -> `cross_entropy`; eq. 4 -> `DINO.after_step`; algorithm 1 -> `DINO.forward`; projection head
(section 3.1) -> `Head`; multi-crop -> `transforms.views.multi_crop`; table 7 -> `Method`.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from opticus.layers.average import follow
from opticus.layers.drop import DropPath
from opticus.layers.encoder import Encoder, by_size, width_of
from opticus.layers.projection import projection
from opticus.losses.collapse import entropies, sentence, spread
from opticus.losses.contrastive import views_of
from opticus.matching.prototypes import sinkhorn
from opticus.ops.collectives import all_reduce
from opticus.ops.schedules import cosine
from opticus.structures import Batch, Part, Prepare, Progress, Task, UsageError, Weights
from opticus.weights.names import Names, drop, rename

TASK: Task = "embed"


@dataclass(frozen=True)
class Config:
    """`backbone` is what is learned: any network of opticus that embeds or has feature maps."""

    backbone: Part = field(default_factory=lambda: Part("vit/s16", classes=0))


# --- network -----------------------------------------------------------------------------------------------------------

NETWORK = Encoder  # the teacher's backbone: what the authors publish


@dataclass(frozen=True)
class HeadSize:
    """`depth` linear layers of `hidden` units, an l2-normalised bottleneck (0 = none), `outputs` weight-normalised prototypes.

    `head_norm` puts batch norm into the hidden layers; `gain` lets the norms of the prototypes be learned.
    """

    outputs: int = 65536
    depth: int = 3
    hidden: int = 2048
    bottleneck: int = 256
    head_norm: bool = False
    gain: bool = False

    def __post_init__(self) -> None:
        if min(self.outputs, self.depth, self.hidden) < 1 or self.bottleneck < 0:
            raise UsageError(f"dino: the head needs outputs, depth and hidden >= 1 and bottleneck >= 0, found {self}")


class Head(nn.Module):
    """(B, D) vectors to (B, K) logits: GELU perceptron, unit-length bottleneck, linear layer whose rows have unit length."""

    def __init__(self, width: int, size: HeadSize) -> None:
        super().__init__()
        last = size.bottleneck or size.hidden
        widths = [width] + [size.hidden] * (size.depth - 1) + [last]
        layers: list[nn.Module] = []
        for index in range(size.depth):
            layers.append(nn.Linear(widths[index], widths[index + 1]))
            if index < size.depth - 1:
                layers += [nn.BatchNorm1d(widths[index + 1]), nn.GELU()] if size.head_norm else [nn.GELU()]
        self.mlp = nn.Sequential(*layers)
        self.unit = size.bottleneck > 0
        self.prototypes = nn.Parameter(torch.empty(size.outputs, last))
        self.gain = nn.Parameter(torch.ones(size.outputs, 1)) if size.gain else None
        for module in self.mlp:
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)
        nn.init.kaiming_uniform_(self.prototypes, a=math.sqrt(5))

    def forward(self, x: Float[Tensor, "B D"]) -> Float[Tensor, "B K"]:
        x = self.mlp(x)
        if self.unit:
            x = F.normalize(x, dim=1)
        rows = F.normalize(self.prototypes, dim=1)
        return F.linear(x, rows if self.gain is None else rows * self.gain)


# --- objective ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Method:
    """The rows of table 7 and of the collapse study are settings of this; the defaults are DINO.

    `follows`: how the teacher comes from the student: "momentum" (its decay goes from `momentum` to 1 on a half cosine), "student"
    (the same weights), "previous-iteration" or "previous-epoch". `balance`: what keeps the teacher's outputs apart: "centre",
    "sinkhorn" or "none". `loss`: "mse" compares unit-length outputs as BYOL does. `predictor`: a perceptron in the student only,
    between backbone and head. Temperatures: `student`, and `teacher` from the first to the second in `teacher_epochs`.
    """

    student: float = 0.1
    teacher: tuple[float, float] = (0.04, 0.07)
    teacher_epochs: int = 30
    momentum: float = 0.996
    follows: Literal["momentum", "student", "previous-iteration", "previous-epoch"] = "momentum"
    balance: Literal["centre", "sinkhorn", "none"] = "centre"
    centre: float = 0.9
    loss: Literal["cross-entropy", "mse"] = "cross-entropy"
    predictor: bool = False
    frozen_epochs: int = 1  # the last layer does not learn in the first epochs

    def __post_init__(self) -> None:
        allowed = {
            "follows": ("momentum", "student", "previous-iteration", "previous-epoch"),
            "balance": ("centre", "sinkhorn", "none"),
            "loss": ("cross-entropy", "mse"),
        }
        for name, words in allowed.items():
            if getattr(self, name) not in words:
                raise UsageError(f"dino: {name} must be one of {', '.join(words)}, found {getattr(self, name)!r}")
        object.__setattr__(self, "teacher", tuple(self.teacher))
        if self.student <= 0 or len(self.teacher) != 2 or min(self.teacher) <= 0:
            raise UsageError(f"dino: temperatures must be above 0, found student={self.student}, teacher={self.teacher}")
        if not (0 <= self.momentum <= 1 and 0 <= self.centre < 1):
            raise UsageError(f"dino: momentum must be in [0, 1], centre in [0, 1), found {self.momentum} and {self.centre}")

    def temperature(self, epoch: int) -> float:
        """The teacher's temperature in an epoch: a straight line over the first `teacher_epochs`."""
        first, last = self.teacher
        if epoch >= self.teacher_epochs:
            return last
        return first + (last - first) * epoch / max(self.teacher_epochs - 1, 1)

    def decay(self, fraction: float) -> float:
        """The teacher's momentum at a fraction of the run."""
        return cosine(fraction, start=self.momentum, end=1.0)


def cross_entropy(student: Sequence[Tensor], teacher: Sequence[Tensor]) -> Float[Tensor, ""]:
    """Eq. 3: the mean over all pairs of unlike views of H(teacher's view i, student's view j); the first views are the teacher's.

    `student`: log-probabilities (B, K) per view; `teacher`: probabilities (B, K) per global view.
    """
    total = torch.stack(list(student)).sum(0)
    pairs = len(teacher) * (len(student) - 1)
    return -sum(((q * (total - student[i])).sum(1).mean() for i, q in enumerate(teacher)), student[0].new_zeros(())) / pairs


class DINO(nn.Module):
    """Self-distillation: the student learns, on all views, what the teacher says about the global ones.

    `network` is the teacher's backbone, which is evaluated and saved; student, heads and centre are state of the training.
    """

    centre: Tensor

    def __init__(self, network: Encoder, size: HeadSize, method: Method) -> None:
        super().__init__()
        self.network, self.method = network, method
        width = width_of(network)
        self.student, self.student_head = copy.deepcopy(network), Head(width, size)
        self.network.requires_grad_(False)
        self.teacher_head = copy.deepcopy(self.student_head).requires_grad_(False)
        for module in self.network.modules():
            if isinstance(module, DropPath):  # stochastic depth is the student's
                module.rate = 0.0
        self.predictor = projection((width, size.hidden, width)) if method.predictor else None
        late = method.follows == "previous-iteration"
        self.held = copy.deepcopy(nn.ModuleList([network, self.teacher_head])) if late else None
        self.register_buffer("centre", torch.zeros(1, size.outputs))
        self._sum: Tensor | None = None
        self._count = 0
        self._last: dict[str, Tensor] = {}

    def phases(self, step: int) -> tuple[str, ...]:
        """One phase."""
        return ("all",)

    def parameters_of(self, phase: str) -> Iterable[nn.Parameter]:
        """The student's, with its head and predictor."""
        return (p for p in self.parameters() if p.requires_grad)

    def forward(self, batch: Batch, at: Progress) -> dict[str, Tensor]:
        """Algorithm 1 on the batch's views, of which at least two must be global."""
        views = views_of(batch)
        pixels = views + [view.pixels for view, role in zip(batch.views, batch.roles) if role != "global"]
        raw, vectors = self._answers(self.student, self.student_head, pixels, self.predictor)
        with torch.no_grad():
            said, _ = self._answers(self.network, self.teacher_head, views, None)
        if self.method.balance == "centre":
            self._remember(said)
        loss, probs, logs = self._compare(raw, said, at)
        self._last = {"probs": probs.detach(), "logs": logs.detach(), "vectors": vectors.detach(), "at": torch.tensor(at.epoch)}
        return {"dino": loss}

    def _compare(self, raw: list[Tensor], said: list[Tensor], at: Progress) -> tuple[Tensor, Tensor, Tensor]:
        """The loss, the teacher's probabilities for its first view and the student's log-probabilities for its second one."""
        temperature = self.method.temperature(at.epoch)
        logs = [(view.float() if view.dtype != torch.float64 else view).div(self.method.student).log_softmax(1) for view in raw]
        teacher = [self._sharpened(view, temperature) for view in said]
        if self.method.loss == "cross-entropy":
            return cross_entropy(logs, teacher), teacher[0], logs[-1]
        goals = [F.normalize(view - self.centre if self.method.balance == "centre" else view, dim=1) for view in said]
        units = [F.normalize(view, dim=1) for view in raw]
        pairs = [(q - p).square().sum(1).mean() for i, q in enumerate(goals) for j, p in enumerate(units) if i != j]
        return torch.stack(pairs).mean(), teacher[0], logs[-1]

    def _sharpened(self, logits: Tensor, temperature: float) -> Tensor:
        if self.method.balance == "sinkhorn":
            return sinkhorn(logits, epsilon=temperature)
        wide = logits if logits.dtype == torch.float64 else logits.float()
        return ((wide - self.centre if self.method.balance == "centre" else wide) / temperature).softmax(1)

    def _answers(
        self, encoder: nn.Module, head: nn.Module, views: list[Tensor], predictor: nn.Module | None
    ) -> tuple[list[Tensor], Tensor]:
        """Logits per view and the vectors of the first; views of one size go through the network together."""
        vectors = by_size(encoder, views)
        logits = head(vectors if predictor is None else predictor(vectors))
        return list(logits.chunk(len(views))), vectors[: len(views[0])]

    def _remember(self, said: list[Tensor]) -> None:
        rows = torch.cat(said)
        here = rows.sum(0, keepdim=True)
        self._sum = here if self._sum is None else self._sum + here
        self._count += len(rows)

    def before_update(self, at: Progress) -> None:
        """The last layer keeps still in the first epochs."""
        if at.epoch < self.method.frozen_epochs:
            for parameter in (self.student_head.prototypes, self.student_head.gain):
                if parameter is not None:
                    parameter.grad = None

    @torch.no_grad()
    def after_step(self, at: Progress) -> None:
        """The centre moves towards the mean of the step's outputs (eq. 4), over all micro-batches and processes; the teacher follows."""
        if self._sum is not None:
            count = all_reduce(self._sum.new_tensor(float(self._count)))
            mean = all_reduce(self._sum) / count
            self.centre.lerp_(mean.to(self.centre), 1 - self.method.centre)
            self._sum, self._count = None, 0
        pairs = ((self.network, self.student), (self.teacher_head, self.student_head))
        if self.method.follows == "previous-epoch" and not at.last_of_epoch:
            return
        if self.held is not None:
            for (teacher, student), held in zip(pairs, self.held):
                follow(teacher, held, 0.0)
                follow(held, student, 0.0)
            return
        decay = self.method.decay(at.fraction) if self.method.follows == "momentum" else 0.0
        for teacher, student in pairs:
            follow(teacher, student, decay)

    def compared(self) -> dict[str, nn.Module]:
        """What is validated beside the teacher."""
        return {"student": self.student}

    def figures(self) -> dict[str, float]:
        """Of the last batch: H = h + KL (section 5.3), information, spread of the student's vectors, and the teacher's temperature."""
        probs, logs = self._last["probs"], self._last["logs"]
        found = entropies(probs)
        crossed = all_reduce(-(probs * logs).sum(1).mean(), "mean")
        return {
            "entropy": float(found.each),
            "kl": float(crossed - found.each),
            "information": float(found.information),
            "spread": float(spread(self._last["vectors"])),
            "centre": float(self.centre.norm()),
            "temperature": self.method.temperature(int(self._last["at"])),
        }

    def alarm(self, figures: Mapping[str, float]) -> str | None:
        """Collapsed outputs or vectors (`losses.collapse`)."""
        return sentence(dict(figures), self.centre.shape[1])


def objective(network: Encoder, **options: Any) -> DINO:
    """DINO's objective; options are the fields of `Method` and `HeadSize`."""
    shape = {each.name for each in fields(HeadSize)}
    size = HeadSize(**{key: value for key, value in options.items() if key in shape})
    return DINO(network, size, Method(**{key: value for key, value in options.items() if key not in shape}))


# --- variants ----------------------------------------------------------------------------------------------------------

VARIANTS: dict[str, Config] = {
    "tiny": Config(Part("resnet/tiny", classes=0)),
    "tiny_vit": Config(Part("vit/tiny", classes=0)),
    "s16": Config(),
    "s8": Config(Part("vit/s8", classes=0)),
    "b16": Config(Part("vit/b16", classes=0)),
    "b8": Config(Part("vit/b8", classes=0)),
    "r50": Config(Part("resnet/50", classes=0)),
}
PARAMETERS: dict[str, int] = {}
OVERFIT = {
    "observable": "views",
    "figure": "kl",
    "samples": 8,
    "lr": 1e-3,
    "options": {"outputs": 64, "hidden": 64, "bottleneck": 32, "frozen_epochs": 0},
}
PREPARE = Prepare(resize="shortest", size=(256, 0), crop=(224, 224), interpolation="bicubic")  # the authors' evaluation

# --- weights -----------------------------------------------------------------------------------------------------------

_KEYS = r"((?:cls_token|pos_embed|(?:patch_embed|blocks|norm|conv1|bn1|layer\d)\..+))"
_HEADS = r"(?:module\.)?head\.(?:mlp|last_layer)\..+"
FORMATS: dict[str, Names] = {
    "dino": Names(rename(r"(?:module\.)?" + _KEYS, r"backbone.\1")),
    "dino_full": Names(drop(_HEADS), rename(r"(?:module\.)?backbone\." + _KEYS, r"backbone.\1")),
}
TRAINING = Names(  # the authors' full checkpoint, tables joined by dots: the whole state of the objective
    drop(r"(?:student|teacher)\.head\.last_layer\.weight_g"),  # ones, which no recipe of theirs with norm_last_layer changes
    rename(r"teacher\.backbone\.(.+)", r"network.backbone.\1"),
    rename(r"student\.backbone\.(.+)", r"student.backbone.\1"),
    rename(r"(student|teacher)\.head\.mlp\.(.+)", r"\1_head.mlp.\2"),
    rename(r"(student|teacher)\.head\.last_layer\.weight_v", r"\1_head.prototypes"),
    rename(r"dino_loss\.center", "centre"),
)
# variant, file, k-NN and linear top-1 on ImageNet: from the README of facebookresearch/dino
_FILES = (
    ("s16", "dino_deitsmall16_pretrain", 74.5, 77.0),
    ("s8", "dino_deitsmall8_pretrain", 78.3, 79.7),
    ("b16", "dino_vitbase16_pretrain", 76.1, 78.2),
    ("b8", "dino_vitbase8_pretrain", 77.4, 80.1),
    ("r50", "dino_resnet50_pretrain", 67.5, 75.3),
)


def _row(file: str, suffix: str, kind: str, neighbours: float, linear: float) -> Weights:
    return Weights(
        url=f"https://dl.fbaipublicfiles.com/dino/{file}/{file}{suffix}.pth",
        format=kind,
        license="Apache-2.0",
        source="https://github.com/facebookresearch/dino README.md",
        prepare=PREPARE,
        reports={"knn20": neighbours, "linear": linear},
    )


WEIGHTS: dict[str, Weights] = {
    **{f"{variant}:pretrained": _row(file, "", "dino", near, linear) for variant, file, near, linear in _FILES},
    **{f"{variant}:full": _row(file, "_full_checkpoint", "dino_full", near, linear) for variant, file, near, linear in _FILES},
}
ALIASES = {  # names of torch.hub
    "dino_vits16": "s16:pretrained",
    "dino_vits8": "s8:pretrained",
    "dino_vitb16": "b16:pretrained",
    "dino_vitb8": "b8:pretrained",
    "dino_resnet50": "r50:pretrained",
}

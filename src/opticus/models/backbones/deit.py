"""Training Data-Efficient Image Transformers & Distillation through Attention.

Touvron, Cord, Douze, Massa, Sablayrolles and Jégou, ICML 2021, arXiv 2012.12877 (DeiT).
Reference: https://github.com/facebookresearch/deit (Apache-2.0); same network in timm (Apache-2.0) and transformers (Apache-2.0).

*Differs*: training returns the mean of both heads beside the two heads themselves, the authors return the two heads alone; inputs of
another size than `size` get bicubically resized position embeddings. The teacher is no part of the network: `train(...,
teacher=..., distill="hard")` brings it (`losses.distillation`), and without a teacher the distillation token is the paper's second
class token, which learns the true label too (section 4, "distillation token").
*Map*: section 4, distillation token -> `DeiT.dist_token`; "classification with our approach: joint classifiers" -> `DeiTOut.logits`;
cosine of the tokens in every layer -> `DeiT.token_layers`; eq. 2 and 3 -> `losses.distillation`; table 1 -> `VARIANTS`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from opticus.losses.classify import CrossEntropy, ranked
from opticus.losses.supervised import Supervised
from opticus.models.backbones.vit import Block, Patches
from opticus.models.backbones.vit import Config as Encoder
from opticus.structures import Batch, CapabilityError, Embedding, Images, Prepare, Result, Task, UsageError, Weights
from opticus.weights.names import Names, join, keep, rename
from opticus.weights.positions import resize_positions

TASK: Task = "classify"
EXTENDS = "vit"


@dataclass(frozen=True)
class Config:
    """`distilled` adds the distillation token and its head; `classes=0` leaves the heads away."""

    size: int = 224
    patch: int = 16
    width: int = 768
    depth: int = 12
    heads: int = 12
    mlp: float = 4.0
    classes: int = 1000
    distilled: bool = False
    dropout: float = 0.0
    drop_path: float = 0.0
    channels: int = 3
    eps: float = 1e-6


# --- network -----------------------------------------------------------------------------------------------------------


class DeiTOut(NamedTuple):
    """Logits (B, K): the mean of both heads where there are two. Each head's own are filled while a distilled network trains."""

    logits: Tensor
    class_logits: Tensor | None = None
    distilled: Tensor | None = None


class DeiT(nn.Module):
    """The vision transformer with a second learned token that looks at the patches as the class token does, for a teacher's label.

    `forward` returns `DeiTOut`, or what `embed` returns of a network without heads.
    """

    def __init__(self, config: Config) -> None:
        super().__init__()
        if config.size % config.patch or config.width % config.heads:
            raise UsageError(
                f"deit: size {config.size} must be a multiple of patch {config.patch}, "
                f"and width {config.width} a multiple of heads {config.heads}"
            )
        self.config = config
        self.prepare = _prepare(config.size).with_channels(config.channels)
        self.strides = (config.patch,)
        self.widths = (config.width,)
        self.grid = config.size // config.patch
        self.prefix = 2 if config.distilled else 1
        self.patch_embed = Patches(config.channels, config.width, config.patch)
        self.cls_token = nn.Parameter(torch.empty(1, 1, config.width))
        self.dist_token = nn.Parameter(torch.empty(1, 1, config.width)) if config.distilled else None
        self.pos_embed = nn.Parameter(torch.empty(1, self.prefix + self.grid**2, config.width))
        block = Encoder(width=config.width, heads=config.heads, mlp=config.mlp, dropout=config.dropout, eps=config.eps)
        rates = [config.drop_path * i / max(config.depth - 1, 1) for i in range(config.depth)]
        self.blocks = nn.Sequential(*(Block(block, rate) for rate in rates))
        self.norm = nn.LayerNorm(config.width, config.eps)
        self.head = nn.Linear(config.width, config.classes) if config.classes else None
        self.head_dist = nn.Linear(config.width, config.classes) if config.classes and config.distilled else None
        self._initialise()

    def _initialise(self) -> None:
        for token in (self.cls_token, self.dist_token, self.pos_embed):
            if token is not None:
                nn.init.trunc_normal_(token, std=0.02)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)

    def embedded(self, pixels: Float[Tensor, "B C H W"]) -> tuple[Float[Tensor, "B N D"], tuple[int, int]]:
        """What enters the first block (class token, distillation token, patches; with positions) and the grid (rows, columns).

        Pixels are zero-padded right and bottom to whole patches; position embeddings follow the grid.
        """
        patch = self.config.patch
        right, bottom = -pixels.shape[3] % patch, -pixels.shape[2] % patch
        if right or bottom:
            pixels = F.pad(pixels, (0, right, 0, bottom))
        x = self.patch_embed(pixels)
        rows, columns = x.shape[2], x.shape[3]
        positions = self.pos_embed
        if (rows, columns) != (self.grid, self.grid):
            shape = (1, self.prefix + rows * columns, self.config.width)
            positions = resize_positions(positions, shape, self.prefix, (rows, columns))
        tokens = [self.cls_token] if self.dist_token is None else [self.cls_token, self.dist_token]
        parts = [token.expand(x.shape[0], -1, -1) for token in tokens]
        x = torch.cat([*parts, x.flatten(2).transpose(1, 2)], dim=1) + positions
        if self.config.dropout:
            x = F.dropout(x, self.config.dropout, self.training)
        return x, (rows, columns)

    def tokens(self, pixels: Float[Tensor, "B C H W"]) -> tuple[Float[Tensor, "B N D"], tuple[int, int]]:
        """The encoder's normalised output (class token, distillation token where there is one, patches) and the patch grid."""
        x, grid = self.embedded(pixels)
        return self.norm(self.blocks(x)), grid

    def token_layers(self, pixels: Float[Tensor, "B C H W"]) -> Float[Tensor, "L B 2 D"]:
        """Class and distillation token on their way, L = depth + 2: before the first block, after every block, and normalised.

        Raises CapabilityError for a network without a distillation token.
        """
        if self.dist_token is None:
            raise CapabilityError("deit: this network has no distillation token; create it with distilled=True")
        x = self.embedded(pixels)[0]
        found = [x[:, :2]]
        for block in self.blocks:
            x = block(x)
            found.append(x[:, :2])
        return torch.stack([*found, self.norm(x[:, :2])])

    def features(self, pixels: Float[Tensor, "B C H W"]) -> list[Tensor]:
        """One map of the normalised patch tokens, at the stride of the patches."""
        x, (rows, columns) = self.tokens(pixels)
        return [x[:, self.prefix :].transpose(1, 2).reshape(x.shape[0], self.config.width, rows, columns)]

    def embed(self, pixels: Float[Tensor, "B C H W"]) -> Float[Tensor, "B E"]:
        """What the heads classify: the class token (E = width), followed by the distillation token (E = 2 width) where there is one."""
        return self.tokens(pixels)[0][:, : self.prefix].flatten(1)

    def forward(self, pixels: Float[Tensor, "B C H W"], valid: Tensor | None = None) -> DeiTOut | Float[Tensor, "B E"]:
        x = self.tokens(pixels)[0][:, : self.prefix]
        if self.head is None:
            return x.flatten(1)
        first = self.head(x[:, 0])
        if self.head_dist is None:
            return DeiTOut(first)
        second = self.head_dist(x[:, 1])
        mean = (first + second) / 2
        return DeiTOut(mean, first, second) if self.training else DeiTOut(mean)

    def results(self, out: DeiTOut | Tensor, images: Images) -> list[Result]:
        """Ranked classes with probabilities of the joint logits; embeddings of a network without heads."""
        return ranked(out.logits) if isinstance(out, DeiTOut) else [Embedding(vector) for vector in out.detach()]


def _prepare(size: int) -> Prepare:
    """The authors' evaluation rule: the shorter side at 256/224 of the crop; small inputs are resized as they are."""
    if size < 64:
        return replace(PREPARE, resize="fixed", size=(size, size), crop=None)
    return replace(PREPARE, size=(size * 256 // 224, 0), crop=(size, size))


PREPARE = Prepare(resize="shortest", size=(256, 0), crop=(224, 224), interpolation="bicubic")
NETWORK = DeiT

# --- objective ---------------------------------------------------------------------------------------------------------


class Heads(nn.Module):
    """Cross-entropy with the true label: of each head at half weight while both are told apart, else of the logits there are."""

    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.cross_entropy = CrossEntropy(**options)

    def forward(self, out: DeiTOut | Tensor, batch: Batch) -> dict[str, Tensor]:
        """{"classify": loss}, and {"distilled": loss} for a network that trains two heads."""
        if not isinstance(out, DeiTOut):
            return self.cross_entropy(out, batch)
        if out.class_logits is None or out.distilled is None:
            return self.cross_entropy(out.logits, batch)
        heads = {"classify": out.class_logits, "distilled": out.distilled}
        return {name: self.cross_entropy(logits, batch)["classify"] / 2 for name, logits in heads.items()}


def objective(network: nn.Module, **options: Any) -> Supervised:
    """Training without a teacher; options of `losses.classify.CrossEntropy`. `losses.distillation.Distilled` adds a teacher."""
    return Supervised(network, Heads(**options))


# --- variants ----------------------------------------------------------------------------------------------------------

_TI, _S, _B = Config(width=192, heads=3), Config(width=384, heads=6), Config()
VARIANTS: dict[str, Config] = {
    "tiny": Config(size=32, patch=4, width=96, depth=4, heads=3, mlp=2.0, classes=10, distilled=True),
    "ti": _TI,
    "s": _S,
    "b": _B,
    "b_384": replace(_B, size=384),
    "ti_distilled": replace(_TI, distilled=True),
    "s_distilled": replace(_S, distilled=True),
    "b_distilled": replace(_B, distilled=True),
    "b_distilled_384": replace(_B, size=384, distilled=True),
}
PARAMETERS = {
    "ti": 5_717_416,
    "s": 22_050_664,
    "b": 86_567_656,
    "b_384": 86_859_496,
    "ti_distilled": 5_910_800,
    "s_distilled": 22_436_432,
    "b_distilled": 87_338_192,
    "b_distilled_384": 87_630_032,
}
HEAD = r"head(_dist)?\..*"  # what depends on the number of classes: fresh when fine-tuned on other ones
IGNORE = r"head(_dist)?\..+"  # a file's heads have no place in a network with classes=0
POSITIONS = {"pos_embed": (1, 2)}  # tokens before the patches: without and with the distillation token

# --- weights -----------------------------------------------------------------------------------------------------------

_DEIT = Names(keep(r"(cls_token|dist_token|pos_embed|(patch_embed|blocks|norm|head|head_dist)\..+)"))
_PLACE = r"(?:deit\.|vit\.)?"
_LAYER = _PLACE + r"encoder\.layer\.(\d+)\."
_HUGGING_FACE = Names(
    rename(_PLACE + r"embeddings\.cls_token", "cls_token"),
    rename(_PLACE + r"embeddings\.distillation_token", "dist_token"),
    rename(_PLACE + r"embeddings\.position_embeddings", "pos_embed"),
    rename(_PLACE + r"embeddings\.patch_embeddings\.projection\.(\w+)", r"patch_embed.proj.\1"),
    *(
        join(_LAYER + rf"attention\.attention\.{name}\.(\w+)", r"blocks.\1.attn.qkv.\2", i, 3)
        for i, name in enumerate(("query", "key", "value"))
    ),
    rename(_LAYER + r"attention\.output\.dense\.(\w+)", r"blocks.\1.attn.proj.\2"),
    rename(_LAYER + r"layernorm_before\.(\w+)", r"blocks.\1.norm1.\2"),
    rename(_LAYER + r"layernorm_after\.(\w+)", r"blocks.\1.norm2.\2"),
    rename(_LAYER + r"intermediate\.dense\.(\w+)", r"blocks.\1.mlp.fc1.\2"),
    rename(_LAYER + r"output\.dense\.(\w+)", r"blocks.\1.mlp.fc2.\2"),
    rename(_PLACE + r"layernorm\.(\w+)", r"norm.\1"),
    rename(r"(?:cls_)?classifier\.(\w+)", r"head.\1"),
    rename(r"distillation_classifier\.(\w+)", r"head_dist.\1"),
)
FORMATS: dict[str, Names] = {"deit": _DEIT, "timm": _DEIT, "huggingface": _HUGGING_FACE}

# variant, file, top-1, top-5 of the authors' evaluation: from the README of facebookresearch/deit
_FILES = (
    ("ti", "deit_tiny_patch16_224-a1311bcf", 72.202, 91.124),
    ("s", "deit_small_patch16_224-cd65a155", 79.854, 94.968),
    ("b", "deit_base_patch16_224-b5f2ef4d", 81.846, 95.594),
    ("b_384", "deit_base_patch16_384-8de9b5d1", 82.890, 96.222),
    ("ti_distilled", "deit_tiny_distilled_patch16_224-b40b3cf7", 74.476, 91.920),
    ("s_distilled", "deit_small_distilled_patch16_224-649709d9", 81.164, 95.376),
    ("b_distilled", "deit_base_distilled_patch16_224-df68dfff", 83.372, 96.482),
    ("b_distilled_384", "deit_base_distilled_patch16_384-d0272ac0", 85.224, 97.186),
)
_HUB = {
    "ti_distilled": "deit-tiny-distilled-patch16-224",
    "s_distilled": "deit-small-distilled-patch16-224",
    "b_distilled": "deit-base-distilled-patch16-224",
    "b_distilled_384": "deit-base-distilled-patch16-384",
}


def _theirs(variant: str, file: str, top1: float, top5: float) -> Weights:
    return Weights(
        url=f"https://dl.fbaipublicfiles.com/deit/{file}.pth",
        format="deit",
        license="Apache-2.0",
        source="https://github.com/facebookresearch/deit README_deit.md",
        prepare=_prepare(VARIANTS[variant].size),
        digest=file.rpartition("-")[2],
        labels="imagenet1k",
        reports={"imagenet1k acc@1": top1, "imagenet1k acc@5": top5},
    )


def _hub(variant: str, repository: str) -> Weights:
    return Weights(
        url=f"https://huggingface.co/facebook/{repository}/resolve/main/pytorch_model.bin",
        format="huggingface",
        license="Apache-2.0",
        source=f"https://huggingface.co/facebook/{repository}",
        prepare=_prepare(VARIANTS[variant].size),
        labels="imagenet1k",
    )


WEIGHTS: dict[str, Weights] = {
    **{f"{variant}:imagenet1k": _theirs(variant, file, top1, top5) for variant, file, top1, top5 in _FILES},
    **{f"{variant}:huggingface": _hub(variant, repository) for variant, repository in _HUB.items()},
}

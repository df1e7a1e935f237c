"""An Image is Worth 16x16 Words: Transformers for Image Recognition at Scale.

Dosovitskiy et al., ICLR 2021, arXiv 2010.11929; Ti and S are the sizes of DeiT (Touvron et al., ICML 2021, 2012.12877).
Reference: timm 1.0 (Apache-2.0), whose loader reads the authors' npz files; torchvision 0.29 (BSD-3-Clause); transformers 5
(Apache-2.0).

*Differs*: trained without the representation layer (tanh) unless `representation` asks for it, as all fine-tuned files; inputs of
another size than `size` get bicubically resized position embeddings (section 3.2 does so once, before fine-tuning).
*Map*: eq. 1 -> `ViT.patches`; eq. 2-3 -> `Block`; eq. 4 -> `ViT.forward`; appendix A -> `Attention`; table 1 -> `VARIANTS`.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from opticus.layers.drop import DropPath
from opticus.layers.mlp import FeedForward
from opticus.losses.classify import CrossEntropy, ranked
from opticus.losses.supervised import Supervised
from opticus.models.backbones.vit_weights import PARAMETERS as PARAMETERS
from opticus.models.backbones.vit_weights import PREPARE
from opticus.models.backbones.vit_weights import WEIGHTS as WEIGHTS
from opticus.structures import Embedding, Images, Prepare, Result, Task, UsageError
from opticus.weights.names import Names, chain, conv_kernel, drop, flatten, join, keep, rename, transpose
from opticus.weights.positions import resize_positions

TASK: Task = "classify"


@dataclass(frozen=True)
class Config:
    """`representation` is the width of the tanh layer before the head (0 = none); `classes=0` leaves the head away."""

    size: int = 224
    patch: int = 16
    width: int = 768
    depth: int = 12
    heads: int = 12
    mlp: float = 4.0
    classes: int = 1000
    representation: int = 0
    dropout: float = 0.0
    drop_path: float = 0.0
    channels: int = 3
    eps: float = 1e-6


# --- network -----------------------------------------------------------------------------------------------------------


class Patches(nn.Module):
    """Cuts the picture into patches and projects each linearly (E in eq. 1): a convolution whose stride is its kernel."""

    def __init__(self, channels: int, width: int, patch: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(channels, width, patch, patch)

    def forward(self, pixels: Tensor) -> Tensor:
        return self.proj(pixels)


class Attention(nn.Module):
    """Multi-head self-attention (appendix A): softmax(q k' / sqrt(D_h)) v, heads side by side, one projection."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.dropout = dropout
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Float[Tensor, "B N D"]) -> Float[Tensor, "B N D"]:
        batch, tokens, width = x.shape
        q, k, v = self.qkv(x).reshape(batch, tokens, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4).unbind(0)
        x = F.scaled_dot_product_attention(q, k, v)
        x = self.proj(x.transpose(1, 2).reshape(batch, tokens, width))
        return F.dropout(x, self.dropout, self.training) if self.dropout else x


class Block(nn.Module):
    """Attention (eq. 2) and MLP (eq. 3), each normalised before and added to its input."""

    def __init__(self, config: Config, drop_path: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(config.width, config.eps)
        self.attn = Attention(config.width, config.heads, config.dropout)
        self.norm2 = nn.LayerNorm(config.width, config.eps)
        self.mlp = FeedForward(config.width, int(config.width * config.mlp), drop=config.dropout)
        self.drop_path = DropPath(drop_path) if drop_path else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.drop_path(self.attn(self.norm1(x)))
        return x + self.drop_path(self.mlp(self.norm2(x)))


class ViT(nn.Module):
    """Patches and a class token with position embeddings, L encoder blocks, a linear head on the class token.

    `forward` returns logits (B, classes), or the class token (B, width) of a network without a head.
    """

    def __init__(self, config: Config) -> None:
        super().__init__()
        if config.size % config.patch or config.width % config.heads:
            raise UsageError(
                f"vit: size {config.size} must be a multiple of patch {config.patch}, "
                f"and width {config.width} a multiple of heads {config.heads}"
            )
        self.config = config
        self.prepare = _prepare(config.size).with_channels(config.channels)
        self.strides = (config.patch,)
        self.widths = (config.width,)
        self.grid = config.size // config.patch
        self.patch_embed = Patches(config.channels, config.width, config.patch)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, config.width))
        self.pos_embed = nn.Parameter(torch.empty(1, 1 + self.grid**2, config.width))
        rates = [config.drop_path * i / max(config.depth - 1, 1) for i in range(config.depth)]
        self.blocks = nn.Sequential(*(Block(config, rate) for rate in rates))
        self.norm = nn.LayerNorm(config.width, config.eps)
        self.pre_logits = _representation(config.width, config.representation) if config.representation else None
        self.head = nn.Linear(config.representation or config.width, config.classes) if config.classes else None
        self._initialise()

    def _initialise(self) -> None:
        nn.init.trunc_normal_(self.pos_embed, std=0.02)
        nn.init.normal_(self.cls_token, std=1e-6)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)
        fan_in = self.patch_embed.proj.weight[0].numel()
        nn.init.trunc_normal_(self.patch_embed.proj.weight, std=fan_in**-0.5)

    def patches(self, pixels: Float[Tensor, "B C H W"]) -> tuple[Float[Tensor, "B N D"], tuple[int, int]]:
        """The embedded patches with their positions (eq. 1 without the class token), and their grid (rows, columns).

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
            positions = resize_positions(positions, (1, 1 + rows * columns, self.config.width), 1, (rows, columns))
        return x.flatten(2).transpose(1, 2) + positions[:, 1:], (rows, columns)

    def through(self, patches: Float[Tensor, "B M D"]) -> Float[Tensor, "B 1+M D"]:
        """The encoder's normalised output for all patches or some of them, the class token first."""
        token = self.cls_token + self.pos_embed[:, :1]
        x = torch.cat([token.expand(patches.shape[0], -1, -1), patches], dim=1)
        if self.config.dropout:
            x = F.dropout(x, self.config.dropout, self.training)
        return self.norm(self.blocks(x))

    def tokens(self, pixels: Float[Tensor, "B C H W"]) -> tuple[Float[Tensor, "B N D"], tuple[int, int]]:
        """The encoder's normalised output (class token first) and the patch grid (rows, columns), as in `patches`."""
        x, grid = self.patches(pixels)
        return self.through(x), grid

    def features(self, pixels: Float[Tensor, "B C H W"]) -> list[Tensor]:
        """One map of the normalised patch tokens, at the stride of the patches."""
        x, (rows, columns) = self.tokens(pixels)
        return [x[:, 1:].transpose(1, 2).reshape(x.shape[0], self.config.width, rows, columns)]

    def embed(self, pixels: Float[Tensor, "B C H W"]) -> Float[Tensor, "B D"]:
        """The class token (through the representation layer, where there is one), which the head classifies."""
        x = self.tokens(pixels)[0][:, 0]
        return x if self.pre_logits is None else self.pre_logits(x)

    def forward(self, pixels: Float[Tensor, "B C H W"], valid: Tensor | None = None) -> Float[Tensor, "B K"]:
        x = self.embed(pixels)
        return x if self.head is None else self.head(x)

    def results(self, out: Float[Tensor, "B K"], images: Images) -> list[Result]:
        """Ranked classes with probabilities; embeddings of a network without a head."""
        return ranked(out) if self.head is not None else [Embedding(vector) for vector in out.detach()]


def _prepare(size: int) -> Prepare:
    """timm's evaluation rule: the centre 90 % at 224 px, the whole picture above; small inputs are resized as they are."""
    if size < 64:
        return replace(PREPARE, resize="fixed", size=(size, size), crop=None)
    return replace(PREPARE, size=(int(size / 0.9) if size <= 224 else size, 0), crop=(size, size))


def _representation(width: int, hidden: int) -> nn.Sequential:
    """The hidden layer of the pre-training head (section 3.1)."""
    return nn.Sequential(OrderedDict(fc=nn.Linear(width, hidden), act=nn.Tanh()))


NETWORK = ViT


# --- objective ---------------------------------------------------------------------------------------------------------


def objective(network: nn.Module, **options: Any) -> Supervised:
    """Cross-entropy on the softmax of the logits; options of `losses.classify.CrossEntropy`."""
    return Supervised(network, CrossEntropy(**options))


# --- variants ----------------------------------------------------------------------------------------------------------

_TI, _S, _B = Config(width=192, heads=3), Config(width=384, heads=6), Config()
_L, _H = Config(width=1024, depth=24, heads=16), Config(width=1280, depth=32, heads=16, patch=14)
_SIZES = {
    "ti16": _TI,
    "s8": replace(_S, patch=8),
    "s16": _S,
    "s32": replace(_S, patch=32),
    "b8": replace(_B, patch=8),
    "b16": _B,
    "b32": replace(_B, patch=32),
    "l16": _L,
    "l32": replace(_L, patch=32),
    "h14": _H,
}


def _each(names: str, suffix: str, **changes: Any) -> dict[str, Config]:
    return {f"{name}_{suffix}": replace(_SIZES[name], **changes) for name in names.split()}


VARIANTS: dict[str, Config] = {
    "tiny": Config(size=32, patch=4, width=96, depth=4, heads=3, mlp=2.0, classes=10),
    **_SIZES,
    **_each("ti16 s16 s32 b16 b32 l16 l32", "384", size=384),
    **_each("l16", "512", size=512),
    **_each("h14", "518", size=518),
    **_each("b16 b32", "in21k", classes=21843, representation=768),
    **_each("l16 l32", "in21k", classes=21843, representation=1024),
    **_each("h14", "in21k", classes=21843, representation=1280),
    **_each("s16 s8 b16 b8", "dino", classes=0),
    **_each("b16 l16 h14", "mae", classes=0),
}
IGNORE = r"head\..+"  # a file's head has no place in a network with classes=0
POSITIONS = {"pos_embed": 1}

# --- weights -----------------------------------------------------------------------------------------------------------

_TIMM = Names(keep(r"(cls_token|pos_embed|(patch_embed|blocks|norm|pre_logits|head)\..+)"))
_TORCHVISION = Names(
    rename(r"class_token", "cls_token"),
    rename(r"encoder\.pos_embedding", "pos_embed"),
    rename(r"conv_proj\.(\w+)", r"patch_embed.proj.\1"),
    rename(r"encoder\.layers\.encoder_layer_(\d+)\.ln_([12])\.(\w+)", r"blocks.\1.norm\2.\3"),
    rename(r"encoder\.layers\.encoder_layer_(\d+)\.self_attention\.in_proj_(\w+)", r"blocks.\1.attn.qkv.\2"),
    rename(r"encoder\.layers\.encoder_layer_(\d+)\.self_attention\.out_proj\.(\w+)", r"blocks.\1.attn.proj.\2"),
    rename(r"encoder\.layers\.encoder_layer_(\d+)\.mlp\.(?:0|linear_1)\.(\w+)", r"blocks.\1.mlp.fc1.\2"),
    rename(r"encoder\.layers\.encoder_layer_(\d+)\.mlp\.(?:3|linear_2)\.(\w+)", r"blocks.\1.mlp.fc2.\2"),
    rename(r"encoder\.ln\.(\w+)", r"norm.\1"),
    rename(r"heads\.pre_logits\.(\w+)", r"pre_logits.fc.\1"),
    rename(r"heads\.head\.(\w+)", r"head.\1"),
)
_BLOCK = r"(?:opt/target/)?Transformer/encoderblock_(\d+)/"
_HEADS = _BLOCK + r"MultiHeadDotProductAttention_1/"
_GOOGLE = Names(
    rename(r"(?:opt/target/)?cls", "cls_token"),
    rename(r"(?:opt/target/)?Transformer/posembed_input/pos_embedding", "pos_embed"),
    rename(r"(?:opt/target/)?embedding/kernel", "patch_embed.proj.weight", conv_kernel()),
    rename(r"(?:opt/target/)?embedding/bias", "patch_embed.proj.bias"),
    rename(_BLOCK + r"LayerNorm_0/scale", r"blocks.\1.norm1.weight"),
    rename(_BLOCK + r"LayerNorm_0/bias", r"blocks.\1.norm1.bias"),
    rename(_BLOCK + r"LayerNorm_2/scale", r"blocks.\1.norm2.weight"),
    rename(_BLOCK + r"LayerNorm_2/bias", r"blocks.\1.norm2.bias"),
    *(
        rule
        for i, name in enumerate(("query", "key", "value"))
        for rule in (
            join(_HEADS + name + "/kernel", r"blocks.\1.attn.qkv.weight", i, 3, op=chain(flatten(1), transpose())),
            join(_HEADS + name + "/bias", r"blocks.\1.attn.qkv.bias", i, 3, op=flatten()),
        )
    ),
    rename(_HEADS + r"out/kernel", r"blocks.\1.attn.proj.weight", chain(flatten(0, 1), transpose())),
    rename(_HEADS + r"out/bias", r"blocks.\1.attn.proj.bias"),
    rename(_BLOCK + r"MlpBlock_3/Dense_0/kernel", r"blocks.\1.mlp.fc1.weight", transpose()),
    rename(_BLOCK + r"MlpBlock_3/Dense_0/bias", r"blocks.\1.mlp.fc1.bias"),
    rename(_BLOCK + r"MlpBlock_3/Dense_1/kernel", r"blocks.\1.mlp.fc2.weight", transpose()),
    rename(_BLOCK + r"MlpBlock_3/Dense_1/bias", r"blocks.\1.mlp.fc2.bias"),
    rename(r"(?:opt/target/)?Transformer/encoder_norm/scale", "norm.weight"),
    rename(r"(?:opt/target/)?Transformer/encoder_norm/bias", "norm.bias"),
    rename(r"(?:opt/target/)?pre_logits/kernel", "pre_logits.fc.weight", transpose()),
    rename(r"(?:opt/target/)?pre_logits/bias", "pre_logits.fc.bias"),
    rename(r"(?:opt/target/)?head/kernel", "head.weight", transpose()),
    rename(r"(?:opt/target/)?head/bias", "head.bias"),
)
_PLACE = r"(?:vit\.)?"
_LAYER = _PLACE + r"encoder\.layer\.(\d+)\."
_HUGGING_FACE = Names(
    rename(_PLACE + r"embeddings\.cls_token", "cls_token"),
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
    rename(_PLACE + r"pooler\.dense\.(\w+)", r"pre_logits.fc.\1"),
    rename(r"classifier\.(\w+)", r"head.\1"),
)
_DINO = Names(
    drop(r"(?:module\.)?head\.(?:mlp|last_layer)\..+"),  # the projection head belongs to the method, not to the backbone
    rename(r"(?:module\.)?(?:backbone\.)?((?:cls_token|pos_embed|(?:patch_embed|blocks|norm)\..+))", r"\1"),
)
HEAD = r"head\..*"  # what depends on the number of classes: fresh when fine-tuned on other ones
FORMATS: dict[str, Names] = {
    "timm": _TIMM,
    "torchvision": _TORCHVISION,  # as in its published files
    "torchvision_mlp": _TORCHVISION,  # as its networks are saved since 0.13
    "google": _GOOGLE,
    "deit": _TIMM,
    "dino": _DINO,
    "huggingface": _HUGGING_FACE,
}

"""Swin Transformer: Hierarchical Vision Transformer using Shifted Windows.

Liu et al., ICCV 2021, arXiv 2103.14030.
Reference: github.com/microsoft/Swin-Transformer (MIT); torchvision 0.29 (BSD-3-Clause); timm 1.0 and transformers 5 (Apache-2.0).

*Differs*: any input size works: the picture, odd maps before merging and maps that are no multiple of the window are padded with
zeros at the right and bottom, and an axis that one window covers is not shifted (the authors' detection code and torchvision; the
classification code refuses other sizes than the one it was built for). Files for another window get their tables of relative
positions resampled bicubically (section 3.2 does so before fine-tuning at another window size).
*Map*: section 3.1 -> `Swin`, `PatchMerging`, `VARIANTS`; eq. 3 -> `Block`, `Stage`; figure 4 -> `Stage.mask`; eq. 4 -> `WindowAttention`.
"""

from __future__ import annotations

import re
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
from opticus.models.backbones.swin_weights import PARAMETERS as PARAMETERS
from opticus.models.backbones.swin_weights import PREPARE
from opticus.models.backbones.swin_weights import WEIGHTS as WEIGHTS
from opticus.structures import Embedding, Images, Prepare, Result, Task, UsageError
from opticus.weights.names import Names, drop, join, keep, rename

TASK: Task = "classify"
FORBIDDEN = -100.0  # added to the similarity of positions that are neighbours only because of the cyclic shift; the authors' value


@dataclass(frozen=True)
class Config:
    """`depths` and `heads` count blocks and attention heads of each stage; `window` is M, the side of a window in patches.

    `size` is the side of the pictures that `prepare` makes, no limit; `classes=0` leaves the head away.
    """

    size: int = 224
    patch: int = 4
    width: int = 96
    depths: tuple[int, ...] = (2, 2, 6, 2)
    heads: tuple[int, ...] = (3, 6, 12, 24)
    window: int = 7
    mlp: float = 4.0
    classes: int = 1000
    drop_path: float = 0.0
    channels: int = 3


# --- network -----------------------------------------------------------------------------------------------------------


class Patches(nn.Module):
    """Splits the picture into patches, embeds each linearly and normalises: (B, C, H, W) -> (B, H / patch, W / patch, width)."""

    def __init__(self, channels: int, width: int, patch: int) -> None:
        super().__init__()
        self.patch = patch
        self.proj = nn.Conv2d(channels, width, patch, patch)
        self.norm = nn.LayerNorm(width)

    def forward(self, pixels: Float[Tensor, "B C H W"]) -> Float[Tensor, "B h w D"]:
        right, bottom = -pixels.shape[3] % self.patch, -pixels.shape[2] % self.patch
        if right or bottom:
            pixels = F.pad(pixels, (0, right, 0, bottom))
        return self.norm(self.proj(pixels).permute(0, 2, 3, 1))


def windows_of(x: Float[Tensor, "B H W C"], window: int) -> Float[Tensor, "B n N C"]:
    """Cuts maps whose sides are multiples of `window` into n windows of N = window^2 positions, row by row."""
    batch, height, width, channels = x.shape
    x = x.reshape(batch, height // window, window, width // window, window, channels)
    return x.transpose(2, 3).reshape(batch, -1, window * window, channels)


def map_of(x: Float[Tensor, "B n N C"], window: int, height: int, width: int) -> Float[Tensor, "B H W C"]:
    """The inverse of `windows_of`."""
    batch, channels = x.shape[0], x.shape[-1]
    x = x.reshape(batch, height // window, width // window, window, window, channels)
    return x.transpose(2, 3).reshape(batch, height, width, channels)


class WindowAttention(nn.Module):
    """Self-attention within windows, eq. 4: softmax(q k' / sqrt(d) + B) v with a learned bias B for every relative position."""

    def __init__(self, width: int, heads: int, window: int) -> None:
        super().__init__()
        self.heads, self.window = heads, window
        self.relative_position_bias_table = nn.Parameter(torch.empty((2 * window - 1) ** 2, heads))
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Float[Tensor, "B n N C"], mask: Float[Tensor, "n 1 N N"] | None = None) -> Float[Tensor, "B n N C"]:
        batch, windows, area, width = x.shape
        qkv = self.qkv(x).reshape(batch * windows, area, 3, self.heads, width // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        bias = self.bias()
        if mask is not None:
            bias = (bias + mask).expand(batch, -1, -1, -1, -1).reshape(-1, self.heads, area, area)
        x = F.scaled_dot_product_attention(q, k, v, attn_mask=bias)
        return self.proj(x.transpose(1, 2).reshape(batch, windows, area, width))

    def bias(self) -> Float[Tensor, "1 h N N"]:
        """B of eq. 4 for every query and key of a window: entry (y - v + M - 1, x - u + M - 1) of the (2M - 1)^2 table."""
        side = 2 * self.window - 1
        table = self.relative_position_bias_table.reshape(side, side, self.heads)
        # as views: entry (y + b, x + d) at [y, x, head, b, d], where b = M - 1 - v and d = M - 1 - u
        near = table.unfold(0, self.window, 1).unfold(1, self.window, 1)
        return near.flip(3, 4).permute(2, 0, 1, 3, 4).reshape(1, self.heads, self.window**2, self.window**2)


class Block(nn.Module):
    """Window attention and MLP, each normalised before and added to its input (eq. 3); odd blocks get a `shift` and its mask."""

    def __init__(self, config: Config, width: int, heads: int, drop_path: float) -> None:
        super().__init__()
        self.window = config.window
        self.norm1 = nn.LayerNorm(width)
        self.attn = WindowAttention(width, heads, config.window)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = FeedForward(width, int(width * config.mlp))
        self.drop_path = DropPath(drop_path) if drop_path else nn.Identity()

    def forward(self, x: Float[Tensor, "B H W C"], shift: tuple[int, int] = (0, 0), mask: Tensor | None = None) -> Tensor:
        x = x + self.drop_path(self.attend(self.norm1(x), shift, mask))
        return x + self.drop_path(self.mlp(self.norm2(x)))

    def attend(self, x: Tensor, shift: tuple[int, int], mask: Tensor | None) -> Tensor:
        """Attention within the windows of the map, cyclically shifted to the upper left by `shift` (rows, columns), and back."""
        height, width = x.shape[1:3]
        right, bottom = -width % self.window, -height % self.window
        if right or bottom:
            x = F.pad(x, (0, 0, 0, right, 0, bottom))
        shifted = any(shift)
        if shifted:
            x = x.roll((-shift[0], -shift[1]), (1, 2))
        x = map_of(self.attn(windows_of(x, self.window), mask), self.window, height + bottom, width + right)
        if shifted:
            x = x.roll(shift, (1, 2))
        return x[:, :height, :width] if right or bottom else x


class PatchMerging(nn.Module):
    """Concatenates 2x2 neighbours and projects 4 C channels to 2 C; odd maps get a row or column of zeros."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(4 * width)
        self.reduction = nn.Linear(4 * width, 2 * width, bias=False)

    def forward(self, x: Float[Tensor, "B H W C"]) -> Float[Tensor, "B h w D"]:
        batch, height, width, channels = x.shape
        if height % 2 or width % 2:
            x = F.pad(x, (0, 0, 0, width % 2, 0, height % 2))
        # the order of the published weights: upper left, lower left, upper right, lower right
        x = x.reshape(batch, -(-height // 2), 2, -(-width // 2), 2, channels).permute(0, 1, 3, 4, 2, 5).flatten(3)
        return self.reduction(self.norm(x))


class Stage(nn.Module):
    """Blocks with regular and shifted windows in turn, then patch merging except in the last stage.

    `forward` returns the stage's map and the next stage's input (the same in the last stage).
    """

    def __init__(self, config: Config, index: int, drop_paths: list[float]) -> None:
        super().__init__()
        width = config.width * 2**index
        self.window = config.window
        self.blocks = nn.ModuleList(Block(config, width, config.heads[index], rate) for rate in drop_paths)
        self.downsample = PatchMerging(width) if index + 1 < len(config.depths) else None

    def forward(self, x: Float[Tensor, "B H W C"]) -> tuple[Tensor, Tensor]:
        height, width = (side + -side % self.window for side in x.shape[1:3])
        shift = (self.window // 2 if height > self.window else 0, self.window // 2 if width > self.window else 0)
        mask = self.mask(x, (height, width), shift) if any(shift) and len(self.blocks) > 1 else None
        for i, block in enumerate(self.blocks):
            x = block(x, shift, mask) if i % 2 else block(x)
        return x, x if self.downsample is None else self.downsample(x)

    def mask(self, x: Tensor, size: tuple[int, int], shift: tuple[int, int]) -> Float[Tensor, "n 1 N N"]:
        """Zero between positions of one region of the shifted map, FORBIDDEN between regions that the shift made neighbours."""
        # what came around the border: the last `shift` rows and columns
        rows, columns = (
            (torch.arange(side, device=x.device) >= side - by if by else torch.zeros(side, dtype=torch.bool, device=x.device))
            for side, by in zip(size, shift)
        )
        region = (2 * rows[:, None] + columns[None, :])[None, :, :, None]
        region = windows_of(region, self.window)[0, :, :, 0]
        apart = region[:, None, :, None] != region[:, None, None, :]
        return torch.zeros(apart.shape, dtype=x.dtype, device=x.device).masked_fill(apart, FORBIDDEN)


class Swin(nn.Module):
    """Figure 3: embedded patches, stages that halve the map and double the width, a normalised average, a linear head.

    `forward` returns logits (B, classes), or the average (B, widths[-1]) of a network without a head.
    """

    def __init__(self, config: Config) -> None:
        super().__init__()
        _check(config)
        self.config = config
        self.prepare = _prepare(config.size).with_channels(config.channels)
        self.strides = tuple(config.patch * 2**i for i in range(len(config.depths)))
        self.widths = tuple(config.width * 2**i for i in range(len(config.depths)))
        self.patch_embed = Patches(config.channels, config.width, config.patch)
        total, rates = sum(config.depths), iter(range(sum(config.depths)))
        self.layers = nn.ModuleList(
            Stage(config, i, [config.drop_path * next(rates) / max(total - 1, 1) for _ in range(depth)])
            for i, depth in enumerate(config.depths)
        )
        self.norm = nn.LayerNorm(self.widths[-1])
        self.head = nn.Linear(self.widths[-1], config.classes) if config.classes else None
        for name, parameter in self.named_parameters():
            if parameter.ndim == 2:  # matrices and tables of relative positions
                nn.init.trunc_normal_(parameter, std=0.02)
            elif name.endswith(".bias") and not name.startswith("patch_embed.proj"):
                nn.init.zeros_(parameter)

    def maps(self, pixels: Float[Tensor, "B C H W"]) -> list[Float[Tensor, "B h w D"]]:
        """The output of every stage, channels last."""
        x = self.patch_embed(pixels)
        found: list[Tensor] = []
        for stage in self.layers:
            here, x = stage(x)
            found.append(here)
        return found

    def features(self, pixels: Float[Tensor, "B C H W"]) -> list[Tensor]:
        """The output of every stage, fine to coarse, before it is merged or normalised: (B, widths[i], H_i, W_i)."""
        return [x.permute(0, 3, 1, 2) for x in self.maps(pixels)]

    def embed(self, pixels: Float[Tensor, "B C H W"]) -> Float[Tensor, "B D"]:
        """The average of the last stage's normalised map, which the head classifies."""
        return self.norm(self.maps(pixels)[-1]).mean((1, 2))

    def forward(self, pixels: Float[Tensor, "B C H W"], valid: Tensor | None = None) -> Float[Tensor, "B K"]:
        x = self.embed(pixels)
        return x if self.head is None else self.head(x)

    def results(self, out: Float[Tensor, "B K"], images: Images) -> list[Result]:
        """Ranked classes with probabilities; embeddings of a network without a head."""
        return ranked(out) if self.head is not None else [Embedding(vector) for vector in out.detach()]


def _check(config: Config) -> None:
    if len(config.depths) != len(config.heads):
        raise UsageError(f"swin: depths {config.depths} and heads {config.heads} must have one number for every stage")
    for i, heads in enumerate(config.heads):
        if (config.width * 2**i) % heads:
            raise UsageError(f"swin: the width {config.width * 2**i} of stage {i + 1} must be a multiple of its {heads} heads")


def _prepare(size: int) -> Prepare:
    """The authors' evaluation rule: the centre of 256/224 of the size at 224 px, the whole picture squeezed above and below."""
    return PREPARE if size == 224 else replace(PREPARE, resize="fixed", size=(size, size), crop=None)


NETWORK = Swin


# --- objective ---------------------------------------------------------------------------------------------------------


def objective(network: nn.Module, **options: Any) -> Supervised:
    """Cross-entropy on the softmax of the logits; options of `losses.classify.CrossEntropy`."""
    return Supervised(network, CrossEntropy(**options))


# --- variants ----------------------------------------------------------------------------------------------------------

_T = Config()
_S = Config(depths=(2, 2, 18, 2))
_B = Config(width=128, depths=(2, 2, 18, 2), heads=(4, 8, 16, 32))
_L = Config(width=192, depths=(2, 2, 18, 2), heads=(6, 12, 24, 48))
VARIANTS: dict[str, Config] = {
    "tiny": Config(size=32, width=64, depths=(2, 4), heads=(2, 4), window=4, mlp=2.0, classes=10),
    "t": _T,
    "s": _S,
    "b": _B,
    "l": _L,
    "b_384": replace(_B, size=384, window=12),
    "l_384": replace(_L, size=384, window=12),
}

# --- weights: this file's names are the authors' ---------------------------------------------------------------------------

IGNORE = r"head\..+"  # a file's head has no place in a network with classes=0
HEAD = r"head\..*"  # what depends on the number of classes: fresh when fine-tuned on other ones
POSITIONS = {  # tables of relative positions, which have no token in front
    f"layers.{i}.blocks.{j}.attn.relative_position_bias_table": 0 for i, depth in enumerate(_L.depths) for j in range(depth)
}
_CONSTANTS = r".*\.(?:relative_position_index|attn_mask)"  # follow from the window and the map; some files store them


def _merged_before(match: re.Match[str]) -> str:
    """timm merges at the beginning of a stage: layers.1.downsample is what others call layers.0.downsample."""
    return f"layers.{int(match[1]) - 1}.downsample.{match[2]}"


def _of_stage(match: re.Match[str]) -> str:
    """features.1.0.norm1.weight -> layers.0.blocks.0.norm1.weight; torchvision numbers stages 1, 3, 5, 7 and mergings 2, 4, 6."""
    return f"layers.{(int(match[1]) - 1) // 2}.blocks.{match[2]}.{match[3]}"


def _of_merging(match: re.Match[str]) -> str:
    return f"layers.{int(match[1]) // 2 - 1}.downsample.{match[2]}"


def _of_mlp(match: re.Match[str]) -> str:
    """mlp.0 and mlp.3 (linear, GELU, dropout, linear) -> fc1 and fc2."""
    return f"layers.{(int(match[1]) - 1) // 2}.blocks.{match[2]}.mlp.fc{1 if match[3] == '0' else 2}.{match[4]}"


_PLACE = r"(?:swin\.)?"
_LAYER = _PLACE + r"encoder\.layers\.(\d+)\.blocks\.(\d+)\."
_HUB = Names(
    drop(_CONSTANTS),
    rename(_PLACE + r"embeddings\.patch_embeddings\.projection\.(\w+)", r"patch_embed.proj.\1"),
    rename(_PLACE + r"embeddings\.norm\.(\w+)", r"patch_embed.norm.\1"),
    *(
        join(_LAYER + rf"attention\.self\.{name}\.(\w+)", r"layers.\1.blocks.\2.attn.qkv.\3", i, 3)
        for i, name in enumerate(("query", "key", "value"))
    ),
    rename(_LAYER + r"attention\.self\.(relative_position_bias_table)", r"layers.\1.blocks.\2.attn.\3"),
    rename(_LAYER + r"attention\.output\.dense\.(\w+)", r"layers.\1.blocks.\2.attn.proj.\3"),
    rename(_LAYER + r"layernorm_before\.(\w+)", r"layers.\1.blocks.\2.norm1.\3"),
    rename(_LAYER + r"layernorm_after\.(\w+)", r"layers.\1.blocks.\2.norm2.\3"),
    rename(_LAYER + r"intermediate\.dense\.(\w+)", r"layers.\1.blocks.\2.mlp.fc1.\3"),
    rename(_LAYER + r"output\.dense\.(\w+)", r"layers.\1.blocks.\2.mlp.fc2.\3"),
    rename(_PLACE + r"encoder\.layers\.(\d+)\.downsample\.(.+)", r"layers.\1.downsample.\2"),
    rename(_PLACE + r"layernorm\.(\w+)", r"norm.\1"),
    rename(r"classifier\.(\w+)", r"head.\1"),
)
FORMATS: dict[str, Names] = {
    "microsoft": Names(drop(_CONSTANTS), keep(r"(patch_embed|layers|norm|head)\..+")),
    "timm": Names(
        drop(_CONSTANTS),
        rename(r"layers\.(\d+)\.downsample\.(.+)", _merged_before),
        rename(r"head\.fc\.(\w+)", r"head.\1"),
        keep(r"(patch_embed|layers|norm)\..+"),
    ),
    "torchvision": Names(
        drop(_CONSTANTS),
        rename(r"features\.0\.0\.(\w+)", r"patch_embed.proj.\1"),
        rename(r"features\.0\.2\.(\w+)", r"patch_embed.norm.\1"),
        rename(r"features\.(\d+)\.(\d+)\.mlp\.([03])\.(\w+)", _of_mlp),
        rename(r"features\.(\d+)\.(\d+)\.((?:norm1|norm2|attn)\..+)", _of_stage),
        rename(r"features\.(\d+)\.((?:norm|reduction)\..+)", _of_merging),
        keep(r"(norm|head)\.\w+"),
    ),
    "huggingface": _HUB,  # as transformers 5 writes them
    "huggingface_4": _HUB,  # as transformers 4 wrote the files on the hub
}

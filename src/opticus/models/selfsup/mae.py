"""Masked Autoencoders Are Scalable Vision Learners.

He, Chen, Xie, Li, Dollár and Girshick, CVPR 2022, arXiv 2111.06377 (MAE).
Reference: transformers 5 (Apache-2.0), whose former conversion script reads the authors' files; timm 1.0 (Apache-2.0) for the encoder.

*Differs*: visible patches keep their order in place of a random one, which attention does not see; norms have the authors' eps 1e-6
(transformers: 1e-12). The target is the plain pixels as in the published files with a decoder, and `normalise=True` the paper's
better one; then a patch is shown with its true mean and deviation. `embed` is the class token (appendix A.1), `pool="mean"` the mean
of the patch tokens.
*Map*: section 3, masking -> `matching.masking`; encoder -> `MAE.encode`; decoder -> `MAE.decode`; reconstruction target ->
`MAE.target`, `Reconstruction`; appendix A.1 (sine-cosine positions) -> `grid_positions`; figure 2 -> `MAE.reconstruct`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from opticus.losses.supervised import widened
from opticus.matching.masking import Mask, RandomMask
from opticus.models.backbones.vit import Block
from opticus.models.backbones.vit import Config as Encoder
from opticus.structures import (
    Batch,
    CapabilityError,
    Embedding,
    Images,
    Part,
    Patchwise,
    Prepare,
    Progress,
    Result,
    Task,
    UsageError,
    Weights,
)
from opticus.weights.names import Names, join, keep, rename
from opticus.weights.positions import resize_positions

TASK: Task = "embed"
EXTENDS = "vit"
_B16 = Part("vit/b16", classes=0)


@dataclass(frozen=True)
class Config:
    """The encoder is a part; `width`, `depth`, `heads` and `mlp` are the decoder's.

    `normalise`: a patch is predicted as its pixels less their mean and divided by their deviation. `pool`: what `embed` is.
    """

    backbone: Part = _B16
    width: int = 512
    depth: int = 8
    heads: int = 16
    mlp: float = 4.0
    normalise: bool = False
    pool: Literal["token", "mean"] = "token"
    eps: float = 1e-6


# --- network -----------------------------------------------------------------------------------------------------------


class MAEOut(NamedTuple):
    """`embedding` (B, D); where a mask was given, the `prediction` (B, N, P * P * C) of every patch in the target's units."""

    embedding: Tensor
    prediction: Tensor | None = None


def grid_positions(width: int, rows: int, columns: int) -> Float[Tensor, "N D"]:
    """Sines and cosines of the column, then of the row: a quarter of `width` frequencies 10000^(-i / (width / 4)) each."""
    if width % 4:
        raise UsageError(f"mae: sine-cosine positions need a width that is a multiple of 4, found {width}")
    rates = 10000.0 ** -(torch.arange(width // 4, dtype=torch.float64) / (width // 4))
    y, x = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
    waves = [wave for place in (x, y) for angle in [place.reshape(-1, 1) * rates] for wave in (angle.sin(), angle.cos())]
    return torch.cat(waves, 1)


class MAE(nn.Module):
    """An encoder that sees the visible patches alone, and a lighter decoder that sees them again between mask tokens (figure 1).

    `forward(pixels)` embeds whole pictures; `forward(pixels, mask=hidden)` also predicts every patch from the visible ones.
    """

    def __init__(self, config: Config, backbone: nn.Module) -> None:
        super().__init__()
        if not isinstance(backbone, Patchwise):
            raise UsageError(
                f"mae: the backbone must work on patches (a vit), {config.backbone.name} has no patches() and through()"
            )
        if config.width % config.heads:
            raise UsageError(f"mae: the decoder's width {config.width} must be a multiple of its heads {config.heads}")
        self.config = config
        self.backbone = backbone
        self.strides, self.widths = backbone.strides, backbone.widths
        self.patch, width = backbone.strides[0], backbone.widths[0]
        self.prepare: Prepare = _prepare(backbone)
        self.channels = self.prepare.channels
        self.decoder_embed = nn.Linear(width, config.width)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, config.width))
        self.decoder_pos_embed = nn.Parameter(torch.zeros(1, 1 + backbone.grid**2, config.width), requires_grad=False)
        block = Encoder(width=config.width, heads=config.heads, mlp=config.mlp, eps=config.eps)
        self.decoder_blocks = nn.Sequential(*(Block(block, 0.0) for _ in range(config.depth)))
        self.decoder_norm = nn.LayerNorm(config.width, config.eps)
        self.decoder_pred = nn.Linear(config.width, self.patch**2 * self.channels)
        self._initialise(backbone)

    @torch.no_grad()
    def _initialise(self, backbone: Patchwise) -> None:
        """Xavier's uniform for every matrix, fixed positions for both sides (appendix A.1)."""
        for module in self.modules():
            if isinstance(module, (nn.Linear, nn.Conv2d)):
                nn.init.xavier_uniform_(module.weight.flatten(1))
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        for token in (backbone.cls_token, self.mask_token):
            nn.init.normal_(token, std=0.02)
        for table in (backbone.pos_embed, self.decoder_pos_embed):
            table.zero_()
            table[0, 1:] = grid_positions(table.shape[2], backbone.grid, backbone.grid).to(table)
        backbone.pos_embed.requires_grad_(False)

    def patches_of(self, pixels: Float[Tensor, "B C H W"]) -> Float[Tensor, "B N P"]:
        """Pixels of every patch, row by row of the grid; within a patch by row, column, channel. UsageError for broken patches."""
        rows, columns = self.grid_of(pixels)
        cut = pixels.reshape(len(pixels), self.channels, rows, self.patch, columns, self.patch)
        return cut.permute(0, 2, 4, 3, 5, 1).flatten(3).flatten(1, 2)

    def picture_of(self, patches: Float[Tensor, "B N P"], rows: int, columns: int) -> Float[Tensor, "B C H W"]:
        """The inverse of `patches_of`."""
        cut = patches.reshape(len(patches), rows, columns, self.patch, self.patch, self.channels)
        return cut.permute(0, 5, 1, 3, 2, 4).flatten(4).flatten(2, 3)

    def grid_of(self, pixels: Tensor) -> tuple[int, int]:
        """(rows, columns) of patches; UsageError for a picture that is not made of whole ones or has other channels."""
        channels, height, width = pixels.shape[1:]
        if channels != self.channels or height % self.patch or width % self.patch:
            raise UsageError(
                f"mae: a picture must have {self.channels} channels and sides that are multiples of the patch {self.patch}, "
                f"found {channels} channels and {height}x{width} pixels"
            )
        return height // self.patch, width // self.patch

    def target(self, pixels: Float[Tensor, "B C H W"]) -> Float[Tensor, "B N P"]:
        """What the decoder is to predict: the patches' pixels, normalised patch by patch where the Config says so (section 3)."""
        patches = self.patches_of(pixels)
        if not self.config.normalise:
            return patches
        mean, deviation = _statistics(patches)
        return (patches - mean) / deviation

    def encode(self, pixels: Float[Tensor, "B C H W"], hidden: Bool[Tensor, "B N"]) -> tuple[Float[Tensor, "B 1+M D"], Tensor]:
        """Tokens of the M visible patches after the class token, and the order (B, N) of all patches, visible ones first."""
        count = self._visible(hidden, self.grid_of(pixels))
        order = hidden.to(torch.uint8).argsort(dim=1, stable=True)
        patches = self.backbone.patches(pixels)[0]
        return self.backbone.through(_taken(patches, order[:, :count])), order

    def decode(self, latent: Float[Tensor, "B 1+M D"], order: Tensor, grid: tuple[int, int]) -> Float[Tensor, "B N P"]:
        """The prediction for every patch, from the visible ones' tokens and a mask token at every other place."""
        x = self.decoder_embed(latent)
        masks = self.mask_token.to(x.dtype).expand(len(x), order.shape[1] + 1 - x.shape[1], -1)
        x = torch.cat([x[:, :1], _taken(torch.cat([x[:, 1:], masks], 1), order.argsort(1))], 1)
        positions = self.decoder_pos_embed
        if grid != (self.backbone.grid, self.backbone.grid):
            positions = resize_positions(positions, (1, 1 + order.shape[1], self.config.width), 1, grid)
        return self.decoder_pred(self.decoder_norm(self.decoder_blocks(x + positions)))[:, 1:]

    def forward(
        self,
        pixels: Float[Tensor, "B C H W"],
        valid: Tensor | None = None,
        mask: Tensor | Sequence[Tensor] | None = None,
    ) -> MAEOut:
        """`mask` (B, N): True (or not 0) where a patch is hidden; every picture has the same number of them."""
        if mask is None:
            return MAEOut(self.embed(pixels))
        hidden = (mask if isinstance(mask, Tensor) else torch.stack(tuple(mask))).to(pixels.device).bool()
        latent, order = self.encode(pixels, hidden)
        return MAEOut(self._pooled(latent), self.decode(latent, order, self.grid_of(pixels)))

    def embed(self, pixels: Float[Tensor, "B C H W"]) -> Float[Tensor, "B D"]:
        """The class token or the mean patch token of the whole picture, as `pool` says."""
        return self._pooled(self.backbone.through(self.backbone.patches(pixels)[0]))

    def features(self, pixels: Float[Tensor, "B C H W"]) -> list[Tensor]:
        """The encoder's map."""
        return self.backbone.features(pixels)

    @torch.no_grad()
    def reconstruct(self, pixels: Float[Tensor, "B C H W"], mask: Bool[Tensor, "B N"]) -> Float[Tensor, "B C H W"]:
        """Network pixels as predicted for every patch, the visible ones too (figure 2), which no loss has asked for.

        With `normalise`, a patch is predicted up to its mean and contrast, and these are taken from the picture.
        """
        prediction = self(pixels, mask=mask).prediction
        if self.config.normalise:
            mean, deviation = _statistics(self.patches_of(pixels))
            prediction = prediction * deviation + mean
        return self.picture_of(prediction, *self.grid_of(pixels))

    def errors(self, prediction: Float[Tensor, "B N P"], pixels: Tensor) -> Float[Tensor, "B N"]:
        """Mean squared error of every patch, in the target's units."""
        return (prediction - self.target(pixels).to(prediction.dtype)).square().mean(2)

    def results(self, out: MAEOut, images: Images) -> list[Result]:
        """One embedding per picture."""
        return [Embedding(vector) for vector in out.embedding.detach()]

    def _pooled(self, tokens: Tensor) -> Tensor:
        return tokens[:, 0] if self.config.pool == "token" else tokens[:, 1:].mean(1)

    def _visible(self, hidden: Tensor, grid: tuple[int, int]) -> int:
        """The number of visible patches of every picture; UsageError for a mask of another shape or with unlike or no such number."""
        patches = grid[0] * grid[1]
        if hidden.ndim != 2 or hidden.shape[1] != patches:
            raise UsageError(f"mae: a mask must have {patches} places for {grid[0]}x{grid[1]} patches, found {tuple(hidden.shape)}")
        low, high = (int(n) for n in (~hidden).sum(1).aminmax())
        if low != high:
            raise UsageError(f"mae: every picture of a batch must have the same number of visible patches, found {low} and {high}")
        if not 0 < low < patches:
            raise UsageError(f"mae: a mask must hide some patches and keep some, found {low} of {patches} visible")
        return low


def _statistics(patches: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and deviation (unbiased variance + 1e-6) of every patch, (B, N, 1)."""
    return patches.mean(2, keepdim=True), (patches.var(2, keepdim=True) + 1e-6).sqrt()


def _taken(tokens: Float[Tensor, "B N D"], index: Tensor) -> Tensor:
    return tokens.gather(1, index[:, :, None].expand(-1, -1, tokens.shape[2]))


def _prepare(backbone: Any) -> Prepare:
    """The pictures of the encoder, with the mean and deviation of ImageNet."""
    rule: Prepare = backbone.prepare
    return replace(rule, mean=PREPARE.mean, std=PREPARE.std, channels=3).with_channels(rule.channels)


NETWORK = MAE


# --- objective ---------------------------------------------------------------------------------------------------------


class Reconstruction(nn.Module):
    """Mean squared error on the hidden patches, averaged over all of them in the batch (section 3, "Reconstruction target")."""

    def __init__(self, network: MAE, mask: Mask) -> None:
        super().__init__()
        self.network = network
        self.mask = mask

    def phases(self, step: int) -> tuple[str, ...]:
        """("all",) at every step."""
        return ("all",)

    def parameters_of(self, phase: str) -> Iterable[nn.Parameter]:
        """Every parameter but the fixed positions."""
        return (parameter for parameter in self.parameters() if parameter.requires_grad)

    def forward(self, batch: Batch, at: Progress) -> dict[str, Tensor]:
        """The term "reconstruction". CapabilityError for a batch without pictures, UsageError for padded pictures or a bad mask."""
        if batch.images is None:
            raise CapabilityError(f"mae is trained on pictures, but batch {batch.ids[:1]} has none")
        pixels, valid = batch.images.pixels, batch.images.valid
        if valid is not None and not bool(valid.all()):
            raise UsageError("mae is trained on pictures of one size, these are padded: give the recipe a crop or a resize")
        hidden = self.mask(batch, *self.network.grid_of(pixels)).to(pixels.device)
        out = widened(self.network(pixels, mask=hidden))
        errors = self.network.errors(out.prediction, pixels) * hidden
        each = errors.sum(1) if batch.weights is None else errors.sum(1) * batch.weights
        return {"reconstruction": each.sum() / hidden.sum()}

    def before_update(self, at: Progress) -> None:
        """Nothing: gradients go to the optimiser as they are."""

    def after_step(self, at: Progress) -> None:
        """Nothing: there is no training-only state."""


def objective(network: MAE, mask: Mask | None = None) -> Reconstruction:
    """Reconstruction of the patches that `mask` hides: `RandomMask(0.75)` by default, `RegionMask(kind="keypoints")`, or any callable
    `(batch, rows, columns, generator=None) -> (B, N)` bool."""
    if mask is not None and not callable(mask):
        raise UsageError(f"mask must be a callable such as RandomMask(0.75), found {mask!r}")
    return Reconstruction(network, mask if mask is not None else RandomMask())


# --- variants ----------------------------------------------------------------------------------------------------------

VARIANTS: dict[str, Config] = {
    "tiny": Config(Part("vit/tiny", classes=0), width=64, depth=2, heads=4, normalise=True),
    "b16": Config(),
    "l16": Config(Part("vit/l16", classes=0)),
    "h14": Config(Part("vit/h14", classes=0)),
}
PARAMETERS: dict[str, int] = {"b16": 111907840, "l16": 329541888, "h14": 657074508}
POSITIONS = {"backbone.pos_embed": 1, "decoder_pos_embed": 1}
# 60 steps are too few for normalised patches: their error falls to a third, not to a quarter
OVERFIT = {"observable": "reconstruction", "samples": 8, "lr": 3e-3, "changes": {"normalise": False}}

# --- weights -----------------------------------------------------------------------------------------------------------

PREPARE = Prepare(resize="shortest", size=(248, 0), crop=(224, 224), interpolation="bicubic")
DECODER = r"(mask_token|decoder_.+)"  # what files of the encoder alone lack: load(..., fresh=DECODER)
_MAE = Names(
    keep(DECODER),
    rename(r"((?:cls_token|pos_embed|(?:patch_embed|blocks|norm)\..+))", r"backbone.\1"),
)
_SIDES = ((r"vit\.encoder\.layer", "backbone.blocks"), (r"decoder\.decoder_layers", "decoder_blocks"))
_HUGGING_FACE = Names(
    rename(r"vit\.embeddings\.cls_token", "backbone.cls_token"),
    rename(r"vit\.embeddings\.position_embeddings", "backbone.pos_embed"),
    rename(r"vit\.embeddings\.patch_embeddings\.projection\.(\w+)", r"backbone.patch_embed.proj.\1"),
    rename(r"vit\.layernorm\.(\w+)", r"backbone.norm.\1"),
    *(
        rule
        for theirs, ours in _SIDES
        for rule in (
            *(
                join(theirs + rf"\.(\d+)\.attention\.attention\.{name}\.(\w+)", ours + r".\1.attn.qkv.\2", i, 3)
                for i, name in enumerate(("query", "key", "value"))
            ),
            rename(theirs + r"\.(\d+)\.attention\.output\.dense\.(\w+)", ours + r".\1.attn.proj.\2"),
            rename(theirs + r"\.(\d+)\.layernorm_before\.(\w+)", ours + r".\1.norm1.\2"),
            rename(theirs + r"\.(\d+)\.layernorm_after\.(\w+)", ours + r".\1.norm2.\2"),
            rename(theirs + r"\.(\d+)\.intermediate\.dense\.(\w+)", ours + r".\1.mlp.fc1.\2"),
            rename(theirs + r"\.(\d+)\.output\.dense\.(\w+)", ours + r".\1.mlp.fc2.\2"),
        )
    ),
    rename(r"decoder\.(mask_token|decoder_(?:pos_embed|(?:embed|norm|pred)\.\w+))", r"\1"),
)
HEAD = DECODER
FORMATS: dict[str, Names] = {"mae": _MAE, "huggingface": _HUGGING_FACE}


def _visualised(size: str, source: str) -> Weights:
    return Weights(
        url=f"https://dl.fbaipublicfiles.com/mae/visualize/mae_visualize_vit_{size}.pth",
        format="mae",
        license="CC-BY-NC-4.0",
        source=source,
        prepare=PREPARE,
    )


_LISTED = "README of https://github.com/HALF111/VisionTSpp; licence as timm 1.0.31 states it for the authors' files"
WEIGHTS: dict[str, Weights] = {
    "b16:visualize": _visualised("base", "transformers vit_mae/convert_vit_mae_to_pytorch.py; licence: timm 1.0.31"),
    "l16:visualize": _visualised("large", _LISTED),
    "h14:visualize": _visualised("huge", _LISTED),
}

"""MLP-Mixer: An all-MLP Architecture for Vision.

Tolstikhin et al., NeurIPS 2021, arXiv 2105.01601.
Reference: google-research/vision_transformer (Apache-2.0), whose npz files this file reads; timm 1.0 (Apache-2.0).

*Differs*: the GELU is exact, as in timm, where the authors' Flax code computes its tanh approximation (the two differ by less than
5e-4 in every unit); pictures of another size than `size` are refused, where appendix D enlarges the token-mixing weights.
*Map*: figure 1 -> `Mixer`; eq. 1 -> `MixerLayer`; table 1 -> `VARIANTS`; section 3 (stochastic depth) -> `Mixer.__init__`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from jaxtyping import Float
from torch import Tensor, nn

from opticus.layers.drop import DropPath
from opticus.layers.fixed_patches import FixedPatches
from opticus.layers.mlp import FeedForward
from opticus.losses.classify import CrossEntropy, ranked
from opticus.losses.supervised import Supervised
from opticus.structures import Embedding, Images, Prepare, Result, Task, Weights
from opticus.weights.names import Names, conv_kernel, keep, rename, transpose

TASK: Task = "classify"
FIXED_SIZE = True  # token-mixing weights belong to positions
HALF = (0.5, 0.5, 0.5)
PREPARE = Prepare(resize="shortest", size=(256, 0), crop=(224, 224), interpolation="bicubic", mean=HALF, std=HALF)


@dataclass(frozen=True)
class Config:
    """`tokens` and `hidden` are the widths D_S and D_C of the two MLPs (table 1); `classes=0` leaves the head away."""

    size: int = 224
    patch: int = 16
    width: int = 768
    depth: int = 12
    tokens: int = 384
    hidden: int = 3072
    classes: int = 1000
    dropout: float = 0.0
    drop_path: float = 0.0
    channels: int = 3
    eps: float = 1e-6


# --- network -----------------------------------------------------------------------------------------------------------


class MixerLayer(nn.Module):
    """Eq. 1: U = X + W2 gelu(W1 norm(X)) on columns (tokens), Y = U + W4 gelu(W3 norm(U)) on rows (channels)."""

    def __init__(self, config: Config, patches: int, drop_tokens: float, drop_channels: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(config.width, config.eps)
        self.token_mixing = FeedForward(patches, config.tokens, drop=config.dropout)
        self.norm2 = nn.LayerNorm(config.width, config.eps)
        self.channel_mixing = FeedForward(config.width, config.hidden, drop=config.dropout)
        self.drop_tokens = DropPath(drop_tokens)
        self.drop_channels = DropPath(drop_channels)

    def forward(self, x: Float[Tensor, "B N D"]) -> Float[Tensor, "B N D"]:
        x = x + self.drop_tokens(self.token_mixing(self.norm1(x).transpose(1, 2)).transpose(1, 2))
        return x + self.drop_channels(self.channel_mixing(self.norm2(x)))


class Mixer(nn.Module):
    """Figure 1: per-patch linear embedding, Mixer layers, layer norm, global average pooling, a linear head.

    `forward` returns logits (B, classes), or the pooled tokens (B, width) of a network without a head.
    """

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        self.prepare = _prepare(config.size).with_channels(config.channels)
        self.strides = (config.patch,)
        self.widths = (config.width,)
        self.stem = FixedPatches(config.channels, config.width, patch=config.patch, size=config.size)
        # "we linearly increase the probability of dropping a layer from 0.0 (for the first MLP) to p (for the last MLP)"
        rates = [config.drop_path * i / max(2 * config.depth - 1, 1) for i in range(2 * config.depth)]
        self.blocks = nn.Sequential(*(MixerLayer(config, self.stem.tokens, a, b) for a, b in zip(rates[::2], rates[1::2])))
        self.norm = nn.LayerNorm(config.width, config.eps)
        self.head = nn.Linear(config.width, config.classes) if config.classes else None
        self._initialise()

    def _initialise(self) -> None:
        """Flax's defaults, as in the authors' code: variance 1 / fan-in, truncated at two deviations; the head starts at zero."""
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Conv2d):
                std = module.weight[0].numel() ** -0.5 / 0.87962566  # the deviation that truncation leaves
                nn.init.trunc_normal_(module.weight, std=std, a=-2 * std, b=2 * std)
                nn.init.zeros_(module.get_parameter("bias"))
        if self.head is not None:
            nn.init.zeros_(self.head.weight)

    def tokens(self, pixels: Float[Tensor, "B C H W"]) -> Float[Tensor, "B N D"]:
        """The normalised tokens behind the last layer, row by row. UsageError for pixels that are not size x size."""
        return self.norm(self.blocks(self.stem(pixels)))

    def features(self, pixels: Float[Tensor, "B C H W"]) -> list[Tensor]:
        """One map of the normalised tokens, at the stride of the patches."""
        return [self.stem.as_map(self.tokens(pixels))]

    def embed(self, pixels: Float[Tensor, "B C H W"]) -> Float[Tensor, "B D"]:
        """The mean of the tokens, which the head classifies."""
        return self.tokens(pixels).mean(1)

    def forward(self, pixels: Float[Tensor, "B C H W"], valid: Tensor | None = None) -> Float[Tensor, "B K"]:
        x = self.embed(pixels)
        return x if self.head is None else self.head(x)

    def results(self, out: Float[Tensor, "B K"], images: Images) -> list[Result]:
        """Ranked classes with probabilities; embeddings of a network without a head."""
        return ranked(out) if self.head is not None else [Embedding(vector) for vector in out.detach()]


def _prepare(size: int) -> Prepare:
    """The centre 87.5 %, as in timm; small inputs are resized as they are."""
    if size < 64:
        return replace(PREPARE, resize="fixed", size=(size, size), crop=None)
    return replace(PREPARE, size=(int(size / 0.875), 0), crop=(size, size))


NETWORK = Mixer


# --- objective ---------------------------------------------------------------------------------------------------------


def objective(network: nn.Module, **options: Any) -> Supervised:
    """Cross-entropy on the softmax of the logits; options of `losses.classify.CrossEntropy`."""
    return Supervised(network, CrossEntropy(**options))


# --- variants ----------------------------------------------------------------------------------------------------------

_S, _B = Config(width=512, depth=8, tokens=256, hidden=2048), Config()
_L = Config(width=1024, depth=24, tokens=512, hidden=4096)
VARIANTS: dict[str, Config] = {
    "tiny": Config(size=32, patch=8, width=128, depth=4, tokens=32, hidden=256, classes=10),
    "s32": replace(_S, patch=32),
    "s16": _S,
    "b32": replace(_B, patch=32),
    "b16": _B,
    "l32": replace(_L, patch=32),
    "l16": _L,
    "h14": Config(patch=14, width=1280, depth=32, tokens=640, hidden=5120),
    "b16_in21k": replace(_B, classes=21843),
    "l16_in21k": replace(_L, classes=21843),
}
# vit_jax/models_test.py of the authors' repository; table 1 rounds: 19, 18, 60, 59, 206, 207 and 431 million
PARAMETERS: dict[str, int] = {"b32": 60_293_428, "b16": 59_880_472, "l16": 208_196_168}
IGNORE = r"head\..+"  # a file's head has no place in a network with classes=0
HEAD = r"head\..*"  # what depends on the number of classes: fresh when fine-tuned on other ones

# --- weights -----------------------------------------------------------------------------------------------------------

_GOOGLE_BLOCK = r"MixerBlock_(\d+)/"
FORMATS: dict[str, Names] = {
    "google": Names(
        rename(r"stem/kernel", "stem.proj.weight", conv_kernel()),
        rename(r"stem/bias", "stem.proj.bias"),
        *(
            rule
            for ours, theirs in (("norm1", "LayerNorm_0"), ("norm2", "LayerNorm_1"))
            for rule in (
                rename(_GOOGLE_BLOCK + theirs + "/scale", rf"blocks.\1.{ours}.weight"),
                rename(_GOOGLE_BLOCK + theirs + "/bias", rf"blocks.\1.{ours}.bias"),
            )
        ),
        *(
            rule
            for ours, theirs in (("fc1", "Dense_0"), ("fc2", "Dense_1"))
            for rule in (
                rename(
                    _GOOGLE_BLOCK + rf"(token|channel)_mixing/{theirs}/kernel", rf"blocks.\1.\2_mixing.{ours}.weight", transpose()
                ),
                rename(_GOOGLE_BLOCK + rf"(token|channel)_mixing/{theirs}/bias", rf"blocks.\1.\2_mixing.{ours}.bias"),
            )
        ),
        rename(r"pre_head_layer_norm/scale", "norm.weight"),
        rename(r"pre_head_layer_norm/bias", "norm.bias"),
        rename(r"head/kernel", "head.weight", transpose()),
        rename(r"head/bias", "head.bias"),
    ),
    "timm": Names(
        rename(r"blocks\.(\d+)\.mlp_(token|channel)s\.(.+)", r"blocks.\1.\2_mixing.\3"),
        keep(r"(stem\.proj|blocks\.\d+\.norm[12]|norm|head)\.\w+"),
    ),
}

_TIMM_FILES = "https://github.com/rwightman/pytorch-image-models/releases/download"
_MIIL = replace(PREPARE, interpolation="bilinear", mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))


def _timm(file: str, prepare: Prepare = PREPARE, classes: int | None = None, **reports: float) -> Weights:
    """A file that timm 1.0.31 lists; accuracies are those of its results/results-imagenet.csv."""
    return Weights(
        url=f"{_TIMM_FILES}/{file}.pth",
        format="timm",
        license="Apache-2.0",
        source="timm 1.0.31 models/mlp_mixer.py",
        prepare=prepare,
        digest=file.rpartition("-")[2],
        labels=None if "in21k" in file else "imagenet1k",
        classes=classes,
        reports={f"imagenet1k {name.replace('top', 'acc@')}": value for name, value in reports.items()},
    )


def _google(folder: str, file: str) -> Weights:
    return Weights(
        url=f"https://storage.googleapis.com/mixer_models/{folder}/{file}.npz",
        format="google",
        license="Apache-2.0",
        source="https://github.com/google-research/vision_transformer README.md (the bucket); jeonsworld/MLP-Mixer-Pytorch README.md",
        prepare=PREPARE,
        labels="imagenet1k" if folder == "imagenet1k" else None,
    )


WEIGHTS: dict[str, Weights] = {
    "b16:goog_in21k_ft_in1k": _timm("v0.1-vitjx/jx_mixer_b16_224-76587d61", top1=76.602, top5=92.224),
    "l16:goog_in21k_ft_in1k": _timm("v0.1-vitjx/jx_mixer_l16_224-92f9adc4"),
    "b16_in21k:goog_in21k": _timm("v0.1-vitjx/jx_mixer_b16_224_in21k-617b3de2"),
    "l16_in21k:goog_in21k": _timm("v0.1-vitjx/jx_mixer_l16_224_in21k-846aa33c"),
    "b16:miil_in21k_ft_in1k": _timm("v0.1-tresnet/mixer_b16_224_miil-9229a591", _MIIL),
    "b16:miil_in21k": _timm("v0.1-tresnet/mixer_b16_224_miil_in21k-2a558a71", _MIIL, classes=11221),
    "b16:imagenet1k": _google("imagenet1k", "Mixer-B_16"),
    "l16:imagenet1k": _google("imagenet1k", "Mixer-L_16"),
    "b16_in21k:imagenet21k": _google("imagenet21k", "Mixer-B_16"),
    "l16_in21k:imagenet21k": _google("imagenet21k", "Mixer-L_16"),
}

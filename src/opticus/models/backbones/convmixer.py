"""Patches Are All You Need? ConvMixer.

Trockman and Kolter, TMLR 2023, arXiv 2201.09792.
Reference: locuslab/convmixer (MIT), the authors' nn.Sequential; timm 1.0 (Apache-2.0), which names its parts.

*Differs*: sides that are no multiple of the patch are padded with zeros at the right and bottom, where the reference leaves the
remainder out; ConvMixer-768/32 has ReLU, as its published file (the paper's text has GELU everywhere).
*Map*: eq. 1 -> `Stem`; eq. 2 and 3 -> `ConvMixerLayer`; table 1 -> `VARIANTS`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from opticus.losses.classify import CrossEntropy, ranked
from opticus.losses.supervised import Supervised
from opticus.structures import Embedding, Images, Prepare, Result, Task, UsageError, Weights
from opticus.weights.names import Names, rename

TASK: Task = "classify"
PREPARE = Prepare(resize="shortest", size=(233, 0), crop=(224, 224), interpolation="bicubic")
ACTIVATIONS: dict[str, type[nn.Module]] = {"gelu": nn.GELU, "relu": nn.ReLU}


@dataclass(frozen=True)
class Config:
    """ConvMixer-`width`/`depth` with odd `kernel` and `patch` (table 1); `size` is that of `prepare` only."""

    width: int = 1536
    depth: int = 20
    kernel: int = 9
    patch: int = 7
    activation: Literal["gelu", "relu"] = "gelu"
    classes: int = 1000
    channels: int = 3
    size: int = 224


# --- network -----------------------------------------------------------------------------------------------------------


class Stem(nn.Module):
    """Eq. 1: z0 = BN(activation(conv(x))), a convolution whose stride is its kernel, the patch."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.patch = config.patch
        self.conv = nn.Conv2d(config.channels, config.width, config.patch, config.patch)
        self.act = ACTIVATIONS[config.activation]()
        self.norm = nn.BatchNorm2d(config.width)

    def forward(self, pixels: Float[Tensor, "B C H W"]) -> Float[Tensor, "B D h w"]:
        right, bottom = -pixels.shape[3] % self.patch, -pixels.shape[2] % self.patch
        if right or bottom:
            pixels = F.pad(pixels, (0, right, 0, bottom))
        return self.norm(self.act(self.conv(pixels)))


class ConvMixerLayer(nn.Module):
    """Eq. 2: z' = BN(activation(depthwise(z))) + z mixes places; eq. 3: BN(activation(pointwise(z'))) mixes channels."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        width, kernel = config.width, config.kernel
        self.depthwise = nn.Conv2d(width, width, kernel, padding=kernel // 2, groups=width)
        self.norm1 = nn.BatchNorm2d(width)
        self.pointwise = nn.Conv2d(width, width, 1)
        self.norm2 = nn.BatchNorm2d(width)
        self.act = ACTIVATIONS[config.activation]()

    def forward(self, z: Float[Tensor, "B D h w"]) -> Float[Tensor, "B D h w"]:
        z = self.norm1(self.act(self.depthwise(z))) + z
        return self.norm2(self.act(self.pointwise(z)))


class ConvMixer(nn.Module):
    """Patches, then layers of one width and one resolution, global average pooling, a linear head.

    `forward` returns logits (B, classes), or the pooled map (B, width) of a network without a head.
    """

    def __init__(self, config: Config) -> None:
        super().__init__()
        if config.kernel % 2 == 0:
            raise UsageError(f"convmixer: kernel must be odd, so that a cell is the centre of its window; found {config.kernel}")
        self.config = config
        self.prepare = _prepare(config.size).with_channels(config.channels)
        self.strides = (config.patch,)
        self.widths = (config.width,)
        self.stem = Stem(config)
        self.blocks = nn.Sequential(*(ConvMixerLayer(config) for _ in range(config.depth)))
        self.head = nn.Linear(config.width, config.classes) if config.classes else None

    def features(self, pixels: Float[Tensor, "B C H W"]) -> list[Tensor]:
        """The map behind the last layer, at the stride of the patches."""
        return [self.blocks(self.stem(pixels))]

    def embed(self, pixels: Float[Tensor, "B C H W"]) -> Float[Tensor, "B D"]:
        """The pooled map, which the head classifies."""
        return F.adaptive_avg_pool2d(self.features(pixels)[0], 1).flatten(1)

    def forward(self, pixels: Float[Tensor, "B C H W"], valid: Tensor | None = None) -> Float[Tensor, "B K"]:
        x = self.embed(pixels)
        return x if self.head is None else self.head(x)

    def results(self, out: Float[Tensor, "B K"], images: Images) -> list[Result]:
        """Ranked classes with probabilities; embeddings of a network without a head."""
        return ranked(out) if self.head is not None else [Embedding(vector) for vector in out.detach()]


def _prepare(size: int) -> Prepare:
    """The centre 96 %, as in the authors' and timm's settings; small inputs are resized as they are."""
    if size < 64:
        return replace(PREPARE, resize="fixed", size=(size, size), crop=None)
    return replace(PREPARE, size=(int(size / 0.96), 0), crop=(size, size))


NETWORK = ConvMixer


# --- objective ---------------------------------------------------------------------------------------------------------


def objective(network: nn.Module, **options: Any) -> Supervised:
    """Cross-entropy on the softmax of the logits; options of `losses.classify.CrossEntropy`."""
    return Supervised(network, CrossEntropy(**options))


# --- variants and weights ------------------------------------------------------------------------------------------------

VARIANTS: dict[str, Config] = {
    "tiny": Config(width=64, depth=4, kernel=5, patch=4, classes=10, size=32),
    "1536_20": Config(),
    "768_32": Config(width=768, depth=32, kernel=7, activation="relu"),
    "1024_20": Config(width=1024, patch=14),
}
# timm's counts; table 1 rounds: 51.6, 21.1 and 24.4 million
PARAMETERS: dict[str, int] = {"1536_20": 51_625_960, "768_32": 21_110_248, "1024_20": 24_383_464}
IGNORE = r"head\..+"  # a file's head has no place in a network with classes=0
HEAD = r"head\..*"  # what depends on the number of classes: fresh when fine-tuned on other ones

_PARTS = {"0.fn.0": "depthwise", "0.fn.2": "norm1", "1": "pointwise", "3": "norm2"}
_PART = r"(" + "|".join(re.escape(part) for part in _PARTS) + r")\.(\w+)"


def _of_sequence(match: re.Match[str]) -> str:
    """3.0.fn.0.weight -> blocks.0.depthwise.weight: the stem is 0 to 2 of the authors' sequence, the layers follow."""
    return f"blocks.{int(match[1]) - 3}.{_PARTS[match[2]]}.{match[3]}"


def _of_block(match: re.Match[str]) -> str:
    """blocks.0.0.fn.0.weight -> blocks.0.depthwise.weight"""
    return f"blocks.{match[1]}.{_PARTS[match[2]]}.{match[3]}"


FORMATS: dict[str, Names] = {
    "locuslab": Names(
        rename(r"0\.(\w+)", r"stem.conv.\1"),
        rename(r"2\.(\w+)", r"stem.norm.\1"),
        rename(r"\d+\.(weight|bias)", r"head.\1"),  # pooling and flattening hold nothing, so the head is the last number
        rename(r"(\d+)\." + _PART, _of_sequence),
    ),
    "timm": Names(
        rename(r"stem\.0\.(\w+)", r"stem.conv.\1"),
        rename(r"stem\.2\.(\w+)", r"stem.norm.\1"),
        rename(r"blocks\.(\d+)\." + _PART, _of_block),
        rename(r"head\.(\w+)", r"head.\1"),
    ),
}


# variant, the authors' file (their README), timm's repository on the hub, top-1 and top-5 in timm's results/results-imagenet.csv
_FILES = (
    ("1536_20", "convmixer_1536_20_ks9_p7", "convmixer_1536_20.in1k", 81.362, 95.614),
    ("768_32", "convmixer_768_32_ks7_p7_relu", "convmixer_768_32.in1k", 80.168, 95.074),
    ("1024_20", "convmixer_1024_20_ks9_p14", "convmixer_1024_20_ks9_p14.in1k", 76.936, 93.350),
)


def _rows(variant: str, file: str, repository: str, top1: float, top5: float) -> dict[str, Weights]:
    """The authors' file and timm's copy of it."""
    locuslab = Weights(
        url=f"https://github.com/tmp-iclr/convmixer/releases/download/v1.0/{file}.pth.tar",
        format="locuslab",
        license="MIT",
        source="https://github.com/locuslab/convmixer README.md",
        prepare=PREPARE,
        labels="imagenet1k",
        reports={"imagenet1k acc@1": top1, "imagenet1k acc@5": top5},
    )
    url = f"https://huggingface.co/timm/{repository}/resolve/main/model.safetensors"
    timm = replace(locuslab, url=url, format="timm", source=f"https://huggingface.co/timm/{repository}")
    return {f"{variant}:imagenet1k": locuslab, f"{variant}:timm_in1k": timm}


WEIGHTS: dict[str, Weights] = {key: row for entry in _FILES for key, row in _rows(*entry).items()}

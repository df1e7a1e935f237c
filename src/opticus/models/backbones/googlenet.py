"""Going Deeper with Convolutions.

Szegedy, Liu, Jia, Sermanet, Reed, Anguelov, Erhan, Vanhoucke and Rabinovich, CVPR 2015, arXiv 1409.4842: GoogLeNet, 22 layers.
Reference: torchvision 0.29 (BSD-3-Clause), whose file, "ported from the original paper", has batch normalisation.

*Differs*: as the published file, every convolution is followed by batch norm (eps 0.001) where the paper's network has biases and
two local response norms, its "5x5" branches have 3x3 kernels unless `kernel5` asks for the paper's, the fourth pooling is 2x2, and the
auxiliary classifiers average to a 4x4 grid, so that they take maps of any size; the auxiliary heads of the published file hold no
trained values. Weights start after He et al. 2015 (torchvision's deviation of 0.01 means the same behind batch norm, but every step
of Adam is large beside it). `features` keeps the last odd row and column in every pooling: the same maps for multiples of 32.
*Map*: figure 2b -> `Inception`; table 1 -> `TABLE`, `GoogLeNet`; section 5 "auxiliary classifiers" -> `Auxiliary`; "with a discount
weight of 0.3" -> `Deep`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from opticus.losses.classify import CrossEntropy, ranked
from opticus.losses.supervised import Supervised
from opticus.structures import Batch, Embedding, Images, Prepare, Result, Task, UsageError, Weights
from opticus.weights.names import Names, keep

TASK: Task = "classify"
# grey levels in -1..1; torchvision says the same as ImageNet's mean and deviation, undone inside the network ("transform_input")
PREPARE = Prepare(resize="shortest", size=(256, 0), crop=(224, 224), mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
SMALL = Prepare(resize="fixed", size=(32, 32))

# table 1: 1x1; 3x3 reduce, 3x3; 5x5 reduce, 5x5; pool projection
TABLE: dict[str, tuple[int, int, int, int, int, int]] = {
    "3a": (64, 96, 128, 16, 32, 32),
    "3b": (128, 128, 192, 32, 96, 64),
    "4a": (192, 96, 208, 16, 48, 64),
    "4b": (160, 112, 224, 24, 64, 64),
    "4c": (128, 128, 256, 24, 64, 64),
    "4d": (112, 144, 288, 32, 64, 64),
    "4e": (256, 160, 320, 32, 128, 128),
    "5a": (256, 160, 320, 32, 128, 128),
    "5b": (384, 192, 384, 48, 128, 128),
}


@dataclass(frozen=True)
class Config:
    """`modules` are rows of `TABLE`, of every stage at least one; `width` multiplies every number of channels.

    `auxiliary=False` leaves away the two side heads, which sit on 4a and 4d; `classes=0` all heads.
    """

    classes: int = 1000
    width: float = 1.0
    modules: tuple[str, ...] = tuple(TABLE)
    auxiliary: bool = True
    kernel5: int = 3
    stem: Literal["imagenet", "small"] = "imagenet"
    dropout: float = 0.4
    dropout_auxiliary: float = 0.7
    channels: int = 3


class Out(NamedTuple):
    """Logits (B, classes) of the network and, in training only, of the classifiers behind 4a and 4d."""

    logits: Tensor
    aux1: Tensor | None = None
    aux2: Tensor | None = None


# --- network -----------------------------------------------------------------------------------------------------------


class Conv(nn.Module):
    """A convolution, batch norm and a ReLU."""

    def __init__(self, width_in: int, width: int, kernel: int, stride: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width_in, width, kernel, stride, kernel // 2, bias=False)
        self.bn = nn.BatchNorm2d(width, eps=0.001)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.bn(self.conv(x)), inplace=True)


class Inception(nn.Module):
    """Figure 2b: 1x1, 3x3 and 5x5 convolutions and a pooling side by side; 1x1 convolutions keep the larger ones affordable."""

    def __init__(self, width_in: int, widths: tuple[int, ...], kernel5: int) -> None:
        super().__init__()
        one, reduce3, three, reduce5, five, pool = widths
        self.branch1 = Conv(width_in, one, 1)
        self.branch2 = nn.Sequential(Conv(width_in, reduce3, 1), Conv(reduce3, three, 3))
        self.branch3 = nn.Sequential(Conv(width_in, reduce5, 1), Conv(reduce5, five, kernel5))
        self.branch4 = nn.Sequential(nn.MaxPool2d(3, 1, 1), Conv(width_in, pool, 1))

    def forward(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B D H W"]:
        return torch.cat([self.branch1(x), self.branch2(x), self.branch3(x), self.branch4(x)], 1)


class Auxiliary(nn.Module):
    """A classifier on an intermediate map (section 5): average pooling, 1x1 convolution, one hidden layer, 70 % of it dropped."""

    def __init__(self, width_in: int, width: int, hidden: int, *, classes: int, dropout: float) -> None:
        super().__init__()
        self.conv = Conv(width_in, width, 1)
        self.fc1 = nn.Linear(16 * width, hidden)
        self.fc2 = nn.Linear(hidden, classes)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B K"]:
        x = self.conv(F.adaptive_avg_pool2d(x, 4)).flatten(1)
        return self.fc2(self.dropout(F.relu(self.fc1(x))))


def _pool(x: Tensor, kernel: int = 3) -> Tensor:
    """Maximum over windows two apart; a window may reach over the border if it starts two or more pixels before it."""
    return F.max_pool2d(x, kernel, 2, ceil_mode=True)


def _pool_all(x: Tensor, kernel: int = 3) -> Tensor:
    """The same with a window for every second pixel: ceil(H / 2) rows. Zeros change no maximum of what a ReLU gave."""
    return F.max_pool2d(F.pad(x, (0, kernel - 1, 0, kernel - 1)), kernel, 2)


class GoogLeNet(nn.Module):
    """Table 1: a stem, nine inception modules in three stages, average pooling, dropout and one linear layer.

    `forward` returns `Out`, or the pooled features (B, D) of a network without heads.
    """

    def __init__(self, config: Config) -> None:
        super().__init__()
        needed = {"4a", "4d"} if config.auxiliary and config.classes else set[str]()
        rows = [name for name in TABLE if name in config.modules]
        if tuple(rows) != config.modules or {name[0] for name in rows} != {"3", "4", "5"} or not needed <= set(rows):
            raise UsageError(
                f"googlenet: modules must be some of {', '.join(TABLE)} in this order, of stages 3, 4 and 5 at least one each"
                f"{', with 4a and 4d for the side heads' if needed else ''}, found {', '.join(config.modules) or 'none'}"
            )
        self.config = config
        small = config.stem == "small"
        self.prepare = (SMALL if small else PREPARE).with_channels(config.channels)
        scaled = partial(_scaled, config.width)
        stem, width = scaled(64), scaled(192)
        self.conv1 = Conv(config.channels, stem, 3 if small else 7, 1 if small else 2)
        self.conv2 = Conv(stem, stem, 1)
        self.conv3 = Conv(stem, width, 3)
        widths = {"2": width}
        for name in config.modules:
            row = tuple(scaled(n) for n in TABLE[name])
            self.add_module(f"inception{name}", Inception(width, row, config.kernel5))
            width = row[0] + row[2] + row[4] + row[5]
            widths[name] = width
        self.last = tuple({name[0]: name for name in widths}.values())
        first = 2 if small else 4
        self.strides = (first, 2 * first, 4 * first, 8 * first)
        self.widths = tuple(widths[name] for name in self.last)
        side = bool(config.auxiliary and config.classes)
        head = partial(Auxiliary, width=scaled(128), hidden=scaled(1024), classes=config.classes, dropout=config.dropout_auxiliary)
        self.aux1 = head(widths["4a"]) if side else None
        self.aux2 = head(widths["4d"]) if side else None
        self.dropout = nn.Dropout(config.dropout)
        self.fc = nn.Linear(width, config.classes) if config.classes else None
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")

    def _maps(self, pixels: Tensor, pool: Callable[..., Tensor]) -> dict[str, Tensor]:
        """The maps that somebody wants, by the names of table 1."""
        maps = {"2": self.conv3(self.conv2(pool(self.conv1(pixels))))}
        x, stage = maps["2"], "2"
        for name in self.config.modules:
            if name[0] != stage:
                x, stage = pool(x, 2 if name[0] == "5" else 3), name[0]
            x = self.get_submodule(f"inception{name}")(x)
            maps[name] = x
        return maps

    def features(self, pixels: Float[Tensor, "B C H W"]) -> list[Tensor]:
        """The maps of conv3 and of the last module of every stage (3b, 4e, 5b), fine to coarse."""
        maps = self._maps(pixels, _pool_all)
        return [maps[name] for name in self.last]

    def embed(self, pixels: Float[Tensor, "B C H W"]) -> Float[Tensor, "B D"]:
        """The averaged map of the last module, which the linear layer classifies."""
        return F.adaptive_avg_pool2d(self._maps(pixels, _pool)[self.last[-1]], 1).flatten(1)

    def forward(self, pixels: Float[Tensor, "B C H W"], valid: Tensor | None = None) -> Out | Float[Tensor, "B D"]:
        maps = self._maps(pixels, _pool)
        x = F.adaptive_avg_pool2d(maps[self.last[-1]], 1).flatten(1)
        if self.fc is None:
            return x
        logits = self.fc(self.dropout(x))
        if not self.training or self.aux1 is None or self.aux2 is None:
            return Out(logits)
        return Out(logits, self.aux1(maps["4a"]), self.aux2(maps["4d"]))

    def results(self, out: Out | Float[Tensor, "B D"], images: Images) -> list[Result]:
        """Ranked classes with probabilities; embeddings of a network without heads."""
        return ranked(out.logits) if isinstance(out, Out) else [Embedding(vector) for vector in out.detach()]


def _scaled(factor: float, width: int) -> int:
    return max(1, round(factor * width))


NETWORK = GoogLeNet


# --- objective ---------------------------------------------------------------------------------------------------------


class Deep(nn.Module):
    """Cross-entropy of the network and, weighted by `weight`, of each auxiliary classifier (section 5)."""

    def __init__(self, *, weight: float = 0.3, **options: Any) -> None:
        super().__init__()
        self.weight = weight
        self.entropy = CrossEntropy(**options)

    def forward(self, out: Out, batch: Batch) -> dict[str, Tensor]:
        """{"classify", "aux1", "aux2"}: the weighted terms; without auxiliary logits only the first."""
        terms = self.entropy(out.logits, batch)
        for name, logits in (("aux1", out.aux1), ("aux2", out.aux2)):
            if logits is not None:
                terms[name] = self.weight * self.entropy(logits, batch)["classify"]
        return terms


def objective(network: nn.Module, **options: Any) -> Supervised:
    """Cross-entropy of all three classifiers; `weight` of the auxiliary ones and options of `losses.classify.CrossEntropy`."""
    return Supervised(network, Deep(**options))


# --- variants and weights ------------------------------------------------------------------------------------------------

VARIANTS: dict[str, Config] = {
    "tiny": Config(10, 0.25, ("3a", "3b", "4a", "4d", "5b"), stem="small", dropout=0.1, dropout_auxiliary=0.2),
    "22": Config(),
}
PARAMETERS: dict[str, int] = {"22": 13004888}
HEAD = r"(fc|aux[12]\.fc2)\..*"  # what depends on the number of classes: fresh when fine-tuned on other ones
IGNORE = r"(fc|aux[12])\..+"  # a file's heads have no place in a network with classes=0, its side heads none in one without them
FORMATS: dict[str, Names] = {"torchvision": Names(keep(r"(conv[123]|inception[345][a-e]|aux[12]|fc)\..+"))}
WEIGHTS: dict[str, Weights] = {
    "22:imagenet1k_v1": Weights(
        url="https://download.pytorch.org/models/googlenet-1378be20.pth",
        format="torchvision",
        license="BSD-3-Clause",
        source="torchvision 0.29.2 models/googlenet.py",
        prepare=PREPARE,
        digest="1378be20",
        labels="imagenet1k",
        reports={"imagenet1k acc@1": 69.778, "imagenet1k acc@5": 89.530},
    ),
}

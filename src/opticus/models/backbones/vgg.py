"""Very Deep Convolutional Networks for Large-Scale Image Recognition.

Simonyan and Zisserman (Visual Geometry Group, Oxford), ICLR 2015, arXiv 1409.1556: configurations A (11 weight layers), B (13),
D (16) and E (19), each also with batch normalisation, which is younger than the paper.
Reference: torchvision 0.29 (BSD-3-Clause); the same networks in timm (Apache-2.0), whose hidden layers are convolutions.

*Differs*: configurations A-LRN and C are left out (no file was ever published in these formats); a crop of another size than 224 is
averaged to the 7x7 grid, as in torchvision, unless `dense` asks for the paper's dense evaluation, as in timm; weights start after
He et al. 2015 where the paper starts deep networks from trained shallow ones; `features` pools with the last odd row or column
included (Caffe's rule, under which VGG-16 carried Fast R-CNN), the classifier without it: the same maps for multiples of 32.
*Map*: table 1 -> `VGG`, `VARIANTS`; section 2.1 "3x3 receptive fields" -> `_trunk`; section 3.2 "applied densely" -> `dense`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from opticus.losses.classify import CrossEntropy, ranked
from opticus.losses.supervised import Supervised
from opticus.models.backbones.vgg_weights import PARAMETERS as PARAMETERS
from opticus.models.backbones.vgg_weights import PREPARE
from opticus.models.backbones.vgg_weights import WEIGHTS as WEIGHTS
from opticus.structures import Embedding, Images, Prepare, Result, Task
from opticus.weights.names import Names, flatten, rename

TASK: Task = "classify"


@dataclass(frozen=True)
class Config:
    """`layers` are the convolutions of each stage, `grid` the side of the last pooled map; `classes=0` leaves the last layer away.

    `dense`: the hidden layers slide over a map larger than the grid and their activations are averaged (section 3.2). `hidden=0`
    leaves both hidden layers away, as part of a detector that has its own: the last pooled map is what is embedded and classified.
    """

    layers: tuple[int, ...] = (2, 2, 3, 3, 3)
    norm: bool = False
    classes: int = 1000
    width: int = 64
    hidden: int = 4096
    grid: int = 7
    dropout: float = 0.5
    dense: bool = False
    channels: int = 3


# --- network -----------------------------------------------------------------------------------------------------------


def _width(config: Config, stage: int) -> int:
    """64, 128, 256, 512 and 512 channels: doubled after every pooling, up to eight times the first."""
    return config.width * min(2**stage, 8)


def _trunk(config: Config) -> nn.Sequential:
    """3x3 convolutions at stride 1 (with batch norm if asked for) and ReLUs; 2x2 pooling ends every stage."""
    modules: list[nn.Module] = []
    width_in = config.channels
    for stage, count in enumerate(config.layers):
        width = _width(config, stage)
        for _ in range(count):
            norm = [nn.BatchNorm2d(width)] if config.norm else []
            modules += [nn.Conv2d(width_in, width, 3, padding=1), *norm, nn.ReLU(inplace=True)]
            width_in = width
        modules.append(nn.MaxPool2d(2, 2))
    return nn.Sequential(*modules)


class VGG(nn.Module):
    """Table 1: stages of 3x3 convolutions, each halving the map, and three fully connected layers.

    `forward` returns logits (B, classes), or fc7's activations (B, hidden) of a network without a last layer.
    """

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        side = config.grid * 2 ** len(config.layers)
        self.prepare = (PREPARE if side == 224 else Prepare(resize="fixed", size=(side, side))).with_channels(config.channels)
        stages = range(len(config.layers))
        self.strides = tuple(2**i for i in range(len(config.layers) + 1))
        self.widths = (*(_width(config, i) for i in stages), _width(config, stages[-1]))
        self.trunk = _trunk(config)
        pooled = self.widths[-1] * config.grid**2
        self.fc6 = nn.Linear(pooled, config.hidden) if config.hidden else None
        self.fc7 = nn.Linear(config.hidden, config.hidden) if config.hidden else None
        self.fc8 = nn.Linear(config.hidden or pooled, config.classes) if config.classes else None
        self.relu = nn.ReLU(inplace=True)
        self.dropout = nn.Dropout(config.dropout)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            elif isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=0.64 * (config.hidden or pooled) ** -0.5)  # torchvision's 0.01 for 4096
            if isinstance(module, nn.Conv2d | nn.Linear) and module.bias is not None:
                nn.init.zeros_(module.bias)

    def features(self, pixels: Float[Tensor, "B C H W"]) -> list[Tensor]:
        """The output of every stage before its pooling, and the last one pooled (conv1_2, conv2_2, ..., conv5_3, pool5)."""
        x, maps = pixels, list[Tensor]()
        for module in self.trunk:
            if isinstance(module, nn.MaxPool2d):
                maps.append(x)
                x = F.max_pool2d(x, 2, 2, ceil_mode=True)
            else:
                x = module(x)
        return [*maps, x]

    def embed(self, pixels: Float[Tensor, "B C H W"]) -> Float[Tensor, "B D"]:
        """The activations of the second hidden layer, which the last layer classifies."""
        x, grid = self.trunk(pixels), self.config.grid
        if self.config.dense and self.fc6 is not None and self.fc7 is not None:
            return self._slide(x, self.fc6, self.fc7)
        if x.shape[2:] != (grid, grid):
            x = F.adaptive_avg_pool2d(x, grid)
        if self.fc6 is None or self.fc7 is None:
            return x.flatten(1)
        x = self.dropout(self.relu(self.fc6(x.flatten(1))))
        return self.relu(self.fc7(x))

    def _slide(self, x: Float[Tensor, "B C h w"], fc6: nn.Linear, fc7: nn.Linear) -> Float[Tensor, "B D"]:
        """Section 3.2: the first hidden layer as a convolution as large as the grid, the second as one of 1x1, then the average."""
        grid = self.config.grid
        if min(x.shape[2:]) < grid:
            x = F.adaptive_avg_pool2d(x, (max(x.shape[2], grid), max(x.shape[3], grid)))
        x = self.dropout(self.relu(F.conv2d(x, fc6.weight.unflatten(1, (-1, grid, grid)), fc6.bias)))
        return self.relu(F.conv2d(x, fc7.weight[:, :, None, None], fc7.bias)).mean((2, 3))

    def forward(self, pixels: Float[Tensor, "B C H W"], valid: Tensor | None = None) -> Float[Tensor, "B K"]:
        x = self.embed(pixels)
        return x if self.fc8 is None else self.fc8(self.dropout(x))

    def results(self, out: Float[Tensor, "B K"], images: Images) -> list[Result]:
        """Ranked classes with probabilities; embeddings of a network without a last layer."""
        return ranked(out) if self.fc8 is not None else [Embedding(vector) for vector in out.detach()]


NETWORK = VGG


# --- objective ---------------------------------------------------------------------------------------------------------


def objective(network: nn.Module, **options: Any) -> Supervised:
    """Multinomial logistic regression (section 3.1); options of `losses.classify.CrossEntropy`."""
    return Supervised(network, CrossEntropy(**options))


# --- variants and weights ------------------------------------------------------------------------------------------------

_DEPTHS = {"11": (1, 1, 2, 2, 2), "13": (2, 2, 2, 2, 2), "16": (2, 2, 3, 3, 3), "19": (2, 2, 4, 4, 4)}
VARIANTS: dict[str, Config] = {
    "tiny": Config((1, 1, 2), norm=True, classes=10, width=24, hidden=128, grid=4, dropout=0.1),  # half of few units is too much
    **{depth: Config(layers) for depth, layers in _DEPTHS.items()},
    **{f"{depth}_bn": Config(layers, norm=True) for depth, layers in _DEPTHS.items()},
}
HEAD = r"fc8\..*"  # what depends on the number of classes: fresh when fine-tuned on other ones
IGNORE = r"fc[678]\..+"  # a file's last layers have no place in a network with classes=0 or hidden=0

_TRUNK = rename(r"features\.(\d+)\.(\w+)", r"trunk.\1.\2")
_NAMES = {
    "torchvision": {"classifier.0": "fc6", "classifier.3": "fc7", "classifier.6": "fc8"},
    "timm": {"pre_logits.fc1": "fc6", "pre_logits.fc2": "fc7", "head.fc": "fc8"},  # the hidden layers as convolution kernels
}


def _names(places: dict[str, str]) -> Names:
    weights = (rename(re.escape(place) + r"\.weight", f"{name}.weight", flatten(1)) for place, name in places.items())
    biases = (rename(re.escape(place) + r"\.bias", f"{name}.bias") for place, name in places.items())
    return Names(_TRUNK, *weights, *biases)


FORMATS: dict[str, Names] = {form: _names(places) for form, places in _NAMES.items()}

"""ImageNet Classification with Deep Convolutional Neural Networks.

Krizhevsky, Sutskever and Hinton, NeurIPS 2012 (variant "2012"); and its single-tower successor of Krizhevsky, One weird trick for
parallelizing convolutional neural networks, 2014, arXiv 1404.5997 (variant "owt"), the one that PyTorch users know as AlexNet.
Reference: torchvision 0.29 (BSD-3-Clause) for "owt"; BVLC Caffe's models/bvlc_alexnet (BSD-2-Clause, weights unrestricted) for "2012".

*Differs*: "2012" normalises as Caffe's published file does, 1 + (alpha / 5) sum in place of the paper's 2 + alpha sum, and sees 227 pixels
(the paper's 224 do not give its own 55x55 maps); inputs of other sizes are averaged to the 6x6 grid that fc6 needs, as in torchvision;
`features` pads at the right and bottom so that its maps have ceil(H / stride) rows, where the classifier's own have one or two less.
*Map*: section 3.1 -> `relu`; 3.2 -> `groups`; 3.3 -> `LocalNorm`; 3.4 -> `_pool`; 3.5 and figure 2 -> `AlexNet`; 4.1 -> the recipe;
4.2 -> `drop5` to `drop7`; 5 -> `_initialise`; 6.1 ("feature activations at the last, 4096-dimensional hidden layer") -> `embed`.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, cast

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from opticus.losses.classify import CrossEntropy, ranked
from opticus.losses.supervised import Supervised
from opticus.structures import Embedding, Images, Prepare, Result, Task, Weights
from opticus.weights.names import Names, keep, rename

TASK: Task = "classify"
PREPARE = Prepare(resize="shortest", size=(256, 0), crop=(224, 224))
# Caffe's: 256x256 whatever the shape of the picture, blue first, grey levels less the mean colour of ILSVRC 2012's training set
CAFFE = Prepare(
    size=(256, 256),
    crop=(227, 227),
    antialias=False,
    scale=1.0,
    mean=(104.00698793, 116.66876762, 122.67891434),
    std=(1.0, 1.0, 1.0),
    order="bgr",
)
SMALL = Prepare(resize="fixed", size=(32, 32))


@dataclass(frozen=True)
class Config:
    """`widths` of conv1 to conv5; `grid` is the side of the map that fc6 sees; `classes=0` leaves the last layer away.

    `design`: "2012" normalises local responses and drops units of fc6 and fc7, "owt" drops those of conv5 and fc6, "small" does so
    with a conv1 for pictures of 32x32. `hidden=0` leaves fc6 and fc7 away, as part of a detector that has its own: pool5 is embedded.
    """

    widths: tuple[int, int, int, int, int] = (64, 192, 384, 256, 256)
    hidden: int = 4096
    classes: int = 1000
    groups: int = 1
    design: Literal["owt", "2012", "small"] = "owt"
    grid: int = 6
    dropout: float = 0.5
    channels: int = 3


# --- network -----------------------------------------------------------------------------------------------------------


class LocalNorm(nn.Module):
    """Local response normalisation (section 3.3): each value over (1 + alpha times the mean square of 5 neighbouring maps) ** 0.75."""

    def forward(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B C H W"]:
        return F.local_response_norm(x, 5, alpha=1e-4, beta=0.75, k=1.0)


def _pool(x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B C h w"]:
    """Overlapping pooling (section 3.4): windows of three, two apart."""
    return F.max_pool2d(x, 3, 2)


def _pool_all(x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B C h w"]:
    """The same windows and those that reach over the border: ceil(H / 2) rows. Zeros change no maximum of what a ReLU gave."""
    return F.max_pool2d(F.pad(x, (0, 2, 0, 2)), 3, 2)


def _initialise(design: str, name: str, layer: nn.Conv2d | nn.Linear) -> None:
    """Section 5 with Caffe's figures for "2012" (whose authors saw a flat loss with the biases of 1 in the paper); He et al. 2015 for "small"."""
    if design == "2012":
        nn.init.normal_(layer.weight, std=0.005 if name in ("fc6", "fc7") else 0.01)
        nn.init.constant_(cast(Tensor, layer.bias), 0.0 if name in ("conv1", "conv3", "fc8") else 0.1)
    elif design == "small":
        nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")


class AlexNet(nn.Module):
    """Figure 2: five convolutions, three of them pooled, and three fully connected layers.

    `forward` returns logits (B, classes), or `embed`'s activations of a network without a last layer.
    """

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        self.prepare = {"owt": PREPARE, "2012": CAFFE, "small": SMALL}[config.design].with_channels(config.channels)
        one, two, three, four, five = config.widths
        kernel, stride, pad = {"owt": (11, 4, 2), "2012": (11, 4, 0), "small": (5, 1, 2)}[config.design]
        self.conv1 = nn.Conv2d(config.channels, one, kernel, stride, pad)
        self.conv2 = nn.Conv2d(one, two, 5, padding=2, groups=config.groups)
        self.conv3 = nn.Conv2d(two, three, 3, padding=1)
        self.conv4 = nn.Conv2d(three, four, 3, padding=1, groups=config.groups)
        self.conv5 = nn.Conv2d(four, five, 3, padding=1, groups=config.groups)
        pooled = five * config.grid**2
        self.fc6 = nn.Linear(pooled, config.hidden) if config.hidden else None
        self.fc7 = nn.Linear(config.hidden, config.hidden) if config.hidden else None
        self.fc8 = nn.Linear(config.hidden or pooled, config.classes) if config.classes else None
        first = config.design == "2012"
        self.norm = LocalNorm() if first else nn.Identity()
        self.relu = nn.ReLU(inplace=True)
        self.drop5, self.drop6, self.drop7 = (nn.Dropout(config.dropout if here else 0.0) for here in (not first, True, first))
        self.reach = kernel - 2 * pad - stride  # pixels that conv1 needs beyond a multiple of its stride
        self.strides = (stride, 2 * stride, 4 * stride)
        self.widths = (one, two, five)
        for name, module in self.named_children():
            if isinstance(module, nn.Conv2d | nn.Linear):
                _initialise(config.design, name, module)

    def _maps(self, pixels: Tensor, pool: Callable[[Tensor], Tensor]) -> list[Tensor]:
        """The outputs of conv1, conv2 and conv5 before they are pooled."""
        one = self.norm(self.relu(self.conv1(pixels)))
        two = self.norm(self.relu(self.conv2(pool(one))))
        x = self.relu(self.conv3(pool(two)))
        return [one, two, self.relu(self.conv5(self.relu(self.conv4(x))))]

    def features(self, pixels: Float[Tensor, "B C H W"]) -> list[Tensor]:
        """The outputs of conv1, conv2 and conv5, fine to coarse; borders as said under *Differs*."""
        bottom, right = (-side % self.strides[0] + self.reach for side in pixels.shape[2:])
        return self._maps(F.pad(pixels, (0, right, 0, bottom)), _pool_all)

    def embed(self, pixels: Float[Tensor, "B C H W"]) -> Float[Tensor, "B D"]:
        """The activations of fc7, the last hidden layer, which fc8 classifies; those of pool5 where there is none."""
        x = _pool(self._maps(pixels, _pool)[-1])
        if x.shape[2:] != (self.config.grid, self.config.grid):
            x = F.adaptive_avg_pool2d(x, self.config.grid)
        if self.fc6 is None or self.fc7 is None:
            return x.flatten(1)
        x = self.relu(self.fc6(self.drop5(x.flatten(1))))
        return self.relu(self.fc7(self.drop6(x)))

    def forward(self, pixels: Float[Tensor, "B C H W"], valid: Tensor | None = None) -> Float[Tensor, "B K"]:
        x = self.embed(pixels)
        return x if self.fc8 is None else self.fc8(self.drop7(x))

    def results(self, out: Float[Tensor, "B K"], images: Images) -> list[Result]:
        """Ranked classes with probabilities; embeddings of a network without a last layer."""
        return ranked(out) if self.fc8 is not None else [Embedding(vector) for vector in out.detach()]


NETWORK = AlexNet


# --- objective ---------------------------------------------------------------------------------------------------------


def objective(network: nn.Module, **options: Any) -> Supervised:
    """Multinomial logistic regression (section 3.5); options of `losses.classify.CrossEntropy`."""
    return Supervised(network, CrossEntropy(**options))


# --- variants and weights ------------------------------------------------------------------------------------------------

VARIANTS: dict[str, Config] = {
    "tiny": Config(
        (24, 48, 64, 48, 48), hidden=256, classes=10, design="small", grid=3, dropout=0.1
    ),  # half of few units is too much
    "owt": Config(),
    "2012": Config((96, 256, 384, 384, 256), groups=2, design="2012"),
}
PARAMETERS: dict[str, int] = {"owt": 61100840, "2012": 60965224}
HEAD = r"fc8\..*"  # what depends on the number of classes: fresh when fine-tuned on other ones
IGNORE = r"fc8\..+"  # a file's last layer has no place in a network with classes=0

# torchvision's places in its two sequences, in the order of this file's names
_PLACES = {
    "features.0": "conv1",
    "features.3": "conv2",
    "features.6": "conv3",
    "features.8": "conv4",
    "features.10": "conv5",
    "classifier.1": "fc6",
    "classifier.4": "fc7",
    "classifier.6": "fc8",
}
FORMATS: dict[str, Names] = {
    "torchvision": Names(*(rename(re.escape(place) + r"\.(\w+)", rf"{name}.\1") for place, name in _PLACES.items())),
    "caffe": Names(keep(r"(conv[1-5]|fc[678])\.(weight|bias)")),  # a .caffemodel's arrays under "layer.weight" and "layer.bias"
}
WEIGHTS: dict[str, Weights] = {
    "owt:imagenet1k_v1": Weights(
        url="https://download.pytorch.org/models/alexnet-owt-7be5be79.pth",
        format="torchvision",
        license="BSD-3-Clause",
        source="torchvision 0.29.2 models/alexnet.py",
        prepare=PREPARE,
        digest="7be5be79",
        labels="imagenet1k",
        reports={"imagenet1k acc@1": 56.522, "imagenet1k acc@5": 79.066},
    ),
}

"""EfficientNet: Rethinking Model Scaling for Convolutional Neural Networks.

Tan and Le, ICML 2019, arXiv 1905.11946.
Reference: torchvision 0.29 (BSD-3-Clause); timm 1.0 (Apache-2.0), whose `tf_` files are the authors' own weights; Hugging Face
transformers 5 (Apache-2.0), whose files are those of Keras.

*Differs*: "b0" to "b7" pad on both sides, as torchvision's files and timm's own, with the epsilons of torchvision; "tf_b0" to "tf_b7"
pad as TensorFlow does, as the authors' weights need; stochastic depth switches off samples, not single values.
*Map*: eq. 2-3 -> `Config.width`, `Config.depth`; table 1 -> `STAGES`; section 4, MBConv -> `MBConv`, `SqueezeExcite`;
section 5.2 -> `dropout`, `drop_connect`, `objective`; table 2 -> `VARIANTS`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from opticus.layers.drop import DropPath
from opticus.losses.classify import CrossEntropy, ranked
from opticus.losses.supervised import Supervised
from opticus.models.backbones.efficientnet_weights import PARAMETERS as PARAMETERS
from opticus.models.backbones.efficientnet_weights import PREPARE
from opticus.models.backbones.efficientnet_weights import WEIGHTS as WEIGHTS
from opticus.structures import Embedding, Images, Prepare, Result, Task
from opticus.weights.names import Names, flatten, rename

TASK: Task = "classify"
Padding = Literal["symmetric", "same"]
# table 1: expansion, kernel, stride of the first block, width, depth
STAGES = (
    (1, 3, 1, 16, 1),
    (6, 3, 2, 24, 2),
    (6, 5, 2, 40, 2),
    (6, 3, 2, 80, 3),
    (6, 5, 1, 112, 3),
    (6, 5, 2, 192, 4),
    (6, 3, 1, 320, 1),
)


@dataclass(frozen=True)
class Config:
    """Compound scaling (eq. 3): `width` and `depth` multiply those of `stages`, `size` is the resolution; `classes=0`: no head.

    `stem` is the width and stride of the first convolution, `top` the width of the last (0: none, as for a detector, which needs the
    maps alone), `norm` the epsilon and momentum of the batch norms; `padding="same"` pads as TensorFlow, which puts the odd pixel of
    a strided convolution at the right and bottom.
    """

    width: float = 1.0
    depth: float = 1.0
    size: int = 224
    dropout: float = 0.2
    drop_connect: float = 0.2
    classes: int = 1000
    stages: tuple[tuple[int, int, int, int, int], ...] = STAGES
    stem: tuple[int, int] = (32, 2)
    top: int = 1280
    norm: tuple[float, float] = (1e-5, 0.1)
    padding: Padding = "symmetric"
    channels: int = 3

    def widths(self, width: int) -> int:
        """A width of table 1 scaled: to the nearest multiple of 8, but not by more than a tenth down."""
        scaled = width * self.width
        rounded = max(8, int(scaled + 4) // 8 * 8)
        return rounded if rounded >= 0.9 * scaled else rounded + 8

    def depths(self) -> tuple[int, ...]:
        """The number of blocks of every stage."""
        return tuple(math.ceil(stage[4] * self.depth) for stage in self.stages)


# --- network -----------------------------------------------------------------------------------------------------------


class SamePad(nn.Module):
    """TensorFlow's padding of a strided convolution: ceil(n / stride) outputs, the odd zero at the right and bottom."""

    def __init__(self, kernel: int, stride: int) -> None:
        super().__init__()
        self.kernel, self.stride = kernel, stride

    def forward(self, x: Tensor) -> Tensor:
        down, right = (max((math.ceil(n / self.stride) - 1) * self.stride + self.kernel - n, 0) for n in x.shape[-2:])
        return F.pad(x, (right // 2, right - right // 2, down // 2, down - down // 2))

    def extra_repr(self) -> str:
        return f"kernel={self.kernel}, stride={self.stride}"


class ConvNorm(nn.Module):
    """A convolution without bias, batch norm, and SiLU unless `linear`."""

    def __init__(
        self, config: Config, width_in: int, width: int, kernel: int, *, stride: int = 1, groups: int = 1, linear: bool = False
    ) -> None:
        super().__init__()
        same = config.padding == "same" and stride > 1
        self.pad = SamePad(kernel, stride) if same else nn.Identity()
        self.conv = nn.Conv2d(width_in, width, kernel, stride, 0 if same else kernel // 2, groups=groups, bias=False)
        self.norm = nn.BatchNorm2d(width, *config.norm)
        self.act = nn.Identity() if linear else nn.SiLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.norm(self.conv(self.pad(x))))


class SqueezeExcite(nn.Module):
    """Channels weighted by what the whole map holds (Hu et al. 2018): x * sigmoid(expand(silu(reduce(mean(x)))))."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.reduce = nn.Linear(width, hidden)
        self.expand = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        gate = self.expand(F.silu(self.reduce(x.mean((2, 3))))).sigmoid()
        return x * gate[:, :, None, None]


class MBConv(nn.Module):
    """Inverted residual: 1x1 expansion, depthwise convolution, squeeze and excitation to a quarter of the input, linear 1x1."""

    def __init__(self, config: Config, width_in: int, width: int, expansion: int, *, kernel: int, stride: int, drop: float) -> None:
        super().__init__()
        inner = width_in * expansion
        self.expand = ConvNorm(config, width_in, inner, 1) if expansion > 1 else nn.Identity()
        self.depthwise = ConvNorm(config, inner, inner, kernel, stride=stride, groups=inner)
        self.squeeze = SqueezeExcite(inner, max(1, width_in // 4))
        self.project = ConvNorm(config, inner, width, 1, linear=True)
        self.drop_connect = DropPath(drop) if drop else nn.Identity()
        self.residual = stride == 1 and width_in == width

    def forward(self, x: Tensor) -> Tensor:
        y = self.project(self.squeeze(self.depthwise(self.expand(x))))
        if self.residual:
            y = self.drop_connect(y)
            y += x
        return y


class EfficientNet(nn.Module):
    """Table 1, scaled: a strided stem, seven stages of MBConv, a 1x1 convolution, average pooling, a linear classifier.

    `forward` returns logits (B, classes), or the pooled features (B, top) of a network without a head.
    """

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        self.prepare = _prepare(config.size).with_channels(config.channels)
        width, reach = config.widths(config.stem[0]), config.stem[1]
        self.stem = ConvNorm(config, config.channels, width, 3, stride=reach)
        depths = config.depths()
        self.stages = nn.ModuleList()
        strides, widths = [reach], [width]
        for i, (expansion, kernel, stride, wide, _) in enumerate(config.stages):
            blocks: list[nn.Module] = []
            for j in range(depths[i]):
                drop = config.drop_connect * (sum(depths[:i]) + j) / sum(depths)
                step, out = 1 if j else stride, config.widths(wide)
                blocks.append(MBConv(config, width, out, expansion, kernel=kernel, stride=step, drop=drop))
                width = out
            self.stages.append(nn.Sequential(*blocks))
            strides.append(strides[-1] * stride)
            widths.append(width)
        # the last map of every resolution is a feature; the stem's is not, where a stage follows at its resolution
        self.taps = tuple(i for i in range(len(strides)) if i == len(strides) - 1 or strides[i + 1] > strides[i])
        self.strides = tuple(strides[i] for i in self.taps)
        self.widths = tuple(widths[i] for i in self.taps)
        last = config.widths(config.top) if config.top else width
        self.top = ConvNorm(config, width, last, 1) if config.top else nn.Identity()
        self.dropout = nn.Dropout(config.dropout)
        self.head = nn.Linear(last, config.classes) if config.classes else None
        self._initialise()

    def _initialise(self) -> None:
        """As the authors: kernels normal with variance 2 / fan-out, a depthwise kernel counted per group; the head uniform."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.normal_(module.weight, std=math.sqrt(2 * module.groups / (module.weight[:, 0].numel())))
            elif isinstance(module, SqueezeExcite):
                for layer in (module.reduce, module.expand):
                    nn.init.normal_(layer.weight, std=math.sqrt(2 / layer.out_features))
                    nn.init.zeros_(layer.bias)
        if self.head is not None:
            nn.init.uniform_(self.head.weight, -(self.head.out_features**-0.5), self.head.out_features**-0.5)
            nn.init.zeros_(self.head.bias)

    def _start(self, pixels: Tensor) -> Tensor:
        """The stem, channels last: on a CPU the whole network is a fifth faster that way."""
        return self.stem(pixels.contiguous(memory_format=torch.channels_last))

    def features(self, pixels: Float[Tensor, "B C H W"]) -> list[Tensor]:
        """The last map of every resolution, before the 1x1 convolution: strides 2, 4, 8, 16, 32 (P1 to P5 of EfficientDet)."""
        x = self._start(pixels)
        maps = [x]
        for stage in self.stages:
            x = stage(x)
            maps.append(x)
        return [maps[i] for i in self.taps]

    def embed(self, pixels: Float[Tensor, "B C H W"]) -> Float[Tensor, "B D"]:
        """The pooled features after the last convolution, which the head classifies."""
        x = self._start(pixels)
        for stage in self.stages:
            x = stage(x)
        return self.top(x).mean((2, 3))

    def forward(self, pixels: Float[Tensor, "B C H W"], valid: Tensor | None = None) -> Float[Tensor, "B K"]:
        x = self.embed(pixels)
        return x if self.head is None else self.head(self.dropout(x))

    def results(self, out: Float[Tensor, "B K"], images: Images) -> list[Result]:
        """Ranked classes with probabilities; embeddings of a network without a head."""
        return ranked(out) if self.head is not None else [Embedding(vector) for vector in out.detach()]


def _prepare(size: int) -> Prepare:
    """The authors' evaluation: the centre of a picture that is 32 pixels larger; small inputs are resized as they are."""
    if size < 64:
        return replace(PREPARE, resize="fixed", size=(size, size), crop=None)
    return replace(PREPARE, size=(size + 32, 0), crop=(size, size))


NETWORK = EfficientNet


# --- objective ---------------------------------------------------------------------------------------------------------


def objective(network: nn.Module, **options: Any) -> Supervised:
    """Cross-entropy on the softmax of the logits; the authors smooth the labels by 0.1 (`smoothing=0.1`)."""
    return Supervised(network, CrossEntropy(**options))


# --- variants ----------------------------------------------------------------------------------------------------------

_TF = (1e-3, 0.01)  # TensorFlow's epsilon and its momentum of 0.99
_SCALED: dict[str, Config] = {
    "b0": Config(1.0, 1.0, 224, 0.2),
    "b1": Config(1.0, 1.1, 240, 0.2),
    "b2": Config(1.1, 1.2, 260, 0.3),
    "b3": Config(1.2, 1.4, 300, 0.3),
    "b4": Config(1.4, 1.8, 380, 0.4),
    "b5": Config(1.6, 2.2, 456, 0.4, norm=_TF),
    "b6": Config(1.8, 2.6, 528, 0.5, norm=_TF),
    "b7": Config(2.0, 3.1, 600, 0.5, norm=_TF),
}
VARIANTS: dict[str, Config] = {
    "tiny": Config(
        size=32,
        dropout=0.1,
        drop_connect=0.05,
        classes=10,
        stages=((1, 3, 2, 16, 1), (4, 3, 1, 24, 2), (4, 5, 2, 48, 2), (4, 3, 2, 96, 2)),
        stem=(16, 1),
        top=256,
    ),
    **_SCALED,
    "b5_sw": replace(_SCALED["b5"], size=448, norm=(1e-5, 0.1)),  # timm's recipe "sw", trained with its usual epsilon
    **{f"tf_{name}": replace(config, norm=_TF, padding="same") for name, config in _SCALED.items()},
}

# --- weights -----------------------------------------------------------------------------------------------------------

_BN = r"(weight|bias|running_mean|running_var|num_batches_tracked)"
_LAYERS = ("expand", "depthwise", "squeeze", "project")


def _block_of_torchvision(match: re.Match[str]) -> str:
    """features.2.0.block.1.0 -> stages.1.0.depthwise.conv; the first stage has no expansion, so that its layers count from 1."""
    stage = int(match[1]) - 1
    layer = _LAYERS[int(match[3]) + (stage == 0)]
    return f"stages.{stage}.{match[2]}.{layer}.{'norm' if match[4] == '1' else 'conv'}.{match[5]}"


def _excite_of_torchvision(match: re.Match[str]) -> str:
    """features.2.0.block.2.fc1 -> stages.1.0.squeeze.reduce"""
    return f"stages.{int(match[1]) - 1}.{match[2]}.squeeze.{'reduce' if match[3] == '1' else 'expand'}.{match[4]}"


def _linear(pattern: str, to: Any) -> tuple[Any, Any]:
    """Rules for a 1x1 convolution with bias that is a linear layer here."""
    return rename(pattern + r"\.(weight)", to, flatten(1)), rename(pattern + r"\.(bias)", to)


_EXCITE = r"features\.([1-7])\.(\d+)\.block\.[12]\.fc([12])"
_TORCHVISION = Names(
    rename(r"features\.0\.0\.weight", "stem.conv.weight"),
    rename(rf"features\.0\.1\.{_BN}", r"stem.norm.\1"),
    rename(r"features\.8\.0\.weight", "top.conv.weight"),
    rename(rf"features\.8\.1\.{_BN}", r"top.norm.\1"),
    rename(rf"features\.([1-7])\.(\d+)\.block\.([0-3])\.([01])\.{_BN}", _block_of_torchvision),
    *_linear(_EXCITE, _excite_of_torchvision),
    rename(r"classifier\.1\.(\w+)", r"head.\1"),
)

_TIMM_CONV = {"pw": "expand", "dw": "depthwise", "pwl": "project"}


def _conv_of_timm(match: re.Match[str]) -> str:
    """blocks.2.1.conv_pwl -> stages.2.1.project.conv; the first stage's only 1x1 convolution, conv_pw, is the projection"""
    layer = "project" if match[1] == "0" and match[3] == "pw" else _TIMM_CONV[match[3]]
    return f"stages.{match[1]}.{match[2]}.{layer}.conv.weight"


def _norm_of_timm(match: re.Match[str]) -> str:
    """blocks.2.1.bn3 -> stages.2.1.project.norm; the first stage has two"""
    layer = ("expand", "depthwise", "project")[int(match[3]) - (match[1] != "0")]
    return f"stages.{match[1]}.{match[2]}.{layer}.norm.{match[4]}"


def _excite_of_timm(match: re.Match[str]) -> str:
    return f"stages.{match[1]}.{match[2]}.squeeze.{match[3]}.{match[4]}"


_TIMM = Names(
    rename(r"conv_stem\.weight", "stem.conv.weight"),
    rename(rf"bn1\.{_BN}", r"stem.norm.\1"),
    rename(r"conv_head\.weight", "top.conv.weight"),
    rename(rf"bn2\.{_BN}", r"top.norm.\1"),
    rename(r"blocks\.(\d)\.(\d+)\.conv_(pw|dw|pwl)\.weight", _conv_of_timm),
    rename(rf"blocks\.(\d)\.(\d+)\.bn([123])\.{_BN}", _norm_of_timm),
    *_linear(r"blocks\.(\d)\.(\d+)\.se\.conv_(reduce|expand)", _excite_of_timm),
    rename(r"classifier\.(\w+)", r"head.\1"),
)

_HUB = {"expansion.expand": "expand", "depthwise_conv.depthwise": "depthwise", "projection.project": "project"}


def _hugging_face(depths: Sequence[int]) -> Names:
    """transformers numbers the blocks through, so that their stages follow from the depth of the network."""
    starts = (0, *accumulate(depths))

    def place(number: str) -> str:
        stage = max(i for i, start in enumerate(starts) if start <= int(number))
        return f"stages.{stage}.{int(number) - starts[stage]}"

    def of_layer(match: re.Match[str]) -> str:
        return f"{place(match[1])}.{_HUB[match[2]]}.{'conv' if match[3] == 'conv' else 'norm'}.{match[4]}"

    def of_excite(match: re.Match[str]) -> str:
        return f"{place(match[1])}.squeeze.{match[2]}.{match[3]}"

    net = r"(?:efficientnet\.)?"
    return Names(
        rename(net + r"embeddings\.convolution\.weight", "stem.conv.weight"),
        rename(net + rf"embeddings\.batchnorm\.{_BN}", r"stem.norm.\1"),
        rename(net + r"encoder\.top_conv\.weight", "top.conv.weight"),
        rename(net + rf"encoder\.top_bn\.{_BN}", r"top.norm.\1"),
        rename(net + rf"encoder\.blocks\.(\d+)\.({'|'.join(map(re.escape, _HUB))})_(conv|bn|norm)\.{_BN}", of_layer),
        *_linear(net + r"encoder\.blocks\.(\d+)\.squeeze_excite\.(reduce|expand)", of_excite),
        rename(r"classifier\.(\w+)", r"head.\1"),
    )


HEAD = r"head\..*"  # what depends on the number of classes: fresh when fine-tuned on other ones
IGNORE = r"(head|top)\..+"  # a file's last layers have no place in a network with classes=0 or top=0
FORMATS: dict[str, Names] = {
    "torchvision": _TORCHVISION,
    "timm": _TIMM,
    # b1 and b2 are equally deep
    **{f"huggingface_{name}": _hugging_face(_SCALED[name].depths()) for name in ("b0", "b2", "b3", "b4", "b5", "b6", "b7")},
}

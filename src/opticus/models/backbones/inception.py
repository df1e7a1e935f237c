"""Rethinking the Inception Architecture for Computer Vision (Inception v3).

Szegedy, Vanhoucke, Ioffe, Shlens and Wojna, CVPR 2016, arXiv 1512.00567.
Reference: torchvision 0.29 (BSD-3-Clause), whose file was ported from the authors'; pytorch-fid (Apache-2.0) for the network of 2015 that
the Frechet inception distance is measured with.

*Differs*: as the published files, the auxiliary classifier sits on 6e. `fid` is the network of 2015-12-05: its average pooling does not count
the padding, its last module pools by maximum, it knows 1,008 classes and has no auxiliary classifier. Weights start after He et al.
2015. pytorch-fid resizes floats without antialiasing, here pixels are resized as bytes, so that vectors differ by up to one grey
level. Convolutions without padding give maps that are no even fraction of the picture: there are no `features`. The "small" stem (for
32x32 pictures) has padding and one pooling less.
*Map*: figure 5 -> `A`; figure 10 -> `B`, `D`; figure 6 -> `C`; figure 7 -> `E`; section 4 -> `Auxiliary`; table 1 -> `Inception`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from opticus.losses.classify import CrossEntropy, ranked
from opticus.losses.supervised import Supervised
from opticus.structures import Batch, Embedding, Images, Prepare, Result, Task, UsageError, Weights
from opticus.weights.names import Names, drop, keep

TASK: Task = "classify"
# grey levels in -1..1; torchvision says the same as ImageNet's mean and deviation, undone inside the network ("transform_input")
PREPARE = Prepare(resize="shortest", size=(342, 0), crop=(299, 299), mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
FID = Prepare(resize="fixed", size=(299, 299), antialias=False, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
SMALL = Prepare(resize="fixed", size=(32, 32), mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))


@dataclass(frozen=True)
class Config:
    """`width` multiplies every number of channels; `auxiliary=False` leaves the side head away, `classes=0` both heads."""

    classes: int = 1000
    width: float = 1.0
    auxiliary: bool = True
    fid: bool = False
    stem: Literal["imagenet", "small"] = "imagenet"
    dropout: float = 0.5
    channels: int = 3

    def __post_init__(self) -> None:
        if self.auxiliary and (self.fid or self.stem == "small"):
            raise UsageError("inception: only the network of 2016 with its own stem has a side head: auxiliary=False")


class Out(NamedTuple):
    """Logits (B, classes) of the network and, in training only, of the classifier behind 6e."""

    logits: Tensor
    auxiliary: Tensor | None = None


class Step(NamedTuple):
    """One convolution of a module: its name, channels, kernel (rows, columns), stride; `pad` keeps the size."""

    name: str
    width: int
    kernel: tuple[int, int]
    stride: int = 1
    pad: bool = True


# --- network -----------------------------------------------------------------------------------------------------------


class Conv(nn.Module):
    """A convolution, batch norm (eps 0.001) and a ReLU."""

    def __init__(self, width_in: int, width: int, kernel: tuple[int, int], stride: int = 1, pad: bool = False) -> None:
        super().__init__()
        padding = (kernel[0] // 2, kernel[1] // 2) if pad else (0, 0)
        self.conv = nn.Conv2d(width_in, width, kernel, stride, padding, bias=False)
        self.bn = nn.BatchNorm2d(width, eps=0.001)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.bn(self.conv(x)), inplace=True)


class Mixed(nn.Module):
    """Chains of convolutions side by side, and a pooling. A chain's `forks` are two convolutions of its result.

    `pool`: "average" | "inside" (an average that does not count the padding) | "maximum", each before the convolution
    `branch_pool`; "halve": the maximum over windows two apart, without one.
    """

    def __init__(
        self, width_in: int, chains: Sequence[tuple[Sequence[Step], Sequence[Step]]], pool: str, projection: int = 0
    ) -> None:  # fmt: skip
        super().__init__()
        self.pool = pool
        self.chains = [([s.name for s in chain], [s.name for s in forks]) for chain, forks in chains]
        self.width = projection or width_in
        for chain, forks in chains:
            width = width_in
            for step in chain:
                self.add_module(step.name, Conv(width, step.width, step.kernel, step.stride, step.pad))
                width = step.width
            for step in forks:
                self.add_module(step.name, Conv(width, step.width, step.kernel, step.stride, step.pad))
            self.width += sum(step.width for step in forks) if forks else width
        if projection:
            self.branch_pool = Conv(width_in, projection, (1, 1))

    def forward(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B D h w"]:
        outs: list[Tensor] = []
        for chain, forks in self.chains:
            y = x
            for name in chain:
                y = self.get_submodule(name)(y)
            outs += [self.get_submodule(name)(y) for name in forks] if forks else [y]
        if self.pool == "halve":
            return torch.cat([*outs, F.max_pool2d(x, 3, 2)], 1)
        if self.pool == "maximum":
            pooled = F.max_pool2d(x, 3, 1, 1)
        else:
            pooled = F.avg_pool2d(x, 3, 1, 1, count_include_pad=self.pool == "average")
        return torch.cat([*outs, self.branch_pool(pooled)], 1)


class Plan:
    """The modules of table 1 for one width and one kind of pooling."""

    def __init__(self, width: float, pool: str) -> None:
        self.factor, self.pool = width, pool

    def scaled(self, width: int) -> int:
        """Channels times the factor."""
        return max(1, round(self.factor * width))

    def _step(self, name: str, width: int, rows: int, columns: int, stride: int = 1, pad: bool = True) -> Step:
        return Step(name, self.scaled(width), (rows, columns), stride, pad)

    def a(self, width_in: int, projection: int) -> Mixed:
        """Figure 5: 1x1; 5x5; two 3x3 in place of a 5x5; pooling."""
        s = self._step
        chains = (
            ((s("branch1x1", 64, 1, 1),), ()),
            ((s("branch5x5_1", 48, 1, 1), s("branch5x5_2", 64, 5, 5)), ()),
            ((s("branch3x3dbl_1", 64, 1, 1), s("branch3x3dbl_2", 96, 3, 3), s("branch3x3dbl_3", 96, 3, 3)), ()),
        )
        return Mixed(width_in, chains, self.pool, self.scaled(projection))

    def b(self, width_in: int) -> Mixed:
        """Figure 10: half the size, more channels."""
        s = self._step
        double = s("branch3x3dbl_1", 64, 1, 1), s("branch3x3dbl_2", 96, 3, 3), s("branch3x3dbl_3", 96, 3, 3, 2, False)
        return Mixed(width_in, (((s("branch3x3", 384, 3, 3, 2, False),), ()), (double, ())), "halve")

    def c(self, width_in: int, inner: int) -> Mixed:
        """Figure 6: 7x7 convolutions as 1x7 and 7x1."""
        s, d = self._step, "branch7x7dbl_"
        single = s("branch7x7_1", inner, 1, 1), s("branch7x7_2", inner, 1, 7), s("branch7x7_3", 192, 7, 1)
        double = (
            *(s(f"{d}1", inner, 1, 1), s(f"{d}2", inner, 7, 1), s(f"{d}3", inner, 1, 7)),
            *(s(f"{d}4", inner, 7, 1), s(f"{d}5", 192, 1, 7)),
        )
        return Mixed(width_in, (((s("branch1x1", 192, 1, 1),), ()), (single, ()), (double, ())), self.pool, self.scaled(192))

    def d(self, width_in: int) -> Mixed:
        """Half the size once more."""
        s, t = self._step, "branch7x7x3_"
        single = s("branch3x3_1", 192, 1, 1), s("branch3x3_2", 320, 3, 3, 2, False)
        triple = s(f"{t}1", 192, 1, 1), s(f"{t}2", 192, 1, 7), s(f"{t}3", 192, 7, 1), s(f"{t}4", 192, 3, 3, 2, False)
        return Mixed(width_in, ((single, ()), (triple, ())), "halve")

    def e(self, width_in: int, pool: str) -> Mixed:
        """Figure 7: 1x3 and 3x1 side by side."""
        s = self._step
        single = (s("branch3x3_1", 384, 1, 1),), (s("branch3x3_2a", 384, 1, 3), s("branch3x3_2b", 384, 3, 1))
        double = (
            (s("branch3x3dbl_1", 448, 1, 1), s("branch3x3dbl_2", 384, 3, 3)),
            (s("branch3x3dbl_3a", 384, 1, 3), s("branch3x3dbl_3b", 384, 3, 1)),
        )
        return Mixed(width_in, (((s("branch1x1", 320, 1, 1),), ()), single, double), pool, self.scaled(192))


class Auxiliary(nn.Module):
    """A classifier on the last map of 17x17 (section 4): average pooling, two convolutions, one linear layer."""

    def __init__(self, width_in: int, widths: tuple[int, int], classes: int) -> None:
        super().__init__()
        self.conv0 = Conv(width_in, widths[0], (1, 1))
        self.conv1 = Conv(widths[0], widths[1], (5, 5))
        self.fc = nn.Linear(widths[1], classes)

    def forward(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B K"]:
        x = self.conv1(self.conv0(F.avg_pool2d(x, 5, 3)))
        return self.fc(F.adaptive_avg_pool2d(x, 1).flatten(1))


class Inception(nn.Module):
    """Table 1. `forward` returns `Out`, or the pooled features (B, D) of a network without heads."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        small = config.stem == "small"
        self.prepare = (SMALL if small else FID if config.fid else PREPARE).with_channels(config.channels)
        plan = Plan(config.width, "inside" if config.fid else "average")
        w, first = plan.scaled, 1 if small else 2
        self.Conv2d_1a_3x3 = Conv(config.channels, w(32), (3, 3), first, small)
        self.Conv2d_2a_3x3 = Conv(w(32), w(32), (3, 3), 1, small)
        self.Conv2d_2b_3x3 = Conv(w(32), w(64), (3, 3), 1, True)
        self.Conv2d_3b_1x1 = Conv(w(64), w(80), (1, 1))
        self.Conv2d_4a_3x3 = Conv(w(80), w(192), (3, 3), 1, small)
        width = w(192)
        made = [("5b", "a", 32), ("5c", "a", 64), ("5d", "a", 64), ("6a", "b", 0), ("6b", "c", 128), ("6c", "c", 160),
                ("6d", "c", 160), ("6e", "c", 192), ("7a", "d", 0), ("7b", "e", 0), ("7c", "e", 0)]  # fmt: skip
        side = 0
        for name, kind, number in made:
            last = "maximum" if config.fid and name == "7c" else plan.pool
            module = plan.e(width, last) if kind == "e" else getattr(plan, kind)(width, *([number] if number else []))
            self.add_module(f"Mixed_{name}", module)
            width = module.width
            side = width if name == "6e" else side
        heads = config.classes > 0
        self.AuxLogits = Auxiliary(side, (w(128), w(768)), config.classes) if heads and config.auxiliary else None
        self.dropout = nn.Dropout(config.dropout)
        self.fc = nn.Linear(width, config.classes) if heads else None
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")

    def _maps(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """The maps of 6e and 7c."""
        x = self.Conv2d_2b_3x3(self.Conv2d_2a_3x3(self.Conv2d_1a_3x3(pixels)))
        x = self.Conv2d_4a_3x3(self.Conv2d_3b_1x1(F.max_pool2d(x, 3, 2)))
        if self.config.stem != "small":
            x = F.max_pool2d(x, 3, 2)
        middle = x
        for name, module in self.named_children():
            if name.startswith("Mixed_"):
                x = module(x)
                middle = x if name == "Mixed_6e" else middle
        return middle, x

    def embed(self, pixels: Float[Tensor, "B C H W"]) -> Float[Tensor, "B D"]:
        """The averaged map of 7c (2,048 numbers at full width): what the linear layer classifies, and the Frechet distance looks at."""
        return self._maps(pixels)[1].mean((2, 3))

    def forward(self, pixels: Float[Tensor, "B C H W"], valid: Tensor | None = None) -> Out | Float[Tensor, "B D"]:
        middle, last = self._maps(pixels)
        x = last.mean((2, 3))
        if self.fc is None:
            return x
        logits = self.fc(self.dropout(x))
        return Out(logits, self.AuxLogits(middle) if self.training and self.AuxLogits is not None else None)

    def results(self, out: Out | Float[Tensor, "B D"], images: Images) -> list[Result]:
        """Ranked classes with probabilities; embeddings of a network without heads."""
        return ranked(out.logits) if isinstance(out, Out) else [Embedding(vector) for vector in out.detach()]


NETWORK = Inception


# --- objective ---------------------------------------------------------------------------------------------------------


class Deep(nn.Module):
    """Cross-entropy of the network and, weighted by `weight`, of the auxiliary classifier (torchvision's 0.4)."""

    def __init__(self, *, weight: float = 0.4, **options: Any) -> None:
        super().__init__()
        self.weight = weight
        self.entropy = CrossEntropy(**options)

    def forward(self, out: Out, batch: Batch) -> dict[str, Tensor]:
        """{"classify", "auxiliary"}: the weighted terms; without auxiliary logits only the first."""
        terms = self.entropy(out.logits, batch)
        if out.auxiliary is not None:
            terms["auxiliary"] = self.weight * self.entropy(out.auxiliary, batch)["classify"]
        return terms


def objective(network: nn.Module, **options: Any) -> Supervised:
    """Cross-entropy of both classifiers, with label smoothing where asked for (section 7): options of `losses.classify.CrossEntropy`."""
    return Supervised(network, Deep(**options))


# --- variants and weights ------------------------------------------------------------------------------------------------

VARIANTS: dict[str, Config] = {
    "tiny": Config(10, 0.125, auxiliary=False, stem="small", dropout=0.1),
    "v3": Config(),
    "fid": Config(1008, auxiliary=False, fid=True),
}
PARAMETERS: dict[str, int] = {"v3": 27161264}
HEAD = r"(fc|AuxLogits\.fc)\..*"
IGNORE = r"(fc|AuxLogits)\..+"
FORMATS: dict[str, Names] = {
    "torchvision": Names(keep(r"(Conv2d_\w+|Mixed_\w+|AuxLogits|fc)\..+")),
    "torchvision-inference": Names(drop(r"AuxLogits\..+"), keep(r"(Conv2d_\w+|Mixed_\w+|fc)\..+")),  # for auxiliary=False
}
WEIGHTS: dict[str, Weights] = {
    "v3:imagenet1k_v1": Weights(
        url="https://download.pytorch.org/models/inception_v3_google-0cc3c7bd.pth",
        format="torchvision",
        license="BSD-3-Clause",
        source="torchvision 0.29.2 models/inception.py",
        prepare=PREPARE,
        digest="0cc3c7bd",
        labels="imagenet1k",
        reports={"imagenet1k acc@1": 77.294, "imagenet1k acc@5": 93.450},
    ),
    "fid:2015": Weights(
        url="https://github.com/mseitzer/pytorch-fid/releases/download/fid_weights/pt_inception-2015-12-05-6726825d.pth",
        format="torchvision",
        license="Apache-2.0",
        source="github.com/mseitzer/pytorch-fid src/pytorch_fid/inception.py",
        prepare=FID,
        digest="6726825d",
    ),
}

"""Photo-Realistic Single Image Super-Resolution Using a Generative Adversarial Network (SRResNet, SRGAN).

Ledig, Theis, Huszar, Caballero, Cunningham, Acosta, Aitken, Tejani, Totz, Wang and Shi, CVPR 2017, arXiv 1609.04802.
Reference: Lornatang/SRGAN-PyTorch (Apache-2.0), sgrvinod/a-PyTorch-Tutorial-to-Super-Resolution (MIT) and leftthomas/SRGAN (MIT).

*Differs*: large pictures are answered in [0, 1], as in Lornatang/SRGAN-PyTorch, whose clamp is left to `results`; the paper's are in
[-1, 1]. The discriminator pools its last maps to 6x6, which changes nothing at the paper's 96x96 pixels and lets it look at others.
leftthomas/SRGAN has 5 residual blocks instead of 16. Convolutions that a batch norm follows have no bias, except in the variants of
those files that have one. The last norm of every skipped branch starts at zero: short trainings get far further.
*Map*: figure 4, above -> `SRResNet`, `Residual`, `SubPixel`; figure 4, below -> `Discriminator`; eq. 3 -> `SRGAN.forward`; eq. 4 ->
`losses`' content "pixels"; eq. 5 -> `SRGAN.content` with `features`; eq. 6 -> `losses.adversarial`, the rule "logistic"; section
3.2 (feature maps scaled by 1 / 12.75) -> `FEATURES`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal, NamedTuple, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn

from opticus.losses.adversarial import rule
from opticus.losses.pictures import mean, pictures, pixels_of, targets_of
from opticus.structures import Batch, Images, Picture, Prepare, Progress, Task, UsageError, Weights
from opticus.weights.names import Names, keep, rename

TASK: Task = "translate"
PREPARE = Prepare(resize="none", mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
IMAGENET = Prepare(resize="none")
SIGNED = Prepare(resize="none", mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
FEATURES = 0.006  # (1 / 12.75) squared: the weight of the squared error of VGG's feature maps (section 3.2)


@dataclass(frozen=True)
class Config:
    """`scale` is the enlargement, a power of two; `bias`: convolutions before a batch norm have one.

    `ends` says what comes in and out: "linear" [0, 1] and [0, 1], "tanh" ImageNet's normalisation and [-1, 1], "half" [0, 1] and
    (tanh + 1) / 2.
    """

    scale: int = 4
    blocks: int = 16
    width: int = 64
    channels: int = 3
    bias: bool = False
    ends: Literal["linear", "tanh", "half"] = "linear"

    def __post_init__(self) -> None:
        if self.scale < 2 or self.scale & (self.scale - 1):
            raise UsageError(f"srgan: scale must be 2, 4, 8, ..., found {self.scale}")
        if min(self.blocks, self.width, self.channels) < 1:
            raise UsageError(f"srgan: blocks, width and channels must be at least 1, found {self}")
        if self.ends not in ENDS:
            raise UsageError(f"srgan: ends must be one of {', '.join(ENDS)}, found {self.ends!r}")


class Ends(NamedTuple):
    """The last function of a network, and what its input and output numbers mean."""

    last: Callable[[Tensor], Tensor]
    prepare: Prepare
    produces: Prepare


ENDS = {
    "linear": Ends(lambda x: x, PREPARE, PREPARE),
    "tanh": Ends(torch.tanh, IMAGENET, SIGNED),
    "half": Ends(lambda x: (torch.tanh(x) + 1) / 2, PREPARE, PREPARE),
}


# --- network -----------------------------------------------------------------------------------------------------------


class Residual(nn.Module):
    """x + bn(conv(prelu(bn(conv(x))))), both convolutions k3s1."""

    def __init__(self, width: int, bias: bool) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width, width, 3, padding=1, bias=bias)
        self.bn1 = nn.BatchNorm2d(width)
        self.prelu = nn.PReLU()
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=bias)
        self.bn2 = nn.BatchNorm2d(width)

    def forward(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B C H W"]:
        return x + self.bn2(self.conv2(self.prelu(self.bn1(self.conv1(x)))))


class SubPixel(nn.Module):
    """Twice the size: a convolution to four times the channels, which become 2x2 pixels (Shi 2016, arXiv 1609.05158)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, 4 * width, 3, padding=1)
        self.shuffle = nn.PixelShuffle(2)
        self.prelu = nn.PReLU()

    def forward(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B C 2H 2W"]:
        return self.prelu(self.shuffle(self.conv(x)))


class SRResNet(nn.Module):
    """The generator: residual blocks at the small size, one long skip, then sub-pixel convolutions up to the large size."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config, self.scale = config, config.scale
        ends = ENDS[config.ends]
        self.last = ends.last
        self.prepare, self.produces = (one.with_channels(config.channels) for one in ends[1:])
        width = config.width
        self.first = nn.Conv2d(config.channels, width, 9, padding=4)
        self.prelu = nn.PReLU()
        self.blocks = nn.Sequential(*(Residual(width, config.bias) for _ in range(config.blocks)))
        self.conv = nn.Conv2d(width, width, 3, padding=1, bias=config.bias)
        self.bn = nn.BatchNorm2d(width)
        self.upsampling = nn.Sequential(*(SubPixel(width) for _ in range(config.scale.bit_length() - 1)))
        self.final = nn.Conv2d(width, config.channels, 9, padding=4)
        for norm in (*(block.get_submodule("bn2") for block in self.blocks), self.bn):
            nn.init.zeros_(cast(nn.BatchNorm2d, norm).weight)

    def forward(self, pixels: Float[Tensor, "B C H W"], valid: Tensor | None = None) -> Float[Tensor, "B C sH sW"]:
        x = self.prelu(self.first(pixels))
        x = x + self.bn(self.conv(self.blocks(x)))
        return self.last(self.final(self.upsampling(x)))

    def results(self, out: Float[Tensor, "B C sH sW"], images: Images) -> list[Picture]:
        """The enlarged pictures, without what belongs to padding."""
        whole = pictures(out, self.produces)
        if images.valid is None:
            return whole
        cuts = [(int(one.any(1).sum()) * self.scale, int(one.any(0).sum()) * self.scale) for one in images.valid]
        return [Picture(one.pixels[:height, :width].contiguous()) for one, (height, width) in zip(whole, cuts)]


NETWORK = SRResNet


# --- objective ---------------------------------------------------------------------------------------------------------


class Discriminator(nn.Module):
    """Eight k3 convolutions, every other one with stride 2, of width 1, 1, 2, 2, 4, 4, 8 and 8; then dense layers. Logits (B,)."""

    def __init__(self, channels: int, width: int, hidden: int, pool: int) -> None:
        super().__init__()
        widths = [width * factor for factor in (1, 1, 2, 2, 4, 4, 8, 8)]
        layers: list[nn.Module] = [nn.Conv2d(channels, width, 3, padding=1), nn.LeakyReLU(0.2)]
        for i, (before, after) in enumerate(pairwise(widths), 1):
            layers += [nn.Conv2d(before, after, 3, 1 + i % 2, 1, bias=False), nn.BatchNorm2d(after), nn.LeakyReLU(0.2)]
        self.features = nn.Sequential(*layers)
        self.pool = nn.AdaptiveAvgPool2d(pool)
        self.classifier = nn.Sequential(nn.Linear(widths[-1] * pool**2, hidden), nn.LeakyReLU(0.2), nn.Linear(hidden, 1))

    def forward(self, pixels: Float[Tensor, "B C H W"]) -> Float[Tensor, "B"]:
        return self.classifier(self.pool(self.features(pixels)).flatten(1))[:, 0]


Features = Callable[[Tensor], Tensor | Sequence[Tensor]]


class SRGAN(nn.Module):
    """The content loss alone (SRResNet, one phase), or with `adversarial` > 0 the game of generator and discriminator.

    The content loss is the squared error of pixels (eq. 4), or of feature maps (eq. 5): `features` takes pictures in ImageNet's
    normalisation and gives a map or several, such as those of a trained VGG's last stage; it is neither trained nor saved.
    """

    discriminator: Discriminator | None

    def __init__(
        self, network: SRResNet, *, adversarial: float = 0.0, features: Features | None = None, weight: float | None = None,
        width: int = 64, hidden: int = 1024, pool: int = 6,
    ) -> None:  # fmt: skip
        super().__init__()
        if adversarial < 0 or (weight is not None and weight < 0) or min(width, hidden, pool) < 1:
            raise UsageError(f"srgan: adversarial={adversarial} and weight={weight} must not be negative, sizes at least 1")
        self.network, self.adversarial = network, adversarial
        self.weight = weight if weight is not None else FEATURES if features is not None else 1.0
        if isinstance(features, nn.Module):
            features.eval().requires_grad_(False)
        self._features = [features]  # in a list, so that a module among them is no part of what is trained, moved and saved
        self.discriminator = Discriminator(network.config.channels, width, hidden, pool) if adversarial else None
        self._scores: tuple[float, float] | None = None

    def phases(self, step: int) -> tuple[str, ...]:
        """("d", "g") at every step, or ("all",) without a discriminator."""
        return ("d", "g") if self.discriminator is not None else ("all",)

    def parameters_of(self, phase: str) -> Iterable[nn.Parameter]:
        """Those of the discriminator in "d", else those of the network."""
        return self.discriminator.parameters() if phase == "d" and self.discriminator is not None else self.network.parameters()

    def forward(self, batch: Batch, at: Progress) -> dict[str, Tensor]:
        """ "d": log D on large pictures and log(1 - D) on enlarged ones; "g": content and `adversarial` times -log D (eq. 3)."""
        small, large = pixels_of(batch), targets_of(batch, self.network.produces)
        game = rule("logistic")
        if at.phase == "d" and self.discriminator is not None:
            with torch.no_grad():
                made = self.network(small)
            real, fake = self.discriminator(large), self.discriminator(made.to(large))
            self._scores = float(real.detach().mean()), float(fake.detach().mean())
            return {"d/real": mean(game.real(real.float()), batch), "d/fake": mean(game.fake(fake.float()), batch)}
        made = self.network(small)
        if made.shape != large.shape:
            raise UsageError(
                f"srgan: {batch.ids[0]} is answered by {tuple(made.shape[2:])} pixels, but its target has {tuple(large.shape[2:])}"
            )
        terms = {"content": self.weight * mean(self.content(made.float(), large), batch)}
        if self.discriminator is None:
            return terms
        fooled = mean(game.generator(self.discriminator(made).float()), batch)
        return {"g/content": terms["content"], "g/fool": self.adversarial * fooled}

    def content(self, made: Float[Tensor, "B C H W"], large: Float[Tensor, "B C H W"]) -> Float[Tensor, "B"]:
        """The mean squared error of every picture, of its pixels or of its feature maps (the sum over several maps)."""
        look = self._features[0]
        if look is None:
            return (made - large).square().flatten(1).mean(1)
        if isinstance(look, nn.Module):
            look.to(made.device)
        found, wanted = look(self._as_seen(made)), look(self._as_seen(large))
        ours, theirs = ([maps] if isinstance(maps, Tensor) else list(maps) for maps in (found, wanted))
        return torch.stack([(a - b).square().flatten(1).mean(1) for a, b in zip(ours, theirs, strict=True)]).sum(0)

    def _as_seen(self, pixels: Tensor) -> Tensor:
        """Pictures of three channels in ImageNet's normalisation."""
        ours = self.network.produces
        a, b, c, d = (pixels.new_tensor(v)[:, None, None] for v in (ours.std, ours.mean, IMAGENET.mean, IMAGENET.std))
        return ((pixels * a + b).expand(-1, 3, -1, -1) - c) / d

    def realness(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """The discriminator's logits (B,) of large and of enlarged pictures."""
        if self.discriminator is None:
            raise UsageError("srgan: there is no discriminator without adversarial > 0")
        return self.discriminator(targets_of(batch, self.network.produces)), self.discriminator(self.network(pixels_of(batch)))

    def before_update(self, at: Progress) -> None:
        """Nothing."""

    def after_step(self, at: Progress) -> None:
        """Nothing."""

    def figures(self) -> dict[str, float]:
        """Mean logits of large and of enlarged pictures in the last step of the discriminator."""
        return {} if self._scores is None else dict(zip(("logit_real", "logit_fake"), self._scores))

    def alarm(self, figures: Any) -> str | None:
        """Nothing to tell: pictures that do not fit are seen in the content loss."""
        return None


def objective(network: SRResNet, **options: Any) -> SRGAN:
    """SRResNet's loss, or with `adversarial=1e-3` SRGAN's; see `SRGAN` for `features`, `weight` and the discriminator's sizes."""
    return SRGAN(network, **options)


# --- variants and weights ------------------------------------------------------------------------------------------------

VARIANTS: dict[str, Config] = {
    "tiny": Config(scale=2, blocks=4, width=32),
    "x2": Config(scale=2),
    "x4": Config(),
    "x8": Config(scale=8),
    "x4-tanh": Config(bias=True, ends="tanh"),
    "x2-small": Config(scale=2, blocks=5, bias=True, ends="half"),
    "x4-small": Config(blocks=5, bias=True, ends="half"),
    "x8-small": Config(scale=8, blocks=5, bias=True, ends="half"),
}
PARAMETERS: dict[str, int] = {}
OVERFIT = {"lr": 4e-3}


def _names(table: dict[str, str], where: str = "", ours: str = "") -> Names:
    """Rules "their module" -> "our module" below `where` and `ours`, for weights, biases and statistics alike."""
    return Names(*(rename(rf"{where}{old}\.(?P<rest>\w+)", rf"{ours}{new}.\g<rest>") for old, new in table.items()))


_LORNATANG = {
    r"conv1\.0": "first",
    r"conv1\.1": "prelu",
    r"trunk\.(\d+)\.rcb\.0": r"blocks.\1.conv1",
    r"trunk\.(\d+)\.rcb\.1": r"blocks.\1.bn1",
    r"trunk\.(\d+)\.rcb\.2": r"blocks.\1.prelu",
    r"trunk\.(\d+)\.rcb\.3": r"blocks.\1.conv2",
    r"trunk\.(\d+)\.rcb\.4": r"blocks.\1.bn2",
    r"conv2\.0": "conv",
    r"conv2\.1": "bn",
    r"upsampling\.(\d+)\.upsample_block\.0": r"upsampling.\1.conv",
    r"upsampling\.(\d+)\.upsample_block\.2": r"upsampling.\1.prelu",
    "conv3": "final",
}
FORMATS: dict[str, Names] = {
    "lornatang": _names(_LORNATANG),
    "sgrvinod": _names(  # of checkpoint["model"].state_dict(), as the files hold whole pickled modules, which are not read
        {
            r"conv_block1\.conv_block\.0": "first",
            r"conv_block1\.conv_block\.1": "prelu",
            r"residual_blocks\.(\d+)\.conv_block([12])\.conv_block\.0": r"blocks.\1.conv\2",
            r"residual_blocks\.(\d+)\.conv_block([12])\.conv_block\.1": r"blocks.\1.bn\2",
            r"residual_blocks\.(\d+)\.conv_block1\.conv_block\.2": r"blocks.\1.prelu",
            r"conv_block2\.conv_block\.0": "conv",
            r"conv_block2\.conv_block\.1": "bn",
            r"subpixel_convolutional_blocks\.(\d+)\.(conv|prelu)": r"upsampling.\1.\2",
            r"conv_block3\.conv_block\.0": "final",
        },
        r"(?:net\.)?",  # SRGAN's generator is a module with an SRResNet inside
    ),
    "leftthomas": Names(
        rename(r"block1\.0\.(\w+)", r"first.\1"),
        rename(r"block1\.1\.(\w+)", r"prelu.\1"),
        rename(r"block([2-6])\.(\w+\.\w+)", lambda found: f"blocks.{int(found[1]) - 2}.{found[2]}"),
        rename(r"block7\.0\.(\w+)", r"conv.\1"),
        rename(r"block7\.1\.(\w+)", r"bn.\1"),
        rename(r"block8\.(\d+)\.(conv|prelu)\.(\w+)", r"upsampling.\1.\2.\3"),
        rename(r"block8\.\d+\.(\w+)", r"final.\1"),
    ),
}
TRAINING = Names(keep(r"discriminator\..+")) + _names(_LORNATANG, r"network\.", "network.")  # modules of Lornatang's
_REPORTS = {  # of 4x enlargement on the Y channel: README of the repository, its own training
    "srresnet": {"PSNR Set5": 32.16, "SSIM Set5": 0.8938, "PSNR Set14": 28.57, "SSIM Set14": 0.7815, "PSNR BSD100": 27.56},
    "srgan": {"PSNR Set5": 30.67, "SSIM Set5": 0.8627, "PSNR Set14": 27.12, "SSIM Set14": 0.7321, "PSNR BSD100": 26.22},
}
WEIGHTS: dict[str, Weights] = {
    f"x{scale}:{tag}": Weights(
        url=f"https://huggingface.co/ChangyuLiu/SRGAN-PyTorch/resolve/main/{name}_x{scale}-ImageNet.pth.tar",
        format="lornatang",
        license="Apache-2.0",
        source="https://github.com/Lornatang/SRGAN-PyTorch scripts/download_weights.sh, README.md",
        prepare=PREPARE,
        reports=_REPORTS[tag] if scale == 4 else {},
    )
    for scale in (2, 4, 8)
    for tag, name in (("srresnet", "SRResNet"), ("srgan", "SRGAN"))
}

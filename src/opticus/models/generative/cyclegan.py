"""Unpaired Image-to-Image Translation using Cycle-Consistent Adversarial Networks (CycleGAN).

Zhu, Park, Isola and Efros, ICCV 2017, arXiv 1703.10593.
Reference: junyanz/pytorch-CycleGAN-and-pix2pix (BSD-2-Clause).

*Differs*: the authors write two files, G: a -> b and F: b -> a, of which one translates; so a network here is one direction, unless
`pair=True` (what the recipes train): then it holds both, is saved, averaged and evaluated whole, `cycle` shows the loop, and
`load(run, direction="ba")` answers the other way. `paired` makes a pair of two files. Within one batch the pool of earlier fakes swaps
different places. The learning rate falls step by step, not once an epoch. Dropout, if there is any, is off in eval.
*Map*: eq. 1 -> `losses.adversarial` ("least-squares", section 4); eq. 2 and 3 -> `Cycle.forward`; section 4 (generator of Johnson et al.,
PatchGAN, 50 earlier fakes) -> `Generator`, `layers.patchgan`, `Pool`; section 5.2 (identity) -> `Cycle.forward`; appendix 7.2 ->
`VARIANTS`; 7.1 -> `recipes.cyclegan`.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn

from opticus.layers.patchgan import Norm, PatchGAN, normal_weights
from opticus.losses import adversarial
from opticus.losses.pictures import mean, pictures, view_of
from opticus.structures import Batch, CapabilityError, Images, Picture, Prepare, Progress, Task, UsageError, Weights
from opticus.weights.names import Names, drop, rename

TASK: Task = "translate"


def rule_of(channels: int, size: int) -> Prepare:
    """Pictures of `size` pixels a side, in [-1, 1]."""
    half = (0.5,) * channels
    return Prepare(channels, "fixed", (size, size), interpolation="bicubic", mean=half, std=half, stride=4)


PREPARE = rule_of(3, 256)


@dataclass(frozen=True)
class Config:
    """`channels` of domain a and of domain b (`other`; None: as many). A `pair` has both generators, and `direction` says which answers.

    Instance norm takes away how bright a whole picture is; where that is to be kept, as in small pictures of one surface, take "batch".
    """

    size: int = 256
    channels: int = 3
    other: int | None = None
    width: int = 64
    blocks: int = 9
    norm: Literal["instance", "batch", "none"] = "instance"
    dropout: float = 0.0
    pair: bool = False
    direction: Literal["ab", "ba"] = "ab"

    def __post_init__(self) -> None:
        if self.size % 4 or self.size < 8:
            raise UsageError(f"cyclegan: size must be a multiple of 4, at least 8, found {self.size}")
        if self.blocks < 0 or not 0 <= self.dropout < 1:
            raise UsageError(f"cyclegan: blocks must not be negative and dropout in [0, 1), found {self.blocks} and {self.dropout}")
        if self.direction == "ba" and not self.pair:
            raise UsageError("cyclegan: only a pair has a direction; a network of one generator goes where its weights go")


# --- network -----------------------------------------------------------------------------------------------------------


def norm_of(config: Config) -> Norm:
    """The kind of norm that a Config asks for; a convolution before it has a bias where the norm is "instance"."""
    return {"instance": nn.InstanceNorm2d, "batch": nn.BatchNorm2d, "none": lambda _: nn.Identity()}[config.norm]


class Block(nn.Module):
    """x + norm(conv(relu(norm(conv(x))))), with reflected borders (appendix 7.2: R256)."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        width, norm, bias = 4 * config.width, norm_of(config), config.norm == "instance"
        relu = nn.ReLU(inplace=True)
        # one place with or without dropout: keys do not depend on it
        active = nn.Sequential(relu, nn.Dropout(config.dropout)) if config.dropout else relu
        first, second = ([nn.ReflectionPad2d(1), nn.Conv2d(width, width, 3, bias=bias), norm(width)] for _ in range(2))
        self.conv_block = nn.Sequential(*first, active, *second)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv_block(x)


class Generator(nn.Module):
    """c7s1-64, d128, d256, residual blocks, u128, u64, c7s1-3 (appendix 7.2), tanh."""

    def __init__(self, config: Config, channels: int, answer: int) -> None:
        super().__init__()
        width, norm, bias = config.width, norm_of(config), config.norm == "instance"
        model: list[nn.Module] = [
            nn.ReflectionPad2d(3),
            nn.Conv2d(channels, width, 7, bias=bias),
            norm(width),
            nn.ReLU(inplace=True),
        ]
        for wide in (2 * width, 4 * width):
            model += [nn.Conv2d(wide // 2, wide, 3, 2, 1, bias=bias), norm(wide), nn.ReLU(inplace=True)]
        model += [Block(config) for _ in range(config.blocks)]
        for wide in (2 * width, width):
            widen = nn.ConvTranspose2d(2 * wide, wide, 3, 2, 1, output_padding=1, bias=bias)
            model += [widen, norm(wide), nn.ReLU(inplace=True)]
        self.model = nn.Sequential(*model, nn.ReflectionPad2d(3), nn.Conv2d(width, answer, 7), nn.Tanh())
        normal_weights(self)

    def forward(self, pixels: Float[Tensor, "B C H W"]) -> Float[Tensor, "B A H W"]:
        return self.model(pixels)


class Loop(NamedTuple):
    """What a picture becomes in the other domain, and what that becomes on the way back (figure 3, figure 4)."""

    answer: Tensor
    back: Tensor


class CycleGAN(nn.Module):
    """One generator, or both: `generator` is G: a -> b, `reverse` F: b -> a."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        a, b = config.channels, config.channels if config.other is None else config.other
        into, out = (a, b) if config.direction == "ab" else (b, a)
        self._prepare, self.produces = rule_of(into, config.size), rule_of(out, config.size)
        self.generator = Generator(config, a, b)
        self.reverse = Generator(config, b, a) if config.pair else None

    @property
    def prepare(self) -> Prepare:
        """How pictures of the domain that is answered are prepared."""
        return self._prepare

    @prepare.setter
    def prepare(self, rule: Prepare) -> None:
        """A file keeps the rule of the direction that it was saved in; it is the same one in the channels of the other domain."""
        self._prepare = rule.with_channels(self._prepare.channels)

    @property
    def ways(self) -> tuple[Generator, Generator | None]:
        """The generator that answers, and the one that leads back."""
        forward = self.config.direction == "ab" or self.reverse is None
        return (self.generator, self.reverse) if forward else (cast(Generator, self.reverse), self.generator)

    def forward(self, pixels: Float[Tensor, "B C H W"], valid: Tensor | None = None) -> Float[Tensor, "B A H W"]:
        """The answers, in [-1, 1]; sides must be multiples of 4.

        Where `valid` says that pictures are padded, each is answered alone, since a norm would count the padding; the rest is 0.
        """
        if pixels.shape[2] % 4 or pixels.shape[3] % 4:
            raise UsageError(f"cyclegan: sides must be multiples of 4, found {pixels.shape[2]}x{pixels.shape[3]}")
        if valid is None:
            return self.ways[0](pixels)
        out = pixels.new_zeros(len(pixels), self.produces.channels, *pixels.shape[2:])
        for row, (own, inside) in enumerate(zip(pixels, valid)):
            height, width = (-(-int(inside.any(axis).sum()) // 4) * 4 for axis in (1, 0))
            out[row, :, :height, :width] = self.ways[0](own[None, :, :height, :width])[0]
        return out

    def cycle(self, pixels: Float[Tensor, "B C H W"]) -> Loop:
        """There and back again; CapabilityError for a network of one generator."""
        there, back = self.ways
        if back is None:
            raise CapabilityError(
                "this cyclegan has one generator, which does not lead back: train with pair=True, or use `paired`"
            )
        answer = there(pixels)
        return Loop(answer, back(answer))

    def results(self, out: Tensor, images: Images) -> list[Picture]:
        """The answers as pictures, without the padding."""
        found = list(pictures(out, self.produces))
        if images.valid is None:
            return found
        sides = [(int(inside.any(1).sum()), int(inside.any(0).sum())) for inside in images.valid]
        return [Picture(one.pixels[:h, :w].contiguous()) for one, (h, w) in zip(found, sides)]


NETWORK = CycleGAN


def paired(ab: CycleGAN, ba: CycleGAN) -> CycleGAN:
    """A pair of two networks of one generator, such as the authors' horse2zebra and zebra2horse; UsageError where they do not match."""
    ours, theirs = ab.config, ba.config
    if ours.pair or theirs.pair:
        raise UsageError("cyclegan: a pair is made of two networks of one generator")
    turned = (theirs.channels if theirs.other is None else theirs.other, theirs.channels)
    if turned != (ours.channels, ours.channels if ours.other is None else ours.other) or theirs.blocks != ours.blocks:
        raise UsageError(f"cyclegan: {theirs} does not lead back from {ours}")
    pair = CycleGAN(replace(ours, pair=True))
    assert pair.reverse is not None
    pair.generator.load_state_dict(ab.generator.state_dict())
    pair.reverse.load_state_dict(ba.generator.state_dict())
    return pair.train(ab.training)


# --- objective ---------------------------------------------------------------------------------------------------------


class Pool(nn.Module):
    """Up to `size` earlier fakes (section 4): while it fills, pictures come back as they are; then half of them are swapped.

    Part of a run's state, whatever the pictures' size; the swaps draw from torch's global generator.
    """

    kept: Tensor
    filled: Tensor

    def __init__(self, size: int = 50) -> None:
        super().__init__()
        if size < 0:
            raise UsageError(f"cyclegan: the pool must not be negative, found {size}")
        self.size = size
        self.register_buffer("kept", torch.zeros(0))
        self.register_buffer("filled", torch.zeros(1, dtype=torch.long))
        self.register_load_state_dict_pre_hook(_resize)

    @torch.no_grad()
    def swap(self, fresh: Float[Tensor, "B C H W"]) -> Float[Tensor, "B C H W"]:
        """As many pictures: the given ones, or earlier ones that they take the place of."""
        if self.size == 0:
            return fresh
        if self.kept.shape[1:] != fresh.shape[1:]:
            self.kept, self.filled = fresh.new_zeros(self.size, *fresh.shape[1:]), torch.zeros_like(self.filled)
        filled = int(self.filled)
        room = min(self.size - filled, len(fresh))
        self.kept[filled : filled + room] = fresh[:room].to(self.kept)
        self.filled += room
        out = fresh.clone()
        places = torch.randperm(self.size)[: len(fresh) - room]
        chosen = torch.rand(len(places)) > 0.5
        rows = torch.arange(room, room + len(places))[chosen].to(fresh.device)
        places = places[chosen].to(fresh.device)
        out[rows] = self.kept[places].to(fresh)
        self.kept[places] = fresh[rows].to(self.kept)
        return out


def _resize(pool: Any, state: dict[str, Any], prefix: str, *_: Any) -> None:
    """A saved pool has the shape of the pictures that it saw."""
    saved = state.get(f"{prefix}kept")
    if saved is not None:
        pool.kept = torch.empty_like(saved, device=pool.filled.device)


class Cycle(nn.Module):
    """L(G, F, D_a, D_b) = L_GAN(G, D_b) + L_GAN(F, D_a) + cycle L_cyc(G, F) + cycle identity L_identity(G, F) (eq. 3, section 5.2).

    Phases "g", then "d", on batches with the roles "a" and "b". A network of one generator gets a reverse one that stays here.
    `layers` and `width` are the discriminators', `pool` the number of earlier fakes, `rule` one of `losses.adversarial.RULES`.
    """

    def __init__(
        self, network: CycleGAN, *, cycle: float = 10.0, identity: float = 0.5, pool: int = 50, layers: int = 3, width: int = 64,
        rule: str = "least-squares",
    ) -> None:  # fmt: skip
        super().__init__()
        if cycle < 0 or identity < 0:
            raise UsageError(f"cyclegan: cycle and identity must not be negative, found {cycle} and {identity}")
        config = network.config
        self.a, self.b = config.channels, config.channels if config.other is None else config.other
        if identity and self.a != self.b:
            raise UsageError(
                f"cyclegan: the identity loss needs domains of as many channels, found {self.a} and {self.b}: identity=0"
            )
        self.network, self.cycle, self.identity, self.rule = network, cycle, identity, adversarial.rule(rule)
        self.own = Generator(config, self.b, self.a) if network.reverse is None else None
        self.judge_a, self.judge_b = (
            PatchGAN(channels, norm_of(config), width=width, layers=layers, bias=config.norm == "instance")
            for channels in (self.a, self.b)
        )
        for judge in (self.judge_a, self.judge_b):
            normal_weights(judge)
        self.pool_a, self.pool_b = Pool(pool), Pool(pool)
        self._fakes: dict[tuple[str, ...], tuple[Tensor, Tensor]] = {}

    @property
    def reverse(self) -> Generator:
        """F: b -> a."""
        return cast(Generator, self.own if self.network.reverse is None else self.network.reverse)

    def phases(self, step: int) -> tuple[str, ...]:
        """Both generators' step, then both discriminators'."""
        return ("g", "d")

    def parameters_of(self, phase: str) -> Iterable[nn.Parameter]:
        """One side's."""
        parts = (self.network, self.own) if phase == "g" else (self.judge_a, self.judge_b)
        return (p for part in parts if part is not None for p in part.parameters())

    def domains(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Pictures of a and of b; UsageError where they have not the channels of the network."""
        found = view_of(batch, "a"), view_of(batch, "b")
        if (self.a, self.b) != (found[0].shape[1], found[1].shape[1]):
            channels = f"{found[0].shape[1]} and {found[1].shape[1]}"
            raise UsageError(
                f"cyclegan: domains of {self.a} and {self.b} channels are expected, batch {batch.ids[:1]} has {channels}"
            )
        return found

    def forward(self, batch: Batch, at: Progress) -> dict[str, Tensor]:
        """The generators' terms; or half of each discriminator's on real pictures and on the pools', which see this step's fakes."""
        a, b = self.domains(batch)
        if at.phase == "d":
            fake_a, fake_b = self._fakes.pop(batch.ids, None) or self._translated(a, b)
            return self._judged("a", self.judge_a, a, self.pool_a.swap(fake_a), batch) | self._judged(
                "b", self.judge_b, b, self.pool_b.swap(fake_b), batch
            )
        there, back, weight = self.network.generator, self.reverse, self.cycle * self.identity
        terms: dict[str, Tensor] = {}
        alone = self.network.config.norm != "batch"  # norms that see pictures one by one: one pass for fake and identity
        if weight and alone and a.shape == b.shape:
            (fake_b, same_b), (fake_a, same_a) = there(torch.cat([a, b])).chunk(2), back(torch.cat([b, a])).chunk(2)
        else:
            fake_b, fake_a = there(a), back(b)
            same_b, same_a = (there(b), back(a)) if weight else (None, None)
        for name, judge, fake in (("b", self.judge_b, fake_b), ("a", self.judge_a, fake_a)):
            terms[f"g/real-{name}"] = mean(self.rule.generator(judge(fake)), batch)
        for name, found, wanted in (("a", back(fake_b), a), ("b", there(fake_a), b)):
            terms[f"g/cycle-{name}"] = self.cycle * mean(distance(found, wanted), batch)
        for name, found, wanted in (("a", same_a, a), ("b", same_b, b)):
            if found is not None:
                terms[f"g/identity-{name}"] = weight * mean(distance(found, wanted), batch)
        self._fakes[batch.ids] = (fake_a.detach(), fake_b.detach())
        return terms

    @torch.no_grad()
    def _translated(self, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        return self.reverse(b), self.network.generator(a)

    def _judged(self, name: str, judge: nn.Module, real: Tensor, fake: Tensor, batch: Batch) -> dict[str, Tensor]:
        scores, invented = judge(real), judge(fake)
        return {
            f"d/real-{name}": mean(self.rule.real(scores), batch) / 2,
            f"d/fake-{name}": mean(self.rule.fake(invented), batch) / 2,
        }

    def before_update(self, at: Progress) -> None:
        """Nothing."""

    def after_step(self, at: Progress) -> None:
        """Fakes do not outlive their step."""
        if at.phase == "d" or len(self._fakes) > 64:
            self._fakes.clear()

    def realness(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """The mean scores (B,) of real and of fake pictures of both domains."""
        a, b = self.domains(batch)
        fake_a, fake_b = self._translated(a, b)
        scores = [adversarial.per_picture(judge(x)) for judge, x in
                  ((self.judge_a, a), (self.judge_b, b), (self.judge_a, fake_a), (self.judge_b, fake_b))]  # fmt: skip
        return (scores[0] + scores[1]) / 2, (scores[2] + scores[3]) / 2


def distance(found: Tensor, wanted: Tensor) -> Float[Tensor, "B"]:
    """The mean absolute difference of every picture."""
    return (found - wanted).abs().flatten(1).mean(1)


def objective(network: CycleGAN, **options: Any) -> Cycle:
    """The objective of the paper; options as those of `Cycle`."""
    return Cycle(network, **options)


# --- variants and weights ------------------------------------------------------------------------------------------------

VARIANTS: dict[str, Config] = {
    "tiny": Config(size=32, width=12, blocks=2, pair=True),
    "resnet6": Config(size=128, blocks=6),
    "resnet9": Config(),
}
PARAMETERS: dict[str, int] = {"resnet6": 7_837_699, "resnet9": 11_378_179}  # counted by the reference
OVERFIT = {"observable": "realness", "samples": 2, "lr": 2e-3, "options": {"layers": 2, "width": 16}}

_PLAIN = Names(rename(r"model\..+", r"generator.\g<0>"))
_DROPOUT = Names(  # a generator made with dropout, which moves the second convolution of a block and its norm
    rename(r"(model\.\d+\.conv_block\.)6(\.\w+)", r"generator.\g<1>5\2"),
    rename(r"(model\.\d+\.conv_block\.)7(\.\w+)", r"generator.\g<1>6\2"),
    rename(r"(model\.\d+\.(?:conv_block\.[12]\.)?\w+)", r"generator.\1"),
)
_STALE = Names(
    drop(r".+\.(?:running_mean|running_var|num_batches_tracked)")
)  # of instance norms, saved before torch 0.4, read by nothing
FORMATS: dict[str, Names] = {
    "authors": _PLAIN,
    "authors-dropout": _DROPOUT,
    "authors-old": _STALE + _PLAIN,
    "authors-dropout-old": _STALE + _DROPOUT,
}
TRAINING = Names(
    rename(r"netG_A\.(.+)", r"network.generator.\1"),
    rename(r"netG_B\.(.+)", r"network.reverse.\1"),
    rename(r"netD_A\.(.+)", r"judge_b.\1"),  # D_A judges what G_A makes: pictures of b
    rename(r"netD_B\.(.+)", r"judge_a.\1"),
    rename(r"pool_([ab])\.(.+)", r"pool_\1.\2"),
)
# the authors' files (scripts/download_cyclegan_model.sh: horse2zebra, zebra2horse, monet2photo, style_vangogh, sat2map and others) are served
# by plain http only, which nothing is fetched by: download one and load("cyclegan/resnet9", file)
WEIGHTS: dict[str, Weights] = {}

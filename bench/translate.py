"""Pictures answered by pictures: CycleGAN's and pix2pix's generators, and a training step of CycleGAN, against the authors' layers.

The authors' repository is not on PyPI: with a checkout in $OPTICUS_REFERENCES/pytorch-CycleGAN-and-pix2pix its networks are the peer, without
it a chain of torch.nn layers with the same keys. Both sides hold equal weights and see the same pictures.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models import ROUNDS, SMALL_ROUNDS, THREADS, Row, images_of, inference, medians, row
from opticus import zoo
from opticus.parity.fill import fill_module
from opticus.structures import Batch, Progress
from opticus.weights.load import load_into

FOLDER = "pytorch-CycleGAN-and-pix2pix"
SIDE = 64  # of the pictures of a training step


def authors() -> Any:
    """The authors' module of networks; None without a checkout."""
    root = Path(os.environ.get("OPTICUS_REFERENCES", "")) / FOLDER
    if not (root / "models" / "networks.py").is_file():
        return None
    taken = sys.modules.pop("models", None)  # bench/models.py has the name of the authors' package
    sys.path.insert(0, str(root))
    try:
        return importlib.import_module("models.networks")
    finally:
        sys.path.remove(str(root))
        sys.modules.pop("models", None)
        if taken is not None:
            sys.modules["models"] = taken


class Plain(nn.Module):
    """A block of the residual generator, from torch.nn layers alone."""

    def __init__(self, width: int) -> None:
        super().__init__()
        half = lambda: [nn.ReflectionPad2d(1), nn.Conv2d(width, width, 3), nn.InstanceNorm2d(width)]  # noqa: E731
        self.conv_block = nn.Sequential(*half(), nn.ReLU(True), *half())

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv_block(x)


class PlainGenerator(nn.Module):
    """The whole of it."""

    def __init__(self, width: int, blocks: int) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.ReflectionPad2d(3), nn.Conv2d(3, width, 7), nn.InstanceNorm2d(width), nn.ReLU(True)]
        for wide in (2 * width, 4 * width):
            layers += [nn.Conv2d(wide // 2, wide, 3, 2, 1), nn.InstanceNorm2d(wide), nn.ReLU(True)]
        layers += [Plain(4 * width) for _ in range(blocks)]
        for wide in (2 * width, width):
            layers += [nn.ConvTranspose2d(2 * wide, wide, 3, 2, 1, 1), nn.InstanceNorm2d(wide), nn.ReLU(True)]
        self.model = nn.Sequential(*layers, nn.ReflectionPad2d(3), nn.Conv2d(width, 3, 7), nn.Tanh())

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x)


class PlainJudge(nn.Module):
    """The 70x70 discriminator with instance norm."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.Conv2d(3, 64, 4, 2, 1), nn.LeakyReLU(0.2, True)]
        for into, out, stride in ((64, 128, 2), (128, 256, 2), (256, 512, 1)):
            layers += [nn.Conv2d(into, out, 4, stride, 1), nn.InstanceNorm2d(out), nn.LeakyReLU(0.2, True)]
        self.model = nn.Sequential(*layers, nn.Conv2d(512, 1, 4, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x)


def generator(networks: Any, blocks: int) -> nn.Module:
    if networks is None:
        return PlainGenerator(64, blocks)
    return networks.ResnetGenerator(3, 3, 64, networks.get_norm_layer("instance"), n_blocks=blocks)


def judge(networks: Any) -> nn.Module:
    return PlainJudge() if networks is None else networks.NLayerDiscriminator(3, 64, 3, networks.get_norm_layer("instance"))


def step_of_the_authors(nets: nn.ModuleDict, a: Tensor, b: Tensor) -> Callable[[], Any]:
    """Their optimize_parameters, with pools that still fill: fakes as they are."""
    forth, back, judge_b, judge_a = (nets[name] for name in ("netG_A", "netG_B", "netD_A", "netD_B"))
    sides = [[*forth.parameters(), *back.parameters()], [*judge_a.parameters(), *judge_b.parameters()]]
    optimisers = [torch.optim.Adam(side, 2e-4, betas=(0.5, 0.999)) for side in sides]

    def real(scores: Tensor) -> Tensor:
        return F.mse_loss(scores, torch.ones_like(scores))

    def step() -> None:
        fake_b, fake_a = forth(a), back(b)
        rec_a, rec_b = back(fake_b), forth(fake_a)
        for parameter in sides[1]:
            parameter.requires_grad_(False)
        optimisers[0].zero_grad()
        identity = 5 * (F.l1_loss(forth(b), b) + F.l1_loss(back(a), a))
        cycles = 10 * (F.l1_loss(rec_a, a) + F.l1_loss(rec_b, b))
        (real(judge_b(fake_b)) + real(judge_a(fake_a)) + cycles + identity).backward()
        optimisers[0].step()
        for parameter in sides[1]:
            parameter.requires_grad_(True)
        optimisers[1].zero_grad()
        for each, true, fake in ((judge_b, b, fake_b), (judge_a, a, fake_a)):
            scores = each(fake.detach())
            ((real(each(true)) + F.mse_loss(scores, torch.zeros_like(scores))) / 2).backward()
        optimisers[1].step()

    return step


def our_step(nets: nn.ModuleDict, a: Tensor, b: Tensor) -> Callable[[], Any]:
    """The same step through the objective, from the same weights."""
    network = zoo.create("cyclegan/resnet6", pair=True)
    game: Any = zoo.paper("cyclegan").objective(network).train()
    state = dict(nets.state_dict())
    state |= {f"pool_{name}.{key}": value for name in "ab" for key, value in (("kept", torch.zeros(0)), ("filled", torch.zeros(1)))}
    load_into(game, state, zoo.paper("cyclegan").TRAINING)
    views = (images_of(a), images_of(b))
    batch = Batch(views[0], (None,) * len(a), tuple(map(str, range(len(a)))), views, ("a", "b"))
    sides = {phase: list(game.parameters_of(phase)) for phase in game.phases(0)}
    optimisers = {phase: torch.optim.Adam(side, 2e-4, betas=(0.5, 0.999)) for phase, side in sides.items()}

    def step() -> None:
        for phase in game.phases(0):
            at = Progress(0, 0, 1, 1, phase)
            for name, side in sides.items():
                for parameter in side:
                    parameter.requires_grad_(name == phase)
            optimisers[phase].zero_grad()
            torch.stack(list(game(batch, at).values())).sum().backward()
            game.before_update(at)
            optimisers[phase].step()
            game.after_step(at)

    return step


def run(rounds: int = ROUNDS, show: Callable[[Row], Any] = lambda row: None) -> list[Row]:
    """Every row."""
    threads, networks = torch.get_num_threads(), authors()
    torch.set_num_threads(THREADS)
    library = "the authors' code" if networks is not None else "torch.nn"
    rows: list[Row] = []

    def keep(one: Row) -> None:
        rows.append(one)
        show(one)

    random = torch.Generator().manual_seed(0)
    pixels = torch.rand(1, 3, 256, 256, generator=random) * 2 - 1
    try:
        peer, mine = generator(networks, 9), zoo.create("cyclegan/resnet9")
        fill_module(peer)
        load_into(mine, peer.state_dict(), zoo.paper("cyclegan").FORMATS["authors"])
        for one in inference("CycleGAN, ResNet with 9 blocks", mine, peer, library, [pixels], min(rounds, SMALL_ROUNDS)):
            keep(one)
        nets = nn.ModuleDict({name: generator(networks, 6) for name in ("netG_A", "netG_B")} | {
            name: judge(networks) for name in ("netD_A", "netD_B")
        })  # fmt: skip
        fill_module(nets)
        a, b = (torch.rand(1, 3, SIDE, SIDE, generator=random) * 2 - 1 for _ in range(2))
        ours = our_step(nets, a, b)
        times = medians({"peer": step_of_the_authors(nets, a, b), "ours": ours}, rounds)
        keep(row(f"CycleGAN, 6 blocks, batch 1, {SIDE}x{SIDE}, training step", times["ours"], times["peer"], library))
    finally:
        torch.set_num_threads(threads)
    return rows


if __name__ == "__main__":
    run(show=lambda one: print(one, flush=True))

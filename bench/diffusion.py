"""DDPM's U-Net of CIFAR-10 against diffusers' UNet2DModel with the same weights: forward, training step, and drawing by DDIM."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models import SMALL_ROUNDS, Row, allow_torchvision, medians, row, same, training
from opticus import zoo
from opticus.diffusion.samplers import DDIM, draw
from opticus.diffusion.schedules import grid, schedule
from opticus.parity.fill import fill_module
from opticus.weights.load import load_into

BATCH, DRAWN, STEPS, SIDE = 8, 4, 50, 32


def networks() -> tuple[Any, nn.Module]:
    """Ours and the peer's, with the settings of google/ddpm-cifar10-32."""
    allow_torchvision()
    from diffusers import UNet2DModel

    peer = UNet2DModel(
        sample_size=SIDE, block_out_channels=(128, 256, 256, 256), layers_per_block=2, attention_head_dim=None,
        down_block_types=("DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"), norm_eps=1e-6, dropout=0.1,
        up_block_types=("UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D"), flip_sin_to_cos=False, freq_shift=1,
        downsample_padding=0,
    )  # fmt: skip
    fill_module(peer)
    with torch.no_grad():  # a quiet answer: formula-made ones are so large that every picture is cut to black or white, by rounding
        for tensor in peer.conv_out.parameters():
            tensor.mul_(0.01)
    mine = zoo.create("ddpm/cifar10")
    load_into(mine, peer.state_dict(), zoo.paper("ddpm").FORMATS["diffusers"])
    return mine.eval(), peer.eval()


def peer_drawing(peer: Any, start: Tensor) -> Callable[[], Tensor]:
    """The loop of diffusers' DDIMPipeline, without its pictures."""
    from diffusers.schedulers.scheduling_ddim import DDIMScheduler

    @torch.no_grad()
    def run() -> Tensor:
        scheduler, x = DDIMScheduler(clip_sample=True), start
        scheduler.set_timesteps(STEPS)
        for time in scheduler.timesteps:
            x = scheduler.step(peer(x, time).sample, time, x).prev_sample
        return x

    return run


def run(rounds: int = SMALL_ROUNDS, show: Callable[[Row], Any] = lambda row: None) -> list[Row]:
    """Three rows, of one thread each where OPTICUS_BENCH_THREADS=1."""
    torch.manual_seed(0)
    mine, peer = networks()
    x, times, noise = torch.randn(BATCH, 3, SIDE, SIDE), torch.arange(BATCH) * 120, torch.randn(BATCH, 3, SIDE, SIDE)
    start, found = torch.randn(DRAWN, 3, SIDE, SIDE), []

    def draw_ours() -> Tensor:
        return draw(mine, start, DDIM(grid(schedule("linear"), STEPS)), clip=1.0)

    ways: dict[str, tuple[Callable[[], Tensor], Callable[[], Tensor]]] = {
        f"DDPM U-Net 32x32, batch {BATCH}, forward": (lambda: mine(x, times), lambda: peer(x, times).sample),
        f"DDPM U-Net 32x32, DDIM in {STEPS} steps, {DRAWN} pictures": (draw_ours, peer_drawing(peer, start)),
    }
    with torch.no_grad():
        for title, (ours, theirs) in ways.items():
            same(title, [ours()], [theirs()])
            times_ms = medians({"ours": ours, "peer": theirs}, rounds)
            found.append(row(title, times_ms["ours"], times_ms["peer"], "diffusers"))
            show(found[-1])
    steps = {
        "ours": (mine, lambda: F.mse_loss(mine(x, times), noise)),
        "peer": (peer, lambda: F.mse_loss(peer(x, times).sample, noise)),
    }
    found.append(training(f"DDPM U-Net 32x32, batch {BATCH}", steps, "diffusers", 2e-4, rounds))
    show(found[-1])
    return found

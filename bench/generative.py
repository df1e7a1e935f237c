"""Autoencoders against diffusers: encoding and decoding with the same weights and the same input, in turns."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import nn

from models import ROUNDS, THREADS, Row, allow_torchvision, medians, row, same
from opticus import zoo
from opticus.parity.fill import fill_module
from opticus.weights.load import load_into

SIDE = int(os.environ.get("OPTICUS_BENCH_SIDE", "256"))


def blocks(multiples: tuple[int, ...]) -> dict[str, Any]:
    """diffusers' words for a network of 128 channels x `multiples` without attention on its levels."""
    count = len(multiples)
    return {
        "block_out_channels": tuple(128 * m for m in multiples),
        "down_block_types": ("DownEncoderBlock2D",) * count,
        "up_block_types": ("UpDecoderBlock2D",) * count,
        "layers_per_block": 2,
    }


def pair(ours: str, form: str, build: Callable[[Any], nn.Module]) -> tuple[Any, Any]:
    """The network of opticus and diffusers', with the same formula-filled weights."""
    allow_torchvision()
    import diffusers

    diffusers.utils.logging.set_verbosity_error()
    peer, mine = build(diffusers), zoo.create(ours)
    fill_module(peer)
    load_into(mine, peer.state_dict(), zoo.paper(zoo.split(ours)[0]).FORMATS[form])
    return mine.eval(), peer.eval()


def rows(title: str, mine: Any, peers: dict[str, Callable[..., Any]], rounds: int) -> Iterator[Row]:
    """Pixels to latents and latents to pixels, batch 1."""
    pixels = torch.randn(1, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        latents = mine.encode(pixels)
        given = {"encode": pixels, "decode": latents}
        for what, tensor in given.items():
            ways = {"ours": partial(getattr(mine, what), tensor), "peer": partial(peers[what], tensor)}
            same(f"{title} {what}", [ways["ours"]()], [ways["peer"]()])
            found = medians(ways, rounds)
            yield row(f"{title}, {what}, batch 1, {SIDE}x{SIDE}", found["ours"], found["peer"], "diffusers")


def kl(rounds: int) -> Iterator[Row]:
    mine, peer = pair("kl/f8", "diffusers-f8", lambda d: d.AutoencoderKL(**blocks((1, 2, 4, 4)), latent_channels=4))
    peers = {"encode": lambda x: peer.encode(x).latent_dist.mean, "decode": lambda z: peer.decode(z).sample}
    yield from rows("AutoencoderKL f8", mine, peers, rounds)


def vq(rounds: int) -> Iterator[Row]:
    build = lambda d: d.VQModel(**blocks((1, 2, 4)), latent_channels=3, num_vq_embeddings=8192)  # noqa: E731
    mine, peer = pair("vqgan/vq-f4", "diffusers-f4", build)
    peers = {"encode": lambda x: peer.encode(x).latents, "decode": lambda z: peer.decode(z).sample}
    yield from rows("VQModel f4, 8192 codes", mine, peers, rounds)


def run(show: Callable[[Row], None] = print) -> list[Row]:
    """All rows."""
    threads = torch.get_num_threads()
    torch.set_num_threads(THREADS)
    found: list[Row] = []
    for part in (kl, vq):
        for one in part(ROUNDS):
            show(one)
            found.append(one)
    torch.set_num_threads(threads)
    return found


if __name__ == "__main__":
    run()

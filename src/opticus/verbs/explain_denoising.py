"""What a diffusion model does: a picture drowned in noise, what the network makes of it at once and in steps, and a new picture.

Ho et al., NeurIPS 2020, arXiv 2006.11239, figures 2, 6 and 7.
"""

from __future__ import annotations

import math
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from opticus.diffusion.prediction import noisy, parts
from opticus.diffusion.samplers import DDIM, draw
from opticus.diffusion.schedules import grid, visit
from opticus.plot.panels import Panel, panels
from opticus.structures import CapabilityError, Noise, UsageError
from opticus.verbs.explain_request import Answer, Request, as_pixels, at_least, batch_of, need


def denoising(request: Request, *, columns: int = 9, steps: int = 50, index: int = 0) -> Answer:
    """Four strips over `columns` times: the picture with more and more noise; the picture that the network sees in it at once; the one
    that DDIM comes to from there (`steps` for the whole way); and how a new picture comes about from noise alone.

    CapabilityError for a network without a noise schedule, or one that needs a condition from outside.
    """
    at_least("columns", columns, 2)
    at_least("steps", steps, columns)
    network = request.model
    for name in ("path", "encoded", "decoded"):
        need(network, name, "denoising", "to take noise away")
    config = network.config
    if getattr(config, "given", 0) or (getattr(config, "context", 0) and not config.classes):
        raise CapabilityError(
            f"explain denoising: {request.title} needs a picture or a context as condition, which is not given here"
        )
    if steps > len(network.path):
        raise UsageError(f"steps must be at most {len(network.path)}, the times of the schedule, found {steps}")
    item = request.items(1, index)[0]
    images = batch_of(network, [item.picture])
    with torch.no_grad():
        picture = network.encoded(images.pixels)
        rows, table = _strips(network, picture, images.pixels, columns, steps, request.seed)
    names = ["noise added", "seen at once", "in steps", "a new picture"]
    shown = [[Panel(as_pixels(one, request.rule), caption) for one, caption in row] for row in rows]
    sheet = panels(cast(Any, shown), cell=112, title=f"{request.title}: {item.id}", row_titles=names)
    return Answer(
        sheet,
        "From the top: the picture as the noise grows; what the network takes it for, at once; where DDIM leads from there; and the picture that "
        "the network expects while a new one is drawn.",
        {"steps": steps, "id": item.id, "times": table},
        [
            f"At time {row['time']} the picture seen at once is {row['PSNR']:.1f} dB from the original."
            for row in table[:: columns - 1]
        ],
        {"Noise": table},
    )


Strip = list[tuple[Tensor, str]]


def _strips(
    network: Any, picture: Tensor, pixels: Tensor, columns: int, steps: int, seed: int
) -> tuple[list[Strip], list[dict[str, Any]]]:
    """The four strips as (pixels (C, H, W), caption), and a table of the times."""
    path, kind, clip = network.path, network.config.predicts, 1.0 if network.decoded(picture) is picture else None
    chance = Noise(seed, 1, device=picture.device)
    noise = chance.normal(*picture.shape[1:], dtype=picture.dtype)
    added, once, slowly, anew = [], [], [], cast(Strip, [])
    table: list[dict[str, Any]] = []
    whole = grid(path, steps).times.numpy()
    for time in np.linspace(0, len(path) - 1, columns).round().astype(int):
        a, b = float(path.signal[time]), float(path.noise[time])
        x = noisy(picture, noise, a, b)
        found = parts(kind, network(x, torch.full((1,), int(time), device=x.device)), x, a, b).picture
        found = found if clip is None else found.clamp(-clip, clip)
        places = visit(path, np.concatenate([[time], whole[whole < time]]).astype(float), ends_clean=True)
        walked = draw(network, x, DDIM(places), predicts=kind, clip=clip)
        seen = network.decoded(found)
        error = float((seen - pixels).square().mean())
        table.append({"time": int(time), "signal": a, "noise": b, "PSNR": 10 * math.log10(4 / max(error, 1e-12))})
        for strip, one, caption in ((added, network.decoded(x) if clip is None else x, f"t = {time}"), (once, seen, ""),
                                    (slowly, network.decoded(walked), "")):  # fmt: skip
            strip.append((one[0], caption))
    drawn: list[Tensor] = []
    places = grid(path, steps)
    last = draw(
        network, chance.normal(*picture.shape[1:], dtype=picture.dtype), DDIM(places), predicts=kind, clip=clip, watch=drawn.append
    )
    for place in np.linspace(0, steps - 1, columns).round().astype(int):
        one = last if place == steps - 1 else drawn[place]
        anew.append((network.decoded(one)[0], f"t = {int(places.times[place])}"))
    return [added, once, slowly, anew], table

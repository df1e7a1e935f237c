"""What the styles of a generator do: pictures with the coarse, middle or fine styles of others, and pictures on the way to the mean.

Karras et al., CVPR 2019, arXiv 1812.04948, figures 3 and 8.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn

from opticus.metrics.path_length import Styled
from opticus.plot.panels import Panel, panels
from opticus.structures import CapabilityError, Latent, Noise, Prepare
from opticus.verbs.explain_layers import title_of
from opticus.verbs.explain_request import Answer, Request, Values, as_pixels, at_least

GROUPS = ("coarse", "middle", "fine")
STRENGTHS = (1.0, 0.7, 0.5, 0.0, -0.5, -1.0)  # figure 8
SHOWN = 128  # least pixels a side of a panel


def layers_of(network: Styled) -> dict[str, range]:
    """The layers of each group, two for a resolution: 4x4 and 8x8 are coarse, the next two middle, as in the paper; a third of the
    resolutions each where there are fewer than six."""
    count = network.spread(network.mean_style[None]).shape[1]
    each = 2 * min(2, max(1, count // 6))
    return {"coarse": range(each), "middle": range(each, 2 * each), "fine": range(2 * each, count)}


def exchanged(first: Tensor, second: Tensor, layers: range) -> Tensor:
    """Styles (N, L, D) of the first, in `layers` those of the second."""
    styles = first.clone()
    styles[:, layers.start : layers.stop] = second[:, layers.start : layers.stop]
    return styles


def style_mixing(request: Request, *, limit: int = 6, rows: int = 2, truncation: float = 0.7) -> Answer:
    """Pictures A along the top; below, `rows` rows for each group of layers, whose styles come from the picture B at the left.

    CapabilityError for a network without styles.
    """
    at_least("limit", limit, 1)
    at_least("rows", rows, 1)
    network = styled_of(request)
    columns = _styles(network, Noise(request.seed, limit), truncation)
    top = _pictures(network, columns)
    sheet: list[list[Panel | None]] = [[None, *(_panel(one, request.rule, "A") for one in top)]]
    names = [""]
    table: list[dict[str, Any]] = []
    for number, (group, layers) in enumerate(layers_of(network).items()):
        others = _styles(network, Noise(request.seed, rows, first=limit + rows * number), truncation)
        left = _pictures(network, others)
        mixtures = [_pictures(network, exchanged(columns, one.expand_as(columns), layers)) for one in others]
        for one, row in zip(left, mixtures, strict=True):
            sheet.append([_panel(one, request.rule, "B"), *(_panel(each, request.rule) for each in row)])
            names.append(f"{group} styles of B\nlayers {layers.start}-{layers.stop - 1}")
        mixed, b = torch.stack(mixtures), left[:, None]
        table.append({
            "group": group, "layers": [layers.start, layers.stop - 1], "from A": _apart(mixed, top[None]), "from B": _apart(mixed, b),
        })  # fmt: skip
    apart = float((top[:, None] - top[None]).square().mean((2, 3, 4)).sum() / max(limit * (limit - 1), 1)) ** 0.5
    notes = [
        f"Root mean square difference of a mixture from A and from B, in pixels normalised to [-1, 1] (two pictures A: {apart:.3f}): "
        + "; ".join(f"{row['group']} {row['from A']:.3f} and {row['from B']:.3f}" for row in table)
        + "."
    ]
    picture = panels(sheet, cell=SHOWN, title=f"{request.title}: styles of A, some of B", row_titles=names)
    caption = "Every picture has the styles of A above it, except in the layers named at the left, whose styles are those of B."
    numbers = {"truncation": truncation, "groups": table, "between": apart}
    return Answer(picture, caption, numbers, notes, {"Mixtures": table})


def truncation_strip(request: Request, *, limit: int = 4) -> Answer:
    """A row per latent vector: its picture as its style goes through the mean style to its opposite.

    CapabilityError for a network without styles.
    """
    at_least("limit", limit, 1)
    network = styled_of(request)
    styles = _mapped(network, Noise(request.seed, limit))
    pictures = torch.stack([_pictures(network, network.spread(styles, strength)) for strength in STRENGTHS], 1)
    centre = STRENGTHS.index(0.0)
    spreads = [float(pictures[:, i].var(0, unbiased=False).mean() ** 0.5) for i in range(len(STRENGTHS))]
    table = [{"strength": strength, "spread": spread} for strength, spread in zip(STRENGTHS, spreads, strict=True)]
    sheet = [[_panel(one, request.rule) for one in row] for row in pictures]
    picture = panels(
        [list[Panel | None](row) for row in sheet],
        cell=SHOWN,
        title=f"{request.title}: towards the mean style and beyond",
        column_titles=[f"{strength:g}" for strength in STRENGTHS],
    )
    notes = [f"Deviation between the {limit} pictures of a column, per pixel: {spreads[0]:.3f} at 1, {spreads[centre]:.3f} at 0."]
    caption = "w' = mean + strength (w - mean) in every layer: 1 is the style itself, 0 the mean, negative numbers its opposites."
    return Answer(picture, caption, {"strengths": table}, notes, {"Strengths": table})


def styled_of(request: Request) -> Styled:
    """The request's network; CapabilityError if it has no styles."""
    network = request.model
    if not isinstance(network, Latent) or not isinstance(network, Styled):
        raise CapabilityError(
            f"{title_of(cast(nn.Module, network))} has no styles(): explain {request.kind} needs a generator with W"
        )
    return network


def _mapped(network: Styled, noise: Noise) -> Tensor:
    with torch.no_grad():
        return network.styles(cast(Latent, network).latents(noise))


def _styles(network: Styled, noise: Noise, truncation: float) -> Tensor:
    return network.spread(_mapped(network, noise), truncation)


@torch.no_grad()
def _pictures(network: Styled, styles: Tensor) -> Tensor:
    """Pictures (N, C, H, W) of styles, with the fixed noise."""
    return network.finished(network.synthesize(styles)).cpu()


def _apart(pictures: Tensor, others: Tensor) -> float:
    return float((pictures - others).square().mean().sqrt())


def _panel(pixels: Tensor, rule: Prepare, caption: str = "") -> Panel:
    return Panel(_shown(as_pixels(pixels, rule)), caption)


def _shown(pixels: Values) -> Values:
    """Tiny pictures enlarged by a whole factor."""
    factor = max(1, SHOWN // max(pixels.shape[:2]))
    return pixels.repeat(factor, 0).repeat(factor, 1)

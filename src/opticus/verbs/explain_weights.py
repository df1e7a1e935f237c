"""Weights as pictures: the filters of a first layer with what each looks for, and the class templates of a linear model.

Krizhevsky et al., NIPS 2012 (figure 3); templates as in the CS231n course notes on linear classification.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from torch import Tensor, nn

from opticus.plot.colours import colour
from opticus.plot.panels import Panel, panels, signed
from opticus.structures import CapabilityError, Prepare
from opticus.verbs.explain_layers import layer_named, outputs, title_of
from opticus.verbs.explain_request import Answer, Request, Values, at_least, batch_of, label_of, name_of, rounded

Side = tuple[int, int]


class Look(NamedTuple):
    """What a filter looks for: `kind` "edge", "colour edge", "colour", "brightness" or "spot"; `angle` in degrees; `period` in pixels."""

    kind: str
    angle: float | None
    period: float | None
    colour_share: float

    def text(self) -> str:
        """In a few words."""
        if self.angle is None:
            return self.kind
        return f"{self.kind} {self.angle:.0f}°"


def look_of(kernel: Values) -> Look:
    """What a filter (h, w, C) responds to, from its strongest spatial frequency.

    `angle` is that of the edge (0 horizontal, 90 vertical), `colour_share` the part of the filter's energy that grey pictures cannot
    excite. A filter whose strongest frequency is zero answers to brightness or to one colour; one without direction to a spot.
    """
    energy = float((kernel**2).sum())
    grey = kernel.mean(2)
    share = 1 - kernel.shape[2] * float((grey**2).sum()) / max(energy, 1e-30)
    flat = kernel.reshape(-1, kernel.shape[2])
    _, _, axes = np.linalg.svd(flat, full_matrices=False)
    plane = (flat @ axes[0]).reshape(kernel.shape[:2])  # along the colour axis that holds most of the energy
    size = 64
    power = np.abs(np.fft.fftshift(np.fft.fft2(plane, (size, size)))) ** 2
    y, x = np.unravel_index(int(power.argmax()), power.shape)
    fy, fx = (int(y) - size // 2) / size, (int(x) - size // 2) / size
    radius = math.hypot(fx, fy)
    coloured = share > 0.5
    if radius < 0.5 / max(kernel.shape[:2]):
        return Look("colour" if coloured else "brightness", None, None, share)
    ys, xs = (np.mgrid[:size, :size] - size // 2) / size
    ring = np.abs(np.hypot(xs, ys) - radius) < 0.06
    turned = power[ring] @ np.exp(2j * np.arctan2(ys[ring], xs[ring]))
    if abs(turned) < 0.25 * power[ring].sum():
        return Look("colour spot" if coloured else "spot", None, 1 / radius, share)
    angle = (math.degrees(math.atan2(-fy, fx)) + 90) % 180  # picture rows run downwards
    return Look("colour edge" if coloured else "edge", round(angle, 1) % 180, 1 / radius, share)


def first_filters(network: nn.Module, pixels: Tensor, layer: str | None) -> tuple[str, nn.Conv2d]:
    """The convolution that sees the picture, or the named one; CapabilityError if it does not see 1 or 3 channels."""
    if layer is not None:
        named = layer_named(network, layer)
        if not isinstance(named, nn.Conv2d):
            raise CapabilityError(f"{title_of(network)}: layer {layer!r} is a {type(named).__name__}, its filters are no pictures")
        found = (layer, named)
    else:
        convolutions = [(name, module) for name, module, _ in outputs(network, pixels) if isinstance(module, nn.Conv2d)]
        if not convolutions:
            raise CapabilityError(
                f"{title_of(network)} has no convolution: it has no filters to show (a linear model has templates)"
            )
        found = convolutions[0]
    if found[1].weight.shape[1] not in (1, 3):
        raise CapabilityError(
            f"{title_of(network)}: the filters of {found[0]} see {found[1].weight.shape[1]} maps each; only those of 1 or 3 are pictures"
        )
    return found


def filters(request: Request, *, layer: str | None = None, maps: int = 256) -> Answer:
    """The filters of the first layer as pictures, in the order of what they look for."""
    at_least("maps", maps, 1)
    network = request.model
    name, module = first_filters(network, blank(network), layer)
    weights = module.weight.detach().double().cpu()
    kernels = _rgb(weights, request.rule).permute(0, 2, 3, 1).numpy()[:maps]
    norms = np.sqrt((kernels.reshape(len(kernels), -1) ** 2).sum(1))
    looks = [look_of(kernel) for kernel in kernels]
    order = sorted(range(len(kernels)), key=lambda i: (looks[i].kind, looks[i].angle or 0.0, i))
    weak = float(norms.max()) * 0.05
    parts = [Panel(signed(kernels[i]), _caption(i, looks[i], norms[i] > weak), _frame(looks[i].kind)) for i in order]
    columns = min(12, max(4, math.ceil(math.sqrt(len(parts) * 1.6))))
    kinds = sorted({look.kind for look in looks})
    picture = panels(
        [parts[i : i + columns] for i in range(0, len(parts), columns)],
        cell=118,
        title=f"{request.title}: the {len(parts)} filters of {name}, {kernels.shape[1]}x{kernels.shape[2]} pixels",
        legend=[(f"{kind} ({sum(look.kind == kind for look in looks)})", _frame(kind)) for kind in kinds],
    )
    table = [
        {"filter": i, "looks for": looks[i].text(), "norm": float(norms[i]), "colour share": looks[i].colour_share,
         "period (px)": looks[i].period}
        for i in order
    ]  # fmt: skip
    zero = "mid-grey is zero" if kernels.shape[3] == 3 else "white is zero, red positive, blue negative"
    return Answer(
        picture,
        f"Every filter is scaled to its own largest weight; {zero}.",
        {"layer": name, "shape": list(weights.shape), "order": order, "norms": rounded(norms),
         "looks": [look._asdict() for look in looks], "weights": rounded(weights[:maps], 4)},
        ["Angles are those of the edge: 0 lies flat, 90 stands; taken from the strongest spatial frequency of each filter. "
         "Weights act on normalised pixels."],
        {"Filters": table},
    )  # fmt: skip


def _caption(index: int, look: Look, used: bool) -> str:
    """The filter's number and the angle of its edge; what kind it is says the colour of its frame."""
    angle = "" if look.angle is None else f":  {look.angle:.0f}°"
    return f"{index}{angle if used else ' (hardly used)'}"


def templates_of(network: nn.Module) -> tuple[Tensor, Tensor]:
    """Weights (K, C, H, W) and biases (K,) of a network whose only layer is linear on pixels.

    Raises CapabilityError naming the other layers, or if the layer does not see the pixels channel by channel, row by row.
    """
    layers = [
        (name, module) for name, module in network.named_modules() if next(module.parameters(recurse=False), None) is not None
    ]
    if len(layers) != 1 or not isinstance(layers[0][1], nn.Linear):
        others = ", ".join(name or "itself" for name, _ in layers[:4])
        raise CapabilityError(
            f"{title_of(network)} has no class templates: they need a network whose only layer is linear on pixels, "
            f"it has {len(layers)} ({others}{', ...' if len(layers) > 4 else ''})"
        )
    linear = layers[0][1]
    rule: Prepare = cast(Any, network).prepare
    height, width = _side(rule)
    if linear.in_features != rule.channels * height * width:
        found = f"{linear.in_features} inputs, the picture has {rule.channels}x{height}x{width} values"
        raise CapabilityError(f"{title_of(network)} has no class templates: its layer has {found}")
    weights = linear.weight.detach()
    bias = linear.bias.detach() if isinstance(cast(Any, linear.bias), Tensor) else weights.new_zeros(len(weights))
    probe = (
        torch.linspace(-1, 1, linear.in_features, dtype=weights.dtype, device=weights.device)
        .sin()
        .reshape(1, rule.channels, height, width)
    )
    with torch.inference_mode():
        out = network(probe)
    if not isinstance(out, Tensor) or not torch.allclose(out[0], weights @ probe.flatten() + bias, rtol=1e-3, atol=1e-4):
        raise CapabilityError(f"{title_of(network)} has no class templates: its output is not linear in the pixels")
    return weights.reshape(len(weights), rule.channels, height, width), bias


def templates(request: Request, *, limit: int = 200) -> Answer:
    """The class templates of a linear model, and with data= the mean picture of every class beneath."""
    network, rule = request.model, request.rule
    weights, bias = templates_of(network)
    std = torch.tensor(rule.std).to(weights)[:, None, None]
    kernels = _rgb((weights * rule.scale / std).cpu().double(), rule).permute(0, 2, 3, 1).numpy()  # acting on grey levels 0..255
    largest = float(np.quantile(np.abs(kernels), 0.998))
    names = request.names
    top = [
        Panel(signed(kernel, largest), f"{name_of(names, k)}\nbias {float(bias[k]):+.2f}", colour(k))
        for k, kernel in enumerate(kernels)
    ]
    rows: list[list[Panel]] = [top]
    titles = ["template"]
    numbers: dict[str, Any] = {"weights": rounded(weights, 5), "bias": rounded(bias), "names": list(names)}
    notes = ["The score of a class is the sum over pixels of template times grey level, plus its bias."]
    if request.data is not None:
        means, scores = _means(request, network, len(kernels), limit)
        rows.append([Panel(mean, f"score {score:+.2f}", colour(k)) if mean is not None else Panel(np.full((8, 8), 235, np.uint8), "none")
                     for k, (mean, score) in enumerate(zip(means, scores))])  # fmt: skip
        titles.append("mean picture\nof the class")
        numbers["score_of_mean"] = rounded(scores)
        notes.append(f"Second row: the mean of a class's pictures among the first {limit} records, with its own class's score.")
    columns = min(10, len(top))
    folded = [row[i : i + columns] for i in range(0, len(top), columns) for row in rows]
    meaning = "blue lowers the score where the picture is bright, red raises it" if rule.channels == 1 else "mid-grey has no effect"
    picture = panels(
        folded, cell=150, title=f"{request.title}: one template per class", row_titles=titles * (len(folded) // len(titles))
    )
    return Answer(picture, f"All templates on one scale; {meaning}.", numbers, notes)


def _means(request: Request, network: nn.Module, classes: int, limit: int) -> tuple[list[Values | None], list[float]]:
    """For every class its mean prepared picture (None without one) and the score that the network gives it for that class."""
    from opticus.verbs.explain_request import as_pixels

    samples = request.samples(limit)
    inputs = batch_of(network, [sample.picture for sample in samples]).pixels
    labels = torch.tensor([-1 if (label := label_of(sample)) is None else label for sample in samples])
    means: list[Values | None] = []
    scores: list[float] = []
    for k in range(classes):
        if not bool((labels == k).any()):
            means.append(None)
            scores.append(float("nan"))
            continue
        mean = inputs[labels == k].mean(0)
        means.append(as_pixels(mean, request.rule))
        with torch.inference_mode():
            scores.append(float(network(mean[None])[0, k]))
    return means, scores


def blank(network: Any) -> Tensor:
    """An input of zeros (1, C, H, W) of a size that the network takes."""
    height, width = _side(network.prepare)
    parameter = next(network.parameters(), torch.zeros(0))
    return torch.zeros(1, network.prepare.channels, height, width, dtype=parameter.dtype, device=parameter.device)


def _side(rule: Prepare) -> Side:
    """(H, W) of an input that the network is sure to take."""
    if rule.crop is not None:
        return rule.crop
    if rule.resize in ("shortest", "scaled", "rounded"):
        return rule.size[0], rule.size[0]
    return (256, 256) if rule.resize == "none" else rule.size


def _rgb(weights: Tensor, rule: Prepare) -> Tensor:
    return weights.flip(1) if rule.order == "bgr" and weights.shape[1] == 3 else weights


KINDS = ("brightness", "spot", "colour", "colour spot", "colour edge", "edge")


def _frame(kind: str) -> tuple[int, int, int]:
    return colour((3, 1, 6, 5, 0, 4)[KINDS.index(kind)])

"""Grad-CAM: where in the picture the evidence for a class lies (Selvaraju et al., ICCV 2017, arXiv 1610.02391)."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Generator
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from opticus.plot.colours import colour
from opticus.plot.panels import Panel, overlay, panels
from opticus.structures import CapabilityError, UnknownNameError, UsageError
from opticus.verbs.explain_attention import is_attention
from opticus.verbs.explain_layers import as_maps, grid_of, layer_named, title_of
from opticus.verbs.explain_request import (
    Answer,
    Request,
    batch_of,
    enlarged,
    hooked,
    name_of,
    onto_picture,
    rounded,
    shown_size,
)

SHOWN = 3  # classes beside each other when none is named


class Cam(NamedTuple):
    """`heat` (h, w) is relu(sum_k weights_k A_k), not scaled; `score` the class score that was differentiated."""

    heat: Tensor
    weights: Tensor
    score: float


class Watch(NamedTuple):
    """A way to get hold of a network's last maps: what is watched, a context manager that fills `kept` during a forward pass."""

    what: str
    on: Callable[[], contextlib.AbstractContextManager[Any]]
    kept: list[Tensor]


def scores_of(out: Any) -> Tensor:
    """One score per picture and class (B, K): logits as they are, of maps and of queries the largest one."""
    first: Any = out if isinstance(out, Tensor) else cast("tuple[Any, ...]", out)[0]
    if not isinstance(first, Tensor) or first.ndim not in (2, 3, 4):
        raise CapabilityError(f"Grad-CAM needs class scores, the network returns {type(first).__name__}")
    if first.ndim == 4:
        return first.amax((2, 3))
    return first.amax(1) if first.ndim == 3 else first


def watches(network: nn.Module, layer: str | None) -> list[Watch]:
    """The named layer, else ways to the last maps, best first: what `features()` returns during a forward pass, of the network or
    of its backbone; the input of the last attention layer."""
    if layer is not None:
        return [_layer(layer_named(network, layer), f"layer {layer}", inward=False)]
    found: list[Watch] = []
    for owner, what in ((network, "features()"), (getattr(network, "backbone", None), "backbone.features()")):
        if isinstance(owner, nn.Module) and hasattr(owner, "features"):
            found.append(_features(owner, what))
    blocks = [(name, module) for name, module in network.named_modules() if is_attention(module)]
    if blocks:
        found.append(_layer(blocks[-1][1], f"the tokens that enter {blocks[-1][0]}", inward=True))
    return found


def _layer(module: nn.Module, what: str, *, inward: bool) -> Watch:
    kept: list[Tensor] = []

    def keep(value: Any) -> Tensor:
        if not isinstance(value, Tensor):
            raise CapabilityError(f"Grad-CAM needs maps, {what} gives a {type(value).__name__}")
        # an own node, so that what later layers do in place does not reach the maps
        kept.append(value.clone() if value.requires_grad else value.detach().clone().requires_grad_(True))
        return kept[-1].clone()

    def on() -> contextlib.AbstractContextManager[Any]:
        if inward:
            return hooked(module.register_forward_pre_hook(lambda _, args: (keep(args[0]), *args[1:])))
        return hooked(module.register_forward_hook(lambda _, __, out: keep(out)))

    return Watch(what, on, kept)


def _features(owner: nn.Module, what: str) -> Watch:
    kept: list[Tensor] = []
    plain = cast(Any, owner).features

    def keep(pixels: Tensor) -> list[Tensor]:
        maps: list[Tensor] = list(plain(pixels))
        kept.append(maps[-1].clone())
        return [*maps[:-1], kept[-1].clone()]

    @contextlib.contextmanager
    def on() -> Generator[None]:
        object.__setattr__(owner, "features", keep)  # on this object only; the class keeps its method
        try:
            yield
        finally:
            object.__delattr__(owner, "features")

    return Watch(what, on, kept)


def gradcam_of(network: nn.Module, pixels: Tensor, label: int | None = None, layer: str | None = None) -> tuple[Cam, str]:
    """Grad-CAM of class `label` (None: the best-scored one) for one input (1, C, H, W), and what its maps were taken from.

    Eq. 1: weights_k are the gradients of the score averaged over the map; eq. 2: heat = relu(sum_k weights_k A_k).
    Raises CapabilityError if the network has no maps that its score depends on.
    """
    options = watches(network, layer)
    grid = grid_of(network, pixels)
    for watch in options:
        watch.kept.clear()
        with torch.enable_grad(), watch.on():
            scores = scores_of(network(pixels.detach().clone().requires_grad_(True)))
        if not watch.kept:
            continue
        score = scores[0, int(scores[0].argmax()) if label is None else label]
        (gradient,) = torch.autograd.grad(score, watch.kept[-1], allow_unused=True)
        maps = as_maps(watch.kept[-1], grid)
        slope = as_maps(gradient, grid) if isinstance(cast(Any, gradient), Tensor) else None  # None: not a part of the score
        if maps is None or slope is None or not bool(slope.any()):
            continue
        weights = slope[0].mean((1, 2))
        heat = (weights[:, None, None] * maps[0]).sum(0).clamp(min=0)
        return Cam(heat.detach(), weights.detach(), float(score.detach())), watch.what
    reason = (
        f"the score does not depend on {' or '.join(watch.what for watch in options)}"
        if options
        else "it has no features() and no attention; name a layer of maps with layer="
    )
    raise CapabilityError(f"{title_of(network)} cannot do Grad-CAM: {reason}")


def gradcam(
    request: Request, *, layer: str | None = None, label: str | int | None = None, limit: int = 4, index: int = 0
) -> Answer:
    """Grad-CAM of the best classes, or of the one that is named, on the last feature map of a network."""
    network, items = request.model, request.items(limit, index)
    if getattr(getattr(network, "config", None), "classes", None) == 0:
        raise CapabilityError(f"{title_of(network)} has no classes (classes=0): Grad-CAM needs the score of one")
    asked = None if label is None else _label(request, label)
    rows: list[list[Panel | None]] = []
    numbers: list[dict[str, Any]] = []
    table: list[dict[str, Any]] = []
    source = ""
    for item in items:
        images = batch_of(network, [item.picture])
        with torch.no_grad():
            scores = scores_of(network(images.pixels))[0]
        if asked is not None and asked >= len(scores):
            raise UsageError(f"{title_of(network)} has the classes 0..{len(scores) - 1}, found {asked}")
        chosen = [asked] if asked is not None else _best(request, scores)
        share = scores.softmax(0) if _exclusive(request) else scores.sigmoid()
        size = shown_size(item.picture.size)
        photo = enlarged(item.picture, size)
        row: list[Panel | None] = [Panel(photo, item.id + request.truth(item.id))]
        for label_index in chosen:
            cam, source = gradcam_of(network, images.pixels, label_index, layer)
            heat = cam.heat / cam.heat.max().clamp(min=1e-12)
            cover = _cover(images.pixels, cam.heat, network, source)
            name = name_of(request.names, label_index)
            caption = f"{name}: {100 * float(share[label_index]):.1f} %"
            over = overlay(photo, onto_picture(heat.float(), images, 0, cover, size))
            row.append(Panel(over, caption, colour(label_index)))
            record = {
                "id": item.id,
                "class": name,
                "output": label_index,
                "score": rounded(cam.score),
                "share": rounded(float(share[label_index])),
            }
            numbers.append({**record, "weights": rounded(cam.weights, 4), "heat": rounded(cam.heat, 4)})
            table.append({"picture": item.id, "class": name, "score": cam.score, "probability": float(share[label_index])})
        rows.append(row)
    what = f"the {len(rows[0]) - 1} best classes" if asked is None else f"class {name_of(request.names, asked)}"
    picture = panels(rows, cell=300, title=f"{request.title}: Grad-CAM for {what}", bar=("no evidence", "most evidence"))
    return Answer(
        picture,
        f"Grad-CAM on {source}; every map is scaled to its own largest value.",
        {"maps": source, "cams": numbers},
        ["Selvaraju et al. 2017: relu of the maps weighted by the class score's gradient, averaged over the map (eq. 1 and 2)."],
        {"Classes": table},
    )


def _label(request: Request, label: str | int) -> int:
    names = request.names
    if isinstance(label, str) and label in names:
        return names.index(label)
    if isinstance(label, int) or label.isdigit():
        if int(label) < 0 or (names and int(label) >= len(names)):
            raise UsageError(f"label must be in 0..{len(names) - 1}, found {label}")
        return int(label)
    raise UnknownNameError("label", label, names)


def _best(request: Request, scores: Tensor) -> list[int]:
    """The best classes of a picture; outputs that are no class ("background", "no object") are left out."""
    card = getattr(request.model, "card", None)
    kept = None if card is None else card.kept()
    count = getattr(getattr(request.model, "config", None), "classes", None) or len(scores)
    allowed = set(kept if kept is not None else range(min(count, len(scores))))
    order = [int(i) for i in scores.argsort(descending=True) if int(i) in allowed]
    return order[: min(SHOWN, len(order))]


def _exclusive(request: Request) -> bool:
    return getattr(getattr(request.model, "card", None), "task", "classify") == "classify"


def _cover(pixels: Tensor, heat: Tensor, network: nn.Module, source: str) -> tuple[float, float]:
    """How many input pixels (H, W) the maps cover: their cells times the stride, which may reach beyond the picture."""
    height, width = float(pixels.shape[2]), float(pixels.shape[3])
    owner = getattr(network, "backbone", None) if source.startswith("backbone") else network
    strides = getattr(owner, "strides", None)
    if source.startswith("layer") or not strides:
        return height, width
    return float(heat.shape[0] * strides[-1]), float(heat.shape[1] * strides[-1])

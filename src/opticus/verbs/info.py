"""info: layers, parameters, operations, receptive field, licences and formats of a model."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from opticus import zoo
from opticus.structures import Backbone, Images, Prepare, UsageError
from opticus.verbs.models import Card, create, load

WIDEST = 4096  # pixels: receptive fields beyond this are reported as the whole picture


@dataclass(frozen=True)
class Info:
    """What is known about a model; `flops` counts multiply-adds as two operations at `size` (H, W) and batch 1."""

    name: str
    task: str
    paper: str
    parameters: int
    trainable: int
    layers: dict[str, int]
    size: tuple[int, int]
    flops: int
    receptive_field: int | None  # pixels; None = the whole picture
    formats: tuple[str, ...]
    weights: dict[str, str]  # name -> licence
    license: str | None
    prepare: dict[str, Any]
    labels: int | None

    def to_json(self) -> dict[str, Any]:
        """JSON-ready."""
        return {**self.__dict__, "size": list(self.size), "formats": list(self.formats)}

    def table(self) -> str:
        """One fact a line."""
        rows = {
            "model": f"{self.name} ({self.task}): {self.paper}",
            "parameters": f"{self.parameters:,}"
            + ("" if self.trainable == self.parameters else f" ({self.trainable:,} trainable)"),
            "layers": ", ".join(f"{count} {kind}" for kind, count in self.layers.items()),
            "operations": f"{self.flops / 1e9:.2f} GFLOPs at {self.size[0]}x{self.size[1]} (a multiply-add counts as two)",
            "receptive field": "the whole picture" if self.receptive_field is None else f"{self.receptive_field} px",
            "formats": ", ".join(self.formats) or "opticus",
            "licence of weights": self.license or "none loaded",
        }
        lines = [f"{key:<20}{value}" for key, value in rows.items()]
        return "\n".join([*lines, *(f"{'published':<20}{name} ({licence})" for name, licence in self.weights.items())])


def info(model: str | nn.Module, weights: str | Path | None = None, *, size: int | None = None) -> Info:
    """Facts about a model by name, run folder, file or object. `size` is the input side in pixels for the operation count."""
    network: Any = _network(model, weights) if not isinstance(model, nn.Module) else model
    card: Card = network.card
    stem, variant, _ = zoo.split(card.name)
    paper = zoo.paper(stem)
    side = _input_size(network.prepare, size)
    return Info(
        name=card.name,
        task=card.task,
        paper=(paper.__doc__ or stem).strip().splitlines()[0].rstrip("."),
        parameters=sum(p.numel() for p in network.parameters()),
        trainable=sum(p.numel() for p in network.parameters() if p.requires_grad),
        layers=dict(Counter(type(m).__name__ for m in network.modules() if not list(m.children())).most_common(8)),
        size=side,
        flops=operations(card.name, network, side),
        receptive_field=receptive_field(network),
        formats=tuple(paper.FORMATS),
        weights={f"{stem}/{key}": row.license for key, row in paper.WEIGHTS.items() if key.split(":")[0] == variant},
        license=card.license,
        prepare=network.prepare.to_json(),
        labels=None if card.labels is None else len(card.labels),
    )


def _network(name: str, weights: str | Path | None) -> nn.Module:
    if weights is not None or ":" in name or Path(name).exists():
        return load(name, weights, quiet=True)
    return create(name)


def _input_size(prepare: Prepare, size: int | None) -> tuple[int, int]:
    if size is not None:
        if size < 1:
            raise UsageError(f"size must be at least 1, found {size}")
        return size, size
    if prepare.crop is not None:
        return prepare.crop
    if prepare.resize in ("shortest", "scaled", "rounded"):
        return prepare.size[0], prepare.size[1] or prepare.size[0]
    return (512, 512) if prepare.resize == "none" else prepare.size


def _inputs(name: str, network: nn.Module, pixels: Tensor) -> tuple[Tensor, ...]:
    """What the network's forward takes for a picture: the picture, or what its paper says (`inputs`), such as latents."""
    own = getattr(zoo.paper(zoo.split(name)[0]), "inputs", None)
    images = Images(pixels, None, torch.eye(3)[None], ((int(pixels.shape[2]), int(pixels.shape[3])),))
    return (pixels,) if own is None else own(network, images)


def operations(name: str, network: nn.Module, size: tuple[int, int]) -> int:
    """Floating-point operations of one forward pass at batch 1, counted on the meta device (torch's counter).

    A network that chooses regions by their values is run on noise instead; one that is given its regions gets as many as it asks for.
    """
    from torch.utils.flop_counter import FlopCounterMode

    config, channels = cast(Any, network).config, cast(Any, network).prepare.channels
    given = "regions" in getattr(network, "inputs", ())
    if not given:
        counter = FlopCounterMode(display=False)
        try:
            with counter:
                twin = zoo.meta(name, config).eval()
                twin(*_inputs(name, twin, torch.empty(1, channels, *size, device="meta")))
            return counter.get_total_flops()
        except RuntimeError:  # there are no data on the meta device
            pass
    parameter, draw = next(network.parameters()), torch.Generator().manual_seed(0)
    corners = torch.rand(int(getattr(config, "proposals", 1)) if given else 1, 2, 2, generator=draw).sort(1).values
    boxes = (corners * torch.tensor([size[1], size[0]])).flatten(1).to(parameter)
    pixels = torch.rand(1, channels, *size, generator=draw).to(parameter)
    counter, mode = FlopCounterMode(display=False), network.training
    network.eval()
    try:
        with counter, torch.no_grad():
            network(pixels, regions=(boxes,)) if given else network(*_inputs(name, network, pixels))
    finally:
        network.train(mode)
    return counter.get_total_flops()


def receptive_field(network: nn.Module) -> int | None:
    """Side in pixels of the input square that can move the central cell of the coarsest map; None = the whole picture.

    Measured, not derived: a column of NaN at distance d left of the cell reaches it exactly if the field does.
    """
    if not isinstance(network, Backbone):
        return None
    rule: Prepare = cast(Any, network).prepare
    stride, was_training = network.strides[-1], network.training
    height = max(rule.crop or rule.size)
    network.eval()
    try:
        low, high = 0, 64
        while _reaches(network, rule.channels, high, stride, height):
            low, high = high, high * 2
            if high > WIDEST:
                return None
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if _reaches(network, rule.channels, middle, stride, height) else (low, middle)
    except (RuntimeError, ValueError, UsageError):  # networks of one input size (weights per position) see all of it
        return None
    finally:
        network.train(was_training)
    return 2 * low + 1


@torch.inference_mode()
def _reaches(network: Any, channels: int, distance: int, stride: int, height: int) -> bool:
    """Whether a NaN column `distance` pixels to the left of the central cell's centre changes that cell."""
    cells = 2 * (distance // stride + 2) + 1
    pixels = torch.zeros(1, channels, min(height, 2 * stride), cells * stride)
    centre = cells // 2
    place = centre * stride - distance
    pixels[..., : max(place, 0) + 1] = float("nan")
    out: Tensor = network.features(pixels)[-1]
    return bool(out[0, :, out.shape[2] // 2, min(centre, out.shape[3] - 1)].isnan().any())

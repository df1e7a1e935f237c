"""The verb `explain` of the command line."""

from __future__ import annotations

import json
from dataclasses import dataclass, field, fields
from typing import Any, Literal

COMMON = ("kind", "model", "source", "beside", "data", "split", "weights", "out", "seed", "device", "json")
_WORD = {"word": True}


@dataclass
class Explain:
    """Show what a model looks for and where it looks: opticus explain gradcam MODEL street.jpg.

    Kinds: filters, activations, tsne, surface, templates, neighbours, gradcam, attention, attention-mask, attention-point, rollout,
    receptive-field, augmentations, numbers; of detectors: anchors, objectness, nms, focal, slots, decoder-attention, encoder-attention,
    gallery; of methods without labels: centring, masks; of systems that answer pictures by pictures: restoration, cycle; of generators:
    style-mixing, truncation; of diffusion: denoising.
    """

    kind: str = field(metadata=_WORD)
    model: str | None = field(default=None, metadata=_WORD)  # numbers: the picture
    source: str | None = field(default=None, metadata=_WORD)  # a picture
    beside: tuple[str, ...] | None = None  # surface, gallery, attention-mask, restoration: further models
    data: str | None = None
    split: str = "test"
    weights: str | None = None  # a weights file for MODEL
    out: str | None = None
    seed: int = 0
    device: str | None = None
    index: int | None = None  # the record of data= to look at
    limit: int | None = None  # how many pictures are used
    layer: str | None = None  # a layer's name, as `opticus explain` lists the nearest ones
    label: str | None = None  # gradcam: the class
    maps: int | None = None  # filters, activations: how many
    units: tuple[int, ...] | None = None  # activations: which maps
    unit: int | None = None  # receptive-field: a channel
    cell: tuple[int, ...] | None = None  # receptive-field: row,column
    by: Literal["pixels", "embed"] | None = None  # neighbours
    norm: Literal["l1", "l2", "cosine"] | None = None  # neighbours
    queries: int | None = None  # neighbours, slots, decoder-attention: how many
    k: int | None = None  # neighbours
    perplexity: float | None = None  # tsne
    fusion: Literal["mean", "max", "min"] | None = None  # rollout
    steps: int | None = None  # surface: losses along each direction
    span: float | None = None  # surface: how far it reaches, in filter norms
    columns: int | None = None  # augmentations: draws beside each other
    size: int | None = None  # numbers: the longer side; attention...: the shorter side of what the network sees
    mass: float | None = None  # attention, attention-mask: share of the attention that a mask holds
    point: tuple[int, ...] | None = None  # attention-point: x,y in pixels
    threshold: float | None = None  # anchors: IoU; nms, gallery, decoder-attention: score
    background: int | None = None  # focal: easy places
    outputs: int | None = None  # centring: of the head
    temperature: float | None = None  # centring: of the sharpened answers
    ratio: float | None = None  # masks: share of the patches that are hidden
    visible: Literal["predicted", "pasted"] | None = None  # masks: how visible patches are shown
    hide: Literal["random", "boxes", "keypoints"] | None = None  # masks: which patches go first
    border: int | None = None  # restoration: pixels at each side that are not compared
    rows: int | None = None  # style-mixing: pictures B for each group of layers
    truncation: float | None = None  # style-mixing: how far styles are from the mean
    json: bool = False

    def run(self) -> int:
        """Write PNG, page and JSON; prints where they are."""
        import opticus

        models = self.model if self.beside is None else [m for m in (self.model, *self.beside) if m is not None]
        named: dict[str, Any] = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in COMMON}
        options = {name: value for name, value in named.items() if value is not None}
        done = opticus.explain(
            self.kind, models, self.source, data=self.data, split=self.split, weights=self.weights, out=self.out, seed=self.seed,
            device=self.device, **options,
        )  # fmt: skip
        text = "\n".join([*done.notes, f"picture: {done.png}", f"page: {done.page}", f"numbers: {done.json}"])
        print(json.dumps(done.to_json(), indent=1) if self.json else text)
        return 0

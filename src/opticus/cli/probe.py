"""The verbs that ask what a network's features are worth: probe and transfer-curve."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from opticus.structures.errors import UsageError


def word() -> Any:
    """A field that is given as a plain word."""
    return field(metadata={"word": True})


@dataclass
class Probe:
    """Accuracy of neighbours and linear classifiers on frozen features: opticus probe runs/classify/x data=crops.

    methods=propagation: J&F of videos whose first masks are carried on (data=videos or DAVIS); methods=attention-mask: Jaccard index of
    thresholded attention (data=scenes or Pascal VOC).
    """

    model: str = word()
    data: str | None = None
    weights: str | None = None
    methods: tuple[str, ...] = ("knn", "linear")
    k: int = 20
    temperature: float = 0.07
    baseline: bool = True  # the same on raw pixels
    split: str = "test"
    batch: int = 64
    device: str | None = None
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    cache: bool = True  # keep the features on disk for the next time
    size: int | None = None  # propagation, attention-mask: the shorter side of what the network sees
    limit: int | None = None  # so many sequences or pictures
    frames: int | None = None  # propagation: earlier frames that vote beside the first one
    neighbourhood: int | None = None  # propagation: how many rows and columns away a voter may be
    nearest: int | None = None  # propagation: how many patches vote
    mass: float | None = None  # attention-mask: share of the attention that a mask holds
    regions: Literal["each", "foreground"] | None = None  # attention-mask
    out: str | None = None  # folder for probe.json and a passport per row
    quiet: bool = False
    json: bool = False

    def run(self) -> int:
        """Print one line per method and kind of features."""
        import opticus

        if self.data is None:
            raise UsageError("opticus probe needs data=, such as: opticus probe resnet/50:imagenet1k_v2 data=crops")
        model = opticus.load(self.model, self.weights)
        dense = ("size", "limit", "frames", "neighbourhood", "nearest", "mass", "regions")
        found = opticus.probe(
            model, self.data, methods=self.methods, k=self.k, temperature=self.temperature, baseline=self.baseline,
            split=self.split, batch=self.batch, device=self.device, precision=self.precision, cache=self.cache,
            out=self.out, quiet=self.quiet, **{key: v for key in dense if (v := getattr(self, key)) is not None},
        )  # fmt: skip
        print(json.dumps(found.to_json(), indent=1) if self.json else found.table())
        return 0


@dataclass
class TransferCurve:
    """Which layers to freeze: fine-tunes a trained network at every depth: opticus transfer-curve RUN data=textures steps=300."""

    model: str = word()
    data: str | None = None
    out: str = "runs/transfer"
    steps: int = 300
    images: int | None = None  # so many training pictures of every class; None = all
    seed: int = 0
    quiet: bool = False
    json: bool = False

    def run(self) -> int:
        """Print accuracy by number of frozen units; writes transfer.json and transfer.png."""
        from opticus.recipes.transfer import transfer_curve

        if self.data is None:
            raise UsageError("opticus transfer-curve needs data=, such as: opticus transfer-curve runs/classify/x data=textures")
        found = transfer_curve(
            self.model, self.data, Path(self.out), steps=self.steps, images=self.images, seed=self.seed, quiet=self.quiet
        )
        print(json.dumps(found.to_json(), indent=1) if self.json else found.table())
        return 0

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
    """What frozen features are worth (neighbours, linear, retrieval, copies): opticus probe runs/classify/x data=crops.

    methods=propagation: J&F of videos whose first masks are carried on (data=videos or DAVIS); methods=attention-mask: Jaccard index of
    thresholded attention (data=scenes or Pascal VOC).
    """

    model: str = word()
    data: str | None = None
    weights: str | None = None
    methods: tuple[str, ...] | None = None  # of knn, linear, sgd-linear, svm; retrieval; copy. What the data is for if not given
    k: int = 20
    temperature: float = 0.07
    search: Literal["exact", "faiss", "faiss-hnsw"] = "exact"  # how neighbours are found; faiss is the extra "search"
    scales: tuple[float, ...] = (1.0,)  # the input is resized by each and the vectors averaged, such as 1,0.7071,0.5
    layers: int = 1  # class tokens of so many last blocks
    average: bool = False  # and the mean of the patch tokens
    gem: float = 0.0  # and the last map pooled by this power
    longest: int | None = None  # whole pictures, shrunk to this longer side and not cropped
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
            model, self.data, methods=self.methods, k=self.k, temperature=self.temperature, search=self.search,
            scales=self.scales, layers=self.layers, average=self.average, gem=self.gem, longest=self.longest, baseline=self.baseline,
            split=self.split, batch=self.batch, device=self.device, precision=self.precision, cache=self.cache,
            out=self.out, quiet=self.quiet, **{key: v for key in dense if (v := getattr(self, key)) is not None},
        )  # fmt: skip
        print(json.dumps(found.to_json(), indent=1) if self.json else found.table())
        return 0


@dataclass
class Features:
    """Vectors of a data set into a memory-mapped file, resumably: opticus features vit/b16:... data=photos out=photos.npy."""

    model: str = word()
    data: str | None = None
    out: str | None = None  # a .npy file; ids, labels and protocol are written beside it
    weights: str | None = None
    split: str = "train"
    dtype: Literal["float32", "float16"] = "float32"
    scales: tuple[float, ...] = (1.0,)
    layers: int = 1
    average: bool = False
    gem: float = 0.0
    longest: int | None = None
    batch: int = 64
    device: str | None = None
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    overwrite: bool = False
    quiet: bool = False
    json: bool = False

    def run(self) -> int:
        """Say what was written where; a killed call goes on where it stopped."""
        import opticus

        if self.data is None or self.out is None:
            raise UsageError("opticus features needs data= and out=, such as: opticus features runs/x data=crops out=crops.npy")
        from opticus.verbs.features import Taken

        model = opticus.load(self.model, self.weights)
        done = opticus.extract(
            model, self.data, self.out, split=self.split, dtype=self.dtype, batch=self.batch, device=self.device,
            taken=Taken(self.scales, self.layers, self.average, self.gem, self.longest), precision=self.precision,
            overwrite=self.overwrite, quiet=self.quiet,
        )  # fmt: skip
        rows, width = done.vectors.shape
        record = {
            "file": str(done.file),
            "rows": rows,
            "width": width,
            "dtype": self.dtype,
            "ids": str(done.ids),
            "resumed": done.resumed,
        }
        gone = f" ({done.resumed} rows were there already)" if done.resumed else ""
        print(json.dumps(record, indent=1) if self.json else f"{done.file}: {rows} x {width} {self.dtype}, ids in {done.ids}{gone}")
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

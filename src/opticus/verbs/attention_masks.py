"""attention_masks: how well the class token's attention, thresholded, segments pictures; nothing is trained.

Caron et al., ICCV 2021, arXiv 2104.14294 (section 4.2.3, figure 4: 60 % of the mass, best head, Jaccard index on VOC12). Reference for the
masks: facebookresearch/dino, visualize_attention.py (Apache-2.0).

*Differs*: void pixels are left out; masks are compared at the picture's own size.
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple, cast

import numpy as np
import numpy.typing as npt
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from opticus.data.open import open_data
from opticus.data.records import Source
from opticus.data.segments import PREFIX, VocSegments, map_of
from opticus.data.splits import canonical
from opticus.metrics.masks import BestMask
from opticus.metrics.passport import Passport
from opticus.structures import Picture, UsageError
from opticus.structures.files import write_text
from opticus.transforms.whole import short_side
from opticus.verbs.explain_attention import attention_layer, mass_masks, patch_rows, sized
from opticus.verbs.predict import place

EVERYTHING = "whole picture"  # the baseline: one mask that holds every pixel


class Masked(NamedTuple):
    """One kind of masks: its figures and the protocol that they were measured by."""

    features: str
    method: str
    values: dict[str, float]
    metric: BestMask
    protocol: dict[str, Any]


@dataclass
class AttentionMasks:
    """The rows, the model's own first."""

    rows: list[Masked] = field(default_factory=list[Masked])
    notes: list[str] = field(default_factory=list[str])

    def __getitem__(self, method: str) -> float:
        """Jaccard index of the best head: `found["attention-mask"]`."""
        return next(row.values["jaccard"] for row in self.rows if row.method == method)

    def to_json(self) -> list[dict[str, Any]]:
        """JSON-ready rows with their protocols."""
        return [{"features": r.features, "method": r.method, "values": r.values, "protocol": r.protocol} for r in self.rows]

    def table(self) -> str:
        """A line per row, then the notes."""
        lines = [f"{'features':<28}{'method':<16}{'jaccard':>9}{'mean of heads':>15}"]
        for r in self.rows:
            lines.append(f"{r.features:<28}{r.method:<16}{r.values['jaccard']:>9.4f}{r.values['jaccard_head_mean']:>15.4f}")
        return "\n".join([*lines, *self.notes])


def attention_masks(
    model: nn.Module,
    data: str | Path | Source,
    *,
    split: str | None = None,
    mass: float = 0.6,
    size: int | None = None,
    regions: Literal["each", "foreground"] = "each",
    layer: str | None = None,
    limit: int | None = None,
    baseline: bool = True,
    device: str | None = None,
    out: str | Path | None = None,
    quiet: bool = False,
) -> AttentionMasks:
    """Jaccard index of masks that hold `mass` of the class token's attention in the last layer (or `layer`), the best head of each region.

    `data` has maps or masks ("scenes", "videos", Pascal VOC, DAVIS, COCO); `regions` "each": every class of a picture is a region, "foreground":
    all together; `size`: pixels of the picture's shorter side (None: the network's own). `split`: "test", or "val" where there is none. With
    `baseline` also the mask that holds the whole picture. Raises CapabilityError without a class token, UsageError or DataError.
    """
    if regions not in ("each", "foreground"):
        raise UsageError(f"regions must be 'each' or 'foreground', found {regions!r}")
    if limit is not None and limit < 1:
        raise UsageError(f"limit must be at least 1, found {limit}")
    name = cast(Any, model).card.name
    chosen = attention_layer(model, layer)
    maps = with_maps(data, split)
    count = len(maps) if limit is None else min(limit, len(maps))
    ways = ("attention-mask", EVERYTHING) if baseline else ("attention-mask",)
    metrics = {way: BestMask(maps.hash, canonical(maps.split), regions=regions) for way in ways}
    place(model, device)
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        for i in tqdm(range(count), unit="img", file=sys.stderr, disable=quiet, leave=False):
            sample = maps[i]
            ids = map_of(sample.target, sample.id)
            truth = ids.labels.numpy()
            masks = masks_of(model, sample.picture, chosen, mass, size)
            metrics["attention-mask"].update(masks, truth, sample.id)
            if baseline:
                metrics[EVERYTHING].update(np.ones((1, *truth.shape), np.bool_), truth, sample.id)
    finally:
        for module, training in modes.items():
            module.training = training
    result = AttentionMasks()
    settings = {"mass": mass, "layer": chosen, "size": size or short_side(cast(Any, model).prepare), "pictures": count}
    for way, metric in metrics.items():
        extra = {"features": name, **settings} if way != EVERYTHING else {"pictures": count}
        result.rows.append(Masked(name if way != EVERYTHING else "-", way, metric.compute(), metric, {**metric.protocol, **extra}))
    if empty := len(metrics["attention-mask"].empty):
        result.notes.append(f"{empty} of {count} pictures show no region and are left out")
    if out is not None:
        keep(result, Path(out))
    return result


def masks_of(model: nn.Module, picture: Picture, layer: str, mass: float = 0.6, size: int | None = None) -> npt.NDArray[np.bool_]:
    """A mask (heads, H, W) of the whole picture per head: patches that hold `mass` of its attention, resampled by the nearest."""
    rows, grid = patch_rows(model, sized(model, picture, size, own=False), layer)
    return spread(mass_masks(rows, mass), grid, picture.size)


def spread(masks: Tensor, grid: tuple[int, int], size: tuple[int, int]) -> npt.NDArray[np.bool_]:
    """Masks of patches (M, patches) as masks of pixels (M, H, W)."""
    large = F.interpolate(masks.float().unflatten(1, grid)[None], size, mode="nearest-exact")[0]
    return (large > 0).cpu().numpy()


def with_maps(data: Any, split: str | None) -> Source:
    """The data with maps of regions: as it is, or drawn from masks ("segment:" is put before a name)."""
    if hasattr(data, "target_of"):
        return data
    word = str(data) if str(data).startswith(PREFIX) else f"{PREFIX}{data}"
    if split is not None:
        return open_data(word, split)
    known = open_data(word, "val")
    return open_data(word, "test") if "test" in known.splits and not isinstance(known, VocSegments) else known


def keep(result: AttentionMasks, folder: Path) -> None:
    """Write attention-masks.json and, in a folder per row, a passport that `compare` reads."""
    write_text(folder / "attention-masks.json", json.dumps(result.to_json(), indent=1))
    for row in result.rows:
        extra = {k: v for k, v in row.protocol.items() if k not in ("features", *row.metric.protocol)}
        title = row.method if row.features == "-" else f"{row.features}-{row.method}"
        Passport.of(row.metric, extra).write(folder / title.replace("/", "-").replace(":", "-").replace(" ", "-"))


__all__ = ["AttentionMasks", "Masked", "attention_masks", "masks_of", "spread", "with_maps"]

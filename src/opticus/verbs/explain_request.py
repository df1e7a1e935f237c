"""What every kind of explanation is asked and answers: the request with its models, pictures and data, and the answer."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from opticus.data.open import open_data
from opticus.structures import (
    CapabilityError,
    Classes,
    DataError,
    Dataset,
    Embedding,
    Images,
    Picture,
    Prepare,
    Sample,
    UnknownNameError,
    UsageError,
)
from opticus.transforms.prepare import prepare
from opticus.verbs.predict import Item, pictures

if TYPE_CHECKING:
    from PIL.Image import Image

Values = npt.NDArray[Any]
Row = Mapping[str, Any]


@dataclass(slots=True)
class Answer:
    """An explanation: the picture, the numbers behind it (JSON-ready), what to say about it, and tables for the page."""

    picture: Image
    caption: str
    numbers: dict[str, Any]
    notes: list[str] = field(default_factory=list[str])
    tables: dict[str, Sequence[Row]] = field(default_factory=dict[str, Sequence[Row]])


@dataclass(slots=True)
class Request:
    """What a kind works on: models in evaluation mode with their titles, a source of pictures, a data set, a seed, and a recipe."""

    kind: str
    models: Sequence[nn.Module]
    titles: Sequence[str]
    source: Any
    data: Any
    split: str
    seed: int
    recipe: Callable[[str, Dataset], Any] | None
    opened: dict[str, Dataset] = field(default_factory=dict[str, Dataset])
    truths: dict[str, str] = field(default_factory=dict[str, str])

    @property
    def model(self) -> Any:
        """The one model; UsageError if none was named."""
        if not self.models:
            raise UsageError(f"explain {self.kind} needs a model, such as: opticus explain {self.kind} resnet/tiny")
        return self.models[0]

    @property
    def title(self) -> str:
        """How the model is called."""
        return self.titles[0] if self.titles else ""

    @property
    def rule(self) -> Prepare:
        """How the model wants its pictures."""
        return self.model.prepare

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the model's raw outputs, else the data set's classes; empty if neither is known."""
        labels = getattr(getattr(self.models[0], "card", None), "labels", None) if self.models else None
        if labels is not None:
            return tuple(labels)
        return tuple(self.dataset().names) if self.data is not None else ()

    def dataset(self, split: str | None = None) -> Dataset:
        """A split of the data set, opened once; UsageError if no data was named."""
        if self.data is None:
            raise UsageError(f"explain {self.kind} needs data=, such as: data=digits")
        where = split or self.split
        if where not in self.opened:
            if hasattr(self.data, "target_of"):
                self.opened[where] = self.data
            else:
                self.opened[where] = cast(Dataset, open_data(self.data, where))
            if len(self.opened[where]) == 0:
                raise DataError(f"the {where} split has no samples to explain")
        return self.opened[where]

    def samples(self, limit: int, split: str | None = None) -> list[Sample]:
        """The first `limit` samples of a split."""
        at_least("limit", limit, 1)
        data = self.dataset(split)
        return [data[i] for i in range(min(limit, len(data)))]

    def items(self, limit: int, index: int = 0) -> list[Item]:
        """Up to `limit` pictures: those of the source, else the data set's from record `index` on.

        Raises DataError or ImageError naming a picture that is missing or broken, UsageError if there is neither.
        """
        at_least("limit", limit, 1)
        if self.source is not None:
            found: list[Item] = []
            for item in pictures(self.source):
                found.append(item)
                if len(found) == limit:
                    break
            if not found:
                raise DataError(f"{self.source}: nothing to look at")
            return found
        if self.data is None:
            raise UsageError(f"explain {self.kind} needs a picture or data=, such as: street.jpg or data=digits")
        data = self.dataset()
        if not 0 <= index < len(data):
            raise UsageError(f"index must be in 0..{len(data) - 1} for this data, found {index}")
        chosen = [data[i] for i in range(index, min(index + limit, len(data)))]
        self.truths = {s.id: name_of(data.names, label_of(s)) for s in chosen if label_of(s) is not None}
        return [Item(sample.id, sample.picture, lambda sample=sample: sample.picture) for sample in chosen]

    def truth(self, id: str) -> str:
        """ "\\ntruth: cat" for a record of the data set whose class is known, else ""."""
        return f"\ntruth: {self.truths[id]}" if id in self.truths else ""

    def generator(self) -> np.random.Generator:
        """Randomness that is a function of the seed."""
        return np.random.default_rng(self.seed)


def at_least(name: str, value: Any, low: int) -> None:
    """UsageError unless `value` is a whole number of at least `low`."""
    if isinstance(value, bool) or not isinstance(value, int) or value < low:
        raise UsageError(f"{name} must be a whole number of at least {low}, found {value!r}")


def one_of(name: str, value: str, known: Sequence[str]) -> str:
    """`value` if it is known; UnknownNameError with the nearest names otherwise."""
    if value not in known:
        raise UnknownNameError(name, str(value), known)
    return value


def batch_of(network: Any, items: Sequence[Picture]) -> Images:
    """Network input on the network's device and in its precision."""
    parameter = next(network.parameters(), torch.zeros(0))
    wide = torch.float64 if parameter.dtype == torch.float64 else None
    return prepare(items, network.prepare).to(parameter.device, wide)


def seen(images: Images, rule: Prepare, index: int = 0) -> Values:
    """What the network saw of picture `index`, as (H, W, 3) uint8."""
    return as_pixels(images.pixels[index], rule)


def as_pixels(pixels: Tensor, rule: Prepare) -> Values:
    """A normalised input (C, H, W) turned back into a picture (H, W, 3) uint8."""
    mean, std = (torch.tensor(value, dtype=torch.float64)[:, None, None] for value in (rule.mean, rule.std))
    raw = (pixels.detach().cpu().double() * std + mean) / rule.scale
    planes = raw.flip(0) if rule.order == "bgr" and rule.channels == 3 else raw
    grey = planes.clamp(0, 255).round().to(torch.uint8).permute(1, 2, 0).numpy()
    return np.ascontiguousarray(np.broadcast_to(grey, (*grey.shape[:2], 3))) if grey.shape[2] == 1 else grey[..., :3]


def onto_picture(
    heat: Tensor, images: Images, index: int, cover: tuple[float, float], size: tuple[int, int] | None = None
) -> Values:
    """A map (h, w) that covers the top left `cover` = (H, W) pixels of the input, resampled onto the original picture.

    Returns `size` (None: the picture's own) values; NaN where the network did not see the picture (outside a crop).
    """
    height, width = images.sizes[index]
    rows, columns = size or (height, width)
    matrix = images.to_input[index]
    y = ((torch.arange(rows, dtype=torch.float64) + 0.5) * height / rows) * matrix[1, 1] + matrix[1, 2]
    x = ((torch.arange(columns, dtype=torch.float64) + 0.5) * width / columns) * matrix[0, 0] + matrix[0, 2]
    grid = torch.stack(torch.meshgrid(2 * x / cover[1] - 1, 2 * y / cover[0] - 1, indexing="xy"), -1)
    values = heat.detach().cpu().double()[None, None]
    out = F.grid_sample(values, grid[None], mode="bilinear", padding_mode="border", align_corners=False)[0, 0]
    inside = ((y >= 0) & (y <= images.pixels.shape[-2]))[:, None] & ((x >= 0) & (x <= images.pixels.shape[-1]))[None]
    return out.masked_fill(~inside, float("nan")).numpy()


def shown_size(size: tuple[int, int], side: int = 320) -> tuple[int, int]:
    """(H, W) at which a picture is shown: its shorter side at least `side` pixels, its longer one at most four times as many."""
    factor = min(max(1.0, side / min(size)), 4 * side / max(size))
    return max(1, round(size[0] * factor)), max(1, round(size[1] * factor))


def enlarged(picture: Picture, size: tuple[int, int]) -> Values:
    """The picture (H, W, 3) uint8 resampled to `size`, pixels of tiny ones as squares."""
    from PIL import Image as image_module

    from opticus.plot.draw import to_pixels

    kind = image_module.Resampling.NEAREST if size[0] >= 4 * picture.size[0] else image_module.Resampling.BICUBIC
    return np.asarray(image_module.fromarray(to_pixels(picture)).resize((size[1], size[0]), kind))


def label_of(sample: Sample) -> int | None:
    """The class of a sample with a single label, or the identity that an embedding's data gives it, else None."""
    target = sample.target
    if isinstance(target, Embedding):
        return target.identity
    return int(target.labels[0]) if isinstance(target, Classes) and len(target) else None


def name_of(names: Sequence[str], label: int | None) -> str:
    """The class's name, its number where there is no name, "" without a label."""
    if label is None:
        return ""
    return names[label] if 0 <= label < len(names) else str(label)


def need(network: Any, capability: str, kind: str, why: str) -> None:
    """CapabilityError that names the missing capability."""
    if not hasattr(network, capability):
        name = getattr(getattr(network, "card", None), "name", type(network).__name__)
        raise CapabilityError(f"{name} has no {capability}(): explain {kind} needs it {why}")


def vectors(network: Any, samples: Sequence[Sample], batch: int = 64) -> Tensor:
    """The network's `embed` vectors (N, D) of samples, float32 on the CPU."""
    parts: list[Tensor] = []
    with torch.inference_mode():
        for first in range(0, len(samples), batch):
            images = batch_of(network, [sample.picture for sample in samples[first : first + batch]])
            parts.append(network.embed(images.pixels).float().cpu())
    return torch.cat(parts)


@contextlib.contextmanager
def hooked(*handles: Any) -> Generator[None]:
    """Hooks that are removed at the end, whatever happens."""
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def rounded(values: Any, digits: int = 6) -> Any:
    """Tensors and arrays as nested lists of numbers with `digits` significant digits; None for what is not finite."""
    if isinstance(values, Tensor):
        values = values.detach().cpu().numpy()
    if isinstance(values, np.ndarray):
        values = values.tolist()
    if isinstance(values, (list, tuple)):
        return [rounded(value, digits) for value in cast("list[Any]", values)]
    if isinstance(values, float):
        return float(f"{values:.{digits}g}") if np.isfinite(values) else None
    return values

"""predict: any source of pictures to typed results, in batches and, streamed, in flat memory."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import fields, replace
from itertools import chain, islice
from pathlib import Path
from typing import Any, Literal, NamedTuple, cast, overload

import numpy as np
import torch
from torch import Tensor, nn

from opticus.losses.classify import logits_of
from opticus.losses.multilabel import tagged
from opticus.losses.supervised import widened
from opticus.structures import (
    CapabilityError,
    Classes,
    DataError,
    ImageError,
    Images,
    Instances,
    Picture,
    Result,
    UnknownNameError,
    UsageError,
)
from opticus.transforms.prepare import prepare
from opticus.verbs.models import Card
from opticus.verbs.results import Prediction

PICTURES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".gif", ".ppm", ".pgm")
VIDEOS = (".mp4", ".avi", ".mov", ".mkv", ".webm", ".m4v", ".mpg", ".mpeg")


class Item(NamedTuple):
    """A picture to look at, and how to get it again."""

    id: str
    picture: Picture
    again: Callable[[], Picture]


@overload
def predict(
    model: nn.Module, source: Any, *, stream: Literal[False] = False, threshold: float | None = None, labels: Sequence[str] | None = None,
    limit: int | None = None, batch: int = 8, device: str | None = None, precision: str = "fp32",
) -> list[Prediction]: ...  # fmt: skip
@overload
def predict(
    model: nn.Module, source: Any, *, stream: Literal[True], threshold: float | None = None, labels: Sequence[str] | None = None,
    limit: int | None = None, batch: int = 8, device: str | None = None, precision: str = "fp32",
) -> Iterator[Prediction]: ...  # fmt: skip
def predict(
    model: nn.Module,
    source: Any,
    *,
    stream: bool = False,
    threshold: float | None = None,
    labels: Sequence[str] | None = None,
    limit: int | None = None,
    batch: int = 8,
    device: str | None = None,
    precision: str = "fp32",
) -> list[Prediction] | Iterator[Prediction]:
    """Results for a picture file, folder, video, PIL picture, uint8 RGB array (H,W,3), uint8 tensor (H,W,3) or (3,H,W), or a list.

    `threshold` drops objects with a lower score (default 0.3 for detectors, 0.5 for several labels);
    `labels` keeps only these class names; `limit` keeps
    the best so many results a picture; `batch` pictures go through the network together; `precision` is "fp32" or "bf16".
    `stream=True` returns a generator that holds one batch at a time.

    Raises ImageError or DataError naming the file, UnknownNameError for a label, CapabilityError if the model predicts nothing.
    """
    if not hasattr(model, "results"):
        raise CapabilityError(f"{type(model).__name__} has no results(): it cannot predict")
    if batch < 1:
        raise UsageError(f"batch must be at least 1, found {batch}")
    if threshold is not None and not 0 <= threshold <= 1:
        raise UsageError(f"threshold must be in [0, 1], found {threshold}")
    if limit is not None and limit < 1:
        raise UsageError(f"limit must be at least 1, found {limit}")
    choose = Choice.of(cast(Any, model).card, threshold, labels, limit)
    run = _stream(model, source, choose, batch, device, precision)
    return run if stream else list(run)


class Choice(NamedTuple):
    """Which results a caller wants, and the names of their labels."""

    names: tuple[str, ...] | None
    label_ids: tuple[int, ...] | None
    kept: list[int] | None  # raw output -> its place among the named classes
    wanted: set[int] | None
    threshold: float
    limit: int | None

    @staticmethod
    def of(card: Card, threshold: float | None, labels: Sequence[str] | None, limit: int | None) -> Choice:
        """Resolve names against the model's card."""
        kept = card.kept()
        names = None if card.labels is None or kept is None else tuple(card.labels[i] for i in kept)
        ids = None if card.label_ids is None or kept is None else tuple(card.label_ids[i] for i in kept)
        wanted: set[int] | None = None
        if labels is not None:
            known = names or ()
            for label in labels:
                if label not in known:
                    raise UnknownNameError("label", label, known)
            wanted = {known.index(label) for label in labels}
        default = 0.3 if card.task in ("detect", "pose", "segment") else 0.5 if card.multi_label else 0.0
        return Choice(names, ids, kept, wanted, default if threshold is None else threshold, limit)

    def __call__(self, result: Result) -> Result:
        """Contiguous named labels, best results only."""
        if isinstance(result, Instances):
            return self._instances(result)
        if isinstance(result, Classes):
            return self._classes(result)
        return result

    def _instances(self, result: Instances) -> Instances:
        result = contiguous(result, self.kept)
        keep = torch.ones(len(result), dtype=torch.bool)
        if result.scores is not None:
            keep &= result.scores >= self.threshold
        if self.wanted is not None:
            keep &= torch.isin(result.labels, torch.tensor(sorted(self.wanted)))
        result = result[keep]
        return result if self.limit is None else result[: self.limit]

    def _classes(self, result: Classes) -> Classes:
        result = contiguous_classes(result, self.kept)
        keep = torch.ones(len(result), dtype=torch.bool)
        if result.scores is not None and self.threshold > 0:
            keep &= result.scores >= self.threshold
        if self.wanted is not None:
            keep &= torch.isin(result.labels, torch.tensor(sorted(self.wanted)))
        scores = None if result.scores is None else result.scores[keep][: self.limit]
        return Classes(result.labels[keep][: self.limit], scores, result.probs)


def contiguous(result: Instances, kept: list[int] | None) -> Instances:
    """Labels counted among the outputs that are classes; objects of other outputs (N/A, background) are dropped."""
    if kept is None or kept == list(range(len(kept))):
        return result if kept is None else result[result.labels < len(kept)]
    table = torch.full((max([*kept, int(result.labels.max()) if len(result) else 0]) + 1,), -1, dtype=torch.int64)
    table[torch.tensor(kept)] = torch.arange(len(kept))
    moved = table[result.labels]
    result = result[moved >= 0]
    result.labels = moved[moved >= 0]
    return result


def contiguous_classes(result: Classes, kept: list[int] | None) -> Classes:
    """As `contiguous`, for ranked classes; `probs` lose the outputs that are no classes."""
    count = len(result) if result.probs is None else len(result.probs)
    if kept is None or kept == list(range(max(count, len(kept)))):
        return result
    table = torch.full((max([*kept, *result.labels.tolist()]) + 1,), -1, dtype=torch.int64)
    table[torch.tensor(kept)] = torch.arange(len(kept))
    moved = table[result.labels]
    scores = None if result.scores is None else result.scores[moved >= 0]
    return Classes(moved[moved >= 0], scores, None if result.probs is None else result.probs[torch.tensor(kept)])


def _stream(model: nn.Module, source: Any, choose: Choice, batch: int, device: str | None, precision: str) -> Iterator[Prediction]:
    items = pictures(source)
    while chunk := list(islice(items, batch)):
        for item, result in zip(chunk, infer(model, [item.picture for item in chunk], device, precision)):
            yield Prediction(choose(result), item.id, choose.names, choose.label_ids, item.again)


def infer(model: nn.Module, batch: Sequence[Picture], device: str | None = None, precision: str = "fp32") -> list[Result]:
    """Raw results of one batch of pictures, in original pixels. The training mode of every module is left as it was found."""
    network = cast(Any, model)
    where = place(model, device)
    wide = next((p.dtype for p in model.parameters() if p.dtype == torch.float64), None)
    images = prepare(batch, network.prepare).to(where, wide)
    modes = {module: module.training for module in model.modules()}  # parts may be frozen apart from the rest
    model.eval()
    try:
        with torch.inference_mode(), autocast(where, precision):
            out = model(images.pixels, images.valid) if images.valid is not None else model(images.pixels)
            several = getattr(getattr(network, "card", None), "multi_label", False)
            results: list[Result] = tagged(logits_of(widened(out))) if several else network.results(widened(out), images)
    finally:
        for module, training in modes.items():
            module.training = training
    return [_on_cpu(result) for result in results]


def _on_cpu(result: Result) -> Result:
    """Results are small and what follows (names, pictures, metrics) works on the CPU."""
    if isinstance(result, Instances):
        return result.to("cpu")
    moved = {f.name: value.cpu() for f in fields(result) if isinstance(value := getattr(result, f.name), Tensor)}
    return replace(result, **moved) if moved else result


def autocast(device: torch.device, precision: str) -> contextlib.AbstractContextManager[Any]:
    """The context in which a network computes in `precision`: fp32, bf16 or fp16; UsageError for any other word."""
    if precision == "fp32":
        return contextlib.nullcontext()
    if precision not in ("bf16", "fp16"):
        raise UsageError(f"unknown precision {precision!r}; known: fp32, bf16, fp16")
    return torch.autocast(device.type, dtype=torch.bfloat16 if precision == "bf16" else torch.float16)


def place(model: nn.Module, device: str | None) -> torch.device:
    """Where the model computes, after moving it there if `device` asks for it; UsageError for a device that is not there."""
    here = next((t.device for t in chain(model.parameters(), model.buffers())), torch.device("cpu"))
    if device is None or device == "auto":
        return here
    try:
        wanted = torch.device(device)
    except RuntimeError as error:
        raise UsageError(f"unknown device {device!r}; examples: cpu, cuda, cuda:1, mps") from error
    if wanted.type == "cuda" and not torch.cuda.is_available():
        raise UsageError(f"device {device!r} was asked for, but torch sees no CUDA GPU here")
    if wanted != here:
        model.to(wanted)
    return wanted


def pictures(source: Any) -> Iterator[Item]:
    """Every picture of a source, decoded one at a time. Raises DataError for a source of an unknown kind, naming it."""
    if isinstance(source, (str, Path)):
        yield from _paths(Path(source).expanduser())
    elif isinstance(source, Picture):
        yield Item("picture", source, lambda: source)
    elif isinstance(source, (np.ndarray, Tensor)) or hasattr(source, "convert"):
        yield from _arrays(source)
    elif isinstance(source, Iterable):
        for number, part in enumerate(cast(Iterable[Any], source)):
            for item in pictures(part):
                yield item if isinstance(part, (str, Path)) else item._replace(id=f"{number}")
    else:
        raise DataError(
            f"cannot look at a {type(source).__name__}; expected a path, PIL picture, uint8 array or tensor, or a list of them"
        )


def _paths(path: Path) -> Iterator[Item]:
    from opticus.data.decode import decode

    if path.is_dir():
        files = sorted(p for p in path.rglob("*") if p.suffix.lower() in PICTURES)
        if not files:
            raise DataError(f"{path}: no pictures in this folder (looked for {', '.join(PICTURES)})")
        for file in files:
            yield Item(str(file.relative_to(path)), decode(file), lambda file=file: decode(file))
    elif not path.exists():
        raise DataError(f"{path}: no such file or folder")
    elif path.suffix.lower() in VIDEOS:
        from opticus.data.video import frames

        for number, picture in enumerate(frames(path)):
            yield Item(f"{path.name}#{number}", picture, lambda picture=picture: picture)
    else:
        yield Item(path.name, decode(path), lambda: decode(path))


def _arrays(source: Any) -> Iterator[Item]:
    if hasattr(source, "convert"):
        from opticus.data.decode import from_pil

        pixels = from_pil(source).pixels
    else:
        pixels = torch.from_numpy(np.ascontiguousarray(source)) if isinstance(source, np.ndarray) else cast(Tensor, source).cpu()
    if pixels.dtype != torch.uint8:
        raise ImageError(f"expected uint8 pixels in 0..255, found {pixels.dtype}; multiply floats in [0, 1] by 255 first")
    if pixels.ndim == 2:
        pixels = pixels[..., None]
    if pixels.ndim == 4:
        for number, one in enumerate(pixels):
            for item in _arrays(one):
                yield item._replace(id=str(number))
        return
    if pixels.ndim != 3:
        raise ImageError(f"expected a picture (H, W, 3) or (3, H, W), found shape {tuple(pixels.shape)}")
    if pixels.shape[-1] not in (1, 3, 4) and pixels.shape[0] in (1, 3):
        pixels = pixels.permute(1, 2, 0)
    if pixels.shape[-1] not in (1, 3):
        raise ImageError(f"expected 1 or 3 channels, found shape {tuple(pixels.shape)}")
    picture = Picture(pixels.contiguous())
    yield Item("picture", picture, lambda: picture)


__all__ = ["Images", "Prediction", "infer", "pictures", "place", "predict"]

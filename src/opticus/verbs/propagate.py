"""propagate: segment videos with frozen features. The first frame's masks are carried on by the likeness of patches, nothing is trained.

Jabri et al., NeurIPS 2020, arXiv 2006.14613 (label propagation); Caron et al., ICCV 2021, arXiv 2104.14294 (table 5; its settings are
the defaults here). Reference: facebookresearch/dino, eval_video_segmentation.py (Apache-2.0).

*Differs*: of patches that are alike to the last bit exactly `nearest` vote, not all of them; void pixels of the first mask are background;
the network's own mean and deviation are used.
"""

from __future__ import annotations

import contextlib
import csv
import io
import json
import sys
from collections import deque
from collections.abc import Callable, Generator, Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from opticus.data.davis import Sequences, palette_of, write_ids
from opticus.data.open import open_data
from opticus.data.records import Source
from opticus.data.splits import canonical
from opticus.metrics.passport import Passport
from opticus.metrics.video import VOID, VideoSegmentation
from opticus.structures import Backbone, CapabilityError, DataError, LabelMap, Picture, Prepare, UsageError
from opticus.structures.files import write_atomic, write_text
from opticus.transforms.prepare import prepare
from opticus.transforms.whole import whole
from opticus.verbs.predict import autocast, place
from opticus.verbs.strips import Shown, strip

if TYPE_CHECKING:
    from PIL.Image import Image

STEP = 64  # px: the longer side is floored to a multiple
STILL = "still"  # the baseline: the first frame's mask for every frame
BUDGET = 1 << 24  # similarities held at once
Pixels = npt.NDArray[np.uint8]
Step = Callable[[Picture], tuple[Tensor, tuple[int, int]]]


class Settings(NamedTuple):
    """How labels are propagated."""

    frames: int = 7
    neighbourhood: int = 12
    nearest: int = 5
    temperature: float = 0.1


class Scored(NamedTuple):
    """One way to segment the videos: its figures (empty where nothing is annotated beyond first frames) and their protocol."""

    features: str
    method: str
    values: dict[str, float]
    metric: VideoSegmentation
    protocol: dict[str, Any]


@dataclass
class Propagation:
    """The figures of a propagation and of the baseline that keeps the first mask, a strip of pictures, and what to say about them."""

    rows: list[Scored] = field(default_factory=list[Scored])
    strip: Image | None = None
    notes: list[str] = field(default_factory=list[str])

    def __getitem__(self, method: str) -> float:
        """J&F of "propagation" or of "still"."""
        return next(row.values["J&F"] for row in self.rows if row.method == method)

    def to_json(self) -> list[dict[str, Any]]:
        """JSON-ready rows with their protocols and figures per object."""
        return [
            {
                "features": r.features,
                "method": r.method,
                "values": r.values,
                "protocol": r.protocol,
                "objects": r.metric.per_object(),
            }
            for r in self.rows
        ]

    def table(self) -> str:
        """A line per row, then the notes."""
        names = ("J&F", "J", "J_recall", "J_decay", "F", "F_recall", "F_decay")
        lines = [f"{'features':<28}{'method':<13}" + "".join(f"{name:>10}" for name in names)]
        for row in self.rows:
            figures = "".join(f"{row.values[name]:>10.4f}" if row.values else f"{'-':>10}" for name in names)
            lines.append(f"{row.features:<28}{row.method:<13}{figures}")
        return "\n".join([*lines, *self.notes])


def propagate(
    model: nn.Module,
    data: str | Path | Source,
    *,
    split: str | None = None,
    size: int | None = None,
    frames: int = 7,
    neighbourhood: int = 12,
    nearest: int = 5,
    temperature: float = 0.1,
    level: int = -1,
    limit: int | None = None,
    baseline: bool = True,
    device: str | None = None,
    precision: str = "fp32",
    out: str | Path | None = None,
    quiet: bool = False,
) -> Propagation:
    """J&F of videos whose first frame's masks are propagated by the frozen features of `model` (any network with `features`).

    A patch takes the labels of the `nearest` most alike patches (cosine, weighted exp(cosine / `temperature`)) among those at most
    `neighbourhood` rows and columns away (0: anywhere) in the first frame and the last `frames` ones. `size` is the shorter side of
    what the network sees (None: as the frames are; the longer side is floored to a multiple of 64), `level` which feature map,
    `split` "test", or "val" where there is none, `limit` how many sequences. Unless `out` is None it gets the masks as palette PNG in DAVIS's
    layout, both of DAVIS's CSV files, a passport per row and strip.png. Raises UsageError, DataError or CapabilityError.
    """
    settings = Settings(frames, neighbourhood, nearest, temperature)
    _check(settings, limit)
    name = cast(Any, model).card.name
    if not isinstance(model, Backbone):
        raise CapabilityError(f"{name} has no features(): labels are propagated between the places of a feature map")
    if not -len(model.strides) <= level < len(model.strides):
        raise UsageError(f"level must be in 0..{len(model.strides) - 1} for {name}, found {level}")
    videos = _videos(data, split)
    ways = ["propagation", STILL] if baseline else ["propagation"]
    metrics = {way: VideoSegmentation(videos.hash, canonical(videos.split)) for way in ways}
    result, shown = Propagation(), dict[str, Shown]()
    chosen = videos.sequences[:limit]
    with _ready(model, device) as where:
        for s, sequence in enumerate(tqdm(chosen, unit="video", file=sys.stderr, disable=quiet, leave=False)):
            records = range(int(videos.starts[s]), int(videos.starts[s + 1]))
            start, truth = _annotations(videos, sequence, records)
            rule = whole_rule(cast(Any, model).prepare, start.shape, size, model.strides[level])
            step = _step(model, rule, level, where, precision)
            ids, lost = follow((_frame(videos, i, start.shape) for i in records), start, step, settings)
            result.notes += [f"{sequence}: object {k} is too small for a place of its own on the feature map" for k in lost]
            if truth is not None:
                for way, said in (("propagation", ids), (STILL, np.broadcast_to(ids[0], ids.shape))):
                    if way in metrics:
                        metrics[way].update(said, truth, sequence)
            shown[sequence] = _some(videos, records[0], ids, truth)
            if out is not None:
                for i, one in zip(records, ids, strict=True):
                    write_ids(one, Path(out) / "predictions" / f"{videos.id_of(i)}.png", shown[sequence].colours)
    if unscored := len(chosen) - len(metrics["propagation"]):
        result.notes.append(f"{unscored} of {len(chosen)} sequences have no annotation beyond the first frame and are not scored")
    side = "frame" if size is None else size
    protocol = {"features": name, "level": level, "size": side, "sequences": len(chosen), **settings._asdict()}
    for way, metric in metrics.items():
        extra = {**metric.protocol, "sequences": len(chosen)} if way == STILL else {**metric.protocol, **protocol}
        result.rows.append(Scored(name if way != STILL else "-", way, metric.compute() if len(metric) else {}, metric, extra))
    result.strip = strip(shown, {row["sequence"]: row["J&F"] for row in _means(metrics["propagation"])}, name)
    if out is not None:
        keep(result, Path(out), videos.split)
    return result


@contextlib.contextmanager
def _ready(model: nn.Module, device: str | None) -> Generator[torch.device]:
    """The model in evaluation mode on its device; every module's mode is restored."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield place(model, device)
    finally:
        for module, training in modes.items():
            module.training = training


def follow(pictures: Iterable[Picture], start: Pixels, step: Step, settings: Settings) -> tuple[Pixels, list[int]]:
    """Object ids (T, H, W) of a video's frames from the first one's (H, W), and the objects that the feature map cannot hold."""
    frames = iter(pictures)
    features, grid = step(next(frames))
    count = int(start.max()) + 1
    ids = torch.from_numpy(start.astype(np.int64))[None, None]
    small = F.interpolate(ids.float(), grid, mode="nearest-exact")[0, 0].long()
    labels = F.one_hot(small.flatten(), count).to(features)
    lost = [k for k in np.unique(start).tolist() if k and not bool((small == k).any())]
    given, memory = (features, labels), deque[tuple[Tensor, Tensor]](maxlen=settings.frames)
    found = [start]
    for picture in frames:
        query, _ = step(picture)
        context = [given, *memory]
        labels = propagated(
            query, torch.stack([one[0] for one in context]), torch.stack([one[1] for one in context]), grid, settings
        )
        memory.append((query, labels))
        found.append(_enlarged(labels, grid, start.shape))
    return np.stack(found), lost


def propagated(query: Tensor, keys: Tensor, labels: Tensor, grid: tuple[int, int], settings: Settings) -> Tensor:
    """Labels (N, C) of the N = rows x columns places of `grid`, voted for by those of T frames: `keys` (T, N, D), `labels` (T, N, C).

    `query` (N, D) and `keys` have unit length. Rows of places are compared in blocks, each with the rows in its reach only.
    """
    rows, columns = grid
    times, reach = len(keys), settings.neighbourhood or max(grid)
    keys, labels = keys.unflatten(1, grid), labels.unflatten(1, grid)
    high = max(1, min(rows, BUDGET // (columns * columns * times * min(rows, 2 * reach + 1))))
    near = (torch.arange(columns, device=query.device)[:, None] - torch.arange(columns, device=query.device)).abs() <= reach
    out: list[Tensor] = []
    for top in range(0, rows, high):
        bottom = min(top + high, rows)
        low, end = max(top - reach, 0), min(bottom + reach, rows)
        within = torch.arange(top, bottom, device=query.device)[:, None] - torch.arange(low, end, device=query.device)
        allowed = ((within.abs() <= reach)[:, None, :, None] & near[None, :, None, :]).flatten(2).flatten(0, 1)  # (places, reached)
        alike = query[top * columns : bottom * columns] @ keys[:, low:end].flatten(0, 2).T
        alike.unflatten(1, (times, -1)).masked_fill_(~allowed[:, None], -torch.inf)
        best, index = alike.topk(min(settings.nearest, alike.shape[1]), 1)
        weights = ((best - best[:, :1]) / settings.temperature).exp()
        votes = weights / weights.sum(1, keepdim=True)
        out.append(F.embedding_bag(index, labels[:, low:end].flatten(0, 2), per_sample_weights=votes, mode="sum"))
    return torch.cat(out)


def whole_rule(rule: Prepare, size: Sequence[int], short: int | None, stride: int) -> Prepare:
    """How a frame of `size` (H, W) enters the network."""
    frame = (size[0], size[1])
    return replace(whole(rule, frame, short or min(frame), stride, STEP), interpolation="bilinear", antialias=False)


def keep(result: Propagation, folder: Path, split: str) -> None:
    """Write propagation.json, DAVIS's two CSV files, strip.png and, in a folder per row, a passport that `compare` reads."""
    write_text(folder / "propagation.json", json.dumps(result.to_json(), indent=1))
    if result.strip is not None:
        picture = result.strip
        write_atomic(folder / "strip.png", lambda part: picture.save(part, "PNG"))
    first = result.rows[0]
    if first.values:
        names = ("J&F", "J", "J_recall", "J_decay", "F", "F_recall", "F_decay")
        heads = ("J&F-Mean", "J-Mean", "J-Recall", "J-Decay", "F-Mean", "F-Recall", "F-Decay")
        write_text(folder / f"global_results-{split}.csv", _csv([heads, [f"{first.values[n]:.3f}" for n in names]]))
        rows = [[f"{r['sequence']}_{r['object']}", f"{r['J']:.3f}", f"{r['F']:.3f}"] for r in first.metric.per_object()]
        write_text(folder / f"per-sequence_results-{split}.csv", _csv([("Sequence", "J-Mean", "F-Mean"), *rows]))
    for row in result.rows:
        if row.values:
            extra = {k: v for k, v in row.protocol.items() if k not in ("features", *row.metric.protocol)}
            Passport.of(row.metric, extra).write(
                folder / f"{row.features.replace('/', '-').replace(':', '-')}-{row.method}".lstrip("-")
            )


# --- data ------------------------------------------------------------------------------------------------------------------


def _check(settings: Settings, limit: int | None) -> None:
    for key, value, low in (
        ("frames", settings.frames, 0), ("neighbourhood", settings.neighbourhood, 0), ("nearest", settings.nearest, 1),
        ("limit", 1 if limit is None else limit, 1),
    ):  # fmt: skip
        if isinstance(value, bool) or value < low:
            raise UsageError(f"{key} must be a whole number of at least {low}, found {value!r}")
    if not settings.temperature > 0:
        raise UsageError(f"temperature must be above 0, found {settings.temperature}")


def _videos(data: Any, split: str | None) -> Sequences:
    opened: Any = data if hasattr(data, "target_of") else open_data(data, split) if split is not None else _default(data)
    if not isinstance(opened, Sequences):
        raise DataError(
            f"propagation needs videos (sequences of frames with masks, such as DAVIS or videos), found {opened.task} data"
        )
    if not opened.sequences:
        raise DataError(f"split {opened.split!r} lists no sequence")
    return opened


def _default(data: Any) -> Source:
    """The test split, else val."""
    error: DataError | None = None
    for split in ("test", "val"):
        try:
            return open_data(data, split)
        except DataError as failed:
            if "there is no split" not in str(failed):
                raise
            error = error or failed
    assert error is not None
    raise error


def _annotations(videos: Sequences, sequence: str, where: range) -> tuple[Pixels, Pixels | None]:
    """The first frame's ids without void, and all frames' (T, H, W), None where only the first one is annotated."""
    found = [videos.target_of(i) for i in where]
    maps = [one.labels.numpy().astype(np.uint8) for one in found if isinstance(one, LabelMap)]
    if not isinstance(found[0], LabelMap):
        raise DataError(
            f"{videos.id_of(where[0])}: the first frame of {sequence} has no annotation, from which masks are propagated"
        )
    start = np.where(maps[0] == VOID, 0, maps[0]).astype(np.uint8)
    if not start.any():
        raise DataError(f"{videos.id_of(where[0])}: the annotation of the first frame shows no object")
    if len(maps) == 1 < len(found):
        return start, None
    for i, one in zip(where, found, strict=True):
        if one is None:
            raise DataError(
                f"{videos.id_of(i)}: the annotation is missing ({len(maps)} of {len(found)} frames of {sequence} have one)"
            )
        if isinstance(one, LabelMap) and tuple(one.labels.shape) != start.shape:
            size = (int(one.labels.shape[0]), int(one.labels.shape[1]))
            raise DataError(f"{videos.id_of(i)}: expected {start.shape[1]}x{start.shape[0]} pixels as in the first frame of {sequence}, "
                            f"found {size[1]}x{size[0]}")  # fmt: skip
    return start, np.stack(maps)


def _frame(videos: Sequences, index: int, size: tuple[int, ...]) -> Picture:
    picture = videos[index].picture
    if picture.size != tuple(size):
        raise DataError(f"{videos.id_of(index)}: expected a frame of {size[1]}x{size[0]} pixels as the first one, "
                        f"found {picture.size[1]}x{picture.size[0]}")  # fmt: skip
    return picture


def _step(model: Any, rule: Prepare, level: int, where: torch.device, precision: str) -> Step:
    """Unit features (N, D) of a frame's places, and their grid."""

    def step(picture: Picture) -> tuple[Tensor, tuple[int, int]]:
        images = prepare([picture], rule)
        with torch.inference_mode(), autocast(where, precision):
            maps = model.features(images.pixels.to(where))[level][0].float()
        return F.normalize(maps.flatten(1).T, dim=1), (int(maps.shape[1]), int(maps.shape[2]))

    return step


def _enlarged(labels: Tensor, grid: tuple[int, int], size: tuple[int, ...]) -> Pixels:
    """Soft labels (N, C) at the feature map's size as ids (H, W): bilinear, each object scaled to [0, 1], the strongest wins."""
    maps = labels.T.unflatten(1, grid)[None]
    stride = -(-size[0] // grid[0]), -(-size[1] // grid[1])
    large = F.interpolate(maps, (grid[0] * stride[0], grid[1] * stride[1]), mode="bilinear", align_corners=False)[0]
    low = large.amin((1, 2), keepdim=True)
    span = large.amax((1, 2), keepdim=True) - low
    scaled = torch.where(span > 0, (large - low) / span.clamp(min=1e-30), large)
    ids = scaled.argmax(0).float()[None, None]
    return F.interpolate(ids, (size[0], size[1]), mode="nearest-exact")[0, 0].to(torch.uint8).cpu().numpy()


def _some(videos: Sequences, first: int, ids: Pixels, truth: Pixels | None) -> Shown:
    """Six frames of a sequence for the strip, and the colours of its first annotation."""
    picks = np.unique(np.linspace(0, len(ids) - 1, 6).round().astype(int))
    pictures = np.stack([videos[first + int(i)].picture.pixels.numpy() for i in picks])
    file = cast(Any, videos).annotation_of(first) if hasattr(videos, "annotation_of") else None
    return Shown(pictures, ids[picks], None if truth is None else truth[picks], palette_of(file))


def _means(metric: VideoSegmentation) -> list[dict[str, Any]]:
    rows = metric.per_object()
    return [
        {"sequence": name, "J&F": float(np.mean([(r["J"] + r["F"]) / 2 for r in rows if r["sequence"] == name]))}
        for name in metric.ids
    ]


def _csv(rows: Sequence[Sequence[str]]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue()


__all__ = ["STILL", "Propagation", "Scored", "Settings", "follow", "propagate", "propagated", "whole_rule"]

"""DINO's multi-crop augmentation in pictures per second and core: opticus against torchvision v2 and, where installed, albumentations.

From a 640 x 480 uint8 picture two global crops of 224 pixels (0.4-1 of the area) and eight local ones of 96 (0.05-0.4), bicubic and
antialiased; flip 0.5; jitter (0.4, 0.4, 0.2, 0.1) with 0.8; grey with 0.2; blur with 1, 0.1 and 0.5, sigma 0.1-2; solarised with 0.2
(second global crop); normalised and stacked. One thread; seconds are the CPU time of that thread. torchvision takes a blur kernel of
13 taps, the reach of a sigma of 2; albumentations resizes without antialiasing and so does less (OpenCV has no such cubic filter).
"""

from __future__ import annotations

import importlib
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parent))

from loader import MEAN, STD, pictures
from opticus.structures import Prepare, Sample
from opticus.transforms.colour import ColourJitter
from opticus.transforms.draw import draw_for
from opticus.transforms.prepare import normalised
from opticus.transforms.views import View, Views, multi_crop

ROUNDS = 7
COUNT = 4  # pictures of a round
LOCALS = 8
JITTER = (0.4, 0.4, 0.2, 0.1)
SIGMA = (0.1, 2.0)
KINDS = (
    (224, (0.4, 1.0), 1.0, 0.0, 1),
    (224, (0.4, 1.0), 0.1, 0.2, 1),
    (96, (0.05, 0.4), 0.5, 0.0, LOCALS),
)  # side, scale, blur, solarise


def ours(faithful: bool) -> Callable[[int], list[Tensor]]:
    """The views of picture i through opticus."""
    samples = [Sample.of(pixels) for pixels in pictures()]
    chain = multi_crop(locals=LOCALS)
    if faithful:
        jitter = ColourJitter(*JITTER, p=0.8, faithful=True)
        change = lambda view: tuple(jitter if isinstance(t, ColourJitter) else t for t in view.transforms)  # noqa: E731
        chain = Views(tuple(View(view.role, change(view), view.count) for view in chain.views))
    rule = Prepare(resize="none", mean=MEAN, std=STD)

    def views(i: int) -> list[Tensor]:
        made = [view.picture.pixels for _, view in chain(samples[i % 8], draw_for(0, 0, i)).views]
        return [normalised(made[:2], rule), normalised(made[2:], rule)]

    return views


def torchvisions() -> Callable[[int], list[Tensor]]:
    """The views of picture i through torchvision v2 on uint8 tensors."""
    importlib.import_module("references.torchvision_shim")  # before torchvision itself
    from torchvision.transforms import InterpolationMode, v2

    def chain(side: int, scale: tuple[float, float], blur: float, solarise: float) -> Any:
        return v2.Compose(
            [
                v2.RandomResizedCrop(side, scale, interpolation=InterpolationMode.BICUBIC, antialias=True),
                v2.RandomHorizontalFlip(),
                v2.RandomApply([v2.ColorJitter(*JITTER)], 0.8),
                v2.RandomGrayscale(0.2),
                *([v2.RandomApply([v2.GaussianBlur(13, SIGMA)], blur)] if blur < 1 else [v2.GaussianBlur(13, SIGMA)]),
                *([v2.RandomSolarize(128, solarise)] if solarise else []),
                v2.ToDtype(torch.float32, scale=True),
                v2.Normalize(MEAN, STD),
            ]
        )

    chains = [(chain(*kind[:4]), kind[4]) for kind in KINDS]
    inputs = [p.permute(2, 0, 1) for p in pictures()]

    def views(i: int) -> list[Tensor]:
        torch.manual_seed(i)
        made = [each(inputs[i % 8]) for each, count in chains for _ in range(count)]
        return [torch.stack(made[:2]), torch.stack(made[2:])]

    return views


def albumentations() -> Callable[[int], list[Tensor]] | None:
    """The views of picture i through albumentations (OpenCV, one thread); None if it is not installed."""
    try:
        A, cv2 = importlib.import_module("albumentations"), importlib.import_module("cv2")
    except ImportError:
        return None
    cv2.setNumThreads(1)

    def chain(side: int, scale: tuple[float, float], blur: float, solarise: float) -> Any:
        return A.Compose(
            [
                A.RandomResizedCrop((side, side), scale=scale, interpolation=cv2.INTER_CUBIC),
                A.HorizontalFlip(p=0.5),
                A.ColorJitter((0.6, 1.4), (0.6, 1.4), (0.8, 1.2), (-0.1, 0.1), p=0.8),
                A.ToGray(p=0.2),
                A.GaussianBlur(blur_limit=(13, 13), sigma_limit=SIGMA, p=blur),
                A.Solarize((0.5, 0.5), p=solarise),
                A.Normalize(MEAN, STD),
            ]
        )

    chains = [(chain(*kind[:4]), kind[4]) for kind in KINDS]
    inputs = [p.numpy() for p in pictures()]

    def views(i: int) -> list[Tensor]:
        made = [
            torch.from_numpy(each(image=inputs[i % 8])["image"]).permute(2, 0, 1) for each, count in chains for _ in range(count)
        ]
        return [torch.stack(made[:2]), torch.stack(made[2:])]

    return views


def run() -> list[dict[str, Any]]:
    """One row per library: pictures per second and core (median of interleaved rounds) and the ratio to torchvision v2."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    found: dict[str, Callable[[int], list[Tensor]] | None] = {
        "opticus": ours(faithful=False),
        "opticus, faithful jitter": ours(faithful=True),
        "torchvision v2, tensors": torchvisions(),
        "albumentations (no antialiasing)": albumentations(),
    }
    ways = {name: way for name, way in found.items() if way is not None}
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for way in ways.values():
        way(0)
    for i in range(ROUNDS):
        for name, way in ways.items():
            began = time.thread_time()
            for j in range(COUNT):
                out = way(i * COUNT + j + 1)
            seconds[name].append((time.thread_time() - began) / COUNT)
            if [tuple(part.shape) for part in out] != [(2, 3, 224, 224), (LOCALS, 3, 96, 96)]:
                raise SystemExit(f"{name} returned {[tuple(part.shape) for part in out]}")
    torch.set_num_threads(threads)
    rate = {name: 1 / statistics.median(values) for name, values in seconds.items()}
    peer = rate["torchvision v2, tensors"]
    rows: list[dict[str, Any]] = [
        {
            "what": "DINO multi-crop 2 x 224 + 8 x 96, 640x480",
            "library": name,
            "unit": "images/s per core",
            "value": round(value, 1),
            "ratio": round(value / peer, 2),
        }
        for name, value in rate.items()
    ]
    return rows


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent.parent / "tools"))
    print(json.dumps(run(), indent=1))

"""Training augmentation in images per second and core: opticus against torchvision v2 on tensors and on Pillow images.

ImageNet training on 640 x 480 uint8 input: random resized crop to 224 (bilinear, antialiased), flip, jitter of brightness, contrast
and saturation by 0.4 and of hue by 0.1, normalise, stack to a batch. One thread; seconds are the CPU time of that thread, so that
neighbours on the machine count for little. Every library gets uint8 pixels in the memory order in which a decoder leaves them.
"""

from __future__ import annotations

import importlib
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from opticus.structures import Prepare, Sample
from opticus.transforms.chain import apply
from opticus.transforms.colour import ColourJitter
from opticus.transforms.draw import draw_for
from opticus.transforms.geometry import Flip, RandomResizedCrop
from opticus.transforms.prepare import normalised

sys.path.insert(0, str(Path(__file__).parent.parent / "tools"))

BATCH = 16
ROUNDS = 7
BATCHES = 6  # of one library in a row: a loader's worker does nothing else between two batches
JITTER = (0.4, 0.4, 0.4, 0.1)
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def pictures() -> list[Tensor]:
    """Eight smooth pictures with texture, (480, 640, 3) uint8."""
    rng = np.random.default_rng(0)
    out = []
    for _ in range(8):
        coarse = torch.from_numpy(rng.integers(0, 256, (1, 3, 30, 40), dtype=np.uint8)).float()
        smooth = torch.nn.functional.interpolate(coarse, size=(480, 640), mode="bilinear")[0]
        noisy = smooth + torch.from_numpy(rng.normal(0, 6, (3, 480, 640)).astype(np.float32))
        out.append(noisy.clamp(0, 255).to(torch.uint8).permute(1, 2, 0).contiguous())
    return out


def ours(faithful: bool) -> Callable[[int], Tensor]:
    """Batch number i through opticus."""
    samples = [Sample.of(pixels) for pixels in pictures()]
    chain = (RandomResizedCrop((224, 224)), Flip(0.5), ColourJitter(*JITTER, faithful=faithful))
    rule = Prepare(resize="none", mean=MEAN, std=STD)

    def batch(i: int) -> Tensor:
        done = [apply(chain, samples[j % 8], draw_for(0, i, j)).picture.pixels for j in range(BATCH)]
        return normalised(done, rule)

    return batch


def torchvisions(pillow: bool) -> Callable[[int], Tensor]:
    """Batch number i through torchvision v2, on uint8 tensors (channels last in memory) or on Pillow images."""
    importlib.import_module("references.torchvision_shim")  # before torchvision itself
    from PIL import Image
    from torchvision.transforms import v2

    chain = v2.Compose(
        [
            v2.RandomResizedCrop(224, antialias=True),
            v2.RandomHorizontalFlip(),
            v2.ColorJitter(*JITTER),
            *([v2.PILToTensor()] if pillow else []),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(MEAN, STD),
        ]
    )
    inputs = [Image.fromarray(p.numpy()) if pillow else p.permute(2, 0, 1) for p in pictures()]

    def batch(i: int) -> Tensor:
        torch.manual_seed(i)
        return torch.stack([chain(inputs[j % 8]) for j in range(BATCH)])

    return batch


def run() -> list[dict]:
    """One row per library: images per second and core (median of 7 interleaved rounds) and the ratio to torchvision v2 on tensors."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    ways = {
        "opticus": ours(faithful=False),
        "opticus, faithful jitter": ours(faithful=True),
        "torchvision v2, tensors": torchvisions(pillow=False),
        "torchvision v2, Pillow": torchvisions(pillow=True),
    }
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for way in ways.values():
        way(0)
    for i in range(ROUNDS):
        for name, way in ways.items():
            began = time.thread_time()
            for j in range(BATCHES):
                out = way(i * BATCHES + j + 1)
            seconds[name].append((time.thread_time() - began) / BATCHES)
            if out.shape != (BATCH, 3, 224, 224) or out.dtype != torch.float32:
                raise SystemExit(f"{name} returned {tuple(out.shape)} of {out.dtype}")
    torch.set_num_threads(threads)
    rate = {name: BATCH / statistics.median(values) for name, values in seconds.items()}
    peer = rate["torchvision v2, tensors"]
    return [
        {
            "what": "ImageNet training augmentation, 640x480",
            "library": name,
            "unit": "images/s per core",
            "value": round(value, 1),
            "ratio": round(value / peer, 2),
        }
        for name, value in rate.items()
    ]


if __name__ == "__main__":
    print(json.dumps(run(), indent=1))

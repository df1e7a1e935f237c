"""Ops side by side with what users would otherwise run beside CPU torch: torchvision's Python fallbacks and the usual loops.

`run()` gives rows (name, ours_ms, peer_ms, peer, ratio = peer / ours): medians of interleaved runs on equal inputs and threads, after
checking that both sides agree. torchvision comes in through tools/references/torchvision_shim.py.
"""

from __future__ import annotations

import importlib
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from opticus.ops.iou import iou
from opticus.ops.nms import nms, nms_per_class
from opticus.ops.roi import roi_align, roi_pool

SLOW = 2.0  # seconds: a peer that takes longer is run three times instead of seven


def run(rounds: int = 7) -> list[dict[str, Any]]:
    """All rows; about three minutes on one core, nearly all of it the peers'."""
    sys.path.insert(0, str(Path(__file__).parent.parent / "tools" / "references"))
    importlib.import_module("torchvision_shim")
    peer = importlib.import_module("torchvision").ops
    rows: list[dict[str, Any]] = []
    with torch.inference_mode():
        for count in (1_000, 5_000, 20_000):
            for kind, make in (("clustered", clustered), ("spread", spread)):
                boxes, scores = make(count), torch.rand(count, generator=torch.Generator().manual_seed(1))
                rows.append(
                    race(
                        f"nms {count} {kind}",
                        lambda b=boxes, s=scores: nms(b, s, 0.5),
                        lambda b=boxes, s=scores: greedy(b, s, 0.5),
                        "pure-torch greedy loop",
                        rounds,
                    )
                )
            boxes, labels = clustered(count), torch.randint(80, (count,), generator=torch.Generator().manual_seed(2))
            scores = torch.randperm(count, generator=torch.Generator().manual_seed(3)) / count
            rows.append(
                race(
                    f"nms per class {count}, 80 classes",
                    lambda b=boxes, s=scores, k=labels: nms_per_class(b, s, k, 0.5),
                    lambda b=boxes, s=scores, k=labels: peer.batched_nms(b, s, k, 0.5),
                    "torchvision batched_nms over a greedy loop",
                    rounds,
                )
            )
        some = clustered(2_000)
        rows.append(
            race("iou 2000 x 2000", lambda: iou(some, some), lambda: peer.box_iou(some, some), "torchvision box_iou", rounds)
        )
        rows += regions(peer, rounds)
    return rows


def regions(peer: Any, rounds: int) -> list[dict[str, Any]]:
    """512 regions on a 256 x 200 x 200 map (stride 4), 7 x 7 bins; each side gets the memory layout it prefers."""
    torch.manual_seed(0)
    features, low = torch.rand(1, 256, 200, 200), torch.rand(512, 2) * 600
    last, first = features.contiguous(memory_format=torch.channels_last), torch.zeros(512, dtype=torch.int64)
    boxes = torch.cat([low, low + torch.rand(512, 2) * 180 + 20], 1)
    numbered = torch.cat([first[:, None].float(), boxes], 1)
    align = "torchvision roi_align, its Python fallback"
    return [
        race(
            "roi_align 512, 256x200x200, channels last",
            lambda: roi_align(last, boxes, first, (7, 7), scale=0.25),
            lambda: peer.roi_align(features, numbered, (7, 7), 0.25, 2, True),
            align,
            rounds,
        ),
        race(
            "roi_align 512, 256x200x200, channels first",
            lambda: roi_align(features, boxes, first, (7, 7), scale=0.25),
            lambda: peer.roi_align(features, numbered, (7, 7), 0.25, 2, True),
            align,
            rounds,
        ),
        race(
            "roi_pool 512, 256x200x200, channels last",
            lambda: roi_pool(last, boxes, first, (7, 7), scale=0.25),
            lambda: pool_loop(features, boxes, (7, 7), 0.25),
            "adaptive_max_pool2d per region",
            rounds,
        ),
    ]


def race(name: str, ours: Callable[[], Tensor], peer: Callable[[], Tensor], title: str, rounds: int) -> dict[str, Any]:
    """One row; the two sides must give equal results and take turns."""
    torch.testing.assert_close(ours(), peer(), rtol=1e-5, atol=1e-5, msg=f"{name}: the two sides disagree")
    times: tuple[list[float], list[float]] = ([], [])
    while len(times[0]) < (rounds if not times[1] or times[1][0] < SLOW else min(rounds, 3)):
        for side, function in enumerate((ours, peer)):
            begin = time.perf_counter()
            function()
            times[side].append(time.perf_counter() - begin)
    mine, other = (1e3 * statistics.median(side) for side in times)
    return {"name": name, "ours_ms": round(mine, 3), "peer_ms": round(other, 3), "peer": title, "ratio": round(other / mine, 2)}


def greedy(boxes: Tensor, scores: Tensor, threshold: float) -> Tensor:
    """The loop that most pure-PyTorch detectors carry: take the best box, drop what overlaps it, repeat."""
    x1, y1, x2, y2 = boxes.unbind(1)
    areas = (x2 - x1) * (y2 - y1)
    order = scores.argsort(descending=True, stable=True)
    keep: list[int] = []
    while order.numel():
        best = int(order[0])
        keep.append(best)
        rest = order[1:]
        width = (x2[rest].clamp(max=float(x2[best])) - x1[rest].clamp(min=float(x1[best]))).clamp(min=0)
        height = (y2[rest].clamp(max=float(y2[best])) - y1[rest].clamp(min=float(y1[best]))).clamp(min=0)
        inter = width * height
        order = rest[inter / (areas[best] + areas[rest] - inter) <= threshold]
    return torch.tensor(keep)


def pool_loop(features: Tensor, boxes: Tensor, size: tuple[int, int], scale: float) -> Tensor:
    """The usual substitute for RoI pooling; equal to it for regions inside the map."""
    corners = (boxes * scale).round().int().tolist()
    return torch.cat([F.adaptive_max_pool2d(features[:, :, y1 : y2 + 1, x1 : x2 + 1], size) for x1, y1, x2, y2 in corners])


def clustered(count: int) -> Tensor:
    """About 20 jittered boxes around each object, as a detector's raw output."""
    draw = torch.Generator().manual_seed(0)
    centre = torch.randint(count // 20, (count,), generator=draw)
    origin, side = torch.rand(count // 20, 2, generator=draw) * 1000, torch.rand(count // 20, 2, generator=draw) * 100 + 20
    low = origin[centre] + torch.randn(count, 2, generator=draw) * 5
    return torch.cat([low, low + side[centre] * (1 + 0.1 * torch.randn(count, 2, generator=draw)).clamp(min=0.1)], 1)


def spread(count: int) -> Tensor:
    """Boxes of 5-55 px anywhere in 1000 x 1000, few of which suppress another: the worst case."""
    draw = torch.Generator().manual_seed(0)
    low = torch.rand(count, 2, generator=draw) * 1000
    return torch.cat([low, low + torch.rand(count, 2, generator=draw) * 50 + 5], 1)

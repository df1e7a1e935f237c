"""Detectors against torchvision: inference with boxes, post-processing alone, one training step; COCO evaluation against pycocotools.

The peer's compiled operators do not load beside CPU torch: its suppression is the plain greedy loop that the shim gives it and its
RoIAlign its own Python fallback, so rows that contain them say so. Networks hold the same formula-made weights and see the same
normalised pixels; torchvision's own resizing is left out on both sides.
"""

from __future__ import annotations

import contextlib
import copy
import gc
import importlib.util
import io
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from models import ROUNDS, SMALL_ROUNDS, THREADS, Row, allow_torchvision, images_of, medians, row, same, training
from opticus import zoo
from opticus.matching.cells import boxes_of
from opticus.metrics.detect import CocoDetection
from opticus.ops.iou import iou
from opticus.parity.fill import fill, fill_module
from opticus.structures import Batch, Instances, Progress
from opticus.verbs.models import load
from opticus.weights.load import load_into

OBJECTS = 30  # of a made picture for post-processing
FALLBACK = "torchvision, greedy loop for its suppression"


def pair(ours: str, build: Callable[[Any], nn.Module]) -> tuple[Any, Any]:
    """The network of opticus and torchvision's, with the same formula-filled weights."""
    allow_torchvision()
    import torchvision

    peer, mine = build(torchvision.models.detection), zoo.create(ours)
    fill_module(peer)
    paper = zoo.paper(zoo.split(ours)[0])
    load_into(mine, peer.state_dict(), paper.FORMATS["torchvision"])
    peer.transform = Given()
    return mine.eval(), peer.eval()


class Given(nn.Module):
    """In place of the peer's transform: pixels come normalised and padded, boxes stay as they are."""

    def forward(self, images: Tensor, targets: Any = None) -> Any:
        from torchvision.models.detection.image_list import ImageList

        return ImageList(images, [(int(images.shape[-2]), int(images.shape[-1]))] * len(images)), targets

    def postprocess(self, result: Any, *_: Any) -> Any:
        return result


class Pixels(nn.Module):
    """torchvision's detectors ask their input for a list's pictures; here it is one tensor."""

    def __init__(self, peer: Any) -> None:
        super().__init__()
        self.peer = peer

    def forward(self, pixels: Tensor, targets: Any = None) -> Any:
        return self.peer(pixels, targets)


def whole(
    title: str, mine: Any, peer: Any, inputs: list[Tensor], heads: Callable[[Any, Tensor], list[Tensor]], rounds: int
) -> Iterator[Row]:
    """From normalised pixels to boxes, both sides."""
    wrapped = Pixels(peer)
    for pixels in inputs:
        images, count = images_of(pixels), rounds if len(pixels) == 1 else min(rounds, SMALL_ROUNDS)
        with torch.inference_mode():
            out = mine(pixels)
            same(title, [out[0], out[1]], heads(peer, pixels))
            ways = {"peer": partial(wrapped, pixels), "ours": lambda p=pixels, i=images: mine.results(mine(p), i)}
            found = medians(ways, count)
        what = f"{title}, batch {len(pixels)}, {pixels.shape[-1]}x{pixels.shape[-2]}, pixels to boxes"
        yield row(what, found["ours"], found["peer"], FALLBACK)


def step(title: str, ours: str, mine: Any, peer: Any, shift: int, rounds: int) -> Row:
    """One optimiser step at batch 2; `shift` is added to our labels to make torchvision's."""
    generator = torch.Generator().manual_seed(0)
    side = 300 if ours.startswith("ssd") else 512
    pixels = torch.randn(2, 3, side, side, generator=generator)
    centres, labels = torch.rand(2, 6, 2, generator=generator) * 0.6 + 0.2, torch.arange(6) + 1
    corners = torch.cat([centres - 0.15, centres + 0.15], -1) * side
    objective = zoo.paper(zoo.split(ours)[0]).objective(mine)
    batch = Batch(images_of(pixels), tuple(Instances(boxes, labels, (side, side)) for boxes in corners), ("a", "b"))
    targets = [{"labels": labels + shift, "boxes": boxes} for boxes in corners]
    wrapped = Pixels(peer)
    steps = {
        "peer": (wrapped, lambda: torch.stack(list(wrapped(pixels, targets).values())).sum()),
        "ours": (mine, lambda: torch.stack(list(objective(batch, Progress(0, 0, 1, 1)).values())).sum()),
    }
    return training(f"{title}, batch 2, {side}x{side}", steps, "torchvision", 1e-6, min(rounds, SMALL_ROUNDS))


def dense_answers(anchors: Tensor, classes: int, size: tuple[int, int], *, background: bool = False) -> Tensor:
    """Logits (N, K) as a trained detector gives them: some tens of anchors answer for each of OBJECTS boxes, the rest is silent.

    With `background` the first column stands at 0, against which a softmax weighs the others.
    """
    generator = torch.Generator().manual_seed(0)
    overlap = iou(made_objects(size), anchors)
    logits = torch.randn(len(anchors), classes, generator=generator) * 0.5 - 7
    for kind, share in zip(torch.randint(1, classes, (OBJECTS,), generator=generator).tolist(), overlap):
        logits[:, kind] += 9 * share
    if background:
        logits[:, 0] = 0
    return logits


def made_objects(size: tuple[int, int]) -> Tensor:
    """OBJECTS boxes (xyxy) of 20 to 170 pixels a side in a picture of `size` (H, W)."""
    generator = torch.Generator().manual_seed(1)
    low = torch.rand(OBJECTS, 2, generator=generator) * torch.tensor([size[1], size[0]]) * 0.8
    return torch.cat([low, low + 20 + torch.rand(OBJECTS, 2, generator=generator) * 150], 1)


def retinanet(rounds: int) -> Iterator[Row]:
    mine, peer = pair("retinanet/r50-v2", lambda d: d.retinanet_resnet50_fpn_v2(weights=None, weights_backbone=None))
    generator = torch.Generator().manual_seed(0)
    inputs = [torch.randn(1, 3, 800, 1056, generator=generator), torch.randn(8, 3, 512, 512, generator=generator)]

    def heads(peer: Any, pixels: Tensor) -> list[Tensor]:
        out = peer.head(list(peer.backbone(pixels).values()))
        return [out["cls_logits"], out["bbox_regression"]]

    yield from whole("RetinaNet-R50 v2", mine, peer, inputs, heads, rounds)
    with torch.inference_mode():
        pixels, images = inputs[0], images_of(inputs[0])
        levels = mine.anchors((800, 1056), pixels)
        out = mine(pixels)._replace(logits=dense_answers(torch.cat(levels), 91, (800, 1056))[None])
        lengths = [len(level) for level in levels]
        split = {"cls_logits": list(out.logits.split(lengths, 1)), "bbox_regression": list(out.deltas.split(lengths, 1))}
        ways = {
            "ours": lambda: mine.results(out, images),
            "peer": lambda: peer.postprocess_detections(split, [levels], [(800, 1056)]),
            "network": lambda: mine(pixels),
        }
        yield processing("RetinaNet-R50 v2", ways, len(mine.results(out, images)[0]), len(ways["peer"]()[0]["boxes"]), rounds)
    yield step("RetinaNet-R50 v2", "retinanet/r50-v2", mine, peer, 0, rounds)


def processing(title: str, ways: dict[str, Callable[[], Any]], mine: int, peers: int, rounds: int) -> Row:
    """Post-processing alone, and its share of the network's time on the same picture."""
    if mine != peers or not mine:
        raise SystemExit(f"{title}: {mine} boxes after our post-processing, {peers} after the peer's")
    found = medians(ways, rounds)
    share = 100 * found["ours"] / found["network"]
    return row(
        f"{title}, post-processing alone ({mine} boxes; {share:.1f} % of the network)", found["ours"], found["peer"], FALLBACK
    )


def faster_rcnn(rounds: int) -> Iterator[Row]:
    mine, peer = pair("faster_rcnn/r50", lambda d: d.fasterrcnn_resnet50_fpn(weights=None, weights_backbone=None))
    generator = torch.Generator().manual_seed(0)
    inputs = [torch.randn(1, 3, 800, 1056, generator=generator), torch.randn(8, 3, 512, 512, generator=generator)]

    def heads(peer: Any, pixels: Tensor) -> list[Tensor]:
        objectness, deltas = peer.rpn.head(list(peer.backbone(pixels).values()))
        flat = [x.permute(0, 2, 3, 1).flatten(1) for x in objectness]
        return [torch.cat(flat, 1), torch.cat([x.permute(0, 2, 3, 1).reshape(len(x), -1, 4) for x in deltas], 1)]

    yield from whole("Faster R-CNN R50-FPN", mine, peer, inputs, heads, rounds)
    with torch.inference_mode():
        pixels, images = inputs[0], images_of(inputs[0])
        out = mine(pixels)
        objects = made_objects((800, 1056)).repeat(-(-len(out.proposals) // OBJECTS), 1)[: len(out.proposals)]
        proposals = objects + torch.randn(objects.shape, generator=generator) * 3  # as a trained proposal network finds them
        logits = dense_answers(proposals, 91, (800, 1056), background=True)
        out = out._replace(proposals=proposals, logits=logits)
        ways = {
            "ours": lambda: mine.results(out, images),
            "peer": lambda: peer.roi_heads.postprocess_detections(logits, out.deltas.flatten(1), [out.proposals], [(800, 1056)]),
            "network": lambda: mine(pixels),
        }
        yield processing("Faster R-CNN R50-FPN", ways, len(mine.results(out, images)[0]), len(ways["peer"]()[0][0]), rounds)
    yield step("Faster R-CNN R50-FPN", "faster_rcnn/r50", mine, peer, 0, rounds)


def ssd(rounds: int) -> Iterator[Row]:
    mine, peer = pair("ssd/300", lambda d: d.ssd300_vgg16(weights=None, weights_backbone=None))
    generator = torch.Generator().manual_seed(0)
    inputs = [torch.randn(b, 3, 300, 300, generator=generator) for b in (1, 8)]

    def heads(peer: Any, pixels: Tensor) -> list[Tensor]:
        out = peer.head(list(peer.backbone(pixels).values()))
        return [out["cls_logits"], out["bbox_regression"]]

    yield from whole("SSD300", mine, peer, inputs, heads, rounds)
    with torch.inference_mode():
        pixels, images = inputs[0], images_of(inputs[0])
        boxes = mine.default_boxes((300, 300), pixels)
        out = mine(pixels)._replace(logits=dense_answers(boxes, 91, (300, 300), background=True)[None])
        heads_out = {"cls_logits": out.logits, "bbox_regression": out.deltas}
        ways = {
            "ours": lambda: mine.results(out, images),
            "peer": lambda: peer.postprocess_detections(heads_out, [boxes], [(300, 300)]),
            "network": lambda: mine(pixels),
        }
        yield processing("SSD300", ways, len(mine.results(out, images)[0]), len(ways["peer"]()[0]["boxes"]), rounds)
    yield step("SSD300", "ssd/300", mine, peer, 0, rounds)


def yolov3(rounds: int) -> Iterator[Row]:
    """Against the package pytorchyolo (GPL-3.0; it is only run, and only where it is installed) from darknet's cfg.

    Its augmentation library does not load beside NumPy 2 and is not needed here, so a dummy stands in for it.
    """
    from unittest.mock import MagicMock

    cfg = Path(os.environ.get("OPTICUS_REFERENCES", ""), "darknet", "cfg", "yolov3.cfg")
    if importlib.util.find_spec("pytorchyolo") is None or not cfg.is_file():
        print(
            "  YOLOv3: left out, it needs the package pytorchyolo and OPTICUS_REFERENCES=<a folder with a clone of pjreddie/darknet>",
            file=sys.stderr,
        )
        return
    allow_torchvision()
    for name in ("imgaug", "imgaug.augmenters", "imgaug.augmentables", "imgaug.augmentables.bbs"):
        sys.modules.setdefault(name, MagicMock())
    from pytorchyolo.models import Darknet
    from pytorchyolo.utils.utils import non_max_suppression

    peer = Darknet(str(cfg)).eval()
    own = {key: fill(key, tuple(v.shape), v.dtype) for key, v in peer.state_dict().items() if "anchor" not in key and v.ndim}
    peer.load_state_dict(own, strict=False)
    peer.header_info[1] = 2  # darknet's version 0.2, whose counter of pictures has 64 bits
    with tempfile.TemporaryDirectory() as folder:
        peer.save_darknet_weights(f"{folder}/yolov3.weights")
        mine: Any = load("yolov3/416", f"{folder}/yolov3.weights", quiet=True).eval()
    generator = torch.Generator().manual_seed(0)
    for batch in (1, 8):
        pixels = torch.rand(batch, 3, 416, 416, generator=generator)
        images = images_of(pixels)
        with torch.inference_mode():
            same("YOLOv3", [mine(pixels).objects.sigmoid().sort().values], [peer(pixels)[..., 4].sort().values])
            found = medians({"peer": partial(peer, pixels), "ours": partial(mine, pixels)}, rounds if batch == 1 else SMALL_ROUNDS)
            yield row(f"YOLOv3, batch {batch}, 416x416", found["ours"], found["peer"], "pytorchyolo")
            if batch == 1:
                out = mine(pixels)
                boxes = boxes_of(out.boxes, mine.cells((416, 416), out.boxes))
                logits = dense_answers(boxes[0].clamp(0, 416), 80, (416, 416))
                out = out._replace(objects=logits.amax(1)[None], logits=logits[None] + 2)
                probs = torch.cat([out.objects[..., None], out.logits], -1).sigmoid()
                raw = torch.cat([(boxes[..., :2] + boxes[..., 2:]) / 2, boxes[..., 2:] - boxes[..., :2], probs], -1)
                ways = {
                    "ours": lambda out=out, images=images: mine.results(out, images),
                    "peer": lambda raw=raw: non_max_suppression(raw, 0.005, 0.45),
                    "network": partial(mine, pixels),
                }
                found = medians(ways, rounds)
                share = 100 * found["ours"] / found["network"]
                title = f"YOLOv3, post-processing alone ({share:.1f} % of the network)"
                yield row(title, found["ours"], found["peer"], "pytorchyolo, greedy loop for its suppression")


# --- evaluation --------------------------------------------------------------------------------------------------------


def evaluation(pictures: int = 5000, detections: int = 100) -> Row:
    """COCO's twelve numbers of `pictures` pictures with 7 objects and `detections` boxes each; once each, and they must be equal."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    draw = np.random.default_rng(0)
    names = tuple(f"class {i}" for i in range(80))
    metric = CocoDetection(names)
    truth: dict[str, Any] = {"images": [], "annotations": [], "categories": [{"id": i, "name": n} for i, n in enumerate(names)]}
    found: list[dict[str, Any]] = []
    pairs: list[tuple[Instances, Instances, str]] = []
    for image in range(pictures):
        low = draw.uniform(0, 400, (7, 2))
        boxes = np.concatenate([low, low + draw.uniform(8, 200, (7, 2))], 1).astype(np.float32)
        kinds, chosen = draw.integers(0, 80, 7), draw.integers(0, 7, detections)
        guesses = (boxes[chosen] + draw.normal(0, 6, (detections, 4))).astype(np.float32)
        guesses[:, 2:] = np.maximum(guesses[:, 2:], guesses[:, :2] + 1)
        labels = np.where(draw.random(detections) < 0.7, kinds[chosen], draw.integers(0, 80, detections))
        scores = draw.random(detections).astype(np.float32)
        truth["images"].append({"id": image, "width": 640, "height": 640})
        for number in range(7):
            x0, y0, x1, y1 = (float(v) for v in boxes[number])
            truth["annotations"].append({"id": len(truth["annotations"]) + 1, "image_id": image, "category_id": int(kinds[number]),
                                         "bbox": [x0, y0, x1 - x0, y1 - y0], "area": (x1 - x0) * (y1 - y0), "iscrowd": 0})  # fmt: skip
        found += [{"image_id": image, "category_id": int(k), "bbox": [float(b[0]), float(b[1]), float(b[2]) - float(b[0]), float(b[3]) - float(b[1])],
                   "score": float(s)} for b, k, s in zip(guesses, labels, scores)]  # fmt: skip
        target = Instances(torch.from_numpy(boxes), torch.from_numpy(kinds), (640, 640))
        pairs.append(
            (
                Instances(torch.from_numpy(guesses), torch.from_numpy(labels), (640, 640), torch.from_numpy(scores)),
                target,
                str(image),
            )
        )
    began = time.perf_counter()
    for result, target, id in pairs:
        metric.update(result, target, id)
    mine = metric.compute()
    ours = time.perf_counter() - began
    with contextlib.redirect_stdout(io.StringIO()):
        began = time.perf_counter()
        coco = COCO()
        coco.dataset = copy.deepcopy(truth)
        coco.createIndex()
        scorer = COCOeval(coco, coco.loadRes(found), "bbox")
        scorer.evaluate(), scorer.accumulate(), scorer.summarize()
        peer = time.perf_counter() - began
    for key, value in zip(("AP", "AP50", "AP75", "APs", "APm", "APl"), scorer.stats[:6]):
        if abs(mine[key] - value) > 1e-9:
            raise SystemExit(f"COCO evaluation: {key} is {mine[key]} here and {value} in pycocotools")
    return row(
        f"COCO evaluation, {pictures:,} pictures x {detections} boxes, equal numbers", 1000 * ours, 1000 * peer, "pycocotools"
    )


def run(rounds: int = ROUNDS, show: Callable[[Row], Any] = lambda row: None) -> list[Row]:
    """Every row; `show` sees each as soon as it is measured."""
    threads = torch.get_num_threads()
    torch.set_num_threads(THREADS)
    rows: list[Row] = []
    try:
        for case in (faster_rcnn, retinanet, ssd, yolov3):
            for found in case(rounds):
                rows.append(found)
                show(found)
            gc.collect()
        rows.append(evaluation())
        show(rows[-1])
    finally:
        torch.set_num_threads(threads)
    return rows

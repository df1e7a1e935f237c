"""Fast R-CNN out of torchvision's parts (BSD-3-Clause): VGG-16, box predictor and RoI heads, put together as in figure 1.

RoI pooling is a compiled operator of torchvision, which does not load beside CPU torch: its rule is written out below as a loop.
"""

import math

import torchvision_shim  # noqa: F401  (before anything that imports torchvision)

# isort: split
import torch
import torchvision
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor
from torchvision.models.detection.roi_heads import RoIHeads
from torchvision.models.vgg import VGG, make_layers

from opticus.models.detection.fast_rcnn import PREPARE
from opticus.parity.case import network_input
from opticus.parity.fill import fill_module

PAPER = "fast_rcnn"
WHY = "boxes and scores of results are float32"
NARROW = [4, 4, "M", 8, "M", 16, "M", 32, 32, "M", 32]
SIXTEEN = [64, 64, "M", 128, 128, "M", 256, 256, 256, "M", 512, 512, 512, "M", 512, 512, 512]


def reference():
    return {
        "repository": "https://github.com/pytorch/vision",
        "version": f"torchvision {torchvision.__version__.split('+')[0]}",
        "license": "BSD-3-Clause",
        "kind": "package",
    }


def roi_pool(maps, regions, bins, scale):
    """Regions in whole cells (halves away from zero), both ends included; each of bins x bins parts its maximum, an empty one 0."""
    found = []
    for picture, boxes in zip(maps, regions):
        height, width = picture.shape[1:]
        for box in boxes.tolist():
            left, top, right, bottom = (math.floor(side * scale + 0.5) for side in box)
            high, wide = max(bottom - top + 1, 1) / bins, max(right - left + 1, 1) / bins
            pooled = picture.new_zeros(len(picture), bins, bins)
            for i in range(bins):
                for j in range(bins):
                    y = [min(max(v + top, 0), height) for v in (math.floor(i * high), math.ceil((i + 1) * high))]
                    x = [min(max(v + left, 0), width) for v in (math.floor(j * wide), math.ceil((j + 1) * wide))]
                    if y[1] > y[0] and x[1] > x[0]:
                        pooled[:, i, j] = picture[:, y[0] : y[1], x[0] : x[1]].amax((1, 2))
            found.append(pooled)
    return torch.stack(found)


class Composed(torch.nn.Module):
    """The VGG of torchvision without its last pooling and layer, and the predictor of its Faster R-CNN."""

    def __init__(self, layers, width, hidden, classes):
        super().__init__()
        body = VGG(make_layers(layers, batch_norm=False), num_classes=1)
        self.features = body.features
        for layer in self.features:
            if isinstance(layer, torch.nn.MaxPool2d):  # Caffe's pooling keeps the last odd row and column
                layer.ceil_mode = True
        self.classifier = torch.nn.Sequential(torch.nn.Linear(width * 49, hidden), torch.nn.ReLU(), torch.nn.Dropout(),
                                              torch.nn.Linear(hidden, hidden), torch.nn.ReLU(), torch.nn.Dropout())  # fmt: skip
        predictor = FastRCNNPredictor(hidden, classes + 1)
        self.cls_score, self.bbox_pred = predictor.cls_score, predictor.bbox_pred
        self.predictor = [predictor]
        self.classes = classes

    @torch.no_grad()
    def run(self, pixels, sizes, regions):
        maps = self.features(pixels)
        pooled = roi_pool(maps, regions, 7, 1 / 16)
        logits, deltas = self.predictor[0](self.classifier(pooled.flatten(1)))
        heads = RoIHeads(None, None, None, 0.5, 0.5, 64, 0.25, (10.0, 10.0, 5.0, 5.0), 0.05, 0.3, 100)
        boxes, scores, labels = heads.postprocess_detections(logits, deltas, list(regions), sizes)
        found = {"out.proposals": torch.cat(list(regions)), "out.logits": logits, "out.deltas": deltas.unflatten(1, (-1, 4)),
                 "out.maps": maps}  # fmt: skip
        for i in range(len(sizes)):
            found |= {f"results.{i}.boxes": boxes[i], f"results.{i}.scores": scores[i], f"results.{i}.labels": labels[i] - 1}
        return found


def regions_of(pictures, count):
    """Boxes inside the pictures, on fractions of pixels, some of them too small to cover a cell of the map."""
    found = []
    for height, width, seed in pictures:
        draw = torch.Generator().manual_seed(seed)
        ends = torch.rand(count, 2, 2, generator=draw, dtype=torch.float64).sort(1).values
        boxes = (ends * torch.tensor([width, height])).round(decimals=1).flatten(1)
        boxes[:, 2:] = torch.maximum(boxes[:, 2:], boxes[:, :2] + 0.5)
        found.append(boxes)
    return tuple(found)


def case_of(name, pictures, count):
    model = Composed(NARROW, 32, 20, 5).double().eval()
    state = fill_module(model)
    pixels, _ = network_input(pictures, PREPARE)
    regions = regions_of(pictures, count)
    outputs = model.run(pixels, [tuple(p[:2]) for p in pictures], regions)
    exact = [key for key in outputs if key.startswith("results") and not key.endswith("labels")]
    return {
        "name": name, "format": "torchvision", "variant": "vgg16", "state": state, "pictures": pictures, "outputs": outputs,
        "inputs": {"regions": [boxes.tolist() for boxes in regions]},
        "config": {"classes": 5, "hidden": 20,
                   "backbone": {"part": "vgg/16", "changes": {"classes": 0, "hidden": 0, "layers": [2, 1, 1, 2, 1], "width": 4}}},
        "tolerance": dict.fromkeys(exact, 1e-6), "why": WHY,
    }  # fmt: skip


def tiny():
    return [
        case_of("padded batch", [[97, 130, 1], [140, 66, 2]], 20),
        case_of("one picture", [[128, 96, 3]], 30),
    ]


def full_size():
    return Composed(SIXTEEN, 512, 4096, 20)


def manifests():
    with torch.device("meta"):
        return {"torchvision": {"vgg16": {key: tuple(value.shape) for key, value in full_size().state_dict().items()}}}


def parameters():
    with torch.device("meta"):
        return {"vgg16": sum(p.numel() for p in full_size().parameters())}


def full():
    pictures = [[320, 416, 1], [288, 320, 2]]
    model = full_size().eval()
    state = fill_module(model)
    pixels, _ = network_input(pictures, PREPARE, torch.float32)
    regions = tuple(boxes.float() for boxes in regions_of(pictures, 40))
    outputs = model.run(pixels, [tuple(p[:2]) for p in pictures], regions)
    yield {"name": "fast_rcnn vgg16", "format": "torchvision", "variant": "vgg16", "state": state, "pictures": pictures,
           "inputs": {"regions": [boxes.tolist() for boxes in regions]},
           "outputs": {key: value for key, value in outputs.items() if key in ("out.logits", "out.deltas", "out.maps")}}  # fmt: skip

"""R-CNN over torchvision's AlexNet (BSD-3-Clause): warped regions, the classifier on each, and two linear layers more.

Warping (appendix A) is written out below pixel by pixel; suppression and clipping are torchvision's.
"""

import torchvision_shim  # noqa: F401  (before anything that imports torchvision)

# isort: split
import math

import torch
import torchvision
from torchvision.models.alexnet import AlexNet
from torchvision.models.detection._utils import BoxCoder
from torchvision.ops.boxes import batched_nms, clip_boxes_to_image

from opticus.models.detection.rcnn import PREPARE
from opticus.parity.case import network_input
from opticus.parity.fill import fill_module

PAPER = "rcnn"
WHY = "boxes and scores of results are float32"


def reference():
    return {
        "repository": "https://github.com/pytorch/vision",
        "version": f"torchvision {torchvision.__version__.split('+')[0]}",
        "license": "BSD-3-Clause",
        "kind": "package",
    }


def crop_of(picture, box, side, context):
    """The square of `side` pixels, bilinear, 0 outside; every pixel looked up on its own along both axes."""
    left, top, right, bottom = box
    grow = side / (side - 2 * context)
    size = ((right - left) * grow, (bottom - top) * grow)
    corner = ((left + right - size[0]) / 2, (top + bottom - size[1]) / 2)
    matrices = []
    for axis, length in ((1, picture.shape[1]), (0, picture.shape[2])):
        matrix = torch.zeros(side, length, dtype=picture.dtype)
        for k in range(side):
            place = corner[axis] + (k + 0.5) / side * size[axis] - 0.5
            low = math.floor(place)
            for cell, share in ((low, low + 1 - place), (low + 1, place - low)):
                if 0 <= cell < length:
                    matrix[k, cell] += share
        matrices.append(matrix)
    return matrices[0] @ picture @ matrices[1].T


class Composed(torch.nn.Module):
    """AlexNet whose last layer knows the background, SVMs on its last hidden layer and box regressors on pool5."""

    def __init__(self, hidden, classes, crop, context):
        super().__init__()
        body = AlexNet(num_classes=classes + 1)
        self.features, self.classifier = body.features, body.classifier
        if hidden != 4096:
            self.classifier[1] = torch.nn.Linear(9216, hidden)
            self.classifier[4] = torch.nn.Linear(hidden, hidden)
            self.classifier[6] = torch.nn.Linear(hidden, classes + 1)
        self.svm, self.box = torch.nn.Linear(hidden, classes), torch.nn.Linear(9216, 4 * classes)
        self.crop, self.context = crop, context

    @torch.no_grad()
    def run(self, pixels, sizes, regions):
        crops = [crop_of(p, box, self.crop, self.context) for p, boxes in zip(pixels, regions) for box in boxes.tolist()]
        pooled = torch.nn.functional.adaptive_avg_pool2d(self.features(torch.stack(crops)), 6).flatten(1)
        hidden = self.classifier[:6](pooled)
        found = {"out.proposals": torch.cat(list(regions)), "out.logits": self.classifier[6](hidden), "out.margins": self.svm(hidden),
                 "out.deltas": self.box(pooled).unflatten(1, (-1, 4))}  # fmt: skip
        return found | results_of(found["out.margins"], found["out.deltas"], regions, sizes)


def results_of(margins, deltas, regions, sizes):
    """Section 2.2: every class's boxes whose margin is above -1, suppressed per class at 0.3."""
    found = {}
    coder, start = BoxCoder((1.0, 1.0, 1.0, 1.0)), 0
    for i, (boxes, size) in enumerate(zip(regions, sizes)):
        part = slice(start, start + len(boxes))
        start += len(boxes)
        moved = clip_boxes_to_image(coder.decode(deltas[part].flatten(1), [boxes]), size).reshape(-1, 4)
        scores = (1 / (1 + torch.exp(-2 * margins[part]))).flatten()
        labels = torch.arange(margins.shape[1]).repeat(len(boxes))
        good = (margins[part].flatten() > -1) & (moved[:, 2] > moved[:, 0]) & (moved[:, 3] > moved[:, 1])
        moved, scores, labels = moved[good], scores[good], labels[good]
        kept = batched_nms(moved, scores, labels, 0.3)[:100]
        found |= {f"results.{i}.boxes": moved[kept], f"results.{i}.scores": scores[kept], f"results.{i}.labels": labels[kept]}
    return found


def regions_of(pictures, count):
    """Boxes on fractions of pixels, some at the border, so that their context lies outside."""
    found = []
    for height, width, seed in pictures:
        draw = torch.Generator().manual_seed(seed)
        ends = torch.rand(count, 2, 2, generator=draw, dtype=torch.float64).sort(1).values
        boxes = (ends * torch.tensor([width, height])).round(decimals=1).flatten(1)
        boxes[:, 2:] = torch.maximum(boxes[:, 2:], boxes[:, :2] + 2)
        boxes[0] = torch.tensor([0, 0, width, height])
        found.append(boxes)
    return tuple(found)


def case_of(name, pictures, count, context):
    model = Composed(20, 5, 67, context).double().eval()
    state = fill_module(model)
    pixels, _ = network_input(pictures, PREPARE)
    regions = regions_of(pictures, count)
    outputs = model.run(pixels, [tuple(p[:2]) for p in pictures], regions)
    exact = [key for key in outputs if key.startswith("results") and not key.endswith("labels")]
    return {
        "name": name, "format": "torchvision", "variant": "alexnet", "state": state, "pictures": pictures, "outputs": outputs,
        "inputs": {"regions": [boxes.tolist() for boxes in regions]},
        "config": {"classes": 5, "hidden": 20, "crop": 67, "context": context},
        "tolerance": dict.fromkeys(exact, 1e-6), "why": WHY,
    }  # fmt: skip


def tiny():
    return [case_of("padded batch", [[97, 130, 1], [140, 66, 2]], 8, 5), case_of("no context", [[128, 96, 3]], 10, 0)]


def full_size():
    return Composed(4096, 20, 227, 16)


def manifests():
    with torch.device("meta"):
        return {"torchvision": {"alexnet": {key: tuple(value.shape) for key, value in full_size().state_dict().items()}}}


def parameters():
    """Those that are learned: the solved layers are buffers."""
    with torch.device("meta"):
        return {"alexnet": sum(p.numel() for name, p in full_size().named_parameters() if not name.startswith(("svm", "box")))}


def full():
    pictures = [[320, 416, 1], [288, 320, 2]]
    model = full_size().eval()
    state = fill_module(model)
    pixels, _ = network_input(pictures, PREPARE, torch.float32)
    regions = tuple(boxes.float() for boxes in regions_of(pictures, 6))
    outputs = model.run(pixels, [tuple(p[:2]) for p in pictures], regions)
    yield {"name": "rcnn alexnet", "format": "torchvision", "variant": "alexnet", "state": state, "pictures": pictures,
           "inputs": {"regions": [boxes.tolist() for boxes in regions]},
           "outputs": {key: value for key, value in outputs.items() if key in ("out.logits", "out.margins", "out.deltas")}}  # fmt: skip

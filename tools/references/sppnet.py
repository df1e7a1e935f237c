"""SPP-net's detector over torchvision's VGG-16 (BSD-3-Clause): the spatial pyramid written out as a loop, and R-CNN's last layers."""

import torchvision_shim  # noqa: F401  (before anything that imports torchvision)

# isort: split
import math

import torch
import torchvision
from rcnn import WHY, regions_of, results_of
from torchvision.models.vgg import VGG, make_layers

from opticus.models.detection.sppnet import PREPARE
from opticus.parity.case import network_input
from opticus.parity.fill import fill_module

PAPER = "sppnet"
EXTENDS = "rcnn"
NARROW = [4, 4, "M", 8, "M", 16, "M", 32, 32, "M", 32]
SIXTEEN = [64, 64, "M", 128, 128, "M", 256, 256, 256, "M", 512, 512, 512, "M", 512, 512, 512]
LEVELS = (6, 3, 2, 1)


def reference():
    return {
        "repository": "https://github.com/pytorch/vision",
        "version": f"torchvision {torchvision.__version__.split('+')[0]}",
        "license": "BSD-3-Clause",
        "kind": "package",
    }


def pyramid_of(maps, box, stride):
    """The cells whose middles lie in the box, one near its own middle if there is none, in n x n bins for every level."""
    height, width = maps.shape[1:]
    x = [k for k in range(width) if box[0] <= (k + 0.5) * stride <= box[2]] or [int((box[0] + box[2]) / 2 // stride)]
    y = [k for k in range(height) if box[1] <= (k + 0.5) * stride <= box[3]] or [int((box[1] + box[3]) / 2 // stride)]
    part, found = maps[:, y][:, :, x], []
    for n in LEVELS:
        rows = [(math.floor(i * len(y) / n), math.ceil((i + 1) * len(y) / n)) for i in range(n)]
        columns = [(math.floor(i * len(x) / n), math.ceil((i + 1) * len(x) / n)) for i in range(n)]
        grid = torch.stack([torch.stack([part[:, a:b, c:d].amax((1, 2)) for c, d in columns], 1) for a, b in rows], 1)
        found.append(grid.flatten())
    return torch.cat(found)


class Composed(torch.nn.Module):
    """VGG's convolutions, and fc6 to fc8, SVMs and box regressors behind the pyramid."""

    def __init__(self, layers, width, hidden, classes):
        super().__init__()
        self.features = VGG(make_layers(layers, batch_norm=False), num_classes=1).features
        for layer in self.features:
            if isinstance(layer, torch.nn.MaxPool2d):  # Caffe's pooling keeps the last odd row and column
                layer.ceil_mode = True
        length = width * sum(n * n for n in LEVELS)
        self.fc6, self.fc7 = torch.nn.Linear(length, hidden), torch.nn.Linear(hidden, hidden)
        self.fc8 = torch.nn.Linear(hidden, classes + 1)
        self.svm, self.box = torch.nn.Linear(hidden, classes), torch.nn.Linear(length, 4 * classes)

    @torch.no_grad()
    def run(self, pixels, sizes, regions):
        maps = self.features(pixels)
        pooled = torch.stack([pyramid_of(m, box, 16) for m, boxes in zip(maps, regions) for box in boxes.tolist()])
        hidden = self.fc7(self.fc6(pooled).relu()).relu()
        found = {"out.proposals": torch.cat(list(regions)), "out.logits": self.fc8(hidden), "out.margins": self.svm(hidden),
                 "out.deltas": self.box(pooled).unflatten(1, (-1, 4)), "out.maps": maps}  # fmt: skip
        return found | results_of(found["out.margins"], found["out.deltas"], regions, sizes)


def apart(boxes, stride):
    """Boxes without those whose cells an earlier one has: equal scores may be ranked either way."""
    middles = [[k for k in range(20) if a <= (k + 0.5) * stride <= b] or [int((a + b) / 2 // stride)]
               for box in boxes.tolist() for a, b in (box[::2], box[1::2])]  # fmt: skip
    places = [(str(x), str(y)) for x, y in zip(middles[::2], middles[1::2])]
    return boxes[[i for i, place in enumerate(places) if place not in places[:i]]]


def case_of(name, pictures, count):
    model = Composed(NARROW, 32, 20, 5).double().eval()
    state = fill_module(model)
    pixels, _ = network_input(pictures, PREPARE)
    regions = tuple(apart(boxes, 16) for boxes in regions_of(pictures, count))
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
    return [case_of("padded batch", [[97, 130, 1], [140, 66, 2]], 20), case_of("one picture", [[160, 224, 3]], 30)]


def full_size():
    return Composed(SIXTEEN, 512, 4096, 20)


def manifests():
    with torch.device("meta"):
        return {"torchvision": {"vgg16": {key: tuple(value.shape) for key, value in full_size().state_dict().items()}}}


def parameters():
    """Those that are learned: the solved layers are buffers."""
    with torch.device("meta"):
        return {"vgg16": sum(p.numel() for name, p in full_size().named_parameters() if not name.startswith(("svm", "box")))}


def full():
    pictures = [[320, 416, 1], [288, 320, 2]]
    model = full_size().eval()
    state = fill_module(model)
    pixels, _ = network_input(pictures, PREPARE, torch.float32)
    regions = tuple(boxes.float() for boxes in regions_of(pictures, 20))
    outputs = model.run(pixels, [tuple(p[:2]) for p in pictures], regions)
    yield {"name": "sppnet vgg16", "format": "torchvision", "variant": "vgg16", "state": state, "pictures": pictures,
           "inputs": {"regions": [boxes.tolist() for boxes in regions]},
           "outputs": {key: value for key, value in outputs.items() if key in ("out.logits", "out.margins", "out.deltas")}}  # fmt: skip

"""YOLOv8 as public descriptions state it (the original code, AGPL-3.0, is not consulted): a literal transcription.

Every layer is a function of a dictionary of tensors under the published names, written down layer by layer as in the diagram by RangeKing
(github.com/ultralytics/ultralytics/issues/189). Names, eps 1e-3 and the widths of the head are read off wang-xinyu/tensorrtx (MIT),
yolov8/src/model.cpp and block.cpp.
"""

import math

import torch
import torch.nn.functional as F

from opticus.models.detection.yolov8 import PREPARE
from opticus.ops.twins.boxes import iou
from opticus.parity.case import network_input
from opticus.parity.fill import fill

PAPER = "yolov8"
VARIANTS = {"n": (0.33, 0.25, 1024), "s": (0.33, 0.5, 1024), "m": (0.67, 0.75, 576), "l": (1, 1, 512), "x": (1, 1.25, 640)}


def reference():
    return {
        "repository": "https://github.com/wang-xinyu/tensorrtx (layout and names)",
        "commit": "ca507e8ca46e5590852b705cb10dc5fca1d09d39",
        "license": "MIT",
        "kind": "transcription",
    }


class Shapes(dict):
    """key -> shape, collected while the layers are declared."""

    def conv(self, name, c_in, c_out, k):
        self[f"{name}.conv.weight"] = (c_out, c_in, k, k)
        for key in ("weight", "bias", "running_mean", "running_var"):
            self[f"{name}.bn.{key}"] = (c_out,)
        self[f"{name}.bn.num_batches_tracked"] = ()

    def c2f(self, name, c_in, c_out, n):
        self.conv(f"{name}.cv1", c_in, c_out, 1)
        self.conv(f"{name}.cv2", (2 + n) * (c_out // 2), c_out, 1)
        for i in range(n):
            self.conv(f"{name}.m.{i}.cv1", c_out // 2, c_out // 2, 3)
            self.conv(f"{name}.m.{i}.cv2", c_out // 2, c_out // 2, 3)


def declared(depth, width, most, classes):
    """The state dict of a variant: shapes under published names."""
    c = [min(math.ceil(n * width / 8) * 8, most) for n in (64, 128, 256, 512, 1024)]
    three, six = max(round(3 * depth), 1), max(round(6 * depth), 1)
    s = Shapes()
    s.conv("model.0", 3, c[0], 3)
    s.conv("model.1", c[0], c[1], 3)
    s.c2f("model.2", c[1], c[1], three)
    s.conv("model.3", c[1], c[2], 3)
    s.c2f("model.4", c[2], c[2], six)
    s.conv("model.5", c[2], c[3], 3)
    s.c2f("model.6", c[3], c[3], six)
    s.conv("model.7", c[3], c[4], 3)
    s.c2f("model.8", c[4], c[4], three)
    s.conv("model.9.cv1", c[4], c[4] // 2, 1)
    s.conv("model.9.cv2", c[4] * 2, c[4], 1)
    s.c2f("model.12", c[4] + c[3], c[3], three)
    s.c2f("model.15", c[3] + c[2], c[2], three)
    s.conv("model.16", c[2], c[2], 3)
    s.c2f("model.18", c[2] + c[3], c[3], three)
    s.conv("model.19", c[3], c[3], 3)
    s.c2f("model.21", c[3] + c[4], c[4], three)
    boxes, labels = max(64, c[2] // 4), max(c[2], min(classes, 100))
    for i, source in enumerate(c[2:]):
        for tower, inner, outer in (("cv2", boxes, 64), ("cv3", labels, classes)):
            s.conv(f"model.22.{tower}.{i}.0", source, inner, 3)
            s.conv(f"model.22.{tower}.{i}.1", inner, inner, 3)
            s[f"model.22.{tower}.{i}.2.weight"] = (outer, inner, 1, 1)
            s[f"model.22.{tower}.{i}.2.bias"] = (outer,)
    s["model.22.dfl.conv.weight"] = (1, 16, 1, 1)
    return dict(s)


class Run:
    """The layers as functions of the named tensors."""

    def __init__(self, tensors):
        self.t = tensors

    def conv(self, name, x, stride=1):
        t, kernel = self.t, self.t[f"{name}.conv.weight"]
        x = F.conv2d(x, kernel, None, stride, kernel.shape[-1] // 2)
        shape = (1, -1, 1, 1)
        mean, var, gain, bias = (t[f"{name}.bn.{k}"].view(shape) for k in ("running_mean", "running_var", "weight", "bias"))
        x = (x - mean) / torch.sqrt(var + 1e-3) * gain + bias
        return x * torch.sigmoid(x)

    def c2f(self, name, x, add):
        y = self.conv(f"{name}.cv1", x)
        half = y.shape[1] // 2
        everything, last, i = y, y[:, half:], 0
        while f"{name}.m.{i}.cv1.conv.weight" in self.t:
            z = self.conv(f"{name}.m.{i}.cv2", self.conv(f"{name}.m.{i}.cv1", last))
            last = last + z if add else z
            everything = torch.cat([everything, last], 1)
            i += 1
        return self.conv(f"{name}.cv2", everything)

    def sppf(self, name, x):
        x = self.conv(f"{name}.cv1", x)
        windows = [x] + [F.max_pool2d(x, k, 1, k // 2) for k in (5, 9, 13)]
        return self.conv(f"{name}.cv2", torch.cat(windows, 1))

    def network(self, x):
        x = self.conv("model.1", self.conv("model.0", x, 2), 2)
        x = self.c2f("model.2", x, True)
        four = self.c2f("model.4", self.conv("model.3", x, 2), True)
        six = self.c2f("model.6", self.conv("model.5", four, 2), True)
        nine = self.sppf("model.9", self.c2f("model.8", self.conv("model.7", six, 2), True))
        twelve = self.c2f("model.12", torch.cat([twice(nine), six], 1), False)
        fifteen = self.c2f("model.15", torch.cat([twice(twelve), four], 1), False)
        eighteen = self.c2f("model.18", torch.cat([self.conv("model.16", fifteen, 2), twelve], 1), False)
        last = self.c2f("model.21", torch.cat([self.conv("model.19", eighteen, 2), nine], 1), False)
        logits, sides = [], []
        for i, level in enumerate((fifteen, eighteen, last)):
            for tower, found in (("cv2", sides), ("cv3", logits)):
                y = self.conv(f"model.22.{tower}.{i}.1", self.conv(f"model.22.{tower}.{i}.0", level))
                name = f"model.22.{tower}.{i}.2"
                found.append(F.conv2d(y, self.t[f"{name}.weight"], self.t[f"{name}.bias"]).flatten(2).transpose(1, 2))
        return torch.cat(logits, 1), torch.cat(sides, 1)


def twice(x):
    return x.repeat_interleave(2, 2).repeat_interleave(2, 3)


def detections(logits, sides, sizes, frame):
    """Per picture: boxes, labels and scores, every answer decoded by itself and suppressed one by one."""
    centres = []
    for stride in (8, 16, 32):
        for row in range(frame[0] // stride):
            for column in range(frame[1] // stride):
                centres.append((column + 0.5, row + 0.5, stride))
    found = []
    for picture, (height, width) in enumerate(sizes):
        rows = []
        scores = logits[picture].sigmoid()
        for n, (x, y, stride) in enumerate(centres):
            l, t, r, b = [float(sum(j * p for j, p in enumerate(side.softmax(0)))) for side in sides[picture, n].view(4, 16)]
            box = [(x - l) * stride, (y - t) * stride, (x + r) * stride, (y + b) * stride]
            box = [min(max(v, 0.0), limit) for v, limit in zip(box, (width, height, width, height), strict=True)]
            for label, score in enumerate(scores[n].tolist()):
                if score > 0.001:
                    rows.append((score, label, box))
        rows.sort(key=lambda row: -row[0])
        kept = []
        for score, label, box in rows[:3000]:
            if box[2] > box[0] and box[3] > box[1] and not any(label == k[1] and iou(k[2], box) > 0.7 for k in kept):
                kept.append((score, label, box))
        found.append(kept[:300])
    return found


@torch.no_grad()
def case_of(name, variant, config, settings, pictures, results=False):
    shapes = declared(*settings)
    run = Run({key: fill(key, shape) for key, shape in shapes.items()})
    pixels, _ = network_input(pictures, PREPARE)
    logits, sides = run.network(pixels)
    outputs = {"out.logits": logits, "out.sides": sides.unflatten(2, (4, 16))}
    case = {"name": name, "format": "ultralytics", "variant": variant, "config": config, "state": shapes, "pictures": pictures}
    if results:
        for i, rows in enumerate(detections(logits, sides, [p[:2] for p in pictures], pixels.shape[-2:])):
            outputs[f"results.{i}.boxes"] = torch.tensor([r[2] for r in rows], dtype=torch.float64)
            outputs[f"results.{i}.labels"] = torch.tensor([r[1] for r in rows])
            outputs[f"results.{i}.scores"] = torch.tensor([r[0] for r in rows], dtype=torch.float64)
        exact = [key for key in outputs if key.endswith(("boxes", "scores"))]
        case |= {"tolerance": dict.fromkeys(exact, 1e-6), "why": "boxes and scores of results are float32"}
    return case | {"outputs": outputs}


def tiny():
    return [
        case_of("padded batch", "n", {"classes": 5, "width": 0.125}, (0.33, 0.125, 1024, 5), [[64, 96, 1], [40, 77, 2]], True),
        case_of("deeper", "m", {"classes": 7, "width": 0.125, "ratio": 1.0}, (0.67, 0.125, 64, 7), [[64, 64, 3]]),
    ]


def manifests():
    return {"ultralytics": {variant: declared(*settings, 80) for variant, settings in VARIANTS.items()}}


def parameters():
    """As counted in the layout; without the sixteen fixed numbers of the expectation, which are no parameters here."""
    statistics = ("running_mean", "running_var", "num_batches_tracked", "dfl.conv.weight")
    return {
        variant: sum(math.prod(shape) for key, shape in declared(*settings, 80).items() if not key.endswith(statistics))
        for variant, settings in VARIANTS.items()
    }


@torch.no_grad()
def full():
    pictures = [[320, 416, 1]]
    shapes = declared(*VARIANTS["s"], 80)
    run = Run({key: fill(key, shape, torch.float32) for key, shape in shapes.items()})
    pixels, _ = network_input(pictures, PREPARE, torch.float32)
    logits, sides = run.network(pixels)
    yield {"name": "yolov8 s", "format": "ultralytics", "variant": "s", "state": shapes, "pictures": pictures,
           "outputs": {"out.logits": logits, "out.sides": sides.unflatten(2, (4, 16))}}  # fmt: skip

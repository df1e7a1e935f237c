"""YOLOv5 as public descriptions state it (the original code, AGPL-3.0, is not consulted): a literal transcription.

Every layer is a function of a dictionary of tensors under the published names, written down layer by layer as
docs.ultralytics.com/yolov5/tutorials/architecture_description draws it. Names, eps 1e-3, the 6x6 stem and the decoding are read off
wang-xinyu/tensorrtx (MIT), yolov5/src/model.cpp and plugin/yololayer.cu; anchors are YOLOv3's (1804.02767, section 2.3).
"""

import math

import torch
import torch.nn.functional as F

from opticus.models.detection.yolov5 import PREPARE
from opticus.ops.twins.boxes import iou
from opticus.parity.case import network_input
from opticus.parity.fill import fill

PAPER = "yolov5"
VARIANTS = {"n": (0.33, 0.25), "s": (0.33, 0.5), "m": (0.67, 0.75), "l": (1, 1), "x": (1.33, 1.25)}
ANCHORS = [[10, 13, 16, 30, 33, 23], [30, 61, 62, 45, 59, 119], [116, 90, 156, 198, 373, 326]]


def reference():
    return {
        "repository": "https://github.com/wang-xinyu/tensorrtx (layout and names)",
        "commit": "0563665b8608861a6421aac331261acdab347a82",
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

    def c3(self, name, c_in, c_out, n):
        half = c_out // 2
        self.conv(f"{name}.cv1", c_in, half, 1)
        self.conv(f"{name}.cv2", c_in, half, 1)
        self.conv(f"{name}.cv3", 2 * half, c_out, 1)
        for i in range(n):
            self.conv(f"{name}.m.{i}.cv1", half, half, 1)
            self.conv(f"{name}.m.{i}.cv2", half, half, 3)


def declared(depth, width, classes):
    """The state dict of a variant: shapes under published names."""
    c = [math.ceil(n * width / 8) * 8 for n in (64, 128, 256, 512, 1024)]
    three, six, nine = (max(round(n * depth), 1) for n in (3, 6, 9))
    s = Shapes()
    s.conv("model.0", 3, c[0], 6)
    s.conv("model.1", c[0], c[1], 3)
    s.c3("model.2", c[1], c[1], three)
    s.conv("model.3", c[1], c[2], 3)
    s.c3("model.4", c[2], c[2], six)
    s.conv("model.5", c[2], c[3], 3)
    s.c3("model.6", c[3], c[3], nine)
    s.conv("model.7", c[3], c[4], 3)
    s.c3("model.8", c[4], c[4], three)
    s.conv("model.9.cv1", c[4], c[4] // 2, 1)
    s.conv("model.9.cv2", c[4] * 2, c[4], 1)
    s.conv("model.10", c[4], c[3], 1)
    s.c3("model.13", 2 * c[3], c[3], three)
    s.conv("model.14", c[3], c[2], 1)
    s.c3("model.17", 2 * c[2], c[2], three)
    s.conv("model.18", c[2], c[2], 3)
    s.c3("model.20", 2 * c[2], c[3], three)
    s.conv("model.21", c[3], c[3], 3)
    s.c3("model.23", 2 * c[3], c[4], three)
    s["model.24.anchors"] = (3, 3, 2)
    for i, source in enumerate(c[2:]):
        s[f"model.24.m.{i}.weight"] = (3 * (classes + 5), source, 1, 1)
        s[f"model.24.m.{i}.bias"] = (3 * (classes + 5),)
    return dict(s)


class Run:
    """The layers as functions of the named tensors."""

    def __init__(self, tensors):
        self.t = tensors

    def conv(self, name, x, stride=1):
        t, kernel = self.t, self.t[f"{name}.conv.weight"]
        x = F.conv2d(x, kernel, None, stride, kernel.shape[-1] // 3)
        shape = (1, -1, 1, 1)
        mean, var, gain, bias = (t[f"{name}.bn.{k}"].view(shape) for k in ("running_mean", "running_var", "weight", "bias"))
        x = (x - mean) / torch.sqrt(var + 1e-3) * gain + bias
        return x * torch.sigmoid(x)

    def c3(self, name, x, add):
        y, i = self.conv(f"{name}.cv1", x), 0
        while f"{name}.m.{i}.cv1.conv.weight" in self.t:
            z = self.conv(f"{name}.m.{i}.cv2", self.conv(f"{name}.m.{i}.cv1", y))
            y = y + z if add else z
            i += 1
        return self.conv(f"{name}.cv3", torch.cat([y, self.conv(f"{name}.cv2", x)], 1))

    def sppf(self, name, x):
        x = self.conv(f"{name}.cv1", x)
        windows = [x] + [F.max_pool2d(x, k, 1, k // 2) for k in (5, 9, 13)]
        return self.conv(f"{name}.cv2", torch.cat(windows, 1))

    def network(self, x):
        """(B, 3, h, w, 5 + K) per level."""
        x = self.conv("model.1", self.conv("model.0", x, 2), 2)
        x = self.c3("model.2", x, True)
        four = self.c3("model.4", self.conv("model.3", x, 2), True)
        six = self.c3("model.6", self.conv("model.5", four, 2), True)
        nine = self.sppf("model.9", self.c3("model.8", self.conv("model.7", six, 2), True))
        ten = self.conv("model.10", nine)
        fourteen = self.conv("model.14", self.c3("model.13", torch.cat([twice(ten), six], 1), False))
        seventeen = self.c3("model.17", torch.cat([twice(fourteen), four], 1), False)
        twenty = self.c3("model.20", torch.cat([self.conv("model.18", seventeen, 2), fourteen], 1), False)
        last = self.c3("model.23", torch.cat([self.conv("model.21", twenty, 2), ten], 1), False)
        found = []
        for i, level in enumerate((seventeen, twenty, last)):
            y = F.conv2d(level, self.t[f"model.24.m.{i}.weight"], self.t[f"model.24.m.{i}.bias"])
            found.append(y.unflatten(1, (3, -1)).permute(0, 1, 3, 4, 2))
        return found


def twice(x):
    return x.repeat_interleave(2, 2).repeat_interleave(2, 3)


def answers(levels):
    """In the port's order: rows, columns, then the anchors of a cell."""
    rows = torch.cat([level.permute(0, 2, 3, 1, 4).reshape(len(level), -1, level.shape[-1]) for level in levels], 1)
    return {"out.boxes": rows[..., :4], "out.objectness": rows[..., 4:5], "out.logits": rows[..., 5:]}


def sigmoid(value):
    return 1 / (1 + math.exp(-value))


def detections(levels, sizes):
    """Per picture: every anchor's answer decoded by itself, and suppressed one by one."""
    found = []
    for picture, (height, width) in enumerate(sizes):
        rows = []
        for stride, anchors, level in zip((8, 16, 32), ANCHORS, levels, strict=True):
            for y in range(level.shape[2]):
                for x in range(level.shape[3]):
                    for a in range(3):
                        tx, ty, tw, th, to, *classes = level[picture, a, y, x].tolist()
                        cx, cy = (2 * sigmoid(tx) - 0.5 + x) * stride, (2 * sigmoid(ty) - 0.5 + y) * stride
                        w, h = (2 * sigmoid(tw)) ** 2 * anchors[2 * a], (2 * sigmoid(th)) ** 2 * anchors[2 * a + 1]
                        box = [cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2]
                        box = [min(max(v, 0.0), limit) for v, limit in zip(box, (width, height, width, height), strict=True)]
                        for label, logit in enumerate(classes):
                            score = sigmoid(to) * sigmoid(logit)
                            if score > 0.001:
                                rows.append((score, label, box))
        rows.sort(key=lambda row: -row[0])
        kept = []
        for score, label, box in rows[:3000]:
            if box[2] > box[0] and box[3] > box[1] and not any(label == k[1] and iou(k[2], box) > 0.6 for k in kept):
                kept.append((score, label, box))
        found.append(kept[:300])
    return found


def tensors_of(shapes, dtype=torch.float64):
    return {key: fill(key, shape, dtype) for key, shape in shapes.items()}


def constants():
    """The anchors in strides: a formula would make nonsense of them."""
    table = [[[row[2 * a] / s, row[2 * a + 1] / s] for a in range(3)] for row, s in zip(ANCHORS, (8, 16, 32), strict=True)]
    return {"model.24.anchors": table}


@torch.no_grad()
def case_of(name, variant, config, settings, pictures, results=False):
    shapes = declared(*settings)
    pixels, _ = network_input(pictures, PREPARE)
    levels = Run(tensors_of(shapes)).network(pixels)
    outputs = answers(levels)
    case = {"name": name, "format": "ultralytics", "variant": variant, "config": config, "state": shapes, "pictures": pictures,
            "constants": constants()}  # fmt: skip
    if results:
        for i, rows in enumerate(detections(levels, [p[:2] for p in pictures])):
            outputs[f"results.{i}.boxes"] = torch.tensor([r[2] for r in rows], dtype=torch.float64)
            outputs[f"results.{i}.labels"] = torch.tensor([r[1] for r in rows])
            outputs[f"results.{i}.scores"] = torch.tensor([r[0] for r in rows], dtype=torch.float64)
        exact = [key for key in outputs if key.endswith(("boxes", "scores")) and key.startswith("results")]
        case |= {"tolerance": dict.fromkeys(exact, 1e-6), "why": "boxes and scores of results are float32"}
    return case | {"outputs": outputs}


def tiny():
    return [
        case_of("padded batch", "n", {"classes": 5, "width": 0.125}, (0.33, 0.125, 5), [[64, 96, 1], [40, 77, 2]], True),
        case_of("deeper", "m", {"classes": 7, "width": 0.125}, (0.67, 0.125, 7), [[64, 64, 3]]),
    ]


def manifests():
    return {"ultralytics": {variant: declared(*settings, 80) for variant, settings in VARIANTS.items()}}


def parameters():
    statistics = ("running_mean", "running_var", "num_batches_tracked", "anchors")
    return {
        variant: sum(math.prod(shape) for key, shape in declared(*settings, 80).items() if not key.endswith(statistics))
        for variant, settings in VARIANTS.items()
    }


@torch.no_grad()
def full():
    pictures = [[320, 416, 1]]
    shapes = declared(*VARIANTS["s"], 80)
    pixels, _ = network_input(pictures, PREPARE, torch.float32)
    levels = Run(tensors_of(shapes, torch.float32)).network(pixels)
    yield {"name": "yolov5 s", "format": "ultralytics", "variant": "s", "state": shapes, "pictures": pictures,
           "outputs": answers(levels)}  # fmt: skip

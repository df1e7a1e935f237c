"""YOLOv3 as the authors' darknet runs it; how to build the program: see darknet.py."""

import darknet
import torch

from opticus.models.detection.yolov3 import PREPARE
from opticus.parity.case import network_input

PAPER = "yolov3"
CFG = {"416": "yolov3", "tiny-416": "yolov3-tiny"}
LAYOUT = {"416": "darknet", "tiny-416": "darknet-tiny"}
WHY = "boxes and scores of results are float32"


def reference():
    return darknet.reference()


def rows(arrays, size, strides, classes):
    """darknet's maps (3 * (5 + K), h, w) as the port's rows: rows, columns, priors of a cell."""
    found = []
    for array, stride in zip(arrays, strides, strict=True):
        h, w = size[0] // stride, size[1] // stride
        found.append(array.reshape(3, 5 + classes, h, w).permute(2, 3, 0, 1).reshape(-1, 5 + classes))
    return torch.cat(found)


def outputs(text, shapes, pictures, strides, classes, dtype=torch.float64, boxes=True):
    pixels, _ = network_input(pictures, PREPARE, dtype)
    size = tuple(pixels.shape[2:])
    every, found = [], {}
    for i, picture in enumerate(pixels):
        arrays, kept = darknet.run(text, shapes, picture)
        every.append(rows(arrays, size, strides, classes))
        if boxes:
            found |= {f"results.{i}.{key}": value for key, value in darknet.results(kept, size).items()}
    out = torch.stack(every)
    return {"out.boxes": out[..., :4], "out.objects": out[..., 4], "out.logits": out[..., 5:], **found}


def case_of(name, variant, pictures, config, shrink, strides, classes=3):
    text = darknet.cfg_text(CFG[variant], pictures[0][:2], shrink, classes)
    shapes = darknet.shapes_of(text)
    found = outputs(text, shapes, pictures, strides, classes)
    exact = [key for key in found if key.startswith("results") and not key.endswith("labels")]
    return {
        "name": name, "format": LAYOUT[variant], "variant": variant, "state": shapes, "pictures": pictures, "outputs": found,
        "config": {"classes": classes, **config}, "tolerance": dict.fromkeys(exact, 1e-6), "why": WHY,
    }  # fmt: skip


def tiny():
    thin = {"width": 4, "widths": [128, 64, 32]}
    flat = {"width": 4, "widths": [128, 64]}
    return [
        case_of("darknet-53", "416", [[96, 64, 1], [96, 64, 2]], thin, 8, (32, 16, 8)),
        case_of("pooled", "tiny-416", [[64, 96, 3]], flat, 4, (32, 16)),
    ]


def manifests():
    found = {variant: darknet.shapes_of(darknet.cfg_text(cfg)) for variant, cfg in CFG.items()}
    return {LAYOUT[variant]: {variant: shapes} for variant, shapes in found.items()}


def parameters():
    return {variant: darknet.numbers(darknet.shapes_of(darknet.cfg_text(cfg))) for variant, cfg in CFG.items()}


def full():
    for variant, strides in (("416", (32, 16, 8)), ("tiny-416", (32, 16))):
        pictures = [[224, 160, 1]]
        text = darknet.cfg_text(CFG[variant], pictures[0][:2])
        shapes = darknet.shapes_of(text)
        yield {"name": f"yolov3 {variant}", "format": LAYOUT[variant], "variant": variant, "state": shapes, "pictures": pictures,
               "outputs": outputs(text, shapes, pictures, strides, 80, torch.float32, boxes=False)}  # fmt: skip

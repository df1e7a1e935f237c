"""YOLOv2 as the authors' darknet runs it; how to build the program: see darknet.py."""

import darknet
import torch

from opticus.models.detection.yolov2 import PREPARE
from opticus.parity.case import network_input

PAPER = "yolov2"
CFG = {"416": "yolov2", "416-voc": "yolov2-voc"}
WHY = "boxes and scores of results are float32"


def reference():
    return darknet.reference()


def outputs(text, shapes, pictures, classes, dtype=torch.float64, boxes=True):
    """darknet's map (5 * (5 + K), h, w) as the port's rows: rows, columns, priors of a cell."""
    pixels, _ = network_input(pictures, PREPARE, dtype)
    h, w = (side // 32 for side in pixels.shape[2:])
    every, found = [], {}
    for i, picture in enumerate(pixels):
        (array,), kept = darknet.run(text, shapes, picture)
        every.append(array.reshape(5, 5 + classes, h, w).permute(2, 3, 0, 1).reshape(-1, 5 + classes))
        if boxes:
            found |= {f"results.{i}.{key}": value for key, value in darknet.results(kept, picture.shape[1:]).items()}
    out = torch.stack(every)
    return {"out.boxes": out[..., :4], "out.objects": out[..., 4], "out.logits": out[..., 5:], **found}


def case_of(name, variant, pictures, classes=3):
    text = darknet.cfg_text(CFG[variant], pictures[0][:2], 8, classes)
    shapes = darknet.shapes_of(text)
    found = outputs(text, shapes, pictures, classes)
    exact = [key for key in found if key.startswith("results") and not key.endswith("labels")]
    return {
        "name": name, "format": "darknet", "variant": variant, "state": shapes, "pictures": pictures, "outputs": found,
        "config": {"classes": classes, "width": 4, "neck": 128, "passthrough": 8},
        "tolerance": dict.fromkeys(exact, 1e-6), "why": WHY,
    }  # fmt: skip


def tiny():
    return [
        case_of("coco", "416", [[96, 64, 1], [96, 64, 2]]),
        case_of("voc", "416-voc", [[64, 128, 3]]),
    ]


def manifests():
    return {"darknet": {variant: darknet.shapes_of(darknet.cfg_text(cfg)) for variant, cfg in CFG.items()}}


def parameters():
    return {variant: darknet.numbers(darknet.shapes_of(darknet.cfg_text(cfg))) for variant, cfg in CFG.items()}


def full():
    pictures = [[224, 160, 1]]
    text = darknet.cfg_text("yolov2", pictures[0][:2])
    shapes = darknet.shapes_of(text)
    yield {"name": "yolov2 416", "format": "darknet", "variant": "416", "state": shapes, "pictures": pictures,
           "outputs": outputs(text, shapes, pictures, 80, torch.float32, boxes=False)}  # fmt: skip

"""YOLO as the authors' darknet runs it; how to build the program: see darknet.py."""

import re

import darknet
import torch

from opticus.models.detection.yolov1 import PREPARE, VARIANTS
from opticus.parity.case import network_input

PAPER = "yolov1"
CFG = {"448": "yolov1", "448-paper": "yolov1", "tiny-448": "yolov1-tiny"}
WHY = "boxes and scores of results are float32"
LOCAL = "[local]\nsize=3\nstride=1\npad=1\nfilters={}\nactivation=leaky"


def reference():
    return darknet.reference()


def cfg_text(variant, shrink=1, size=448, classes=20):
    """The authors' cfg; "448-paper" has the paper's connected layer and two boxes in the place of the local layer and three."""
    config = VARIANTS[variant]
    paper = variant == "448-paper"
    hidden = f"[connected]\noutput={4096 // shrink}\nactivation=leaky"
    swaps = [(LOCAL.format(256 // shrink), hidden)] if paper else []
    text = darknet.cfg_text(CFG[variant], (size, size), shrink, classes, swaps)
    answers = (size // 64) ** 2 * (classes + 5 * config.boxes)
    text = re.sub(r"(?m)^output= \d+", f"output= {answers}", text)
    text = re.sub(r"(?m)^side=\d+", f"side={size // 64}", text)
    return re.sub(r"(?m)^num=\d+", f"num={config.boxes}", text)


def outputs(text, shapes, pictures, boxes, classes, dtype=torch.float64, results=True):
    pixels, _ = network_input(pictures, PREPARE, dtype)
    cells = (pixels.shape[2] // 64) ** 2
    every, found = [], {}
    for i, picture in enumerate(pixels):
        (array,), kept = darknet.run(text, shapes, picture, 0.001, 0.5)
        every.append(array)
        if results:
            found |= {f"results.{i}.{key}": value for key, value in darknet.results(kept, picture.shape[1:]).items()}
    first, second, third = torch.stack(every).split([cells * classes, cells * boxes, cells * boxes * 4], 1)
    return {
        "out.classes": first.reshape(-1, cells, classes),
        "out.objects": second.reshape(-1, cells, boxes),
        "out.boxes": third.reshape(-1, cells, boxes, 4),
        **found,
    }


def thin(config, shrink):
    """The body with all widths divided."""
    return [[filters // shrink, size, stride] for filters, size, stride in config.body]


def case_of(name, variant, pictures, shrink, classes=3):
    config, size = VARIANTS[variant], pictures[0][0]
    text = cfg_text(variant, shrink, size, classes)
    shapes = darknet.shapes_of(text)
    found = outputs(text, shapes, pictures, config.boxes, classes)
    exact = [key for key in found if key.startswith("results") and not key.endswith("labels")]
    return {
        "name": name, "format": "darknet", "variant": variant, "state": shapes, "pictures": pictures, "outputs": found,
        "config": {"classes": classes, "size": size, "grid": size // 64, "body": thin(config, shrink),
                   "local": config.local // shrink, "hidden": config.hidden // shrink},
        "tolerance": dict.fromkeys(exact, 1e-6), "why": WHY,
    }  # fmt: skip


def tiny():
    return [
        case_of("local", "448", [[192, 192, 1], [192, 192, 2]], 16),
        case_of("connected", "448-paper", [[128, 128, 3]], 16),
        case_of("small", "tiny-448", [[128, 128, 4]], 8),
    ]


def manifests():
    return {"darknet": {variant: darknet.shapes_of(cfg_text(variant)) for variant in CFG}}


def parameters():
    return {variant: darknet.numbers(darknet.shapes_of(cfg_text(variant))) for variant in CFG}


def full():
    pictures = [[448, 448, 1]]
    text = cfg_text("tiny-448")
    shapes = darknet.shapes_of(text)
    yield {"name": "yolov1 tiny-448", "format": "darknet", "variant": "tiny-448", "state": shapes, "pictures": pictures,
           "outputs": outputs(text, shapes, pictures, 2, 20, torch.float32, results=False)}  # fmt: skip

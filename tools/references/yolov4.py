"""YOLOv4 as in Tianxiaomo/pytorch-YOLOv4 (Apache-2.0), which builds the network of a darknet cfg.

Not a pip package: set OPTICUS_REFERENCES to a folder that holds a clone of github.com/Tianxiaomo/pytorch-YOLOv4 as `pytorch-YOLOv4`.
Its cfg/yolov4.cfg is the authors' (AlexeyAB/darknet, public domain). The networks here are that cfg, small ones with all widths divided.
"""

import os
import re
import tempfile
from pathlib import Path

import torch
from clones import clone

from opticus.models.detection.yolov4 import PREPARE
from opticus.ops.twins.boxes import iou
from opticus.parity.case import network_input
from opticus.parity.fill import fill_module

with clone("pytorch-YOLOv4"):
    from tool.darknet2pytorch import Darknet

    from models import Yolov4

PAPER = "yolov4"


def reference():
    return {
        "repository": "https://github.com/Tianxiaomo/pytorch-YOLOv4",
        "commit": "a65d219f9066bae4e12003bd7cdc04531860c672",
        "license": "Apache-2.0",
        "kind": "repository",
    }


def network(shrink=1, classes=80):
    """The authors' cfg with all widths but the answers' divided by `shrink`, and other classes."""
    text = (Path(os.environ["OPTICUS_REFERENCES"]) / "pytorch-YOLOv4" / "cfg" / "yolov4.cfg").read_text()
    text = re.sub(r"(?m)^filters=(\d+)", lambda m: f"filters={3 * (5 + classes) if m[1] == '255' else int(m[1]) // shrink}", text)
    text = re.sub(r"(?m)^classes=80", f"classes={classes}", text)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "yolov4.cfg"
        path.write_text(text)
        return Darknet(str(path))


def layer(key):
    """The reference's key as the place in a .weights file: its layer, its array."""
    return re.sub(r"models\.(\d+)\.(conv|bn)\d+\.", r"\1.\2.", key)


def port_names(model):
    """The key -> the key in the same repository's other file of this network, models.py, whose tensors come in the same order."""
    with torch.device("meta"):
        other = Yolov4(n_classes=80).state_dict()
    return dict(zip(model.state_dict(), other, strict=True))


def named(state):
    """Without the counters of batches, which a .weights file does not have."""
    return {key: shape for key, shape in state.items() if not key.endswith("num_batches_tracked")}


def rows(levels, classes):
    """Maps (B, 3 (5 + K), h, w) as the port's rows: rows, columns, anchors of a cell."""
    found = [x.unflatten(1, (3, 5 + classes)).permute(0, 3, 4, 1, 2).flatten(1, 3) for x in levels]
    every = torch.cat(found, 1)
    return {"out.boxes": every[..., :4], "out.objects": every[..., 4], "out.logits": every[..., 5:]}


@torch.no_grad()
def run(model, pixels):
    """Raw maps of the three levels, and the reference's own boxes (fractions of the picture) and scores."""
    levels = []
    hooks = [
        m.register_forward_pre_hook(lambda _, x: levels.append(x[0].clone()))
        for m in model.models
        if type(m).__name__ == "YoloLayer"
    ]
    boxes, scores = model(pixels)
    for hook in hooks:
        hook.remove()
    return levels, boxes[:, :, 0], scores


def detections(boxes, scores, size):
    """The reference's decoded boxes above 0.001, suppressed one by one per class at IoU 0.6, the best 300 cut to the picture."""
    height, width = size
    order = [(float(score), n, label) for n, row in enumerate(scores) for label, score in enumerate(row) if score > 0.001]
    order.sort(key=lambda row: -row[0])
    kept = []
    for score, n, label in order[:5000]:
        x1, y1, x2, y2 = boxes[n].tolist()
        box = [x1 * width, y1 * height, x2 * width, y2 * height]
        if not any(label == k[1] and iou(k[2], box) > 0.6 for k in kept):
            kept.append((score, label, box))
    inner = [(s, l, [max(b[0], 0.0), max(b[1], 0.0), min(b[2], width), min(b[3], height)]) for s, l, b in kept[:300]]
    return [row for row in inner if row[2][2] > row[2][0] and row[2][3] > row[2][1]]


def small(name, layout, rename, pictures, results=False):
    classes, model = 4, network(8, 4).double().eval()
    state = fill_module(model, rename(model))
    pixels, _ = network_input(pictures, PREPARE)
    levels, boxes, scores = run(model, pixels)
    outputs = rows(levels, classes)
    case = {"name": name, "format": layout, "variant": "608", "config": {"classes": classes, "widths": [4, 8, 16, 32, 64, 128]}, "pictures": pictures,
            "state": named(state) if layout == "darknet" else state}  # fmt: skip
    if results:
        for i in range(len(pictures)):
            found = detections(boxes[i], scores[i], pictures[i][:2])
            outputs[f"results.{i}.boxes"] = torch.tensor([row[2] for row in found], dtype=torch.float64)
            outputs[f"results.{i}.labels"] = torch.tensor([row[1] for row in found])
            outputs[f"results.{i}.scores"] = torch.tensor([row[0] for row in found], dtype=torch.float64)
        exact = [key for key in outputs if key.startswith("results") and not key.endswith("labels")]
        case |= {"tolerance": dict.fromkeys(exact, 1e-6), "why": "boxes and scores of results are float32"}
    return case | {"outputs": outputs}


def tiny():
    return [
        small("darknet", "darknet", lambda model: layer, [[64, 96, 1], [64, 96, 2]], True),
        small("port", "tianxiaomo", lambda model: port_names(model).__getitem__, [[96, 64, 3]]),
    ]


def manifests():
    with torch.device("meta"):
        model = network()
        state = {key: tuple(value.shape) for key, value in model.state_dict().items()}
        port = {key: tuple(value.shape) for key, value in Yolov4(n_classes=80).state_dict().items()}
    return {"darknet": {"608": named({layer(key): shape for key, shape in state.items()})}, "tianxiaomo": {"608": port}}


def parameters():
    with torch.device("meta"):
        return {"608": sum(p.numel() for p in network().parameters())}


def full():
    pictures = [[224, 160, 1]]
    model = network().eval()
    pixels, _ = network_input(pictures, PREPARE, torch.float32)
    state = fill_module(model, layer)
    yield {"name": "yolov4 608", "format": "darknet", "variant": "608", "state": named(state), "pictures": pictures,
           "outputs": rows(run(model, pixels)[0], 80)}  # fmt: skip
    other = Yolov4(n_classes=80).eval()
    state = fill_module(other)
    with torch.no_grad():
        levels = other(pixels)
    yield {"name": "yolov4 608 port", "format": "tianxiaomo", "variant": "608", "state": state, "pictures": pictures,
           "outputs": rows(levels, 80)}  # fmt: skip

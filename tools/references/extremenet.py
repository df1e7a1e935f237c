"""ExtremeNet as in the authors' repository (BSD-3-Clause): their network, their decoding; soft-NMS and ghosts written out.

Not a pip package: set OPTICUS_REFERENCES to a folder that holds a clone of github.com/xingyizhou/ExtremeNet as `ExtremeNet`.
"""

import math

import torch
from corner_pools import extremenet

from opticus.models.detection.extremenet import PREPARE
from opticus.parity.case import network_input
from opticus.parity.fill import fill_module

exkp, Full, utils, decoder = extremenet()

PAPER = "extremenet"
NAMES = ("top", "left", "bottom", "right", "centre", "top_offset", "left_offset", "bottom_offset", "right_offset")


def reference():
    return {
        "repository": "https://github.com/xingyizhou/ExtremeNet",
        "commit": "e3b12f3237e91735ae50d8ac19453db76837b8d0",
        "license": "BSD-3-Clause",
        "kind": "repository",
    }


def published(key):
    return f"module.{key}"


def shrunk(widths, depths, stacks, classes):
    """The authors' network with other numbers; its stem is written out, since theirs has fixed widths."""
    pre = torch.nn.Sequential(utils.convolution(7, 3, 8, stride=2), utils.residual(3, 8, widths[0], stride=2))
    layers = Full.__init__.__globals__
    return exkp(
        len(widths) - 1, stacks, widths, depths, classes, pre=pre, cnv_dim=16,
        **{name: layers[name] for name in ("make_pool_layer", "make_hg_layer")},
    )  # fmt: skip


def raw(model, pixels):
    """The nine maps that the authors' forward pass hands to their decoder."""
    model._decode = lambda *maps, **_: [x.clone() for x in maps]
    return {f"out.{name}": x for name, x in zip(NAMES, model(pixels, debug=False))}


def softened(rows):
    """(x1, y1, x2, y2, score) of one class: the best is taken, the others are multiplied by exp(-IoU^2 / 0.5), 0.001 is the end."""
    left, done = [list(row) for row in rows], []
    while left:
        best = left.pop(max(range(len(left)), key=lambda i: left[i][4]))
        done.append(best)
        for row in left:
            width, height = min(best[2], row[2]) - max(best[0], row[0]), min(best[3], row[3]) - max(best[1], row[1])
            if width > 0 and height > 0:
                areas = [(r[2] - r[0]) * (r[3] - r[1]) for r in (best, row)]
                row[4] *= math.exp(-((width * height / (sum(areas) - width * height)) ** 2) / 0.5)
        left = [row for row in left if row[4] >= 0.001]
    return done


def results(detections, cell, size):
    """The authors' detections of one picture: pixels, cut to the picture, softened per class, 100, ghosts halved."""
    rows = []
    for row in detections.tolist():
        box = [min(max(v * cell[i % 2], 0), size[i % 2]) for i, v in enumerate(row[:4])]
        if row[4] > 0 and box[2] > box[0] and box[3] > box[1]:
            rows.append((row[-1], [*box, row[4]]))
    kept = [(row, label) for label in sorted({label for label, _ in rows}) for row in softened(r for c, r in rows if c == label)]
    kept = sorted(kept, key=lambda item: -item[0][4])[:100]
    final = []
    for box, label in kept:
        inside = [
            other[4] for other, its in kept
            if its == label and other[0] >= box[0] and other[1] >= box[1] and other[2] <= box[2] and other[3] <= box[3]
        ]  # fmt: skip
        ghost = box[4] > 0.2 and sum(inside) > 3 * box[4]
        final.append(([*box[:4], box[4] / 2 if ghost else box[4]], label))
    final.sort(key=lambda item: -item[0][4])
    boxes = torch.tensor([row for row, _ in final], dtype=torch.float64)
    return {"boxes": boxes[:, :4], "scores": boxes[:, 4], "labels": torch.tensor([int(label) for _, label in final])}


@torch.no_grad()
def tiny():
    cases = []
    for name, depths, stacks, pictures in (
        ("two-stacks", [1, 1, 2], 2, [[64, 96, 1], [64, 96, 2]]),
        ("padded", [2, 1], 1, [[64, 64, 3], [48, 96, 4]]),
    ):
        widths = [12, 16, 20][: len(depths)]
        model = shrunk(widths, depths, stacks, 3).double().eval()
        state = fill_module(model, published)
        pixels, valid = network_input(pictures, PREPARE)
        outputs = raw(model, pixels)
        trunk = {"part": "hourglass/104", "changes": {"classes": 0, "stacks": stacks, "widths": widths, "depths": depths,
                                                      "width": 16, "stem": 8}}  # fmt: skip
        case = {"name": name, "format": "xingyizhou", "variant": "hourglass104", "state": state, "pictures": pictures,
                "config": {"classes": 3, "head": widths[0], "edge": 0.01, "backbone": trunk}}  # fmt: skip
        if valid is None:  # the authors decode pictures without padding
            height, width = (n // 4 for n in pictures[0][:2])
            cell = ((4 * width - 1) / width, (4 * height - 1) / height)  # they see inputs as one pixel smaller
            # a weak edge: sums that are cut at 1 would tie, and ties have no order
            for i, rows in enumerate(decoder(*(x.clone() for x in outputs.values()), K=40, num_dets=1000, aggr_weight=0.01)):
                found = results(rows, cell, pictures[i][1::-1])
                outputs |= {f"results.{i}.{key}": value for key, value in found.items()}
            exact = [key for key in outputs if key.endswith(("boxes", "scores")) and key.startswith("results")]
            case |= {"tolerance": dict.fromkeys(exact, 1e-6), "why": "boxes and scores of results are float32"}
        cases.append(case | {"outputs": outputs})
    return cases


def manifests():
    with torch.device("meta"):
        state = Full(None).state_dict()
    return {"xingyizhou": {"hourglass104": {published(key): tuple(tensor.shape) for key, tensor in state.items()}}}


def parameters():
    with torch.device("meta"):
        return {"hourglass104": sum(p.numel() for p in Full(None).parameters())}


@torch.no_grad()
def full():
    pictures = [[128, 256, 1]]
    model = Full(None).eval()
    state = fill_module(model, published)
    pixels, _ = network_input(pictures, PREPARE, torch.float32)
    yield {"name": "ExtremeNet", "format": "xingyizhou", "variant": "hourglass104", "state": state,
           "pictures": pictures, "outputs": raw(model, pixels)}  # fmt: skip

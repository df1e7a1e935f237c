"""CenterNet as in the authors' repository (MIT): their plain ResNets and their decoding.

Not a pip package: set OPTICUS_REFERENCES to a folder that holds a clone of github.com/xingyizhou/CenterNet as `CenterNet`.
"""

import torch
from clones import clone

from opticus.models.detection.centernet import PREPARE
from opticus.parity.case import network_input
from opticus.parity.fill import fill_module

with clone("CenterNet/src/lib"):
    from models.decode import ctdet_decode
    from models.networks.msra_resnet import PoseResNet, resnet_spec

PAPER = "centernet"
HEADS = {"hm": 80, "wh": 2, "reg": 2}
WIDTH = 64  # of the heads' hidden layers: the default of the authors' options for everything but DLA


def reference():
    return {
        "repository": "https://github.com/xingyizhou/CenterNet",
        "commit": "4c50fd3a46bdf63dbf2082c5cbb3458d39579e6c",
        "license": "MIT",
        "kind": "repository",
    }


def raw(model, pixels):
    out = model(pixels)[0]
    return {"out.heat": out["hm"], "out.sizes": out["wh"], "out.offsets": out["reg"]}


def decoded(out, pictures):
    """The authors' top 100 in pixels; then, as the port does, cut to the picture, and without boxes of no area and non-peaks."""
    found = {}
    for i, rows in enumerate(ctdet_decode(out["out.heat"].sigmoid(), out["out.sizes"], out["out.offsets"], K=100)):
        boxes, scores, labels = rows[:, :4] * 4, rows[:, 4], rows[:, 5].long()
        height, width = pictures[i][:2]
        boxes = boxes.clamp(min=0).minimum(boxes.new_tensor([width, height, width, height]))
        keep = (boxes[:, 2:] > boxes[:, :2]).all(1) & (scores > 0)
        found |= {f"results.{i}.boxes": boxes[keep], f"results.{i}.scores": scores[keep], f"results.{i}.labels": labels[keep]}
    return found


@torch.no_grad()
def tiny():
    changes = {"classes": 0, "layers": [1, 1, 1, 1]}
    cases = []
    for name, depth, pictures in (("basic", 18, [[96, 128, 1], [96, 128, 2]]), ("bottleneck", 50, [[64, 96, 3], [96, 64, 4]])):
        model = PoseResNet(resnet_spec[depth][0], [1, 1, 1, 1], {**HEADS, "hm": 5}, head_conv=WIDTH).double().eval()
        state = fill_module(model)
        pixels, valid = network_input(pictures, PREPARE)
        outputs = raw(model, pixels)
        case = {"name": name, "format": "xingyizhou", "variant": "resnet18", "state": state, "pictures": pictures,
                "config": {"classes": 5, "backbone": {"part": f"resnet/{depth}", "changes": changes}}}  # fmt: skip
        if valid is None:  # the authors decode one picture at a time, without padding
            boxes = decoded(outputs, pictures)
            exact = [key for key in boxes if not key.endswith("labels")]
            case |= {"tolerance": dict.fromkeys(exact, 1e-6), "why": "boxes and scores of results are float32"}
            outputs |= boxes
        cases.append(case | {"outputs": outputs})
    return cases


def full_size(variant):
    block, layers = resnet_spec[int(variant.removeprefix("resnet"))]
    return PoseResNet(block, layers, HEADS, head_conv=WIDTH)


def manifests():
    with torch.device("meta"):
        rows = {v: full_size(v).state_dict() for v in ("resnet18", "resnet101")}
    return {"xingyizhou": {v: {key: tuple(tensor.shape) for key, tensor in state.items()} for v, state in rows.items()}}


def parameters():
    with torch.device("meta"):
        return {v: sum(p.numel() for p in full_size(v).parameters()) for v in ("resnet18", "resnet101")}


@torch.no_grad()
def full():
    pictures = [[256, 320, 1]]
    model = full_size("resnet101").eval()
    state = fill_module(model)
    pixels, _ = network_input(pictures, PREPARE, torch.float32)
    yield {"name": "res_101", "format": "xingyizhou", "variant": "resnet101", "state": state,
           "pictures": pictures, "outputs": raw(model, pixels)}  # fmt: skip

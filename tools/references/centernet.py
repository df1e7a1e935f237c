"""CenterNet as in the authors' repository (MIT): their ResNets, DLA-34 and hourglass, and their decoding.

Not a pip package: set OPTICUS_REFERENCES to a folder that holds a clone of github.com/xingyizhou/CenterNet as `CenterNet`.
"""

import torch
from clones import clone
from deformable import networks

from opticus.models.detection.centernet import PREPARE
from opticus.parity.case import network_input
from opticus.parity.fill import fill_module

with clone("CenterNet/src/lib"):
    from models.decode import ctdet_decode
    from models.networks.msra_resnet import PoseResNet, resnet_spec

pose_dla_dcn, resnet_dcn, large_hourglass = networks()

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
    out = model(pixels)[-1]  # of stacks the last
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
    for name, variant, model, config, pictures in others():
        state = fill_module(model.double().eval(), published(variant))
        pixels, _ = network_input(pictures, PREPARE)
        cases.append({"name": name, "format": "xingyizhou", "variant": variant, "state": state, "pictures": pictures,
                      "config": {"classes": 5, **config}, "outputs": raw(model, pixels)})  # fmt: skip
    return cases


def published(variant):
    """DLA's checkpoints were tested with their wrapper's prefix; keys with and without it are read."""
    return (lambda key: f"module.{key}") if variant == "dla34" else str


def others():
    """The authors' other networks with small numbers: name, variant, model, configuration of the port, pictures."""
    heads, pictures = {**HEADS, "hm": 5}, [[64, 96, 1], [64, 96, 2]]
    layers = [1, 1, 1, 1]
    resnet = {"part": "resnet/18", "changes": {"classes": 0, "layers": layers}}
    yield (
        "deformable",
        "resdcn18",
        resnet_dcn.PoseResNet(resnet_dcn.BasicBlock, layers, heads, WIDTH),
        {"backbone": resnet},
        pictures,
    )
    widths = [4, 8, 16, 24, 32, 40]
    dla = {"part": "dla/34", "changes": {"classes": 0, "widths": widths}}
    yield "aggregation", "dla34", dla34(widths, heads, 20), {"head": 20, "backbone": dla}, pictures
    yield "two stacks", "hourglass", small_hourglass(heads), {"head": 12, "backbone": HOURGLASS}, pictures


def dla34(widths, heads, head):
    """The authors' network on a DLA of other widths, with the classifier that their loader leaves in it."""

    def base(pretrained):
        made = pose_dla_dcn.DLA([1, 1, 1, 2, 2, 1], list(widths), block=pose_dla_dcn.BasicBlock)
        made.fc = torch.nn.Conv2d(widths[-1], 1000, 1)
        return made

    pose_dla_dcn.base = base
    return pose_dla_dcn.DLASeg("base", heads, False, down_ratio=4, final_kernel=1, last_level=5, head_conv=head)


HOURGLASS = {"part": "hourglass/104",
             "changes": {"classes": 0, "widths": [12, 16], "depths": [1, 2], "width": 16, "stem": 8}}  # fmt: skip


def small_hourglass(heads):
    made = large_hourglass
    pre = torch.nn.Sequential(made.convolution(7, 3, 8, stride=2), made.residual(3, 8, 12, stride=2))
    return made.exkp(1, 2, [12, 16], [1, 2], heads, pre=pre, cnv_dim=16, make_pool_layer=made.make_pool_layer,
                     make_hg_layer=made.make_hg_layer, kp_layer=made.residual)  # fmt: skip


VARIANTS = ("resnet18", "resnet101", "resdcn18", "resdcn101", "dla34", "hourglass")


def full_size(variant):
    if variant == "hourglass":
        return large_hourglass.HourglassNet(HEADS, 2)
    if variant == "dla34":
        return dla34([16, 32, 64, 128, 256, 512], HEADS, 256)
    block, layers = resnet_spec[int(variant.lstrip("resntdc"))]
    if variant.startswith("resdcn"):
        return resnet_dcn.PoseResNet(*resnet_dcn.resnet_spec[int(variant.lstrip("resntdc"))], HEADS, head_conv=WIDTH)
    return PoseResNet(block, layers, HEADS, head_conv=WIDTH)


def manifests():
    with torch.device("meta"):
        rows = {v: (full_size(v).state_dict(), published(v)) for v in VARIANTS}
    return {
        "xingyizhou": {v: {name(key): tuple(tensor.shape) for key, tensor in state.items()} for v, (state, name) in rows.items()}
    }


def parameters():
    """Of DLA-34 without its classifier and the projections that no forward pass uses."""
    unused = ("base.fc.", "base.level3.project.", "base.level4.project.")
    with torch.device("meta"):
        return {v: sum(p.numel() for k, p in full_size(v).named_parameters() if not k.startswith(unused)) for v in VARIANTS}


@torch.no_grad()
def full():
    for name, variant, pictures in (("res_101", "resnet101", [[256, 320, 1]]), ("resdcn_18", "resdcn18", [[128, 192, 2]]),
                                    ("dla_34", "dla34", [[128, 192, 3]]), ("hourglass", "hourglass", [[128, 128, 4]])):  # fmt: skip
        model = full_size(variant).eval()
        state = fill_module(model, published(variant))
        pixels, _ = network_input(pictures, PREPARE, torch.float32)
        yield {"name": name, "format": "xingyizhou", "variant": variant, "state": state,
               "pictures": pictures, "outputs": raw(model, pixels)}  # fmt: skip

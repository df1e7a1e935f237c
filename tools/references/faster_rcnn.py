"""Faster R-CNN over a feature pyramid as in torchvision (BSD-3-Clause): fasterrcnn_resnet50_fpn as its published weights are run."""

import torchvision_shim  # noqa: F401  (before anything that imports torchvision)

# isort: split
import torch
import torchvision
from torchvision.models.detection._utils import overwrite_eps
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.backbone_utils import _resnet_fpn_extractor
from torchvision.models.detection.faster_rcnn import FasterRCNN
from torchvision.models.detection.image_list import ImageList
from torchvision.models.resnet import BasicBlock, Bottleneck, ResNet
from torchvision.ops.misc import FrozenBatchNorm2d

from opticus.models.detection.faster_rcnn import PREPARE
from opticus.parity.case import network_input
from opticus.parity.fill import fill_module

PAPER = "faster_rcnn"
WHY = "boxes and scores of results are float32"


def reference():
    return {
        "repository": "https://github.com/pytorch/vision",
        "version": f"torchvision {torchvision.__version__.split('+')[0]}",
        "license": "BSD-3-Clause",
        "kind": "package",
    }


def network(block, layers, classes, **options):
    body = _resnet_fpn_extractor(ResNet(block, layers, norm_layer=FrozenBatchNorm2d), 5)
    anchors = AnchorGenerator(((32,), (64,), (128,), (256,), (512,)), ((0.5, 1.0, 2.0),) * 5)
    model = FasterRCNN(body, classes, rpn_anchor_generator=anchors, **options)
    overwrite_eps(model, 0.0)
    return model


@torch.no_grad()
def run(model, pictures, dtype=torch.float64):
    pixels, _ = network_input(pictures, PREPARE, dtype)
    sizes = [tuple(p[:2]) for p in pictures]
    features = model.backbone(pixels)
    objectness, shifts = model.rpn.head(list(features.values()))
    flat = [x.permute(0, 2, 3, 1).flatten(1) for x in objectness]
    moved = [x.permute(0, 2, 3, 1).reshape(len(x), -1, 4) for x in shifts]
    found = {"out.objectness": torch.cat(flat, 1), "out.shifts": torch.cat(moved, 1)}
    proposals, _ = model.rpn(ImageList(pixels, sizes), features)
    regions = model.roi_heads.box_roi_pool(features, proposals, sizes)
    logits, deltas = model.roi_heads.box_predictor(model.roi_heads.box_head(regions))
    found |= {"out.proposals": torch.cat(proposals), "out.logits": logits, "out.deltas": deltas.unflatten(1, (-1, 4))}
    rows, _ = model.roi_heads(features, proposals, sizes)
    for i, row in enumerate(rows):
        found |= {
            f"results.{i}.boxes": row["boxes"],
            f"results.{i}.scores": row["scores"],
            f"results.{i}.labels": row["labels"] - 1,
        }
    return found


def case_of(name, pictures, block, backbone, **options):
    model = network(block, [1, 1, 1, 1], 6, **options).double().eval()
    state = fill_module(model)
    outputs = run(model, pictures)
    exact = [key for key in outputs if key.startswith("results") and not key.endswith("labels")]
    return {
        "name": name, "format": "torchvision", "variant": "r50", "state": state, "pictures": pictures, "outputs": outputs,
        "config": {"classes": 5, "backbone": {"part": backbone, "changes": {"classes": 0, "norm": "frozen", "norm_eps": 0.0,
                                                                             "layers": [1, 1, 1, 1]}},
                   "hidden": 1024, "proposals": [60, 30]},
        "tolerance": dict.fromkeys(exact, 1e-6), "why": WHY,
    }  # fmt: skip


FEW = {"rpn_pre_nms_top_n_test": 30, "rpn_post_nms_top_n_test": 30}


def tiny():
    return [
        case_of("padded batch", [[97, 130, 1], [140, 66, 2]], BasicBlock, "resnet/18", **FEW),
        case_of("bottlenecks", [[128, 96, 3]], Bottleneck, "resnet/50", **FEW),
    ]


def full_size(variant):
    return network(Bottleneck, [3, 4, 6, 3], 91)


def shapes(variant, rename=str):
    with torch.device("meta"):
        return {rename(key): tuple(tensor.shape) for key, tensor in full_size(variant).state_dict().items()}


def manifests():
    return {"torchvision": {"r50": shapes("r50")}}


def parameters():
    with torch.device("meta"):
        return {"r50": sum(p.numel() for p in full_size("r50").parameters())}


def full():
    pictures = [[320, 416, 1], [288, 320, 2]]
    model = full_size("r50").eval()
    state = fill_module(model)
    outputs = run(model, pictures, dtype=torch.float32)
    yield {"name": "faster_rcnn r50", "format": "torchvision", "variant": "r50", "state": state, "pictures": pictures,
           "outputs": {key: value for key, value in outputs.items() if key in ("out.objectness", "out.shifts")}}  # fmt: skip

"""Faster R-CNN over a feature pyramid: torchvision's two (BSD-3-Clause) as their published weights are run, and Detectron2's."""

import detectron2_shim as d2
import torchvision_shim  # noqa: F401  (before anything that imports torchvision)

# isort: split
from dataclasses import replace

import numpy as np
import torch
import torchvision
from torch import nn
from torchvision.models.detection._utils import overwrite_eps
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.backbone_utils import _resnet_fpn_extractor
from torchvision.models.detection.faster_rcnn import FasterRCNN, FastRCNNConvFCHead
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.rpn import RPNHead
from torchvision.models.resnet import BasicBlock, Bottleneck, ResNet
from torchvision.ops.misc import FrozenBatchNorm2d

from opticus.models.detection.faster_rcnn import CAFFE, PREPARE
from opticus.parity.case import network_input
from opticus.parity.fill import fill_module, picture

PAPER = "faster_rcnn"
WHY = "boxes and scores of results are float32"


def reference():
    return {
        "repository": "https://github.com/pytorch/vision",
        "version": f"torchvision {torchvision.__version__.split('+')[0]}; for the format detectron2 "
        f"facebookresearch/detectron2 (Apache-2.0) at {d2.reference()['commit']}",
        "license": "BSD-3-Clause",
        "kind": "package",
    }


def anchors():
    return AnchorGenerator(((32,), (64,), (128,), (256,), (512,)), ((0.5, 1.0, 2.0),) * 5)


def network(block, layers, classes, **options):
    body = _resnet_fpn_extractor(ResNet(block, layers, norm_layer=FrozenBatchNorm2d), 5)
    model = FasterRCNN(body, classes, rpn_anchor_generator=anchors(), **options)
    overwrite_eps(model, 0.0)
    return model


def network_v2(block, layers, classes, **options):
    body = _resnet_fpn_extractor(ResNet(block, layers), 5, norm_layer=nn.BatchNorm2d)
    head = FastRCNNConvFCHead((256, 7, 7), [256] * 4, [1024], norm_layer=nn.BatchNorm2d)
    return FasterRCNN(
        body, classes, rpn_anchor_generator=anchors(), rpn_head=RPNHead(256, 3, conv_depth=2), box_head=head, **options
    )


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


def case_of(name, pictures, block, backbone, make=network, **options):
    model = make(block, [1, 1, 1, 1], 6, **options).double().eval()
    state = fill_module(model)
    outputs = run(model, pictures)
    form, variant, norm = ("torchvision", "r50", {"norm": "frozen", "norm_eps": 0.0})
    if make is network_v2:
        form, variant, norm = ("torchvision-v2", "r50-v2", {})
    return {
        "name": name, "format": form, "variant": variant, "state": state, "pictures": pictures, "outputs": outputs,
        "config": {"classes": 5, "backbone": {"part": backbone, "changes": {"classes": 0, "layers": [1, 1, 1, 1], **norm}},
                   "hidden": 1024, "proposals": [60, 30]},
        "tolerance": rounded(outputs), "why": WHY,
    }  # fmt: skip


def rounded(outputs):
    return {key: 1e-6 for key in outputs if key.startswith("results") and not key.endswith("labels")}


# --- Detectron2 ----------------------------------------------------------------------------------------------------------

FPN = "COCO-Detection/faster_rcnn_R_50_FPN_3x"
BGR = {"scale": 1 / 255, "mean": [0.406, 0.456, 0.485], "std": [0.225, 0.224, 0.229]}  # of unit scale, as the filled weights are
NARROW = {
    "MODEL__RESNETS__WIDTH_PER_GROUP": 16, "MODEL__RESNETS__RES2_OUT_CHANNELS": 64, "MODEL__RESNETS__STEM_OUT_CHANNELS": 16,
    "MODEL__FPN__OUT_CHANNELS": 32, "MODEL__ROI_BOX_HEAD__FC_DIM": 128, "MODEL__ROI_HEADS__NUM_CLASSES": 5,
    "MODEL__RPN__PRE_NMS_TOPK_TEST": 30, "MODEL__RPN__POST_NMS_TOPK_TEST": 30,
}  # fmt: skip


@torch.no_grad()
def run_detectron2(model, pictures, prepare, dtype=torch.float64):
    pixels, _ = network_input(pictures, prepare, dtype)
    features, found, proposals = d2.proposed(model, pixels, [tuple(p[:2]) for p in pictures])
    heads = model.roi_heads
    regions = heads.box_pooler([features[f] for f in heads.box_in_features], [p.proposal_boxes for p in proposals])
    logits, deltas = heads.box_predictor(heads.box_head(regions))
    found |= {"out.logits": d2.background_first(logits), "out.deltas": deltas.unflatten(1, (-1, 4))}
    return found | d2.results(heads(None, features, proposals)[0])


def detectron2_case(pictures):
    model = d2.network(d2.config(FPN, **NARROW)).double()
    state = fill_module(model)
    outputs = run_detectron2(model, pictures, replace(CAFFE, **BGR))
    changes = {"classes": 0, "norm": "frozen", "block": "original", "width": 16}
    return {
        "name": "Detectron2", "format": "detectron2", "variant": "r50-d2", "state": state, "pictures": pictures, "outputs": outputs,
        "config": {"classes": 5, "backbone": {"part": "resnet/50", "changes": changes}, "width": 32, "hidden": 128,
                   "proposals": [60, 30]},
        "prepare": BGR, "tolerance": rounded(outputs), "why": WHY,
    }  # fmt: skip


def prepared_case():
    """Detectron2's reading: BGR, its resize of the shorter side, mean, padding to multiples of 32."""
    pictures, images = [[96, 128, 1], [150, 100, 2], [60, 212, 3]], []
    for height, width, seed in pictures:
        bgr = picture(height, width, seed)[:, :, ::-1]
        small = d2.shorter_side(64, 106).get_transform(bgr).apply_image(np.ascontiguousarray(bgr))
        images.append({"image": torch.as_tensor(small.astype("float32").transpose(2, 0, 1))})
    prepared = d2.network(d2.config(FPN, **NARROW)).preprocess_image(images).tensor
    rule = {key: list(value) if isinstance(value, tuple) else value for key, value in CAFFE.to_json().items()}
    return {
        "name": "Detectron2's preparation", "format": "detectron2", "variant": "r50-d2", "config": {}, "state": {},
        "pictures": pictures, "outputs": {"prepared": prepared.double()}, "prepare": rule | {"size": [64, 106]},
        "tolerance": {"prepared": 0.02}, "why": "resampling works on whole grey levels there",
    }  # fmt: skip


FEW = {"rpn_pre_nms_top_n_test": 30, "rpn_post_nms_top_n_test": 30}


def tiny():
    return [
        case_of("padded batch", [[97, 130, 1], [140, 66, 2]], BasicBlock, "resnet/18", **FEW),
        case_of("bottlenecks", [[128, 96, 3]], Bottleneck, "resnet/50", **FEW),
        case_of("second version", [[97, 130, 1], [140, 66, 2]], BasicBlock, "resnet/18", network_v2, **FEW),
        detectron2_case([[64, 64, 1], [64, 40, 2]]),
        prepared_case(),
    ]


def full_size(variant):
    return (network_v2 if variant == "r50-v2" else network)(Bottleneck, [3, 4, 6, 3], 91)


def shapes(variant):
    with torch.device("meta"):
        return {key: tuple(tensor.shape) for key, tensor in full_size(variant).state_dict().items()}


def manifests():
    return {
        "torchvision": {"r50": shapes("r50")},
        "torchvision-v2": {"r50-v2": shapes("r50-v2")},
        "detectron2": {"r50-d2": d2.shapes(d2.config(FPN))[0], "r101-d2": d2.shapes(d2.config(FPN.replace("50", "101")))[0]},
    }


def parameters():
    with torch.device("meta"):
        found = {variant: sum(p.numel() for p in full_size(variant).parameters()) for variant in ("r50", "r50-v2")}
    return found | {"r50-d2": d2.shapes(d2.config(FPN))[1], "r101-d2": d2.shapes(d2.config(FPN.replace("50", "101")))[1]}


def full():
    pictures = [[320, 416, 1], [288, 320, 2]]
    kept = ("out.objectness", "out.shifts")
    for variant, form in (("r50", "torchvision"), ("r50-v2", "torchvision-v2")):
        model = full_size(variant).eval()
        state = fill_module(model)
        outputs = run(model, pictures, dtype=torch.float32)
        yield {"name": f"faster_rcnn {variant}", "format": form, "variant": variant, "state": state, "pictures": pictures,
               "outputs": {key: outputs[key] for key in kept}}  # fmt: skip
    model = d2.network(d2.config(FPN))
    state = fill_module(model)
    outputs = run_detectron2(model, pictures, replace(CAFFE, **BGR), torch.float32)
    yield {"name": "faster_rcnn r50-d2", "format": "detectron2", "variant": "r50-d2", "state": state, "pictures": pictures,
           "prepare": BGR, "outputs": {key: outputs[key] for key in kept}}  # fmt: skip

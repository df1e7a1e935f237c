"""Faster R-CNN on one map ("C4") as in Detectron2 (Apache-2.0)."""

import detectron2_shim as d2

# isort: split
from dataclasses import replace

import torch

from opticus.models.detection.faster_rcnn_c4 import PREPARE
from opticus.parity.case import network_input
from opticus.parity.fill import fill_module

PAPER, EXTENDS = "faster_rcnn_c4", "faster_rcnn"
PUBLISHED = "COCO-Detection/faster_rcnn_R_50_C4_3x"
BGR = {"scale": 1 / 255, "mean": [0.406, 0.456, 0.485], "std": [0.225, 0.224, 0.229]}  # of unit scale, as the filled weights are
NARROW = {
    "MODEL__RESNETS__WIDTH_PER_GROUP": 8, "MODEL__RESNETS__RES2_OUT_CHANNELS": 32, "MODEL__RESNETS__STEM_OUT_CHANNELS": 8,
    "MODEL__ROI_HEADS__NUM_CLASSES": 5, "MODEL__RPN__PRE_NMS_TOPK_TEST": 60, "MODEL__RPN__POST_NMS_TOPK_TEST": 20,
}  # fmt: skip
WHY = "boxes and scores of results are float32"


def reference():
    return d2.reference()


@torch.no_grad()
def run(model, pictures, dtype=torch.float64):
    pixels, _ = network_input(pictures, replace(PREPARE, **BGR), dtype)
    features, found, proposals = d2.proposed(model, pixels, [tuple(p[:2]) for p in pictures])
    heads = model.roi_heads
    regions = heads._shared_roi_transform([features[f] for f in heads.in_features], [p.proposal_boxes for p in proposals])
    logits, deltas = heads.box_predictor(regions.mean(dim=[2, 3]))
    found |= {"out.logits": d2.background_first(logits), "out.deltas": deltas.unflatten(1, (-1, 4))}
    return found | d2.results(heads(None, features, proposals)[0])


def tiny():
    pictures = [[75, 64, 2], [64, 90, 7]]
    model = d2.network(d2.config(PUBLISHED, **NARROW)).double()
    state = fill_module(model)
    outputs = run(model, pictures)
    changes = {"classes": 0, "norm": "frozen", "block": "original", "width": 8, "layers": [3, 4, 6]}
    exact = [key for key in outputs if key.startswith("results") and not key.endswith("labels")]
    return [
        {"name": "one map", "format": "detectron2", "variant": "r50", "state": state, "pictures": pictures, "outputs": outputs,
         "config": {"classes": 5, "backbone": {"part": "resnet/50", "changes": changes}, "inner": 64, "candidates": [80, 60],
                    "proposals": [30, 20]},
         "prepare": BGR, "tolerance": dict.fromkeys(exact, 1e-6), "why": WHY}
    ]  # fmt: skip


def names():
    return {"r50": PUBLISHED, "r101": PUBLISHED.replace("50", "101")}


def manifests():
    return {"detectron2": {variant: d2.shapes(d2.config(name))[0] for variant, name in names().items()}}


def parameters():
    return {variant: d2.shapes(d2.config(name))[1] for variant, name in names().items()}


def full():
    pictures = [[192, 256, 1]]
    model = d2.network(d2.config(PUBLISHED, MODEL__RPN__PRE_NMS_TOPK_TEST=20, MODEL__RPN__POST_NMS_TOPK_TEST=10))
    state = fill_module(model)
    outputs = run(model, pictures, torch.float32)
    yield {"name": "faster_rcnn_c4 r50", "format": "detectron2", "variant": "r50", "state": state, "pictures": pictures,
           "prepare": BGR, "outputs": {key: outputs[key] for key in ("out.objectness", "out.shifts")}}  # fmt: skip

"""Cascade R-CNN as in Detectron2 (Apache-2.0): its box branch, without the mask head of the published files."""

import detectron2_shim as d2

# isort: split
from dataclasses import replace

import torch

from opticus.models.detection.cascade_rcnn import PREPARE
from opticus.parity.case import network_input
from opticus.parity.fill import fill_module

PAPER, EXTENDS = "cascade_rcnn", "faster_rcnn"
PUBLISHED = "Misc/cascade_mask_rcnn_R_50_FPN_3x"
BGR = {"scale": 1 / 255, "mean": [0.406, 0.456, 0.485], "std": [0.225, 0.224, 0.229]}  # of unit scale, as the filled weights are
NARROW = {
    "MODEL__RESNETS__WIDTH_PER_GROUP": 16, "MODEL__RESNETS__RES2_OUT_CHANNELS": 64, "MODEL__RESNETS__STEM_OUT_CHANNELS": 16,
    "MODEL__FPN__OUT_CHANNELS": 32, "MODEL__ROI_BOX_HEAD__FC_DIM": 128, "MODEL__ROI_HEADS__NUM_CLASSES": 5,
    "MODEL__RPN__PRE_NMS_TOPK_TEST": 30, "MODEL__RPN__POST_NMS_TOPK_TEST": 30,
}  # fmt: skip
WHY = "boxes and scores of results are float32"


def reference():
    return d2.reference()


@torch.no_grad()
def run(model, pictures, dtype=torch.float64):
    pixels, _ = network_input(pictures, replace(PREPARE, **BGR), dtype)
    features, found, proposals = d2.proposed(model, pixels, [tuple(p[:2]) for p in pictures])
    heads = model.roi_heads
    maps, regions = [features[f] for f in heads.box_in_features], proposals
    logits, boxes = [], []
    for k in range(heads.num_cascade_stages):
        predictions = heads._run_stage(maps, regions, k)
        moved = heads.box_predictor[k].predict_boxes(predictions, regions)
        logits.append(d2.background_first(predictions[0]))
        boxes.append(torch.cat(moved))
        regions = heads._create_proposals_from_boxes([b.clone() for b in moved], [p.image_size for p in proposals])
    found |= {"out.logits": torch.stack(logits), "out.boxes": torch.stack(boxes)}
    return found | d2.results(heads(None, features, proposals)[0])


def tiny():
    pictures = [[64, 64, 1], [64, 40, 2]]
    model = d2.network(d2.config(PUBLISHED, MODEL__MASK_ON=False, **NARROW)).double()
    state = fill_module(model)
    outputs = run(model, pictures)
    changes = {"classes": 0, "norm": "frozen", "block": "original", "width": 16}
    exact = [key for key in outputs if key.startswith("results") and not key.endswith("labels")]
    return [
        {"name": "three stages", "format": "detectron2", "variant": "r50", "state": state, "pictures": pictures, "outputs": outputs,
         "config": {"classes": 5, "backbone": {"part": "resnet/50", "changes": changes}, "width": 32, "hidden": 128,
                    "proposals": [60, 30]},
         "prepare": BGR, "tolerance": dict.fromkeys(exact, 1e-6), "why": WHY}
    ]  # fmt: skip


def manifests():
    return {"detectron2": {"r50": d2.shapes(d2.config(PUBLISHED))[0]}}


def parameters():
    return {"r50": d2.shapes(d2.config(PUBLISHED, MODEL__MASK_ON=False))[1]}


def full():
    pictures = [[192, 256, 1]]
    model = d2.network(
        d2.config(PUBLISHED, MODEL__MASK_ON=False, MODEL__RPN__PRE_NMS_TOPK_TEST=20, MODEL__RPN__POST_NMS_TOPK_TEST=20)
    )
    state = fill_module(model)
    outputs = run(model, pictures, torch.float32)
    yield {"name": "cascade_rcnn r50", "format": "detectron2", "variant": "r50", "state": state, "pictures": pictures,
           "prepare": BGR, "outputs": {key: outputs[key] for key in ("out.objectness", "out.shifts")}}  # fmt: skip

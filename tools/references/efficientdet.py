"""EfficientDet as in effdet (Apache-2.0)."""

# ruff: noqa: E402  (torch.jit.script has to be replaced before effdet is imported)

import torchvision_shim  # noqa: F401  (before anything that imports torchvision)

# isort: split
from importlib.metadata import version

import numpy as np
import torch

torch.jit.script = lambda function, *_, **__: function  # effdet compiles functions that call the shim's, which is no use here
# isort: split
from effdet import get_efficientdet_config
from effdet.anchors import Anchors, generate_detections
from effdet.bench import _post_process
from effdet.data.transforms import ResizePad, resolve_fill_color
from effdet.efficientdet import EfficientDet
from PIL import Image

from opticus.parity.case import network_input
from opticus.parity.fill import fill_module, picture
from opticus.structures import Prepare

PAPER = "efficientdet"
WHY = "boxes and scores of results are float32"
NAMES = {**{v: f"tf_efficientdet_{v}" for v in ("d0", "d1", "d2", "d3", "d4", "d5", "d6", "d7", "d7x")},
         "torch_d0": "efficientdet_d0", "torch_d1": "efficientdet_d1"}  # fmt: skip


def reference():
    return {
        "repository": "https://github.com/rwightman/efficientdet-pytorch",
        "version": f"effdet {version('effdet')}",
        "license": "Apache-2.0",
        "kind": "package",
    }


def model_of(variant, **changes):
    config = get_efficientdet_config(NAMES[variant])
    config.update(changes)
    config.num_levels = config.max_level - config.min_level + 1
    return EfficientDet(config, pretrained_backbone=False)


@torch.no_grad()
def run(model, pictures, dtype=torch.float64):
    """Raw answers per anchor and results, labels from 0, boxes without area left out as in the port."""
    pixels, _ = network_input(pictures, Prepare(), dtype)
    config = model.config
    logits, deltas = model(pixels)
    flat = [
        torch.cat([x.permute(0, 2, 3, 1).reshape(len(pixels), -1, n) for x in levels], 1)
        for levels, n in ((logits, config.num_classes), (deltas, 4))
    ]
    found = {"out.logits": flat[0], "out.deltas": flat[1]}
    anchors = Anchors.from_config(config).boxes
    count = min(config.max_detection_points, flat[0][0].numel())
    chosen = _post_process(logits, deltas, config.num_levels, config.num_classes, count)
    for i, (height, width, _) in enumerate(pictures):
        one, size = torch.tensor(1.0), torch.tensor([width, height]).float()
        scores, boxes, indices, classes = (part[i] for part in chosen)
        rows = generate_detections(scores, boxes, anchors, indices, classes, one, size, count)
        rows = rows[(rows[:, 4] > 0) & (rows[:, 2:4] > rows[:, :2]).all(1)][: config.max_det_per_image]
        found |= {f"results.{i}.boxes": rows[:, :4].to(dtype), f"results.{i}.scores": rows[:, 4].to(dtype)}
        found[f"results.{i}.labels"] = rows[:, 5].long() - 1
    return found


def case_of(name, variant, pictures, changes, config):
    size = tuple(max(p[axis] for p in pictures) for axis in (0, 1))
    model = model_of(variant, image_size=size, num_classes=5, fpn_channels=16, fpn_cell_repeats=2, box_class_repeats=2, **changes)
    state = fill_module(model.double().eval())
    outputs = run(model, pictures)
    exact = [key for key in outputs if key.startswith("results") and not key.endswith("labels")]
    return {
        "name": name, "format": "effdet", "variant": variant, "state": state, "pictures": pictures, "outputs": outputs,
        "config": {"classes": 5, "width": 16, "cells": 2, "depth": 2, **config},
        "tolerance": dict.fromkeys(exact, 1e-6), "why": WHY,
    }  # fmt: skip


def prepared():
    """effdet's preparation of square pictures, which need no bars: Pillow's bilinear resize, then mean and deviation of 0..255."""
    shapes, rule = [[90, 90, 5], [140, 140, 6]], Prepare()
    pad = ResizePad(128, "bilinear", resolve_fill_color("mean"))
    pixels = [np.asarray(pad(Image.fromarray(picture(*p)), {})[0]) for p in shapes]
    mean, std = (255 * torch.tensor(v, dtype=torch.float64) for v in (rule.mean, rule.std))
    tensors = (torch.from_numpy(np.stack(pixels)).double() - mean) / std
    return {
        "name": "preparation", "format": "effdet", "variant": "d0", "state": {}, "pictures": shapes,
        "prepare": {"size": [128, 128]}, "outputs": {"prepared": tensors.permute(0, 3, 1, 2)},
        "tolerance": {"prepared": 0.02}, "why": "resampling on uint8 may differ by one grey level",
    }  # fmt: skip


def tiny():
    return [
        case_of("padded batch", "d0", [[128, 192, 1], [100, 150, 2]], {"max_level": 6}, {"levels": 4}),
        case_of("odd maps, plain sums", "d0", [[88, 120, 3]], {"fpn_name": "bifpn_sum"}, {"fusion": "sum"}),
        case_of("torch's padding", "torch_d0", [[72, 96, 4]], {"anchor_scale": 5.0}, {"scale": 5.0}),
        prepared(),
    ]


def manifests():
    with torch.device("meta"):
        return {"effdet": {v: {k: tuple(x.shape) for k, x in model_of(v).state_dict().items()} for v in NAMES}}


def parameters():
    with torch.device("meta"):
        return {v: sum(p.numel() for p in model_of(v).parameters()) for v in NAMES}


def full():
    pictures = [[512, 512, 1]]
    model = model_of("d0").eval()
    state = fill_module(model)
    outputs = run(model, pictures, torch.float32)
    yield {"name": "efficientdet d0", "format": "effdet", "variant": "d0", "state": state, "pictures": pictures,
           "outputs": {key: value for key, value in outputs.items() if key.startswith("out")}}  # fmt: skip

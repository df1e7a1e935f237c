"""SSD300 and SSD512 as in torchvision (BSD-3-Clause): ssd300_vgg16, and its layers for high resolution with the paper's strides."""

import torchvision_shim  # noqa: F401  (before anything that imports torchvision)

# isort: split
import torch
import torchvision
from torch import nn
from torchvision.models.detection.anchor_utils import DefaultBoxGenerator
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.ssd import SSD, SSDHead, _vgg_extractor, ssd300_vgg16
from torchvision.models.detection.transform import GeneralizedRCNNTransform
from torchvision.models.vgg import vgg16

from opticus.models.detection.ssd import PREPARE, VARIANTS, _prepare
from opticus.parity.case import network_input
from opticus.parity.fill import fill_module, picture

PAPER = "ssd"
WHY = "boxes and scores of results are float32"
SMALL = {"backbone": {"part": "vgg/16", "changes": {"classes": 0, "hidden": 0, "width": 4}}, "width": 64, "classes": 4}


def reference():
    return {
        "repository": "https://github.com/pytorch/vision",
        "version": f"torchvision {torchvision.__version__.split('+')[0]}",
        "license": "BSD-3-Clause",
        "kind": "package",
    }


def three_hundred(classes=91):
    return ssd300_vgg16(weights=None, weights_backbone=None, num_classes=classes)


def five_hundred(classes=91):
    """torchvision's layers of SSD512; from conv10_2 on the strides and padding of the paper's maps (8, 4, 2, 1 cells a side)."""
    config = VARIANTS["512"]
    backbone = _vgg_extractor(vgg16(weights=None), True, 5)
    for block in backbone.extra[3:5]:
        block[2].stride, block[2].padding = (2, 2), (1, 1)
    backbone.extra[5][2].padding = (1, 1)
    boxes = DefaultBoxGenerator([list(r) for r in config.ratios], scales=list(config.scales), steps=list(config.steps))
    head = SSDHead([512, 1024, 512, 256, 256, 256, 256], boxes.num_anchors_per_location(), classes)
    rule = _prepare(512)
    return SSD(backbone, boxes, (512, 512), classes, head=head, image_mean=list(rule.mean), image_std=list(rule.std))


def narrowed(model, classes, share=16):
    """The same network with a sixteenth of the channels."""
    backbone = model.backbone
    for module in list(backbone.modules()):
        for name, conv in module.named_children():
            if isinstance(conv, nn.Conv2d):
                source = conv.in_channels if conv.in_channels == 3 else conv.in_channels // share
                changed = nn.Conv2d(source, conv.out_channels // share, conv.kernel_size, conv.stride, conv.padding, conv.dilation)
                setattr(module, name, changed)
    backbone.scale_weight = nn.Parameter(torch.ones(512 // share) * 20)
    widths = [block.in_channels // share for block in model.head.regression_head.module_list]
    model.head = SSDHead(widths, model.anchor_generator.num_anchors_per_location(), classes)
    return model


@torch.no_grad()
def run(model, pictures, side, dtype=torch.float64):
    """Raw answers and results, labels without the background, boxes without area left out as in the port."""
    pixels, _ = network_input(pictures, _prepare(side), dtype)
    sizes = [tuple(p[:2]) for p in pictures]
    features = list(model.backbone(pixels).values())
    out = model.head(features)
    found = {"out.logits": out["cls_logits"], "out.deltas": out["bbox_regression"]}
    count, model.detections_per_img = model.detections_per_img, 10**6
    rows = model.postprocess_detections(out, model.anchor_generator(ImageList(pixels, sizes), features), sizes)
    model.detections_per_img = count
    for i, row in enumerate(rows):
        kept = (row["boxes"][:, 2:] > row["boxes"][:, :2]).all(1).nonzero()[:count, 0]
        found |= {f"results.{i}.{key}": row[key][kept] for key in ("boxes", "scores")}
        found[f"results.{i}.labels"] = row["labels"][kept] - 1
    return found


def case_of(name, model, variant, pictures):
    model = narrowed(model, 5).double().eval()
    state = fill_module(model)
    outputs = run(model, pictures, VARIANTS[variant].side)
    exact = [key for key in outputs if key.startswith("results") and not key.endswith("labels")]
    return {
        "name": name, "format": "torchvision", "variant": variant, "state": state, "pictures": pictures, "outputs": outputs,
        "config": SMALL, "tolerance": dict.fromkeys(exact, 1e-6), "why": WHY,
    }  # fmt: skip


def prepared():
    """torchvision's own preparation: the whole picture stretched to 300 x 300."""
    shapes = [[120, 161, 5], [350, 310, 6]]
    transform = GeneralizedRCNNTransform(
        300, 300, list(PREPARE.mean), list(PREPARE.std), size_divisible=1, fixed_size=(300, 300)
    ).eval()  # fmt: skip
    images, _ = transform([torch.from_numpy(picture(*p)).permute(2, 0, 1).double() / 255 for p in shapes])
    return {
        "name": "preparation", "format": "torchvision", "variant": "300", "state": {}, "pictures": shapes,
        "outputs": {"prepared": images.tensors},
        "tolerance": {"prepared": 0.02}, "why": "resampling on uint8 may differ by one grey level",
    }  # fmt: skip


def tiny():
    return [
        case_of("300, padded batch", three_hundred(5), "300", [[300, 300, 1], [251, 290, 2]]),
        case_of("512", five_hundred(5), "512", [[512, 512, 3]]),
        prepared(),
    ]


MODELS = {"300": three_hundred, "512": five_hundred}


def manifests():
    with torch.device("meta"):
        return {"torchvision": {v: {k: tuple(x.shape) for k, x in MODELS[v]().state_dict().items()} for v in MODELS}}


def parameters():
    with torch.device("meta"):
        return {v: sum(p.numel() for p in MODELS[v]().parameters()) for v in MODELS}


def full():
    pictures = [[300, 300, 1], [290, 300, 2]]
    model = three_hundred().eval()
    state = fill_module(model)
    outputs = run(model, pictures, 300, torch.float32)
    yield {"name": "ssd 300", "format": "torchvision", "variant": "300", "state": state, "pictures": pictures,
           "outputs": {key: value for key, value in outputs.items() if key.startswith("out")}}  # fmt: skip

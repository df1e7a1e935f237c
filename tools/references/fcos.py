"""FCOS as in torchvision (BSD-3-Clause): fcos_resnet50_fpn."""

import torchvision_shim  # noqa: F401  (before anything that imports torchvision)

# isort: split
import re

import torch
import torchvision
from torchvision.models.detection.backbone_utils import _resnet_fpn_extractor
from torchvision.models.detection.fcos import FCOS
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.transform import GeneralizedRCNNTransform
from torchvision.models.resnet import BasicBlock, Bottleneck, ResNet
from torchvision.ops.feature_pyramid_network import LastLevelP6P7
from torchvision.ops.misc import FrozenBatchNorm2d

from opticus.models.detection.fcos import PREPARE
from opticus.parity.case import network_input
from opticus.parity.fill import fill_module, picture

PAPER = "fcos"
WHY = "boxes and scores of results are float32"


def reference():
    return {
        "repository": "https://github.com/pytorch/vision",
        "version": f"torchvision {torchvision.__version__.split('+')[0]}",
        "license": "BSD-3-Clause",
        "kind": "package",
    }


def network(block, layers, classes):
    """As its published weights are run: frozen batch norms, P6 from P5."""
    body = _resnet_fpn_extractor(
        ResNet(block, layers, norm_layer=FrozenBatchNorm2d), 5, returned_layers=[2, 3, 4], extra_blocks=LastLevelP6P7(256, 256)
    )
    return FCOS(body, classes)


@torch.no_grad()
def run(model, pictures, count=100, dtype=torch.float64):
    """Raw answers and, as the port gives them, results: torchvision's own but for boxes without area, the best `count`."""
    pixels, _ = network_input(pictures, PREPARE, dtype)
    sizes = [tuple(p[:2]) for p in pictures]
    features = list(model.backbone(pixels).values())
    out = model.head(features)
    found = {"out.logits": out["cls_logits"], "out.distances": out["bbox_regression"], "out.centreness": out["bbox_ctrness"]}
    anchors = model.anchor_generator(ImageList(pixels, sizes), features)
    lengths = [x.shape[-2] * x.shape[-1] for x in features]
    split = {key: list(value.split(lengths, dim=1)) for key, value in out.items()}
    model.detections_per_img = 10**6
    rows = model.postprocess_detections(split, [list(a.split(lengths)) for a in anchors], sizes)
    for i, row in enumerate(rows):
        kept = (row["boxes"][:, 2:] > row["boxes"][:, :2]).all(1).nonzero()[:count, 0]
        found |= {f"results.{i}.{key}": row[key][kept] for key in ("boxes", "scores", "labels")}
    return found


def old(key):
    """The key of a tensor in files from before the pyramid's Conv2dNormActivation: what its loader undoes."""
    return re.sub(r"((?:inner|layer)_blocks\.\d+)\.0\.", r"\1.", key)


def case_of(name, block, layout, pictures, part, rename=str):
    model = network(block, [1, 1, 1, 1], 5).double().eval()
    state = fill_module(model, rename)
    outputs = run(model, pictures)
    exact = [key for key in outputs if key.startswith("results") and not key.endswith("labels")]
    changes = {"classes": 0, "norm": "frozen", "layers": [1, 1, 1, 1]}
    return {
        "name": name, "format": layout, "variant": "r50", "state": state, "pictures": pictures, "outputs": outputs,
        "config": {"classes": 5, "backbone": {"part": part, "changes": changes}},
        "tolerance": dict.fromkeys(exact, 1e-6), "why": WHY,
    }  # fmt: skip


def prepared():
    """torchvision's own preparation: of the third picture the longer side is the limit, the fourth ends a row short of 80."""
    shapes = [[120, 161, 5], [150, 110, 6], [61, 171, 7], [154, 150, 8]]
    transform = GeneralizedRCNNTransform(80, 200, list(PREPARE.mean), list(PREPARE.std)).eval()
    images, _ = transform([torch.from_numpy(picture(*p)).permute(2, 0, 1).double() / 255 for p in shapes])
    return {
        "name": "preparation", "format": "torchvision", "variant": "r50", "state": {}, "pictures": shapes,
        "prepare": {"size": [80, 200]}, "outputs": {"prepared": images.tensors},
        "tolerance": {"prepared": 0.02}, "why": "resampling on uint8 may differ by one grey level",
    }  # fmt: skip


def tiny():
    return [
        case_of("padded batch", BasicBlock, "torchvision", [[97, 130, 1], [140, 66, 2]], "resnet/18"),
        case_of("older keys", Bottleneck, "torchvision-v1", [[64, 96, 3]], "resnet/50", old),
        prepared(),
    ]


def full_size():
    return network(Bottleneck, [3, 4, 6, 3], 91)


def shapes(rename):
    with torch.device("meta"):
        return {"r50": {rename(key): tuple(tensor.shape) for key, tensor in full_size().state_dict().items()}}


def manifests():
    return {"torchvision": shapes(str), "torchvision-v1": shapes(old)}


def parameters():
    with torch.device("meta"):
        return {"r50": sum(p.numel() for p in full_size().parameters())}


def full():
    pictures = [[320, 416, 1], [288, 320, 2]]
    model = full_size().eval()
    state = fill_module(model, old)
    outputs = run(model, pictures, dtype=torch.float32)
    yield {"name": "fcos r50", "format": "torchvision-v1", "variant": "r50", "state": state, "pictures": pictures,
           "outputs": {key: value for key, value in outputs.items() if key.startswith("out")}}  # fmt: skip

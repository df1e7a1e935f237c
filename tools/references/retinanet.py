"""RetinaNet as in torchvision (BSD-3-Clause): retinanet_resnet50_fpn and its second version."""

import torchvision_shim  # noqa: F401  (before anything that imports torchvision)

# isort: split
import re
from functools import partial

import torch
import torchvision
from torch import nn
from torchvision.models.detection._utils import overwrite_eps
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.backbone_utils import _resnet_fpn_extractor
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.retinanet import RetinaNet, RetinaNetHead, retinanet_resnet50_fpn_v2
from torchvision.models.detection.transform import GeneralizedRCNNTransform
from torchvision.models.resnet import BasicBlock, Bottleneck, ResNet
from torchvision.ops.feature_pyramid_network import LastLevelP6P7
from torchvision.ops.misc import FrozenBatchNorm2d

from opticus.models.detection.retinanet import PREPARE
from opticus.parity.case import network_input
from opticus.parity.fill import fill_module, picture

PAPER = "retinanet"
WHY = "boxes and scores of results are float32"


def reference():
    return {
        "repository": "https://github.com/pytorch/vision",
        "version": f"torchvision {torchvision.__version__.split('+')[0]}",
        "license": "BSD-3-Clause",
        "kind": "package",
    }


def first(block, layers, classes, **options):
    """The first version as its published weights are run: frozen batch norms of eps 0, P6 from P5."""
    body = _resnet_fpn_extractor(
        ResNet(block, layers, norm_layer=FrozenBatchNorm2d), 5, returned_layers=[2, 3, 4], extra_blocks=LastLevelP6P7(256, 256)
    )
    model = RetinaNet(body, classes, **options)
    overwrite_eps(model, 0.0)
    return model


def second(block, layers, classes, **options):
    """The second version: batch norms, group norms in the head, P6 from C5."""
    body = _resnet_fpn_extractor(
        ResNet(block, layers), 5, returned_layers=[2, 3, 4], extra_blocks=LastLevelP6P7(512 * block.expansion, 256)
    )
    sizes = tuple((x, int(x * 2 ** (1.0 / 3)), int(x * 2 ** (2.0 / 3))) for x in [32, 64, 128, 256, 512])
    anchors = AnchorGenerator(sizes, ((0.5, 1.0, 2.0),) * 5)
    head = RetinaNetHead(256, 9, classes, norm_layer=partial(nn.GroupNorm, 32))
    return RetinaNet(body, classes, anchor_generator=anchors, head=head, **options)


@torch.no_grad()
def run(model, pictures, count=300, dtype=torch.float64):
    """Raw answers and, as the port gives them, results: torchvision's own but for boxes without area, the best `count`."""
    pixels, _ = network_input(pictures, PREPARE, dtype)
    sizes = [tuple(p[:2]) for p in pictures]
    features = list(model.backbone(pixels).values())
    out = model.head(features)
    found = {"out.logits": out["cls_logits"], "out.deltas": out["bbox_regression"]}
    anchors = model.anchor_generator(ImageList(pixels, sizes), features)
    lengths = [9 * x.shape[-2] * x.shape[-1] for x in features]
    split = {key: list(value.split(lengths, dim=1)) for key, value in out.items()}
    model.detections_per_img = 10**6
    rows = model.postprocess_detections(split, [list(a.split(lengths)) for a in anchors], sizes)
    for i, row in enumerate(rows):
        kept = (row["boxes"][:, 2:] > row["boxes"][:, :2]).all(1).nonzero()[:count, 0]
        found |= {f"results.{i}.{key}": row[key][kept] for key in ("boxes", "scores", "labels")}
    return found


def case_of(name, model, layout, pictures, backbone, config, rename=str):
    state = fill_module(model.double().eval(), rename)
    outputs = run(model, pictures)
    exact = [key for key in outputs if key.startswith("results") and not key.endswith("labels")]
    loose = {"tolerance": dict.fromkeys(exact, 1e-6), "why": WHY} if exact else {}
    return {
        "name": name, "format": layout, "variant": "r50", "state": state, "pictures": pictures, "outputs": outputs,
        "config": {"classes": 5, "backbone": backbone, **config}, **loose,
    }  # fmt: skip


def old(key):
    """The key of a tensor in files from before Conv2dNormActivation: what `_v1_to_v2_weights` and the pyramid's loader undo."""
    key = re.sub(r"(_head\.conv)\.(\d+)\.0\.", lambda m: f"{m[1]}.{2 * int(m[2])}.", key)
    return re.sub(r"((?:inner|layer)_blocks\.\d+)\.0\.", r"\1.", key)


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
    frozen = {"part": "resnet/18", "changes": {"classes": 0, "norm": "frozen", "norm_eps": 0.0, "layers": [1, 1, 1, 1]}}
    batch = {"part": "resnet/50", "changes": {"classes": 0, "layers": [1, 1, 1, 1]}}
    new = {"norm": "group", "coarser": "c5"}
    one, four = [1, 1, 1, 1], [[97, 130, 1], [140, 66, 2]]
    return [
        case_of("padded batch", first(BasicBlock, one, 5), "torchvision", four, frozen, {}),
        case_of("older keys", first(BasicBlock, one, 5), "torchvision-v1", [[64, 96, 3]], frozen, {}, old),
        case_of("second version", second(Bottleneck, one, 5), "torchvision", [[96, 128, 4]], batch, new),
        prepared(),
    ]


def full_size(variant):
    if variant == "r50":
        return first(Bottleneck, [3, 4, 6, 3], 91)
    return retinanet_resnet50_fpn_v2(weights=None, weights_backbone=None)


def shapes(variant, rename=str):
    with torch.device("meta"):
        return {rename(key): tuple(tensor.shape) for key, tensor in full_size(variant).state_dict().items()}


def manifests():
    return {"torchvision": {v: shapes(v) for v in ("r50", "r50-v2")}, "torchvision-v1": {"r50": shapes("r50", old)}}


def parameters():
    with torch.device("meta"):
        return {v: sum(p.numel() for p in full_size(v).parameters()) for v in ("r50", "r50-v2")}


def full():
    pictures = [[320, 416, 1], [288, 320, 2]]
    for variant, layout, rename in (("r50", "torchvision-v1", old), ("r50-v2", "torchvision", str)):
        model = full_size(variant).eval()
        state = fill_module(model, rename)
        outputs = run(model, pictures, dtype=torch.float32)
        yield {"name": f"retinanet {variant}", "format": layout, "variant": variant, "state": state, "pictures": pictures,
               "outputs": {key: value for key, value in outputs.items() if key.startswith("out")}}  # fmt: skip

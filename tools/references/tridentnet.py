"""TridentNet (arXiv 1901.01892): torchvision's ResNet with its third stage run at three dilations, torchvision's proposals (BSD-3-Clause).

detectron2's projects/TridentNet (Apache-2.0) builds on a package that needs compiled operators: what it does is written down here.
"""

import re

import torchvision_shim  # noqa: F401  (before anything that imports torchvision)

# isort: split
import torch
import torchvision
from torch import nn
from torchvision.models.detection._utils import BoxCoder
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.rpn import RegionProposalNetwork, RPNHead
from torchvision.models.resnet import Bottleneck, ResNet
from torchvision.ops import batched_nms, clip_boxes_to_image, roi_align
from torchvision.ops.misc import FrozenBatchNorm2d

from opticus.models.detection.tridentnet import PREPARE
from opticus.parity.case import network_input
from opticus.parity.fill import fill_module

PAPER = "tridentnet"
EXTENDS = "faster_rcnn"
WHY = "boxes and scores of results are float32"
NAMES = (
    (r"body\.layer3\.(.*)", r"trident.\1"),
    (r"body\.layer4\.(.*)", r"head.\1"),
    (r"body\.(.*)", r"backbone.\1"),
    (r"rpn\.conv\.0\.0\.(.*)", r"rpn.conv.\1"),
    (r"(.*)", r"\1"),
)
RANGES = ((0, 90), (30, 160), (90, 1e5))


def reference():
    return {
        "repository": "arXiv 1901.01892, section 4, around https://github.com/pytorch/vision; "
        "facts of https://github.com/facebookresearch/detectron2, projects/TridentNet",
        "version": f"torchvision {torchvision.__version__.split('+')[0]}",
        "license": "BSD-3-Clause",
        "kind": "transcription",
    }


def rename(key):
    pattern, name = next(row for row in NAMES if re.fullmatch(row[0], key))
    return re.sub(f"^{pattern}$", name, key)


class Network(nn.Module):
    def __init__(self, layers, classes):
        super().__init__()
        self.body = ResNet(Bottleneck, layers, norm_layer=FrozenBatchNorm2d)
        del self.body.fc
        self.rpn = RPNHead(1024, 15)
        self.cls_score, self.bbox_pred = nn.Linear(2048, classes + 1), nn.Linear(2048, 4 * classes + 4)


def branch(body, x, dilation):
    """The third stage with every 3x3 convolution at `dilation`."""
    for block in body.layer3:
        block.conv2.dilation = block.conv2.padding = (dilation, dilation)
        x = block(x)
    return x


@torch.no_grad()
def run(model, pictures, dilations, ranges, dtype=torch.float64):
    pixels, _ = network_input(pictures, PREPARE, dtype)
    sizes = [tuple(p[:2]) for p in pictures for _ in dilations]
    body = model.body
    x = body.layer2(body.layer1(body.maxpool(body.relu(body.bn1(body.conv1(pixels))))))
    maps = torch.stack([branch(body, x, d) for d in dilations], 1)
    rows = maps.flatten(0, 1)
    objectness, shifts = model.rpn([rows])
    shape = (len(pictures), len(dilations))
    found = {
        "out.maps": maps,
        "out.objectness": objectness[0].permute(0, 2, 3, 1).reshape(*shape, -1),
        "out.shifts": shifts[0].permute(0, 2, 3, 1).reshape(*shape, -1, 4),
    }
    limits = {"training": 40, "testing": 40}, {"training": 4, "testing": 4}
    anchors = AnchorGenerator(((32, 64, 128, 256, 512),), ((0.5, 1.0, 2.0),))
    rpn = RegionProposalNetwork(anchors, model.rpn, 0.7, 0.3, 256, 0.5, *limits, 0.7).eval()
    images = ImageList(pixels.repeat_interleave(len(dilations), 0), sizes)
    proposals, _ = rpn(images, {"0": rows})
    hidden = body.layer4(roi_align(rows, proposals, 14, 1 / 16, 2, True)).mean((2, 3))
    logits, deltas = model.cls_score(hidden), model.bbox_pred(hidden).unflatten(1, (-1, 4))
    owner = torch.cat([torch.full((len(own),), i) for i, own in enumerate(proposals)])
    found |= {"out.proposals": torch.cat(proposals), "out.logits": logits, "out.deltas": deltas}
    if len(pictures) > 1 and len(dilations) > 1:  # otherwise all are 0
        found |= {"out.pictures": owner // len(dilations), "out.branches": owner % len(dilations)}
    boxes = BoxCoder((10.0, 10.0, 5.0, 5.0)).decode(deltas.flatten(1), proposals)[:, 1:]
    probs = logits.softmax(1)[:, 1:].clone()
    if ranges:
        for r in range(len(boxes)):
            least, most = ranges[int(owner[r]) % len(dilations)]
            for k in range(boxes.shape[1]):
                side = float(((boxes[r, k, 2] - boxes[r, k, 0]) * (boxes[r, k, 3] - boxes[r, k, 1])) ** 0.5)
                if not least <= side <= most:
                    probs[r, k] = 0
    for i, picture in enumerate(pictures):
        own = owner // len(dilations) == i
        inside = clip_boxes_to_image(boxes[own], tuple(picture[:2]))
        places, kinds = (probs[own] > 0.05).nonzero(as_tuple=True)
        chosen, scores = inside[places, kinds], probs[own][places, kinds]
        full = (chosen[:, 2:] > chosen[:, :2]).all(1)
        chosen, scores, kinds = chosen[full], scores[full], kinds[full]
        kept = batched_nms(chosen, scores, kinds, 0.5)[:100]
        found |= {f"results.{i}.boxes": chosen[kept], f"results.{i}.scores": scores[kept], f"results.{i}.labels": kinds[kept]}
    return found


def tiny():
    cases = []
    for name, variant, pictures, dilations, ranges in (
        ("three branches, padded batch", "r50", [[65, 98, 1], [96, 66, 2]], (1, 2, 3), RANGES),
        ("fast", "r50-fast", [[96, 64, 3]], (2,), None),
    ):
        model = Network([1, 1, 2, 1], 5).double().eval()
        state = fill_module(model, rename)
        outputs = run(model, pictures, dilations, ranges)
        exact = [key for key in outputs if key.startswith("results") and not key.endswith("labels")]
        changes = {"classes": 0, "norm": "frozen", "layers": [1, 1]}
        cases.append({
            "name": name, "format": "plain", "variant": variant, "state": state, "pictures": pictures, "outputs": outputs,
            "config": {"classes": 5, "backbone": {"part": "resnet/50", "changes": changes}, "stage": [256, 2],
                       "head": [512, 1, 14], "proposals": [40, 4]},
            "tolerance": dict.fromkeys(exact, 1e-6), "why": WHY,
        })  # fmt: skip
    return cases


def full_size(variant):
    return Network([3, 4, 6, 3] if variant == "r50" else [3, 4, 23, 3], 80)


def manifests():
    with torch.device("meta"):
        rows = {v: full_size(v).state_dict() for v in ("r50", "r101")}
    return {"plain": {v: {rename(key): tuple(tensor.shape) for key, tensor in state.items()} for v, state in rows.items()}}


def parameters():
    with torch.device("meta"):
        return {v: sum(p.numel() for p in full_size(v).parameters()) for v in ("r50", "r101")}


def full():
    pictures = [[256, 320, 1]]
    model = full_size("r50").eval()
    state = fill_module(model, rename)
    outputs = run(model, pictures, (1, 2, 3), RANGES, dtype=torch.float32)
    yield {"name": "tridentnet r50", "format": "plain", "variant": "r50", "state": state, "pictures": pictures,
           "outputs": {key: outputs[key] for key in ("out.maps", "out.objectness", "out.shifts")}}  # fmt: skip

"""R-FCN (arXiv 1605.06409): torchvision's ResNet, anchors and proposals (BSD-3-Clause) around a literal transcription of equations 1-2.

The authors publish Caffe files (daijifeng001/R-FCN, MIT); what their pooling layer rounds is transcribed loop by loop.
"""

import math

import torchvision_shim  # noqa: F401  (before anything that imports torchvision)

# isort: split
import torch
import torchvision
from torch import nn
from torchvision.models.detection._utils import BoxCoder
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.rpn import RegionProposalNetwork
from torchvision.models.resnet import Bottleneck, ResNet
from torchvision.ops import batched_nms, clip_boxes_to_image
from torchvision.ops.misc import FrozenBatchNorm2d

from opticus.models.detection.rfcn import PREPARE
from opticus.parity.case import network_input
from opticus.parity.fill import fill_module

PAPER = "rfcn"
EXTENDS = "faster_rcnn"
WHY = "boxes and scores of results are float32"


def reference():
    return {
        "repository": "arXiv 1605.06409, equations 1-2, around https://github.com/pytorch/vision; "
        "constants of https://github.com/daijifeng001/R-FCN",
        "version": f"torchvision {torchvision.__version__.split('+')[0]}",
        "license": "BSD-3-Clause",
        "kind": "transcription",
    }


class Network(nn.Module):
    """Nothing but the layers, under the names that the port gives them."""

    def __init__(self, layers, classes, bins, width=512, hidden=1024):
        super().__init__()
        self.backbone = ResNet(Bottleneck, layers, norm_layer=FrozenBatchNorm2d, replace_stride_with_dilation=[False, False, True])
        del self.backbone.fc
        self.rpn = nn.Module()
        self.rpn.conv = nn.Conv2d(1024, width, 3, padding=1)
        self.rpn.cls_logits = nn.Conv2d(width, 9, 1)
        self.rpn.bbox_pred = nn.Conv2d(width, 36, 1)
        self.conv_new = nn.Conv2d(2048, hidden, 1)
        self.cls_maps = nn.Conv2d(hidden, (classes + 1) * bins * bins, 1)
        self.box_maps = nn.Conv2d(hidden, 4 * bins * bins, 1)


class Head(nn.Module):
    """The proposal network's answers as torchvision's RegionProposalNetwork takes them."""

    def __init__(self, rpn):
        super().__init__()
        self.rpn = rpn

    def forward(self, features):
        hidden = [self.rpn.conv(x).clamp(min=0) for x in features]
        return [self.rpn.cls_logits(x) for x in hidden], [self.rpn.bbox_pred(x) for x in hidden]


def away(value):
    """C's round: halves away from zero."""
    return math.floor(value + 0.5) if value >= 0 else math.ceil(value - 0.5)


def voted(maps, box, bins, scale):
    """Eq. 1: r_c(i, j) is the mean of z_(i, j, c) over bin (i, j); then the mean of all bins."""
    outputs = maps.shape[0] // bins**2
    votes = maps.new_zeros(outputs, bins, bins)
    x0, y0 = away(float(box[0])) * scale, away(float(box[1])) * scale
    wide = max((away(float(box[2])) + 1) * scale - x0, 0.1)
    high = max((away(float(box[3])) + 1) * scale - y0, 0.1)
    for i in range(bins):
        for j in range(bins):
            top, bottom = math.floor(i * (high / bins) + y0), math.ceil((i + 1) * (high / bins) + y0)
            left, right = math.floor(j * (wide / bins) + x0), math.ceil((j + 1) * (wide / bins) + x0)
            cell = maps[:, max(top, 0) : max(bottom, 0), max(left, 0) : max(right, 0)]
            if cell.numel():
                votes[:, i, j] = cell.mean((1, 2))[[(c * bins + i) * bins + j for c in range(outputs)]]
    return votes.mean((1, 2))


def sampled(maps, box, bins, scale):
    """The same with 2 x 2 bilinear samples in each bin; pixel centres at + 0.5, beyond a pixel outside the map 0."""
    outputs, (height, width) = maps.shape[0] // bins**2, maps.shape[1:]
    total = maps.new_zeros(outputs)
    x0, y0, x1, y1 = (float(v) * scale - 0.5 for v in box)
    for i in range(bins):
        for j in range(bins):
            own = maps[[(c * bins + i) * bins + j for c in range(outputs)]]
            for part in ((0.25, 0.25), (0.25, 0.75), (0.75, 0.25), (0.75, 0.75)):
                y, x = y0 + (i + part[0]) * (y1 - y0) / bins, x0 + (j + part[1]) * (x1 - x0) / bins
                if not (-1 <= y <= height and -1 <= x <= width):
                    continue
                y, x = min(max(y, 0.0), height - 1.0), min(max(x, 0.0), width - 1.0)
                for row in range(height):
                    for column in range(width):
                        share = max(0.0, 1 - abs(y - row)) * max(0.0, 1 - abs(x - column))
                        if share:
                            total += share * own[:, row, column] / (4 * bins * bins)
    return total


@torch.no_grad()
def run(model, pictures, bins, align, before, after, dtype=torch.float64):
    pixels, _ = network_input(pictures, PREPARE, dtype)
    sizes = [tuple(p[:2]) for p in pictures]
    body = model.backbone
    x = body.maxpool(body.relu(body.bn1(body.conv1(pixels))))
    fourth = body.layer3(body.layer2(body.layer1(x)))
    hidden = model.conv_new(body.layer4(fourth)).clamp(min=0)
    scores, boxes = model.cls_maps(hidden), model.box_maps(hidden)
    head = Head(model.rpn)
    objectness, shifts = head([fourth])
    limits = {"training": before, "testing": before}, {"training": after, "testing": after}
    rpn = RegionProposalNetwork(
        AnchorGenerator(((128, 256, 512),), ((0.5, 1.0, 2.0),)), head, 0.7, 0.3, 256, 0.5, *limits, 0.7
    ).eval()
    proposals, _ = rpn(ImageList(pixels, sizes), {"0": fourth})
    found = {
        "out.objectness": objectness[0].permute(0, 2, 3, 1).flatten(1),
        "out.shifts": shifts[0].permute(0, 2, 3, 1).reshape(len(pictures), -1, 4),
        "out.maps.0": scores, "out.maps.1": boxes, "out.proposals": torch.cat(proposals),
    }  # fmt: skip
    vote = sampled if align else voted
    logits = [torch.stack([vote(scores[i], box, bins, 1 / 16) for box in own]) for i, own in enumerate(proposals)]
    deltas = [torch.stack([vote(boxes[i], box, bins, 1 / 16) for box in own]) for i, own in enumerate(proposals)]
    found |= {"out.logits": torch.cat(logits), "out.deltas": torch.cat(deltas)}
    coder = BoxCoder((10.0, 10.0, 5.0, 5.0))
    for i, own in enumerate(proposals):
        probs = logits[i].softmax(1)[:, 1:]
        moved = clip_boxes_to_image(coder.decode_single(deltas[i], own), sizes[i])
        rows, kinds = (probs > 0.001).nonzero(as_tuple=True)
        rows_full = ((moved[rows, 2:] - moved[rows, :2]) > 0).all(1)
        rows, kinds = rows[rows_full], kinds[rows_full]
        kept = batched_nms(moved[rows], probs[rows, kinds], kinds, 0.3)[:100]
        found |= {
            f"results.{i}.boxes": moved[rows[kept]],
            f"results.{i}.scores": probs[rows[kept], kinds[kept]],
            f"results.{i}.labels": kinds[kept],
        }
    return found


def tiny():
    cases = []
    for name, pictures, bins, align in (
        # whole pixels give two regions the very same votes now and then: pictures without such a tie
        ("whole pixels", [[128, 96, 3]], 3, False),
        ("seven bins", [[96, 128, 4]], 7, False),
        ("bilinear samples, padded batch", [[97, 130, 1], [140, 66, 2]], 3, True),
    ):
        model = Network([1, 1, 1, 1], 5, bins, 64, 96).double().eval()
        state = fill_module(model)
        outputs = run(model, pictures, bins, align, 90, 25)
        exact = [key for key in outputs if key.startswith("results") and not key.endswith("labels")]
        changes = {"classes": 0, "norm": "frozen", "dilate": [4], "layers": [1, 1, 1, 1]}
        cases.append({
            "name": name, "format": "plain", "variant": "r50", "state": state, "pictures": pictures, "outputs": outputs,
            "config": {"classes": 5, "backbone": {"part": "resnet/50", "changes": changes}, "width": 64, "hidden": 96,
                       "bins": bins, "align": align, "proposals": [90, 25]},
            "tolerance": dict.fromkeys(exact, 1e-6), "why": WHY,
        })  # fmt: skip
    return cases


def full_size(variant):
    return Network([3, 4, 6, 3] if variant == "r50" else [3, 4, 23, 3], 20, 7)


def shapes(variant):
    with torch.device("meta"):
        return {key: tuple(tensor.shape) for key, tensor in full_size(variant).state_dict().items()}


def manifests():
    return {"plain": {variant: shapes(variant) for variant in ("r50", "r101")}}


def parameters():
    with torch.device("meta"):
        return {v: sum(p.numel() for p in full_size(v).parameters()) for v in ("r50", "r101")}


def full():
    pictures = [[256, 320, 1]]
    model = full_size("r50").eval()
    state = fill_module(model)
    outputs = run(model, pictures, 7, False, 6000, 5, dtype=torch.float32)
    keys = ("out.objectness", "out.shifts", "out.maps.0", "out.maps.1")
    yield {"name": "rfcn r50", "format": "plain", "variant": "r50", "state": state, "pictures": pictures,
           "outputs": {key: outputs[key] for key in keys}}  # fmt: skip

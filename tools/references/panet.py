"""PANet (arXiv 1803.01534): section 3 transcribed, between torchvision's backbone, pyramid, proposals and results (BSD-3-Clause).

The authors' re-implementation (ShuLiu1993/PANet, MIT) needs compiled operators of PyTorch 0.4: its layers are written down here.
"""

import re

import torchvision_shim  # noqa: F401  (before anything that imports torchvision)

# isort: split
import torch
import torchvision
from torch import nn
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.backbone_utils import _resnet_fpn_extractor
from torchvision.models.detection.faster_rcnn import FasterRCNN
from torchvision.models.detection.image_list import ImageList
from torchvision.models.resnet import BasicBlock, Bottleneck, ResNet
from torchvision.ops.misc import FrozenBatchNorm2d

from opticus.models.detection.panet import PREPARE
from opticus.parity.case import network_input
from opticus.parity.fill import fill_module

PAPER = "panet"
EXTENDS = "faster_rcnn"
WHY = "boxes and scores of results are float32"
NAMES = (
    (r"backbone\.pyramid\.body\.(.*)", r"backbone.\1"),
    (r"backbone\.pyramid\.fpn\.inner_blocks\.(\d+)\.0\.(.*)", r"fpn.inner.\1.\2"),
    (r"backbone\.pyramid\.fpn\.layer_blocks\.(\d+)\.0\.(.*)", r"fpn.outer.\1.\2"),
    (r"backbone\.(down|smooth)\.(\d+)\.0\.(.*)", r"bottom_up.\1.\2.conv.\3"),
    (r"backbone\.(down|smooth)\.(\d+)\.1\.(.*)", r"bottom_up.\1.\2.norm.\3"),
    (r"rpn\.head\.conv\.0\.0\.(.*)", r"rpn.conv.\1"),
    (r"rpn\.head\.(cls_logits|bbox_pred)\.(.*)", r"rpn.\1.\2"),
    (r"roi_heads\.box_(?:head|predictor)\.(.*)", r"head.\1"),
)


def reference():
    return {
        "repository": "arXiv 1803.01534, section 3, between parts of https://github.com/pytorch/vision; "
        "constants of https://github.com/ShuLiu1993/PANet",
        "version": f"torchvision {torchvision.__version__.split('+')[0]}",
        "license": "BSD-3-Clause",
        "kind": "transcription",
    }


def rename(key):
    for pattern, name in NAMES:
        if re.fullmatch(pattern, key):
            return re.sub(pattern, name, key)
    raise KeyError(key)


class Body(nn.Module):
    """torchvision's pyramid P2..P5, then N2 = P2 and N(i+1) = ReLU GN conv(ReLU GN conv_stride_2(N(i)) + P(i+1))."""

    def __init__(self, block, layers):
        super().__init__()
        self.pyramid = _resnet_fpn_extractor(ResNet(block, layers, norm_layer=FrozenBatchNorm2d), 5)
        self.out_channels = 256
        self.down = nn.ModuleList(nn.Sequential(nn.Conv2d(256, 256, 3, 2, 1), nn.GroupNorm(32, 256), nn.ReLU()) for _ in "345")
        self.smooth = nn.ModuleList(nn.Sequential(nn.Conv2d(256, 256, 3, 1, 1), nn.GroupNorm(32, 256), nn.ReLU()) for _ in "345")

    def forward(self, pixels):
        p = self.pyramid(pixels)
        n = {"0": p["0"]}
        for i in range(3):
            n[str(i + 1)] = self.smooth[i](self.down[i](n[str(i)]) + p[str(i + 1)])
        n["pool"] = n["3"][:, :, ::2, ::2]
        return n


def shares(start, side, length):
    """(14, length): bilinear shares of 14 samples along one axis; a sample more than a pixel outside the map has none."""
    places = start + (torch.arange(14, dtype=torch.float64) + 0.5) * side / 14
    inside = (places >= -1) & (places <= length)
    distance = (places.clamp(0, length - 1)[:, None] - torch.arange(length, dtype=torch.float64)).abs()
    return (1 - distance).clamp(min=0) * inside[:, None]


class AllLevels(nn.Module):
    """Every box from every level: (R, 4 levels, C, 7, 7). RoIAlign with the rule of the compiled operator, which a box in the corner
    of a coarse level needs (it is a pixel wide at least, and reaches outside)."""

    def forward(self, features, proposals, sizes):
        rows = []
        for picture, boxes in enumerate(proposals):
            for x1, y1, x2, y2 in boxes.double():
                grids = []
                for level in range(4):
                    plane, scale = features[str(level)][picture].double(), 1 / 2 ** (level + 2)
                    y = shares(y1 * scale, ((y2 - y1) * scale).clamp(min=1), plane.shape[1])
                    x = shares(x1 * scale, ((x2 - x1) * scale).clamp(min=1), plane.shape[2])
                    samples = y @ plane @ x.T
                    grids.append(samples.unflatten(2, (7, 2)).unflatten(1, (7, 2)).mean((2, 4)))
                rows.append(torch.stack(grids))
        return torch.stack(rows).to(features["0"].dtype)


class Fused(nn.Module):
    """A first layer for each level, the maximum over the levels, a second layer."""

    def __init__(self, hidden):
        super().__init__()
        self.fc1 = nn.ModuleList(nn.Linear(256 * 49, hidden) for _ in range(4))
        self.norm1 = nn.ModuleList(nn.GroupNorm(32, hidden) for _ in range(4))
        self.fc2, self.norm2 = nn.Linear(hidden, hidden), nn.GroupNorm(32, hidden)

    def forward(self, x):
        best = None
        for level in range(4):
            y = self.norm1[level](self.fc1[level](x[:, level].reshape(len(x), -1))).clamp(min=0)
            best = y if best is None else torch.where(y > best, y, best)
        return self.norm2(self.fc2(best)).clamp(min=0)


class Predictor(nn.Module):
    def __init__(self, hidden, classes):
        super().__init__()
        self.cls_score, self.bbox_pred = nn.Linear(hidden, classes), nn.Linear(hidden, 4 * classes)

    def forward(self, x):
        return self.cls_score(x), self.bbox_pred(x)


def network(block, layers, hidden, classes, **options):
    anchors = AnchorGenerator(((32,), (64,), (128,), (256,), (512,)), ((0.5, 1.0, 2.0),) * 5)
    parts = {"box_head": Fused(hidden), "box_predictor": Predictor(hidden, classes)}
    model = FasterRCNN(Body(block, layers), None, rpn_anchor_generator=anchors, **parts, **options)
    model.roi_heads.box_roi_pool = AllLevels()
    return model


@torch.no_grad()
def run(model, pictures, dtype=torch.float64):
    pixels, _ = network_input(pictures, PREPARE, dtype)
    sizes = [tuple(p[:2]) for p in pictures]
    features = model.backbone(pixels)
    objectness, shifts = model.rpn.head(list(features.values()))
    found = {f"out.maps.{i}": features[str(i)] for i in range(4)}
    found["out.objectness"] = torch.cat([x.permute(0, 2, 3, 1).flatten(1) for x in objectness], 1)
    found["out.shifts"] = torch.cat([x.permute(0, 2, 3, 1).reshape(len(x), -1, 4) for x in shifts], 1)
    proposals, _ = model.rpn(ImageList(pixels, sizes), features)
    heads = model.roi_heads
    logits, deltas = heads.box_predictor(heads.box_head(heads.box_roi_pool(features, proposals, sizes)))
    found |= {"out.proposals": torch.cat(proposals), "out.logits": logits, "out.deltas": deltas.unflatten(1, (-1, 4))}
    rows, _ = heads(features, proposals, sizes)
    for i, row in enumerate(rows):
        found |= {
            f"results.{i}.boxes": row["boxes"],
            f"results.{i}.scores": row["scores"],
            f"results.{i}.labels": row["labels"] - 1,
        }
    return found


FEW = {"rpn_pre_nms_top_n_test": 30, "rpn_post_nms_top_n_test": 30}


def tiny():
    cases = []
    for name, pictures, block, part in (
        ("padded batch", [[97, 130, 1], [140, 66, 2]], BasicBlock, "resnet/18"),
        ("bottlenecks", [[128, 96, 3]], Bottleneck, "resnet/50"),
    ):
        model = network(block, [1, 1, 1, 1], 64, 6, **FEW).double().eval()
        state = fill_module(model, rename)
        outputs = run(model, pictures)
        exact = [key for key in outputs if key.startswith("results") and not key.endswith("labels")]
        changes = {"classes": 0, "norm": "frozen", "layers": [1, 1, 1, 1]}
        cases.append({
            "name": name, "format": "plain", "variant": "r50", "state": state, "pictures": pictures, "outputs": outputs,
            "config": {"classes": 5, "backbone": {"part": part, "changes": changes}, "hidden": 64, "proposals": [60, 30]},
            "tolerance": dict.fromkeys(exact, 1e-6), "why": WHY,
        })  # fmt: skip
    return cases


def full_size(variant):
    return network(Bottleneck, [3, 4, 6, 3], 1024, 81)


def manifests():
    with torch.device("meta"):
        rows = full_size("r50").state_dict()
    return {"plain": {"r50": {rename(key): tuple(tensor.shape) for key, tensor in rows.items()}}}


def parameters():
    with torch.device("meta"):
        return {"r50": sum(p.numel() for p in full_size("r50").parameters())}


def full():
    pictures = [[256, 320, 1]]
    model = full_size("r50").eval()
    state = fill_module(model, rename)
    outputs = run(model, pictures, dtype=torch.float32)
    keys = ("out.objectness", "out.shifts", "out.maps.0", "out.maps.3")
    yield {"name": "panet r50", "format": "plain", "variant": "r50", "state": state, "pictures": pictures,
           "outputs": {key: outputs[key] for key in keys}}  # fmt: skip

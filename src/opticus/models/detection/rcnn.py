"""Rich feature hierarchies for accurate object detection and semantic segmentation.

Girshick, Donahue, Darrell and Malik (UC Berkeley), CVPR 2014, arXiv 1311.2524 (R-CNN), detection part.
Reference: torchvision 0.28 (BSD-3-Clause), its AlexNet on warped regions; constants of the last layers from the authors' code,
rbgirshick/rcnn (BSD-2-Clause, MATLAB), whose Caffe files are in a format that is not read here.

The five steps: (1) a network learns to classify pictures; (2) proposals are found, warped to its fixed size and described by it;
(3) it is fine-tuned to tell N classes and the background apart on warped proposals, and describes them anew; (4) a linear SVM per
class, with hard negatives, scores the descriptions; (5) a ridge regression per class corrects boxes. A correction (dx, dy, dw, dh)
is in shares of the proposal's sides: (0, 0, 0, 0) says that the proposal is good, (0.25, 0, 0, 0) that it lies a quarter of its
width too far left, (0, 0, -0.125, 0) that it is too wide (by an eighth, to first order: widths are corrected by exp(dw)).

*Differs*: a region is warped by sampling the normalised picture between pixels, without rounding its corners; hard negatives are mined
in one pass after a start from random ones; the intercept of the ridge regression is free; a score is the logistic of twice the SVM's
margin (the same order); before step 4 the softmax of step 3 scores (appendix B); "tiny" is a small configuration for the demo data.
*Map*: section 2.1 "feature extraction", appendix A -> `warp`; 2.3 "domain-specific fine-tuning" -> `Losses`; "object category
classifiers" -> `solve_scores`; appendix C -> `solve_boxes`; 2.2 -> `ranked`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from opticus.losses.boxes import object_count
from opticus.losses.regions import learned_from
from opticus.losses.supervised import Supervised
from opticus.matching.described import Described
from opticus.matching.proposals import detected, sampled
from opticus.matching.regions import Search, listed, regions_in
from opticus.ops.boxes import cxcywh_to_xyxy, decode_boxes, encode_boxes, xyxy_to_cxcywh
from opticus.structures import Batch, CapabilityError, Embedder, Images, Part, Prepare, Result, Task, UsageError, Weights
from opticus.weights.names import Names, rename

TASK: Task = "detect"
PREPARE = Prepare(resize="none")
_ALEXNET = Part("alexnet/owt", classes=0, hidden=0)
CHUNK = 128  # regions described at once
NORM = 20.0  # mean length of a description before SVM and regression
POSITIVES, BIAS = 2.0, 10.0  # what a positive weighs in an SVM; the feature that multiplies its bias
FAR = 0.3  # below this IoU with every object of a class a region is a negative of that class
START, HARDEST = 5000, 20_000  # random negatives that an SVM starts with, and mined ones that it keeps at most
RIDGE = 1000.0
SCORE, OVERLAP, DETECTIONS = 0.05, 0.3, 100


@dataclass(frozen=True)
class Config:
    """`classes` leaves out the background; a region is warped to `crop` pixels a side, `context` of them around its box.

    The backbone's `embed` is the description that `hidden` units see twice (fc6, fc7). `proposals`, `scales` and `spaces` are
    settings of selective search (`matching.regions.Search`); `samples` regions a picture are learned from in fine-tuning; `cost` (C)
    is what a unit of hinge loss costs an SVM.
    """

    classes: int = 20
    backbone: Part = _ALEXNET
    hidden: int = 4096
    dropout: float = 0.5
    crop: int = 227
    context: int = 16
    side: int = 0
    proposals: int = 2000
    scales: tuple[float, ...] = (50.0, 100.0)
    spaces: tuple[str, ...] = ("hsv", "lab")
    samples: int = 64
    cost: float = 1e-3


# --- network -----------------------------------------------------------------------------------------------------------


class Answers(NamedTuple):
    """`proposals` (R,4) xyxy input pixels of the `pictures` (R,); of each `logits` (R,K+1) of fine-tuning, background first,
    `margins` (R,K) of the SVMs and corrections `deltas` (R,K,4).

    In training, where only sampled regions are looked at, the last three are empty (0 regions). `maps` is what regions are cut from.
    """

    proposals: Tensor
    pictures: Tensor
    logits: Tensor
    margins: Tensor
    deltas: Tensor
    maps: Tensor


class Linear(nn.Module):
    """A linear layer that is solved, not learned: its `weight` and `bias` are buffers, zero until then."""

    weight: Tensor
    bias: Tensor

    def __init__(self, width: int, count: int) -> None:
        super().__init__()
        self.register_buffer("weight", torch.zeros(count, width))
        self.register_buffer("bias", torch.zeros(count))

    def forward(self, x: Float[Tensor, "R D"]) -> Float[Tensor, "R K"]:
        return F.linear(x, self.weight, self.bias)


class Head(nn.Module):
    """What follows pool5: fc6 and fc7, the classes of fine-tuning (fc8), an SVM per class on fc7 and a regressor per class on pool5."""

    def __init__(self, width: int, hidden: int, classes: int, dropout: float) -> None:
        super().__init__()
        self.fc6 = nn.Linear(width, hidden)
        self.fc7 = nn.Linear(hidden, hidden)
        self.fc8 = nn.Linear(hidden, classes + 1)
        self.svm = Linear(hidden, classes)
        self.box = Linear(width, 4 * classes)
        self.dropout = nn.Dropout(dropout)
        nn.init.normal_(self.fc8.weight, std=0.01)
        nn.init.zeros_(self.fc8.bias)

    def embed(self, pooled: Float[Tensor, "R P"]) -> Float[Tensor, "R D"]:
        """fc7, what the SVMs see."""
        return F.relu(self.fc7(self.dropout(F.relu(self.fc6(self.dropout(pooled))))))

    def classify(self, pooled: Float[Tensor, "R P"]) -> Float[Tensor, "R K"]:
        """Logits of fine-tuning, background first."""
        return self.fc8(self.dropout(self.embed(pooled)))

    def forward(self, pooled: Float[Tensor, "R P"]) -> tuple[Tensor, Tensor, Tensor]:
        vectors = self.embed(pooled)
        return self.fc8(vectors), self.svm(vectors), self.box(pooled).unflatten(1, (-1, 4))

    @property
    def solved(self) -> bool:
        """Whether there are SVMs yet."""
        return bool(self.svm.weight.any())


def warp(
    pixels: Float[Tensor, "B C H W"], boxes: Float[Tensor, "R 4"], pictures: Int[Tensor, "R"], side: int, context: int
) -> Float[Tensor, "R C s s"]:
    """Appendix A: each box, whatever its shape, becomes a square of `side` pixels with `context` of them around it on all sides.

    Bilinear, without antialiasing; what lies outside the picture is its mean, which is 0 in a normalised one.
    """
    b = xyxy_to_cxcywh(boxes.detach())
    wide = cxcywh_to_xyxy(torch.cat([b[:, :2], b[:, 2:] * (side / (side - 2 * context))], 1))
    steps = (torch.arange(side, device=boxes.device, dtype=boxes.dtype) + 0.5) / side
    height, width = pixels.shape[-2:]
    x = (wide[:, :1] + (wide[:, 2:3] - wide[:, :1]) * steps) * (2 / width) - 1
    y = (wide[:, 1:2] + (wide[:, 3:] - wide[:, 1:2]) * steps) * (2 / height) - 1
    grid = torch.stack(torch.broadcast_tensors(x[:, None], y[:, :, None]), -1)
    out = pixels.new_zeros(len(boxes), pixels.shape[1], side, side)
    for i, picture in enumerate(pixels):
        own = (pictures == i).nonzero()[:, 0]
        if len(own):
            rows = grid[own].reshape(1, len(own) * side, side, 2).to(pixels.dtype)
            cut = F.grid_sample(picture[None], rows, mode="bilinear", padding_mode="zeros", align_corners=False)
            out = out.index_copy(0, own, cut[0].unflatten(1, (-1, side)).transpose(0, 1))
    return out


class RCNN(nn.Module):
    """Figure 1: proposals, warped regions, the features of each, one score and one correction a class.

    `forward` takes the regions of each picture, (N, 4) xyxy in network pixels; without them it proposes its own.
    """

    inputs = ("regions",)

    def __init__(self, config: Config, backbone: nn.Module) -> None:
        super().__init__()
        if not isinstance(backbone, Embedder):
            raise CapabilityError(f"rcnn: expected a backbone with embed(), found {type(backbone).__name__}")
        if not 0 <= 2 * config.context < config.crop:
            raise UsageError(f"rcnn: context={config.context} leaves nothing of a crop of {config.crop} pixels")
        self.config = config
        self.prepare = prepared(config.side)
        self.search = Search(config.proposals, config.scales, config.spaces)
        self.backbone = backbone
        self.head = Head(_width(backbone, config.crop), config.hidden, config.classes, config.dropout)

    def forward(
        self, pixels: Float[Tensor, "B C H W"], valid: Tensor | None = None, regions: Sequence[Tensor] | None = None
    ) -> Answers:
        if regions is None:
            regions = regions_in(pixels, valid, self.prepare, self.search)
        boxes, pictures = listed(regions, pixels)
        maps = self.see(pixels)
        looked = slice(0) if self.training else slice(None)
        logits, margins, deltas = self.head(self.pooled(maps, boxes[looked], pictures[looked]))
        return Answers(boxes, pictures, logits, margins, deltas, maps)

    def see(self, pixels: Float[Tensor, "B C H W"]) -> Tensor:
        """What is done once a picture: nothing, regions are cut from the pixels themselves."""
        return pixels

    def pooled(self, maps: Tensor, boxes: Float[Tensor, "R 4"], pictures: Int[Tensor, "R"]) -> Float[Tensor, "R P"]:
        """The backbone's description of every warped region (pool5)."""
        found = [maps.new_zeros(0, self.head.fc6.in_features)]
        for part, owner in zip(boxes.split(CHUNK), pictures.split(CHUNK)):
            if len(part):
                crops = warp(maps, part, owner, self.config.crop, self.config.context)
                found.append(self.backbone.embed(crops.contiguous(memory_format=torch.channels_last)))
        return torch.cat(found)

    def steps(self) -> dict[str, Callable[[Described], None]]:
        """What is solved after fine-tuning, in this order, from the descriptions of all regions."""
        return {"svm": partial(solve_scores, self.head, cost=self.config.cost), "box": partial(solve_boxes, self.head)}

    def results(self, out: Answers, images: Images) -> list[Result]:
        """Every class's corrected boxes, suppressed per class at IoU 0.3, best first (section 2.2)."""
        return ranked(out, images, self.head.solved)


def ranked(out: Answers, images: Images, solved: bool) -> list[Result]:
    """The 100 best boxes of every picture: by the SVMs where they are `solved` (margins above -1), else by fine-tuning's softmax."""
    probs = (2 * out.margins.detach()).sigmoid() if solved else out.logits.detach().softmax(-1)[:, 1:]
    floor = 1 / (1 + math.exp(2)) if solved else SCORE
    deltas = out.deltas.detach()
    boxes = decode_boxes(deltas, out.proposals[:, None].expand_as(deltas))
    return detected(probs, boxes, out.pictures, images, DETECTIONS, score=floor, overlap=OVERLAP)


def prepared(side: int) -> Prepare:
    """Pictures as they are; with `side`, in a square frame of that many pixels, as the recipe of "tiny" shows them in training."""
    return Prepare(resize="letterbox", size=(side, side), fill=114) if side else PREPARE


def _width(backbone: Embedder, side: int) -> int:
    """How long the backbone's description of a square of `side` pixels is."""
    module = backbone
    assert isinstance(module, nn.Module)
    like = next(module.parameters())
    modes = {part: part.training for part in module.modules()}
    module.eval()
    with torch.no_grad():
        width = int(backbone.embed(torch.zeros(1, 3, side, side, dtype=like.dtype, device=like.device)).shape[1])
    for part, training in modes.items():
        part.training = training
    return width


NETWORK = RCNN
# an SVM knows an object's own box and what overlaps none by 0.3; one positive a class needs a high price
OVERFIT = {"observable": "found", "changes": {"cost": 1.0}}


# --- step 3: fine-tuning -------------------------------------------------------------------------------------------------


class Losses:
    """Cross-entropy of N classes and background on sampled regions, a quarter of them objects (IoU of 0.5 or more, section 2.3)."""

    def __init__(self, network: Any) -> None:
        self.network = network

    def __call__(self, out: Answers, batch: Batch) -> dict[str, Tensor]:
        config = self.network.config
        _, truth, weights = learned_from(batch, out.proposals, config.classes)
        regions = sampled(out.proposals, out.pictures, truth, config.samples)
        logits = self.network.head.classify(self.network.pooled(out.maps, regions.boxes, regions.pictures)).to(out.proposals)
        loss = F.cross_entropy(logits, regions.labels, reduction="none")
        return {"class": (loss * weights[regions.pictures]).sum() / object_count(len(regions.labels), out.proposals)}


def objective(network: RCNN) -> Supervised:
    """Step 3. Targets are boxes in network-input pixels; the input "regions" of a batch, where it has one, are its proposals."""
    return Supervised(network, Losses(network))


# --- steps 4 and 5: SVMs and box regressors ------------------------------------------------------------------------------


def solve_scores(head: Head, table: Described, cost: float) -> None:
    """Step 4: a linear SVM per class on fc7. Positives are the objects' own boxes, negatives regions of IoU below 0.3 with every one.

    It starts from random negatives, and is solved again with those of a pass over all regions that lie within its margin. A class
    without an object keeps the margin -1 everywhere.
    """
    from sklearn.svm import LinearSVC

    rng = np.random.default_rng(0)
    scale = NORM / _length(table.vectors)
    for label in range(len(head.svm.bias)):
        # own boxes and objects are listed picture by picture, in one order
        positives = np.flatnonzero(table.own == 1)[table.labels == label]
        negatives = np.flatnonzero(table.overlaps(label) < FAR)
        weight, bias = np.zeros(table.vectors.shape[1]), -1.0
        if len(positives) and len(negatives):
            chosen = rng.choice(negatives, min(START, len(negatives)), replace=False)
            for mines in (True, False):
                rows = np.concatenate([positives, np.sort(chosen)])
                svm: Any = LinearSVC  # its stub wants a whole number for the bias's feature
                machine: Any = svm(
                    C=cost,
                    loss="hinge",
                    class_weight={1: POSITIVES},
                    intercept_scaling=BIAS,
                    max_iter=5000,
                    tol=1e-3,
                    random_state=0,
                )
                kinds = np.r_[np.ones(len(positives), int), np.zeros(len(chosen), int)]
                machine.fit(table.vectors[rows].astype(np.float64) * scale, kinds)
                weight, bias = machine.coef_[0] * scale, float(machine.intercept_[0])
                if mines:
                    margins = _margins(table.vectors, negatives, weight, bias)
                    hard = negatives[margins > -1.0001]
                    if len(hard) > HARDEST:
                        hard = negatives[np.argsort(-margins, kind="stable")[:HARDEST]]
                    chosen = np.union1d(hard, chosen[_margins(table.vectors, chosen, weight, bias) > -1.2])
                    chosen = chosen if len(chosen) else negatives[:1]
        head.svm.weight[label] = torch.as_tensor(weight)
        head.svm.bias[label] = bias


def solve_boxes(head: Head, table: Described) -> None:
    """Step 5: per class, a ridge regression (lambda 1000) from pool5 to the correction that carries a proposal to its object.

    It learns from proposals that overlap an object by IoU 0.6; a class without any leaves its proposals as they are.
    """
    from sklearn.linear_model import Ridge

    head.box.weight.zero_()
    head.box.bias.zero_()
    scale = NORM / _length(table.pooled) if len(table.pairs) else 1.0
    kinds = table.labels[table.nearest]
    sources, goals = (
        torch.from_numpy(np.array(rows)).double() for rows in (table.boxes[table.pairs], table.objects[table.nearest])
    )
    targets = encode_boxes(goals, sources).numpy()
    for label in range(len(head.box.bias) // 4):
        own = np.flatnonzero(kinds == label)
        part = slice(4 * label, 4 * label + 4)
        if len(own):
            machine: Any = Ridge(alpha=RIDGE).fit(table.pooled[own].astype(np.float64) * scale, targets[own])
            head.box.weight[part] = torch.as_tensor(machine.coef_ * scale)
            head.box.bias[part] = torch.as_tensor(machine.intercept_)


def _length(rows: Any, block: int = 4096) -> float:
    """The mean Euclidean length of rows, of all or of 4,096 at equal steps."""
    some = np.asarray(rows[:: max(len(rows) // block, 1)], np.float64)
    return max(float(np.sqrt((some**2).sum(1)).mean()), 1e-12)


def _margins(vectors: Any, rows: Any, weight: Any, bias: float, block: int = 65_536) -> Any:
    parts = [vectors[rows[first : first + block]] @ weight.astype(np.float32) + bias for first in range(0, len(rows), block)]
    return np.concatenate([np.zeros(0, np.float32), *parts])


# --- variants ----------------------------------------------------------------------------------------------------------

VARIANTS: dict[str, Config] = {
    "tiny": Config(
        classes=10,
        backbone=Part("alexnet/tiny", classes=0, hidden=0),
        hidden=256,
        dropout=0.1,
        crop=32,
        context=3,
        side=128,
        proposals=300,
        scales=(50.0,),
        spaces=("hsv",),
        samples=32,
    ),
    "alexnet": Config(),
}

HEAD = r"head\.(fc8|svm|box)\..*"  # what depends on the number of classes: fresh when fine-tuned on other ones
FORMATS: dict[str, Names] = {
    # torchvision's AlexNet whose last layer tells the background too, and the two solved layers; its ImageNet file too, HEAD fresh
    "torchvision": Names(
        *(rename(rf"features\.{place}\.(.*)", rf"backbone.conv{i + 1}.\1") for i, place in enumerate((0, 3, 6, 8, 10))),
        rename(r"classifier\.1\.(.*)", r"head.fc6.\1"),
        rename(r"classifier\.4\.(.*)", r"head.fc7.\1"),
        rename(r"classifier\.6\.(.*)", r"head.fc8.\1"),
        rename(r"(svm|box)\.(.*)", r"head.\1.\2"),
    ),
}
WEIGHTS: dict[str, Weights] = {}
PARAMETERS: dict[str, int] = {}

"""Recipes for Faster R-CNN, and for two ways to train it: MegDet's large batches and SNIPER's chips."""

from __future__ import annotations

from dataclasses import replace

from opticus.structures import Dataset, Part, UsageError
from opticus.training.recipe import Group, Optim, Recipe, Schedule
from opticus.transforms.chips import Chips
from opticus.transforms.colour import ColourJitter
from opticus.transforms.geometry import Flip, RandomResizedCrop, Resize

PUBLISHED = {"faster_rcnn/r50": 37.0, "faster_rcnn/r50-v2": 46.7}  # COCO val2017 AP, torchvision 0.28's weights enum
ZOO = {"faster_rcnn/r50-d2": 40.2, "faster_rcnn/r101-d2": 42.0}  # COCO val2017 AP, Detectron2's MODEL_ZOO.md, 3x schedule

_ENHANCED = " (of an enhanced recipe, pytorch/vision pull request 5763, which is not restated here)"


def default(model: str, data: Dataset) -> Recipe:
    """Embedded scenes for "tiny", COCO for the others."""
    if model in ZOO:
        return detectron2(model)
    return tiny(model) if model == "faster_rcnn/tiny" else coco(model)


def tiny(model: str) -> Recipe:
    """1,000 steps of batch 16 on 128x128 pictures; digits have a handedness, so nothing is flipped.

    Scenes hold few photographs, so any hue may turn into any other; crops are mild because small digits are the hard ones.
    """
    return Recipe(
        model,
        "scenes",
        transforms=(
            Resize((128, 128), "letterbox", fill=114),  # as the network's own `prepare` frames pictures that are not square
            RandomResizedCrop((128, 128), scale=(0.7, 1.0), ratio=(0.85, 1.18), keep=0.5),
            ColourJitter(0.4, 0.4, 0.4, 0.5),
        ),
        batch=16,
        steps=1000,
        optim={"all": Optim("adamw", lr=2e-3, weight_decay=0.02, clip=10.0)},
        schedules=(Schedule("cosine", warmup=0.05, end=0.002),),
        average=0.995,
        evaluate_every=500,
        save_every=500,
        workers=1,
        note="minutes on two cores",
    )


def coco(model: str) -> Recipe:
    """torchvision's 26 epochs of batch 16; the stem and first stage of the backbone stay as ImageNet left them."""
    return Recipe(
        model,
        "",
        transforms=(Flip(), Resize((800, 1333), "shortest")),
        batch=16,
        epochs=26,
        optim={
            "all": Optim(
                "sgd", lr=0.02, momentum=0.9, weight_decay=1e-4, groups=(Group(r"backbone\.(conv1|bn1|layer1)\.", frozen=True),)
            )
        },
        schedules=(Schedule("step", milestones=(16 / 26, 22 / 26), warmup=1000 / 190_580),),
        workers=8,
        note="torchvision's references/detection (README.md, train.py): 26 epochs of COCO on eight GPUs with two pictures each, learning "
        "rate 0.02, divided by 10 after 16 and 22 epochs, from an ImageNet backbone; published AP "
        f"{PUBLISHED[model]:.1f}{_ENHANCED if model.endswith('v2') else ''}; not run here",
    )


def detectron2(model: str) -> Recipe:
    """Detectron2's 3x schedule: 270,000 batches of 16, the shorter side drawn; stem and first stage of the backbone stay."""
    return Recipe(
        model,
        "",
        transforms=(Flip(), Resize((800, 1333), "shortest", shorts=(640, 672, 704, 736, 768, 800))),
        batch=16,
        steps=270_000,
        optim={
            "all": Optim(
                "sgd", lr=0.02, momentum=0.9, weight_decay=1e-4, groups=(Group(r"backbone\.(conv1|bn1|layer1)\.", frozen=True),)
            )
        },
        schedules=(Schedule("step", milestones=(210 / 270, 250 / 270), warmup=1000 / 270_000),),
        workers=8,
        note="facebookresearch/detectron2's configs/COCO-Detection/faster_rcnn_R_50_FPN_3x.yaml: 270,000 batches of 16 of COCO, learning "
        "rate 0.02, divided by 10 after 210,000 and 250,000, from an ImageNet backbone; published AP "
        f"{ZOO[model]:.1f}; not run here",
    )


def megdet(model: str, batch: int = 256, accumulate: int = 1) -> Recipe:
    """MegDet (Peng et al. 2018, arXiv 1711.07240): COCO in batches of 256 pictures, batch norms over all processes.

    The learning rate grows with the batch from 0.02 at 16 pictures, and the warm-up with it, linearly from 0 over as many pictures as
    1,000 steps of 256 hold. Under `torchrun` the loop turns batch norms into `layers.norm.SyncNorm`; `accumulate` cuts a batch into
    parts where memory is short, each with statistics of its own. UsageError if the parts do not divide the batch.
    """
    if accumulate < 1 or batch % accumulate:
        raise UsageError(f"megdet: expected a batch that accumulate={accumulate} divides, found {batch}")
    steps = round(26 * 117_266 / batch)
    return Recipe(
        model,
        "",
        changes={"backbone": Part("resnet/50", classes=0, norm="batch")},
        transforms=(Flip(), Resize((800, 1333), "shortest")),
        batch=batch,
        accumulate=accumulate,
        steps=steps,
        optim={"all": Optim("sgd", lr=0.02 * batch / 16, momentum=0.9, weight_decay=1e-4)},
        schedules=(Schedule("step", milestones=(16 / 26, 22 / 26), warmup=min(1000 * 256 / batch / steps, 0.1)),),
        workers=8,
        note="linear scaling of the learning rate, warm-up and batch norms over all processes as in MegDet, with the milestones of "
        "torchvision's 26 epochs (117,266 pictures with objects); from an ImageNet backbone; not run here",
    )


def sniper(model: str) -> Recipe:
    """SNIPER (Singh et al. 2018, arXiv 1805.09300): chips of 512 pixels at three scales; objects of other scales are ignored.

    Give `Chips.negatives` the false positives of a first short run. In use, results at several sizes of a picture belong together;
    here a picture is looked at in one size.
    """
    if model == "faster_rcnn/tiny":
        plain = tiny(model)
        chips = Chips(128, scales=((1.5, 0.0, 48.0), (0.0, 16.0, 1e5)), stride=16)
        return replace(plain, transforms=(chips, ColourJitter(0.4, 0.4, 0.4, 0.5)))
    plain = coco(model)
    return replace(
        plain,
        transforms=(Flip(), Chips()),
        note="chips of 512 pixels with the factors and ranges of mahyarnajibi/SNIPER (configs/faster/sniper_res101_e2e.yml) in place of whole "
        "pictures, otherwise the run of `coco`; the authors' network, its anchors and its results at three sizes are others; not run here",
    )

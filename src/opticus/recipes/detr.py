"""Recipes for DETR."""

from __future__ import annotations

from opticus.structures import Dataset
from opticus.training.recipe import Group, Optim, Recipe, Schedule
from opticus.transforms.colour import ColourJitter
from opticus.transforms.geometry import Affine, Flip, RandomResizedCrop, Resize

PUBLISHED = {"detr/r50": 42.0, "detr/r101": 43.5, "detr/r50-dc5": 43.3, "detr/r101-dc5": 44.9}  # COCO val AP, table 1


def default(model: str, data: Dataset) -> Recipe:
    """Embedded scenes for "tiny", COCO for the others."""
    return tiny(model) if model == "detr/tiny" else coco(model)


def tiny(model: str) -> Recipe:
    """A backbone that knows digits first, as the authors' knows ImageNet; DETR then learns slowly where objects are."""
    return Recipe(
        model,
        "scenes",
        pretrain={"backbone": backbone()},
        transforms=(
            Resize((128, 128), "letterbox", fill=114),
            RandomResizedCrop((128, 128), scale=(0.5, 1.0), ratio=(0.85, 1.18), keep=0.5),
            ColourJitter(0.3, 0.3, 0.3, 0.5),
        ),
        batch=16,
        steps=14_000,
        optim={"all": Optim("adamw", lr=7e-4, weight_decay=1e-4, clip=0.5)},
        schedules=(Schedule("cosine", warmup=0.04, end=0.01),),
        average=0.998,
        evaluate_every=2000,
        save_every=500,
        workers=1,
        note="a slow learner: three quarters of an hour on two cores",
    )


def backbone() -> Recipe:
    """Digits of every size that scenes show them in, in 48x48 pictures."""
    return Recipe(
        "resnet/18",
        "crops",
        transforms=(
            Resize((48, 48)),
            Affine(degrees=10, translate=(0.1, 0.1), scale=(0.5, 1.15), fill=114),
            ColourJitter(0.4, 0.4, 0.4, 0.5),
        ),
        batch=64,
        steps=1000,
        optim={"all": Optim("adamw", lr=3e-3, weight_decay=0.05, clip=5.0)},
        schedules=(Schedule("cosine", warmup=0.1, end=0.005),),
        average=0.98,
        evaluate_every=0,
        workers=1,
        note="about a minute and a half on two cores",
    )


def coco(model: str) -> Recipe:
    """The 500 epochs of table 1; the stem and first stage of the backbone stay as ImageNet left them."""
    sides = tuple(range(480, 801, 32))
    backbone = (
        Group(r"backbone\.(conv1|layer1)\.", frozen=True),
        Group(r"backbone\.", factor=0.1),
    )
    return Recipe(
        model,
        "",
        transforms=(Flip(), Resize((800, 1333), "shortest", shorts=sides)),
        batch=64,
        accumulate=1,
        epochs=500,
        optim={"all": Optim("adamw", lr=1e-4, weight_decay=1e-4, clip=0.1, groups=backbone, decay_vectors=True)},
        schedules=(Schedule("step", milestones=(400 / 500,)),),
        workers=8,
        note=f"Carion et al. 2020, section 4 and table 1: 500 epochs of COCO, batch 64, AdamW 1e-4 (backbone 1e-5), weight decay 1e-4, "
        f"divided by 10 after 400 epochs, from an ImageNet backbone; published AP {PUBLISHED[model]:.1f}; the authors' random crop "
        "of half the pictures is not part of this recipe; not run here",
    )

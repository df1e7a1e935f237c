"""Recipes for DETR."""

from __future__ import annotations

from opticus.structures import Dataset
from opticus.training.recipe import Group, Optim, Recipe, Schedule
from opticus.transforms.colour import ColourJitter
from opticus.transforms.geometry import Flip, RandomCrop, Resize

PUBLISHED = {"detr/r50": 42.0, "detr/r101": 43.5, "detr/r50-dc5": 43.3, "detr/r101-dc5": 44.9}  # COCO val AP, table 1


def default(model: str, data: Dataset) -> Recipe:
    """Embedded scenes for "tiny", COCO for the others."""
    return tiny(model) if model == "detr/tiny" else coco(model)


def tiny(model: str) -> Recipe:
    """Many passes over small pictures: DETR learns slowly, first where objects are and long after that which ones they are."""
    return Recipe(
        model,
        "scenes",
        transforms=(
            RandomCrop(56, 128),  # as the authors crop half of their pictures; a window often holds one digit, which is easier
            Resize((128, 128), "letterbox", fill=114),
            ColourJitter(0.2, 0.2, 0.2),
        ),
        batch=16,
        steps=5000,
        optim={"all": Optim("adamw", lr=4e-4, weight_decay=1e-4, clip=0.1)},
        schedules=(Schedule("cosine", warmup=0.04, end=0.005),),
        average=0.995,
        evaluate_every=1000,
        save_every=250,
        workers=1,
        note="twenty minutes on two cores; a slow learner",
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

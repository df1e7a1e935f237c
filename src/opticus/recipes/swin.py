"""Recipes for the Swin Transformer."""

from __future__ import annotations

from opticus.structures import Dataset
from opticus.training.recipe import Optim, Recipe, Schedule
from opticus.transforms.colour import ColourJitter, Erase
from opticus.transforms.geometry import Affine, Flip, RandomResizedCrop, Resize
from opticus.transforms.mixing import CutMix, MixUp
from opticus.transforms.policy import RandAugment

# ImageNet top-1 in % after training on ImageNet-1k alone, and the stochastic depth it took (MODELHUB.md and configs/swin of
# microsoft/Swin-Transformer)
SCRATCH = {"t": (81.2, 0.2), "s": (83.2, 0.3), "b": (83.5, 0.5)}
# ... and after fine-tuning at 384 pixels what was trained at 224: on ImageNet-1k (B) and on ImageNet-22k (L)
LARGER = {"b_384": (84.5, 0.5), "l_384": (87.3, 0.2)}


def default(model: str, data: Dataset) -> Recipe:
    """Embedded digits for "tiny"; for the others the authors' configurations."""
    variant = model.partition("/")[2]
    if variant == "tiny":
        return tiny(model, data)
    if variant in LARGER:
        return fine_tuned(model, 384, *LARGER[variant])
    return imagenet(model, *SCRATCH[variant]) if variant in SCRATCH else fine_tuned(model, 224, 86.3, 0.2)


def tiny(model: str, data: Dataset) -> Recipe:
    """32x32 pictures of digits, in colour or grey: mirroring would change a digit's class and is left out."""
    grey = data[0].picture.pixels.shape[2] == 1
    return Recipe(
        model,
        "digits" if grey else "crops",
        transforms=(
            Resize((32, 32)),
            Affine(degrees=10, translate=(0.06, 0.06), scale=(0.85, 1.15), fill=0 if grey else 114),
            ColourJitter(0.2, 0.2, 0.2),
        ),
        batch=64,
        steps=1100,
        optim={"all": Optim("adamw", lr=1e-3, weight_decay=0.05, clip=1.0)},
        schedules=(Schedule("cosine", warmup=0.05, end=0.02),),
        average=0.98,
        evaluate_every=400,
        workers=1,
        note="two minutes and a half on one core; on colour crops nothing was learned before step 480",
    )


def imagenet(model: str, top1: float, drop_path: float) -> Recipe:
    """Regular training on ImageNet-1k (section 4.1): DeiT's augmentation without its repeated one."""
    before = (
        RandomResizedCrop((224, 224), interpolation="bicubic"),
        Flip(),
        RandAugment(2, 9),
        Erase(0.25),
    )
    return Recipe(
        model,
        "",
        changes={"drop_path": drop_path},
        options={"smoothing": 0.1},
        transforms=(*before, MixUp(0.8, p=0.5, before=before), CutMix(1.0, p=0.5, before=before)),
        batch=1024,
        epochs=300,
        optim={"all": Optim("adamw", lr=1e-3, weight_decay=0.05, clip=5.0)},
        schedules=(Schedule("cosine", warmup=20 / 300, end=1e-2),),
        workers=8,
        note="Liu et al. 2021, section 4.1: 300 epochs, batch 1024, AdamW 0.001, cosine, 20 epochs of warm-up, weight decay 0.05, "
        "gradients clipped at norm 5, RandAugment, mix-up 0.8, CutMix 1.0, erasing 0.25, label smoothing 0.1, stochastic depth "
        f"{drop_path}; published: top-1 {top1:.1f} % at 224 pixels; not run here",
    )


def fine_tuned(model: str, side: int, top1: float, drop_path: float) -> Recipe:
    """Fine-tuning of pre-trained weights (section 4.1 and the authors' *_finetune configurations); start it with `weights=`."""
    return Recipe(
        model,
        "",
        changes={"drop_path": drop_path},
        options={"smoothing": 0.1},
        transforms=(RandomResizedCrop((side, side), interpolation="bicubic"), Flip(), RandAugment(2, 9), Erase(0.25)),
        batch=1024,
        accumulate=4,
        epochs=30,
        optim={"all": Optim("adamw", lr=4e-5, weight_decay=1e-8, clip=5.0)},
        schedules=(Schedule("cosine", warmup=5 / 30, end=1e-2),),
        workers=8,
        note="microsoft/Swin-Transformer configs/swin/*_finetune.yaml: 30 epochs, AdamW 2e-5 x batch / 512, weight decay 1e-8, 5 epochs of "
        f"warm-up, stochastic depth {drop_path}; published: top-1 {top1:.1f} % at {side} pixels; not run here",
    )

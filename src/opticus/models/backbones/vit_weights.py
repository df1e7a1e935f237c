"""Published ViT checkpoints. Every URL and figure is copied from the source that its row names."""

from __future__ import annotations

from dataclasses import replace

from opticus.structures import Prepare, Weights

HALF = (0.5, 0.5, 0.5)
PREPARE = Prepare(resize="shortest", size=(248, 0), crop=(224, 224), interpolation="bicubic", mean=HALF, std=HALF)
_AT_384 = replace(PREPARE, size=(384, 0), crop=(384, 384))
_IMAGENET = Prepare(resize="shortest", size=(256, 0), crop=(224, 224))
_DEIT = replace(_IMAGENET, size=(248, 0), interpolation="bicubic")
_SQUARE = Prepare(resize="fixed", size=(224, 224), mean=HALF, std=HALF)


def _swag(side: int) -> Prepare:
    return replace(_IMAGENET, size=(side, 0), crop=(side, side), interpolation="bicubic")


# variant, tag, file under storage.googleapis.com/vit_models/: "How to train your ViT" (2106.10270), from timm 1.0.31
_I21K = "-300ep-lr_0.001-aug_{}-wd_{}-do_{}-sd_{}"
_FT = "--imagenet2012-steps_20k-lr_{}-res_{}"
_GOOGLE = (
    ("ti16", "augreg", f"augreg/Ti_16-i21k{_I21K.format('none', 0.03, 0.0, 0.0)}{_FT.format(0.03, 224)}"),
    ("ti16_384", "augreg", f"augreg/Ti_16-i21k{_I21K.format('none', 0.03, 0.0, 0.0)}{_FT.format(0.03, 384)}"),
    ("s32", "augreg", f"augreg/S_32-i21k{_I21K.format('light1', 0.03, 0.0, 0.0)}{_FT.format(0.03, 224)}"),
    ("s32_384", "augreg", f"augreg/S_32-i21k{_I21K.format('light1', 0.03, 0.0, 0.0)}{_FT.format(0.03, 384)}"),
    ("s16", "augreg", f"augreg/S_16-i21k{_I21K.format('light1', 0.03, 0.0, 0.0)}{_FT.format(0.03, 224)}"),
    ("s16_384", "augreg", f"augreg/S_16-i21k{_I21K.format('light1', 0.03, 0.0, 0.0)}{_FT.format(0.03, 384)}"),
    ("b32", "augreg", f"augreg/B_32-i21k{_I21K.format('medium1', 0.03, 0.0, 0.0)}{_FT.format(0.03, 224)}"),
    ("b32_384", "augreg", f"augreg/B_32-i21k{_I21K.format('light1', 0.1, 0.0, 0.0)}{_FT.format(0.03, 384)}"),
    ("b16", "augreg", f"augreg/B_16-i21k{_I21K.format('medium1', 0.1, 0.0, 0.0)}{_FT.format(0.01, 224)}"),
    ("b16_384", "augreg", f"augreg/B_16-i21k{_I21K.format('medium1', 0.1, 0.0, 0.0)}{_FT.format(0.01, 384)}"),
    ("b8", "augreg", f"augreg/B_8-i21k{_I21K.format('medium1', 0.1, 0.0, 0.0)}{_FT.format(0.01, 224)}"),
    ("l16", "augreg", f"augreg/L_16-i21k{_I21K.format('medium1', 0.1, 0.1, 0.1)}{_FT.format(0.01, 224)}"),
    ("l16_384", "augreg", f"augreg/L_16-i21k{_I21K.format('medium1', 0.1, 0.1, 0.1)}{_FT.format(0.01, 384)}"),
    ("b32", "sam", "sam/ViT-B_32"),
    ("b16", "sam", "sam/ViT-B_16"),
)

# variant, tag, file, top-1, top-5, preprocessing: from torchvision 0.29 `models.vision_transformer`
_TORCHVISION = (
    ("b16", "imagenet1k_v1", "vit_b_16-c867db91", 81.072, 95.318, _IMAGENET),
    ("b32", "imagenet1k_v1", "vit_b_32-d86f8d99", 75.912, 92.466, _IMAGENET),
    ("l16", "imagenet1k_v1", "vit_l_16-852ce7e3", 79.662, 94.638, replace(_IMAGENET, size=(242, 0))),
    ("l32", "imagenet1k_v1", "vit_l_32-c7638314", 76.972, 93.07, _IMAGENET),
    ("b16", "swag_linear", "vit_b_16_lc_swag-4e70ced5", 81.886, 96.180, _swag(224)),
    ("b16_384", "swag_e2e", "vit_b_16_swag-9ac1b537", 85.304, 97.650, _swag(384)),
    ("l16", "swag_linear", "vit_l_16_lc_swag-4d563306", 85.146, 97.422, _swag(224)),
    ("l16_512", "swag_e2e", "vit_l_16_swag-4f3808c9", 88.064, 98.512, _swag(512)),
    ("h14", "swag_linear", "vit_h_14_lc_swag-c1eb923e", 85.708, 97.730, _swag(224)),
    ("h14_518", "swag_e2e", "vit_h_14_swag-80465313", 88.552, 98.694, _swag(518)),
)

# variant, file, top-1, top-5: from the README of facebookresearch/deit
_DEIT_FILES = (
    ("ti16", "deit_tiny_patch16_224-a1311bcf", 72.2, 91.1),
    ("s16", "deit_small_patch16_224-cd65a155", 79.9, 95.0),
    ("b16", "deit_base_patch16_224-b5f2ef4d", 81.8, 95.6),
    ("b16_384", "deit_base_patch16_384-8de9b5d1", 82.9, 96.2),
)

# variant, file, k-NN and linear top-1: from the README of facebookresearch/dino
_DINO_FILES = (
    ("s16_dino", "dino_deitsmall16_pretrain", 74.5, 77.0),
    ("s8_dino", "dino_deitsmall8_pretrain", 78.3, 79.7),
    ("b16_dino", "dino_vitbase16_pretrain", 76.1, 78.2),
    ("b8_dino", "dino_vitbase8_pretrain", 77.4, 80.1),
)

# variant, size in the file's name: from timm 1.0.31
_MAE_FILES = (("b16", "base"), ("l16", "large"), ("h14", "huge"))


def _google(variant: str, file: str) -> Weights:
    return Weights(
        url=f"https://storage.googleapis.com/vit_models/{file}.npz",
        format="google",
        license="Apache-2.0",
        source="timm 1.0.31 models/vision_transformer.py",
        prepare=_AT_384 if variant.endswith("_384") else PREPARE,
        labels="imagenet1k",
    )


def _torchvision(file: str, top1: float, top5: float, prepare: Prepare) -> Weights:
    return Weights(
        url=f"https://download.pytorch.org/models/{file}.pth",
        format="torchvision",
        license="https://github.com/facebookresearch/SWAG/blob/main/LICENSE" if "swag" in file else "BSD-3-Clause",
        source="torchvision 0.29.2 models/vision_transformer.py",
        prepare=prepare,
        digest=file.rpartition("-")[2],
        labels="imagenet1k",
        reports={"imagenet1k acc@1": top1, "imagenet1k acc@5": top5},
    )


def _deit(variant: str, file: str, top1: float, top5: float) -> Weights:
    return Weights(
        url=f"https://dl.fbaipublicfiles.com/deit/{file}.pth",
        format="deit",
        license="Apache-2.0",
        source="https://github.com/facebookresearch/deit README_deit.md",
        prepare=replace(_DEIT, size=(384, 0), crop=(384, 384)) if variant.endswith("_384") else _DEIT,
        digest=file.rpartition("-")[2],
        labels="imagenet1k",
        reports={"imagenet1k acc@1": top1, "imagenet1k acc@5": top5},
    )


def _dino(file: str, neighbours: float, linear: float) -> Weights:
    return Weights(
        url=f"https://dl.fbaipublicfiles.com/dino/{file}/{file}.pth",
        format="dino",
        license="Apache-2.0",
        source="https://github.com/facebookresearch/dino README.md",
        prepare=replace(_IMAGENET, interpolation="bicubic"),
        reports={"imagenet1k k-NN acc@1": neighbours, "imagenet1k linear acc@1": linear},
    )


def _mae(file: str) -> Weights:
    return Weights(
        url=f"https://dl.fbaipublicfiles.com/mae/pretrain/{file}.pth",
        format="timm",
        license="CC-BY-NC-4.0",
        source="timm 1.0.31 models/vision_transformer.py",
        prepare=_DEIT,
    )


WEIGHTS: dict[str, Weights] = {
    **{f"{variant}:{tag}": _google(variant, file) for variant, tag, file in _GOOGLE},
    "b16_in21k:orig": replace(
        _google("b16_in21k", "imagenet21k/ViT-B_16"),
        labels=None,
        source="https://github.com/google-research/vision_transformer README.md",
    ),
    **{f"{variant}:{tag}": _torchvision(file, top1, top5, prepare) for variant, tag, file, top1, top5, prepare in _TORCHVISION},
    **{f"{variant}:deit": _deit(variant, file, top1, top5) for variant, file, top1, top5 in _DEIT_FILES},
    **{f"{variant}:pretrained": _dino(file, near, linear) for variant, file, near, linear in _DINO_FILES},
    **{f"{variant}_mae:pretrained": _mae(f"mae_pretrain_vit_{size}") for variant, size in _MAE_FILES},
    **{
        f"{variant}:huggingface": Weights(
            url=f"https://huggingface.co/google/{repository}/resolve/main/model.safetensors",
            format="huggingface",
            license="Apache-2.0",
            source=f"https://huggingface.co/google/{repository}",
            prepare=replace(_SQUARE, size=(384, 384)) if variant.endswith("_384") else _SQUARE,
            labels="imagenet1k",
        )
        for variant, repository in (("b16", "vit-base-patch16-224"), ("b16_384", "vit-base-patch16-384"))
    },
}
PARAMETERS: dict[str, int] = {
    "b16": 86567656,
    "b16_384": 86859496,
    "b32": 88224232,
    "l16": 304326632,
    "l16_512": 305174504,
    "l32": 306535400,
    "h14": 632045800,
    "h14_518": 633470440,
}

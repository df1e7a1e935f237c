"""Published VGG checkpoints. torchvision's rows are copied from torchvision 0.29 `models.vgg`, timm's from timm 1.0.31 `models.vgg`."""

from __future__ import annotations

from opticus.structures import Prepare, Weights

PREPARE = Prepare(resize="shortest", size=(256, 0), crop=(224, 224))

# variant, file, top-1, top-5
_TORCHVISION = (
    ("11", "vgg11-8a719046", 69.020, 88.628),
    ("11_bn", "vgg11_bn-6002323d", 70.370, 89.810),
    ("13", "vgg13-19584684", 69.928, 89.246),
    ("13_bn", "vgg13_bn-abd245e5", 71.586, 90.374),
    ("16", "vgg16-397923af", 71.592, 90.382),
    ("16_bn", "vgg16_bn-6c64b313", 73.360, 91.516),
    ("19", "vgg19-dcbb9e9d", 72.376, 90.876),
    ("19_bn", "vgg19_bn-c79401a0", 74.218, 91.842),
)


def _torchvision(file: str, top1: float, top5: float) -> Weights:
    return Weights(
        url=f"https://download.pytorch.org/models/{file}.pth",
        format="torchvision",
        license="BSD-3-Clause",
        source="torchvision 0.29.2 models/vgg.py",
        prepare=PREPARE,
        digest=file.rpartition("-")[2],
        labels="imagenet1k",
        reports={"imagenet1k acc@1": top1, "imagenet1k acc@5": top5},
    )


def _timm(variant: str) -> Weights:
    """The same numbers under timm's names; no digest is stated there."""
    return Weights(
        url=f"https://huggingface.co/timm/vgg{variant}.tv_in1k/resolve/main/model.safetensors",
        format="timm",
        license="BSD-3-Clause",
        source="timm 1.0.31 models/vgg.py",
        prepare=PREPARE,
        labels="imagenet1k",
    )


WEIGHTS: dict[str, Weights] = {
    **{f"{variant}:imagenet1k_v1": _torchvision(file, top1, top5) for variant, file, top1, top5 in _TORCHVISION},
    **{f"{variant}:tv_in1k": _timm(variant) for variant, *_ in _TORCHVISION},
}
PARAMETERS: dict[str, int] = {
    "11": 132863336,
    "11_bn": 132868840,
    "13": 133047848,
    "13_bn": 133053736,
    "16": 138357544,
    "16_bn": 138365992,
    "19": 143667240,
    "19_bn": 143678248,
}

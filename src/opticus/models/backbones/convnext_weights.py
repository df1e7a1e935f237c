"""Published ConvNeXt checkpoints. Every URL and figure is copied from the source that its row names."""

from __future__ import annotations

from dataclasses import replace

from opticus.structures import Prepare, Weights

PREPARE = Prepare(resize="shortest", size=(256, 0), crop=(224, 224), interpolation="bicubic")
_AT_384 = replace(PREPARE, resize="fixed", size=(384, 384), crop=None)
_IN22K = 21841  # classes of ImageNet-22K as the authors count them

# variant, tag, file under dl.fbaipublicfiles.com/convnext/, top-1: from the README of facebookresearch/ConvNeXt
_FACEBOOK = (
    ("t", "in1k", "convnext_tiny_1k_224_ema", 82.1),
    ("s", "in1k", "convnext_small_1k_224_ema", 83.1),
    ("b", "in1k", "convnext_base_1k_224_ema", 83.8),
    ("b", "in1k_384", "convnext_base_1k_384", 85.1),
    ("l", "in1k", "convnext_large_1k_224_ema", 84.3),
    ("l", "in1k_384", "convnext_large_1k_384", 85.5),
    ("t", "in22k_ft_in1k", "convnext_tiny_22k_1k_224", 82.9),
    ("s", "in22k_ft_in1k", "convnext_small_22k_1k_224", 84.6),
    ("b", "in22k_ft_in1k", "convnext_base_22k_1k_224", 85.8),
    ("l", "in22k_ft_in1k", "convnext_large_22k_1k_224", 86.6),
    ("xl", "in22k_ft_in1k", "convnext_xlarge_22k_1k_224_ema", 87.0),
    ("t", "in22k_ft_in1k_384", "convnext_tiny_22k_1k_384", 84.1),
    ("s", "in22k_ft_in1k_384", "convnext_small_22k_1k_384", 85.8),
    ("b", "in22k_ft_in1k_384", "convnext_base_22k_1k_384", 86.8),
    ("l", "in22k_ft_in1k_384", "convnext_large_22k_1k_384", 87.5),
    ("xl", "in22k_ft_in1k_384", "convnext_xlarge_22k_1k_384_ema", 87.8),
    ("t", "in22k", "convnext_tiny_22k_224", None),
    ("s", "in22k", "convnext_small_22k_224", None),
    ("b", "in22k", "convnext_base_22k_224", None),
    ("l", "in22k", "convnext_large_22k_224", None),
    ("xl", "in22k", "convnext_xlarge_22k_224", None),
)

# variant, file, top-1, top-5, shorter side: from torchvision 0.29 `models.convnext`
_TORCHVISION = (
    ("t", "convnext_tiny-983f1562", 82.520, 96.146, 236),
    ("s", "convnext_small-0c510722", 83.616, 96.650, 230),
    ("b", "convnext_base-6075fbad", 84.062, 96.870, 232),
    ("l", "convnext_large-ea097f82", 84.414, 96.976, 232),
)

# variant, tag, repository under huggingface.co/timm/, preprocessing: from timm 1.0.31 `models.convnext`
_TIMM = (
    ("t", "in12k_ft_in1k", "convnext_tiny.in12k_ft_in1k", replace(PREPARE, size=(235, 0))),
    ("t", "in12k_ft_in1k_384", "convnext_tiny.in12k_ft_in1k_384", _AT_384),
    ("s", "in12k_ft_in1k", "convnext_small.in12k_ft_in1k", replace(PREPARE, size=(235, 0))),
    ("s", "in12k_ft_in1k_384", "convnext_small.in12k_ft_in1k_384", _AT_384),
)


def _facebook(tag: str, file: str, top1: float | None) -> Weights:
    large = tag == "in22k"
    return Weights(
        url=f"https://dl.fbaipublicfiles.com/convnext/{file}.pth",
        format="facebook",
        license="MIT",
        source="https://github.com/facebookresearch/ConvNeXt README.md",
        prepare=_AT_384 if tag.endswith("_384") else PREPARE,
        labels=None if large else "imagenet1k",
        classes=_IN22K if large else None,
        reports={} if top1 is None else {"imagenet1k acc@1": top1},
    )


def _torchvision(file: str, top1: float, top5: float, short: int) -> Weights:
    return Weights(
        url=f"https://download.pytorch.org/models/{file}.pth",
        format="torchvision",
        license="BSD-3-Clause",
        source="torchvision 0.29.2 models/convnext.py",
        prepare=replace(PREPARE, size=(short, 0), interpolation="bilinear"),
        digest=file.rpartition("-")[2],
        labels="imagenet1k",
        reports={"imagenet1k acc@1": top1, "imagenet1k acc@5": top5},
    )


def _timm(repository: str, prepare: Prepare) -> Weights:
    return Weights(
        url=f"https://huggingface.co/timm/{repository}/resolve/main/model.safetensors",
        format="timm",
        license="Apache-2.0",
        source="timm 1.0.31 models/convnext.py",
        prepare=prepare,
        labels="imagenet1k",
    )


WEIGHTS: dict[str, Weights] = {
    **{f"{variant}:{tag}": _facebook(tag, file, top1) for variant, tag, file, top1 in _FACEBOOK},
    **{f"{variant}:imagenet1k_v1": _torchvision(file, top1, top5, short) for variant, file, top1, top5, short in _TORCHVISION},
    **{f"{variant}:{tag}": _timm(repository, prepare) for variant, tag, repository, prepare in _TIMM},
    "t:huggingface": Weights(
        url="https://huggingface.co/facebook/convnext-tiny-224/resolve/main/model.safetensors",
        format="huggingface",
        license="Apache-2.0",
        source="https://huggingface.co/facebook/convnext-tiny-224",
        prepare=PREPARE,
        labels="imagenet1k",
    ),
}
PARAMETERS: dict[str, int] = {
    "t": 28589128,
    "s": 50223688,
    "b": 88591464,
    "l": 197767336,
    "xl": 350196968,
}

"""Published Swin checkpoints. Every URL and figure is copied from the source that its row names."""

from __future__ import annotations

from dataclasses import replace

from opticus.structures import Prepare, Weights

PREPARE = Prepare(resize="shortest", size=(256, 0), crop=(224, 224), interpolation="bicubic")
_AT_384 = replace(PREPARE, resize="fixed", size=(384, 384), crop=None)

# variant, tag, release and file under github.com/SwinTransformer/storage, top-1, top-5: from the authors' MODELHUB.md; the 22k files'
# own classes have no figure
_MICROSOFT = (
    ("t", "in1k", "v1.0.0/swin_tiny_patch4_window7_224", 81.2, 95.5),
    ("s", "in1k", "v1.0.0/swin_small_patch4_window7_224", 83.2, 96.2),
    ("b", "in1k", "v1.0.0/swin_base_patch4_window7_224", 83.5, 96.5),
    ("b_384", "in1k", "v1.0.0/swin_base_patch4_window12_384", 84.5, 97.0),
    ("t", "in22k_in1k", "v1.0.8/swin_tiny_patch4_window7_224_22kto1k_finetune", 80.9, 96.0),
    ("s", "in22k_in1k", "v1.0.8/swin_small_patch4_window7_224_22kto1k_finetune", 83.2, 97.0),
    ("b", "in22k_in1k", "v1.0.0/swin_base_patch4_window7_224_22kto1k", 85.2, 97.5),
    ("b_384", "in22k_in1k", "v1.0.0/swin_base_patch4_window12_384_22kto1k", 86.4, 98.0),
    ("l", "in22k_in1k", "v1.0.0/swin_large_patch4_window7_224_22kto1k", 86.3, 97.9),
    ("l_384", "in22k_in1k", "v1.0.0/swin_large_patch4_window12_384_22kto1k", 87.3, 98.2),
    ("t", "in22k", "v1.0.8/swin_tiny_patch4_window7_224_22k", None, None),
    ("s", "in22k", "v1.0.8/swin_small_patch4_window7_224_22k", None, None),
    ("b", "in22k", "v1.0.0/swin_base_patch4_window7_224_22k", None, None),
    ("b_384", "in22k", "v1.0.0/swin_base_patch4_window12_384_22k", None, None),
    ("l", "in22k", "v1.0.0/swin_large_patch4_window7_224_22k", None, None),
    ("l_384", "in22k", "v1.0.0/swin_large_patch4_window12_384_22k", None, None),
)

# variant, file, top-1, top-5, shorter side after the resize: from torchvision 0.29 `models.swin_transformer`
_TORCHVISION = (
    ("t", "swin_t-704ceda3", 81.474, 95.776, 232),
    ("s", "swin_s-5e29d889", 83.196, 96.360, 246),
    ("b", "swin_b-68c6b09e", 83.582, 96.640, 238),
)


def _microsoft(variant: str, file: str, top1: float | None, top5: float | None) -> Weights:
    return Weights(
        url=f"https://github.com/SwinTransformer/storage/releases/download/{file}.pth",
        format="microsoft",
        license="MIT",
        source="https://github.com/microsoft/Swin-Transformer MODELHUB.md",
        prepare=_AT_384 if "_384" in variant else PREPARE,
        labels=None if top1 is None else "imagenet1k",
        classes=21841 if top1 is None else None,
        reports={} if top1 is None or top5 is None else {"imagenet1k acc@1": top1, "imagenet1k acc@5": top5},
    )


def _torchvision(file: str, top1: float, top5: float, side: int) -> Weights:
    return Weights(
        url=f"https://download.pytorch.org/models/{file}.pth",
        format="torchvision",
        license="BSD-3-Clause",
        source="torchvision 0.29.2 models/swin_transformer.py",
        prepare=replace(PREPARE, size=(side, 0)),
        digest=file.rpartition("-")[2],
        labels="imagenet1k",
        reports={"imagenet1k acc@1": top1, "imagenet1k acc@5": top5},
    )


WEIGHTS: dict[str, Weights] = {
    **{f"{variant}:{tag}": _microsoft(variant, file, top1, top5) for variant, tag, file, top1, top5 in _MICROSOFT},
    **{f"{variant}:imagenet1k_v1": _torchvision(file, top1, top5, side) for variant, file, top1, top5, side in _TORCHVISION},
}
PARAMETERS: dict[str, int] = {
    "t": 28288354,
    "s": 49606258,
    "b": 87768224,
}

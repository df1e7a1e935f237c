"""Published EfficientNet checkpoints. Every URL and figure is copied from the source that its row names."""

from __future__ import annotations

from dataclasses import replace

from opticus.structures import Prepare, Weights

PREPARE = Prepare(resize="shortest", size=(256, 0), crop=(224, 224), interpolation="bicubic")
_HALF = (0.5, 0.5, 0.5)

# variant, tag, file, top-1, top-5, crop, shorter side: from torchvision 0.29 `models.efficientnet`
_TORCHVISION = (
    ("b0", "imagenet1k_v1", "efficientnet_b0_rwightman-7f5810bc", 77.692, 93.532, 224, 256),
    ("b1", "imagenet1k_v1", "efficientnet_b1_rwightman-bac287d4", 78.642, 94.186, 240, 256),
    ("b1", "imagenet1k_v2", "efficientnet_b1-c27df63c", 79.838, 94.934, 240, 255),
    ("b2", "imagenet1k_v1", "efficientnet_b2_rwightman-c35c1473", 80.608, 95.310, 288, 288),
    ("b3", "imagenet1k_v1", "efficientnet_b3_rwightman-b3899882", 82.008, 96.054, 300, 320),
    ("b4", "imagenet1k_v1", "efficientnet_b4_rwightman-23ab8bcd", 83.384, 96.594, 380, 384),
    ("b5", "imagenet1k_v1", "efficientnet_b5_lukemelas-1a07897c", 83.444, 96.628, 456, 456),
    ("b6", "imagenet1k_v1", "efficientnet_b6_lukemelas-24a108a5", 84.008, 96.916, 528, 528),
    ("b7", "imagenet1k_v1", "efficientnet_b7_lukemelas-c5b4e57e", 84.122, 96.908, 600, 600),
)

# variant, tag, file, side, share of the picture that is kept: from timm 1.0.31 `models.efficientnet`
_TIMM = (
    ("b0", "ra_in1k", "efficientnet_b0_ra-3dd342df", 224, 0.875),
    ("b1", "ft_in1k", "efficientnet_b1-533bc792", 224, 0.875),
    ("b2", "ra_in1k", "efficientnet_b2_ra-bcdf34b7", 256, 0.875),
    ("b3", "ra2_in1k", "efficientnet_b3_ra2-cf984f9c", 288, 0.875),
    ("b4", "ra2_in1k", "efficientnet_b4_ra2_320-7eb33cd5", 320, 0.875),
)

# the authors' weights by training: variant -> file; sides and shares kept by variant: from the same file
_SIDES = {
    "b0": (224, 0.875),
    "b1": (240, 0.882),
    "b2": (260, 0.890),
    "b3": (300, 0.904),
    "b4": (380, 0.922),
    "b5": (456, 0.934),
    "b6": (528, 0.942),
    "b7": (600, 0.949),
}
_TF = {
    "in1k": "b0-0af12548 b1-5c1377c4 b2-e393ef04 b3-e3bd6955 b4-74ee3bed b5-c6949ce9",
    "aa_in1k": "b0_aa-827b6e33 b1_aa-ea7a6ee0 b2_aa-60c94f97 b3_aa-84b4657e b4_aa-818f208c b5_aa-99018a74 b6_aa-80ba17e4 b7_aa-076e3472",
    "ra_in1k": "b5_ra-9a3e5369 b7_ra-6c08e654",
    "ap_in1k": "b0_ap-f262efe1 b1_ap-44ef0a3d b2_ap-2f8e7636 b3_ap-aad25bdd b4_ap-dedb23e6 b5_ap-9e82fae8 b6_ap-4ffb161f b7_ap-ddb28fec",
    "ns_jft_in1k": "b0_ns-c0e6a31c b1_ns-99dd0c41 b2_ns-00306e48 b3_ns-9d44bf68 b4_ns-d6313a46 b5_ns-6f26d0cf b6_ns-51548356 b7_ns-1dbc32de",
}
_OTHER_OWNER = ("in1k",), ("b5_aa-99018a74", "b7_aa-076e3472")  # files under huggingface/, the others under rwightman/


def _torchvision(file: str, top1: float, top5: float, crop: int, short: int) -> Weights:
    plain = file == "efficientnet_b1-c27df63c"
    return Weights(
        url=f"https://download.pytorch.org/models/{file}.pth",
        format="torchvision",
        license="BSD-3-Clause",
        source="torchvision 0.29.2 models/efficientnet.py",
        prepare=replace(PREPARE, size=(short, 0), crop=(crop, crop), interpolation="bilinear" if plain else "bicubic"),
        digest=file.rpartition("-")[2],
        labels="imagenet1k",
        reports={"imagenet1k acc@1": top1, "imagenet1k acc@5": top5},
    )


def _timm(file: str, side: int, kept: float, owner: str = "rwightman", half: bool = False) -> Weights:
    prepare = replace(PREPARE, size=(int(side / kept), 0), crop=(side, side))
    return Weights(
        url=f"https://github.com/{owner}/pytorch-image-models/releases/download/v0.1-weights/{file}.pth",
        format="timm",
        license="Apache-2.0",
        source="timm 1.0.31 models/efficientnet.py",
        prepare=replace(prepare, mean=_HALF, std=_HALF) if half else prepare,
        digest=file.rpartition("-")[2],
        labels="imagenet1k",
    )


def _authors(tag: str, file: str) -> Weights:
    owner = "huggingface" if tag in _OTHER_OWNER[0] or file in _OTHER_OWNER[1] else "rwightman"
    return _timm(f"tf_efficientnet_{file}", *_SIDES[file[:2]], owner, half=tag == "ap_in1k")


WEIGHTS: dict[str, Weights] = {
    **{
        f"{variant}:{tag}": _torchvision(file, top1, top5, crop, short)
        for variant, tag, file, top1, top5, crop, short in _TORCHVISION
    },
    **{f"{variant}:{tag}": _timm(file, side, kept) for variant, tag, file, side, kept in _TIMM},
    "b5_sw:in12k_ft_in1k": replace(
        _timm("", 448, 1.0),
        url="https://huggingface.co/timm/efficientnet_b5.sw_in12k_ft_in1k/resolve/main/model.safetensors",
        prepare=replace(PREPARE, resize="fixed", size=(448, 448), crop=None),
        digest=None,
    ),
    **{f"tf_{file[:2]}:{tag}": _authors(tag, file) for tag, files in _TF.items() for file in files.split()},
}
_COUNTS = (5288548, 7794184, 9109994, 12233232, 19341616, 30389784, 43040704, 66347960)
PARAMETERS: dict[str, int] = {
    **{f"b{i}": count for i, count in enumerate(_COUNTS)},
    "b5_sw": _COUNTS[5],
    **{f"tf_b{i}": count for i, count in enumerate(_COUNTS)},
}

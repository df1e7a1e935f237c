"""Published SENet checkpoints: rows copied from timm 1.0.31 `models/resnet.py` and `models/senet.py`."""

from __future__ import annotations

from dataclasses import replace

from opticus.structures import Prepare, Weights

PREPARE = Prepare(resize="shortest", size=(256, 0), crop=(224, 224))
_BICUBIC = replace(PREPARE, interpolation="bicubic")
_RSB = replace(PREPARE, size=(235, 0), interpolation="bicubic")
_GITHUB = "https://github.com/{}/releases/download/{}.pth"

# variant, tag, repository, release and file, preprocessing: trained with timm, or ported from GluonCV by its author
_TIMM = (
    ("50", "a1_in1k", "huggingface/pytorch-image-models", "v0.1-rsb-weights/seresnet50_a1_0-ffa00869", _RSB),
    ("50", "a2_in1k", "huggingface/pytorch-image-models", "v0.1-rsb-weights/seresnet50_a2_0-850de0d9", _RSB),
    ("50", "ra2_in1k", "rwightman/pytorch-image-models", "v0.1-weights/seresnet50_ra_224-8efdb4bb", _BICUBIC),
    ("resnext50_32x4d", "racm_in1k", "rwightman/pytorch-image-models", "v0.1-weights/seresnext50_32x4d_racm-a304a460", _BICUBIC),
    ("resnext101_32x8d", "ah_in1k", "rwightman/pytorch-image-models", "v0.1-tpu-weights/seresnext101_32x8d_ah-e6bc4c0a", _RSB),
    (
        "resnext50_32x4d",
        "gluon_in1k",
        "rwightman/pytorch-pretrained-gluonresnet",
        "v0.1/gluon_seresnext50_32x4d-90cf2d6e",
        _BICUBIC,
    ),
    (
        "resnext101_32x4d",
        "gluon_in1k",
        "rwightman/pytorch-pretrained-gluonresnet",
        "v0.1/gluon_seresnext101_32x4d-cf52900d",
        _BICUBIC,
    ),
    (
        "resnext101_64x4d",
        "gluon_in1k",
        "rwightman/pytorch-pretrained-gluonresnet",
        "v0.1/gluon_seresnext101_64x4d-f9926f93",
        _BICUBIC,
    ),
    ("154", "gluon_in1k", "rwightman/pytorch-pretrained-gluonresnet", "v0.1/gluon_senet154-70a1a3c0", _BICUBIC),
)

# variant, release and file: the authors' Caffe files, converted by Cadene; top-1 and top-5 of github.com/hujie-frank/SENet in %
_CADENE = (
    ("caffe_50", "v0.1-cadene/se_resnet50-ce0d4300", 77.63, 93.64),
    ("caffe_101", "v0.1-cadene/se_resnet101-7e38fcc6", 78.25, 94.28),
    ("caffe_152", "v0.1-cadene/se_resnet152-d17c99b7", 78.66, 94.46),
    ("caffe_resnext50_32x4d", "v0.1-weights/legacy_se_resnext50_32x4d-f3651bad", 79.03, 94.46),
    ("caffe_resnext101_32x4d", "v0.1-weights/legacy_se_resnext101_32x4d-37725eac", 80.19, 95.04),
    ("caffe_154", "v0.1-weights/legacy_senet154-e9eb9fe6", 81.32, 95.53),
)


def _timm(owner: str, file: str, prepare: Prepare) -> Weights:
    return Weights(
        url=_GITHUB.format(owner, file),
        format="timm",
        license="Apache-2.0",
        source="timm 1.0.31 models/resnet.py",
        prepare=prepare,
        digest=file.rpartition("-")[2],
        labels="imagenet1k",
    )


def _cadene(variant: str, file: str, top1: float, top5: float) -> Weights:
    return Weights(
        url=_GITHUB.format("rwightman/pytorch-image-models", file),
        format="cadene154" if variant == "caffe_154" else "cadene",
        license="Apache-2.0",
        source="timm 1.0.31 models/senet.py; figures: README of github.com/hujie-frank/SENet",
        prepare=PREPARE,
        digest=file.rpartition("-")[2],
        labels="imagenet1k",
        reports={"imagenet1k acc@1": top1, "imagenet1k acc@5": top5},
    )


WEIGHTS: dict[str, Weights] = {
    **{f"{variant}:{tag}": _timm(owner, file, prepare) for variant, tag, owner, file, prepare in _TIMM},
    **{f"{variant}:authors": _cadene(variant, file, top1, top5) for variant, file, top1, top5 in _CADENE},
}
PARAMETERS: dict[str, int] = {
    "50": 28088024,
    "101": 49326872,
    "152": 66821848,
    "resnext50_32x4d": 27559896,
    "resnext101_32x4d": 48955416,
    "resnext101_64x4d": 88232984,
    "resnext101_32x8d": 93569048,
    "154": 115088984,
    "caffe_50": 28088024,
    "caffe_101": 49326872,
    "caffe_152": 66821848,
    "caffe_resnext50_32x4d": 27559896,
    "caffe_resnext101_32x4d": 48955416,
    "caffe_154": 115088984,
}

"""Published ResNet checkpoints. torchvision's rows are copied from torchvision 0.29 `models.resnet` (its weights' meta data)."""

from __future__ import annotations

from dataclasses import replace

from opticus.structures import Prepare, Weights

PREPARE = Prepare(resize="shortest", size=(256, 0), crop=(224, 224))
_V2 = replace(PREPARE, size=(232, 0))
_CIFAR = Prepare(resize="fixed", size=(32, 32), mean=(0.4914, 0.4822, 0.4465), std=(0.2023, 0.1994, 0.2010))
_RSB = replace(PREPARE, size=(235, 0), interpolation="bicubic")

# variant, tag, file, top-1, top-5, preprocessing
_TORCHVISION = (
    ("18", "imagenet1k_v1", "resnet18-f37072fd", 69.758, 89.078, PREPARE),
    ("34", "imagenet1k_v1", "resnet34-b627a593", 73.314, 91.420, PREPARE),
    ("50", "imagenet1k_v1", "resnet50-0676ba61", 76.130, 92.862, PREPARE),
    ("50", "imagenet1k_v2", "resnet50-11ad3fa6", 80.858, 95.434, _V2),
    ("101", "imagenet1k_v1", "resnet101-63fe2227", 77.374, 93.546, PREPARE),
    ("101", "imagenet1k_v2", "resnet101-cd907fc2", 81.886, 95.780, _V2),
    ("152", "imagenet1k_v1", "resnet152-394f9c45", 78.312, 94.046, PREPARE),
    ("152", "imagenet1k_v2", "resnet152-f82ba261", 82.284, 96.002, _V2),
    ("resnext50_32x4d", "imagenet1k_v1", "resnext50_32x4d-7cdf4587", 77.618, 93.698, PREPARE),
    ("resnext50_32x4d", "imagenet1k_v2", "resnext50_32x4d-1a0047aa", 81.198, 95.340, _V2),
    ("resnext101_32x8d", "imagenet1k_v1", "resnext101_32x8d-8ba56ff5", 79.312, 94.526, PREPARE),
    ("resnext101_32x8d", "imagenet1k_v2", "resnext101_32x8d-110c445d", 82.834, 96.228, _V2),
    ("resnext101_64x4d", "imagenet1k_v1", "resnext101_64x4d-173b62eb", 83.246, 96.454, _V2),
    ("wide50_2", "imagenet1k_v1", "wide_resnet50_2-95faca4d", 78.468, 94.086, PREPARE),
    ("wide50_2", "imagenet1k_v2", "wide_resnet50_2-9ba9bcbe", 81.602, 95.758, _V2),
    ("wide101_2", "imagenet1k_v1", "wide_resnet101_2-32ee1156", 78.848, 94.284, PREPARE),
    ("wide101_2", "imagenet1k_v2", "wide_resnet101_2-d733dc28", 82.510, 96.020, _V2),
)

# variant, tag, owner of the repository, file: "ResNet strikes back" (2110.00476), copied from timm 1.0.31 `models.resnet`
_TIMM = (
    ("18", "a1_in1k", "huggingface", "resnet18_a1_0-d63eafa0"),
    ("34", "a1_in1k", "huggingface", "resnet34_a1_0-46f8f793"),
    ("50", "a1_in1k", "rwightman", "resnet50_a1_0-14fe96d1"),
    ("101", "a1_in1k", "huggingface", "resnet101_a1_0-cdcb52a9"),
    ("152", "a1_in1k", "huggingface", "resnet152_a1_0-2eee8a7a"),
    ("resnext50_32x4d", "a1_in1k", "huggingface", "resnext50_32x4d_a1_0-b5a91a1d"),
)

# variant, data set, classes, file, top-1, top-5: README and pytorch_cifar_models/resnet.py of chenyaofo/pytorch-cifar-models
_SMALL = (
    ("20", "cifar10", 10, "resnet20-4118986f", 92.60, 99.81),
    ("32", "cifar10", 10, "resnet32-ef93fc4d", 93.53, 99.77),
    ("44", "cifar10", 10, "resnet44-2a3cabcb", 94.01, 99.77),
    ("56", "cifar10", 10, "resnet56-187c023a", 94.37, 99.83),
    ("20", "cifar100", 100, "resnet20-23dac2f1", 68.83, 91.01),
    ("32", "cifar100", 100, "resnet32-84213ce6", 70.16, 90.89),
    ("44", "cifar100", 100, "resnet44-ffe32858", 71.63, 91.58),
    ("56", "cifar100", 100, "resnet56-f2eff4c8", 72.63, 91.94),
)


def _torchvision(file: str, top1: float, top5: float, prepare: Prepare) -> Weights:
    return Weights(
        url=f"https://download.pytorch.org/models/{file}.pth",
        format="torchvision",
        license="BSD-3-Clause",
        source="torchvision 0.29.2 models/resnet.py",
        prepare=prepare,
        digest=file.rpartition("-")[2],
        labels="imagenet1k",
        reports={"imagenet1k acc@1": top1, "imagenet1k acc@5": top5},
    )


def _timm(owner: str, file: str) -> Weights:
    return Weights(
        url=f"https://github.com/{owner}/pytorch-image-models/releases/download/v0.1-rsb-weights/{file}.pth",
        format="timm",
        license="Apache-2.0",
        source="timm 1.0.31 models/resnet.py",
        prepare=_RSB,
        digest=file.rpartition("-")[2],
        labels="imagenet1k",
    )


def _small(data: str, classes: int, file: str, top1: float, top5: float) -> Weights:
    return Weights(
        url=f"https://github.com/chenyaofo/pytorch-cifar-models/releases/download/resnet/{data}_{file}.pt",
        format="cifar",
        license="BSD-3-Clause",
        source="https://github.com/chenyaofo/pytorch-cifar-models at 786c162",
        prepare=_CIFAR,
        classes=classes,
        reports={f"{data} acc@1": top1, f"{data} acc@5": top5},
    )


WEIGHTS: dict[str, Weights] = {
    **{f"{variant}:{tag}": _torchvision(file, top1, top5, prepare) for variant, tag, file, top1, top5, prepare in _TORCHVISION},
    **{f"{variant}:{tag}": _timm(owner, file) for variant, tag, owner, file in _TIMM},
    **{f"{variant}:{data}": _small(data, classes, file, *found) for variant, data, classes, file, *found in _SMALL},
    "50:microsoft": Weights(
        url="https://huggingface.co/microsoft/resnet-50/resolve/main/model.safetensors",
        format="huggingface",
        license="Apache-2.0",
        source="https://huggingface.co/microsoft/resnet-50",
        prepare=replace(PREPARE, interpolation="bicubic"),
        labels="imagenet1k",
    ),
}
PARAMETERS: dict[str, int] = {
    "18": 11689512,
    "34": 21797672,
    "50": 25557032,
    "101": 44549160,
    "152": 60192808,
    "resnext50_32x4d": 25028904,
    "resnext101_32x8d": 88791336,
    "resnext101_64x4d": 83455272,
    "wide50_2": 68883240,
    "wide101_2": 126886696,
}

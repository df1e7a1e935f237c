"""Published EfficientDet checkpoints: files and scores from effdet 0.4.1, `config/model_config.py` and the table of its README."""

from __future__ import annotations

import re
from typing import Any

from opticus.structures import Prepare, Weights
from opticus.weights.names import Names, flatten, rename


def prepare_for(side: int, *, centred: bool = True) -> Prepare:
    """A square that the picture fits into, on grey; `centred` says that colours are centred on ImageNet's mean, not on 0.5."""
    if centred:
        return Prepare(resize="letterbox", size=(side, side), fill=114)
    half = (0.5, 0.5, 0.5)
    return Prepare(resize="letterbox", size=(side, side), fill=0, mean=half, std=half)


# --- names -------------------------------------------------------------------------------------------------------------

_BN = r"(weight|bias|running_mean|running_var|num_batches_tracked)"
_CONV = {"pw": "expand", "dw": "depthwise", "pwl": "project"}


def _conv(match: re.Match[str]) -> str:
    """blocks.2.1.conv_pwl -> stages.2.1.project.conv; the first stage's only 1x1 convolution, conv_pw, is the projection"""
    layer = "project" if match[1] == "0" and match[3] == "pw" else _CONV[match[3]]
    return f"backbone.stages.{match[1]}.{match[2]}.{layer}.conv.weight"


def _norm(match: re.Match[str]) -> str:
    """blocks.2.1.bn3 -> stages.2.1.project.norm; the first stage has two"""
    layer = ("expand", "depthwise", "project")[int(match[3]) - (match[1] != "0")]
    return f"backbone.stages.{match[1]}.{match[2]}.{layer}.norm.{match[4]}"


def _excite(kind: str, *operations: Any) -> Any:
    place = r"backbone\.blocks\.(\d)\.(\d+)\.se\.conv_(reduce|expand)\."
    return rename(place + kind, rf"backbone.stages.\1.\2.squeeze.\3.{kind}", *operations)


_FUSION = r"fpn\.cell\.(\d+)\.fnode\.(\d+)\."
FORMATS: dict[str, Names] = {
    "effdet": Names(
        rename(r"backbone\.conv_stem\.weight", "backbone.stem.conv.weight"),
        rename(rf"backbone\.bn1\.{_BN}", r"backbone.stem.norm.\1"),
        rename(r"backbone\.blocks\.(\d)\.(\d+)\.conv_(pw|dw|pwl)\.weight", _conv),
        rename(rf"backbone\.blocks\.(\d)\.(\d+)\.bn([123])\.{_BN}", _norm),
        _excite("weight", flatten(1)),
        _excite("bias"),
        rename(r"fpn\.resample\.\d+\.conv\.conv\.(.*)", r"coarser.conv.\1"),
        rename(r"fpn\.resample\.\d+\.conv\.bn\.(.*)", r"coarser.norm.\1"),
        rename(_FUSION + r"combine\.edge_weights", r"cells.\1.\2.weights"),
        rename(_FUSION + r"combine\.resample\.(\d+)\.conv\.conv\.(.*)", r"cells.\1.\2.project.\3.conv.\4"),
        rename(_FUSION + r"combine\.resample\.(\d+)\.conv\.bn\.(.*)", r"cells.\1.\2.project.\3.norm.\4"),
        rename(_FUSION + r"after_combine\.conv\.conv_dw\.(.*)", r"cells.\1.\2.conv.depthwise.\3"),
        rename(_FUSION + r"after_combine\.conv\.conv_pw\.(.*)", r"cells.\1.\2.conv.pointwise.\3"),
        rename(_FUSION + r"after_combine\.conv\.bn\.(.*)", r"cells.\1.\2.norm.\3"),
        rename(r"(class|box)_net\.conv_rep\.(\d+)\.conv_dw\.(.*)", r"\1_net.convs.\2.depthwise.\3"),
        rename(r"(class|box)_net\.conv_rep\.(\d+)\.conv_pw\.(.*)", r"\1_net.convs.\2.pointwise.\3"),
        rename(r"(class|box)_net\.bn_rep\.(\d+)\.(\d+)\.bn\.(.*)", r"\1_net.norms.\2.\3.\4"),
        rename(r"(class|box)_net\.predict\.conv_dw\.(.*)", r"\1_net.answer.depthwise.\2"),
        rename(r"(class|box)_net\.predict\.conv_pw\.(.*)", r"\1_net.answer.pointwise.\2"),
    )
}

# --- files -------------------------------------------------------------------------------------------------------------

# variant, tag, file, side, AP on COCO val2017 as effdet states it; "_ap" files are the authors' with AdvProp
_FILES = (
    ("d0", "coco", "tf_efficientdet_d0_34-f153e0cf", 512, 34.2),
    ("d1", "coco", "tf_efficientdet_d1_40-a30f94af", 640, 40.1),
    ("d2", "coco", "tf_efficientdet_d2_43-8107aa99", 768, 43.4),
    ("d3", "coco", "tf_efficientdet_d3_47-0b525f35", 896, 47.1),
    ("d4", "coco", "tf_efficientdet_d4_49-f56376d9", 1024, 49.2),
    ("d5", "coco", "tf_efficientdet_d5_51-c79f9be6", 1280, 51.2),
    ("d6", "coco", "tf_efficientdet_d6_52-4eda3773", 1280, 52.0),
    ("d7", "coco", "tf_efficientdet_d7_53-6d1d7a95", 1536, 53.1),
    ("d7x", "coco", "tf_efficientdet_d7x-f390b87c", 1536, 54.3),
    ("d0", "coco_ap", "tf_efficientdet_d0_ap-d0cdbd0a", 512, 34.8),
    ("d1", "coco_ap", "tf_efficientdet_d1_ap-7721d075", 640, 40.8),
    ("d2", "coco_ap", "tf_efficientdet_d2_ap-a2995c19", 768, 44.2),
    ("d3", "coco_ap", "tf_efficientdet_d3_ap-e4a2feab", 896, 47.7),
    ("d4", "coco_ap", "tf_efficientdet_d4_ap-f601a5fc", 1024, 50.2),
    ("d5", "coco_ap", "tf_efficientdet_d5_ap-3673ae5d", 1280, 52.1),
    ("torch_d0", "coco", "efficientdet_d0-f3276ba8", 512, 33.6),
    ("torch_d1", "coco", "efficientdet_d1-bb7e98fe", 640, 39.4),
)
WEIGHTS: dict[str, Weights] = {
    f"{variant}:{tag}": Weights(
        url=f"https://github.com/rwightman/efficientdet-pytorch/releases/download/v0.1/{file}.pth",
        format="effdet",
        license="Apache-2.0",
        source="effdet 0.4.1: config/model_config.py, README.md",
        prepare=prepare_for(side, centred=tag == "coco"),
        labels="coco90",
        reports={"AP": ap},
    )
    for variant, tag, file, side, ap in _FILES
}

"""SENet as in timm (Apache-2.0): its ResNets with squeeze and excitation, and the authors' Caffe networks as Cadene converted them."""

import torchvision_shim  # noqa: F401  (before anything that imports torchvision)

# isort: split
from functools import partial

import timm
import torch
from timm.layers import SEModule
from timm.models.resnet import BasicBlock, Bottleneck, ResNet
from timm.models.senet import SEBottleneck, SENet, SEResNetBottleneck, SEResNeXtBottleneck

from opticus.parity.case import network_input
from opticus.parity.fill import fill_module
from opticus.structures import Prepare

PAPER = "senet"
PICTURES = [[70, 49, 1], [70, 49, 2]]
TIMM = {
    "50": "seresnet50",
    "101": "seresnet101",
    "152": "seresnet152",
    "resnext50_32x4d": "seresnext50_32x4d",
    "resnext101_32x4d": "seresnext101_32x4d",
    "resnext101_64x4d": "seresnext101_64x4d",
    "resnext101_32x8d": "seresnext101_32x8d",
    "154": "senet154",
}
CADENE = {
    "caffe_50": "legacy_seresnet50",
    "caffe_101": "legacy_seresnet101",
    "caffe_152": "legacy_seresnet152",
    "caffe_resnext50_32x4d": "legacy_seresnext50_32x4d",
    "caffe_resnext101_32x4d": "legacy_seresnext101_32x4d",
}


def reference():
    return {
        "repository": "https://github.com/huggingface/pytorch-image-models",
        "version": timm.__version__,
        "license": "Apache-2.0",
        "kind": "package",
    }


def outputs_of(model, pixels, modules):
    """Logits, ranked probabilities, and the output of each stage."""
    found = []
    hooks = [module.register_forward_hook(lambda _m, _x, y: found.append(y)) for module in modules]
    logits = model(pixels)
    for hook in hooks:
        hook.remove()
    probs = logits.softmax(1)
    order = probs[1].argsort(descending=True)
    return {"out": logits, "results.1.labels": order, "results.1.probs": probs[1]} | {
        f"features.{i}": y for i, y in enumerate(found)
    }


def stages(model, count):
    return [getattr(model, f"layer{i + 1}") for i in range(count)]


def two_stages(block, **options):
    """timm's class with two stages only: its forward passes through the absent ones."""
    model = ResNet(block, (1, 1), 7, channels=(64, 128), block_args={"attn_layer": "se"}, **options)
    model.layer3 = model.layer4 = torch.nn.Identity()
    return model


@torch.no_grad()
def tiny():
    pixels, _ = network_input(PICTURES, Prepare())
    cases = []

    def add(name, form, variant, config, model, count, prepare=None):
        state = fill_module(model.double().eval())
        case = {"name": name, "format": form, "variant": variant, "config": {**config, "classes": 7}, "state": state,
                "pictures": PICTURES, "outputs": outputs_of(model, pixels, stages(model, count))}  # fmt: skip
        cases.append(case | ({"prepare": prepare} if prepare else {}))

    model = ResNet(
        BasicBlock, (1, 2), 7, channels=(64, 128), block_args={"attn_layer": partial(SEModule, rd_ratio=1 / 4, rd_divisor=1)}
    )
    model.layer3 = model.layer4 = model.maxpool = torch.nn.Identity()
    model.conv1 = torch.nn.Conv2d(3, 64, 3, 1, 1, bias=False)
    small = {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}
    add("basic, small stem", "timm", "tiny", {"layers": [1, 2], "width": 64}, model, 2, small)

    grouped = two_stages(Bottleneck, cardinality=4, base_width=8)
    add("grouped", "timm", "50", {"layers": [1, 1], "groups": 4, "group_width": 8}, grouped, 2)
    deep = {
        "cardinality": 64,
        "base_width": 4,
        "stem_type": "deep",
        "stem_width": 64,
        "down_kernel_size": 3,
        "block_reduce_first": 2,
    }
    add("SENet-154, GluonCV", "timm", "154", {"layers": [1, 1]}, two_stages(Bottleneck, **deep), 2)

    legacy = partial(SENet, layers=(1, 1, 1, 1), reduction=16, num_classes=7)
    layers = {"layers": [1, 1, 1, 1]}
    add("stride on 1x1", "cadene", "caffe_50", layers, legacy(SEResNetBottleneck, groups=1), 4)
    add("ResNeXt", "cadene", "caffe_resnext50_32x4d", layers, legacy(SEResNeXtBottleneck, groups=32), 4)
    wide = {"downsample_kernel_size": 3, "downsample_padding": 1, "inplanes": 128, "input_3x3": True}
    add("SENet-154", "cadene154", "caffe_154", layers, legacy(SEBottleneck, groups=64, **wide), 4)
    return cases


def built(name):
    with torch.device("meta"):
        return timm.create_model(name)


def shapes_of(name):
    return {key: tuple(tensor.shape) for key, tensor in built(name).state_dict().items()}


def manifests():
    return {
        "timm": {variant: shapes_of(name) for variant, name in TIMM.items()},
        "cadene": {variant: shapes_of(name) for variant, name in CADENE.items()},
        "cadene154": {"caffe_154": shapes_of("legacy_senet154")},
    }


def parameters():
    every = {**TIMM, **CADENE, "caffe_154": "legacy_senet154"}
    return {variant: sum(p.numel() for p in built(name).parameters()) for variant, name in every.items()}


@torch.no_grad()
def full():
    pixels, _ = network_input([[224, 224, 1], [224, 224, 2]], Prepare())
    for form, variant, name in (("timm", "50", "seresnet50"), ("cadene", "caffe_50", "legacy_seresnet50"),
                                ("cadene154", "caffe_154", "legacy_senet154")):  # fmt: skip
        model = timm.create_model(name).eval()
        state = fill_module(model)
        yield {"name": name, "format": form, "variant": variant, "state": state,
               "pictures": [[224, 224, 1], [224, 224, 2]], "outputs": {"out": model(pixels.float())}}  # fmt: skip

"""ResNet as in torchvision (BSD-3-Clause), timm (Apache-2.0) and Hugging Face transformers (Apache-2.0)."""

import torchvision_shim  # noqa: F401  (before anything that imports torchvision)

# isort: split
import timm
import torch
import torchvision
import transformers
from hugging_face import filled, hub_shapes
from PIL import Image
from timm.models.resnet import BasicBlock as TimmBasic
from timm.models.resnet import Bottleneck as TimmBottleneck
from timm.models.resnet import ResNet as TimmResNet
from torchvision.models.resnet import BasicBlock, Bottleneck, ResNet
from torchvision.transforms._presets import ImageClassification
from transformers import ResNetConfig, ResNetForImageClassification

from opticus.parity.fill import fill_module, picture

PAPER = "resnet"
MEAN, STD = (torch.tensor(v, dtype=torch.float64)[:, None, None] for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
TORCHVISION = {
    "18": "resnet18",
    "34": "resnet34",
    "50": "resnet50",
    "101": "resnet101",
    "152": "resnet152",
    "resnext50_32x4d": "resnext50_32x4d",
    "resnext101_32x8d": "resnext101_32x8d",
    "resnext101_64x4d": "resnext101_64x4d",
    "wide50_2": "wide_resnet50_2",
    "wide101_2": "wide_resnet101_2",
}
DEPTHS = {"18": [2, 2, 2, 2], "34": [3, 4, 6, 3], "50": [3, 4, 6, 3], "101": [3, 4, 23, 3], "152": [3, 8, 36, 3]}


def reference():
    return {
        "repository": "https://github.com/pytorch/vision",
        "version": f"{torchvision.__version__}; timm {timm.__version__}; transformers {transformers.__version__}",
        "license": "BSD-3-Clause; Apache-2.0; Apache-2.0",
        "kind": "package",
    }


def pixels_of(pictures, dtype=torch.float64):
    raw = [torch.from_numpy(picture(*p)).permute(2, 0, 1).to(torch.float64) / 255 for p in pictures]
    return torch.stack([(r - MEAN) / STD for r in raw]).to(dtype)


def outputs_of(logits):
    probs = logits.softmax(1)
    return {"out": logits, "results.1.labels": probs[1].argsort(descending=True), "results.1.probs": probs[1]}


def maps_of(model, pixels):
    found = []
    hooks = [getattr(model, f"layer{i}").register_forward_hook(lambda _m, _x, y: found.append(y)) for i in (1, 2, 3, 4)]
    model(pixels)
    for hook in hooks:
        hook.remove()
    return {f"features.{i}": y for i, y in enumerate(found)}


def two_stages(block, **options):
    """timm's class with two stages only: its forward passes through the absent ones."""
    model = TimmResNet(block, (1, 1), 7, channels=(64, 128), **options)
    model.layer3 = model.layer4 = torch.nn.Identity()
    return model


@torch.no_grad()
def tiny():
    pictures = [[70, 49, 1], [70, 49, 2]]
    pixels = pixels_of(pictures)
    cases = []

    model = ResNet(BasicBlock, [2, 1, 1, 1], num_classes=7).double().eval()
    state = fill_module(model)
    cases.append({"name": "basic", "format": "torchvision", "variant": "18", "config": {"layers": [2, 1, 1, 1], "classes": 7},
                  "state": state, "pictures": pictures, "outputs": outputs_of(model(pixels)) | maps_of(model, pixels)})  # fmt: skip

    model = ResNet(Bottleneck, [1, 2, 1, 1], 7, groups=4, width_per_group=8, replace_stride_with_dilation=[False, True, True])
    state = fill_module(model.double().eval())
    config = {"layers": [1, 2, 1, 1], "classes": 7, "groups": 4, "group_width": 8, "dilate": [3, 4]}
    cases.append({"name": "grouped, dilated", "format": "torchvision", "variant": "50", "config": config,
                  "state": state, "pictures": pictures, "outputs": {"out": model(pixels)} | maps_of(model, pixels)})  # fmt: skip

    model = two_stages(TimmBottleneck, base_width=128).double().eval()
    state = fill_module(model)
    config = {"layers": [1, 1], "classes": 7}
    cases.append({"name": "wide", "format": "timm", "variant": "wide50_2", "config": config,
                  "state": state, "pictures": pictures, "outputs": {"out": model(pixels)}})  # fmt: skip

    model = two_stages(TimmBasic)
    model.conv1, model.maxpool = torch.nn.Conv2d(3, 64, 3, 1, 1, bias=False), torch.nn.Identity()
    state = fill_module(model.double().eval())
    cases.append({"name": "small stem", "format": "timm", "variant": "tiny", "config": {"layers": [1, 1], "classes": 7, "width": 64},
                  "prepare": {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]},
                  "state": state, "pictures": pictures, "outputs": {"out": model(pixels)}})  # fmt: skip

    for kind, sizes, config in (
        ("bottleneck", [32, 64, 128], {"layers": [2, 1, 1], "width": 8, "classes": 7}),
        ("basic", [8, 16, 32], {"layers": [2, 1, 1], "width": 8, "classes": 7, "block": "basic"}),
    ):
        hub = ResNetConfig(embedding_size=8, hidden_sizes=sizes, depths=[2, 1, 1], layer_type=kind, num_labels=7)
        model, state = filled(ResNetForImageClassification, hub)
        cases.append({"name": f"hub {kind}", "format": "huggingface", "variant": "50", "config": config,
                      "state": state, "pictures": pictures, "outputs": {"out": model(pixels).logits}})  # fmt: skip

    # the whole path of torchvision's evaluation preset, antialiased resize on Pillow pictures included
    preset = ImageClassification(crop_size=48, resize_size=64)
    shapes = [[90, 131, 3], [150, 101, 4]]
    prepared = torch.stack([preset(Image.fromarray(picture(*p))) for p in shapes]).double()
    cases.append({"name": "preset", "format": "torchvision", "variant": "50", "state": {}, "pictures": shapes,
                  "prepare": {"size": [64, 0], "crop": [48, 48]}, "outputs": {"prepared": prepared},
                  "tolerance": {"prepared": 0.02}, "why": "one grey level: the resampling works on uint8"})  # fmt: skip
    return cases


def shapes_of(build):
    with torch.device("meta"):
        return {key: tuple(tensor.shape) for key, tensor in build().state_dict().items()}


def hub_config(variant):
    sizes = [64, 128, 256, 512] if variant in ("18", "34") else [256, 512, 1024, 2048]
    kind = "basic" if variant in ("18", "34") else "bottleneck"
    return ResNetConfig(hidden_sizes=sizes, depths=DEPTHS[variant], layer_type=kind, num_labels=1000)


def manifests():
    return {
        "torchvision": {v: shapes_of(getattr(torchvision.models, name)) for v, name in TORCHVISION.items()},
        "huggingface": {v: hub_shapes(lambda v=v: ResNetForImageClassification(hub_config(v))) for v in DEPTHS},
    }


def parameters():
    every = {v: torchvision.models.get_model_weights(name).DEFAULT.meta["num_params"] for v, name in TORCHVISION.items()}
    return {variant: int(count) for variant, count in every.items()}


@torch.no_grad()
def full():
    pictures = [[224, 224, 1], [224, 224, 2]]
    pixels = pixels_of(pictures, torch.float32)
    for variant in ("50", "resnext50_32x4d"):
        model = getattr(torchvision.models, TORCHVISION[variant])().eval()
        state = fill_module(model)
        yield {"name": TORCHVISION[variant], "format": "torchvision", "variant": variant, "state": state,
               "pictures": pictures, "outputs": {"out": model(pixels)}}  # fmt: skip
    model = timm.create_model("resnet50").eval()
    state = fill_module(model)
    yield {"name": "timm resnet50", "format": "timm", "variant": "50", "state": state,
           "pictures": pictures, "outputs": {"out": model(pixels)}}  # fmt: skip
    model, state = filled(ResNetForImageClassification, hub_config("50"), torch.float32)
    yield {"name": "hub resnet-50", "format": "huggingface", "variant": "50", "state": state,
           "pictures": pictures, "outputs": {"out": model(pixels).logits}}  # fmt: skip

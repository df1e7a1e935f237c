"""VGG as in torchvision (BSD-3-Clause) and timm (Apache-2.0)."""

import torchvision_shim  # noqa: F401  (before anything that imports torchvision)

# isort: split
import timm
import torch
import torchvision
from PIL import Image
from timm.layers import ClassifierHead
from timm.models.vgg import VGG as TimmVGG
from timm.models.vgg import ConvMlp
from torchvision.models.vgg import VGG, make_layers
from torchvision.transforms._presets import ImageClassification

from opticus.parity.case import network_input
from opticus.parity.fill import fill_module, picture
from opticus.structures import Prepare

PAPER = "vgg"
VARIANTS = ("11", "11_bn", "13", "13_bn", "16", "16_bn", "19", "19_bn")
# narrow networks: stages (2, 1, 1, 2, 1) of widths 4 to 32
NARROW = [4, 4, "M", 8, "M", 16, "M", 32, 32, "M", 32, "M"]
CONFIG = {"layers": [2, 1, 1, 2, 1], "width": 4, "hidden": 20, "classes": 7}


def reference():
    return {
        "repository": "https://github.com/pytorch/vision",
        "version": f"{torchvision.__version__}; timm {timm.__version__}",
        "license": "BSD-3-Clause; Apache-2.0",
        "kind": "package",
    }


def small_torchvision(norm):
    model = VGG(make_layers(NARROW, batch_norm=norm), num_classes=7)
    model.classifier[0] = torch.nn.Linear(32 * 49, 20)
    model.classifier[3] = torch.nn.Linear(20, 20)
    model.classifier[6] = torch.nn.Linear(20, 7)
    return model.double().eval()


def small_timm(norm):
    model = TimmVGG(NARROW, num_classes=7, norm_layer=torch.nn.BatchNorm2d if norm else None)
    model.pre_logits, model.head = ConvMlp(32, 20, 7), ClassifierHead(20, 7)
    return model.double().eval()


def ceiled(model):
    """The same network with Caffe's pooling, which keeps the last odd row and column."""
    for layer in model.features:
        if isinstance(layer, torch.nn.MaxPool2d):
            layer.ceil_mode = True
    return model


def features_of(model, pixels):
    maps = ceiled(model).forward_intermediates(pixels, intermediates_only=True)
    return {f"features.{i}": y for i, y in enumerate(maps)}


@torch.no_grad()
def tiny():
    cases = []
    for name, norm, pictures in (
        ("plain", False, [[224, 224, 1], [224, 224, 2]]),
        ("batch norm, other size", True, [[250, 120, 1], [250, 120, 2]]),  # averaged to the grid
    ):
        model = small_torchvision(norm)
        state = fill_module(model)
        pixels, _ = network_input(pictures, Prepare())
        logits = model(pixels)
        probs = logits.softmax(1)
        outputs = {"out": logits, "results.1.labels": probs[1].argsort(descending=True), "results.1.probs": probs[1]}
        cases.append({"name": name, "format": "torchvision", "variant": "16", "config": {**CONFIG, "norm": norm}, "state": state,
                      "pictures": pictures, "outputs": outputs})  # fmt: skip

    model.classifier[6] = torch.nn.Identity()
    model.classifier[5] = torch.nn.Identity()
    cases.append({"name": "embedding", "format": "torchvision", "variant": "16", "config": {**CONFIG, "norm": True, "classes": 0},
                  "state": {k: v for k, v in state.items() if not k.startswith("classifier.6")},
                  "pictures": pictures, "outputs": {"out": model(pixels)}})  # fmt: skip

    for name, norm, pictures in (
        ("timm", False, [[224, 224, 1], [224, 224, 2]]),
        ("timm, dense", True, [[275, 301, 1], [275, 301, 2]]),  # the hidden layers slide over 8x9 places
        ("timm, dense, low", False, [[130, 260, 1], [130, 260, 2]]),  # a map lower than the grid is averaged up to it first
    ):
        model = small_timm(norm)
        state = fill_module(model)
        pixels, _ = network_input(pictures, Prepare())
        dense = name != "timm"
        outputs = {"out": model(pixels)} | features_of(model, pixels)
        cases.append({"name": name, "format": "timm", "variant": "16_bn", "config": {**CONFIG, "norm": norm, "dense": dense},
                      "state": state, "pictures": pictures, "outputs": outputs})  # fmt: skip

    preset = ImageClassification(crop_size=48, resize_size=64)
    shapes = [[90, 131, 3], [150, 101, 4]]
    prepared = torch.stack([preset(Image.fromarray(picture(*p))) for p in shapes]).double()
    cases.append({"name": "preset", "format": "torchvision", "variant": "16", "state": {}, "pictures": shapes,
                  "prepare": {"size": [64, 0], "crop": [48, 48]}, "outputs": {"prepared": prepared},
                  "tolerance": {"prepared": 0.02}, "why": "one grey level: the resampling works on uint8"})  # fmt: skip
    return cases


def shapes_of(build):
    with torch.device("meta"):
        return {key: tuple(tensor.shape) for key, tensor in build().state_dict().items()}


def manifests():
    return {
        "torchvision": {v: shapes_of(getattr(torchvision.models, f"vgg{v}")) for v in VARIANTS},
        "timm": {v: shapes_of(lambda v=v: timm.create_model(f"vgg{v}")) for v in VARIANTS},
    }


def parameters():
    return {v: torchvision.models.get_model_weights(f"vgg{v}").DEFAULT.meta["num_params"] for v in VARIANTS}


@torch.no_grad()
def full():
    pictures = [[224, 224, 1], [224, 224, 2]]
    pixels, _ = network_input(pictures, Prepare(), torch.float32)
    with torch.device("meta"):
        model = torchvision.models.vgg16()
    model = model.to_empty(device="cpu").eval()
    state = fill_module(model)
    yield {"name": "torchvision vgg16", "format": "torchvision", "variant": "16", "state": state,
           "pictures": pictures, "outputs": {"out": model(pixels)}}  # fmt: skip
    with torch.device("meta"):
        model = timm.create_model("vgg11_bn")
    model = model.to_empty(device="cpu").eval()
    state = fill_module(model)
    yield {"name": "timm vgg11_bn", "format": "timm", "variant": "11_bn", "state": state,
           "pictures": pictures, "outputs": {"out": model(pixels)}}  # fmt: skip

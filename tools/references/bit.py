"""BiT as in the authors' PyTorch code, timm (its loader reads the authors' npz files) and transformers (all Apache-2.0).

The first is not a pip package: set OPTICUS_REFERENCES to a folder that holds a clone of github.com/google-research/big_transfer as
`big_transfer`.
"""

import torchvision_shim  # noqa: F401  (before anything that imports torchvision)

# isort: split
import tempfile
from collections import OrderedDict
from functools import partial
from pathlib import Path

import numpy as np
import timm
import torch
import transformers
from clones import clone
from hugging_face import filled, hub_shapes
from PIL import Image
from timm.layers import StdConv2d
from timm.models.resnetv2 import ResNetV2
from torchvision import transforms
from transformers import BitConfig, BitForImageClassification, BitModel

from opticus.parity.case import network_input
from opticus.parity.fill import fill, fill_module, picture
from opticus.structures import Prepare

with clone("big_transfer"):
    from bit_pytorch.models import ResNetV2 as Authors

PAPER = "bit"
HALF = (0.5, 0.5, 0.5)
DEPTHS = {"50": [3, 4, 6, 3], "101": [3, 4, 23, 3], "152": [3, 8, 36, 3]}
SIZES = {f"{depth}x{factor}": (DEPTHS[depth], int(factor)) for depth, factor in
         (("50", 1), ("50", 3), ("101", 1), ("101", 3), ("152", 2), ("152", 4))}  # fmt: skip


def reference():
    return {
        "repository": "https://github.com/google-research/big_transfer",
        "commit": "140de6e704fd8d61f3e5ea20ffde130b7d5fd065",
        "version": f"timm {timm.__version__}; transformers {transformers.__version__}",
        "license": "Apache-2.0",
        "kind": "repository",
    }


def google_shapes(layers, width, classes):
    """The arrays of the authors' npz files: TensorFlow's names and layouts, as the authors' own loader reads them."""
    conv, norm = "standardized_conv2d/kernel", ("group_norm/gamma", "group_norm/beta")
    shapes = {f"resnet/root_block/{conv}": (7, 7, 3, width)}
    width_in = width
    for i, count in enumerate(layers):
        inner = width * 2**i
        for j in range(count):
            unit = f"resnet/block{i + 1}/unit{j + 1:02d}/"
            for step, side, a, b in (("a", 1, width_in, inner), ("b", 3, inner, inner), ("c", 1, inner, 4 * inner)):
                shapes |= {f"{unit}{step}/{conv}": (side, side, a, b), **{f"{unit}{step}/{key}": (a,) for key in norm}}
            if j == 0:
                shapes[f"{unit}a/proj/{conv}"] = (1, 1, width_in, 4 * inner)
            width_in = 4 * inner
    shapes |= {f"resnet/{key}": (width_in,) for key in norm}
    return shapes | {"resnet/head/conv2d/kernel": (1, 1, width_in, classes), "resnet/head/conv2d/bias": (classes,)}


def load_google(model, shapes, dtype=torch.float64):
    """A formula-made npz file, read by the loader of the model."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "bit.npz"
        np.savez(file, **{key: fill(key, shape, dtype).numpy() for key, shape in shapes.items()})
        if isinstance(model, Authors):
            model.load_from(np.load(file))
        else:
            model.load_pretrained(str(file))
    return model.eval()


def input_of(pictures, dtype=torch.float64):
    return network_input(pictures, Prepare(mean=HALF, std=HALF), dtype)[0]


def timm_of(layers, width, classes):
    return ResNetV2(layers, tuple(4 * width * 2**i for i in range(len(layers))), classes, stem_chs=width, stem_type="fixed",
                    conv_layer=partial(StdConv2d, eps=1e-8))  # fmt: skip


def hub_of(layers, width, classes=1000):
    sizes = [4 * width * 2**i for i in range(len(layers))]
    return BitConfig(embedding_size=width, hidden_sizes=sizes, depths=list(layers), num_labels=classes)


@torch.no_grad()
def tiny():
    pictures = [[45, 66, 1], [45, 66, 2]]
    pixels = input_of(pictures)
    small = {"variant": "50x1", "pictures": pictures, "config": {"layers": [1, 2], "width": 32, "classes": 5, "eps": 1e-8}}
    cases = []

    model = Authors([1, 2, 1, 1], 1, head_size=5).double().eval()
    state = fill_module(model)
    found = []
    hooks = [block.register_forward_hook(lambda _m, _x, y: found.append(y)) for block in model.body]
    out = model(pixels)
    for hook in hooks:
        hook.remove()
    probs = out.softmax(1)
    outputs = {"out": out, "results.1.labels": probs[1].argsort(descending=True), "results.1.probs": probs[1]}
    outputs |= {f"features.{i}": y for i, y in enumerate(found)}
    cases.append({"name": "authors", "format": "big_transfer", "variant": "50x1", "config": {"layers": [1, 2, 1, 1], "classes": 5},
                  "state": state, "pictures": pictures, "outputs": outputs})  # fmt: skip

    model = timm_of([1, 2], 32, 5).double().eval()
    state = fill_module(model)
    maps = {f"features.{i - 1}": y for i, y in enumerate(model.forward_intermediates(pixels, intermediates_only=True)) if i}
    cases.append({**small, "name": "timm", "format": "timm", "state": state, "outputs": {"out": model(pixels)} | maps})

    shapes = google_shapes([1, 2], 32, 5)
    model = load_google(timm_of([1, 2], 32, 5).double(), shapes)
    cases.append({**small, "name": "google", "format": "google", "state": shapes, "outputs": {"out": model(pixels)}})

    model = timm_of([1, 2], 32, 5)
    model.stem = torch.nn.Sequential(OrderedDict(conv=StdConv2d(3, 32, 3, 2, eps=1e-8)))
    state = fill_module(model.double().eval())
    shapes = [[19, 24, 1], [24, 16, 2]]
    cases.append({**small, "name": "small stem", "format": "timm", "state": state, "pictures": shapes,
                  "config": small["config"] | {"stem": "small"}, "outputs": {"out": model(input_of(shapes))}})  # fmt: skip

    model, state = filled(BitForImageClassification, hub_of([1, 2], 32, 5))
    cases.append({**small, "name": "hub", "format": "huggingface", "state": state, "outputs": {"out": model(pixels).logits}})
    model, state = filled(BitModel, hub_of([1, 2], 32))
    out = model(pixels).pooler_output.flatten(1)
    cases.append({**small, "name": "hub, no head", "format": "huggingface", "state": state,
                  "config": small["config"] | {"classes": 0}, "outputs": {"out": out}})  # fmt: skip

    # the authors' evaluation: squeezed to a square, whatever the picture's shape
    rule = transforms.Compose([transforms.Resize((48, 48)), transforms.ToTensor(), transforms.Normalize(HALF, HALF)])
    shapes = [[90, 131, 3], [150, 101, 4]]
    prepared = torch.stack([rule(Image.fromarray(picture(*p))) for p in shapes]).double()
    cases.append({"name": "squeezed", "format": "google", "variant": "50x1", "state": {}, "pictures": shapes,
                  "prepare": {"size": [48, 48]}, "outputs": {"prepared": prepared},
                  "tolerance": {"prepared": 0.02}, "why": "one grey level: the resampling works on uint8"})  # fmt: skip
    return cases


def shapes_of(build):
    with torch.device("meta"):
        return {key: tuple(tensor.shape) for key, tensor in build().state_dict().items()}


def manifests():
    """The files for ImageNet-21k differ in the width of their head only."""
    return {
        "google": {name: google_shapes(layers, 64 * factor, 1000) for name, (layers, factor) in SIZES.items()},
        "big_transfer": {name: shapes_of(partial(Authors, *size, head_size=1000)) for name, size in SIZES.items()},
        "timm": {name: shapes_of(partial(timm.create_model, f"resnetv2_{name}_bit")) for name in SIZES},
        "huggingface": {
            name: hub_shapes(lambda depth=name: BitForImageClassification(hub_of(DEPTHS[depth.partition("x")[0]], 64)))
            for name in ("50x1", "101x1")
        },
    }


def parameters():
    """The authors' own networks'."""
    return {
        name: sum(torch.Size(shape).numel() for shape in shapes_of(partial(Authors, *size, head_size=1000)).values())
        for name, size in SIZES.items()
    }


@torch.no_grad()
def full():
    pictures = [[224, 224, 1]]
    pixels = input_of(pictures, torch.float32)
    case = {"variant": "50x1", "pictures": pictures}
    model = Authors(DEPTHS["50"], 1, head_size=1000).eval()
    state = fill_module(model)
    yield {**case, "name": "authors", "format": "big_transfer", "state": state, "outputs": {"out": model(pixels)}}
    shapes = google_shapes(DEPTHS["50"], 64, 1000)
    model = load_google(Authors(DEPTHS["50"], 1, head_size=1000), shapes, torch.float32)
    yield {**case, "name": "google", "format": "google", "state": shapes, "outputs": {"out": model(pixels)}}
    case |= {"config": {"eps": 1e-8}}
    model = timm.create_model("resnetv2_50x1_bit").eval()
    state = fill_module(model)
    yield {**case, "name": "timm", "format": "timm", "state": state, "outputs": {"out": model(pixels)}}
    model, state = filled(BitForImageClassification, hub_of(DEPTHS["50"], 64), torch.float32)
    yield {**case, "name": "hub", "format": "huggingface", "state": state, "outputs": {"out": model(pixels).logits}}

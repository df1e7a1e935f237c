"""EfficientNet as in torchvision (BSD-3-Clause), timm (Apache-2.0) and Hugging Face transformers (Apache-2.0)."""

import torchvision_shim  # noqa: F401  (before anything that imports torchvision)

# isort: split
from functools import partial

import timm
import torch
import torchvision
import transformers
from hugging_face import filled, hub_shapes
from PIL import Image
from timm.models.efficientnet import _gen_efficientnet
from torchvision.models.efficientnet import EfficientNet, _efficientnet_conf
from torchvision.transforms._presets import ImageClassification
from torchvision.transforms.functional import InterpolationMode
from transformers import EfficientNetConfig, EfficientNetForImageClassification

from opticus.parity.case import network_input
from opticus.parity.fill import fill_module, picture
from opticus.structures import Prepare

PAPER = "efficientnet"
# width, depth, side, blocks of strided convolutions with odd inputs at that side (transformers' convert_efficientnet_to_pytorch.py)
SCALES = {
    "b0": (1.0, 1.0, 224, []),
    "b1": (1.0, 1.1, 240, [16]),
    "b2": (1.1, 1.2, 260, [5, 8, 16]),
    "b3": (1.2, 1.4, 300, [5, 18]),
    "b4": (1.4, 1.8, 380, [6]),
    "b5": (1.6, 2.2, 456, [13, 27]),
    "b6": (1.8, 2.6, 528, [31]),
    "b7": (2.0, 3.1, 600, [18]),
}


def reference():
    return {
        "repository": "https://github.com/pytorch/vision",
        "version": f"{torchvision.__version__}; timm {timm.__version__}; transformers {transformers.__version__}",
        "license": "BSD-3-Clause; Apache-2.0; Apache-2.0",
        "kind": "package",
    }


def input_of(pictures, dtype=torch.float64):
    return network_input(pictures, Prepare(), dtype)[0]


def maps_of(model, modules, pixels):
    found = []
    hooks = [module.register_forward_hook(lambda _m, _x, y: found.append(y.clone())) for module in modules]
    model(pixels)
    for hook in hooks:
        hook.remove()
    return {f"features.{i}": y for i, y in enumerate(found)}


def torchvision_of(width, depth, classes=1000, **options):
    rows, last = _efficientnet_conf("efficientnet_b", width_mult=width, depth_mult=depth)
    return EfficientNet(rows, 0.2, num_classes=classes, last_channel=last, **options)


def hub_config(width, depth, padding, classes=1000):
    sizes = {"width_coefficient": width, "depth_coefficient": depth, "hidden_dim": int(1280 * width + 4) // 8 * 8}
    return EfficientNetConfig(**sizes, depthwise_padding=padding, num_labels=classes)


@torch.no_grad()
def tiny():
    pictures = [[70, 49, 1], [70, 49, 2]]
    pixels = input_of(pictures)
    small = {"width": 0.3, "depth": 1.0, "classes": 7}
    case = {"pictures": pictures, "config": small}
    cases = []

    model = torchvision_of(0.3, 1.0, 7).double().eval()
    state = fill_module(model)
    out = model(pixels)
    probs = out.softmax(1)
    outputs = {"out": out, "results.1.labels": probs[1].argsort(descending=True), "results.1.probs": probs[1]}
    outputs |= maps_of(model, [model.features[i] for i in (1, 2, 3, 5, 7)], pixels)
    maps = maps_of(model, [model.features[i] for i in (1, 2, 3, 5, 7)], pixels)
    cases.append(
        {**case, "name": "torchvision", "format": "torchvision", "variant": "b0", "state": state, "outputs": outputs | maps}
    )

    norm = partial(torch.nn.BatchNorm2d, eps=0.001, momentum=0.01)
    model = torchvision_of(0.3, 1.0, 7, norm_layer=norm).double().eval()
    state = fill_module(model)
    cases.append({**case, "name": "torchvision, larger epsilon", "format": "torchvision", "variant": "b5",
                  "state": state, "outputs": {"out": model(pixels)}})  # fmt: skip

    model = _gen_efficientnet("efficientnet_b0", 0.3, 1.0, num_classes=7).double().eval()
    state = fill_module(model)
    cases.append({**case, "name": "timm", "format": "timm", "variant": "b0",
                  "state": state, "outputs": {"out": model(pixels)}})  # fmt: skip

    model = _gen_efficientnet("tf_efficientnet_b0", 0.3, 1.0, num_classes=7, bn_eps=1e-3, pad_type="same").double().eval()
    state = fill_module(model)
    maps = maps_of(model, [model.blocks[i] for i in (0, 1, 2, 4, 6)], pixels)
    cases.append({**case, "name": "timm tf", "format": "timm", "variant": "tf_b0", "state": state,
                  "outputs": {"out": model(pixels)} | maps})  # fmt: skip

    even = [[64, 64, 1], [64, 64, 2]]
    for variant, (_, depth, _, _) in SCALES.items():
        if variant == "b1":  # as deep as b2
            continue
        odd = variant == "b2"
        shapes, padding = ([[70, 70, 1], [70, 70, 2]], [2, 8, 16]) if odd else (even, [])  # 70, 35, 18, 9, 5
        model, state = filled(EfficientNetForImageClassification, hub_config(0.3, depth, padding, 7))
        cases.append({"name": f"hub {variant}", "format": f"huggingface_{variant}", "variant": f"tf_{variant}", "pictures": shapes,
                      "config": {**small, "depth": depth}, "state": state, "outputs": {"out": model(input_of(shapes)).logits}})  # fmt: skip
    # the whole path of torchvision's evaluation preset, bicubic antialiased resize on Pillow pictures included
    preset = ImageClassification(crop_size=48, resize_size=64, interpolation=InterpolationMode.BICUBIC)
    shapes = [[90, 131, 3], [150, 101, 4]]
    prepared = torch.stack([preset(Image.fromarray(picture(*p))) for p in shapes]).double()
    cases.append({"name": "preset", "format": "torchvision", "variant": "b0", "state": {}, "pictures": shapes,
                  "prepare": {"size": [64, 0], "crop": [48, 48]}, "outputs": {"prepared": prepared},
                  "tolerance": {"prepared": 0.02}, "why": "one grey level: the resampling works on uint8"})  # fmt: skip
    return cases


def shapes_of(build):
    with torch.device("meta"):
        return {key: tuple(tensor.shape) for key, tensor in build().state_dict().items()}


def manifests():
    own = {v: shapes_of(partial(timm.create_model, f"efficientnet_{v}")) for v in ("b0", "b1", "b2", "b3", "b4")}
    own["b5_sw"] = shapes_of(partial(timm.create_model, "efficientnet_b5"))
    hub = {v: hub_shapes(lambda v=v: EfficientNetForImageClassification(hub_config(*SCALES[v][:2], []))) for v in SCALES}
    return {
        "torchvision": {v: shapes_of(getattr(torchvision.models, f"efficientnet_{v}")) for v in SCALES},
        "timm": own | {f"tf_{v}": shapes_of(partial(timm.create_model, f"tf_efficientnet_{v}")) for v in SCALES},
        "huggingface_b0": {"tf_b0": hub["b0"]},
        "huggingface_b2": {"tf_b1": hub["b1"], "tf_b2": hub["b2"]},
        **{f"huggingface_{v}": {f"tf_{v}": hub[v]} for v in ("b3", "b4", "b5", "b6", "b7")},
    }


def parameters():
    every = {v: torchvision.models.get_model_weights(f"efficientnet_{v}").DEFAULT.meta["num_params"] for v in SCALES}
    return {variant: int(count) for variant, count in every.items()}


@torch.no_grad()
def full():
    pictures = [[224, 224, 1]]
    pixels = input_of(pictures, torch.float32)
    for name, form, variant, build in (
        ("torchvision b0", "torchvision", "b0", torchvision.models.efficientnet_b0),
        ("timm efficientnet_b0", "timm", "b0", partial(timm.create_model, "efficientnet_b0")),
        ("timm tf_efficientnet_b0", "timm", "tf_b0", partial(timm.create_model, "tf_efficientnet_b0")),
    ):
        model = build().eval()
        state = fill_module(model)
        yield {"name": name, "format": form, "variant": variant, "state": state, "pictures": pictures, "outputs": {"out": model(pixels)}}  # fmt: skip
    for variant in ("b0", "b2"):
        width, depth, side, padding = SCALES[variant]
        shapes = [[side, side, 1]]
        model, state = filled(EfficientNetForImageClassification, hub_config(width, depth, padding), torch.float32)
        yield {"name": f"hub {variant}", "format": f"huggingface_{variant}", "variant": f"tf_{variant}", "state": state,
               "pictures": shapes, "outputs": {"out": model(input_of(shapes, torch.float32)).logits}}  # fmt: skip

"""Swin as in the authors' repository (MIT), timm, transformers (both Apache-2.0) and torchvision (BSD-3-Clause).

The first is not a pip package: set OPTICUS_REFERENCES to a folder that holds a clone of github.com/microsoft/Swin-Transformer as
`Swin-Transformer`.
"""

import torchvision_shim  # noqa: F401  (before anything that imports torchvision)

# isort: split
from functools import partial

import timm
import torch
import torchvision
import transformers
from clones import clone
from hugging_face import filled, hub_shapes
from PIL import Image
from timm.models.swin_transformer import SwinTransformer as Timm
from torchvision.models.swin_transformer import SwinTransformer as TorchVision
from torchvision.transforms import InterpolationMode
from torchvision.transforms._presets import ImageClassification
from transformers import SwinConfig, SwinForImageClassification, SwinModel
from transformers.models.swin import modeling_swin

from opticus.parity.case import network_input
from opticus.parity.fill import fill_module, picture
from opticus.structures import Prepare

with clone("Swin-Transformer/models"):
    import swin_transformer as authors

PAPER = "swin"
# image size, window, width, depths, heads
SIZES = {
    "t": (224, 7, 96, (2, 2, 6, 2), (3, 6, 12, 24)),
    "s": (224, 7, 96, (2, 2, 18, 2), (3, 6, 12, 24)),
    "b": (224, 7, 128, (2, 2, 18, 2), (4, 8, 16, 32)),
    "l": (224, 7, 192, (2, 2, 18, 2), (6, 12, 24, 48)),
    "b_384": (384, 12, 128, (2, 2, 18, 2), (4, 8, 16, 32)),
    "l_384": (384, 12, 192, (2, 2, 18, 2), (6, 12, 24, 48)),
}
TORCHVISION = {"t": "swin_t", "s": "swin_s", "b": "swin_b"}
INDEX = r".*relative_position_index"
MASKS = r".*(relative_position_index|attn_mask)"


def one_activation(self, hidden_states):
    """transformers 5.23 applies GELU twice in Swin's MLP, which none of the published weights were trained with."""
    return self.fc2(self.activation_fn(self.fc1(hidden_states)))


modeling_swin.SwinMLP.forward = one_activation


def reference():
    return {
        "repository": "https://github.com/microsoft/Swin-Transformer",
        "commit": "f82860bfb5225915aca09c3227159ee9e1df874d",
        "version": f"timm {timm.__version__}; torchvision {torchvision.__version__}; transformers {transformers.__version__} "
        "(its MLP with one activation)",
        "license": "MIT; Apache-2.0; BSD-3-Clause; Apache-2.0",
        "kind": "repository",
    }


def input_of(pictures, dtype=torch.float64):
    return network_input(pictures, Prepare(), dtype)[0]


def authors_of(size, window, width, depths, heads, classes=1000):
    return authors.SwinTransformer(
        size, embed_dim=width, depths=list(depths), num_heads=list(heads), window_size=window, num_classes=classes
    )


def timm_of(size, window, width, depths, heads, classes=1000):
    return Timm(size, embed_dim=width, depths=depths, num_heads=heads, window_size=window, num_classes=classes)


def torchvision_of(window, width, depths, heads, classes):
    return TorchVision([4, 4], width, list(depths), list(heads), [window, window], num_classes=classes)


def hub_of(size, window, width, depths, heads, classes=1000):
    return SwinConfig(
        image_size=size, embed_dim=width, depths=list(depths), num_heads=list(heads), window_size=window, num_labels=classes
    )


def collected(model, modules, pixels):
    """What the given modules return in one forward pass, and the model's own output."""
    found = []
    hooks = [module.register_forward_hook(lambda _m, _x, y: found.append(y)) for module in modules]
    out = model(pixels)
    for hook in hooks:
        hook.remove()
    return out, found


def ranked(out):
    probs = out.softmax(1)
    return {"results.1.labels": probs[1].argsort(descending=True), "results.1.probs": probs[1]}


@torch.no_grad()
def tiny():
    sizes = (12, (2, 3, 2), (2, 3, 4))
    config = {"size": 64, "window": 4, "width": 12, "depths": [2, 3, 2], "heads": [2, 3, 4], "classes": 5}
    pictures = [[64, 64, 1], [64, 64, 2]]  # 16, 8 and 4 patches a side: the last stage is one window
    pixels = input_of(pictures)
    case = {"variant": "t", "config": config, "pictures": pictures}
    cases = []

    model = authors_of(64, 4, *sizes, 5).double().eval()
    state = fill_module(model, skip=MASKS)
    out, found = collected(model, [layer.blocks[-1] for layer in model.layers], pixels)
    maps = {f"features.{i}": y.transpose(1, 2).reshape(2, -1, 16 >> i, 16 >> i) for i, y in enumerate(found)}
    cases.append({**case, "name": "authors", "format": "microsoft", "state": state, "outputs": {"out": out} | ranked(out) | maps})

    model = timm_of(64, 4, *sizes, 5).double().eval()
    state = fill_module(model)
    maps = {f"features.{i}": y for i, y in enumerate(model.forward_intermediates(pixels, intermediates_only=True))}
    cases.append({**case, "name": "timm", "format": "timm", "state": state, "outputs": {"out": model(pixels)} | maps})

    # 15x23 patches (padded to 16x24), 8x12, 4x6: odd maps are merged, and one window covers the rows of the last stage only
    model = torchvision_of(4, *sizes, 5).double().eval()
    state = fill_module(model, skip=INDEX)
    pictures = [[60, 92, 1], [48, 80, 2]]
    out, found = collected(model, [model.features[i] for i in (1, 3, 5)], input_of(pictures))
    maps = {f"features.{i}": y.permute(0, 3, 1, 2) for i, y in enumerate(found)}
    cases.append({**case, "name": "torchvision, padded", "format": "torchvision", "state": state, "pictures": pictures,
                  "outputs": {"out": out} | maps})  # fmt: skip

    # no whole patches; every map is larger than a window, since transformers shrinks windows to smaller maps
    two = {**case, "format": "huggingface", "config": config | {"depths": [2, 2], "heads": [2, 3]}}
    pictures = [[61, 90, 1], [61, 90, 2]]
    model, state = filled(SwinForImageClassification, hub_of(64, 4, 12, (2, 2), (2, 3), 5))
    cases.append({**two, "name": "hub, padded", "state": state, "pictures": pictures,
                  "outputs": {"out": model(input_of(pictures)).logits}})  # fmt: skip
    model, state = filled(SwinModel, hub_of(64, 4, 12, (2, 2), (2, 3)))
    cases.append({**two, "name": "hub, no head", "config": two["config"] | {"classes": 0}, "state": state,
                  "outputs": {"out": model(pixels).pooler_output}})  # fmt: skip

    # the whole path of torchvision's evaluation preset, bicubic antialiased resize on Pillow pictures included
    preset = ImageClassification(crop_size=48, resize_size=64, interpolation=InterpolationMode.BICUBIC)
    shapes = [[90, 131, 3], [150, 101, 4]]
    prepared = torch.stack([preset(Image.fromarray(picture(*p))) for p in shapes]).double()
    cases.append({"name": "preset", "format": "torchvision", "variant": "t", "state": {}, "pictures": shapes,
                  "prepare": {"size": [64, 0], "crop": [48, 48]}, "outputs": {"prepared": prepared},
                  "tolerance": {"prepared": 0.02}, "why": "one grey level: the resampling works on uint8"})  # fmt: skip
    return cases


def shapes_of(build):
    with torch.device("meta"):
        return {key: tuple(tensor.shape) for key, tensor in build().state_dict().items()}


def authors_shapes(*sizes):
    """Built in memory: the authors' constructor reads values, which the meta device does not hold."""
    return {key: tuple(tensor.shape) for key, tensor in authors_of(*sizes).state_dict().items()}


def hub_files(config):
    """The files on the hub were written by transformers 4, which stored an index for every block."""
    shapes = hub_shapes(lambda: SwinForImageClassification(config))
    area = config.window_size**2
    tables = [key for key in shapes if key.endswith("relative_position_bias_table")]
    return shapes | {key.replace("bias_table", "index"): (area, area) for key in tables}


def manifests():
    """The files for ImageNet-22k differ in the width of their head only."""
    return {
        "microsoft": {name: authors_shapes(*sizes) for name, sizes in SIZES.items()},
        "timm": {name: shapes_of(partial(timm_of, *sizes)) for name, sizes in SIZES.items()},
        "torchvision": {name: shapes_of(getattr(torchvision.models, kind)) for name, kind in TORCHVISION.items()},
        "huggingface": {"t": hub_shapes(lambda: SwinForImageClassification(hub_of(*SIZES["t"])))},
        "huggingface_4": {name: hub_files(hub_of(*sizes)) for name, sizes in SIZES.items()},
    }


def parameters():
    """torchvision's published counts; the other variants are timm's own."""
    counts = {v: torchvision.models.get_model_weights(name).DEFAULT.meta["num_params"] for v, name in TORCHVISION.items()}
    for variant in SIZES:
        shapes = shapes_of(partial(timm_of, *SIZES[variant]))
        counts.setdefault(variant, sum(torch.Size(shape).numel() for shape in shapes.values()))
    return counts


@torch.no_grad()
def full():
    pictures = [[224, 224, 1]]
    pixels = input_of(pictures, torch.float32)
    case = {"variant": "t", "pictures": pictures}
    model = authors_of(*SIZES["t"]).eval()
    state = fill_module(model, skip=MASKS)
    yield {**case, "name": "authors", "format": "microsoft", "state": state, "outputs": {"out": model(pixels)}}
    model = timm_of(*SIZES["t"]).eval()
    state = fill_module(model)
    yield {**case, "name": "timm", "format": "timm", "state": state, "outputs": {"out": model(pixels)}}
    model = torchvision.models.swin_t().eval()
    state = fill_module(model, skip=INDEX)
    yield {**case, "name": "torchvision", "format": "torchvision", "state": state, "outputs": {"out": model(pixels)}}
    model, state = filled(SwinForImageClassification, hub_of(*SIZES["t"]), torch.float32)
    yield {**case, "name": "hub", "format": "huggingface", "state": state, "outputs": {"out": model(pixels).logits}}

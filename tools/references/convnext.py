"""ConvNeXt as in timm (Apache-2.0; its loader reads the authors' files), torchvision (BSD-3-Clause) and transformers (Apache-2.0)."""

import torchvision_shim  # noqa: F401  (before anything that imports torchvision)

# isort: split
from functools import partial

import timm
import torch
import torchvision
import transformers
from hugging_face import filled, hub_shapes
from PIL import Image
from timm.models.convnext import ConvNeXt, checkpoint_filter_fn
from torchvision.models.convnext import CNBlockConfig
from torchvision.models.convnext import ConvNeXt as TorchVision
from transformers import ConvNextConfig, ConvNextForImageClassification, ConvNextModel

from opticus.parity.case import network_input
from opticus.parity.fill import fill_module, fill_state, picture
from opticus.structures import Prepare

PAPER = "convnext"
NAMES = {"t": "tiny", "s": "small", "b": "base", "l": "large", "xl": "xlarge"}
DEPTHS = {"t": [3, 3, 9, 3]} | {variant: [3, 3, 27, 3] for variant in ("s", "b", "l", "xl")}
WIDTHS = {"t": 96, "s": 96, "b": 128, "l": 192, "xl": 256}


def reference():
    return {
        "repository": "https://github.com/huggingface/pytorch-image-models",
        "version": f"timm {timm.__version__}; torchvision {torchvision.__version__}; transformers {transformers.__version__}",
        "license": "Apache-2.0; BSD-3-Clause; Apache-2.0",
        "kind": "package",
    }


def facebook_shapes(depths, width, classes=1000, channels=3):
    """The tensors of the authors' .pth files (models/convnext.py of facebookresearch/ConvNeXt), which timm's loader renames."""
    widths = [width * 2**i for i in range(len(depths))]

    def both(name, *shape):
        return {f"{name}.weight": shape, f"{name}.bias": shape[:1]}

    shapes = both("downsample_layers.0.0", width, channels, 4, 4) | both("downsample_layers.0.1", width)
    for i, (depth, wide) in enumerate(zip(depths, widths, strict=True)):
        if i:
            shapes |= both(f"downsample_layers.{i}.0", wide // 2) | both(f"downsample_layers.{i}.1", wide, wide // 2, 2, 2)
        for j in range(depth):
            block = f"stages.{i}.{j}."
            shapes |= {f"{block}gamma": (wide,)} | both(f"{block}dwconv", wide, 1, 7, 7) | both(f"{block}norm", wide)
            shapes |= both(f"{block}pwconv1", 4 * wide, wide) | both(f"{block}pwconv2", wide, 4 * wide)
    return shapes | both("norm", widths[-1]) | both("head", classes, widths[-1])


def load_facebook(model, shapes, dtype=torch.float64):
    """A formula-made file in the authors' format, read by timm's own loader."""
    model.load_state_dict(checkpoint_filter_fn({"model": fill_state(shapes, dtype)}, model))
    return model.eval()


def torchvision_of(depths, width, classes=1000):
    widths = [width * 2**i for i in range(len(depths))]
    settings = [CNBlockConfig(w, after, d) for w, after, d in zip(widths, [*widths[1:], None], depths, strict=True)]
    return TorchVision(settings, num_classes=classes)


def hub_of(depths, width, classes=1000):
    return ConvNextConfig(depths=depths, hidden_sizes=[width * 2**i for i in range(4)], num_labels=classes)


def timm_of(depths, width, classes=1000, **options):
    return ConvNeXt(depths=depths, dims=[width * 2**i for i in range(4)], num_classes=classes, **options)


@torch.no_grad()
def tiny():
    pictures = [[64, 96, 1], [64, 96, 2]]
    pixels = network_input(pictures, Prepare())[0]
    depths, width = [1, 2, 1, 1], 8
    config = {"depths": depths, "widths": [8, 16, 32, 64], "classes": 7}
    case = {"variant": "t", "config": config, "pictures": pictures}
    cases = []

    shapes = facebook_shapes(depths, width, 7)
    model = load_facebook(timm_of(depths, width, 7).double(), shapes)
    out, maps = model(pixels), model.forward_intermediates(pixels, intermediates_only=True)
    probs = out.softmax(1)
    outputs = {"out": out, "results.1.labels": probs[1].argsort(descending=True), "results.1.probs": probs[1]}
    outputs |= {f"features.{i}": y for i, y in enumerate(maps)}
    cases.append({**case, "name": "facebook", "format": "facebook", "state": shapes, "outputs": outputs})

    model = timm_of(depths, width, 0, ls_init_value=None, kernel_sizes=5).double().eval()
    state = fill_module(model)
    changes = {"classes": 0, "layer_scale": 0.0, "kernel": 5}
    cases.append({**case, "name": "timm, no head, no layer scale", "format": "timm", "config": config | changes, "state": state,
                  "outputs": {"out": model(pixels)}})  # fmt: skip

    model = timm_of(depths, width, 7).double().eval()
    state = fill_module(model)
    cases.append({**case, "name": "timm", "format": "timm", "state": state, "outputs": {"out": model(pixels)}})

    model = torchvision_of(depths, width, 7).double().eval()
    state = fill_module(model)
    cases.append({**case, "name": "torchvision", "format": "torchvision", "state": state, "outputs": {"out": model(pixels)}})

    for kind, changes in ((ConvNextForImageClassification, {}), (ConvNextModel, {"classes": 0})):
        model, state = filled(kind, hub_of(depths, width, 7))
        answer = model(pixels)
        cases.append({**case, "name": "hub, no head" if changes else "hub", "format": "huggingface", "state": state,
                      "config": config | {"head_eps": 1e-12} | changes,
                      "outputs": {"out": answer.pooler_output if changes else answer.logits}})  # fmt: skip

    # the whole path of timm's evaluation rules, bicubic antialiased resize on Pillow pictures included: crop, and squeeze as at 384
    shapes = [[90, 131, 3], [150, 101, 4]]
    for name, rule, prepare in (
        ("preset", {"crop_pct": 0.75}, {"size": [64, 0], "crop": [48, 48]}),
        ("preset, squeezed", {"crop_pct": 1.0, "crop_mode": "squash"}, {"resize": "fixed", "size": [48, 48], "crop": None}),
    ):
        transform = timm.data.create_transform(input_size=(3, 48, 48), interpolation="bicubic", **rule)
        prepared = torch.stack([transform(Image.fromarray(picture(*p))) for p in shapes]).double()
        cases.append({"name": name, "format": "timm", "variant": "t", "state": {}, "pictures": shapes, "prepare": prepare,
                      "outputs": {"prepared": prepared}, "tolerance": {"prepared": 0.02},
                      "why": "one grey level: the resampling works on uint8"})  # fmt: skip
    return cases


def shapes_of(build):
    with torch.device("meta"):
        return {key: tuple(tensor.shape) for key, tensor in build().state_dict().items()}


def manifests():
    hub = {v: hub_shapes(lambda v=v: ConvNextForImageClassification(hub_of(DEPTHS[v], WIDTHS[v]))) for v in NAMES}
    return {
        "facebook": {v: facebook_shapes(DEPTHS[v], WIDTHS[v]) for v in NAMES},
        "timm": {v: shapes_of(partial(timm.create_model, f"convnext_{name}")) for v, name in NAMES.items()},
        "torchvision": {v: shapes_of(getattr(torchvision.models, f"convnext_{NAMES[v]}")) for v in "tsbl"},
        "huggingface": hub,
    }


def parameters():
    """torchvision's published counts; that of XL is timm's own."""
    every = {v: int(torchvision.models.get_model_weights(f"convnext_{NAMES[v]}").DEFAULT.meta["num_params"]) for v in "tsbl"}
    xl = shapes_of(partial(timm.create_model, "convnext_xlarge"))
    return every | {"xl": sum(torch.Size(shape).numel() for shape in xl.values())}


@torch.no_grad()
def full():
    pictures = [[224, 224, 1]]
    pixels = network_input(pictures, Prepare(), torch.float32)[0]
    case = {"variant": "t", "pictures": pictures}
    depths, width = DEPTHS["t"], WIDTHS["t"]
    shapes = facebook_shapes(depths, width)
    model = load_facebook(timm.create_model("convnext_tiny"), shapes, torch.float32)
    yield {**case, "name": "facebook", "format": "facebook", "state": shapes, "outputs": {"out": model(pixels)}}
    for name, build in (
        ("timm", partial(timm.create_model, "convnext_tiny")),
        ("torchvision", torchvision.models.convnext_tiny),
    ):
        model = build().eval()
        state = fill_module(model)
        yield {**case, "name": name, "format": name, "state": state, "outputs": {"out": model(pixels)}}
    model, state = filled(ConvNextForImageClassification, hub_of(depths, width), torch.float32)
    yield {**case, "name": "hub", "format": "huggingface", "state": state, "outputs": {"out": model(pixels).logits}}

"""ConvMixer as its authors wrote it (https://github.com/locuslab/convmixer, MIT, clone `convmixer`) and as in timm (Apache-2.0)."""

import torchvision_shim  # noqa: F401  (before anything that imports torchvision)

# isort: split
from functools import partial

import timm
import torch
from clones import clone
from timm.models.convmixer import ConvMixer as Timm
from torch import nn

from opticus.parity.case import network_input
from opticus.parity.fill import fill_module
from opticus.structures import Prepare

with clone("convmixer"):
    from convmixer import ConvMixer

PAPER = "convmixer"
# width, depth, kernel, patch, activation
SIZES = {"1536_20": (1536, 20, 9, 7, nn.GELU), "768_32": (768, 32, 7, 7, nn.ReLU), "1024_20": (1024, 20, 9, 14, nn.GELU)}


def reference():
    return {
        "repository": "https://github.com/locuslab/convmixer; https://github.com/huggingface/pytorch-image-models",
        "commit": "4704811",
        "version": f"timm {timm.__version__}",
        "license": "MIT; Apache-2.0",
        "kind": "repository",
    }


def authors_of(width, depth, kernel, patch, activation=nn.GELU, classes=1000):
    """The authors' sequence; their README says that the file of 768/32 needs ReLU in every place."""
    model = ConvMixer(width, depth, kernel, patch, classes)
    if activation is nn.ReLU:
        for module in list(model.modules()):
            for name, child in list(module.named_children()):
                if isinstance(child, nn.GELU):
                    setattr(module, name, nn.ReLU())
    return model


def timm_of(width, depth, kernel, patch, activation=nn.GELU, classes=1000):
    return Timm(width, depth, kernel, patch, num_classes=classes, act_layer=activation)


@torch.no_grad()
def tiny():
    pictures = [[28, 42, 1], [28, 42, 2]]
    pixels = network_input(pictures, Prepare())[0]
    config = {"width": 24, "depth": 2, "kernel": 5, "patch": 7, "classes": 5}
    case = {"variant": "1536_20", "config": config, "pictures": pictures}
    cases = []

    model = authors_of(24, 2, 5, 7, classes=5).double().eval()
    state = fill_module(model)
    out = model(pixels)
    probs = out.softmax(1)
    outputs = {"out": out, "features.0": model[:-3](pixels), "results.1.probs": probs[1]}
    outputs["results.0.labels"] = probs[0].argsort(descending=True)
    cases.append({**case, "name": "locuslab", "format": "locuslab", "state": state, "outputs": outputs})

    model = authors_of(24, 2, 3, 7, nn.ReLU, classes=5).double().eval()
    state = fill_module(model)
    cases.append({**case, "name": "locuslab with ReLU", "format": "locuslab", "config": config | {"kernel": 3, "activation": "relu"},
                  "state": state, "outputs": {"out": model(pixels)}})  # fmt: skip

    model = timm_of(24, 2, 5, 7, classes=5).double().eval()
    state = fill_module(model)
    outputs = {"out": model(pixels), "features.0": model.forward_features(pixels)}
    cases.append({**case, "name": "timm", "format": "timm", "state": state, "outputs": outputs})

    model = timm_of(24, 2, 5, 7, classes=0).double().eval()
    state = fill_module(model)
    cases.append({**case, "name": "headless", "format": "timm", "config": config | {"classes": 0}, "state": state,
                  "outputs": {"out": model(pixels)}})  # fmt: skip
    return cases


def shapes_of(build):
    with torch.device("meta"):
        return {key: tuple(tensor.shape) for key, tensor in build().state_dict().items()}


def manifests():
    kinds = {"locuslab": authors_of, "timm": timm_of}
    return {form: {v: shapes_of(partial(build, *sizes)) for v, sizes in SIZES.items()} for form, build in kinds.items()}


def parameters():
    with torch.device("meta"):
        return {v: sum(parameter.numel() for parameter in timm_of(*sizes).parameters()) for v, sizes in SIZES.items()}


@torch.no_grad()
def full():
    pictures = [[224, 224, 1]]
    pixels = network_input(pictures, Prepare(), torch.float32)[0]
    for form, build, variant in (("locuslab", authors_of, "1024_20"), ("timm", timm_of, "768_32")):
        model = build(*SIZES[variant]).eval()
        state = fill_module(model)
        yield {"name": f"{form} {variant}", "format": form, "variant": variant, "pictures": pictures, "state": state,
               "outputs": {"out": model(pixels)}}  # fmt: skip

"""gMLP as in timm (Apache-2.0); the authors published neither code nor weights."""

import torchvision_shim  # noqa: F401  (before anything that imports torchvision)

# isort: split
from functools import partial

import timm
import torch
from timm.layers import GatedMlp
from timm.models.mlp_mixer import MlpMixer, SpatialGatingBlock

from opticus.parity.case import network_input
from opticus.parity.fill import fill_module
from opticus.structures import Prepare

PAPER = "gmlp"
HALF = (0.5, 0.5, 0.5)
TIMM = {"ti16": "gmlp_ti16_224", "s16": "gmlp_s16_224", "b16": "gmlp_b16_224"}


def reference():
    return {
        "repository": "https://github.com/huggingface/pytorch-image-models",
        "version": f"timm {timm.__version__}",
        "license": "Apache-2.0",
        "kind": "package",
    }


def small(classes):
    kinds = {"block_layer": SpatialGatingBlock, "mlp_layer": GatedMlp}
    return MlpMixer(classes, 32, patch_size=8, num_blocks=3, embed_dim=24, mlp_ratio=2, **kinds).double().eval()


@torch.no_grad()
def tiny():
    pictures = [[32, 32, 1], [32, 32, 2]]
    pixels = network_input(pictures, Prepare(mean=HALF, std=HALF))[0]
    config = {"size": 32, "patch": 8, "width": 24, "depth": 3, "hidden": 48, "classes": 5}
    case = {"variant": "s16", "format": "timm", "pictures": pictures}

    model = small(5)
    state = fill_module(model)
    out = model(pixels)
    probs = out.softmax(1)
    outputs = {"out": out, "results.1.probs": probs[1], "results.0.labels": probs[0].argsort(descending=True)}
    outputs["features.0"] = model.norm(model.forward_intermediates(pixels, 1)[1][0].permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
    cases = [{**case, "name": "timm", "config": config, "state": state, "outputs": outputs}]

    headless = small(0)
    state = fill_module(headless)
    outputs = {"out": headless(pixels)}
    return [*cases, {**case, "name": "headless", "config": config | {"classes": 0}, "state": state, "outputs": outputs}]


def shapes_of(build):
    with torch.device("meta"):
        return {key: tuple(tensor.shape) for key, tensor in build().state_dict().items()}


def manifests():
    return {"timm": {variant: shapes_of(partial(timm.create_model, name)) for variant, name in TIMM.items()}}


def parameters():
    return {v: sum(torch.Size(shape).numel() for shape in shapes.values()) for v, shapes in manifests()["timm"].items()}


@torch.no_grad()
def full():
    pictures = [[224, 224, 1]]
    model = timm.create_model("gmlp_s16_224").eval()
    state = fill_module(model)
    pixels = network_input(pictures, Prepare(mean=HALF, std=HALF), torch.float32)[0]
    yield {
        "name": "timm",
        "format": "timm",
        "variant": "s16",
        "pictures": pictures,
        "state": state,
        "outputs": {"out": model(pixels)},
    }

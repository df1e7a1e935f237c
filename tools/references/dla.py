"""DLA as in timm (Apache-2.0), and with the authors' unused projections as in CenterNet's copy of their network (MIT).

Set OPTICUS_REFERENCES to a folder that holds a clone of github.com/xingyizhou/CenterNet as `CenterNet`.
"""

import torchvision_shim  # noqa: F401  (before anything that imports torchvision)

# isort: split
import timm
import torch
from deformable import networks
from timm.models.dla import DLA, DlaBasic, DlaBottleneck

from opticus.parity.case import network_input
from opticus.parity.fill import fill_module
from opticus.structures import Prepare

pose_dla_dcn = networks()[0]

PAPER = "dla"
PICTURES = [[64, 96, 1], [64, 96, 2]]
NAMES = ("34", "46_c", "46x_c", "60x_c", "60", "60x", "102", "102x", "102x2", "169")


def reference():
    return {
        "repository": "https://github.com/huggingface/pytorch-image-models",
        "version": f"{timm.__version__}; xingyizhou/CenterNet 4c50fd3a46bdf63dbf2082c5cbb3458d39579e6c",
        "license": "Apache-2.0; MIT",
        "kind": "package",
    }


@torch.no_grad()
def tiny():
    pixels, _ = network_input(PICTURES, Prepare())
    cases = []
    widths = [4, 8, 16, 16, 24, 32]
    for name, block, config, options in (
        ("basic", DlaBasic, {"levels": [1, 1, 1, 2, 1, 1]}, {}),
        ("deep, residual roots", DlaBottleneck, {"levels": [1, 2, 2, 3, 2, 1], "residual": True}, {"shortcut_root": True}),
        ("groups", DlaBottleneck, {"levels": [2, 1, 1, 2, 1, 1], "groups": 4, "group_width": 16},
         {"cardinality": 4, "base_width": 16}),
    ):  # fmt: skip
        model = DLA(config["levels"], widths, num_classes=7, block=block, **options).double().eval()
        state = fill_module(model)
        out, maps = model(pixels), model.forward_intermediates(pixels, intermediates_only=True)
        kind = "basic" if block is DlaBasic else "bottleneck"
        cases.append({"name": name, "format": "timm", "variant": "60", "config": {**config, "widths": widths, "block": kind, "classes": 7},
                      "state": state, "pictures": PICTURES,
                      "outputs": {"out": out} | {f"features.{i}": x for i, x in enumerate(maps)}})  # fmt: skip
    model = authors([1, 1, 1, 2, 2, 1], widths, 7).double().eval()
    state = headless(fill_module(model))
    config = {"widths": widths, "classes": 0}
    cases.append({"name": "unused projections", "format": "ucbdrive", "variant": "34", "config": config, "state": state,
                  "pictures": PICTURES, "outputs": {f"features.{i}": x for i, x in enumerate(model(pixels))}})  # fmt: skip
    return cases


def authors(levels, widths, classes):
    """With the classifier that the authors' loader adds, and whose weights their files hold."""
    model = pose_dla_dcn.DLA(levels, widths, block=pose_dla_dcn.BasicBlock)
    model.fc = torch.nn.Conv2d(widths[-1], classes, 1)
    return model


def headless(state):
    """A file's keys without the classifier, which their forward pass leaves out."""
    return {key: shape for key, shape in state.items() if not key.startswith("fc.")}


def manifests():
    with torch.device("meta"):
        rows = {name: timm.create_model(f"dla{name}").state_dict() for name in NAMES}
        old = authors([1, 1, 1, 2, 2, 1], [16, 32, 64, 128, 256, 512], 1000).state_dict()
    return {
        "timm": {name: {key: tuple(tensor.shape) for key, tensor in state.items()} for name, state in rows.items()},
        "ucbdrive": {"34": {key: tuple(tensor.shape) for key, tensor in old.items()}},
    }


def parameters():
    with torch.device("meta"):
        return {name: sum(p.numel() for p in timm.create_model(f"dla{name}").parameters()) for name in NAMES}


@torch.no_grad()
def full():
    pictures = [[128, 160, 1]]
    pixels, _ = network_input(pictures, Prepare(), torch.float32)
    model = timm.create_model("dla34").eval()
    state = fill_module(model)
    yield {"name": "dla34", "format": "timm", "variant": "34", "state": state, "pictures": pictures,
           "outputs": {"out": model(pixels)}}  # fmt: skip
    model = authors([1, 1, 1, 2, 2, 1], [16, 32, 64, 128, 256, 512], 1000).eval()
    state = headless(fill_module(model))
    yield {"name": "DLA-34 of CenterNet", "format": "ucbdrive", "variant": "34", "config": {"classes": 0, "block": "basic"},
           "state": state, "pictures": pictures,
           "outputs": {f"features.{i}": x for i, x in enumerate(model(pixels))}}  # fmt: skip

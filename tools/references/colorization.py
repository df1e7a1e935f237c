"""The ECCV 2016 and SIGGRAPH 2017 networks of richzhang/colorization (BSD-2-Clause), on the L channel that scikit-image makes.

Not a pip package: set OPTICUS_REFERENCES to a folder with a clone of github.com/richzhang/colorization as `colorization`. Their
widths are fixed, so the small case has the published one.
"""

import sys
import types

import torch
from clones import clone
from skimage.color import lab2rgb, rgb2lab

from opticus.models.generative.colorization import PREPARE
from opticus.parity.case import network_input
from opticus.parity.fill import fill_module

sys.modules.setdefault("IPython", types.ModuleType("IPython")).embed = None  # imported for debugging only
with clone("colorization"):
    from colorizers.eccv16 import ECCVGenerator
    from colorizers.siggraph17 import SIGGRAPHGenerator

PAPER = "colorization"


def reference():
    return {
        "repository": "https://github.com/richzhang/colorization",
        "commit": "clibdev/colorization@ba536f04ec25d361d12045d59b44ff98f71c9d23 (a fork whose networks are the authors')",
        "license": "BSD-2-Clause",
        "kind": "repository",
    }


def coloured(lightness, ab):
    lab = torch.cat([lightness, ab], 1).permute(0, 2, 3, 1).double().numpy()
    return torch.from_numpy(lab2rgb(lab)).permute(0, 3, 1, 2)


@torch.no_grad()
def case(name, pictures, dtype=torch.float64):
    model = (ECCVGenerator() if name == "eccv16" else SIGGRAPHGenerator()).to(dtype).eval()
    state = fill_module(model)
    pixels, _ = network_input(pictures, PREPARE)
    lightness = torch.from_numpy(rgb2lab(pixels.permute(0, 2, 3, 1).numpy()))[..., :1].permute(0, 3, 1, 2)
    seen = []
    last = model.model8
    handle = last.register_forward_hook(lambda module, given, out: seen.append(out))
    ab = model(lightness.to(dtype))
    handle.remove()
    logits = seen[0] if name == "eccv16" else model.model_class(seen[0])
    outputs = {"out.ab": ab, "out.logits": logits, "out.pixels": coloured(lightness, ab).to(dtype)}
    return {"name": name, "format": name, "variant": name, "config": {"size": None}, "state": state, "pictures": pictures,
            "outputs": outputs}  # fmt: skip


def tiny():
    return [case(name, [[24, 32, 1], [24, 32, 2]]) for name in ("eccv16", "siggraph17")]


def shapes(model):
    return {key: tuple(value.shape) for key, value in model.state_dict().items()}


def manifests():
    with torch.device("meta"):
        return {"eccv16": {"eccv16": shapes(ECCVGenerator())}, "siggraph17": {"siggraph17": shapes(SIGGRAPHGenerator())}}


def parameters():
    with torch.device("meta"):
        models = {"eccv16": ECCVGenerator(), "siggraph17": SIGGRAPHGenerator()}
    return {name: sum(p.numel() for p in model.parameters()) for name, model in models.items()}


def full():
    yield case("eccv16", [[64, 64, 3]], torch.float32)
    yield case("siggraph17", [[64, 64, 3]], torch.float32)

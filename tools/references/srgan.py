"""SRResNet and SRGAN of three repositories: Lornatang (Apache-2.0), sgrvinod (MIT) and leftthomas (MIT).

Not pip packages: set OPTICUS_REFERENCES to a folder with clones of github.com/Lornatang/SRGAN-PyTorch,
github.com/sgrvinod/a-PyTorch-Tutorial-to-Super-Resolution and github.com/leftthomas/SRGAN under these names.
"""

import torchvision_shim  # noqa: F401  (before anything that imports torchvision)

# isort: split
import torch
from clones import clone

from opticus.models.generative.srgan import ENDS
from opticus.parity.case import network_input
from opticus.parity.fill import fill_module, pixels_of

with clone("SRGAN-PyTorch"):
    import model as lornatang
with clone("a-PyTorch-Tutorial-to-Super-Resolution"):
    import models as sgrvinod
with clone("SRGAN"):
    import model as leftthomas

PAPER = "srgan"
PICTURES = [[20, 28, 1], [20, 28, 2]]


def reference():
    return {
        "repository": "https://github.com/Lornatang/SRGAN-PyTorch",
        "commit": "8842030eb433f8578a77328060121fa5a9a3cb43 (sgrvinod c30556bc79a9d43539f2d658722bcb7ff5011ddb, "
        "leftthomas 7ddfdf27273c42d858ec52cab5ca1cbfca81d0be)",
        "license": "Apache-2.0 (sgrvinod and leftthomas: MIT)",
        "kind": "repository",
    }


def before_the_clamp(model, pixels):
    """The output of Lornatang's last convolution; the clamp after it is what writing a picture does."""
    kept = []
    handle = model.conv3.register_forward_hook(lambda module, given, out: kept.append(out.clone()))
    model(pixels)
    handle.remove()
    return kept[0]


@torch.no_grad()
def case(name, form, variant, model, config, ends, dtype=torch.float64, pictures=PICTURES):
    model = model.to(dtype).eval()
    state = fill_module(model)
    pixels, _ = network_input(pictures, ENDS[ends].prepare, dtype)
    out = before_the_clamp(model, pixels) if form == "lornatang" else model(pixels)
    return {"name": name, "format": form, "variant": variant, "config": config, "state": state, "pictures": pictures,
            "outputs": {"out": out}}  # fmt: skip


@torch.no_grad()
def discriminator():
    """Lornatang's discriminator, with the state of a whole training."""
    model = lornatang.DiscriminatorForVGG(channels=8).double().eval()
    whole = fill_module(lornatang.SRResNet(channels=8, num_rcb=1, upscale=2), lambda key: f"network.{key}")
    whole |= fill_module(model, lambda key: f"discriminator.{key}")
    pixels = pixels_of([2, 3, 96, 96], 1)
    return {
        "name": "discriminator", "format": "lornatang", "variant": "tiny", "config": {"scale": 2, "blocks": 1, "width": 8},
        "state": whole, "objective": {"options": {"adversarial": 0.001, "width": 8}, "views": [], "at": [0, 0, 1, 1, "d"]},
        "call": {"path": "discriminator", "tensors": {"0": {"shape": [2, 3, 96, 96], "seed": 1}}},
        "outputs": {"out": model(pixels)[:, 0]},
    }  # fmt: skip


def tiny():
    return [
        case("lornatang", "lornatang", "tiny", lornatang.SRResNet(channels=8, num_rcb=2, upscale=4),
             {"scale": 4, "blocks": 2, "width": 8}, "linear"),
        case("sgrvinod", "sgrvinod", "tiny", sgrvinod.SRResNet(n_channels=8, n_blocks=2, scaling_factor=2),
             {"scale": 2, "blocks": 2, "width": 8, "bias": True, "ends": "tanh"}, "tanh"),
        case("sgrvinod srgan", "sgrvinod", "tiny", sgrvinod.Generator(n_channels=8, n_blocks=1, scaling_factor=4),
             {"scale": 4, "blocks": 1, "width": 8, "bias": True, "ends": "tanh"}, "tanh"),
        case("leftthomas", "leftthomas", "x2-small", leftthomas.Generator(2), {}, "half", pictures=[[12, 16, 3]]),
        discriminator(),
    ]  # fmt: skip


def shapes(model):
    return {key: tuple(value.shape) for key, value in model.state_dict().items()}


def manifests():
    with torch.device("meta"):
        return {
            "lornatang": {f"x{s}": shapes(lornatang.SRResNet(upscale=s)) for s in (2, 4, 8)},
            "sgrvinod": {"x4-tanh": shapes(sgrvinod.SRResNet())},
            "leftthomas": {f"x{s}-small": shapes(leftthomas.Generator(s)) for s in (2, 4, 8)},
        }


def parameters():
    with torch.device("meta"):
        models = {f"x{s}": lornatang.SRResNet(upscale=s) for s in (2, 4, 8)}
        models |= {"x4-tanh": sgrvinod.SRResNet()} | {f"x{s}-small": leftthomas.Generator(s) for s in (2, 4, 8)}
        return {name: sum(p.numel() for p in model.parameters()) for name, model in models.items()}


def full():
    small = [[32, 40, 1]]
    yield case("x4", "lornatang", "x4", lornatang.SRResNet(), {}, "linear", torch.float32, small)
    yield case("x4-tanh", "sgrvinod", "x4-tanh", sgrvinod.SRResNet(), {}, "tanh", torch.float32, small)
    yield case("x4-small", "leftthomas", "x4-small", leftthomas.Generator(4), {}, "half", torch.float32, small)

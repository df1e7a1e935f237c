"""VAEs of pytorch/examples (BSD-3-Clause) and AntixK/PyTorch-VAE (Apache-2.0), checkouts of which lie in $OPTICUS_REFERENCES.

The first is a script that starts a training when imported, so its class and its loss are taken from its syntax tree.
"""

import ast
import math
import os
from pathlib import Path

import torchvision_shim  # noqa: F401  (before anything that imports torchvision)

# isort: split
import torch
from torch import nn
from torch.nn import functional

from opticus.parity.case import network_input
from opticus.parity.fill import fill_module, pixels_of
from opticus.structures import Prepare
from selfsup import checkout

PAPER = "vae"
NARROW = [4, 4, 4, 4, 512]  # the last one is written into the reference's decoder


def reference():
    return {
        "repository": "https://github.com/pytorch/examples, https://github.com/AntixK/PyTorch-VAE",
        "commit": "77f55b912142e11fcfdf5b530231fb9c52f181e8, a6896b944c918dd7030e7d795a8c13e5c6345ec7",
        "license": "BSD-3-Clause, Apache-2.0",
        "kind": "repository",
    }


def script():
    """VAE and loss_function of examples/vae/main.py."""
    path = Path(os.environ.get("OPTICUS_REFERENCES", "")) / "examples" / "vae" / "main.py"
    tree = ast.parse(path.read_text("utf-8"))
    tree.body = [node for node in tree.body if getattr(node, "name", "") in ("VAE", "loss_function")]
    scope = {"torch": torch, "nn": nn, "F": functional}
    exec(compile(tree, str(path), "exec"), scope)
    return scope["VAE"], scope["loss_function"]


def vanilla(code=128, widths=None):
    return checkout("PyTorch-VAE", "models").VanillaVAE(3, code, widths)


def rule(binary, channels):
    mean, std = ((0.0,), (1.0,)) if binary else ((0.5,), (0.5,))
    return Prepare(channels=channels, mean=mean * channels, std=std * channels)


def dense_case(name, dtype):
    model = script()[0]().to(dtype).eval()
    state = fill_module(model)
    pictures = [[28, 28, 1], [28, 28, 2]]
    pixels, _ = network_input(pictures, rule(True, 1), dtype)
    with torch.no_grad():
        mean, log_variance = model.encode(pixels.flatten(1))
        outputs = {"out.pixels": model.decode(mean).reshape(pixels.shape), "out.mean": mean, "out.log_variance": log_variance}
    return {"name": name, "format": "pytorch-examples", "variant": "mnist", "config": {}, "state": state, "pictures": pictures,
            "outputs": outputs}  # fmt: skip


def conv_case(name, code, widths, dtype, pictures):
    model = vanilla(code, list(widths)).to(dtype).eval()
    state = fill_module(model)
    pixels, _ = network_input(pictures, rule(False, 3), dtype)
    with torch.no_grad():
        mean, log_variance = model.encode(pixels)
        outputs = {"out.pixels": model.decode(mean), "out.mean": mean, "out.log_variance": log_variance}
    return {"name": name, "format": "pytorch-vae", "variant": "64", "config": {"code": code, "widths": widths}, "state": state,
            "pictures": pictures, "outputs": outputs}  # fmt: skip


def dense_loss():
    """The script's cross-entropy and KL per pixel at fixed chance; with the prior as posterior its loss is the first alone."""
    kind, loss = script()
    model = kind().double().eval()
    state = fill_module(model)
    pixels = network_input([[28, 28, 3], [28, 28, 4]], rule(True, 1))[0].mul(256).round().div(256)  # exact in single precision
    given = {"pixels": {"values": pixels.tolist()}, "chance": {"shape": [2, 20], "seed": 4}}
    with torch.no_grad():
        mean, log_variance = model.encode(pixels.flatten(1))
        drawn = model.decode(mean + (0.5 * log_variance).exp() * pixels_of([2, 20], 4, torch.float64))
        zero = torch.zeros_like(mean)
        error, whole = (
            torch.stack([loss(drawn[i : i + 1], pixels[i : i + 1], m[i : i + 1], v[i : i + 1]) for i in range(2)])
            for m, v in ((zero, zero), (mean, log_variance))
        )
        outputs = {"out.0": error / 784, "out.1": (whole - error) / 784}
    return {"name": "bernoulli bound", "format": "pytorch-examples", "variant": "mnist", "config": {}, "state": state,
            "call": {"path": "bound", "tensors": given}, "outputs": outputs}  # fmt: skip


def conv_loss():
    """VanillaVAE's mean squared error per value, as the Gaussian's nats at a deviation of 1.5 (its KL is the script's)."""
    model = vanilla(5, list(NARROW)).double().eval()
    state, deviation, nats = fill_module(model), 1.5, []
    given = {"pixels": {"shape": [2, 3, 64, 64], "seed": 5}, "chance": {"shape": [2, 5], "seed": 6}}
    pixels, chance = (pixels_of(t["shape"], t["seed"], torch.float64) for t in given.values())
    with torch.no_grad():
        mean, log_variance = model.encode(pixels)
        drawn = model.decode(mean + (0.5 * log_variance).exp() * chance)
        for i in range(2):
            one = slice(i, i + 1)
            terms = model.loss_function(drawn[one], pixels[one], mean[one], log_variance[one], M_N=0.0)
            nats.append(terms["Reconstruction_Loss"] / (2 * deviation**2) + math.log(deviation * math.sqrt(2 * math.pi)))
    return {"name": "gaussian bound", "format": "pytorch-vae", "variant": "64", "state": state,
            "config": {"code": 5, "widths": NARROW, "deviation": deviation},
            "call": {"path": "bound", "tensors": given}, "outputs": {"out.0": torch.stack(nats)}}  # fmt: skip


def tiny():
    pictures = [[64, 64, 1], [64, 64, 2]]
    return [
        dense_case("dense", torch.float64),
        conv_case("convolutional", 5, NARROW, torch.float64, pictures),
        dense_loss(),
        conv_loss(),
    ]


def full():
    yield dense_case("mnist", torch.float32)
    yield conv_case("64", 128, [32, 64, 128, 256, 512], torch.float32, [[64, 64, 1]])


def manifests():
    with torch.device("meta"):
        mnist, conv = script()[0](), vanilla()
    return {"pytorch-examples": {"mnist": shapes(mnist)}, "pytorch-vae": {"64": shapes(conv)}}


def shapes(model):
    return {key: tuple(value.shape) for key, value in model.state_dict().items()}


def parameters():
    return {"mnist": sum(p.numel() for p in script()[0]().parameters()), "64": sum(p.numel() for p in vanilla().parameters())}

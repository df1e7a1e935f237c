"""The convolutional autoencoder of phlippe/uvadlc_notebooks, tutorial 9 (MIT), from the code cells of its notebook.

$OPTICUS_REFERENCES/uvadlc/AE_CIFAR10.ipynb is docs/tutorial_notebooks/tutorial9/AE_CIFAR10.ipynb of that repository. The dense layout is
a plain stack of the layers that the paper lists: no implementation of it with a licence was found that runs.
"""

import json
import os
from itertools import pairwise
from pathlib import Path

import torch
from torch import nn

from opticus.parity.case import network_input
from opticus.parity.fill import fill_module
from opticus.structures import Prepare

PAPER = "autoencoder"


def reference():
    return {
        "repository": "https://github.com/phlippe/uvadlc_notebooks",
        "commit": "0da8037c7abc32f478ff6142acceb72dbcf088ee",
        "license": "MIT",
        "kind": "repository",
    }


def notebook():
    """The classes Encoder and Decoder."""
    path = Path(os.environ.get("OPTICUS_REFERENCES", "")) / "uvadlc" / "AE_CIFAR10.ipynb"
    scope = {"nn": nn, "torch": torch}
    for cell in json.loads(path.read_text("utf-8"))["cells"]:
        text = "".join(cell["source"])
        if cell["cell_type"] == "code" and text.startswith(("class Encoder", "class Decoder")):
            exec(text, scope)
    return scope["Encoder"], scope["Decoder"]


class Both(nn.Module):
    def __init__(self, encoder, decoder):
        super().__init__()
        self.encoder, self.decoder = encoder, decoder

    def forward(self, x):
        return self.decoder(self.encoder(x))


def convolutional(code, base=32, channels=3):
    encoder, decoder = notebook()
    return Both(encoder(channels, base, code), decoder(channels, base, code))


def stack(widths, activation, last=None):
    layers = [layer for a, b in pairwise(widths) for layer in (nn.Linear(a, b), activation())][:-1]
    return nn.Sequential(*layers, *([last] if last is not None else []))


def dense(widths, activation, last):
    return Both(stack(widths, activation), stack(widths[::-1], activation, last))


def case(name, form, variant, config, model, pictures, channels, flat, dtype=torch.float64):
    model = model.to(dtype).eval()
    state = fill_module(model)
    rule = Prepare(channels=channels, mean=(0.5,) * channels, std=(0.5,) * channels)
    pixels, _ = network_input(pictures, rule, dtype)
    with torch.no_grad():
        out = model(pixels.flatten(1)).reshape(pixels.shape) if flat else model(pixels)
    return {
        "name": name,
        "format": form,
        "variant": variant,
        "config": config,
        "state": state,
        "pictures": pictures,
        "outputs": {"out": out},
    }


def tiny():
    cifar = {"code": 6, "widths": [4, 8, 8]}
    grey = {"size": 8, "channels": 1, "code": 3, "widths": [20, 10]}
    cases = [case("convolutional", "uvadlc", "cifar-64", cifar, convolutional(6, 4), [[32, 32, 1], [32, 32, 2]], 3, False)]
    for name, kind, last in (("sigmoid", nn.Sigmoid, nn.Tanh()), ("relu", nn.ReLU, None)):
        config = {**grey, "activation": name, "bounded": last is not None}
        model = dense((64, 20, 10, 3), kind, last)
        cases.append(case(f"dense-{name}", "sequential", "mnist-30", config, model, [[8, 8, 1], [8, 8, 2]], 1, True))
    rectified = Both(nn.Sequential(*stack((64, 12), nn.ReLU), nn.ReLU()), stack((12, 64), nn.ReLU, nn.Tanh()))
    config = {"size": 8, "code": 12}
    cases.append(case("rectified", "sequential", "tiny-sparse", config, rectified, [[8, 8, 1], [8, 8, 2]], 1, True))
    return cases


def manifests():
    with torch.device("meta"):
        cifar = {f"cifar-{c}": shapes(convolutional(c)) for c in (64, 128, 256, 384)}
        mnist = {f"mnist-{c}": shapes(dense((784, 1000, 500, 250, c), nn.Sigmoid, nn.Tanh())) for c in (30, 2)}
    return {"uvadlc": cifar, "sequential": mnist}


def shapes(model):
    return {key: tuple(value.shape) for key, value in model.state_dict().items()}


def parameters():
    return {
        variant: sum(torch.Size(shape).numel() for shape in keys.values())
        for rows in manifests().values()
        for variant, keys in rows.items()
    }


def full():
    yield case("cifar-64", "uvadlc", "cifar-64", {}, convolutional(64), [[32, 32, 1]], 3, False, torch.float32)
    model = dense((784, 1000, 500, 250, 30), nn.Sigmoid, nn.Tanh())
    yield case("mnist-30", "sequential", "mnist-30", {}, model, [[28, 28, 1]], 1, True, torch.float32)

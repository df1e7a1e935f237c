"""StarGAN of the authors' repository (MIT).

Not a pip package: set OPTICUS_REFERENCES to a folder with a clone of github.com/yunjey/stargan as `stargan`. Its test code leaves
the generator in training mode, so instance norms use each picture's own statistics: so does this.
"""

import torch
from clones import clone

from opticus.parity.fill import fill_module, pixels_of

with clone("stargan"):
    from model import Discriminator, Generator

PAPER = "stargan"


def reference():
    return {
        "repository": "https://github.com/yunjey/stargan",
        "commit": "94dd002e93a2863d9b987a937b85925b80f7a19f",
        "license": "MIT",
        "kind": "repository",
    }


@torch.no_grad()
def generator(name, variant, config, model, size, labels, dtype=torch.float64):
    model = model.to(dtype).train()
    state = fill_module(model)
    shape = [len(labels), 3, size, size]
    out = model(pixels_of(shape, 1, dtype), torch.tensor(labels, dtype=dtype))
    tensors = {"0": {"shape": shape, "seed": 1}, "1": {"values": labels}}
    return {"name": name, "format": "yunjey", "variant": variant, "config": config, "state": state,
            "call": {"path": "", "tensors": tensors}, "outputs": {"out": out}}  # fmt: skip


@torch.no_grad()
def discriminator():
    model = Discriminator(image_size=32, conv_dim=8, c_dim=3, repeat_num=4).double()
    state = fill_module(Generator(conv_dim=8, c_dim=3, repeat_num=1), lambda key: f"network.{key}")
    state |= fill_module(model, lambda key: f"discriminator.{key}")
    source, classes = model(pixels_of([2, 3, 32, 32], 2))
    return {
        "name": "discriminator", "format": "yunjey", "variant": "tiny", "config": {"width": 8, "blocks": 1}, "state": state,
        "objective": {"options": {"width": 8, "depth": 4}, "views": [], "at": [0, 0, 1, 1, "d"]},
        "call": {"path": "discriminator", "tensors": {"0": {"shape": [2, 3, 32, 32], "seed": 2}}},
        "outputs": {"out.source": source, "out.classes": classes},
    }  # fmt: skip


def tiny():
    one, two = [[0.0, 1.0, 0.0], [1.0, 0.0, 0.0]], [[0.0, 1.0, 0.0, 0.0, 0.0, 1.0, 0.0], [0.0, 0.0, 0.0, 0.0, 1.0, 0.0, 1.0]]
    small = {"width": 8, "blocks": 2, "size": 16}
    return [
        generator("one label set", "tiny", small, Generator(8, 3, 2), 16, one),
        generator("two label sets", "tiny", {**small, "classes": 5, "sets": [3, 2]}, Generator(8, 7, 2), 16, two),
        discriminator(),
    ]


def shapes(model):
    return {key: tuple(value.shape) for key, value in model.state_dict().items()}


def models():
    with torch.device("meta"):
        return {"celeba128": Generator(), "celeba256": Generator(), "rafd128": Generator(c_dim=8), "both256": Generator(c_dim=15)}


def manifests():
    return {"yunjey": {name: shapes(model) for name, model in models().items()}}


def parameters():
    return {name: sum(p.numel() for p in model.parameters()) for name, model in models().items()}


def full():
    yield generator("celeba128", "celeba128", {}, Generator(), 64, [[0.0, 1.0, 0.0, 1.0, 1.0]], torch.float32)

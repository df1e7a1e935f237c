"""DCGAN as in pytorch/examples (BSD-3-Clause), a checkout of which is $OPTICUS_REFERENCES/examples.

Its networks are for pictures of 64x64; other sides have fewer or more stages of the same kind.
"""

import torch
from scripts import classes, draws, judges, shapes
from torch import nn

PAPER = "dcgan"
FORM = "pytorch-examples"


def reference():
    return {
        "repository": "https://github.com/pytorch/examples",
        "commit": "77f55b912142e11fcfdf5b530231fb9c52f181e8",
        "license": "BSD-3-Clause",
        "kind": "repository",
    }


def networks(latent=100, width=64, critic=64, channels=3):
    names = {"nn": nn, "torch": torch, "nz": latent, "ngf": width, "ndf": critic, "nc": channels}
    found = classes("examples/dcgan/main.py", **names)
    return found["Generator"](1), found["Discriminator"](1)


def tiny():
    config = {"latent": 5, "width": 4, "critic": 6, "channels": 2}
    generator, discriminator = networks(5, 4, 6, 2)
    drawn = draws(FORM, "64", generator, [3, 5], config)

    def answer(pixels):
        return torch.logit(discriminator(pixels))[:, None, None, None]

    return [drawn, judges(FORM, "64", generator, discriminator, [3, 2, 64, 64], config, answer)]


def manifests():
    with torch.device("meta"):
        return {FORM: {"64": shapes(networks()[0])}}


def parameters():
    with torch.device("meta"):
        return {"64": sum(p.numel() for p in networks()[0].parameters())}


def full():
    yield draws(FORM, "64", networks()[0], [2, 100], dtype=torch.float32)

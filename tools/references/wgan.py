"""WGAN-GP as in caogang/wgan-gp (MIT), a checkout of which is $OPTICUS_REFERENCES/wgan-gp.

Its networks of CIFAR-10 and of toy data. The generator's first norm is a BatchNorm2d that is given vectors, which torch no longer takes:
it is replaced by the BatchNorm1d with the same tensors.
"""

import torch
from scripts import classes, draws, judges, shapes
from torch import nn

PAPER = "wgan"
FORM = "pytorch"


def reference():
    return {
        "repository": "https://github.com/caogang/wgan-gp",
        "commit": "ae47a185ed2e938c39cf3eb2f06b32dc1b6a2064",
        "license": "MIT",
        "kind": "repository",
    }


def networks(width):
    found = classes("wgan-gp/gan_cifar10.py", nn=nn, torch=torch, DIM=width)
    generator = found["Generator"]()
    generator.preprocess[1] = nn.BatchNorm1d(generator.preprocess[0].out_features)
    return generator, found["Discriminator"]()


class Toy(nn.Module):
    """The toy generator without its second argument, the real data, which it does not use."""

    def __init__(self, inner):
        super().__init__()
        self.main = inner.main

    def forward(self, latents):
        return self.main(latents)[:, :, None, None]


def toys(width):
    found = classes("wgan-gp/gan_toy.py", nn=nn, torch=torch, DIM=width, FIXED_GENERATOR=False)
    return Toy(found["Generator"]()), found["Discriminator"]()


def tiny():
    pictures, points = {"width": 2, "critic": 2, "latent": 128}, {"width": 12, "critic": 12}
    generator, critic = networks(2)
    cases = [draws(FORM, "cifar10", generator, [3, 128], pictures)]
    cases.append(judges(FORM, "cifar10", generator, critic, [3, 3, 32, 32], pictures, critic))
    generator, other = toys(12)
    cases.append(draws(FORM, "points", generator, [5, 2], points))

    def answer(pixels):
        return other(pixels.flatten(1))[:, None]

    return [*cases, judges(FORM, "points", generator, other, [5, 2, 1, 1], points, answer)]


def manifests():
    with torch.device("meta"):
        return {FORM: {"cifar10": shapes(networks(128)[0]), "points": shapes(toys(512)[0])}}


def parameters():
    with torch.device("meta"):
        return {
            "cifar10": sum(p.numel() for p in networks(128)[0].parameters()),
            "points": sum(p.numel() for p in toys(512)[0].parameters()),
        }


def full():
    yield draws(FORM, "cifar10", networks(128)[0], [2, 128], dtype=torch.float32)

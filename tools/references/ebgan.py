"""EBGAN as in eriklindernoren/PyTorch-GAN (MIT), a checkout of which is $OPTICUS_REFERENCES/PyTorch-GAN."""

from types import SimpleNamespace

import torch
from scripts import classes, draws, judges, shapes
from torch import nn

PAPER = "ebgan"
FORM = "pytorch-gan"


def reference():
    return {
        "repository": "https://github.com/eriklindernoren/PyTorch-GAN",
        "commit": "36d3c77e5ff20ebe0aeefd322326a134a279b93e",
        "license": "MIT",
        "kind": "repository",
    }


def networks(size, channels, latent):
    opt = SimpleNamespace(img_size=size, channels=channels, latent_dim=latent)
    found = classes("PyTorch-GAN/implementations/ebgan/ebgan.py", nn=nn, torch=torch, opt=opt)
    return found["Generator"](), found["Discriminator"]()


def tiny():
    config = {"size": 8, "channels": 2, "latent": 5}
    generator, discriminator = networks(8, 2, 5)
    shape = [3, 2, 8, 8]

    def energy(pixels):
        return -torch.stack([nn.functional.mse_loss(a, b) for a, b in zip(discriminator(pixels)[0], pixels)])

    return [
        draws(FORM, "mnist", generator, [3, 5], config),
        judges(FORM, "mnist", generator, discriminator, shape, config, energy),
        judges(FORM, "mnist", generator, discriminator, shape, config, lambda x: discriminator(x)[1], "discriminator.encode"),
    ]


def manifests():
    with torch.device("meta"):
        return {FORM: {"mnist": shapes(networks(32, 1, 62)[0])}}


def parameters():
    with torch.device("meta"):
        return {"mnist": sum(p.numel() for p in networks(32, 1, 62)[0].parameters())}


def full():
    yield draws(FORM, "mnist", networks(32, 1, 62)[0], [2, 62], dtype=torch.float32)

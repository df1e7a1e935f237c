"""GAN as in eriklindernoren/PyTorch-GAN (MIT), a checkout of which is $OPTICUS_REFERENCES/PyTorch-GAN."""

from types import SimpleNamespace

import numpy as np
import torch
from scripts import classes, draws, judges, shapes
from torch import nn

PAPER = "gan"
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
    names = {"nn": nn, "np": np, "torch": torch, "opt": opt, "img_shape": (channels, size, size)}
    found = classes("PyTorch-GAN/implementations/gan/gan.py", **names)
    return found["Generator"](), found["Discriminator"]()


def tiny():
    config = {"size": 7, "channels": 2, "latent": 5}
    generator, discriminator = networks(7, 2, 5)
    drawn = draws(FORM, "mnist", generator, [3, 5], config)
    return [
        drawn,
        judges(FORM, "mnist", generator, discriminator, [3, 2, 7, 7], config, lambda pixels: torch.logit(discriminator(pixels))),
    ]


def manifests():
    with torch.device("meta"):
        return {FORM: {"mnist": shapes(networks(28, 1, 100)[0])}}


def parameters():
    with torch.device("meta"):
        return {"mnist": sum(p.numel() for p in networks(28, 1, 100)[0].parameters())}


def full():
    yield draws(FORM, "mnist", networks(28, 1, 100)[0], [3, 100], dtype=torch.float32)

"""What the adapters of CycleGAN and pix2pix share: the authors' networks, from $OPTICUS_REFERENCES/pytorch-CycleGAN-and-pix2pix."""

import contextlib
import functools
import io

from clones import clone
from torch import nn

from opticus.parity.case import network_input
from opticus.structures import Prepare

FOLDER = "pytorch-CycleGAN-and-pix2pix"


def reference():
    return {
        "repository": f"https://github.com/junyanz/{FOLDER}",
        "commit": "00d5574908eb66fe0127b32d7b030001453f21d0",
        "license": "BSD-2-Clause",
        "kind": "repository",
    }


@functools.cache
def networks():
    """The authors' module of generators, discriminators and GAN losses."""
    with clone(FOLDER):
        from models import networks

    return networks


def quiet(function, *given, **named):
    """What `function` gives, without what it prints."""
    with contextlib.redirect_stdout(io.StringIO()):
        return function(*given, **named)


def rule(channels):
    half = (0.5,) * channels
    return Prepare(channels=channels, mean=half, std=half)


def pixels_of(pictures, channels):
    return network_input(pictures, rule(channels))[0]


def shapes(module):
    return {key: tuple(value.shape) for key, value in module.state_dict().items()}


def stale(module):
    """Instance norms as torch before 0.4 saved them: with running statistics, which nothing reads."""
    for name, child in module.named_children():
        if isinstance(child, nn.InstanceNorm2d):
            setattr(module, name, nn.InstanceNorm2d(child.num_features, track_running_stats=True))
        else:
            stale(child)
    return module


def count(module):
    return sum(p.numel() for p in module.parameters())

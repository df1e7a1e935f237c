"""torchcfm (atong01/conditional-flow-matching, MIT), a checkout of which is $OPTICUS_REFERENCES/conditional-flow-matching.

Its U-Net computes norms, softmax and time embeddings in single precision; here `float` and `float32` are double precision meanwhile.
"""

import contextlib
import sys
import types
from unittest import mock

import torch
from clones import clone

from opticus.parity.fill import fill_module, pixels_of

PAPER = "flow_matching"
SMALL = {"size": 8, "channels": 3, "width": 8, "mults": [1, 2, 2], "blocks": 2, "attention": [2], "head_width": 4, "groups": 4,
         "dropout": 0.1}  # fmt: skip
POINTS = {"channels": 2, "width": 16, "layout": "points"}
TIMES = [0.125, 0.75, 0.5]


def reference():
    return {
        "repository": "https://github.com/atong01/conditional-flow-matching",
        "commit": "cacd4dc8a5b6f50de63780e8f73754c9371f15db",
        "license": "MIT",
        "kind": "repository",
    }


@contextlib.contextmanager
def torchcfm():
    """Without its optimal transport between batches, which needs the package pot."""
    with clone("conditional-flow-matching"), mock.patch.dict(sys.modules, {"ot": types.ModuleType("ot")}):
        yield


def unet(size, channels, width, mults, blocks, attention, head_width, dropout, groups=32):
    with torchcfm():
        from torchcfm.models.unet import nn as layers
        from torchcfm.models.unet import unet as file

        with mock.patch.object(file, "normalization", lambda channels: layers.GroupNorm32(groups, channels)):
            return file.UNetModel(
                size, channels, width, channels, blocks, tuple(attention), dropout=dropout, channel_mult=tuple(mults),
                num_heads=4, num_head_channels=head_width,
            )  # fmt: skip


@contextlib.contextmanager
def double():
    with mock.patch.object(torch.Tensor, "float", lambda self: self), mock.patch.object(torch, "float32", torch.float64):
        yield


@torch.no_grad()
def picture_case(name, config, dtype=torch.float64, variant="tiny"):
    model = unet(**config).to(dtype).eval()
    model.dtype = dtype
    state = fill_module(model)
    shape = [3, config["channels"], config["size"], config["size"]]
    x, times = pixels_of(shape, 2, dtype), torch.tensor(TIMES, dtype=dtype)
    with double() if dtype == torch.float64 else contextlib.nullcontext():
        out = model(times, x)
    return {
        "name": name, "format": "torchcfm", "variant": variant, "config": config, "state": state,
        "call": {"path": "", "tensors": {"0": {"shape": shape, "seed": 2}, "1": {"values": TIMES}}}, "outputs": {"out": out},
    }  # fmt: skip


def dense():
    with torchcfm():
        from torchcfm.models.models import MLP

        model = MLP(2, w=POINTS["width"], time_varying=True).double().eval()
    return model, fill_module(model)


@torch.no_grad()
def point_case():
    model, state = dense()
    x, times = pixels_of([3, 2], 2), torch.tensor(TIMES, dtype=torch.float64)
    return {
        "name": "points", "format": "torchcfm-points", "variant": "points", "config": POINTS, "state": state,
        "call": {"path": "", "tensors": {"0": {"shape": [3, 2], "seed": 2}, "1": {"values": TIMES}}},
        "outputs": {"out": model(torch.cat([x, times[:, None]], 1))},
    }  # fmt: skip


def path_case(name, kind, sigma):
    """Places on the path and velocities, at given times and noise."""
    _, state = dense()
    with torchcfm():
        from torchcfm import conditional_flow_matching as file

        matcher = getattr(file, kind)(sigma=sigma)
    data, noise, times = pixels_of([3, 2], 4), pixels_of([3, 2], 5), torch.tensor(TIMES, dtype=torch.float64)
    straight = kind == "ConditionalFlowMatcher"  # its sigma is a width that the path keeps: 0 here
    x = matcher.sample_xt(noise, data, times, noise)
    tensors = {"0": {"shape": [3, 2], "seed": 4}, "1": {"shape": [3, 2], "seed": 5}, "2": {"values": TIMES}}
    return {
        "name": name, "format": "torchcfm-points", "variant": "points", "config": POINTS, "state": state,
        "objective": {"options": {"sigma": 0.0 if straight else sigma}}, "call": {"path": "pair", "tensors": tensors},
        "outputs": {"out.x": x, "out.velocity": matcher.compute_conditional_flow(noise, data, times, x)},
    }  # fmt: skip


def tiny():
    return [
        picture_case("pictures", SMALL),
        point_case(),
        path_case("optimal transport", "TargetConditionalFlowMatcher", 0.1),
        path_case("rectified", "ConditionalFlowMatcher", 0.0),
    ]


LARGE = {"size": 32, "channels": 3, "width": 128, "mults": [1, 2, 2, 2], "blocks": 2, "attention": [2], "head_width": 64,
         "dropout": 0.1}  # fmt: skip


def manifests():
    with torch.device("meta"):
        large = unet(**LARGE).state_dict()
        with torchcfm():
            from torchcfm.models.models import MLP

            points = MLP(2, w=64, time_varying=True).state_dict()
    return {
        "torchcfm": {"cifar10": {key: tuple(value.shape) for key, value in large.items()}},
        "torchcfm-points": {"points": {key: tuple(value.shape) for key, value in points.items()}},
    }


def parameters():
    return {
        variant: sum(torch.Size(shape).numel() for shape in keys.values())
        for variants in manifests().values()
        for variant, keys in variants.items()
    }


def full():
    yield picture_case("cifar10", LARGE, torch.float32, "cifar10")

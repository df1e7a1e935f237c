"""Glow of rosinality/glow-pytorch and of chaiyujin/glow-pytorch (both MIT).

Checkouts are $OPTICUS_REFERENCES/glow-rosinality and $OPTICUS_REFERENCES/glow-chaiyujin.
"""

import importlib
import math
import os
import re
import sys
import types
import warnings
from pathlib import Path
from unittest import mock

import torch
from clones import clone

from opticus.parity.case import network_input
from opticus.parity.fill import fill_module, pixels_of
from opticus.structures import Prepare

PAPER = "glow"
PICTURES = [[8, 8, 1], [8, 8, 2]]
LOGS = r"flow\.layers\.\d+\.(?:f\.4|conv|actnorm)\.logs|(?:learn_top|project_ycond)\.logs"
FIXED = r".*\.(?:initialized|u_mask|l_mask|l_eye)"


def reference():
    return {
        "repository": "https://github.com/rosinality/glow-pytorch, https://github.com/chaiyujin/glow-pytorch",
        "commit": "97081ff115a694cf04aeedbd58447f33d242c879, 487a6b149295f4ec4b36e408f63604c593ff2031",
        "license": "MIT",
        "kind": "repository",
    }


def pixels(channels, pictures=PICTURES, dtype=torch.float64):
    return network_input(pictures, Prepare(channels=channels, mean=(0.5,) * channels, std=(0.5,) * channels), dtype)[0]


# --- rosinality ---------------------------------------------------------------------------------------------------------------


def rosinality(channels, steps, scales, affine, width=512):
    """Its width is a default of the couplings."""
    with clone("glow-rosinality"):
        import model

        defaults = model.AffineCoupling.__init__.__defaults__
        model.AffineCoupling.__init__.__defaults__ = (width, True)
        made = model.Glow(channels, steps, scales, affine=affine)
        model.AffineCoupling.__init__.__defaults__ = defaults
    return made


def filled_rosinality(*given, dtype=torch.float64, **named):
    model = rosinality(*given, **named)
    for module in model.modules():
        if hasattr(module, "initialized"):
            module.initialized.fill_(1)
    model = model.to(dtype).eval()
    return model, fill_module(model, skip=FIXED)


@torch.no_grad()
def rosinality_case(name, affine, changes, variant="tiny", size=8, channels=1, steps=2, scales=2, width=10, dtype=torch.float64):
    """Its latents are not standardised: they are here, by its own priors, block by block."""
    model, state = filled_rosinality(channels, steps, scales, affine, width=width, dtype=dtype)
    pictures = [[size, size, 1], [size, size, 2]]
    x = ((pixels(channels, pictures, dtype) + 1) * 127.5 + 0.5) / 256 - 0.5
    total, left = x.new_full((2,), x[0].numel() * math.log(127.5 / 256)), []
    log_p, log_det, _ = model(x)
    log_p_again, out = 0.0, x
    for block in model.blocks:
        out, change, part, latent = block(out)
        log_p_again = log_p_again + part
        centre, log_sd = block.prior(out if block.split else torch.zeros_like(out)).chunk(2, 1)
        left.append(((latent - centre) / log_sd.exp()).flatten(1))
        total = total + change - log_sd.expand_as(latent).flatten(1).sum(1)
    assert torch.allclose(log_p, log_p_again)
    outputs = {"out.latents": torch.cat(left, 1), "out.log_det": total}
    base = {"format": "rosinality", "variant": variant, "config": changes, "state": state}
    case = {**base, "name": name, "pictures": pictures, "outputs": outputs}
    given = pixels_of([2, channels, size, size], 4, dtype)
    log_p, log_det, _ = model(((given + 1) * 127.5 + 0.5) / 256 - 0.5)
    nats = log_p + log_det + x[0].numel() * math.log(127.5 / 256)
    call = {"path": "log_density", "tensors": {"0": {"shape": list(given.shape), "seed": 4}}}
    return [case, {**base, "name": f"{name}, density", "call": call, "outputs": {"out": nats}}]


# --- chaiyujin ----------------------------------------------------------------------------------------------------------------


def chaiyujin(channels, size, scales, *, width=512, top=False, classes=0, batch=2):
    glow = {
        "image_shape": [size, size, channels], "hidden_channels": width, "K": 32, "L": scales, "actnorm_scale": 1.0,
        "flow_permutation": "invconv", "flow_coupling": "affine", "LU_decomposed": False, "learn_top": top,
        "y_condition": classes > 0, "y_classes": classes,
    }  # fmt: skip
    space = types.SimpleNamespace
    settings = space(Glow=space(**glow), Device=space(glow=["cpu"]), Train=space(batch_size=batch))
    package = types.ModuleType("glow")  # a folder without __init__, which this very file's name hides
    package.__path__ = [str(Path(os.environ["OPTICUS_REFERENCES"]) / "glow-chaiyujin" / "glow")]
    with clone("glow-chaiyujin"), mock.patch.dict(sys.modules, {"glow": package}), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = importlib.import_module("glow.models").Glow(settings)
    model.set_actnorm_init()
    return model


def small(value):
    """Numbers between -1/4 and 1/4, in place; as nested lists."""
    value.copy_((torch.arange(value.numel()) * 7 % 5 - 2).view(value.shape) / 8)
    return value.tolist()


@torch.no_grad()
def chaiyujin_case(name, size, scales, changes, variant="tiny", labels=None, channels=1, dtype=torch.float64, **more):
    """Its noise, which is normal, is left away; what it returns is bits a value."""
    model = chaiyujin(channels, size, scales, **more).to(dtype).eval()
    # exp(3 logs) of the formula's numbers, 32 steps long, is not finite
    state = fill_module(model, skip=f"prior_h|{LOGS}")
    constants = {key: small(value) for key, value in model.state_dict().items() if re.fullmatch(LOGS, key)}
    given = pixels_of([2, channels, size, size], 4, dtype)
    x = ((given + 1) * 127.5 + 0.5) / 256
    onehot = None if labels is None else torch.eye(more["classes"], dtype=dtype)[labels]
    with mock.patch.object(torch, "normal", lambda mean, std: mean):
        _, nll, _ = model(x, onehot)
    tensors = {"0": {"shape": list(given.shape), "seed": 4}} | ({} if labels is None else {"1": {"values": labels}})
    return {
        "name": name, "format": "chaiyujin", "variant": variant, "config": changes, "state": state, "constants": constants,
        "call": {"path": "nats", "tensors": tensors}, "outputs": {"out": nll * math.log(2)},
    }  # fmt: skip


def tiny():
    plain = {"size": 8, "channels": 1, "scales": 2, "steps": 2, "classes": 0, "width": 10}
    plain["dialect"] = {"norm": False, "border": 1.0, "offset": 0.5}
    theirs = {"size": 8, "channels": 1, "scales": 3, "steps": 32, "width": 4, "lu": False, "classes": 3}
    theirs["dialect"] = {"norm": True, "border": 0.0, "offset": 0.0}
    return [
        *rosinality_case("affine", True, plain),
        *rosinality_case("additive", False, {**plain, "affine": False}),
        chaiyujin_case("by label", 8, 3, theirs, width=4, top=True, classes=3, labels=[2, 0]),
    ]


def shapes(model):
    return {key: tuple(value.shape) for key, value in model.state_dict().items()}


def manifests():
    return {
        "rosinality": {"64": shapes(rosinality(3, 32, 4, True)), "64-additive": shapes(rosinality(3, 32, 4, False))},
        "chaiyujin": {"celeba64": shapes(chaiyujin(3, 64, 3, batch=12))},
    }


def parameters():
    """Without chaiyujin's prior_h, which is zeros of the shape of a batch."""
    found = {"64": rosinality(3, 32, 4, True), "64-additive": rosinality(3, 32, 4, False), "celeba64": chaiyujin(3, 64, 3)}
    return {
        variant: sum(p.numel() for name, p in model.named_parameters() if name != "prior_h") for variant, model in found.items()
    }

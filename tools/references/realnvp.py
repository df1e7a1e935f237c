"""Real NVP of chrischute/real-nvp (MIT), a checkout of which is $OPTICUS_REFERENCES/real-nvp. Its noise is set to 1/2: the bin's centre."""

import math
import warnings
from unittest import mock

import torch
from clones import clone

from opticus.parity.case import network_input
from opticus.parity.fill import fill_module, pixels_of
from opticus.structures import Prepare

PAPER = "realnvp"
SMALL = {"size": 8, "channels": 3, "width": 6, "blocks": 2, "scales": 2}
DEEP = {"size": 8, "channels": 1, "width": 6, "blocks": 1, "scales": 3}
CONSTANTS = {"data_constraint": [0.9]}
SIZES = {"cifar10": (2, 64, 8), "32": (4, 32, 4), "64": (5, 32, 2)}  # num_scales, mid_channels, num_blocks


def reference():
    return {
        "repository": "https://github.com/chrischute/real-nvp",
        "commit": "df51ad570baf681e77df4d2265c0f1eb1b5b646c",
        "license": "MIT",
        "kind": "repository",
    }


def build(scales, channels, width, blocks):
    with clone("real-nvp"), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the old form of weight_norm
        from models.real_nvp import real_nvp

        made, squeeze = real_nvp.RealNVP(scales, channels, width, blocks), real_nvp.squeeze_2x2
        if (
            squeeze.__name__ == "squeeze_2x2"
        ):  # its views of sums ask for contiguous maps, which newer convolutions do not make here
            real_nvp.squeeze_2x2 = lambda *given, **named: squeeze(*given, **named).contiguous()
        return made


def filled(config, dtype=torch.float64):
    model = build(config["scales"], config["channels"], config["width"], config["blocks"]).to(dtype).eval()
    return model, fill_module(model, skip="data_constraint")


@torch.no_grad()
def flow_case(name, config, shape):
    model, state = filled(config)
    latents, log_det = model.flows(pixels_of(shape, 3), torch.zeros(shape[0], dtype=torch.float64), False)
    return {
        "name": name, "format": "chrischute", "variant": "tiny", "config": config, "state": state, "constants": CONSTANTS,
        "call": {"path": "flow", "tensors": {"0": {"shape": shape, "seed": 3}}},
        "outputs": {"out.latents": latents, "out.log_det": log_det},
    }  # fmt: skip


@torch.no_grad()
def picture_case(name, config):
    model, state = filled(config)
    size, channels = config["size"], config["channels"]
    pictures = [[size, size, 1], [size, size, 2]]
    pixels = network_input(pictures, Prepare(channels=channels, mean=(0.5,) * channels, std=(0.5,) * channels))[0]
    with mock.patch.object(torch, "rand_like", lambda x: torch.full_like(x, 0.5)):
        latents, log_det = model((pixels + 1) / 2)
    change = pixels[0].numel() * math.log(127.5 / 256)  # the port's log-determinant is that with respect to pixels in [-1, 1]
    return {
        "name": name, "format": "chrischute", "variant": "tiny", "config": config, "state": state, "constants": CONSTANTS,
        "pictures": pictures, "outputs": {"out.latents": latents, "out.log_det": log_det + change},
    }  # fmt: skip


@torch.no_grad()
def inverse_case(name, config, shape):
    model, state = filled(config)
    logits, _ = model.flows(pixels_of(shape, 5), None, True)
    return {
        "name": name, "format": "chrischute", "variant": "tiny", "config": config, "state": state, "constants": CONSTANTS,
        "call": {"path": "flow.inverse", "tensors": {"0": {"shape": shape, "seed": 5}}}, "outputs": {"out": logits},
    }  # fmt: skip


def tiny():
    return [
        picture_case("pictures", SMALL),
        flow_case("three scales", DEEP, [2, 1, 8, 8]),
        inverse_case("inverse", DEEP, [2, 1, 8, 8]),
    ]


def manifests():
    with torch.device("meta"):
        return {
            "chrischute": {
                variant: {k: tuple(v.shape) for k, v in build(scales, 3, width, blocks).state_dict().items()}
                for variant, (scales, width, blocks) in SIZES.items()
            }
        }


def parameters():
    with torch.device("meta"):
        return {
            variant: sum(p.numel() for p in build(scales, 3, width, blocks).parameters())
            for variant, (scales, width, blocks) in SIZES.items()
        }


def coupling_case(name, model, state, path, ours, shape):
    """One coupling: through all of them the formula's weights magnify rounding, in the reference's single precision too."""
    layer = model
    for part in path.split("."):
        layer = getattr(layer, part)
    with torch.no_grad():
        out = layer(pixels_of(shape, 7, torch.float32), torch.zeros(shape[0]), False)
    return {
        "name": name, "format": "chrischute", "variant": "cifar10", "config": {}, "state": state, "constants": CONSTANTS,
        "call": {"path": ours, "tensors": {"0": {"shape": shape, "seed": 7}}}, "outputs": {"out.0": out[0], "out.1": out[1]},
    }  # fmt: skip


def full():
    scales, width, blocks = SIZES["cifar10"]
    model, state = filled({"channels": 3, "width": width, "blocks": blocks, "scales": scales}, torch.float32)
    of = ["in_couplings.0", "in_couplings.1", "out_couplings.0", "out_couplings.1"]
    shapes = [[2, 3, 32, 32]] * 2 + [[2, 12, 16, 16]] * 2
    for path, shape in zip(of, shapes):
        yield coupling_case(path, model, state, f"flows.{path}", f"flow.scales.0.{path}", shape)
    path = "in_couplings.3"
    yield coupling_case("last", model, state, f"flows.next_block.{path}", f"flow.scales.1.{path}", [2, 6, 16, 16])

"""diffusers' UNet2DModel with the settings of the google/ddpm-* files, whose weights are the authors'."""

import diffusers
import torch
import torchvision_shim  # noqa: F401 before diffusers' models
from diffusers import UNet2DModel

from opticus.parity.fill import fill_module, pixels_of

PAPER = "ddpm"
# config.json of google/ddpm-cifar10-32 and google/ddpm-celebahq-256
FIXED = {"flip_sin_to_cos": False, "freq_shift": 1, "norm_eps": 1e-6, "downsample_padding": 0, "layers_per_block": 2}
WHY = "the reference embeds times in float32"


def reference():
    return {"repository": "huggingface/diffusers", "version": diffusers.__version__, "license": "Apache-2.0", "kind": "package"}


def network(widths, attended, size=32, heads=None, **more):
    """`attended` are the levels with attention."""
    downs = tuple("AttnDownBlock2D" if i in attended else "DownBlock2D" for i in range(len(widths)))
    ups = tuple("AttnUpBlock2D" if i in attended else "UpBlock2D" for i in reversed(range(len(widths))))
    return UNet2DModel(
        sample_size=size, block_out_channels=widths, down_block_types=downs, up_block_types=ups, attention_head_dim=heads,
        **{**FIXED, **more},
    ).eval()  # fmt: skip


def cifar10():
    return network((128, 256, 256, 256), (1,))


def large():
    return network((128, 128, 256, 256, 512, 512), (4,), 256)


def old_names(state):
    """The names of attention layers in files that were saved before 2023."""
    pairs = ((".to_q.", ".query."), (".to_k.", ".key."), (".to_v.", ".value."), (".to_out.0.", ".proj_attn."))
    renamed = {}
    for key, shape in state.items():
        for new, old in pairs:
            key = key.replace(new, old)
        renamed[key] = shape
    return renamed


def case(name, model, variant, config, shape, times, condition=None, form="diffusers", dtype=torch.float64):
    model = model.to(dtype)
    state = fill_module(model)
    pixels = pixels_of(shape, 1, dtype)
    tensors = {"0": {"shape": list(shape), "seed": 1}, "1": {"values": times}}
    more = {}
    if condition is not None and model.class_embedding is not None:
        tensors["2"] = {"values": condition}
        more["class_labels"] = torch.tensor(condition)
    elif condition is not None:
        tensors["2"] = condition
        pixels = torch.cat([pixels, pixels_of(condition["shape"], condition["seed"], dtype)], 1)
    with torch.no_grad():
        out = model(pixels, torch.tensor(times), **more).sample
    inexact = {"tolerance": {"out": 1e-5}, "why": WHY} if any(times) and dtype == torch.float64 else {}
    return {
        "name": name, "format": form, "variant": variant, "config": config, "state": state, "call": {"path": "", "tensors": tensors},
        "outputs": {"out": out}, **inexact,
    }  # fmt: skip


def tiny():
    plain = {"size": 16, "width": 128, "multiples": [1, 2], "layers": 2, "attention": [8]}
    labelled = {
        "size": 8,
        "channels": 1,
        "width": 32,
        "multiples": [1, 2, 2],
        "layers": 1,
        "attention": [8, 2],
        "heads": 2,
        "classes": 4,
    }
    given = {"size": 8, "channels": 1, "width": 32, "multiples": [1, 2], "layers": 1, "attention": [4], "given": 2}
    narrow = {"norm_num_groups": 4, "layers_per_block": 1}
    return [
        case("at time 0", network((128, 256), (1,), 16), "cifar10", plain, (2, 3, 16, 16), [0, 0]),
        case("at later times", network((128, 256), (1,), 16), "cifar10", plain, (2, 3, 16, 16), [3, 41]),
        case(
            "given", network((32, 64), (1,), 8, None, in_channels=3, out_channels=1, **narrow), "tiny", given, (2, 1, 8, 8), [0, 0],
            {"shape": [2, 2, 8, 8], "seed": 2},
        ),
        case(
            "classes", network((64, 64, 64), (0, 2), 8, 32, in_channels=1, out_channels=1, num_class_embeds=5, norm_num_groups=8,
                               layers_per_block=1),
            "tiny", {**labelled, "width": 64, "multiples": [1, 1, 1]}, (3, 1, 8, 8), [0, 0, 0], [0, 3, 4],
        ),
    ]  # fmt: skip


def shapes(build):
    with torch.device("meta"):
        return {key: tuple(tensor.shape) for key, tensor in build().state_dict().items()}


def manifests():
    both = {"cifar10": shapes(cifar10), "256": shapes(large)}
    return {"diffusers": both, "diffusers-2022": {name: old_names(state) for name, state in both.items()}}


def parameters():
    return {name: sum(torch.Size(shape).numel() for shape in state.values()) for name, state in manifests()["diffusers"].items()}


def full():
    yield case("cifar10", cifar10(), "cifar10", {}, (2, 3, 32, 32), [999, 417], dtype=torch.float32)

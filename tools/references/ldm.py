"""The U-Net of CompVis/latent-diffusion (MIT), and UNet2DConditionModel of diffusers (Apache-2.0), which reads the same weights.

A checkout of CompVis/latent-diffusion is at $OPTICUS_REFERENCES/latent-diffusion.
"""

import sys
import types
from pathlib import Path

import torch
import torchvision_shim  # noqa: F401 before diffusers' models
from clones import clone
from diffusers import UNet2DConditionModel

from opticus.parity.fill import fill, fill_module, pixels_of

PAPER, EXTENDS = "ldm", "ddpm"
PREFIX = "model.diffusion_model."
WHY = "the references embed times in float32"
# keys of a whole training file that are not the U-Net's
OTHERS = {"first_stage_model.quant_conv.bias": (3,), "model_ema.decay": (), "betas": (5,), "sqrt_one_minus_alphas_cumprod": (5,),
          "posterior_mean_coef1": (5,), "scale_factor": ()}  # fmt: skip


def reference():
    return {
        "repository": "CompVis/latent-diffusion", "commit": "a506df5756472e2ebaf9078affdde2c4f1502cd4", "license": "MIT",
        "kind": "repository",
    }  # fmt: skip


def rearrange(x, pattern, **sizes):
    """The four patterns of einops that the reference uses."""
    if pattern == "b c h w -> b (h w) c":
        return x.flatten(2).transpose(1, 2)
    if pattern == "b (h w) c -> b c h w":
        return x.transpose(1, 2).unflatten(2, (sizes["h"], sizes["w"]))
    if pattern == "b n (h d) -> (b h) n d":
        return x.unflatten(2, (sizes["h"], -1)).transpose(1, 2).flatten(0, 1)
    if pattern == "(b h) n d -> b n (h d)":
        return x.unflatten(0, (-1, sizes["h"])).transpose(1, 2).flatten(2)
    raise ValueError(pattern)


def authors(**settings):
    """The authors' U-Net, without gradient checkpoints."""
    stub = types.ModuleType("einops")
    stub.rearrange, stub.repeat = rearrange, None
    known = sys.modules.get("einops")
    sys.modules["einops"] = stub
    try:
        with clone("latent-diffusion"):
            package = types.ModuleType("ldm")  # a folder without __init__.py gives way to this very file otherwise
            package.__path__ = [str(Path(sys.path[0]) / "ldm")]
            sys.modules["ldm"] = package
            from ldm.modules.attention import BasicTransformerBlock
            from ldm.modules.diffusionmodules.openaimodel import UNetModel
            from ldm.modules.diffusionmodules.util import GroupNorm32

            GroupNorm32.forward = torch.nn.GroupNorm.forward  # the reference normalises in float32 whatever its type

            model = UNetModel(image_size=8, use_spatial_transformer=True, **settings).eval()
    finally:
        del sys.modules["einops"]
        if known is not None:
            sys.modules["einops"] = known
    for part in model.modules():
        if isinstance(part, BasicTransformerBlock):
            part.checkpoint = False
    # and embeds times in it
    model.time_embed.register_forward_pre_hook(lambda part, given: (given[0].to(part[0].weight.dtype),))
    return model


def unet(channels, width, multiples, factors, heads, context, given=0, linear=False):
    names = ["CrossAttnDownBlock2D" if 2**i in factors else "DownBlock2D" for i in range(len(multiples))]
    widths = tuple(width * m for m in multiples)
    return UNet2DConditionModel(
        sample_size=64, in_channels=channels + given, out_channels=channels, block_out_channels=widths, cross_attention_dim=context,
        down_block_types=tuple(names), up_block_types=tuple(n.replace("Down", "Up") for n in reversed(names)),
        attention_head_dim=tuple(w // 64 for w in widths) if heads == 0 else heads, use_linear_projection=linear,
    ).eval()  # fmt: skip


def case(name, form, variant, config, call, state, out, times):
    inexact = {"tolerance": {"out": 1e-5}, "why": WHY} if any(times) else {}
    return {
        "name": name, "format": form, "variant": variant, "config": config, "state": state,
        "call": {"path": "", "tensors": {"0": call, "1": {"values": times}}}, "outputs": {"out": out}, **inexact,
    }  # fmt: skip


def theirs(name, variant, config, settings, times, labels=None, given=0, classes=0, dtype=torch.float64):
    """A case of the authors' network. Their file's keys have a prefix, by which the tensors are filled; `labels` go through the table."""
    shape, context = [len(times), config["latent"][0], *config["latent"][1:]], config.get("context", 0)
    model = authors(**settings).to(dtype)
    model.dtype = dtype
    state = {PREFIX + key: tuple(tensor.shape) for key, tensor in model.state_dict().items()}
    model.load_state_dict({key.removeprefix(PREFIX): fill(key, s, dtype) for key, s in state.items()})
    made = case(name, "ldm", variant, config, {"shape": shape, "seed": 1}, state, None, times)
    x, more = pixels_of(shape, 1, dtype), None
    if labels is not None:
        key = "cond_stage_model.embedding.weight"
        state[key] = (classes + 1, context)
        more = fill(key, state[key], dtype)[torch.tensor(labels)][:, None]
        made["call"]["tensors"]["2"] = {"values": labels}
    elif given:
        made["call"]["tensors"]["2"] = {"shape": [len(times), given, *shape[2:]], "seed": 2}
        x = torch.cat([x, pixels_of([len(times), given, *shape[2:]], 2, dtype)], 1)
    elif context:
        made["call"]["tensors"]["2"] = {"shape": [len(times), 5, context], "seed": 2}
        more = pixels_of([len(times), 5, context], 2, dtype)
    with torch.no_grad():
        made["outputs"]["out"] = model(x, torch.tensor(times), context=more)
    state |= OTHERS
    return made


def theirs_in_diffusers(name, variant, config, settings, times, dtype=torch.float64):
    model = unet(**settings).to(dtype)
    state = fill_module(model)
    shape, context = [len(times), config["latent"][0], *config["latent"][1:]], [len(times), 5, config["context"]]
    with torch.no_grad():
        out = model(pixels_of(shape, 1, dtype), torch.tensor(times), encoder_hidden_states=pixels_of(context, 2, dtype)).sample
    made = case(name, "diffusers", variant, config, {"shape": shape, "seed": 1}, state, out, times)
    made["call"]["tensors"]["2"] = {"shape": context, "seed": 2}
    return made


def tiny():
    small = {"latent": [3, 8, 8], "width": 128, "multiples": [1, 1], "layers": 2, "attention": [2], "heads": 2, "classes": 0}
    two = {
        "in_channels": 3, "model_channels": 128, "out_channels": 3, "num_res_blocks": 2, "attention_resolutions": [2],
        "channel_mult": [1, 1], "num_heads": 2,
    }  # fmt: skip
    wide = {**small, "multiples": [1, 2, 1], "attention": [1, 4], "heads": 0, "context": 24, "predicts": "eps"}
    three = {**two, "attention_resolutions": [1, 4], "channel_mult": [1, 2, 1], "num_heads": -1, "num_head_channels": 64}
    hub = {"channels": 3, "width": 128, "multiples": (1, 2, 1), "factors": (1, 4), "context": 24}
    return [
        theirs("labels", "tiny-pixels", {**small, "classes": 6, "context": 20}, {**two, "context_dim": 20}, [0, 0, 0], [0, 5, 6], classes=6),
        theirs("later times", "tiny-pixels", {**small, "context": 20}, {**two, "context_dim": 20}, [2, 37]),
        theirs("wide heads", "tiny-pixels", wide, {**three, "context_dim": 24, "legacy": False}, [0, 0]),
        theirs_in_diffusers("diffusers", "tiny-pixels", {**wide, "heads": 4}, {**hub, "heads": 4}, [0, 0]),
        theirs_in_diffusers("diffusers, linear", "tiny-pixels", wide, {**hub, "heads": 0, "linear": True}, [0, 0]),
    ]  # fmt: skip


PUBLISHED = {
    "cin256": {"in_channels": 3, "model_channels": 192, "out_channels": 3, "attention_resolutions": [8, 4, 2],
               "channel_mult": [1, 2, 3, 5], "num_heads": 1, "context_dim": 512},
    "text2img": {"in_channels": 4, "model_channels": 320, "out_channels": 4, "attention_resolutions": [4, 2, 1],
                 "channel_mult": [1, 2, 4, 4], "num_heads": 8, "context_dim": 1280, "legacy": False},
    "sd1": {"in_channels": 4, "model_channels": 320, "out_channels": 4, "attention_resolutions": [4, 2, 1],
            "channel_mult": [1, 2, 4, 4], "num_heads": 8, "context_dim": 768, "legacy": False},
}  # fmt: skip


def shapes(model, prefix=""):
    return {prefix + key: tuple(tensor.shape) for key, tensor in model.state_dict().items()}


def manifests():
    with torch.device("meta"):
        ldm = {name: shapes(authors(num_res_blocks=2, **settings), PREFIX) for name, settings in PUBLISHED.items()}
        stable = {"channels": 4, "width": 320, "multiples": (1, 2, 4, 4), "factors": (1, 2, 4)}
        hub = {
            "sd1": shapes(unet(**stable, heads=8, context=768)),
            "sd1-inpainting": shapes(unet(**stable, heads=8, context=768, given=5)),
            "sd2": shapes(unet(**stable, heads=0, context=1024, linear=True)),
        }
    ldm["cin256"]["cond_stage_model.embedding.weight"] = (1001, 512)  # n_classes and embed_dim of models/ldm/cin256/config.yaml
    return {"ldm": ldm, "diffusers": hub}


def parameters():
    """The U-Nets', with cin256's table of classes."""
    every = manifests()
    rows = {**every["diffusers"], **every["ldm"]}
    return {name: sum(torch.Size(shape).numel() for shape in state.values()) for name, state in rows.items()}


def full():
    config, settings = {"latent": [3, 16, 16]}, {"num_res_blocks": 2, **PUBLISHED["cin256"]}
    yield theirs("cin256", "cin256", {**config, "context": 512}, settings, [501], [207], classes=1000, dtype=torch.float32)
    stable = {"channels": 4, "width": 320, "multiples": (1, 2, 4, 4), "factors": (1, 2, 4), "heads": 8, "context": 768}
    yield theirs_in_diffusers("sd1", "sd1", {"latent": [4, 16, 16], "context": 768}, stable, [501], torch.float32)

"""The autoencoders of CompVis/latent-diffusion and taming-transformers (MIT), and their twins in diffusers (Apache-2.0).

Neither of the first is a pip package: set OPTICUS_REFERENCES to a folder that holds clones of github.com/CompVis/latent-diffusion and
github.com/CompVis/taming-transformers under these names. PyTorch Lightning is replaced by a plain module, einops by the three
permutations that run here, and the perceptual network, whose weights are downloads, by nothing.
"""

import torchvision_shim  # noqa: F401  (before anything that imports torchvision)

# isort: split
import sys
import types

import torch
from clones import clone
from torch import nn

from opticus.parity.case import network_input
from opticus.parity.fill import fill_module
from opticus.structures import Prepare

REPOSITORY = "https://github.com/CompVis/latent-diffusion"
COMMIT = "a506df5756472e2ebaf9078affdde2c4f1502cd4"
RULE = Prepare(mean=(0.5,) * 3, std=(0.5,) * 3)
GREY = Prepare(channels=1, mean=(0.5,), std=(0.5,))


def reference():
    return {"repository": REPOSITORY, "commit": COMMIT, "license": "MIT", "kind": "repository"}


def rearrange(tensor, pattern):
    before, after = (side.split() for side in pattern.split("->"))
    return tensor.permute([before.index(axis) for axis in after])


def stub(name, **members):
    module = types.ModuleType(name)
    module.__dict__.update(members)
    sys.modules[name] = module


def authors():
    """(their autoencoders, the loss with a KL penalty, the loss with a codebook): modules of the two clones."""
    stub("pytorch_lightning", LightningModule=nn.Module, __version__="1.4.0")
    stub("einops", rearrange=rearrange, repeat=None)
    with clone("taming-transformers"), clone("latent-diffusion"):
        import ldm.models.autoencoder as autoencoder
        import ldm.modules.losses.contperceptual as kl
        import ldm.modules.losses.vqperceptual as vq
        import taming.modules.losses.vqperceptual as taming

        vq.exists = lambda value: value is not None  # a name that the file uses and does not import
        kl.LPIPS = taming.LPIPS = nn.Identity
    autoencoder.instantiate_from_config = lambda built: built
    return autoencoder, kl, taming


AUTOENCODER, KL_LOSS, VQ_LOSS = authors()


def ddconfig(channels, width, multiples, blocks, attention, latent, double, attn_type="vanilla", resolution=256):
    return {
        "double_z": double, "z_channels": latent, "resolution": resolution, "in_channels": channels, "out_ch": channels, "ch": width,
        "ch_mult": multiples, "num_res_blocks": blocks, "attn_resolutions": [resolution // 2**i for i in attention], "dropout": 0.0,
        "attn_type": attn_type,
    }  # fmt: skip


def kl_model(loss=None, **shape):
    return AUTOENCODER.AutoencoderKL(ddconfig(**shape, double=True), loss or nn.Identity(), shape["latent"])


def vq_model(codes, loss=None, **shape):
    return AUTOENCODER.VQModel(ddconfig(**shape, double=False), loss or nn.Identity(), codes, shape["latent"])


def diffusers_config(channels, width, multiples, blocks, latent, groups=32, attention=()):
    """Attention on a level is a kind of block there."""
    down = tuple("AttnDownEncoderBlock2D" if i in attention else "DownEncoderBlock2D" for i in range(len(multiples)))
    up = tuple("AttnUpDecoderBlock2D" if i in attention else "UpDecoderBlock2D" for i in reversed(range(len(multiples))))
    return {
        "in_channels": channels, "out_channels": channels, "block_out_channels": tuple(width * m for m in multiples),
        "layers_per_block": blocks, "latent_channels": latent, "norm_num_groups": groups, "down_block_types": down, "up_block_types": up,
    }  # fmt: skip


def old_names(key):
    """Attention's names in files of diffusers before 0.17."""
    for new, old in (("to_q.", "query."), ("to_k.", "key."), ("to_v.", "value."), ("to_out.0.", "proj_attn.")):
        key = key.replace(new, old)
    return key


def pixels(pictures, rule=RULE, dtype=torch.float64):
    return network_input(pictures, rule, dtype)[0]


def shapes(module):
    return {key: tuple(value.shape) for key, value in module.state_dict().items()}


def filled(module, dtype=torch.float64, rename=str):
    module = module.to(dtype).eval()
    return module, fill_module(module, rename)


def case(name, form, variant, config, state, pictures, outputs):
    return {
        "name": name, "format": form, "variant": variant, "config": config, "state": state, "pictures": pictures, "outputs": outputs,
    }  # fmt: skip


def called(name, form, config, state, path, tensors, outputs):
    return {
        "name": name, "format": form, "variant": "tiny", "config": config, "state": state,
        "call": {"path": path, "tensors": tensors}, "outputs": outputs,
    }  # fmt: skip

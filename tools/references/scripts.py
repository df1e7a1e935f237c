"""What the adapters of adversarial networks share: their reference repositories hold scripts, which parse arguments and train when they
are imported, so that only the class definitions are cut out of their text and run. Checkouts lie below $OPTICUS_REFERENCES."""

import os
import re
from pathlib import Path

import torch
from torch import nn

from opticus.parity.fill import fill_module, pixels_of

HEALTH = {"health.pull": (), "health.early": (), "health.updates": (), "health.best": ()}


def classes(file, **names):
    """{name: class} of the classes in the checkout's file, with `names` as its global variables."""
    path = Path(os.environ.get("OPTICUS_REFERENCES", ".")) / file
    if not path.is_file():
        raise SystemExit(f"{path} does not exist: set OPTICUS_REFERENCES to the folder of the clones named in the adapter")
    found = dict(names)
    for block in re.findall(r"^class .*?(?=^\S|\Z)", path.read_text("utf-8"), re.MULTILINE | re.DOTALL):
        exec(compile(block, str(path), "exec"), found)  # a reference's own text, run by whoever records
    return {name: value for name, value in found.items() if isinstance(value, type) and name not in names}


def shapes(module):
    return {key: tuple(value.shape) for key, value in module.state_dict().items()}


@torch.no_grad()
def draws(form, variant, generator, shape, config=None, dtype=torch.float64):
    """A case of the generator alone, on latents of `shape`; the reference takes them as (B, D), or (B, D, 1, 1) where it convolves."""
    generator.to(dtype).eval()
    state = fill_module(generator)
    latents = pixels_of(shape, 1, dtype)
    first = next(part for part in generator.modules() if isinstance(part, nn.Linear | nn.ConvTranspose2d))
    out = generator(latents if isinstance(first, nn.Linear) else latents[:, :, None, None])
    return {
        "name": f"{variant} draws", "format": form, "variant": variant, "config": config or {}, "state": state,
        "call": {"path": "", "tensors": {"0": {"shape": list(shape), "seed": 1}}}, "outputs": {"out": out},
    }  # fmt: skip


@torch.no_grad()
def judges(form, variant, generator, discriminator, shape, config, answer, path="discriminator"):
    """A case of the discriminator in the state of a whole training; `answer(pixels)` is what the port should give."""
    whole = nn.ModuleDict({"network": generator, "discriminator": discriminator}).double().eval()
    side = min(8, shape[-1])
    state = fill_module(whole) | HEALTH | {"health.track": (64, shape[1] * side**2)}
    return {
        "name": f"{variant} {path.replace('.', ' ')}", "format": form, "variant": variant, "config": config, "state": state,
        "objective": {"options": {}}, "call": {"path": path, "tensors": {"0": {"shape": list(shape), "seed": 2}}},
        "outputs": {"out": answer(pixels_of(shape, 2))},
    }  # fmt: skip

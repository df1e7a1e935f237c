"""StyleGAN of genforce/genforce (MIT), a clone of which is named by $OPTICUS_REFERENCES/genforce."""

import torch
import torch.nn.functional as F
from clones import clone

from opticus.parity.fill import fill_module, pixels_of

PAPER = "stylegan"
COMMIT = "197feee82101b78266521c8470648bbb9b7f31f4"
CONSTANTS = r".*(blur\.kernel|lod)"  # the filter, and how far the network has grown

with clone("genforce"):
    from models.stylegan_discriminator import StyleGANDiscriminator
    from models.stylegan_generator import StyleGANGenerator


def reference():
    return {"repository": "https://github.com/genforce/genforce", "commit": COMMIT, "license": "MIT", "kind": "repository"}


def generator(size, latent, depth, rate, base, most, channels, fused):
    return StyleGANGenerator(
        size, z_space_dim=latent, w_space_dim=latent, mapping_layers=depth, mapping_fmaps=latent, mapping_lr_mul=rate,
        image_channels=channels, fmaps_base=base, fmaps_max=most, fused_scale=fused,
    )  # fmt: skip


def small(fused=False, rate=4.0, channels=3, most=10):
    """A generator of 16x16 pixels, its filling, and the port's config. `rate` keeps styles near unit scale on filled weights."""
    network = generator(16, 8, 3, rate, 64, most, channels, fused).double().eval()
    config = {"size": 16, "latent": 8, "depth": 3, "rate": rate, "base": 64, "most": most, "channels": channels}
    return network, {**config, "fused": 8 if fused else 128}


def case(name, call, out, fused=False, rate=4.0, channels=3, lod=0.0):
    """`out` asks the filled reference for what the port's function `call` gives."""
    network, config = small(fused, rate, channels)
    state = fill_module(network, skip=CONSTANTS)
    network.synthesis.lod.fill_(lod)
    path, tensors = call
    with torch.no_grad():
        found = out(network)
    return {
        "name": name, "format": "genforce", "variant": "tiny", "config": config, "state": state,
        "constants": {"synthesis.lod": lod}, "call": {"path": path, "tensors": tensors}, "outputs": {"out": found},
    }  # fmt: skip


def formula(*shape, seed=1):
    return {"shape": list(shape), "seed": seed}


def judged(name, batch, lod=0.0, fused=False):
    nets, shared = pair(fused)
    with torch.no_grad():
        out = nets["discriminator"](pixels_of([batch, 3, 16, 16], 2), lod=lod)
    call = {"path": "discriminator", "tensors": {"0": formula(batch, 3, 16, 16, seed=2), "lod": {"values": lod}}}
    return {"name": name, **shared, "objective": {"options": {}}, "call": call, "outputs": {"out": out}}


def pair(fused=False):
    """Both networks; the discriminator's weights have about unit deviation, as where training starts, so that scores differ."""
    network, config = small(fused, most=3)
    judge = StyleGANDiscriminator(16, image_channels=3, fmaps_base=64, fmaps_max=3, fused_scale=fused).double().eval()
    nets = torch.nn.ModuleDict({"generator": network, "discriminator": judge})
    state, constants = fill_module(nets, skip=CONSTANTS), {"generator.synthesis.lod": 0.0}
    with torch.no_grad():
        for key, value in judge.named_parameters(prefix="discriminator"):
            if value.ndim > 1:
                value.copy_((value * (4 * value[0].numel() ** 0.5)).round() / 4)
                constants[key] = value.tolist()
    return nets, {"format": "genforce", "variant": "tiny", "config": config, "state": state, "constants": constants}


def losses(batch=4):
    """The logistic terms and R1 of every picture, of the reference's networks (runners/losses/logistic_gan_loss.py)."""
    nets, shared = pair()
    judge = nets["discriminator"]
    real, fake = pixels_of([batch, 3, 16, 16], 3).requires_grad_(), pixels_of([batch, 3, 16, 16], 4)
    true, false = judge(real), judge(fake).detach()
    slope = torch.autograd.grad(true.sum(), real)[0].flatten(1).square().sum(1)
    each = {"d/real": F.softplus(-true[:, 0]).detach(), "d/fake": F.softplus(false[:, 0]), "d/r1": slope * (1000.0 * 0.5)}
    call = {"path": "judging", "tensors": {"real": formula(batch, 3, 16, 16, seed=3), "fake": formula(batch, 3, 16, 16, seed=4)}}
    fooling = {"path": "fooling", "tensors": {"fake": formula(batch, 3, 16, 16, seed=4)}}
    named = {f"out.{key}": value for key, value in each.items()}
    return [
        {"name": "judging", **shared, "objective": {"options": {"gamma": 1000.0}}, "call": call, "outputs": named},
        {"name": "fooling", **shared, "objective": {"options": {}}, "call": fooling,
         "outputs": {"out.g/fake": F.softplus(-false[:, 0])}},
    ]  # fmt: skip


def tiny():
    latents = {"0": formula(3, 8)}
    z, w = pixels_of([3, 8], 1), pixels_of([2, 6, 8], 2)
    truncated = {"latents": formula(3, 8), "truncation": {"values": 0.5}, "cutoff": {"values": 3}}
    mixing = {"0": formula(2, 6, 8, seed=2)}
    return [
        case("fixed noise", ("", latents), lambda net: net(z)["image"]),
        case("fused from 8x8", ("", latents), lambda net: net(z)["image"], fused=True, channels=1),
        case("slow mapping", ("", latents), lambda net: net(z)["image"], rate=0.01),
        case("styles", ("styles", latents), lambda net: net.mapping(z)["w"]),
        case("truncated", ("render", truncated), lambda net: net(z, trunc_psi=0.5, trunc_layers=3)["image"]),
        case("a style for every layer", ("synthesize", mixing), lambda net: net.synthesis(w)["image"]),
        case("fading in", ("", latents), lambda net: net(z)["image"], lod=0.25),
        case("growing", ("render", {"latents": formula(3, 8)}), lambda net: net(z)["image"], lod=1.5),
        judged("groups of four", 8),
        judged("one group", 3),
        judged("fading discriminator", 4, 0.25),
        judged("fused discriminator", 4, 0.0, True),
        *losses(),
    ]


def full_size(size):
    return generator(size, 512, 8, 0.01, 16 << 10, 512, 3, "auto")


def manifests():
    with torch.device("meta"):
        found = {str(size): full_size(size).state_dict() for size in (256, 512, 1024)}
    return {"genforce": {v: {key: tuple(value.shape) for key, value in state.items()} for v, state in found.items()}}


def parameters():
    with torch.device("meta"):
        return {str(size): sum(p.numel() for p in full_size(size).parameters()) for size in (256, 512, 1024)}


def full():
    network = full_size(256).eval()
    state = fill_module(network, skip=CONSTANTS)
    latents = pixels_of([2, 512], 1, torch.float32)
    with torch.no_grad():
        out = network(latents)["image"]
    yield {
        "name": "256", "format": "genforce", "variant": "256", "config": {}, "state": state, "constants": {"synthesis.lod": 0.0},
        "call": {"path": "", "tensors": {"0": formula(2, 512)}}, "outputs": {"out": out},
    }  # fmt: skip

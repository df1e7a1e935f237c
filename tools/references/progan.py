"""Progressive GAN of facebookresearch/pytorch_GAN_zoo (BSD-3-Clause), a clone of which is named by $OPTICUS_REFERENCES/pytorch_GAN_zoo."""

import torch
from clones import clone

from opticus.parity.fill import fill_module, pixels_of

PAPER = "progan"
COMMIT = "b75dee40918caabb4fe7ec561522717bf096a8cb"
DEPTHS = (512, 512, 512, 512, 256, 128, 64, 32, 16)  # depthScales of models/trainer/standard_configurations/pgan_config.py
SCALES = {"128": 6, "256": 7, "512": 8, "1024": 9}

with clone("pytorch_GAN_zoo"):
    from models.loss_criterions.base_loss_criterions import WGANGP
    from models.loss_criterions.gradient_losses import WGANGPGradientPenalty
    from models.networks.progressive_conv_net import DNet, GNet


def reference():
    return {
        "repository": "https://github.com/facebookresearch/pytorch_GAN_zoo",
        "commit": COMMIT,
        "license": "BSD-3-Clause",
        "kind": "repository",
    }


def generator(latent, depths, channels, old=0.0):
    network = GNet(latent, depths[0], dimOutput=channels)
    for depth in depths[1:]:
        network.addScale(depth)
    network.alpha = old  # the share of the level below
    return network


def discriminator(depths, channels, old=0.0):
    network = DNet(depths[0], miniBatchNormalization=True, dimInput=channels)
    for depth in depths[1:]:
        network.addScale(depth)
    network.alpha = old
    return network


def drawing(name, latent, depths, channels, old=0.0, config=None, dtype=torch.float64, variant="tiny"):
    network = generator(latent, depths, channels, old).to(dtype).eval()
    state = fill_module(network)
    tensors = {"0": {"shape": [3, latent], "seed": 1}, "lod": {"values": old}}
    with torch.no_grad():
        out = network(pixels_of([3, latent], 1, dtype))
    changes = {"latent": latent, "widths": list(depths), "channels": channels} if config is None else config
    return {
        "name": name, "format": "gan_zoo", "variant": variant, "config": changes, "state": state,
        "call": {"path": "", "tensors": tensors}, "outputs": {"out": out},
    }  # fmt: skip


def pair(depths, old=0.0):
    """Both networks; the discriminator's weights have about unit deviation, as where training starts, so that scores differ."""
    nets = torch.nn.ModuleDict({"netG": generator(6, depths, 2, old), "netD": discriminator(depths, 2, old)}).double()
    state, constants = fill_module(nets), {}
    with torch.no_grad():
        for key, value in nets["netD"].named_parameters(prefix="netD"):
            if value.ndim > 1:
                value.copy_((value * (8 * value[0].numel() ** 0.5)).round() / 8)
                constants[key] = value.tolist()
    config = {"latent": 6, "widths": list(depths), "channels": 2}
    return nets, {"format": "gan_zoo", "variant": "tiny", "config": config, "state": state, "constants": constants}


def judged(name, depths, batch, old=0.0):
    """Scores of a batch: groups of four, or one group of another size."""
    nets, shared = pair(depths, old)
    side = 4 * 2 ** (len(depths) - 1)
    shape = [batch, 2, side, side]
    with torch.no_grad():
        out = nets["netD"](pixels_of(shape, 2))
    tensors = {"0": {"shape": shape, "seed": 2}, "lod": {"values": old}}
    call = {"path": "discriminator", "tensors": tensors}
    return {"name": name, **shared, "objective": {"options": {}}, "call": call, "outputs": {"out": out}}


def losses(depths=(4, 3), batch=4):
    """The terms of both players, picture by picture, as the reference adds them up over the batch."""
    nets, shared = pair(depths)
    generate, judge = nets["netG"], nets["netD"]
    side = 4 * 2 ** (len(depths) - 1)
    real, latents = pixels_of([batch, 2, side, side], 3), pixels_of([batch, 6], 4)
    share = torch.tensor([0.25, 0.5, 0.75, 0.125], dtype=torch.float64)
    criterion = WGANGP(torch.device("cpu"))
    with torch.no_grad():
        fake = generate(latents)
        true, false = judge(real), judge(fake)
    each = {
        "d/real": torch.stack([criterion.getCriterion(row[None], True) for row in true]),
        "d/fake": torch.stack([criterion.getCriterion(row[None], False) for row in false]),
        "d/penalty": penalties(judge, real, fake, share),
        "d/drift": 0.5 * true[:, 0].square(),
    }
    tensors = {
        "real": {"shape": list(real.shape), "seed": 3},
        "latents": {"shape": [batch, 6], "seed": 4},
        "share": {"values": share.tolist()},
    }
    judging = {"path": "judging", "tensors": tensors}
    fooling = {"path": "fooling", "tensors": {"latents": tensors["latents"]}}
    fooled = torch.stack([criterion.getCriterion(row[None], True) for row in false])
    options = {"options": {"drift": 0.5}}
    named = {f"out.{key}": value for key, value in each.items()}
    return [
        {"name": "judging", **shared, "objective": options, "call": judging, "outputs": named},
        {"name": "fooling", **shared, "objective": options, "call": fooling, "outputs": {"out.g/fake": fooled}},
    ]


def penalties(judge, real, fake, share, weight=10.0):
    """The penalty of every picture; what the reference returns is their sum, which is checked here."""
    mixed = (real + share[:, None, None, None] * (fake - real)).requires_grad_()
    norms = torch.autograd.grad(judge(mixed).sum(), mixed)[0].flatten(1).norm(dim=1)
    each = weight * (norms - 1).square()
    drawn, torch.rand = torch.rand, lambda *size: 1 - share[:, None]  # the reference counts its share from the other end
    try:
        whole = WGANGPGradientPenalty(real, fake, judge, weight, backward=False)
    finally:
        torch.rand = drawn
    assert abs(float(each.sum()) - whole) < 1e-9 * abs(whole), "the reference has another penalty"
    return each


def tiny():
    return [
        drawing("whole", 7, (12, 10, 8), 3),
        drawing("fading in the first level", 7, (12, 10), 1, 0.25),
        drawing("fading in a later level", 7, (12, 10, 8), 3, 0.75),
        judged("groups of four", (4, 3, 2), 8),
        judged("one group", (4, 3), 3),
        judged("fading discriminator", (4, 3, 2), 4, 0.25),
        *losses(),
    ]


def manifests():
    with torch.device("meta"):
        found = {v: generator(512, DEPTHS[:count], 3).state_dict() for v, count in SCALES.items()}
    return {"gan_zoo": {v: {key: tuple(value.shape) for key, value in state.items()} for v, state in found.items()}}


def parameters():
    return {v: sum(torch.Size(shape).numel() for shape in keys.values()) for v, keys in manifests()["gan_zoo"].items()}


def full():
    yield drawing("256", 512, DEPTHS[:7], 3, config={}, dtype=torch.float32, variant="256")

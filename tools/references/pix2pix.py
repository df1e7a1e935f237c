"""pix2pix as in junyanz/pytorch-CycleGAN-and-pix2pix (BSD-2-Clause)."""

import torch
from junyanz import count, networks, pixels_of, quiet, reference, shapes  # noqa: F401
from torch import nn

from opticus.parity.fill import fill_module
from opticus.structures import Noise

PAPER = "pix2pix"
VIEWS = [["a", [[32, 32, seed] for seed in (1, 2, 3)]], ["b", [[32, 32, seed] for seed in (4, 5, 6)]]]


def generator(channels, answer, width, depth, norm="batch", dropout=False):
    return networks().UnetGenerator(channels, answer, depth, width, networks().get_norm_layer(norm), use_dropout=dropout)


class Drawn(nn.Module):
    """Dropout whose masks come, layer after layer, from the fixed noise that the port takes in eval."""

    noise = None

    def forward(self, x):
        return x * (Drawn.noise.uniform(*x.shape[1:]) >= 0.5) * 2


def drawn(network):
    for name, child in network.named_children():
        if isinstance(child, nn.Dropout):
            setattr(network, name, Drawn())
        else:
            drawn(child)
    Drawn.noise = Noise(0, 1)
    return network


@torch.no_grad()
def network_case(name, config, form="authors"):
    """With statistics of each picture the reference runs as its authors run it: in training mode, one picture at a time."""
    channels, answer = config["channels"], config.get("answer", config["channels"])
    network = generator(channels, answer, config["width"], config["depth"], config.get("norm", "batch"), config["dropout"] > 0)
    network = network.double().eval()
    state = fill_module(network)
    pictures = [[config["size"], 2 * config["size"], seed] for seed in (1, 2)]
    pixels = pixels_of(pictures, channels)
    if config.get("statistics", "picture") == "batch":
        out = network(pixels)
    else:
        network.train()
        out = torch.cat([drawn(network)(one[None]) for one in pixels])
    return {"name": name, "format": form, "variant": "unet256", "config": config, "state": state, "pictures": pictures,
            "outputs": {"out": out}}  # fmt: skip


class Training(nn.Module):
    """Both networks under the names that the authors' files have."""

    def __init__(self, config, judge, norm="batch"):
        super().__init__()
        self.netG = generator(config["channels"], config["channels"], config["width"], config["depth"], norm)
        made = networks().get_norm_layer(norm)
        channels = 2 * config["channels"]
        self.netD = (
            networks().PixelDiscriminator(channels, 6, made)
            if judge == "pixel"
            else networks().NLayerDiscriminator(channels, 6, 2, made)
        )


def terms(training, phase, a, b):
    """The terms of optimize_parameters, by the port's names."""
    gan, l1 = networks().GANLoss("vanilla").double(), nn.L1Loss()
    fake = training.netG(a)
    if phase == "d":
        pairs = {"d/fake": torch.cat([a, fake.detach()], 1), "d/real": torch.cat([a, b], 1)}
        return {name: gan(training.netD(pair), name == "d/real") / 2 for name, pair in pairs.items()}
    return {"g/real": gan(training.netD(torch.cat([a, fake], 1)), True), "g/l1": 100 * l1(fake, b)}


def objective_case(phase, judge="patch", norm="batch", statistics="picture"):
    """With statistics of each picture the terms are the averages over batches of one, as the authors train."""
    config = {"size": 32, "channels": 1, "width": 4, "depth": 5, "dropout": 0.0, "norm": norm, "statistics": statistics}
    training = Training(config, judge, norm).double().train()
    state = fill_module(training)
    a, b = (pixels_of(pictures, 1) for _, pictures in VIEWS)
    groups = [(a, b)] if statistics == "batch" else list(zip(a[:, None], b[:, None]))
    each = [terms(training, phase, *group) for group in groups]
    total = {name: sum(found[name] for found in each) / len(each) for name in each[0]}
    sum(total.values()).backward()
    side = training.netG if phase == "g" else training.netD
    outputs = {f"objective.{name}": term.detach().reshape(1) for name, term in total.items()}
    outputs["objective.gradient"] = torch.stack([p.grad.square().sum() for p in side.parameters()]).sum().sqrt().reshape(1)
    return {
        "name": f"loss, phase {phase}, {judge}, {norm} norm, statistics of each {statistics}",
        "format": "authors",
        "variant": "unet256",
        "config": config,
        "state": state,
        "objective": {"options": {"judge": judge, "layers": 2, "width": 6}, "views": VIEWS, "at": [3, 0, 40, 1, phase]},
        "outputs": outputs,
    }


def tiny():
    base = {"size": 32, "channels": 1, "width": 4, "depth": 5, "dropout": 0.0}
    deep = {**base, "size": 64, "depth": 6, "width": 2}
    return [
        network_case("statistics of each picture", {**base, "answer": 3}),
        network_case("running statistics", {**base, "channels": 3, "statistics": "batch"}),
        network_case("instance norm", {**base, "norm": "instance"}, "authors-instance"),
        network_case("a level without change of width", deep),
        network_case("noise", {**deep, "dropout": 0.5}),
        objective_case("d"),
        objective_case("g"),
        objective_case("d", statistics="batch"),
        objective_case("g", statistics="batch"),
        objective_case("d", judge="pixel"),
        objective_case("g", norm="instance"),
    ]


def variants():
    return {f"unet{2**depth}{end}": (depth, norm) for norm, end in (("batch", ""), ("instance", "-instance")) for depth in (7, 8)}


def manifests():
    with torch.device("meta"):
        found = {"authors": {}, "authors-instance": {}}
        for name, (depth, norm) in variants().items():
            found["authors" if norm == "batch" else "authors-instance"][name] = shapes(generator(3, 3, 64, depth, norm))
        return found


def parameters():
    with torch.device("meta"):
        return {name: count(generator(3, 3, 64, depth, norm)) for name, (depth, norm) in variants().items()}


def full():
    pictures = [[256, 256, 1]]
    for form, norm, variant in (("authors", "batch", "unet256"), ("authors-instance", "instance", "unet256-instance")):
        network = generator(3, 3, 64, 8, norm).train()
        state = fill_module(network)
        with torch.no_grad():
            out = network(pixels_of(pictures, 3).float())
        yield {"name": f"{variant}, {form}", "format": form, "variant": variant, "config": {"dropout": 0.0},
               "state": state, "pictures": pictures, "outputs": {"out": out}}  # fmt: skip

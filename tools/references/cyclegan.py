"""CycleGAN as in junyanz/pytorch-CycleGAN-and-pix2pix (BSD-2-Clause)."""

import torch
from junyanz import count, networks, pixels_of, quiet, reference, shapes, stale  # noqa: F401
from torch import nn

from opticus.parity.fill import fill_module

PAPER = "cyclegan"
PICTURES = [[20, 28, 1], [20, 28, 2]]
VIEWS = [["a", [[32, 32, seed] for seed in (1, 2, 3)]], ["b", [[32, 32, seed] for seed in (4, 5, 6)]]]


def generator(channels, answer, width, blocks, dropout=False, kind="instance"):
    norm = networks().get_norm_layer(kind)
    return networks().ResnetGenerator(channels, answer, width, norm, use_dropout=dropout, n_blocks=blocks)


@torch.no_grad()
def network_case(name, config, form="authors", old=False):
    channels, answer = config["channels"], config.get("other", config["channels"])
    network = (
        generator(channels, answer, config["width"], config["blocks"], "dropout" in config, config.get("norm", "instance"))
        .double()
        .eval()
    )
    state = fill_module(network)
    if old:  # the same tensors, and statistics that are to be dropped
        state = fill_module(stale(network).double())
        for module in network.modules():
            if isinstance(module, nn.InstanceNorm2d):
                module.track_running_stats, module.running_mean, module.running_var = False, None, None
    return {
        "name": name,
        "format": form,
        "variant": "resnet9",
        "config": config,
        "state": state,
        "pictures": PICTURES,
        "outputs": {"out": network(pixels_of(PICTURES, channels))},
    }


class Training(nn.Module):
    """The four networks under the names that the authors' files have, and pools that are not full."""

    def __init__(self, width, blocks, judges, layers, kind):
        super().__init__()
        norm = networks().get_norm_layer(kind)
        self.netG_A, self.netG_B = (generator(1, 1, width, blocks, kind=kind) for _ in range(2))
        self.netD_A, self.netD_B = (networks().NLayerDiscriminator(1, judges, layers, norm) for _ in range(2))
        for name in "ab":
            pool = nn.Module()
            pool.register_buffer("kept", torch.zeros(0))
            pool.register_buffer("filled", torch.zeros(1, dtype=torch.long))
            self.add_module(f"pool_{name}", pool)

    def terms(self, phase, a, b):
        """The terms of optimize_parameters, by the port's names."""
        gan, l1 = networks().GANLoss("lsgan").double(), nn.L1Loss()
        fake_b, fake_a = self.netG_A(a), self.netG_B(b)
        if phase == "d":
            return {
                f"d/{what}-{side}": gan(judge(x.detach()), what == "real") / 2
                for side, judge, real, fake in (("b", self.netD_A, b, fake_b), ("a", self.netD_B, a, fake_a))
                for what, x in (("real", real), ("fake", fake))
            }
        return {
            "g/real-b": gan(self.netD_A(fake_b), True),
            "g/real-a": gan(self.netD_B(fake_a), True),
            "g/cycle-a": 10 * l1(self.netG_B(fake_b), a),
            "g/cycle-b": 10 * l1(self.netG_A(fake_a), b),
            "g/identity-b": 5 * l1(self.netG_A(b), b),
            "g/identity-a": 5 * l1(self.netG_B(a), a),
        }


def objective_case(phase, norm="instance"):
    training = Training(4, 1, 6, 2, norm).double()
    state = fill_module(training)
    terms = training.terms(phase, *(pixels_of(pictures, 1) for _, pictures in VIEWS))
    sum(terms.values()).backward()
    sides = {"g": (training.netG_A, training.netG_B), "d": (training.netD_A, training.netD_B)}[phase]
    squares = [p.grad.square().sum() for side in sides for p in side.parameters()]
    outputs = {f"objective.{name}": term.detach().reshape(1) for name, term in terms.items()}
    return {
        "name": f"loss, phase {phase}, {norm} norm",
        "format": "authors",
        "variant": "resnet9",
        "config": {"channels": 1, "width": 4, "blocks": 1, "size": 32, "pair": True, "norm": norm},
        "state": state,
        "constants": {f"pool_{name}.{key}": values for name in "ab" for key, values in (("kept", []), ("filled", [0]))},
        "objective": {"options": {"layers": 2, "width": 6}, "views": VIEWS, "at": [3, 0, 40, 1, phase]},
        "outputs": outputs | {"objective.gradient": torch.stack(squares).sum().sqrt().reshape(1)},
    }


@torch.no_grad()
def prepared():
    import torchvision_shim  # noqa: F401

    # isort: split
    from PIL import Image
    from torchvision import transforms

    from opticus.parity.fill import picture

    half = (0.5, 0.5, 0.5)
    chain = transforms.Compose([
        transforms.Resize([256, 256], transforms.InterpolationMode.BICUBIC), transforms.ToTensor(), transforms.Normalize(half, half),
    ])  # fmt: skip
    pictures = [[300, 400, 1]]
    pixels = torch.stack([chain(Image.fromarray(picture(*one))) for one in pictures]).double()
    return {"name": "test time preparation", "format": "authors", "variant": "resnet9", "config": {}, "state": {}, "pictures": pictures,
            "outputs": {"prepared": pixels}, "tolerance": {"prepared": 0.02}, "why": "resampling works on whole grey levels"}  # fmt: skip


def tiny():
    return [
        network_case("three blocks", {"channels": 3, "width": 6, "blocks": 3}),
        network_case("other channels", {"channels": 1, "other": 3, "width": 4, "blocks": 1}),
        network_case("dropout layout", {"channels": 1, "width": 4, "blocks": 2, "dropout": 0.5}, "authors-dropout"),
        network_case("batch norm", {"channels": 1, "width": 4, "blocks": 2, "norm": "batch"}),
        network_case(
            "batch norm, dropout layout",
            {"channels": 1, "width": 4, "blocks": 1, "dropout": 0.5, "norm": "batch"},
            "authors-dropout",
        ),
        network_case("no norm", {"channels": 1, "width": 4, "blocks": 2, "norm": "none"}),
        network_case("stale statistics", {"channels": 1, "width": 4, "blocks": 2}, "authors-old", old=True),
        network_case(
            "stale statistics and dropout",
            {"channels": 1, "width": 4, "blocks": 1, "dropout": 0.5},
            "authors-dropout-old",
            old=True,
        ),
        objective_case("g"),
        objective_case("d"),
        objective_case("g", "batch"),
        objective_case("d", "batch"),
        prepared(),
    ]


def manifests():
    with torch.device("meta"):
        made = {"resnet6": generator(3, 3, 64, 6), "resnet9": generator(3, 3, 64, 9)}
        dropped = {"resnet6": generator(3, 3, 64, 6, True), "resnet9": generator(3, 3, 64, 9, True)}
        found = {
            "authors": {name: shapes(network) for name, network in made.items()},
            "authors-dropout": {name: shapes(network) for name, network in dropped.items()},
        }
        found["authors-old"] = {name: shapes(stale(network)) for name, network in made.items()}
        found["authors-dropout-old"] = {name: shapes(stale(network)) for name, network in dropped.items()}
        return found


def parameters():
    with torch.device("meta"):
        return {"resnet6": count(generator(3, 3, 64, 6)), "resnet9": count(generator(3, 3, 64, 9))}


def full():
    pictures = [[128, 128, 1]]
    for form, dropout in (("authors", False), ("authors-dropout", True), ("authors-old", False), ("authors-dropout-old", True)):
        network = generator(3, 3, 64, 9, dropout).eval()
        state = fill_module(network)
        if form.endswith("-old"):
            state = fill_module(stale(generator(3, 3, 64, 9, dropout)))
        with torch.no_grad():
            out = network(pixels_of(pictures, 3).float())
        yield {"name": f"resnet9, {form}", "format": form, "variant": "resnet9", "config": {}, "state": state, "pictures": pictures,
               "outputs": {"out": out}}  # fmt: skip

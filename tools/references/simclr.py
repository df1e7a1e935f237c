"""SimCLR as in lightly-ai/lightly (MIT) and, its networks, tonylins/simclr-converter (Apache-2.0).

Checkouts of both are named by $OPTICUS_REFERENCES/lightly and $OPTICUS_REFERENCES/simclr-converter.
"""

import torch
from selfsup import WIDTH, checkout, learned, network_case, objective_case, pixels_of, shapes, small
from torch import nn

from opticus.parity.fill import fill_module

PAPER = "simclr"
EXTENDS = "resnet"
WIDE = {"r50": "resnet50x1", "r50w2": "resnet50x2", "r50w4": "resnet50x4"}


def reference():
    return {
        "repository": "https://github.com/lightly-ai/lightly",
        "commit": "e8d317fc5a87f4387a85a35e689869039ec249ee",
        "license": "MIT",
        "kind": "repository",
    }


def head(layers, width=WIDTH, outputs=128):
    made = checkout("lightly", "lightly.models.modules.heads").SimCLRProjectionHead(width, width, outputs, num_layers=layers)
    made.layers[-1].bias.requires_grad_(False)  # the authors' last norm has no shift
    return made


def lightning(backbone, width, layers=2):
    """The modules of lightly's checkpoint."""
    return nn.ModuleDict({
        "backbone": backbone,
        "projection_head": head(layers, width),
        "online_classifier": nn.ModuleDict({"classification_head": nn.Linear(width, 1000)}),
    })  # fmt: skip


def loss_case(name, layers, temperature, outputs):
    training = nn.ModuleDict({"backbone": small(), "projection_head": head(layers, outputs=outputs)})
    criterion = checkout("lightly", "lightly.loss.ntx_ent_loss").NTXentLoss(temperature=temperature)

    def loss(views):
        projected = training["projection_head"](training["backbone"](torch.cat(views)))
        return criterion(*projected.chunk(2))

    options = {"temperature": temperature, "layers": layers, "outputs": outputs}
    return objective_case(name, "lightly", training, "simclr", loss, options=options)


def tiny():
    plain = small(nn.Linear(WIDTH, 1000))
    files = lightning(small(), WIDTH)

    def vectors(pixels):
        plain.fc = nn.Identity()
        return plain(pixels)

    return [
        network_case("converted", "converter", plain, vectors),
        network_case("lightning", "lightly", files, files["backbone"]),
        loss_case("two layers", 2, 0.1, 128),
        loss_case("three layers, warmer", 3, 0.5, 24),
    ]


def manifests():
    import torchvision

    wider = checkout("simclr-converter", "resnet_wider")
    with torch.device("meta"):
        resnet = torchvision.models.resnet50()
        resnet.fc = nn.Identity()
        return {
            "converter": {variant: shapes(getattr(wider, make)()) for variant, make in WIDE.items()},
            "lightly": {"r50": shapes(lightning(resnet, 2048))},
        }


def parameters():
    return {
        variant: learned({key: shape for key, shape in state.items() if not key.startswith("fc.")})
        for variant, state in manifests()["converter"].items()
    }


@torch.no_grad()
def full():
    wider = checkout("simclr-converter", "resnet_wider")
    pictures = [[224, 224, 1]]
    for variant in ("r50", "r50w2"):
        model = getattr(wider, WIDE[variant])().eval()
        state = fill_module(model)
        model.fc = nn.Identity()
        yield {"name": f"{variant} converted", "variant": variant, "format": "converter", "pictures": pictures, "state": state,
               "outputs": {"out": model(pixels_of(pictures, torch.float32))}}  # fmt: skip
    import torchvision

    resnet = torchvision.models.resnet50()
    resnet.fc = nn.Identity()
    files = lightning(resnet, 2048).eval()
    state = fill_module(files)
    yield {"name": "r50 lightning", "variant": "r50", "format": "lightly", "pictures": pictures, "state": state,
           "outputs": {"out": resnet(pixels_of(pictures, torch.float32))}}  # fmt: skip

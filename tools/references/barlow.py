"""Barlow Twins as in facebookresearch/barlowtwins (MIT), and the layout of lightly-ai/lightly's (MIT) files.

Checkouts are named by $OPTICUS_REFERENCES/barlowtwins and $OPTICUS_REFERENCES/lightly.
"""

from types import SimpleNamespace
from unittest import mock

import torch
from selfsup import CONFIG, VIEWS, checkout, learned, network_case, objective_case, pixels_of, shapes, torchvision
from torch import nn

from opticus.parity.fill import fill_module

PAPER = "barlow"
EXTENDS = "resnet"
PART = {"backbone": {"part": "resnet/18", "changes": {**CONFIG, "block": "bottleneck"}}}  # the projector takes 2048 values
REAL = torchvision.models.resnet50


def reference():
    return {
        "repository": "https://github.com/facebookresearch/barlowtwins",
        "commit": "8e8d284ca0bc02f88b92328e53f9b901e86b4a3c",
        "license": "MIT",
        "kind": "repository",
    }


def shallow(**options):
    return torchvision.models.ResNet(torchvision.models.resnet.Bottleneck, [1, 1, 1, 1], **options)


def twins(projector="8192-8192-8192", make=shallow, off=0.0051, batch=4):
    arguments = SimpleNamespace(projector=projector, lambd=off, batch_size=batch)
    with mock.patch.object(torchvision.models, "resnet50", make):
        return checkout("barlowtwins", "main").BarlowTwins(arguments)


def bare(make=shallow):
    network = make()
    network.fc = nn.Identity()
    return network


def lightning(make, hidden=8192, outputs=8192):
    heads = checkout("lightly", "lightly.models.modules.heads")
    return nn.ModuleDict({
        "backbone": bare(make),
        "projection_head": heads.BarlowTwinsProjectionHead(2048, hidden, outputs),
        "online_classifier": nn.ModuleDict({"classification_head": nn.Linear(2048, 1000)}),
    })  # fmt: skip


def loss_case(name, projector, off):
    model = twins(projector, off=off, batch=len(VIEWS[0][1]))
    hidden, _, outputs = (int(size) for size in projector.split("-"))

    def loss(views):
        with mock.patch.object(torch.distributed, "all_reduce", lambda matrix: None):
            return model(*views)

    options = {"off_weight": off, "hidden": hidden, "outputs": outputs}
    return objective_case(
        name, "barlowtwins_full", nn.ModuleDict({"module": model}), "barlow", loss, options=options, config=PART
    )


def tiny():
    network, model, files = bare(), twins("24-24-12"), lightning(shallow, 24, 12)
    return [
        network_case("backbone", "barlowtwins", network, network, config=PART),
        network_case("full", "barlowtwins_full", nn.ModuleDict({"module": model}), model.backbone, config=PART),
        network_case("lightning", "lightly", files, files["backbone"], config=PART),
        loss_case("published weight", "24-24-12", 0.0051),
        loss_case("heavier off the diagonal", "40-40-30", 0.2),
    ]


def manifests():
    with torch.device("meta"):
        return {
            "barlowtwins": {"r50": shapes(bare(REAL))},
            "barlowtwins_full": {"r50": shapes(nn.ModuleDict({"module": twins(make=REAL)}))},
            "lightly": {"r50": shapes(lightning(REAL))},
        }


def parameters():
    return {"r50": learned(manifests()["barlowtwins"]["r50"])}


@torch.no_grad()
def full():
    pictures = [[224, 224, 1]]
    network, model, files = bare(REAL), twins("64-64-64", make=REAL), lightning(REAL, 64, 64)  # heads take no part
    cases = (("barlowtwins", network, network), ("barlowtwins_full", nn.ModuleDict({"module": model}), model.backbone),
             ("lightly", files, files["backbone"]))  # fmt: skip
    for form, whole, inner in cases:
        state = fill_module(whole.eval())
        yield {"name": f"r50 {form}", "variant": "r50", "format": form, "pictures": pictures, "state": state,
               "outputs": {"out": inner(pixels_of(pictures, torch.float32))}}  # fmt: skip

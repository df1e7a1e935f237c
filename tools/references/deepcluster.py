"""DeepCluster-v2: the loss of vturrisi/solo-learn (MIT), a checkout of which is named by $OPTICUS_REFERENCES/solo-learn.

The published file holds torchvision's ResNet, a projection head and one set of prototypes per head behind `module.`, as
facebookresearch/vissl (MIT) describes them (projects/SwAV/README.md and its `swav_head`).
"""

from selfsup import WIDTH, learned, network_case, objective_case, pixels_of, shapes, small

# isort: split
import importlib.util
import os
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F

from opticus.models.selfsup.deepcluster import number_of
from opticus.parity.fill import fill_module

PAPER = "deepcluster"
EXTENDS = "resnet"
LOCALS = [["local", [[48, 48, seed] for seed in seeds]] for seeds in ((9, 10, 11, 12), (13, 14, 15, 16))]
PAIR = [["global", [[64, 64, seed] for seed in seeds]] for seeds in ((1, 2, 3, 4), (5, 6, 7, 8))]


def solo(path):
    """One file of the checkout: the package itself wants a training framework."""
    file = Path(os.environ.get("OPTICUS_REFERENCES", "")) / "solo-learn" / path
    spec = importlib.util.spec_from_file_location(file.stem, file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def reference():
    return {
        "repository": "https://github.com/vturrisi/solo-learn",
        "commit": "9187ea39c2c3f43c455ab06664d2b019a9802954",
        "license": "MIT",
        "kind": "repository",
    }


def published(backbone, width, hidden, outputs, prototypes):
    """The training network as one module tree: the backbone's blocks, `projection_head` and `prototypes` side by side."""
    whole = nn.Module()
    for name, child in backbone.named_children():
        if list(child.state_dict()):
            whole.add_module(name, child)
    layers = nn.Linear(width, hidden), nn.BatchNorm1d(hidden), nn.ReLU(), nn.Linear(hidden, outputs)
    whole.projection_head = nn.Sequential(*layers)
    whole.prototypes = nn.ModuleDict({f"prototypes{i}": nn.Linear(outputs, k, bias=False) for i, k in enumerate(prototypes)})
    return nn.ModuleDict({"module": whole})


def loss_case(name, views, prototypes, labels, temperature):
    """`labels` (H, 4) of the four pictures in each head; -1 is a picture without a label."""
    backbone = small()
    training = published(backbone, WIDTH, 24, 16, prototypes)
    training["memory"] = nn.Module()
    for key, value in (("keys", torch.zeros(4).long()), ("rows", torch.zeros(2, 4, 16)),
                       ("labels", torch.zeros(len(prototypes), 4).long()), ("filled", torch.zeros(1).long())):  # fmt: skip
        training["memory"].register_buffer(key, value)
    constants = {"memory.keys": number_of(["0", "1", "2", "3"]).tolist(), "memory.labels": labels, "memory.filled": [4]}
    criterion = solo("solo/losses/deepclusterv2.py").deepclusterv2_loss_func

    def loss(pictures):
        head = training["module"]
        sizes = sorted({p.shape[-1] for p in pictures}, reverse=True)
        vectors = torch.cat([backbone(torch.cat([p for p in pictures if p.shape[-1] == size])) for size in sizes])
        units = F.normalize(head.projection_head(vectors), dim=1)
        scores = torch.stack([layer(units).unflatten(0, (len(pictures), -1)) for layer in head.prototypes.values()])
        return criterion(scores, torch.tensor(labels), temperature)

    options = {"prototypes": prototypes, "hidden": 24, "outputs": 16, "temperature": temperature, "memory": 4}
    made = objective_case(name, "deepcluster", training, "deepcluster", loss, options=options, views=views, constants=constants)
    squares = [p.grad.square().sum() for key, p in training.named_parameters() if p.grad is not None and ".prototypes." not in key]
    made["outputs"]["objective.gradient"] = torch.stack(squares).sum().sqrt().reshape(1)  # centres do not learn
    return made


def tiny():
    backbone = small()
    return [
        network_case("published file", "deepcluster", published(backbone, WIDTH, 24, 16, [6, 6]), backbone),
        loss_case("two views", PAIR, [6, 6, 6], [[0, 1, 5, 1], [2, 2, 3, 0], [4, 1, 0, 2]], 0.1),
        loss_case("multi-crop, pictures without a label", PAIR + LOCALS, [6, 6], [[3, -1, 0, 1], [5, -1, 3, 1]], 0.2),
    ]


def manifests():
    import torchvision

    with torch.device("meta"):
        resnet = torchvision.models.resnet50()
        resnet.fc = nn.Identity()
        return {"deepcluster": {"r50": shapes(published(resnet, 2048, 2048, 128, [3000] * 3))}}


def parameters():
    import torchvision

    with torch.device("meta"):
        resnet = torchvision.models.resnet50()
        resnet.fc = nn.Identity()
        return {"r50": learned(shapes(resnet))}


@torch.no_grad()
def full():
    import torchvision

    resnet = torchvision.models.resnet50()
    resnet.fc = nn.Identity()
    whole = published(resnet, 2048, 2048, 128, [3000] * 3).eval()
    state = fill_module(whole)
    pictures = [[224, 224, 1]]
    yield {"name": "r50", "variant": "r50", "format": "deepcluster", "pictures": pictures, "state": state,
           "outputs": {"out": resnet(pixels_of(pictures, torch.float32))}}  # fmt: skip

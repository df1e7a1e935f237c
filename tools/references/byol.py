"""BYOL as in lightly-ai/lightly (MIT), a checkout of which is named by $OPTICUS_REFERENCES/lightly.

Its heads lose the last layer's bias, which the authors' networks (deepmind-research, Apache-2.0, JAX) do not have.
"""

import torch
from selfsup import WIDTH, checkout, learned, network_case, objective_case, pixels_of, shapes, small, torchvision
from torch import nn

from opticus.parity.fill import fill_module

PAPER = "byol"
EXTENDS = "resnet"
WIDE = {"r50": ((3, 4, 6, 3), 1), "r50w2": ((3, 4, 6, 3), 2), "r50w4": ((3, 4, 6, 3), 4), "r200w2": ((3, 24, 36, 3), 2)}


def reference():
    return {
        "repository": "https://github.com/lightly-ai/lightly",
        "commit": "e8d317fc5a87f4387a85a35e689869039ec249ee",
        "license": "MIT",
        "kind": "repository",
    }


def head(kind, *sizes, bias=False):
    made = getattr(checkout("lightly", "lightly.models.modules.heads"), kind)(*sizes)
    if not bias:
        made.layers[-1] = nn.Linear(made.layers[-1].in_features, made.layers[-1].out_features, bias=False)
    return made


def modules(make, width, hidden, outputs, bias=False):
    """The modules of lightly's BYOL but its classifier."""
    return nn.ModuleDict({
        "backbone": make(),
        "projection_head": head("BYOLProjectionHead", width, hidden, outputs, bias=bias),
        "prediction_head": head("BYOLPredictionHead", outputs, hidden, outputs, bias=bias),
        "teacher_backbone": make().requires_grad_(False),
        "teacher_projection_head": head("BYOLProjectionHead", width, hidden, outputs, bias=bias).requires_grad_(False),
    })  # fmt: skip


def lightning(make, width):
    files = modules(make, width, 4096, 256, bias=True)
    files["online_classifier"] = nn.ModuleDict({"classification_head": nn.Linear(width, 1000)})
    return files


def resnet50():
    network = torchvision.models.resnet50()
    network.fc = nn.Identity()
    return network


def loss_case(name, hidden, outputs):
    training = modules(small, WIDTH, hidden, outputs)
    criterion = checkout("lightly", "lightly.loss.negative_cosine_similarity").NegativeCosineSimilarity()

    def loss(views):
        with torch.no_grad():
            goals = [training["teacher_projection_head"](training["teacher_backbone"](view)) for view in views]
        said = [training["prediction_head"](training["projection_head"](training["backbone"](view))) for view in views]
        # 2 - 2 cos for each direction, of which lightly leaves the constant away
        return 4 + 2 * criterion(goals[0], said[1]) + 2 * criterion(goals[1], said[0])

    return objective_case(name, "lightly", training, "byol", loss, options={"hidden": hidden, "outputs": outputs})


def tiny():
    files = lightning(small, WIDTH)
    return [network_case("lightning", "lightly", files, files["backbone"]), loss_case("two views", 40, 24)]


def manifests():
    with torch.device("meta"):
        return {"lightly": {"r50": shapes(lightning(resnet50, 2048))}}


def parameters():
    """Encoders whose layers are all so many times wider, of torchvision's blocks."""
    counts = {}
    with torch.device("meta"):
        for variant, (layers, width) in WIDE.items():
            network = torchvision.models.ResNet(torchvision.models.resnet.Bottleneck, list(layers))
            network.inplanes = 64 * width
            network.conv1, network.bn1 = nn.Conv2d(3, 64 * width, 7, 2, 3, bias=False), nn.BatchNorm2d(64 * width)
            for i, count in enumerate(layers):
                block = network._make_layer(torchvision.models.resnet.Bottleneck, 64 * 2**i * width, count, 2 if i else 1)
                setattr(network, f"layer{i + 1}", block)
            network.fc = nn.Identity()
            counts[variant] = learned(shapes(network))
    return counts


@torch.no_grad()
def full():
    pictures = [[224, 224, 1]]
    files = lightning(resnet50, 2048).eval()
    state = fill_module(files)
    yield {"name": "r50 lightning", "variant": "r50", "format": "lightly", "pictures": pictures, "state": state,
           "outputs": {"out": files["backbone"](pixels_of(pictures, torch.float32))}}  # fmt: skip

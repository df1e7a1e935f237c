"""SwAV: the loss and the codes of lightly-ai/lightly (MIT), a checkout of which is named by $OPTICUS_REFERENCES/lightly.

The published file holds torchvision's ResNet, a projection head and prototypes behind `module.`, as facebookresearch/vissl (MIT)
describes them (projects/SwAV/README.md, its `swav_head` and the widths in configs/config/pretrain/swav); wide ones are those of
tonylins/simclr-converter (Apache-2.0), $OPTICUS_REFERENCES/simclr-converter.
"""

from selfsup import WIDTH, checkout, learned, network_case, objective_case, pixels_of, shapes, small

# isort: split
import torch
from torch import nn
from torch.nn import functional as F

from opticus.parity.fill import fill_module

PAPER = "swav"
EXTENDS = "resnet"
LOCALS = [["local", [[48, 48, seed] for seed in seeds]] for seeds in ((9, 10, 11, 12), (13, 14, 15, 16))]
PAIR = [["global", [[64, 64, seed] for seed in seeds]] for seeds in ((1, 2, 3, 4), (5, 6, 7, 8))]


def reference():
    return {
        "repository": "https://github.com/lightly-ai/lightly",
        "commit": "e8d317fc5a87f4387a85a35e689869039ec249ee",
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
    whole.prototypes = nn.Linear(outputs, prototypes, bias=False)
    return nn.ModuleDict({"module": whole})


def loss_case(name, views, queue=0, **options):
    backbone = small()
    training = published(backbone, WIDTH, 24, 16, 10)
    memory = []
    if queue:
        training["queues"] = nn.ModuleList([nn.Module(), nn.Module()])
        for each in training["queues"]:
            each.register_buffer("rows", torch.zeros(queue, 16))
            each.register_buffer("place", torch.zeros(1, dtype=torch.long))
            each.register_buffer("filled", torch.zeros(1, dtype=torch.long))
            memory.append(each)
    named = {"temperature": "temperature", "epsilon": "sinkhorn_epsilon", "iterations": "sinkhorn_iterations"}
    criterion = checkout("lightly", "lightly.loss.swav_loss").SwaVLoss(**{named[key]: value for key, value in options.items()})
    constants = {f"queues.{i}.{key}": [value] for i in range(len(memory)) for key, value in (("place", 0), ("filled", queue))}

    def loss(pictures):
        head = training["module"]
        with torch.no_grad():
            head.prototypes.weight.copy_(F.normalize(head.prototypes.weight, dim=1))
        sizes = sorted({p.shape[-1] for p in pictures}, reverse=True)
        vectors = torch.cat([backbone(torch.cat([p for p in pictures if p.shape[-1] == size])) for size in sizes])
        scores = head.prototypes(F.normalize(head.projection_head(vectors), dim=1)).chunk(len(pictures))
        waiting = [head.prototypes(each.rows) for each in memory] if queue else None
        return criterion(list(scores[:2]), list(scores[2:]), waiting).squeeze()

    settings = {"prototypes": 10, "hidden": 24, "outputs": 16, **options, **({"queue": queue, "queue_epoch": 1} if queue else {})}
    return objective_case(name, "swav", training, "swav", loss, options=settings, views=views, constants=constants)


def tiny():
    backbone = small()
    return [
        network_case("published file", "swav", published(backbone, WIDTH, 24, 16, 10), backbone),
        loss_case("two views", PAIR),
        loss_case("multi-crop, other settings", PAIR + LOCALS, temperature=0.2, epsilon=0.1, iterations=5),
        loss_case("queue", PAIR, queue=6),
    ]


def encoder(times):
    """The authors' encoder, every layer `times` as wide as ResNet-50's."""
    resnet = getattr(checkout("simclr-converter", "resnet_wider"), f"resnet50x{times}")()
    resnet.fc = nn.Identity()
    return resnet


def manifests():
    with torch.device("meta"):
        plain = published(encoder(1), 2048, 2048, 128, 3000)
        wide = {f"r50w{w}": published(encoder(w), 2048 * w, 8192, 128, 3000) for w in (2, 4)}
        return {"swav": {variant: shapes(whole) for variant, whole in {"r50": plain, **wide}.items()}}


def parameters():
    with torch.device("meta"):
        return {f"r50{'' if w == 1 else f'w{w}'}": learned(shapes(encoder(w))) for w in (1, 2, 4)}


@torch.no_grad()
def full():
    resnet = encoder(1)
    whole = published(resnet, 2048, 2048, 128, 3000).eval()
    state = fill_module(whole)
    pictures = [[224, 224, 1]]
    yield {"name": "r50", "variant": "r50", "format": "swav", "pictures": pictures, "state": state,
           "outputs": {"out": resnet(pixels_of(pictures, torch.float32))}}  # fmt: skip

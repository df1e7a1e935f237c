"""MoCo with the names of facebookresearch/moco's files, of modules of lightly-ai/lightly (MIT).

A checkout of lightly is named by $OPTICUS_REFERENCES/lightly; the authors' repository is not read (CC-BY-NC-4.0).
"""

import torch
from selfsup import WIDTH, checkout, learned, network_case, objective_case, pixels_of, shapes, small, torchvision
from torch import nn

from opticus.parity.fill import fill_module

PAPER = "moco"
EXTENDS = "resnet"


def reference():
    return {
        "repository": "https://github.com/lightly-ai/lightly",
        "commit": "e8d317fc5a87f4387a85a35e689869039ec249ee",
        "license": "MIT",
        "kind": "repository",
    }


def head(width=WIDTH, outputs=128, mlp=True):
    modules = checkout("lightly", "lightly.models.modules.heads")
    return modules.MoCoProjectionHead(width, width, outputs).layers if mlp else nn.Linear(width, outputs)


def resnet50(last=None):
    network = torchvision.models.resnet50()
    network.fc = nn.Identity() if last is None else last
    return network


class Checkpoint(nn.Module):
    """What the authors' data-parallel wrapper holds: query encoder and, of a training checkpoint, key encoder and queue."""

    def __init__(self, query, key=None, queue=None):
        super().__init__()
        self.module = nn.Module()
        self.module.encoder_q = query
        if key is not None:
            self.module.encoder_k = key.requires_grad_(False)
            self.module.register_buffer("queue", torch.zeros(queue))
            self.module.register_buffer("queue_ptr", torch.zeros(1, dtype=torch.long))


def lightning(make, width):
    """The modules of lightly's checkpoint."""
    names = ("projection_head", "key_projection_head")
    heads = {name: checkout("lightly", "lightly.models.modules.heads").MoCoProjectionHead(width, width) for name in names}
    return nn.ModuleDict({
        "backbone": make(), "key_backbone": make(), **heads,
        "online_classifier": nn.ModuleDict({"classification_head": nn.Linear(width, 1000)}),
    })  # fmt: skip


def loss_case(name, mlp, temperature, outputs, queue):
    training = Checkpoint(small(head(outputs=outputs, mlp=mlp)), small(head(outputs=outputs, mlp=mlp)), (outputs, queue))
    criterion = checkout("lightly", "lightly.loss.ntx_ent_loss").NTXentLoss(temperature, memory_bank_size=(queue, outputs))

    def loss(views):
        criterion.memory_bank.bank = training.module.queue.T.contiguous()
        with torch.no_grad():
            keys = training.module.encoder_k(views[1])
        return criterion(training.module.encoder_q(views[0]), keys)

    options = {"temperature": temperature, "outputs": outputs, "queue": queue, "mlp": mlp}
    constants = {"module.queue_ptr": [0]}
    return objective_case(name, "moco", training, "moco", loss, options=options, constants=constants)


def tiny():
    query, files = Checkpoint(small(head())), lightning(small, WIDTH)
    encoder = query.module.encoder_q

    def vectors(pixels):
        encoder.fc = nn.Identity()
        return encoder(pixels)

    return [
        network_case("query encoder", "moco", query, vectors),
        network_case("lightning", "lightly", files, files["backbone"]),
        loss_case("second version", True, 0.2, 128, 50),
        loss_case("first version", False, 0.07, 20, 33),
    ]


def manifests():
    with torch.device("meta"):
        both = Checkpoint(resnet50(head(2048)), resnet50(head(2048)), (128, 65536))
        return {
            "moco": {"r50": shapes(Checkpoint(resnet50(head(2048))))},
            "moco_full": {"r50": shapes(both)},
            "moco_v1": {"r50": shapes(Checkpoint(resnet50(head(2048, mlp=False))))},
            "lightly": {"r50": shapes(lightning(resnet50, 2048))},
        }


def parameters():
    with torch.device("meta"):
        return {"r50": learned(shapes(resnet50()))}


@torch.no_grad()
def full():
    pictures = [[224, 224, 1]]
    query, files = Checkpoint(resnet50(head(2048))), lightning(resnet50, 2048)
    for form, whole, network in (("moco", query, query.module.encoder_q), ("lightly", files, files["backbone"])):
        state = fill_module(whole.eval())
        network.fc = nn.Identity()
        yield {"name": f"r50 {form}", "variant": "r50", "format": form, "pictures": pictures, "state": state,
               "outputs": {"out": network(pixels_of(pictures, torch.float32))}}  # fmt: skip

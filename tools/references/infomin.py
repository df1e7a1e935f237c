"""InfoMin as in HobbitLong/PyContrast (BSD-2-Clause), a checkout of which is named by $OPTICUS_REFERENCES/PyContrast."""

from unittest import mock

import torch
from selfsup import CONFIG, VIEWS, checkout, learned, network_case, objective_case, pixels_of, shapes
from torch import nn

from opticus.parity.fill import fill_module

PAPER = "infomin"
PART = {"backbone": {"part": "resnet/18", "changes": {**CONFIG, "block": "bottleneck"}}}  # the authors' heads take 2048 values
NAMES = {"r50": "resnet50", "r101": "resnet101", "r152": "resnet152", "x101v1": "resnext101v1", "x101v2": "resnext101v2",
         "x101v3": "resnext101v3", "x152v1": "resnext152v1", "x152v2": "resnext152v2"}  # fmt: skip
PATCHES = [["patch", [[32, 32, 10 * place + seed] for seed in range(4)]] for place in range(1, 10)]


def reference():
    return {
        "repository": "https://github.com/HobbitLong/PyContrast",
        "commit": "84f94eabec4f031194c543579476ae52ea647b90",
        "license": "BSD-2-Clause",
        "kind": "repository",
    }


def model(name="shallow", outputs=128, kind="RGBMultiHeads"):
    networks = checkout("PyContrast/pycontrast", "networks.resnet")
    networks.model_dict["shallow"] = lambda width: networks.ResNet(networks.Bottleneck, [1, 1, 1, 1], width=width)
    return getattr(checkout("PyContrast/pycontrast", "networks.build_backbone"), kind)(name, "mlp", outputs)


def loss_case(name, weight, outputs, queue, jigsaw=True):
    kind = "RGBMultiHeads" if jigsaw else "RGBSingleHead"
    query, key = model(outputs=outputs, kind=kind), model(outputs=outputs, kind=kind).requires_grad_(False)
    contrast = checkout("PyContrast/pycontrast", "memory.mem_moco").RGBMoCo(outputs, queue, 0.15)
    del contrast.index
    contrast.register_buffer("index", torch.zeros(1, dtype=torch.long))  # where the reference has a plain 0
    training = nn.ModuleDict({"model": nn.ModuleDict({"module": query}), "model_ema": key, "contrast": contrast})
    if jigsaw:
        query.head_jig.get_shuffle_ids = torch.arange  # the port's patches come shuffled

    def loss(views):
        with torch.no_grad():
            keys = key(views[1], mode=1)
        with mock.patch.object(torch.Tensor, "cuda", lambda tensor: tensor), mock.patch.object(contrast, "_update_memory"):
            if not jigsaw:
                logits, labels = contrast(query(views[0]), keys)
                return nn.functional.cross_entropy(logits, labels)
            said, pieces = query(views[0], torch.stack(views[2:], 1).flatten(0, 1))
            whole, parts, labels = contrast(said, keys, pieces)
        whole, parts = (nn.functional.cross_entropy(logits, labels) for logits in (whole, parts))
        return {"infomin": (1 - weight) * whole, "jigsaw": weight * parts}

    options = {"jigsaw": weight if jigsaw else 0.0, "outputs": outputs, "queue": queue}
    return objective_case(
        name, "pycontrast", training, "infomin", loss,
        options=options, config=PART, constants={"contrast.index": [0]}, views=VIEWS + (PATCHES if jigsaw else []),
    )  # fmt: skip


def tiny():
    query = model()
    return [
        network_case("query encoder", "pycontrast", nn.ModuleDict({"module": query}), query.encoder, config=PART),
        loss_case("no patches", 0.0, 24, 33, jigsaw=False),
        loss_case("patches", 0.3, 24, 50),
    ]


def manifests():
    with torch.device("meta"):
        return {"pycontrast": {variant: shapes(nn.ModuleDict({"module": model(name)})) for variant, name in NAMES.items()}}


def parameters():
    with torch.device("meta"):
        return {variant: learned(shapes(model(name).encoder)) for variant, name in NAMES.items()}


@torch.no_grad()
def full():
    pictures = [[224, 224, 1]]
    query = model("resnet50").eval()
    state = fill_module(nn.ModuleDict({"module": query}))
    yield {"name": "r50", "variant": "r50", "format": "pycontrast", "pictures": pictures, "state": state,
           "outputs": {"out": query.encoder(pixels_of(pictures, torch.float32))}}  # fmt: skip

"""OBoW as in valeoai/obow (Apache-2.0), a checkout of which is named by $OPTICUS_REFERENCES/obow."""

from selfsup import WIDTH, checkout, learned, network_case, objective_case, pixels_of, shapes, small

# isort: split
import importlib.util
import sys
import types

import torch
import torchvision
from torch import nn

from opticus.parity.fill import fill_module

PAPER = "obow"
EXTENDS = "resnet"
PAIR = [["global", [[160, 160, seed] for seed in seeds]] for seeds in ((1, 2, 3, 4), (5, 6, 7, 8))]
MORE = [
    ["global", [[160, 160, seed] for seed in (21, 22, 23, 24)]],
    ["local", [[96, 96, seed] for seed in (9, 10, 11, 12)]],
    ["local", [[96, 96, seed] for seed in (13, 14, 15, 16)]],
]


def authors(name):
    """A module of the authors' package, whose plotting and video needs are not there."""
    for missing in ("tensorboardX", "cv2", "ipdb"):
        if missing not in sys.modules and importlib.util.find_spec(missing) is None:
            sys.modules.setdefault(missing, types.ModuleType(missing))
    return checkout("obow", f"obow.{name}")


def reference():
    return {
        "repository": "https://github.com/valeoai/obow",
        "commit": "3758504f5e058275725c35ca7faca3731572b911",
        "license": "Apache-2.0",
        "kind": "repository",
    }


def extractor(network):
    """The authors' way of holding a ResNet: as a list of blocks."""
    module = authors("feature_extractor")
    module.models = type("Models", (), {"own": lambda **_: network})
    return module.ResNet("own", global_pooling=True)


def whole(network, width, words, levels, kappa, delta, update):
    """The training module with vocabularies of the last levels."""
    widths = [width // 2, width][-levels:]
    names = ["block3", "block4"][-levels:]
    network.fc = nn.Linear(width, 2)
    options = [{"num_words": words, "num_channels": w, "inv_delta": delta, "update_type": update} for w in widths]
    return authors("builder_obow").OBoW(extractor(network), width, names, options, {"kappa": kappa})


def loss_case(name, views, *, levels=2, kappa=8.0, sharpness=15.0):
    training = whole(small(), WIDTH, 12, levels, kappa, sharpness, "global_average").double()
    for each in training.bow_extractor.bow_extractor:
        each.register_buffer("_filled", torch.zeros(1, dtype=torch.long))
    constants = {}
    for level in range(levels):
        constants |= {f"bow_extractor.bow_extractor.{level}.{key}": [0] for key in ("_filled", "_embedding_ptr")}
        constants |= {f"bow_extractor.bow_extractor.{level}._min_distance_mean": [40.0]}
    training._update_teacher = lambda: None  # it follows at the end of the step before

    def loss(pictures):
        training.bow_predictor.scale.data.fill_(kappa)
        groups = [torch.stack([p for p, (role, _) in zip(pictures[1:], views[1:]) if role == kind], 1).flatten(0, 1)
                  for kind in ("global", "local") if any(role == kind for role, _ in views[1:])]  # fmt: skip
        return training(pictures[0], groups)[0].sum()

    options = {"words": 12, "levels": levels, "kappa": kappa, "sharpness": sharpness, "sample": "global"}
    made = objective_case(name, "obow_blocks", training, "obow", loss, options=options, views=views, constants=constants)
    made["constants"]["bow_predictor.scale"] = [kappa] * levels  # a parameter of theirs that does not learn
    return made


def tiny():
    plain = small(nn.Linear(WIDTH, 12))

    def vectors(pixels):
        plain.fc = nn.Identity()
        return plain(pixels)

    blocks = extractor(small(nn.Linear(WIDTH, 2)))
    return [
        network_case("torchvision names", "obow", plain, vectors),
        network_case("blocks", "obow_blocks", blocks, lambda pixels: blocks(pixels).flatten(1)),
        loss_case("one crop", PAIR),
        loss_case("crops and patches", PAIR + MORE),
        loss_case("one level, other settings", PAIR, levels=1, kappa=5.0, sharpness=10.0),
    ]


def manifests():
    with torch.device("meta"):
        plain = {v: shapes(getattr(torchvision.models, f"resnet{v[1:]}")(num_classes=8192)) for v in ("r18", "r50")}
        blocks = {v: shapes(extractor(getattr(torchvision.models, f"resnet{v[1:]}")())) for v in ("r18", "r50")}
    return {"obow": plain, "obow_blocks": blocks}


def parameters():
    return {variant: learned(state) for variant, state in manifests()["obow_blocks"].items()}


@torch.no_grad()
def full():
    pictures = [[224, 224, 1]]
    for form in ("obow", "obow_blocks"):
        resnet = torchvision.models.resnet50(num_classes=8192).eval()
        published = resnet if form == "obow" else extractor(resnet).eval()
        state = fill_module(published)
        resnet.fc = nn.Identity()
        yield {"name": f"r50 {form}", "variant": "r50", "format": form, "pictures": pictures, "state": state,
               "outputs": {"out": resnet(pixels_of(pictures, torch.float32))}}  # fmt: skip

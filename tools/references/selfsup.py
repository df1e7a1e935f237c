"""What the adapters of methods that compare views share: a small ResNet, its views, and the form of their cases."""

import torchvision_shim  # noqa: F401  (before anything that imports torchvision)

# isort: split
import importlib
import os
import sys
from pathlib import Path

import torch
import torchvision

from opticus.parity.case import network_input
from opticus.parity.fill import fill_module
from opticus.structures import Prepare

RULE = Prepare()
CONFIG = {"layers": [1, 1, 1, 1], "block": "basic", "width": 64, "stem": "imagenet", "classes": 0}
PART = {"backbone": {"part": "resnet/18", "changes": CONFIG}}
WIDTH = 512
PICTURES = [[64, 64, 1], [64, 64, 2]]
VIEWS = [["global", [[64, 64, seed] for seed in seeds]] for seeds in ((1, 2, 3, 4), (5, 6, 7, 8))]
COUNTERS = ("running_mean", "running_var", "num_batches_tracked")


def checkout(folder, name):
    """A module of the checkout $OPTICUS_REFERENCES/<folder>, which may lie in a folder of it."""
    root = str(Path(os.environ.get("OPTICUS_REFERENCES", "")) / folder)
    if root not in sys.path:
        sys.path.insert(0, root)
    return importlib.import_module(name)


def small(head=None):
    """A ResNet with one block a stage; `head` takes the place of its classifier (None = nothing)."""
    network = torchvision.models.ResNet(torchvision.models.resnet.BasicBlock, [1, 1, 1, 1])
    network.fc = torch.nn.Identity() if head is None else head
    return network


def shapes(module, prefix=""):
    return {f"{prefix}{key}": tuple(value.shape) for key, value in module.state_dict().items()}


def learned(state):
    """Number of values of a state's parameters."""
    return sum(torch.Size(shape).numel() for key, shape in state.items() if not key.endswith(COUNTERS))


def pixels_of(pictures, dtype=torch.float64):
    return network_input(pictures, RULE, dtype)[0]


def base(name, form, variant="tiny", config=None):
    rule = {"mean": RULE.mean, "std": RULE.std}
    return {"name": name, "format": form, "variant": variant, "config": PART if config is None else config, "prepare": rule}


@torch.no_grad()
def network_case(name, form, whole, inner, **options):
    """`whole` is the published file, `inner` the network in it that makes vectors."""
    whole.double().eval()
    state = fill_module(whole)
    return {**base(name, form, **options), "pictures": PICTURES, "state": state, "outputs": {"out": inner(pixels_of(PICTURES))}}


def objective_case(title, form, training, term, loss, *, options=None, views=VIEWS, at=(7, 1, 40, 4), constants=None, **more):
    """`loss(views)` (one `term`, or several by name) of the formula-filled modules `training`, and the norm of its gradient."""
    training.double().train()
    state = fill_module(training)
    for key, values in (constants or {}).items():
        training.get_buffer(key).copy_(torch.tensor(values))
    value = loss([pixels_of(pictures) for _, pictures in views])
    terms = value if isinstance(value, dict) else {term: value}
    sum(terms.values()).backward()
    squares = [p.grad.square().sum() for p in training.parameters() if p.grad is not None]
    outputs = {f"objective.{name}": part.detach() for name, part in terms.items()}
    outputs["objective.gradient"] = torch.stack(squares).sum().sqrt()
    return {
        **base(title, form, **more), "pictures": PICTURES, "state": state, **({"constants": constants} if constants else {}),
        "objective": {"options": options or {}, "views": views, "at": list(at)},
        "outputs": {key: tensor.reshape(1) for key, tensor in outputs.items()},
    }  # fmt: skip

"""DINO as in facebookresearch/dino (Apache-2.0), a local checkout of which is named by $OPTICUS_REFERENCES/dino."""

import torchvision_shim  # noqa: F401  (before anything that imports torchvision)

# isort: split
import importlib
import os
import sys
from pathlib import Path

import torch
from torch import distributed

from opticus.parity.case import network_input
from opticus.parity.fill import fill_module
from opticus.structures import Prepare

PAPER = "dino"
EXTENDS = "vit"
ROOT = Path(os.environ.get("OPTICUS_REFERENCES", "")) / "dino"
VARIANTS = {"s16": ("vit_small", 16), "s8": ("vit_small", 8), "b16": ("vit_base", 16), "b8": ("vit_base", 8)}


def authors(name):
    """A module of the checkout."""
    if str(ROOT) not in sys.path:
        sys.path.insert(0, str(ROOT))
    return importlib.import_module(name)


def reference():
    return {
        "repository": "https://github.com/facebookresearch/dino",
        "commit": "7c446df5b9f45747937fb0d72314eb9f7b66930a",
        "license": "Apache-2.0",
        "kind": "repository",
    }


def small():
    nets = authors("vision_transformer")
    return nets.VisionTransformer(img_size=[16], patch_size=8, embed_dim=24, depth=2, num_heads=3, mlp_ratio=2.0, qkv_bias=True,
                                  norm_layer=lambda width: torch.nn.LayerNorm(width, eps=1e-6)).double()  # fmt: skip


CONFIG = {"size": 16, "patch": 8, "width": 24, "depth": 2, "heads": 3, "mlp": 2.0, "classes": 0}
PART = {"backbone": {"part": "vit/tiny", "changes": CONFIG}}
PICTURES = [[16, 16, 1], [16, 16, 2]]


def prefixed(prefix, shapes):
    return {f"{prefix}{key}": value for key, value in shapes.items()}


@torch.no_grad()
def network_cases():
    model = small().eval()
    state = fill_module(model)
    pixels, _ = network_input(PICTURES, Prepare())
    base = {"variant": "tiny_vit", "config": PART, "pictures": PICTURES, "prepare": {"mean": Prepare().mean, "std": Prepare().std}}
    yield {**base, "name": "backbone", "format": "dino", "state": state, "outputs": {"out": model(pixels)}}
    whole = (
        authors("utils")
        .MultiCropWrapper(small(), authors("vision_transformer").DINOHead(24, 20, hidden_dim=16, bottleneck_dim=12).double())
        .eval()
    )
    state = fill_module(whole)
    yield {**base, "name": "full", "format": "dino_full", "state": state, "outputs": {"out": whole.backbone(pixels)}}


def objective_case(name, epoch, options, crops, use_bn=False, norm_last=True):
    """The authors' loss on formula views, with student, teacher and centre formula-filled."""
    nets, main, utils = authors("vision_transformer"), authors("main_dino"), authors("utils")
    settings = {"use_bn": use_bn, "hidden_dim": 16, "bottleneck_dim": 12, "nlayers": options.get("depth", 3)}
    student = utils.MultiCropWrapper(small(), nets.DINOHead(24, 20, norm_last_layer=norm_last, **settings).double()).train()
    teacher = utils.MultiCropWrapper(small(), nets.DINOHead(24, 20, **settings).double()).train()
    loss = main.DINOLoss(20, len(crops), *options["teacher"], options["teacher_epochs"], 40).double()
    training = torch.nn.ModuleDict({"student": student, "teacher": teacher, "dino_loss": loss})
    state = fill_module(training)
    for net in (student, teacher):
        net.head.last_layer.weight_g.data.fill_(1)
    for parameter in teacher.parameters():
        parameter.requires_grad = False
    views = [network_input(pictures, Prepare())[0] for _, pictures in crops]
    value = loss(student(views), teacher(views[:2]), epoch)
    value.backward()
    squares = [p.grad.square().sum() for p in student.parameters() if p.grad is not None]
    return {
        "name": name, "format": "dino_full", "variant": "tiny_vit", "config": PART, "pictures": PICTURES, "state": state,
        "prepare": {"mean": Prepare().mean, "std": Prepare().std},
        "objective": {"options": {"outputs": 20, "hidden": 16, "bottleneck": 12, **options}, "views": crops, "at": [epoch * 10, epoch, 400, 40]},
        "outputs": {"objective.dino": value.detach().reshape(1), "objective.gradient": torch.stack(squares).sum().sqrt().reshape(1)},
    }  # fmt: skip


def tiny():
    if not distributed.is_initialized():  # the loss sums its centre over processes
        distributed.init_process_group("gloo", init_method="tcp://127.0.0.1:29873", rank=0, world_size=1)
    pairs = [["global", [[16, 16, 1], [16, 16, 2]]], ["global", [[16, 16, 3], [16, 16, 4]]]]
    local = [["local", [[16, 16, 5], [16, 16, 6]]], ["local", [[16, 16, 7], [16, 16, 8]]]]
    warm = {"teacher": [0.04, 0.07], "teacher_epochs": 30}
    return [
        *network_cases(),
        objective_case("two views", 7, warm, pairs),
        objective_case("multi-crop after the warm-up", 33, warm, pairs + local),
        objective_case(
            "batch norm in the head",
            0,
            {"teacher": [0.05, 0.05], "teacher_epochs": 0, "head_norm": True, "depth": 2},
            pairs,
            use_bn=True,
        ),
    ]


def manifests():
    nets, utils = authors("vision_transformer"), authors("utils")
    plain, full = {}, {}
    import torchvision

    for variant, (make, patch) in VARIANTS.items():
        net = getattr(nets, make)(patch_size=patch)
        plain[variant] = {k: tuple(v.shape) for k, v in net.state_dict().items()}
        whole = utils.MultiCropWrapper(net, nets.DINOHead(net.embed_dim, 65536))
        full[variant] = {k: tuple(v.shape) for k, v in whole.state_dict().items()}
    net = torchvision.models.resnet50()
    net.fc = torch.nn.Identity()
    plain["r50"] = {k: tuple(v.shape) for k, v in net.state_dict().items()}
    whole = utils.MultiCropWrapper(net, nets.DINOHead(2048, 65536, use_bn=True))
    full["r50"] = {k: tuple(v.shape) for k, v in whole.state_dict().items()}
    return {"dino": plain, "dino_full": full}


def parameters():
    counts = {}
    for variant, shapes in manifests()["dino"].items():
        counts[variant] = sum(
            torch.Size(s).numel()
            for k, s in shapes.items()
            if not k.endswith(("running_mean", "running_var", "num_batches_tracked"))
        )
    return counts


@torch.no_grad()
def full():
    nets = authors("vision_transformer")
    model = nets.vit_small(patch_size=16).eval()
    state = fill_module(model)
    pictures = [[224, 224, 1]]
    pixels, _ = network_input(pictures, Prepare(), torch.float32)
    yield {
        "name": "s16",
        "variant": "s16",
        "format": "dino",
        "pictures": pictures,
        "state": state,
        "outputs": {"out": model(pixels)},
    }

"""The stacked hourglass inside CornerNet, as in the authors' repository (BSD-3-Clause): its trunk, seen through hooks.

Not a pip package: set OPTICUS_REFERENCES to a folder that holds a clone of github.com/princeton-vl/CornerNet as `CornerNet`.
"""

import torch
from corner_pools import cornernet

from opticus.models.backbones.hourglass import PREPARE
from opticus.parity.case import network_input
from opticus.parity.fill import fill_module

kp, Full, utils = cornernet()

PAPER = "hourglass"
TRUNK = ("pre.", "kps.", "cnvs.", "inters.", "inters_.", "cnvs_.")


def reference():
    return {
        "repository": "https://github.com/princeton-vl/CornerNet",
        "commit": "e5c39a31a8abef5841976c8eab18da86d6ee5f9a",
        "license": "BSD-3-Clause",
        "kind": "repository",
    }


def trunk(shapes):
    """Of the published keys, those that belong to the backbone."""
    return {key: tuple(shape) for key, shape in shapes.items() if key.removeprefix("module.").startswith(TRUNK)}


def features(model, pixels):
    """What the convolution behind every hourglass gives while the authors' forward pass runs."""
    maps = []
    hooks = [layer.register_forward_hook(lambda _, __, out: maps.append(out.clone())) for layer in model.cnvs]
    model(pixels, num_dets=10, K=10)
    for hook in hooks:
        hook.remove()
    return {f"features.{i}": x for i, x in enumerate(maps)}


def shrunk(widths, depths, stacks):
    """The authors' network with other numbers; its stem is written out, since theirs has fixed widths."""
    pre = torch.nn.Sequential(utils.convolution(7, 3, 8, stride=2), utils.residual(3, 8, widths[0], stride=2))
    pooling = Full.__init__.__globals__
    return kp(
        len(widths) - 1, stacks, widths, depths, 3, pre=pre, cnv_dim=16,
        **{name: pooling[name] for name in ("make_tl_layer", "make_br_layer", "make_pool_layer", "make_hg_layer")},
    )  # fmt: skip


@torch.no_grad()
def tiny():
    cases = []
    for name, widths, depths, stacks in (("two-stacks", [12, 16, 20], [1, 2, 2], 2), ("one-stack", [12, 12], [2, 3], 1)):
        model = shrunk(widths, depths, stacks).double().eval()
        state = trunk(fill_module(model, lambda key: f"module.{key}"))
        pictures = [[32, 48, 1], [32, 48, 2]]
        pixels, _ = network_input(pictures, PREPARE)
        config = {"stacks": stacks, "widths": widths, "depths": depths, "width": 16, "stem": 8}
        cases.append({"name": name, "format": "cornernet", "variant": "104", "config": config, "state": state,
                      "pictures": pictures, "outputs": features(model, pixels)})  # fmt: skip
    return cases


def manifests():
    with torch.device("meta"):
        return {"cornernet": {"104": trunk({f"module.{k}": v.shape for k, v in Full(None).state_dict().items()})}}


def parameters():
    with torch.device("meta"):
        return {"104": sum(p.numel() for k, p in Full(None).named_parameters() if k.startswith(TRUNK))}


@torch.no_grad()
def full():
    pictures = [[128, 256, 1]]
    model = Full(None).eval()
    state = trunk(fill_module(model, lambda key: f"module.{key}"))
    pixels, _ = network_input(pictures, PREPARE, torch.float32)
    yield {"name": "hourglass-104", "format": "cornernet", "variant": "104", "state": state,
           "pictures": pictures, "outputs": features(model, pixels)}  # fmt: skip

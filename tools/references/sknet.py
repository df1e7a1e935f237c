"""SKNet as in timm (Apache-2.0), and SimCLR v2's encoders as in their PyTorch conversion (MIT).

The conversion pools with symmetric padding and counts zeros in its average; here its poolings are replaced by those of the original
(google-research/simclr, `tf2/resnet.py`): TensorFlow's "SAME", which leaves padding out of averages and pads even sides at the end only.

Set OPTICUS_REFERENCES to a folder that holds a clone of github.com/Separius/SimCLRv2-Pytorch as `SimCLRv2-Pytorch`.
"""

import torchvision_shim  # noqa: F401  (before anything that imports torchvision)

# isort: split
from dataclasses import replace
from functools import partial

import timm
import torch
import torch.nn.functional as F
from clones import clone
from timm.models.resnet import ResNet
from timm.models.sknet import SelectiveKernelBasic, SelectiveKernelBottleneck

from opticus.parity.case import network_input
from opticus.parity.fill import fill_module
from opticus.structures import Prepare

with clone("SimCLRv2-Pytorch"):
    from resnet import ResNet as SimClr

PAPER = "sknet"
PICTURES = [[70, 49, 1], [70, 49, 2]]
TIMM = {"18": "skresnet18", "34": "skresnet34", "50": "skresnet50", "resnext50_32x4d": "skresnext50_32x4d"}
DEPTHS = {50: [3, 4, 6, 3], 101: [3, 4, 23, 3], 152: [3, 8, 36, 3]}
# depth and width of the encoders with selective kernels that were released
RELEASED = ((50, 1), (50, 2), (101, 1), (101, 2), (152, 1), (152, 2), (152, 3))


def reference():
    return {
        "repository": "https://github.com/huggingface/pytorch-image-models",
        "version": f"{timm.__version__}; Separius/SimCLRv2-Pytorch f4c2f41; google-research/simclr 383d414",
        "license": "Apache-2.0; MIT; Apache-2.0",
        "kind": "package",
    }


class SameMax(torch.nn.Module):
    """TensorFlow's max_pooling2d(3, 2, "SAME")."""

    def forward(self, x):
        pads = []
        for side in (x.shape[3], x.shape[2]):
            total = max((-(-side // 2) - 1) * 2 + 3 - side, 0)
            pads += [total // 2, total - total // 2]
        return F.max_pool2d(F.pad(x, pads, value=-torch.inf), 3, 2)


class SameAverage(torch.nn.Module):
    """TensorFlow's average_pooling2d(2, 1, "SAME"): the mean of the pixels that a window holds."""

    def forward(self, x):
        ones = F.pad(torch.ones_like(x), (0, 1, 0, 1))
        return F.avg_pool2d(F.pad(x, (0, 1, 0, 1)), 2, 1) / F.avg_pool2d(ones, 2, 1)


def as_published(model):
    """The conversion with the original's poolings."""
    stem = model.net[0]
    stem[len(stem) - 1] = SameMax()
    first = model.net[1].blocks[0].projection.shortcut
    first[0], first[1] = torch.nn.Identity(), SameAverage()
    return model


def outputs_of(run, pixels, modules):
    found = []
    hooks = [module.register_forward_hook(lambda _m, _x, y: found.append(y)) for module in modules]
    logits = run(pixels)
    for hook in hooks:
        hook.remove()
    return {"out": logits} | {f"features.{i}": y for i, y in enumerate(found)}


def two_stages(block, sk, **options):
    """timm's class with two stages only: its forward passes through the absent ones."""
    model = ResNet(block, (1, 2), 7, channels=(64, 128), block_args={"sk_kwargs": sk}, zero_init_last=False, **options)
    model.layer3 = model.layer4 = torch.nn.Identity()
    return model


@torch.no_grad()
def tiny():
    pixels, _ = network_input(PICTURES, Prepare())
    cases = []

    def add(name, variant, config, model, prepare=None):
        state = fill_module(model.double().eval())
        outputs = outputs_of(model, pixels, [model.layer1, model.layer2])
        cases.append({"name": name, "format": "timm", "variant": variant, "config": {"layers": [1, 2], "classes": 7, **config},
                      "state": state, "pictures": PICTURES, "outputs": outputs} | ({"prepare": prepare} if prepare else {}))  # fmt: skip

    halved = {"rd_ratio": 1 / 8, "rd_divisor": 16, "split_input": True}
    add("basic", "18", {}, two_stages(SelectiveKernelBasic, halved))
    small = two_stages(SelectiveKernelBasic, halved)
    small.conv1, small.maxpool = torch.nn.Conv2d(3, 64, 3, 1, 1, bias=False), torch.nn.Identity()
    rule = {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}
    add("small stem", "tiny", {"width": 64, "reduction": 8, "least": 16}, small, rule)
    add("bottleneck", "50", {}, two_stages(SelectiveKernelBottleneck, {"split_input": True}))
    whole = {"rd_ratio": 1 / 16, "rd_divisor": 32, "split_input": False}
    grouped = two_stages(SelectiveKernelBottleneck, whole, cardinality=32, base_width=4)
    add("grouped", "resnext50_32x4d", {}, grouped)

    unit = replace(Prepare(), mean=(0.0,) * 3, std=(1.0,) * 3)
    for size in ((70, 49), (64, 96)):
        pictures = [[*size, 3], [*size, 4]]
        layers = [1, 2, 1, 1] if size[0] == 70 else [1, 1, 1, 1]
        model = as_published(SimClr(layers, 1, 0.0625)).double().eval()
        state = fill_module(model)
        outputs = outputs_of(partial(model, apply_fc=True), network_input(pictures, unit)[0], list(model.net)[1:])
        cases.append({"name": f"SimCLR v2 {size[0]}x{size[1]}", "format": "simclr", "variant": "simclr50",
                      "config": {"layers": layers}, "state": state, "pictures": pictures, "outputs": outputs})  # fmt: skip
    return cases


def built(name):
    with torch.device("meta"):
        return timm.create_model(name)


def encoder(depth, width):
    with torch.device("meta"):
        return SimClr(DEPTHS[depth], width, 0.0625)


def every():
    found = {("timm", variant): built(name) for variant, name in TIMM.items()}
    for depth, width in RELEASED:
        found["simclr", f"simclr{depth}" + (f"w{width}" if width > 1 else "")] = encoder(depth, width)
    return found


def manifests():
    out = {"timm": {}, "simclr": {}}
    for (form, variant), model in every().items():
        out[form][variant] = {key: tuple(tensor.shape) for key, tensor in model.state_dict().items()}
    return out


def parameters():
    return {variant: sum(p.numel() for p in model.parameters()) for (_, variant), model in every().items()}


@torch.no_grad()
def full():
    pictures = [[224, 224, 1], [224, 224, 2]]
    pixels = network_input(pictures, Prepare())[0].float()
    for variant in ("34", "50", "resnext50_32x4d"):
        model = timm.create_model(TIMM[variant]).eval()
        state = fill_module(model)
        yield {"name": TIMM[variant], "format": "timm", "variant": variant, "state": state,
               "pictures": pictures, "outputs": {"out": model(pixels)}}  # fmt: skip
    unit = replace(Prepare(), mean=(0.0,) * 3, std=(1.0,) * 3)
    model = as_published(SimClr(DEPTHS[50], 2, 0.0625)).eval()
    state = fill_module(model)
    yield {"name": "r50_2x_sk1", "format": "simclr", "variant": "simclr50w2", "state": state, "pictures": pictures,
           "outputs": {"out": model(network_input(pictures, unit)[0].float(), apply_fc=True)}}  # fmt: skip

"""Inception v3 as in torchvision (BSD-3-Clause); the network of the Frechet distance after pytorch-fid (Apache-2.0)."""

import functools

import torchvision_shim  # noqa: F401  (before anything that imports torchvision)

# isort: split
import torch
import torch.nn.functional as F
import torchvision
from torchvision.models import inception as published

from opticus.parity.case import network_input
from opticus.parity.fill import fill_module
from opticus.structures import Prepare

PAPER = "inception"
HALF = Prepare(mean=(0.5,) * 3, std=(0.5,) * 3)
BLOCKS = ("BasicConv2d", "InceptionA", "InceptionB", "InceptionC", "InceptionD", "InceptionE", "InceptionAux")


def reference():
    return {
        "repository": "https://github.com/pytorch/vision",
        "version": torchvision.__version__,
        "license": "BSD-3-Clause",
        "kind": "package",
    }


def narrow(count):
    return count if count == 3 else max(1, round(count / 16))


def conv(width_in, width, **options):
    return published.BasicConv2d(narrow(width_in), narrow(width), **options)


def whole(aux=True, classes=1000):
    return published.Inception3(classes, aux_logits=aux, init_weights=False)


def small(aux):
    """A sixteenth of every number of channels: each module is built through `conv`."""
    made = [conv, *(functools.partial(getattr(published, name), conv_block=conv) for name in BLOCKS[1:])]
    model = published.Inception3(7, aux_logits=aux, inception_blocks=made, init_weights=False, dropout=0)
    model.fc = torch.nn.Linear(sum(map(narrow, (320, 384, 384, 384, 384, 192))), 7)
    if aux:
        model.AuxLogits.fc = torch.nn.Linear(narrow(768), 7)
    return model.double().eval()


def inside(x, **options):
    return F.avg_pool2d(x, **options, count_include_pad=False) if options.get("padding") else F.avg_pool2d(x, **options)


class Pools:
    """torch.nn.functional with the poolings of the network of 2015; the last module takes the maximum."""

    def __init__(self, last):
        self.last = last

    def __getattr__(self, name):
        return getattr(F, name)

    def avg_pool2d(self, x, **options):
        if self.last():
            return F.max_pool2d(x, **options)
        return inside(x, **options)


@torch.no_grad()
def tiny():
    pictures, config = [[107, 96, 1], [107, 96, 2]], {"width": 0.0625, "classes": 7}
    pixels, _ = network_input(pictures, HALF)
    cases = []
    model = small(aux=True)
    state = fill_module(model)
    maps = []
    model.avgpool.register_forward_hook(lambda _m, _x, y: maps.append(y.flatten(1)))
    logits = model(pixels)
    probs = logits.softmax(1)
    cases.append({"name": "logits", "format": "torchvision", "variant": "v3", "config": config, "state": state, "pictures": pictures,
                  "outputs": {"out.logits": logits, "results.1.labels": probs[1].argsort(descending=True), "results.1.probs": probs[1]}})  # fmt: skip
    bare = {"name": "embedding", "format": "torchvision-inference", "variant": "v3", "pictures": pictures}
    bare["config"] = {**config, "classes": 0, "auxiliary": False}
    bare["state"] = {key: shape for key, shape in state.items() if not key.startswith("fc.")}
    cases.append({**bare, "outputs": {"out": maps[0]}})

    model = small(aux=False)
    state = fill_module(model)
    now = {"last": False}
    model.Mixed_7c.register_forward_pre_hook(lambda *_: now.update(last=True))
    published.F = Pools(lambda: now["last"])
    logits = model(pixels)
    published.F = F
    cases.append({"name": "poolings of 2015", "format": "torchvision", "variant": "fid", "config": config, "state": state,
                  "pictures": pictures, "outputs": {"out.logits": logits}})  # fmt: skip
    return cases


def manifests():
    with torch.device("meta"):
        v3, fid = whole(), whole(aux=False, classes=1008)
    found = {"v3": v3, "fid": fid}
    rows = {variant: {k: tuple(t.shape) for k, t in model.state_dict().items()} for variant, model in found.items()}
    return {"torchvision": rows}


def parameters():
    return {"v3": torchvision.models.Inception_V3_Weights.IMAGENET1K_V1.meta["num_params"]}


@torch.no_grad()
def full():
    pictures = [[299, 299, 1]]
    pixels, _ = network_input(pictures, HALF, torch.float32)
    model = whole().eval()
    state = fill_module(model)
    yield {"name": "torchvision", "format": "torchvision", "variant": "v3", "state": state, "pictures": pictures,
           "outputs": {"out.logits": model(pixels)}}  # fmt: skip

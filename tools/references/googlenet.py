"""GoogLeNet as in torchvision (BSD-3-Clause)."""

import torchvision_shim  # noqa: F401  (before anything that imports torchvision)

# isort: split
import torch
import torch.nn.functional as F
import torchvision
from PIL import Image
from torchvision.models.googlenet import BasicConv2d, GoogLeNet, Inception, InceptionAux
from torchvision.transforms._presets import ImageClassification

from opticus.parity.case import network_input
from opticus.parity.fill import fill_module, picture
from opticus.structures import Prepare

PAPER = "googlenet"
HALF = {"mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5]}


def reference():
    return {
        "repository": "https://github.com/pytorch/vision",
        "version": torchvision.__version__,
        "license": "BSD-3-Clause",
        "kind": "package",
    }


def narrow(count):
    """An eighth of every number of channels, the three of the picture apart."""
    return count if count == 3 else max(1, round(count / 8))


def small_conv(width_in, width, **options):
    return BasicConv2d(narrow(width_in), narrow(width), **options)


def small_inception(width_in, *widths):
    return Inception(width_in, *widths, conv_block=small_conv)


def small_aux(width_in, classes, dropout):
    """The side head with 16 maps and 128 hidden units."""
    model = InceptionAux(width_in, classes, conv_block=small_conv, dropout=dropout)
    model.fc1, model.fc2 = torch.nn.Linear(256, 128), torch.nn.Linear(128, classes)
    return model


def small(*, transform_input=False, kernel5=3):
    model = GoogLeNet(
        7,
        transform_input=transform_input,
        init_weights=False,
        blocks=[small_conv, small_inception, small_aux],
        dropout=0,
        dropout_aux=0,
    )
    model.fc = torch.nn.Linear(128, 7)
    if kernel5 == 5:  # the paper's kernel in place of torchvision's
        for module in model.modules():
            if isinstance(module, Inception):
                conv = module.branch3[1].conv
                module.branch3[1].conv = torch.nn.Conv2d(conv.in_channels, conv.out_channels, 5, padding=2, bias=False)
    return model.double().eval()


def outputs_of(logits):
    probs = logits.softmax(1)
    return {"out.logits": logits, "results.1.labels": probs[1].argsort(descending=True), "results.1.probs": probs[1]}


def maps_of(model, pixels):
    found = []
    layers = (model.conv3, model.inception3b, model.inception4e, model.inception5b)
    hooks = [layer.register_forward_hook(lambda _m, _x, y: found.append(y)) for layer in layers]
    model(pixels)
    for hook in hooks:
        hook.remove()
    return {f"features.{i}": y for i, y in enumerate(found)}


class Whole(torch.nn.Module):
    """Pooling that loses nothing: a window for every second pixel."""

    def __init__(self, kernel):
        super().__init__()
        self.kernel = kernel

    def forward(self, x):
        return F.max_pool2d(F.pad(x, (0, self.kernel - 1, 0, self.kernel - 1), value=-torch.inf), self.kernel, 2)


@torch.no_grad()
def tiny():
    cases = []
    pictures, config = [[64, 96, 1], [64, 96, 2]], {"width": 0.125, "classes": 7}
    pixels, _ = network_input(pictures, Prepare())  # ImageNet's mean and deviation, which transform_input undoes
    model = small(transform_input=True)
    state = fill_module(model)
    cases.append({"name": "transform_input", "format": "torchvision", "variant": "22", "config": config, "state": state,
                  "pictures": pictures, "outputs": outputs_of(model(pixels)) | maps_of(model, pixels)})  # fmt: skip

    odd = [[77, 103, 1], [77, 103, 2]]
    pixels, _ = network_input(odd, Prepare(mean=(0.5,) * 3, std=(0.5,) * 3))
    model = small(kernel5=5)
    state = fill_module(model)
    outputs = outputs_of(model(pixels))
    for i in (1, 2, 3, 4):
        setattr(model, f"maxpool{i}", Whole(2 if i == 4 else 3))
    cases.append({"name": "5x5, odd sizes", "format": "torchvision", "variant": "22", "config": {**config, "kernel5": 5},
                  "state": state, "pictures": odd, "outputs": outputs | maps_of(model, pixels)})  # fmt: skip

    model = small()
    model.conv1 = BasicConv2d(3, 8, kernel_size=3, padding=1)
    for name in ("4b", "4c", "4e", "5a"):
        setattr(model, f"inception{name}", torch.nn.Identity())
    model.inception5b = small_inception(528, 384, 192, 384, 48, 128, 128)
    state = fill_module(model.double().eval())
    pixels, _ = network_input(pictures, Prepare())
    cases.append({"name": "small stem, five modules", "format": "torchvision", "variant": "tiny", "config": config, "state": state,
                  "pictures": pictures, "outputs": outputs_of(model(pixels)) | maps_of(model, pixels)})  # fmt: skip

    model = small()
    model.fc = model.aux1 = model.aux2 = None
    state = fill_module(model)
    model.fc = torch.nn.Identity()
    pixels, _ = network_input(pictures, Prepare(mean=(0.5,) * 3, std=(0.5,) * 3))
    cases.append({"name": "embedding", "format": "torchvision", "variant": "22", "config": {**config, "classes": 0}, "state": state,
                  "pictures": pictures, "outputs": {"out": model(pixels)}})  # fmt: skip

    preset = ImageClassification(crop_size=48, resize_size=64, mean=HALF["mean"], std=HALF["std"])
    shapes = [[90, 131, 3], [150, 101, 4]]
    prepared = torch.stack([preset(Image.fromarray(picture(*p))) for p in shapes]).double()
    cases.append({"name": "preset", "format": "torchvision", "variant": "22", "state": {}, "pictures": shapes,
                  "prepare": {"size": [64, 0], "crop": [48, 48]}, "outputs": {"prepared": prepared},
                  "tolerance": {"prepared": 0.02}, "why": "one grey level: the resampling works on uint8"})  # fmt: skip
    return cases


def manifests():
    with torch.device("meta"):
        model = GoogLeNet(init_weights=False)
    return {"torchvision": {"22": {key: tuple(tensor.shape) for key, tensor in model.state_dict().items()}}}


def parameters():
    """torchvision states 6,624,904 without the side heads; its own network with them, as published, has these."""
    with torch.device("meta"):
        model = GoogLeNet(init_weights=False)
    inference = sum(p.numel() for name, p in model.named_parameters() if not name.startswith("aux"))
    if inference != torchvision.models.GoogLeNet_Weights.DEFAULT.meta["num_params"]:
        raise SystemExit(f"torchvision states another count than {inference}")
    return {"22": sum(p.numel() for p in model.parameters())}


@torch.no_grad()
def full():
    pictures = [[224, 224, 1], [224, 224, 2]]
    pixels, _ = network_input(pictures, Prepare(), torch.float32)
    model = GoogLeNet(transform_input=True, init_weights=False).eval()
    state = fill_module(model)
    yield {"name": "torchvision", "format": "torchvision", "variant": "22", "state": state,
           "pictures": pictures, "outputs": {"out.logits": model(pixels)}}  # fmt: skip

"""AlexNet: torchvision (BSD-3-Clause); the two-group network transcribed from BVLC Caffe's models/bvlc_alexnet/train_val.prototxt."""

import torchvision_shim  # noqa: F401  (before anything that imports torchvision)

# isort: split
import torch
import torch.nn.functional as F
import torchvision
from PIL import Image
from torchvision.transforms._presets import ImageClassification

from opticus.parity.case import network_input
from opticus.parity.fill import fill_module, fill_state, picture
from opticus.structures import Prepare

PAPER = "alexnet"
# train_val.prototxt, layer by layer: output channels, input channels of a group, kernel, stride, pad, groups
LAYERS = {
    "conv1": (96, 3, 11, 4, 0, 1),
    "conv2": (256, 48, 5, 1, 2, 2),
    "conv3": (384, 256, 3, 1, 1, 1),
    "conv4": (384, 192, 3, 1, 1, 2),
    "conv5": (256, 192, 3, 1, 1, 2),
}
SHAPES = {f"{name}.weight": (out, inner, k, k) for name, (out, inner, k, *_) in LAYERS.items()}
SHAPES |= {"fc6.weight": (4096, 256 * 36), "fc7.weight": (4096, 4096), "fc8.weight": (1000, 4096)}
SHAPES |= {key.replace("weight", "bias"): shape[:1] for key, shape in SHAPES.items()}
BGR = Prepare(scale=1.0, mean=(104.00698793, 116.66876762, 122.67891434), std=(1.0, 1.0, 1.0), order="bgr")


def reference():
    return {
        "repository": "https://github.com/pytorch/vision; https://github.com/BVLC/caffe models/bvlc_alexnet (transcribed)",
        "version": torchvision.__version__,
        "license": "BSD-3-Clause; BSD-2-Clause",
        "kind": "package",
    }


def lrn(x):
    """Caffe's LRN across channels, local_size 5, alpha 1e-4, beta 0.75: the window's sum of squares times alpha / local_size."""
    out = torch.empty_like(x)
    for c in range(x.shape[1]):
        window = x[:, max(0, c - 2) : c + 3]
        out[:, c] = x[:, c] / (1 + 1e-4 / 5 * (window * window).sum(1)) ** 0.75
    return out


def convolve(x, w, name, stride, pad, groups):
    """Caffe's grouped convolution: each group of outputs sees its group of inputs only."""
    halves = zip(x.chunk(groups, 1), w[f"{name}.weight"].chunk(groups), w[f"{name}.bias"].chunk(groups))
    return torch.cat([F.conv2d(part, weight, bias, stride, pad) for part, weight, bias in halves], 1).clamp(min=0)


def caffe(x, w):
    """deploy.prototxt: norm before pool, Caffe's pooling rounds up (at 227 pixels nothing is left to round)."""
    for name, (*_, stride, pad, groups) in LAYERS.items():
        x = convolve(x, w, name, stride, pad, groups)
        if name in ("conv1", "conv2"):
            x = lrn(x)
        if name in ("conv1", "conv2", "conv5"):
            x = F.max_pool2d(x, 3, 2, ceil_mode=True)
    x = x.flatten(1)
    for name in ("fc6", "fc7"):
        x = (x @ w[f"{name}.weight"].T + w[f"{name}.bias"]).clamp(min=0)
    return x @ w["fc8.weight"].T + w["fc8.bias"]


def narrow(shapes, widths, hidden, classes):
    """The prototxt's shapes with other num_output."""
    inner = dict(zip(("conv1", "conv2", "conv3", "conv4", "conv5"), (3, widths[0] // 2, widths[1], widths[2] // 2, widths[3] // 2)))
    out = dict(zip(inner, widths)) | {"fc6": hidden, "fc7": hidden, "fc8": classes}
    fans = {"fc6": widths[4] * 36, "fc7": hidden, "fc8": hidden}
    state = {}
    for key, shape in shapes.items():
        name, part = key.split(".")
        rest = () if part == "bias" else (fans[name],) if name in fans else (inner[name], *shape[2:])
        state[key] = (out[name], *rest)
    return state


def small_torchvision(classes=7):
    """torchvision's class with narrow layers: its forward is the published one."""
    model = torchvision.models.AlexNet(num_classes=classes)
    widths, before = {0: 8, 3: 12, 6: 16, 8: 12, 10: 12}, 3
    for place, width in widths.items():
        old = model.features[place]
        model.features[place] = torch.nn.Conv2d(before, width, old.kernel_size, old.stride, old.padding)
        before = width
    model.classifier[1] = torch.nn.Linear(12 * 36, 20)
    model.classifier[4] = torch.nn.Linear(20, 20)
    model.classifier[6] = torch.nn.Linear(20, classes)
    return model.double().eval()


def maps_of(model, pixels):
    """conv1, conv2 and conv5 with all borders: torchvision's layers on inputs padded so that no row is lost."""
    maps = []
    height, width = (-(-side // 4) * 4 + 3 for side in pixels.shape[2:])  # (11 - 4) - 2 * 2 more than a multiple of the stride
    x = F.pad(pixels, (0, width - pixels.shape[3], 0, height - pixels.shape[2]))
    for layer in model.features[:12]:
        if isinstance(layer, torch.nn.MaxPool2d):
            maps.append(x)
            x = F.max_pool2d(F.pad(x, (0, 2, 0, 2), value=-torch.inf), 3, 2)
        else:
            x = layer(x.clone())
    return {f"features.{i}": y for i, y in enumerate([*maps, x])}


@torch.no_grad()
def tiny():
    cases = []
    model = small_torchvision()
    state = fill_module(model)
    config = {"widths": [8, 12, 16, 12, 12], "hidden": 20, "classes": 7}
    for name, pictures in (
        ("224", [[224, 224, 1], [224, 224, 2]]),  # the 6x6 grid as it is
        ("smaller", [[97, 150, 1], [97, 150, 2]]),  # averaged to the grid
    ):
        pixels, _ = network_input(pictures, Prepare())
        logits = model(pixels)
        probs = logits.softmax(1)
        outputs = {"out": logits, "results.1.labels": probs[1].argsort(descending=True), "results.1.probs": probs[1]}
        cases.append({"name": name, "format": "torchvision", "variant": "owt", "config": config, "state": state,
                      "pictures": pictures, "outputs": outputs | maps_of(model, pixels)})  # fmt: skip

    model.classifier[6] = torch.nn.Identity()
    cases.append({"name": "embedding", "format": "torchvision", "variant": "owt", "config": {**config, "classes": 0},
                  "state": {k: v for k, v in state.items() if not k.startswith("classifier.6")},
                  "pictures": pictures, "outputs": {"out": model(pixels)}})  # fmt: skip

    widths, pictures = [8, 12, 16, 12, 12], [[227, 227, 1], [227, 227, 2]]
    state = narrow(SHAPES, widths, 20, 7)
    pixels, _ = network_input(pictures, BGR)
    cases.append({"name": "two groups", "format": "caffe", "variant": "2012", "config": config, "state": state,
                  "pictures": pictures, "outputs": {"out": caffe(pixels, fill_state(state))}})  # fmt: skip

    preset = ImageClassification(crop_size=48, resize_size=64)
    shapes = [[90, 131, 3], [150, 101, 4]]
    prepared = torch.stack([preset(Image.fromarray(picture(*p))) for p in shapes]).double()
    cases.append({"name": "preset", "format": "torchvision", "variant": "owt", "state": {}, "pictures": shapes,
                  "prepare": {"size": [64, 0], "crop": [48, 48]}, "outputs": {"prepared": prepared},
                  "tolerance": {"prepared": 0.02}, "why": "one grey level: the resampling works on uint8"})  # fmt: skip
    return cases


def manifests():
    with torch.device("meta"):
        published = {key: tuple(tensor.shape) for key, tensor in torchvision.models.alexnet().state_dict().items()}
    return {"torchvision": {"owt": published}, "caffe": {"2012": SHAPES}}


def parameters():
    return {
        "owt": torchvision.models.AlexNet_Weights.DEFAULT.meta["num_params"],
        "2012": sum(torch.Size(shape).numel() for shape in SHAPES.values()),
    }


@torch.no_grad()
def full():
    pictures = [[224, 224, 1], [224, 224, 2]]
    pixels, _ = network_input(pictures, Prepare(), torch.float32)
    model = torchvision.models.alexnet().eval()
    state = fill_module(model)
    yield {"name": "torchvision", "format": "torchvision", "variant": "owt", "state": state,
           "pictures": pictures, "outputs": {"out": model(pixels)}}  # fmt: skip
    pictures = [[227, 227, 1], [227, 227, 2]]
    pixels, _ = network_input(pictures, BGR, torch.float32)
    out = caffe(pixels, fill_state(SHAPES, torch.float32))
    yield {"name": "caffe", "format": "caffe", "variant": "2012", "state": SHAPES, "pictures": pictures, "outputs": {"out": out}}

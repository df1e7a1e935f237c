"""ResNet as in torchvision (BSD-3-Clause), timm (Apache-2.0) and Hugging Face transformers (Apache-2.0); the small networks of section
4.2 as in pytorch-cifar-models (BSD-3-Clause), the wide encoders as in SwAV (CC-BY-NC-4.0: run, never copied).

Set OPTICUS_REFERENCES to a folder that holds clones of github.com/chenyaofo/pytorch-cifar-models and github.com/facebookresearch/swav.
"""

import torchvision_shim  # noqa: F401  (before anything that imports torchvision)

# isort: split
import timm
import torch
import torchvision
import transformers
from clones import clone
from hugging_face import filled, hub_shapes
from PIL import Image
from timm.models.resnet import Bottleneck as TimmBottleneck
from timm.models.resnet import ResNet as TimmResNet
from torchvision.models.resnet import BasicBlock, Bottleneck, ResNet
from torchvision.transforms._presets import ImageClassification
from transformers import ResNetConfig, ResNetForImageClassification

from opticus.parity.fill import fill_module, picture

with clone("pytorch-cifar-models"):
    from pytorch_cifar_models.resnet import BasicBlock as CifarBlock
    from pytorch_cifar_models.resnet import CifarResNet
with clone("swav"):
    from src.resnet50 import Bottleneck as WideBottleneck
    from src.resnet50 import ResNet as WideResNet

PAPER = "resnet"
MEAN, STD = (torch.tensor(v, dtype=torch.float64)[:, None, None] for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
TORCHVISION = {
    "18": "resnet18",
    "34": "resnet34",
    "50": "resnet50",
    "101": "resnet101",
    "152": "resnet152",
    "resnext50_32x4d": "resnext50_32x4d",
    "resnext101_32x8d": "resnext101_32x8d",
    "resnext101_64x4d": "resnext101_64x4d",
    "wide50_2": "wide_resnet50_2",
    "wide101_2": "wide_resnet101_2",
}
DEPTHS = {"18": [2, 2, 2, 2], "34": [3, 4, 6, 3], "50": [3, 4, 6, 3], "101": [3, 4, 23, 3], "152": [3, 8, 36, 3]}


def reference():
    return {
        "repository": "https://github.com/pytorch/vision",
        "version": f"{torchvision.__version__}; timm {timm.__version__}; transformers {transformers.__version__}; "
        "chenyaofo/pytorch-cifar-models 786c16252c0fc58ee9adac063f8337cc4a7a497a; "
        "facebookresearch/swav 06b1b7cbaf6ba2a792300d79c7299db98b93b7f9",
        "license": "BSD-3-Clause; Apache-2.0; Apache-2.0; BSD-3-Clause; CC-BY-NC-4.0",
        "kind": "package",
    }


def pixels_of(pictures, dtype=torch.float64):
    raw = [torch.from_numpy(picture(*p)).permute(2, 0, 1).to(torch.float64) / 255 for p in pictures]
    return torch.stack([(r - MEAN) / STD for r in raw]).to(dtype)


def outputs_of(logits):
    probs = logits.softmax(1)
    return {"out": logits, "results.1.labels": probs[1].argsort(descending=True), "results.1.probs": probs[1]}


def maps_of(model, pixels):
    found = []
    hooks = [getattr(model, f"layer{i}").register_forward_hook(lambda _m, _x, y: found.append(y)) for i in (1, 2, 3, 4)]
    model(pixels)
    for hook in hooks:
        hook.remove()
    return {f"features.{i}": y for i, y in enumerate(found)}


def two_stages(block, **options):
    """timm's class with two stages only: its forward passes through the absent ones."""
    model = TimmResNet(block, (1, 1), 7, channels=(64, 128), **options)
    model.layer3 = model.layer4 = torch.nn.Identity()
    return model


class PlainBasic(BasicBlock):
    """torchvision's block without its shortcut."""

    def forward(self, x):
        x = self.relu(self.bn1(self.conv1(x)))
        return self.relu(self.bn2(self.conv2(x)))


class PlainBottleneck(Bottleneck):
    """torchvision's block without its shortcut."""

    def forward(self, x):
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.relu(self.bn2(self.conv2(x)))
        return self.relu(self.bn3(self.conv3(x)))


def plain(block, layers):
    model = ResNet(block, layers, num_classes=7)
    for module in model.modules():
        if isinstance(module, block):
            module.downsample = None
    return model.double().eval()


def biased(conv):
    return torch.nn.Conv2d(conv.in_channels, conv.out_channels, conv.kernel_size, conv.stride, conv.padding)


def without_norm(model):
    """Every batch norm taken out, every convolution with a bias instead."""
    for module in list(model.modules()):
        for name, child in module.named_children():
            if isinstance(child, torch.nn.Conv2d):
                setattr(module, name, biased(child))
            elif isinstance(child, torch.nn.BatchNorm2d):
                setattr(module, name, torch.nn.Identity())
    return model.double().eval()


def published_swav(layers, widen, hidden, prototypes):
    """The training network whose state the published files hold, under the names that its parallel wrapper gives."""
    model = WideResNet(WideBottleneck, layers, widen=widen, hidden_mlp=hidden, output_dim=128, nmb_prototypes=prototypes)
    return torch.nn.ModuleDict({"module": model})


def more_cases(pictures, pixels):
    """Section 4.2's networks, plain ones, ones without norms, and the wide encoders."""
    model = CifarResNet(CifarBlock, [2, 1, 1], 7).double().eval()
    state = fill_module(model)
    prepare = {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}
    yield {"name": "section 4.2", "format": "cifar", "variant": "20", "config": {"layers": [2, 1, 1], "classes": 7},
           "prepare": prepare, "state": state, "pictures": pictures, "outputs": outputs_of(model(pixels))}  # fmt: skip
    for block, variant in ((PlainBasic, "plain18"), (PlainBottleneck, "50")):
        model = plain(block, [2, 1, 1, 1])
        state = fill_module(model)
        config = {"layers": [2, 1, 1, 1], "classes": 7, "residual": False}
        yield {"name": f"plain {variant}", "format": "torchvision", "variant": variant, "config": config,
               "state": state, "pictures": pictures, "outputs": {"out": model(pixels)}}  # fmt: skip
    for block, variant in ((BasicBlock, "18"), (Bottleneck, "50")):
        model = without_norm(ResNet(block, [1, 1, 1, 1], num_classes=7))
        state = fill_module(model)
        config = {"layers": [1, 1, 1, 1], "classes": 7, "norm": "none"}
        yield {"name": f"without norm {variant}", "format": "torchvision", "variant": variant, "config": config,
               "state": state, "pictures": pictures, "outputs": {"out": model(pixels)}}  # fmt: skip
    wrapped = published_swav([1, 1, 1, 1], 2, 8, 3).double().eval()
    state = fill_module(wrapped)
    yield {"name": "wide encoder", "format": "swav", "variant": "50w2", "config": {"layers": [1, 1, 1, 1]},
           "state": state, "pictures": pictures, "outputs": {"out": wrapped["module"].forward_backbone(pixels)}}  # fmt: skip


@torch.no_grad()
def tiny():
    pictures = [[70, 49, 1], [70, 49, 2]]
    pixels = pixels_of(pictures)
    cases = []

    model = ResNet(BasicBlock, [2, 1, 1, 1], num_classes=7).double().eval()
    state = fill_module(model)
    cases.append({"name": "basic", "format": "torchvision", "variant": "18", "config": {"layers": [2, 1, 1, 1], "classes": 7},
                  "state": state, "pictures": pictures, "outputs": outputs_of(model(pixels)) | maps_of(model, pixels)})  # fmt: skip

    model = ResNet(Bottleneck, [1, 2, 1, 1], 7, groups=4, width_per_group=8, replace_stride_with_dilation=[False, True, True])
    state = fill_module(model.double().eval())
    config = {"layers": [1, 2, 1, 1], "classes": 7, "groups": 4, "group_width": 8, "dilate": [3, 4]}
    cases.append({"name": "grouped, dilated", "format": "torchvision", "variant": "50", "config": config,
                  "state": state, "pictures": pictures, "outputs": {"out": model(pixels)} | maps_of(model, pixels)})  # fmt: skip

    model = two_stages(TimmBottleneck, base_width=128).double().eval()
    state = fill_module(model)
    config = {"layers": [1, 1], "classes": 7}
    cases.append({"name": "wide", "format": "timm", "variant": "wide50_2", "config": config,
                  "state": state, "pictures": pictures, "outputs": {"out": model(pixels)}})  # fmt: skip

    for kind, sizes, config in (
        ("bottleneck", [32, 64, 128], {"layers": [2, 1, 1], "width": 8, "classes": 7}),
        ("basic", [8, 16, 32], {"layers": [2, 1, 1], "width": 8, "classes": 7, "block": "basic"}),
    ):
        hub = ResNetConfig(embedding_size=8, hidden_sizes=sizes, depths=[2, 1, 1], layer_type=kind, num_labels=7)
        model, state = filled(ResNetForImageClassification, hub)
        cases.append({"name": f"hub {kind}", "format": "huggingface", "variant": "50", "config": config,
                      "state": state, "pictures": pictures, "outputs": {"out": model(pixels).logits}})  # fmt: skip

    cases += more_cases(pictures, pixels)

    # the whole path of torchvision's evaluation preset, antialiased resize on Pillow pictures included
    preset = ImageClassification(crop_size=48, resize_size=64)
    shapes = [[90, 131, 3], [150, 101, 4]]
    prepared = torch.stack([preset(Image.fromarray(picture(*p))) for p in shapes]).double()
    cases.append({"name": "preset", "format": "torchvision", "variant": "50", "state": {}, "pictures": shapes,
                  "prepare": {"size": [64, 0], "crop": [48, 48]}, "outputs": {"prepared": prepared},
                  "tolerance": {"prepared": 0.02}, "why": "one grey level: the resampling works on uint8"})  # fmt: skip
    return cases


def shapes_of(build):
    with torch.device("meta"):
        return {key: tuple(tensor.shape) for key, tensor in build().state_dict().items()}


def hub_config(variant):
    sizes = [64, 128, 256, 512] if variant in ("18", "34") else [256, 512, 1024, 2048]
    kind = "basic" if variant in ("18", "34") else "bottleneck"
    return ResNetConfig(hidden_sizes=sizes, depths=DEPTHS[variant], layer_type=kind, num_labels=1000)


def manifests():
    return {
        "torchvision": {v: shapes_of(getattr(torchvision.models, name)) for v, name in TORCHVISION.items()},
        "huggingface": {v: hub_shapes(lambda v=v: ResNetForImageClassification(hub_config(v))) for v in DEPTHS},
        "cifar": {str(6 * n + 2): shapes_of(lambda n=n: CifarResNet(CifarBlock, [n] * 3)) for n in (3, 5, 7, 9)},
        "swav": {"50w2": shapes_of(lambda: published_swav([3, 4, 6, 3], 2, 8192, 3000))},
    }


def parameters():
    every = {v: torchvision.models.get_model_weights(name).DEFAULT.meta["num_params"] for v, name in TORCHVISION.items()}
    return {variant: int(count) for variant, count in every.items()}


@torch.no_grad()
def full():
    pictures = [[224, 224, 1], [224, 224, 2]]
    pixels = pixels_of(pictures, torch.float32)
    for variant in ("50", "resnext50_32x4d"):
        model = getattr(torchvision.models, TORCHVISION[variant])().eval()
        state = fill_module(model)
        yield {"name": TORCHVISION[variant], "format": "torchvision", "variant": variant, "state": state,
               "pictures": pictures, "outputs": {"out": model(pixels)}}  # fmt: skip
    model = timm.create_model("resnet50").eval()
    state = fill_module(model)
    yield {"name": "timm resnet50", "format": "timm", "variant": "50", "state": state,
           "pictures": pictures, "outputs": {"out": model(pixels)}}  # fmt: skip
    model, state = filled(ResNetForImageClassification, hub_config("50"), torch.float32)
    yield {"name": "hub resnet-50", "format": "huggingface", "variant": "50", "state": state,
           "pictures": pictures, "outputs": {"out": model(pixels).logits}}  # fmt: skip

"""DETR as in facebookresearch/detr (Apache-2.0) and Hugging Face transformers (Apache-2.0).

The first is not a pip package: set OPTICUS_REFERENCES to a folder that holds a clone of github.com/facebookresearch/detr as `detr`.
"""

import torchvision_shim  # noqa: F401  (before anything that imports torchvision)

# isort: split
import types

import torch
import torchvision
import transformers
from clones import clone
from hugging_face import filled, hub_shapes
from PIL import Image
from torchvision.models.resnet import BasicBlock, Bottleneck, ResNet
from transformers import DetrConfig, DetrForObjectDetection

from opticus.models.detection.detr import PREPARE
from opticus.parity.case import network_input
from opticus.parity.fill import fill_module, picture

torchvision.__version__ = "0.9.0"  # the repository compares the first three characters and takes 0.29 for 0.2
with clone("detr"):
    import datasets.transforms as published_transforms
    import hubconf
    from models.detr import DETR, PostProcess
    from models.transformer import Transformer
    from util.misc import NestedTensor

    from models import backbone as published_backbone
    from models import position_encoding

published_backbone.is_main_process = lambda: False  # it downloads ImageNet weights on the main process

PAPER = "detr"
HUBCONF = {"r50": "detr_resnet50", "r101": "detr_resnet101", "r50-dc5": "detr_resnet50_dc5", "r101-dc5": "detr_resnet101_dc5"}
SMALL = {"classes": 5, "width": 32, "heads": 4, "encoder": 2, "decoder": 2, "hidden": 48, "queries": 7}
WHY = "boxes and scores of results are float32"


def reference():
    return {
        "repository": "https://github.com/facebookresearch/detr",
        "commit": "29901c51d7fe8712168b8d0d64351170bc0f83e0",
        "version": f"transformers {transformers.__version__}",
        "license": "Apache-2.0; Apache-2.0",
        "kind": "repository",
    }


class _Double(types.SimpleNamespace):
    """torch, as the position module sees it, with float64 where it says float32: its sines are computed in float32 otherwise."""

    float32 = torch.float64

    def __getattr__(self, name):
        return getattr(torch, name)


def small(block, layers, width, dilation=False):
    """The authors' classes with a small backbone and transformer."""
    body = ResNet(
        block, layers, replace_stride_with_dilation=[False, False, dilation], norm_layer=published_backbone.FrozenBatchNorm2d
    )
    backbone = published_backbone.BackboneBase(body, True, width, False)
    joined = published_backbone.Joiner(backbone, position_encoding.PositionEmbeddingSine(SMALL["width"] // 2, normalize=True))
    joined.num_channels = width
    transformer = Transformer(SMALL["width"], SMALL["heads"], 2, 2, SMALL["hidden"], return_intermediate_dec=True)
    return DETR(joined, transformer, SMALL["classes"], SMALL["queries"]).double().eval()


def raw(model, pictures, dtype=torch.float64):
    pixels, valid = network_input(pictures, PREPARE, dtype)
    outside = torch.zeros(len(pixels), *pixels.shape[-2:], dtype=torch.bool) if valid is None else ~valid
    return model(NestedTensor(pixels, outside))


def results(out, pictures):
    """The authors' post-processing; then, as the port does, best first and cut to the picture."""
    sizes = torch.tensor([p[:2] for p in pictures])
    found = {}
    for i, row in enumerate(PostProcess()(out, sizes)):
        order = row["scores"].argsort(descending=True)
        height, width = pictures[i][:2]
        boxes = row["boxes"][order].clamp(min=0).minimum(row["boxes"].new_tensor([width, height, width, height]))
        found |= {
            f"results.{i}.boxes": boxes,
            f"results.{i}.scores": row["scores"][order],
            f"results.{i}.labels": row["labels"][order],
        }
    return found


def case_of(name, model, pictures, backbone, **changes):
    state = fill_module(model)
    out = raw(model, pictures)
    found = results(out, pictures)
    outputs = {"out.logits": out["pred_logits"], "out.boxes": out["pred_boxes"], **found}
    return {
        "name": name, "format": "facebookresearch", "variant": "r50", "state": state, "pictures": pictures, "outputs": outputs,
        "config": SMALL | {"backbone": {"part": backbone, "changes": {"classes": 0, "norm": "frozen", **changes}}},
        "tolerance": {key: 1e-6 for key in found if not key.endswith("labels")}, "why": WHY,
    }  # fmt: skip


@torch.no_grad()
def tiny():
    position_encoding.torch = _Double()
    padded = [[97, 130, 1], [140, 66, 2]]
    cases = [
        case_of("padded batch", small(BasicBlock, [1, 1, 1, 1], 512), padded, "resnet/18", layers=[1, 1, 1, 1]),
        case_of(
            "dilated", small(Bottleneck, [1, 1, 1, 2], 2048, True), [[64, 96, 3]], "resnet/50", layers=[1, 1, 1, 2], dilate=[4]
        ),
    ]
    position_encoding.torch = torch
    hub = DetrConfig(
        use_timm_backbone=True, backbone="resnet18", use_pretrained_backbone=False, num_labels=5, d_model=32, num_queries=7,
        encoder_layers=2, decoder_layers=2, encoder_attention_heads=4, decoder_attention_heads=4, encoder_ffn_dim=48,
        decoder_ffn_dim=48,
    )  # fmt: skip
    model, state = filled(DetrForObjectDetection, hub)
    pixels, valid = network_input(padded, PREPARE)
    out = model(pixels, pixel_mask=valid.long())
    cases.append(
        {"name": "hub", "format": "transformers", "variant": "r50", "state": state, "pictures": padded,
         "config": SMALL | {"backbone": {"part": "resnet/18", "changes": {"classes": 0, "norm": "frozen"}}},
         "outputs": {"out.logits": out.logits, "out.boxes": out.pred_boxes},
         "tolerance": {"out.logits": 1e-5, "out.boxes": 1e-5}, "why": "its position embedding is float32"}
    )  # fmt: skip
    shapes = [[120, 200, 5], [150, 110, 6]]
    transform = published_transforms.RandomResize([80], max_size=120)
    resized = [transform(Image.fromarray(picture(*p)), None)[0] for p in shapes]
    normalise = published_transforms.Compose(
        [published_transforms.ToTensor(), published_transforms.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])]
    )
    prepared = torch.zeros(2, 3, max(r.height for r in resized), max(r.width for r in resized))
    for target, r in zip(prepared, resized):
        target[:, : r.height, : r.width] = normalise(r, None)[0]
    cases.append(
        {"name": "preparation", "format": "facebookresearch", "variant": "r50", "state": {}, "pictures": shapes,
         "prepare": {"size": [80, 120]}, "outputs": {"prepared": prepared.double()},
         "tolerance": {"prepared": 0.02}, "why": "resampling on uint8 may differ by one grey level"}
    )  # fmt: skip
    return cases


def published(variant):
    return getattr(hubconf, HUBCONF[variant])()


def hub_config(variant):
    return DetrConfig(
        use_timm_backbone=True, backbone="resnet50" if variant.startswith("r50") else "resnet101", use_pretrained_backbone=False,
        num_labels=91, dilation=variant.endswith("dc5"),
    )  # fmt: skip


def manifests():
    with torch.device("meta"):
        rows = {v: published(v).state_dict() for v in HUBCONF}
    return {
        "facebookresearch": {v: {key: tuple(tensor.shape) for key, tensor in state.items()} for v, state in rows.items()},
        "transformers": {v: hub_shapes(lambda v=v: DetrForObjectDetection(hub_config(v))) for v in HUBCONF},
    }


def parameters():
    with torch.device("meta"):
        return {v: sum(p.numel() for p in published(v).parameters()) for v in HUBCONF}


@torch.no_grad()
def full():
    pictures = [[320, 416, 1], [288, 320, 2]]
    model = published("r50").eval()
    state = fill_module(model)
    out = raw(model, pictures, torch.float32)
    yield {"name": "detr-r50", "format": "facebookresearch", "variant": "r50", "state": state, "pictures": pictures,
           "outputs": {"out.logits": out["pred_logits"], "out.boxes": out["pred_boxes"]}}  # fmt: skip
    model, state = filled(DetrForObjectDetection, hub_config("r50"), torch.float32)
    pixels, valid = network_input(pictures, PREPARE, torch.float32)
    out = model(pixels, pixel_mask=valid.long())
    yield {"name": "hub detr-resnet-50", "format": "transformers", "variant": "r50", "state": state, "pictures": pictures,
           "outputs": {"out.logits": out.logits, "out.boxes": out.pred_boxes}}  # fmt: skip

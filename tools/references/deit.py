"""DeiT as in timm (Apache-2.0; the authors' own network is timm's with a second token) and transformers (Apache-2.0)."""

import torchvision_shim  # noqa: F401  (before anything that imports torchvision)

# isort: split
from functools import partial

import timm
import torch
import transformers
from hugging_face import filled, hub_shapes
from PIL import Image
from timm.models.deit import VisionTransformerDistilled
from timm.models.vision_transformer import VisionTransformer
from transformers import DeiTConfig, DeiTForImageClassificationWithTeacher, ViTConfig, ViTForImageClassification

from opticus.parity.case import network_input
from opticus.parity.fill import fill_module, picture
from opticus.structures import Prepare

PAPER, EXTENDS = "deit", "vit"
SIZES = {"ti": (192, 3, 224), "s": (384, 6, 224), "b": (768, 12, 224), "b_384": (768, 12, 384)}
DISTILLED = {"ti_distilled": "ti", "s_distilled": "s", "b_distilled": "b", "b_distilled_384": "b_384"}
SMALL = {"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 3, "num_heads": 2}


def reference():
    return {
        "repository": "https://github.com/huggingface/pytorch-image-models",
        "version": f"timm {timm.__version__}; transformers {transformers.__version__}",
        "license": "Apache-2.0",
        "kind": "package",
    }


def input_of(pictures, dtype=torch.float64):
    return network_input(pictures, Prepare(), dtype)[0]


def map_of(model, pixels, prefix):
    tokens = model.forward_features(pixels)[:, prefix:]
    rows = pixels.shape[2] // model.patch_embed.patch_size[0]
    return tokens.transpose(1, 2).reshape(len(pixels), -1, rows, tokens.shape[1] // rows)


@torch.no_grad()
def tiny():
    pictures = [[32, 32, 1], [32, 32, 2]]
    pixels = input_of(pictures)
    config = {"size": 32, "patch": 8, "width": 24, "depth": 3, "heads": 2, "classes": 5, "mlp": 4.0}
    case = {"pictures": pictures, "config": config}
    cases = []

    model = VisionTransformerDistilled(num_classes=5, **SMALL).double().eval()
    state = fill_module(model)
    joint = model(pixels)
    probs = joint.softmax(1)
    outputs = {"out.logits": joint, "features.0": map_of(model, pixels, 2), "results.1.probs": probs[1]}
    outputs |= {"results.0.scores": probs[0].sort(descending=True)[0], "results.0.labels": probs[0].argsort(descending=True)}
    for form in ("timm", "deit"):
        cases.append(
            {**case, "name": f"{form}, distilled", "format": form, "variant": "b_distilled", "state": state, "outputs": outputs}
        )

    headless = VisionTransformerDistilled(num_classes=0, **SMALL).double().eval()
    state = fill_module(headless)
    tokens = headless.forward_features(pixels)[:, :2]
    cases.append({**case, "name": "distilled, no heads", "format": "timm", "variant": "b_distilled", "state": state,
                  "config": config | {"classes": 0}, "outputs": {"out": tokens.flatten(1)}})  # fmt: skip

    model = VisionTransformer(num_classes=5, **SMALL).double().eval()
    state = fill_module(model)
    outputs = {"out.logits": model(pixels), "features.0": map_of(model, pixels, 1)}
    cases.append({**case, "name": "deit", "format": "deit", "variant": "b", "state": state, "outputs": outputs})

    other = VisionTransformerDistilled(num_classes=5, dynamic_img_size=True, **SMALL).double().eval()
    state, shapes = fill_module(other), [[40, 56, 1], [40, 56, 2]]
    moved = input_of(shapes)
    outputs = {"out.logits": other(moved), "features.0": map_of(other, moved, 2)}
    cases.append({**case, "name": "another size", "format": "timm", "variant": "b_distilled", "state": state, "pictures": shapes,
                  "outputs": outputs, "tolerance": dict.fromkeys(outputs, 1e-6),
                  "why": "timm resizes the position embeddings in float32"})  # fmt: skip

    hub = {"hidden_size": 24, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 96}
    hub |= {"image_size": 32, "patch_size": 8, "num_labels": 5}
    model, state = filled(DeiTForImageClassificationWithTeacher, DeiTConfig(**hub))
    cases.append({**case, "name": "hub, distilled", "format": "huggingface", "variant": "b_distilled", "state": state,
                  "config": config | {"eps": 1e-12}, "outputs": {"out.logits": model(pixels).logits}})  # fmt: skip
    model, state = filled(ViTForImageClassification, ViTConfig(**hub))
    cases.append({**case, "name": "hub", "format": "huggingface", "variant": "b", "state": state,
                  "config": config | {"eps": 1e-12}, "outputs": {"out.logits": model(pixels).logits}})  # fmt: skip

    # the whole path of the authors' evaluation rule, bicubic antialiased resize on Pillow pictures included
    rule = {"input_size": (3, 224, 224), "interpolation": "bicubic", "crop_pct": 0.875}
    transform = timm.data.create_transform(**rule)
    shapes = [[290, 331, 3], [350, 301, 4]]
    prepared = torch.stack([transform(Image.fromarray(picture(*p))) for p in shapes]).double()
    cases.append({"name": "preset", "format": "timm", "variant": "ti", "state": {}, "pictures": shapes,
                  "outputs": {"prepared": prepared}, "tolerance": {"prepared": 0.02},
                  "why": "one grey level: the resampling works on uint8"})  # fmt: skip
    return cases


def timm_of(variant):
    kind = VisionTransformerDistilled if variant in DISTILLED else VisionTransformer
    width, heads, size = SIZES[DISTILLED.get(variant, variant)]
    return kind(size, 16, embed_dim=width, depth=12, num_heads=heads, num_classes=1000)


def hub_of(variant):
    width, heads, size = SIZES[DISTILLED.get(variant, variant)]
    shape = {"hidden_size": width, "num_hidden_layers": 12, "num_attention_heads": heads, "intermediate_size": 4 * width}
    kind, config = (
        (DeiTForImageClassificationWithTeacher, DeiTConfig) if variant in DISTILLED else (ViTForImageClassification, ViTConfig)
    )
    return kind(config(image_size=size, patch_size=16, num_labels=1000, **shape))


def shapes_of(build):
    with torch.device("meta"):
        return {key: tuple(tensor.shape) for key, tensor in build().state_dict().items()}


def manifests():
    variants = (*SIZES, *DISTILLED)
    theirs = {v: shapes_of(partial(timm_of, v)) for v in variants}
    return {"deit": theirs, "timm": theirs, "huggingface": {v: hub_shapes(partial(hub_of, v)) for v in variants}}


def parameters():
    """The reference's own counts."""
    return {v: sum(torch.Size(s).numel() for s in shapes_of(partial(timm_of, v)).values()) for v in (*SIZES, *DISTILLED)}


@torch.no_grad()
def full():
    pictures = [[224, 224, 1]]
    pixels = input_of(pictures, torch.float32)
    case = {"variant": "s_distilled", "pictures": pictures}
    model = timm_of("s_distilled").eval()
    state = fill_module(model)
    outputs = {"out.logits": model(pixels)}
    yield {**case, "name": "deit, distilled", "format": "deit", "state": state, "outputs": outputs}
    yield {**case, "name": "timm, distilled", "format": "timm", "state": state, "outputs": outputs}
    config = hub_of("s_distilled").config
    model, state = filled(DeiTForImageClassificationWithTeacher, config, torch.float32)
    yield {
        **case,
        "name": "hub, distilled",
        "format": "huggingface",
        "state": state,
        "outputs": {"out.logits": model(pixels).logits},
    }

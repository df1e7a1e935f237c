"""ViT as in timm (Apache-2.0; its loader reads Google's npz files), torchvision (BSD-3-Clause) and transformers (Apache-2.0)."""

import torchvision_shim  # noqa: F401  (before anything that imports torchvision)

# isort: split
import tempfile
from functools import partial
from pathlib import Path

import numpy as np
import timm
import torch
import torchvision
import transformers
from hugging_face import filled, hub_shapes
from PIL import Image
from timm.models.vision_transformer import VisionTransformer
from torchvision.models.vision_transformer import VisionTransformer as TorchVision
from transformers import ViTConfig, ViTForImageClassification, ViTModel

from opticus.parity.case import network_input
from opticus.parity.fill import fill, fill_module, fill_state, picture
from opticus.structures import Prepare

PAPER = "vit"
HALF = (0.5, 0.5, 0.5)
SIZES = {"ti16": (16, 192, 12, 3), "s16": (16, 384, 12, 6), "s32": (32, 384, 12, 6), "b16": (16, 768, 12, 12)}
SIZES |= {"b32": (32, 768, 12, 12), "l16": (16, 1024, 24, 16), "l32": (32, 1024, 24, 16), "h14": (14, 1280, 32, 16)}
SIZES |= {"s8": (8, 384, 12, 6), "b8": (8, 768, 12, 12)}
TORCHVISION = {"b16": "vit_b_16", "b32": "vit_b_32", "l16": "vit_l_16", "l32": "vit_l_32", "h14": "vit_h_14"}


def reference():
    return {
        "repository": "https://github.com/huggingface/pytorch-image-models",
        "version": f"timm {timm.__version__}; torchvision {torchvision.__version__}; transformers {transformers.__version__}",
        "license": "Apache-2.0; BSD-3-Clause; Apache-2.0",
        "kind": "package",
    }


def google_shapes(patch, width, depth, heads, size, classes, representation=0):
    """The arrays of the authors' npz files: Flax's names and layouts, as timm's loader reads them."""
    split, merge = (width, heads, width // heads), (heads, width // heads, width)
    shapes = {
        "cls": (1, 1, width),
        "embedding/kernel": (patch, patch, 3, width),
        "embedding/bias": (width,),
        "Transformer/posembed_input/pos_embedding": (1, 1 + (size // patch) ** 2, width),
        "Transformer/encoder_norm/scale": (width,),
        "Transformer/encoder_norm/bias": (width,),
    }
    if classes:
        shapes |= {"head/kernel": (representation or width, classes), "head/bias": (classes,)}
    if representation:
        shapes |= {"pre_logits/kernel": (width, representation), "pre_logits/bias": (representation,)}
    for i in range(depth):
        block = f"Transformer/encoderblock_{i}/"
        attention = block + "MultiHeadDotProductAttention_1/"
        for norm in ("LayerNorm_0", "LayerNorm_2"):
            shapes |= {f"{block}{norm}/scale": (width,), f"{block}{norm}/bias": (width,)}
        for name in ("query", "key", "value"):
            shapes |= {f"{attention}{name}/kernel": split, f"{attention}{name}/bias": split[1:]}
        shapes |= {f"{attention}out/kernel": merge, f"{attention}out/bias": (width,)}
        shapes |= {f"{block}MlpBlock_3/Dense_0/kernel": (width, 4 * width), f"{block}MlpBlock_3/Dense_0/bias": (4 * width,)}
        shapes |= {f"{block}MlpBlock_3/Dense_1/kernel": (4 * width, width), f"{block}MlpBlock_3/Dense_1/bias": (width,)}
    return shapes


def load_google(model, shapes, dtype=torch.float64):
    """A formula-made npz file, read by timm's own loader."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "vit.npz"
        np.savez(file, **{key: fill(key, shape, dtype).numpy() for key, shape in shapes.items()})
        model.load_pretrained(str(file))
    return model.eval()


def input_of(pictures, dtype=torch.float64):
    return network_input(pictures, Prepare(mean=HALF, std=HALF), dtype)[0]


def map_of(model, pixels):
    """timm's normalised patch tokens as a map."""
    tokens = model.forward_features(pixels)[:, 1:]
    rows = pixels.shape[2] // model.patch_embed.patch_size[0]
    return tokens.transpose(1, 2).reshape(len(pixels), -1, rows, tokens.shape[1] // rows)


@torch.no_grad()
def tiny():
    pictures = [[32, 32, 1], [32, 32, 2]]
    pixels = input_of(pictures)
    small = {"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 2}
    config = {"size": 32, "patch": 8, "width": 24, "depth": 2, "heads": 2, "classes": 5, "mlp": 4.0}
    case = {"variant": "b16", "config": config, "pictures": pictures}
    cases = []

    model = VisionTransformer(num_classes=5, **small).double().eval()
    state = fill_module(model)
    out = model(pixels)
    probs = out.softmax(1)
    outputs = {"out": out, "features.0": map_of(model, pixels), "results.1.probs": probs[1]}
    outputs |= {"results.0.scores": probs[0].sort(descending=True)[0], "results.0.labels": probs[0].argsort(descending=True)}
    cases.append({**case, "name": "timm", "format": "timm", "state": state, "outputs": outputs})
    cases.append({**case, "name": "deit", "format": "deit", "state": state, "outputs": {"out": out}})

    headless = VisionTransformer(num_classes=0, **small).double().eval()
    state = fill_module(headless)
    out = {"out": headless(pixels)}
    cases.append({**case, "name": "dino", "format": "dino", "config": config | {"classes": 0}, "state": state, "outputs": out})

    other = VisionTransformer(num_classes=5, dynamic_img_size=True, **small).double().eval()
    state, shapes = fill_module(other), [[40, 56, 1], [40, 56, 2]]
    moved = input_of(shapes)
    outputs = {"out": other(moved), "features.0": map_of(other, moved)}
    why = "timm resizes the position embeddings in float32"
    cases.append({**case, "name": "another size", "format": "timm", "state": state, "pictures": shapes, "outputs": outputs,
                  "tolerance": dict.fromkeys(outputs, 1e-6), "why": why})  # fmt: skip

    shapes = google_shapes(8, 24, 2, 2, 32, 5)
    model = load_google(VisionTransformer(num_classes=5, **small).double(), shapes)
    cases.append({**case, "name": "google", "format": "google", "state": shapes, "outputs": {"out": model(pixels)}})

    norm = partial(torch.nn.LayerNorm, eps=1e-6)
    wide = TorchVision(32, 8, 2, 2, 24, 96, num_classes=5, representation_size=16, norm_layer=norm).double().eval()
    state = fill_module(wide)
    cases.append({**case, "name": "torchvision", "format": "torchvision_mlp", "state": state,
                  "config": config | {"representation": 16}, "outputs": {"out": wide(pixels)}})  # fmt: skip
    state = published(state)
    wide.load_state_dict(fill_state(state))  # its loader renames
    cases.append({**case, "name": "torchvision, as published", "format": "torchvision", "state": state,
                  "config": config | {"representation": 16}, "outputs": {"out": wide(pixels)}})  # fmt: skip

    hub = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 96}
    hub |= {"image_size": 32, "patch_size": 8, "num_labels": 5}
    model, state = filled(ViTForImageClassification, ViTConfig(**hub))
    cases.append({**case, "name": "hub", "format": "huggingface", "config": config | {"eps": 1e-12}, "state": state,
                  "outputs": {"out": model(pixels).logits}})  # fmt: skip
    model, state = filled(ViTModel, ViTConfig(**hub))
    cases.append({**case, "name": "hub, no head", "format": "huggingface", "state": state,
                  "config": config | {"eps": 1e-12, "classes": 0, "representation": 24},
                  "outputs": {"out": model(pixels).pooler_output}})  # fmt: skip

    # the whole path of timm's evaluation rule, bicubic antialiased resize on Pillow pictures included
    rule = {"input_size": (3, 48, 48), "interpolation": "bicubic", "mean": HALF, "std": HALF, "crop_pct": 0.75}
    transform = timm.data.create_transform(**rule)
    shapes = [[90, 131, 3], [150, 101, 4]]
    prepared = torch.stack([transform(Image.fromarray(picture(*p))) for p in shapes]).double()
    cases.append({"name": "preset", "format": "timm", "variant": "b16", "state": {}, "pictures": shapes,
                  "prepare": {"size": [64, 0], "crop": [48, 48]}, "outputs": {"prepared": prepared},
                  "tolerance": {"prepared": 0.02}, "why": "one grey level: the resampling works on uint8"})  # fmt: skip
    return cases


def shapes_of(build):
    with torch.device("meta"):
        return {key: tuple(tensor.shape) for key, tensor in build().state_dict().items()}


def timm_of(variant, size=224, classes=1000):
    patch, width, depth, heads = SIZES[variant]
    return VisionTransformer(size, patch, embed_dim=width, depth=depth, num_heads=heads, num_classes=classes)


def torchvision_of(variant, size=224):
    return getattr(torchvision.models, TORCHVISION[variant])(image_size=size)


def published(shapes):
    """torchvision's files were written before its MLP was renamed; its own loader turns these names into the present ones."""
    return {key.replace("mlp.0.", "mlp.linear_1.").replace("mlp.3.", "mlp.linear_2."): shape for key, shape in shapes.items()}


def hub_of(variant, size=224):
    patch, width, depth, heads = SIZES[variant]
    shape = {"hidden_size": width, "num_hidden_layers": depth, "num_attention_heads": heads, "intermediate_size": 4 * width}
    return ViTConfig(image_size=size, patch_size=patch, num_labels=1000, **shape)


def manifests():
    at_384 = {f"{v}_384": v for v in SIZES if v not in ("h14", "s8", "b8")}
    larger = {"b16_384": ("b16", 384), "l16_512": ("l16", 512), "h14_518": ("h14", 518)}
    hub = {"b16": ("b16", 224), "b32_384": ("b32", 384), "b16_384": ("b16", 384), "l16": ("l16", 224), "l32_384": ("l32", 384)}
    google = {v: google_shapes(*SIZES[v], 224, 1000) for v in SIZES}
    google |= {name: google_shapes(*SIZES[v], 384, 1000) for name, v in at_384.items()}
    google |= {f"{v}_in21k": google_shapes(*SIZES[v], 224, 21843, SIZES[v][1]) for v in ("b16", "b32", "l16", "l32", "h14")}
    now = {v: shapes_of(partial(torchvision_of, v)) for v in TORCHVISION}
    now |= {name: shapes_of(partial(torchvision_of, v, size)) for name, (v, size) in larger.items()}
    return {
        "timm": {v: shapes_of(partial(timm_of, v)) for v in SIZES}
        | {name: shapes_of(partial(timm_of, v, 384)) for name, v in at_384.items()}
        | {f"{v}_mae": shapes_of(partial(timm_of, v, 224, 0)) for v in ("b16", "l16", "h14")},
        "torchvision": {v: published(shapes) for v, shapes in now.items()},
        "torchvision_mlp": now,
        "google": google,
        "dino": {f"{v}_dino": shapes_of(partial(timm_of, v, 224, 0)) for v in ("s16", "s8", "b16", "b8")},
        "huggingface": {
            name: hub_shapes(lambda v=v, size=size: ViTForImageClassification(hub_of(v, size))) for name, (v, size) in hub.items()
        },
    }


def parameters():
    """torchvision's published counts; the other variants are the reference's own."""
    counts = {}
    for variant, name in TORCHVISION.items():
        for row in torchvision.models.get_model_weights(name):
            side = row.meta["min_size"][0]
            counts[variant if side == 224 else f"{variant}_{side}"] = row.meta["num_params"]
    for variant in SIZES:
        counts.setdefault(variant, sum(torch.Size(shape).numel() for shape in shapes_of(partial(timm_of, variant)).values()))
    return counts


@torch.no_grad()
def full():
    pictures = [[224, 224, 1]]
    pixels = input_of(pictures, torch.float32)
    case = {"variant": "b16", "pictures": pictures}
    model = timm_of("b16").eval()
    state = fill_module(model)
    yield {**case, "name": "timm", "format": "timm", "state": state, "outputs": {"out": model(pixels)}}
    shapes = google_shapes(*SIZES["b16"], 224, 1000)
    model = load_google(timm_of("b16"), shapes, torch.float32)
    yield {**case, "name": "google", "format": "google", "state": shapes, "outputs": {"out": model(pixels)}}
    model = torchvision_of("b16").eval()
    state = fill_module(model)
    yield {**case, "name": "torchvision", "format": "torchvision_mlp", "state": state, "outputs": {"out": model(pixels)}}
    model, state = filled(ViTForImageClassification, hub_of("b16"), torch.float32)
    yield {**case, "name": "hub", "format": "huggingface", "state": state, "outputs": {"out": model(pixels).logits}}

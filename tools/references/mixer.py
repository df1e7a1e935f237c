"""MLP-Mixer as in timm (Apache-2.0), and Google's npz files (google-research/vision_transformer, Apache-2.0), put into timm's network."""

import torchvision_shim  # noqa: F401  (before anything that imports torchvision)

# isort: split
from functools import partial

import timm
import torch
from PIL import Image
from timm.data import create_transform
from timm.models.mlp_mixer import MlpMixer

from opticus.parity.case import network_input
from opticus.parity.fill import fill, fill_module, picture
from opticus.structures import Prepare

PAPER = "mixer"
HALF = (0.5, 0.5, 0.5)
# patch, width, depth; D_S and D_C are 0.5 and 4 times the width
SIZES = {"s32": (32, 512, 8), "s16": (16, 512, 8), "b32": (32, 768, 12), "b16": (16, 768, 12)}
SIZES |= {"l32": (32, 1024, 24), "l16": (16, 1024, 24), "h14": (14, 1280, 32)}
# of the authors' models_test.py
PUBLISHED = {"b16": 59_880_472, "b32": 60_293_428, "l16": 208_196_168}


def reference():
    return {
        "repository": "https://github.com/huggingface/pytorch-image-models; https://github.com/google-research/vision_transformer",
        "version": f"timm {timm.__version__}; vision_transformer c6de1e5",
        "license": "Apache-2.0; Apache-2.0",
        "kind": "package",
    }


def timm_of(patch, width, depth, size=224, classes=1000, ratio=(0.5, 4.0)):
    return MlpMixer(classes, size, patch_size=patch, num_blocks=depth, embed_dim=width, mlp_ratio=ratio)


def google_shapes(patch, width, depth, size=224, classes=1000, ratio=(0.5, 4.0)):
    """The arrays of the authors' npz files: the names and layouts that Flax gives the modules of vit_jax/models_mixer.py."""
    tokens, hidden, patches = int(ratio[0] * width), int(ratio[1] * width), (size // patch) ** 2
    shapes = {"stem/kernel": (patch, patch, 3, width), "stem/bias": (width,)}
    shapes |= {"pre_head_layer_norm/scale": (width,), "pre_head_layer_norm/bias": (width,)}
    if classes:
        shapes |= {"head/kernel": (width, classes), "head/bias": (classes,)}
    for i in range(depth):
        for norm in ("LayerNorm_0", "LayerNorm_1"):
            shapes |= {f"MixerBlock_{i}/{norm}/scale": (width,), f"MixerBlock_{i}/{norm}/bias": (width,)}
        for name, inner, outer in (("token_mixing", tokens, patches), ("channel_mixing", hidden, width)):
            place = f"MixerBlock_{i}/{name}/Dense_"
            shapes |= {f"{place}0/kernel": (outer, inner), f"{place}0/bias": (inner,)}
            shapes |= {f"{place}1/kernel": (inner, outer), f"{place}1/bias": (outer,)}
    return shapes


def timm_key(google):
    """The place in timm's network of one of Google's arrays."""
    place = google.replace("MixerBlock_", "blocks.").replace("LayerNorm_0", "norm1").replace("LayerNorm_1", "norm2")
    place = place.replace("token_mixing", "mlp_tokens").replace("channel_mixing", "mlp_channels").replace("/", ".")
    place = place.replace("Dense_0", "fc1").replace("Dense_1", "fc2").replace("pre_head_layer_norm", "norm")
    place = place.replace("stem.", "stem.proj.")
    return place.replace("kernel", "weight").replace("scale", "weight")


def load_google(model, shapes, dtype):
    state = {}
    for key, shape in shapes.items():
        value = fill(key, shape, dtype)
        if key.endswith("kernel"):
            value = value.permute(3, 2, 0, 1) if value.ndim == 4 else value.T
        state[timm_key(key)] = value
    model.load_state_dict(state)
    return model.eval()


def input_of(pictures, dtype=torch.float64):
    return network_input(pictures, Prepare(mean=HALF, std=HALF), dtype)[0]


@torch.no_grad()
def tiny():
    pictures = [[32, 32, 1], [32, 32, 2]]
    pixels = input_of(pictures)
    sizes = {"patch": 8, "width": 24, "depth": 2, "size": 32, "ratio": (0.5, 3.0)}
    config = {"patch": 8, "width": 24, "depth": 2, "size": 32, "tokens": 12, "hidden": 72, "classes": 5}
    case = {"variant": "b16", "config": config, "pictures": pictures}
    cases = []

    model = timm_of(**sizes, classes=5).double().eval()
    state = fill_module(model)
    out = model(pixels)
    probs = out.softmax(1)
    outputs = {"out": out, "results.1.probs": probs[1], "results.0.labels": probs[0].argsort(descending=True)}
    outputs |= {"results.0.scores": probs[0].sort(descending=True)[0]}
    outputs["features.0"] = model.norm(model.forward_intermediates(pixels, 1)[1][0].permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
    cases.append({**case, "name": "timm", "format": "timm", "state": state, "outputs": outputs})

    headless = timm_of(**sizes, classes=0).double().eval()
    state = fill_module(headless)
    cases.append({**case, "name": "headless", "format": "timm", "config": config | {"classes": 0}, "state": state,
                  "outputs": {"out": headless(pixels)}})  # fmt: skip

    shapes = google_shapes(**sizes, classes=5)
    model = load_google(timm_of(**sizes, classes=5).double(), shapes, torch.float64)
    cases.append({**case, "name": "google", "format": "google", "state": shapes, "outputs": {"out": model(pixels)}})

    shapes = [[300, 400, 3]]
    image = Image.fromarray(picture(300, 400, 3))
    rule = create_transform((3, 224, 224), interpolation="bicubic", mean=HALF, std=HALF, crop_pct=0.875)
    cases.append({"name": "preparation", "format": "timm", "variant": "b16", "state": {}, "pictures": shapes,
                  "outputs": {"prepared": rule(image)[None].double()}, "tolerance": {"prepared": 0.02},
                  "why": "resampling works on uint8: one grey level"})  # fmt: skip
    return cases


def shapes_of(build):
    with torch.device("meta"):
        return {key: tuple(tensor.shape) for key, tensor in build().state_dict().items()}


def manifests():
    large = {f"{v}_in21k": partial(timm_of, *SIZES[v], classes=21843) for v in ("b16", "l16")}
    return {
        "timm": {v: shapes_of(partial(timm_of, *SIZES[v])) for v in SIZES} | {v: shapes_of(build) for v, build in large.items()},
        "google": {v: google_shapes(*SIZES[v]) for v in SIZES}
        | {f"{v}_in21k": google_shapes(*SIZES[v], classes=21843) for v in ("b16", "l16")},
    }


def parameters():
    """The authors' counts; the other variants are the reference's own."""
    own = {v: sum(torch.Size(shape).numel() for shape in shapes_of(partial(timm_of, *SIZES[v])).values()) for v in SIZES}
    return own | PUBLISHED


@torch.no_grad()
def full():
    pictures = [[224, 224, 1]]
    pixels = input_of(pictures, torch.float32)
    case = {"variant": "b16", "pictures": pictures}
    model = timm.create_model("mixer_b16_224").eval()
    state = fill_module(model)
    yield {**case, "name": "timm", "format": "timm", "state": state, "outputs": {"out": model(pixels)}}
    shapes = google_shapes(*SIZES["b16"])
    model = load_google(timm_of(*SIZES["b16"]), shapes, torch.float32)
    yield {**case, "name": "google", "format": "google", "state": shapes, "outputs": {"out": model(pixels)}}

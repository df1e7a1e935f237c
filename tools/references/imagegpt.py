"""Image GPT of transformers: logits of the next colour, and the averaged hidden state of a middle layer."""

import hugging_face
import numpy as np
import torch
import transformers
from transformers import ImageGPTConfig, ImageGPTForCausalImageModeling
from transformers.models.imagegpt.image_processing_imagegpt import color_quantize_torch
from transformers.models.imagegpt.image_processing_pil_imagegpt import ImageGPTImageProcessorPil

from opticus.parity.case import network_input
from opticus.parity.fill import picture
from opticus.structures import Prepare

PAPER = "imagegpt"
SIZES = {"s": (512, 24, 8), "m": (1024, 36, 8), "l": (1536, 48, 16)}  # n_embd, n_layer, n_head: README of openai/image-gpt
PALETTE = [
    [-0.9, -0.8, -0.7],
    [-0.4, -0.5, 0.1],
    [0.0, 0.1, 0.2],
    [0.3, -0.2, -0.6],
    [0.8, 0.7, 0.9],
    [0.5, 0.6, -0.1],
    [-0.1, 0.4, 0.7],
]


def reference():
    return {
        "repository": "huggingface/transformers",
        "version": transformers.__version__,
        "license": "Apache-2.0",
        "kind": "package",
    }


def config_of(size, width, depth, heads, colours):
    return ImageGPTConfig(
        vocab_size=colours + 1, n_positions=size**2, n_embd=width, n_layer=depth, n_head=heads,
        attn_pdrop=0.0, resid_pdrop=0.0, embd_pdrop=0.0,
    )  # fmt: skip


def case(name, variant, size, width, depth, heads, palette, channels, changes, dtype=torch.float64):
    pictures = [[size, size, 1], [size, size, 2]]
    rule = Prepare(channels=channels, mean=(0.5,) * channels, std=(0.5,) * channels)
    pixels = network_input(pictures, rule, dtype)[0]
    colours = torch.tensor(palette, dtype=dtype)
    levels = color_quantize_torch(pixels.permute(0, 2, 3, 1).reshape(-1, channels), colours).reshape(2, -1)
    model, state = hugging_face.filled(ImageGPTForCausalImageModeling, config_of(size, width, depth, heads, len(palette)), dtype)
    start = torch.full((2, 1), len(palette))
    with torch.no_grad():
        out = model(torch.cat([start, levels[:, :-1]], 1), use_cache=False)
    return {
        "name": name, "format": "huggingface", "variant": variant, "config": changes, "state": state, "pictures": pictures,
        "outputs": {"out": out.logits},
    }  # fmt: skip


def grey(colours):
    return torch.linspace(-1, 1, colours, dtype=torch.float64)[:, None].tolist()


def tiny():
    small = {"size": 5, "width": 24, "depth": 3, "heads": 3, "colours": 7, "probe": 2}
    rgb = case("colour", "tiny", 5, 24, 3, 3, PALETTE, 3, {**small, "channels": 3, "palette": PALETTE})
    one = {"size": 6, "width": 16, "depth": 2, "heads": 2, "colours": 9, "probe": 2}
    return [rgb, case("grey", "tiny", 6, 16, 2, 2, grey(9), 1, one), prepared()]


def prepared():
    """The processor's own pixels, before it looks for the nearest colours."""
    pictures = [[48, 64, 1], [30, 20, 2]]
    processor = ImageGPTImageProcessorPil(do_color_quantize=False, size={"height": 32, "width": 32})
    raw = [picture(*p) for p in pictures]
    pixels = np.stack([processor(images=[one], return_tensors="np")["pixel_values"][0] for one in raw])
    return {
        "name": "preparation", "format": "huggingface", "variant": "s", "state": {}, "pictures": pictures,
        "outputs": {"prepared": torch.from_numpy(pixels).double()},
        "tolerance": {"prepared": 0.02}, "why": "one grey level: both resample bytes",
    }  # fmt: skip


def manifests():
    build = ImageGPTForCausalImageModeling
    return {
        "huggingface": {
            variant: hugging_face.hub_shapes(lambda sizes=sizes: build(config_of(32, *sizes, 512)))
            for variant, sizes in SIZES.items()
        }
    }


def parameters():
    return {v: sum(torch.Size(shape).numel() for shape in keys.values()) for v, keys in manifests()["huggingface"].items()}


def full():
    steps = np.linspace(-1, 1, 8)
    cube = np.stack(np.meshgrid(steps, steps, steps), -1).reshape(-1, 3).tolist()
    yield case("s", "s", 32, 512, 24, 8, cube, 3, {"palette": cube}, torch.float32)

"""FF-only: a literal transcription of "Do You Even Need Attention?" (arXiv 2105.02723), one matrix product after another.

The author's repository (https://github.com/lukemelas/do-you-even-need-attention, commit 1f57ab0) states no licence, so its code is
neither run nor copied here; the names and shapes below are those of the files that it publishes.
"""

import torch
from torch import nn

from opticus.parity.case import network_input
from opticus.parity.fill import fill_state
from opticus.structures import Prepare

PAPER = "ffonly"
EPS = 1e-6
# patch, width, depth
SIZES = {"ti16": (16, 192, 12), "b16": (16, 768, 12), "l32": (32, 1024, 24)}


def reference():
    return {
        "repository": "arXiv 2105.02723, section 2; names of the files of https://github.com/lukemelas/do-you-even-need-attention",
        "commit": "1f57ab0",
        "license": "none stated",
        "kind": "transcription",
    }


def shapes_of(patch, width, depth, size=224, mlp=4, side=14, classes=1000):
    """The keys and shapes of a published file."""
    tokens = 1 + (size // patch) ** 2
    shapes = {"cls_token": (1, 1, width), "patch_embed.proj.weight": (width, 3, patch, patch), "patch_embed.proj.bias": (width,)}
    shapes |= {"pos_encoding.pos_embed": (1, width, side, side), "pos_encoding.cls_pos_embed": (1, 1, width)}
    for i in range(depth):
        for mlp_name, norm, n in (("mlp1", "norm1", width), ("mlp2", "norm2", tokens)):
            block, hidden = f"blocks.{i}.", int(mlp * n)
            shapes |= {f"{block}{norm}.weight": (n,), f"{block}{norm}.bias": (n,)}
            shapes |= {f"{block}{mlp_name}.fc1.weight": (hidden, n), f"{block}{mlp_name}.fc1.bias": (hidden,)}
            shapes |= {f"{block}{mlp_name}.fc2.weight": (n, hidden), f"{block}{mlp_name}.fc2.bias": (n,)}
    shapes |= {"norm.weight": (width,), "norm.bias": (width,)}
    return shapes | ({"head.weight": (classes, width), "head.bias": (classes,)} if classes else {})


def normalised(x, state, name):
    """Layer norm along the last axis."""
    mean = x.mean(-1, keepdim=True)
    variance = ((x - mean) ** 2).mean(-1, keepdim=True)
    return (x - mean) / (variance + EPS).sqrt() * state[f"{name}.weight"] + state[f"{name}.bias"]


def feed_forward(x, state, name):
    """A linear layer that widens, the GELU x Phi(x), a linear layer that narrows."""
    x = x @ state[f"{name}.fc1.weight"].T + state[f"{name}.fc1.bias"]
    x = x * 0.5 * (1 + torch.erf(x / 2**0.5))
    return x @ state[f"{name}.fc2.weight"].T + state[f"{name}.fc2.bias"]


def embedded(pixels, state, patch):
    """Every patch as one vector, flattened channel by channel, times the projection; row by row."""
    weight = state["patch_embed.proj.weight"].flatten(1)
    rows, columns = pixels.shape[2] // patch, pixels.shape[3] // patch
    tokens = [
        pixels[:, :, y * patch : (y + 1) * patch, x * patch : (x + 1) * patch].flatten(1) @ weight.T
        for y in range(rows)
        for x in range(columns)
    ]
    return torch.stack(tokens, 1) + state["patch_embed.proj.bias"]


def positions(state, grid):
    """The grid of embeddings, bilinearly resampled where the patches have another grid (pixel centres at half integers)."""
    places = state["pos_encoding.pos_embed"]
    if places.shape[2] != grid:
        places = nn.Upsample(size=(grid, grid), mode="bilinear", align_corners=False)(places)
    return torch.cat([state["pos_encoding.cls_pos_embed"], places.flatten(2).transpose(1, 2)], 1)


def run(pixels, state, patch, depth):
    """The normalised tokens, class token first."""
    x = embedded(pixels, state, patch)
    x = torch.cat([state["cls_token"].repeat(len(x), 1, 1), x], 1) + positions(state, pixels.shape[2] // patch)
    for i in range(depth):
        x = x + feed_forward(normalised(x, state, f"blocks.{i}.norm1"), state, f"blocks.{i}.mlp1")
        x = x.transpose(1, 2)
        x = x + feed_forward(normalised(x, state, f"blocks.{i}.norm2"), state, f"blocks.{i}.mlp2")
        x = x.transpose(1, 2)
    return normalised(x, state, "norm")


def tiny():
    pictures = [[32, 32, 1], [32, 32, 2]]
    pixels = network_input(pictures, Prepare())[0]
    cases = []
    for name, side, classes in (("the grid of the patches", 4, 5), ("a finer grid of positions", 7, 5), ("headless", 4, 0)):
        shapes = shapes_of(8, 24, 2, size=32, mlp=3, side=side, classes=classes)
        state = fill_state(shapes)
        tokens = run(pixels, state, 8, 2)
        out = tokens[:, 0] @ state["head.weight"].T + state["head.bias"] if classes else tokens[:, 0]
        outputs = {"out": out, "features.0": tokens[:, 1:].transpose(1, 2).reshape(2, 24, 4, 4)}
        if classes:
            outputs["results.1.probs"] = out.softmax(1)[1]
        config = {"size": 32, "patch": 8, "width": 24, "depth": 2, "mlp": 3.0, "positions": side, "classes": classes}
        cases.append({"name": name, "format": "lukemelas", "variant": "b16", "config": config, "pictures": pictures,
                      "state": shapes, "outputs": outputs})  # fmt: skip
    return cases


def manifests():
    return {"lukemelas": {variant: shapes_of(*sizes) for variant, sizes in SIZES.items()}}


def parameters():
    return {v: sum(torch.Size(shape).numel() for shape in shapes_of(*sizes).values()) for v, sizes in SIZES.items()}


def full():
    pictures = [[224, 224, 1]]
    pixels = network_input(pictures, Prepare(), torch.float32)[0]
    for variant, (patch, width, depth) in list(SIZES.items())[::2]:
        shapes = shapes_of(patch, width, depth)
        state = fill_state(shapes, torch.float32)
        out = run(pixels, state, patch, depth)[:, 0] @ state["head.weight"].T + state["head.bias"]
        yield {
            "name": variant,
            "format": "lukemelas",
            "variant": variant,
            "pictures": pictures,
            "state": shapes,
            "outputs": {"out": out},
        }

"""MAE of transformers (Apache-2.0) under the authors' names and those of the hub files, as its former conversion script relates them.

`save_pretrained` of transformers 5 gives the decoder other names than the hub files have, so these are written out here.
"""

import re

import torchvision_shim  # noqa: F401  (before anything that imports torchvision)

# isort: split
import torch
import transformers
from transformers import ViTMAEConfig, ViTMAEForPreTraining
from transformers.models.vit_mae.modeling_vit_mae import build_2d_sinusoidal_position_embedding

from opticus.parity.case import network_input
from opticus.parity.fill import fill_state
from opticus.structures import Prepare

PAPER = "mae"
EXTENDS = "vit"
SIZES = {"b16": (16, 768, 12, 12), "l16": (16, 1024, 24, 16), "h14": (14, 1280, 32, 16)}
# in memory -> hub file (query, key and value apart); "encoder" names are those of both sides' layers
HUB = (
    (r"vit\.layers\.", "vit.encoder.layer."),
    (r"attention\.([qkv])_proj", lambda m: "attention.attention." + {"q": "query", "k": "key", "v": "value"}[m[1]]),
    (r"attention\.o_proj", "attention.output.dense"),
    (r"mlp\.fc1", "intermediate.dense"),
    (r"mlp\.fc2", "output.dense"),
)
AUTHORS = (
    (r"vit\.embeddings\.cls_token", "cls_token"),
    (r"vit\.embeddings\.position_embeddings", "pos_embed"),
    (r"vit\.embeddings\.patch_embeddings\.projection", "patch_embed.proj"),
    (r"vit\.encoder\.layer\.", "blocks."),
    (r"decoder\.decoder_layers\.", "decoder_blocks."),
    (r"attention\.attention\.(query|key|value)", r"attn.\1"),
    (r"attention\.output\.dense", "attn.proj"),
    (r"layernorm_before", "norm1"),
    (r"layernorm_after", "norm2"),
    (r"intermediate\.dense", "mlp.fc1"),
    (r"output\.dense", "mlp.fc2"),
    (r"vit\.layernorm", "norm"),
    (r"decoder\.(mask_token|decoder_)", r"\1"),
)


def reference():
    return {
        "repository": "https://github.com/huggingface/transformers",
        "version": f"transformers {transformers.__version__}",
        "license": "Apache-2.0",
        "kind": "package",
    }


def renamed(key, table):
    for pattern, to in table:
        key = re.sub(pattern, to, key)
    return key


def config_of(size, patch, width, depth, heads, decoder=(512, 8, 16), mlp=4, **more):
    return ViTMAEConfig(
        image_size=size, patch_size=patch, hidden_size=width, num_hidden_layers=depth, num_attention_heads=heads,
        intermediate_size=mlp * width, decoder_hidden_size=decoder[0], decoder_num_hidden_layers=decoder[1],
        decoder_num_attention_heads=decoder[2], decoder_intermediate_size=4 * decoder[0], layer_norm_eps=1e-6, **more,
    )  # fmt: skip


def build(config):
    return ViTMAEForPreTraining(config)


def hub_shapes(config):
    with torch.device("meta"):
        return {renamed(key, HUB): tuple(tensor.shape) for key, tensor in build(config).state_dict().items()}


def authors_shapes(config):
    """The same with query, key and value in one tensor."""
    shapes = {}
    for key, shape in hub_shapes(config).items():
        name = renamed(key, AUTHORS)
        joined = re.sub(r"attn\.(query|key|value)", "attn.qkv", name)
        shapes[joined] = shape if joined == name else (3 * shape[0], *shape[1:])
    return shapes


def model_of(config, form, dtype=torch.float64):
    """A model with formula-made weights under the names of a format, and their shapes."""
    shapes = authors_shapes(config) if form == "mae" else hub_shapes(config)
    state, model, own = fill_state(shapes, dtype), build(config).to(dtype).eval(), {}
    for key in model.state_dict():
        hub = renamed(key, HUB)
        if form == "huggingface":
            own[key] = state[hub]
            continue
        name = renamed(hub, AUTHORS)
        part = re.search(r"attn\.(query|key|value)", name)
        if part is None:
            own[key] = state[name]
        else:
            whole = state[name.replace(part[0], "attn.qkv")]
            own[key] = whole.chunk(3)[("query", "key", "value").index(part[1])]
    model.load_state_dict(own)
    return model, shapes


def masked(count, patches, visible):
    """Masks in which every picture hides other patches, in an order that no grid has."""
    rows = [[(7 * i + 5 * j + (i * j) % 3) % patches for j in range(patches)] for i in range(count)]
    ranks = torch.tensor(rows, dtype=torch.float64) + torch.arange(patches) / (2 * patches)
    return (ranks.argsort(1).argsort(1) >= visible).double(), ranks


@torch.no_grad()
def case(name, form, config, changes, pictures, normalise=False, variant="tiny", dtype=torch.float64):
    patches = (pictures[0][0] // config.patch_size) * (pictures[0][1] // config.patch_size)
    model, state = model_of(config, form, dtype)
    pixels = network_input(pictures, Prepare(), dtype)[0]
    hidden, noise = masked(len(pictures), patches, int(patches * (1 - config.mask_ratio)))
    out = model(pixels, noise=noise.to(dtype))
    assert torch.equal(out.mask.bool(), hidden.bool())
    seen = model.vit(pixels, noise=noise.to(dtype)).last_hidden_state
    pooled = seen[:, 1:].mean(1) if changes.get("pool") == "mean" else seen[:, 0]
    return {
        "name": name, "format": form, "variant": variant, "config": changes, "state": state, "pictures": pictures,
        "prepare": {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]},
        "inputs": {"mask": hidden.tolist()},
        "outputs": {"out.prediction": out.logits, "out.embedding": pooled, "results.1.vector": pooled[1 % len(pooled)]},
    }  # fmt: skip


@torch.no_grad()
def whole(config, changes, pictures):
    """All patches visible: what `embed` gives."""
    model, state = model_of(config, "mae")
    model.config.mask_ratio = 0.0
    seen = model.vit(network_input(pictures, Prepare())[0]).last_hidden_state[:, 0]
    return {
        "name": "embedding", "format": "mae", "variant": "tiny", "config": changes, "state": state, "pictures": pictures,
        "outputs": {"out.embedding": seen},
    }  # fmt: skip


def tiny():
    pictures = [[24, 24, 1], [24, 24, 2]]
    part = {"part": "vit/tiny", "changes": {"classes": 0, "size": 24, "patch": 4, "width": 24, "depth": 2, "heads": 2, "mlp": 4.0}}
    changes = {"backbone": part, "width": 16, "depth": 2, "heads": 4, "normalise": False}
    config = config_of(24, 4, 24, 2, 2, (16, 2, 4))
    return [
        case("authors", "mae", config, changes, pictures),
        case("hub, mean", "huggingface", config, {**changes, "pool": "mean"}, pictures),
        whole(config, changes, pictures),
    ]


def loss(normalise):
    """The reference's loss of the case "authors", for the test of the objective."""
    config = config_of(24, 4, 24, 2, 2, (16, 2, 4), norm_pix_loss=normalise)
    noise = masked(2, 36, 9)[1]
    with torch.no_grad():
        return float(model_of(config, "mae")[0](network_input([[24, 24, 1], [24, 24, 2]], Prepare())[0], noise=noise).loss)


def positions(width, side):
    """The reference's fixed positions in the order of the published files, for the test of `grid_positions`."""
    table = build_2d_sinusoidal_position_embedding(side, side, width, dtype=torch.float64)
    return torch.cat([table[:, width // 2 :], table[:, : width // 2]], 1)


def manifests():
    configs = {variant: config_of(224, *size) for variant, size in SIZES.items()}
    return {
        "mae": {variant: authors_shapes(config) for variant, config in configs.items()},
        "huggingface": {variant: hub_shapes(config) for variant, config in configs.items()},
    }


def parameters():
    return {v: sum(torch.Size(shape).numel() for shape in keys.values()) for v, keys in manifests()["mae"].items()}


def full():
    for form in ("mae", "huggingface"):
        config = config_of(224, *SIZES["b16"])
        found = case(form, form, config, {}, [[224, 224, 1]], variant="b16", dtype=torch.float32)
        found["outputs"].pop("results.1.vector", None)
        yield found

"""What transformers look at: attention of the class token per head, and attention rolled out over all layers.

Caron et al., ICCV 2021, arXiv 2104.14294 (figures 1 and 3: the class token's attention per head); Abnar and Zuidema, ACL 2020,
arXiv 2005.00928 (rollout). Weights are recomputed beside the network: the fused attention that it runs never forms them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple, cast

import numpy as np
import torch
from torch import Tensor, nn

from opticus.plot.colours import colour
from opticus.plot.panels import Panel, in_rows, layered, overlay, panels
from opticus.structures import CapabilityError, Images, Picture, UsageError
from opticus.transforms.prepare import prepare
from opticus.transforms.whole import short_side, whole
from opticus.verbs.explain_layers import grid_of, layer_named, title_of
from opticus.verbs.explain_request import (
    Answer,
    Request,
    Values,
    batch_of,
    enlarged,
    hooked,
    one_of,
    onto_picture,
    rounded,
    shown_size,
)

TOLERANCE = 1e-3  # largest relative difference between a module's output and the one recomputed from its weights


class Watched(NamedTuple):
    """One attention module of a forward pass: its weights (B, heads, N, N)."""

    name: str
    module: nn.Module
    weights: Tensor


def is_attention(module: nn.Module) -> bool:
    """Whether a module has `qkv` (one linear layer for query, key and value), `heads` and `proj`."""
    return isinstance(getattr(module, "qkv", None), nn.Linear) and isinstance(getattr(module, "heads", None), int)


def weights_of(module: nn.Module, x: Tensor) -> Tensor:
    """softmax(q k' / sqrt(D_h)) (B, heads, N, N) of an attention module at its input (B, N, D)."""
    return _attend(module, x)[0]


def _attend(module: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    """The weights and the module's output recomputed from them."""
    part = cast(Any, module)
    batch, tokens, _ = x.shape
    q, k, v = part.qkv(x).reshape(batch, tokens, 3, part.heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
    for name in ("q_norm", "k_norm"):
        norm = getattr(part, name, None)
        if isinstance(norm, nn.Module):
            q, k = (norm(q), k) if name == "q_norm" else (q, norm(k))
    scale = getattr(part, "scale", None)
    scale = scale if isinstance(scale, float) else q.shape[-1] ** -0.5
    weights = (q @ k.transpose(-2, -1) * scale).softmax(-1)
    return weights, part.proj((weights @ v).transpose(1, 2).reshape(batch, tokens, -1))


def attention_modules(network: nn.Module) -> dict[str, nn.Module]:
    """The attention modules by name; CapabilityError if there is none."""
    modules = {name: module for name, module in network.named_modules() if is_attention(module)}
    if not modules:
        raise CapabilityError(f"{title_of(network)} has no attention modules (with `qkv` and `heads`): it is no such transformer")
    return modules


def attention_layer(network: nn.Module, layer: str | None) -> str:
    """The attention module that is named, else the last one; CapabilityError for another layer."""
    modules = attention_modules(network)
    if layer is None:
        return next(reversed(modules))
    layer_named(network, layer)
    if layer not in modules:
        raise CapabilityError(f"{title_of(network)}: layer {layer!r} is no attention; those are {', '.join(modules)}")
    return layer


def sized(network: Any, picture: Picture, size: int | None, *, own: bool = True) -> Images:
    """The network's input of a picture: by its own rule (`own`), or the whole picture with `size` pixels on its shorter side."""
    if size is None and own:
        return batch_of(network, [picture])
    rule = whole(network.prepare, picture.size, size or short_side(network.prepare), network.strides[-1])
    parameter = next(network.parameters())
    return prepare([picture], rule).to(parameter.device, torch.float64 if parameter.dtype == torch.float64 else None)


def patch_rows(network: nn.Module, images: Images, name: str, query: int | None = None) -> tuple[Tensor, tuple[int, int]]:
    """Attention weights (heads, patches) of the first picture's class token, or of patch `query`, in layer `name`; the patch grid."""
    found = attentions(network, images.pixels, name)[0]
    grid = _grid(network, images, found.weights)
    count = grid[0] * grid[1]
    row = 0 if query is None else found.weights.shape[-1] - count + query
    return found.weights[0, :, row, -count:], grid


def mass_masks(rows: Tensor, mass: float = 0.6) -> Tensor:
    """Masks (heads, patches) of the fewest patches that hold more than `mass` of each head's weight on patches.

    facebookresearch/dino, visualize_attention.py: a patch is left out while it and all smaller ones sum to at most 1 - `mass`.
    """
    if not 0 < mass < 1:
        raise UsageError(f"mass must lie between 0 and 1, found {mass}")
    values, order = rows.sort(dim=-1)
    held = (values / values.sum(-1, keepdim=True)).cumsum(-1) > 1 - mass
    return torch.zeros_like(held).scatter_(-1, order, held)


def attentions(network: nn.Module, pixels: Tensor, only: str | None = None) -> list[Watched]:
    """The weights of every attention module in one forward pass, in order; of the one named `only` (memory: N^2 each).

    Raises CapabilityError if there is none, or if weights recomputed from `qkv` and `heads` do not reproduce a module's output
    (a bias, a mask or windows of which they know nothing).
    """
    found: list[Watched] = []

    def watch(name: str) -> Any:
        def keep(module: nn.Module, args: tuple[Any, ...], out: Any) -> None:
            weights, again = _attend(module, args[0]) if args[0].ndim == 3 else (args[0], torch.inf)
            if not isinstance(out, Tensor) or (out - again).abs().max() > TOLERANCE * out.abs().max().clamp(min=1e-6):
                raise CapabilityError(
                    f"{title_of(network)}: the attention of {name} is more than softmax(q k') v (a bias, a mask, windows), "
                    "its weights cannot be recomputed"
                )
            found.append(Watched(name, module, weights))

        return keep

    modules = attention_modules(network)
    if only is not None:
        modules = {only: modules[only]}
    with hooked(*(module.register_forward_hook(watch(name)) for name, module in modules.items())), torch.no_grad():
        network(pixels)
    return found


def rollout(layers: Sequence[Tensor], fusion: str = "mean") -> list[Tensor]:
    """Attention rollout after every layer: products (B, N, N) of 0.5 A + 0.5 I, rows summing to 1 (section 3, "Attention rollout").

    `layers` are weights (B, heads, N, N) from the first layer on; heads are fused by their "mean" (the paper), "max" or "min".
    """
    out: list[Tensor] = []
    for weights in layers:
        fused = weights.mean(1) if fusion == "mean" else weights.amax(1) if fusion == "max" else weights.amin(1)
        eye = torch.eye(fused.shape[-1], dtype=fused.dtype, device=fused.device)
        mixed = 0.5 * fused + 0.5 * eye
        mixed = mixed / mixed.sum(-1, keepdim=True)
        out.append(mixed if not out else mixed @ out[-1])
    return out


def attention(request: Request, *, layer: str | None = None, index: int = 0, size: int | None = None, mass: float = 0.6) -> Answer:
    """The class token's attention to every patch, head by head, of the last attention layer or the one that is named.

    `size`: the whole picture with so many pixels on its shorter side, instead of the network's own input; `mass`: the share of each
    head's weight that the panel of masks keeps.
    """
    network, item = request.model, request.items(1, index)[0]
    chosen = attention_layer(network, layer)
    images = sized(network, item.picture, size)
    rows, grid = patch_rows(network, images, chosen)
    kept = mass_masks(rows, mass)
    shown = shown_size(item.picture.size)
    maps = [onto_shown(row, grid, images, shown) for row in rows]
    masked = [one * _kept(mask, grid, images, shown) for one, mask in zip(maps, kept, strict=True)]
    tints = [colour(head) for head in range(len(maps))]
    photo = enlarged(item.picture, shown)
    parts = [Panel(photo, item.id + request.truth(item.id)), Panel(layered(photo, maps, tints), "all heads\neach in its colour")]
    parts.append(Panel(layered(photo, [one**0.5 for one in masked], tints), f"{100 * mass:.0f} % of each\nhead's weight"))
    parts.append(Panel(overlay(photo, _scaled(sum(maps))), "mean of the heads"))
    entropies = [float(-(row / row.sum() * (row / row.sum()).clamp(min=1e-12).log()).sum()) for row in rows]
    for head, one in enumerate(maps):
        share = float(rows[head].sum())
        parts.append(Panel(overlay(photo, one), f"head {head}\n{100 * share:.0f} % on patches", tints[head]))
    picture = panels(
        in_rows(parts),
        cell=260,
        title=f"{request.title}: what the class token attends to, {chosen}",
        legend=[(f"head {head}", tint) for head, tint in enumerate(tints)],
        bar=("0", "the head's largest weight"),
    )
    table = [
        {"head": head, "on patches": float(rows[head].sum()), "largest": float(rows[head].max()), "entropy (nat)": entropies[head]}
        for head in range(len(maps))
    ]
    return Answer(
        picture,
        f"Attention of the class token over {grid[0]}x{grid[1]} patches; each head is scaled to its own largest weight.",
        {
            "id": item.id,
            "layer": chosen,
            "grid": list(grid),
            "weights": rounded(rows.unflatten(1, grid)),
            "mass": mass,
            "kept": kept.sum(1).tolist(),
            "entropy": entropies,
        },
        ["Weights are softmax(q k' / sqrt(D)) of the class token, recomputed from qkv; they reproduce the layer's own output."],
        {"Heads": table},
    )


def rolled_out(request: Request, *, fusion: Literal["mean", "max", "min"] = "mean", index: int = 0) -> Answer:
    """Attention rollout: how much of every patch reaches the class token through all layers, residual connections included."""
    one_of("fusion of heads", fusion, ("mean", "max", "min"))
    network, item = request.model, request.items(1, index)[0]
    images = batch_of(network, [item.picture])
    found = attentions(network, images.pixels)
    sizes = {tuple(one.weights.shape[-2:]) for one in found}
    if len(sizes) > 1:
        raise CapabilityError(f"{title_of(network)}: rollout needs the same tokens in all layers, found {len(sizes)} sizes")
    grid = _grid(network, images, found[-1].weights)
    steps = rollout([one.weights for one in found], fusion)
    rows = [step[0, 0, -grid[0] * grid[1] :] for step in steps]
    last = found[-1].weights[0].mean(0)[0, -grid[0] * grid[1] :]
    size = shown_size(item.picture.size)
    photo = enlarged(item.picture, size)
    parts = [
        Panel(photo, item.id + request.truth(item.id)),
        Panel(
            overlay(photo, onto_shown(rows[-1], grid, images, size, least=True)),
            f"rollout of {len(found)} layers",
            (230, 159, 0),
        ),
        Panel(overlay(photo, onto_shown(last, grid, images, size, least=True)), "raw attention\nof the last layer"),
    ]
    every = max(1, -(-len(rows) // 12))
    parts += [
        Panel(overlay(photo, onto_shown(row, grid, images, size, least=True)), f"up to layer {i + 1}")
        for i, row in enumerate(rows[:-1])
        if (i + 1) % every == 0
    ]
    picture = panels(
        in_rows(parts),
        cell=260,
        title=f"{request.title}: attention rollout to the class token, heads fused by their {fusion}",
        bar=("least", "most of the picture"),
    )
    return Answer(
        picture,
        "Rollout multiplies 0.5 A + 0.5 I over the layers; each map runs from its smallest to its largest value.",
        {"id": item.id, "fusion": fusion, "grid": list(grid), "layers": [one.name for one in found],
         "rollout": [rounded(row.unflatten(0, grid)) for row in rows]},
        ["Abnar and Zuidema 2020: the class token's row of the product over layers of 0.5 A + 0.5 I, rows normalised to 1."],
    )  # fmt: skip


def _grid(network: nn.Module, images: Images, weights: Tensor) -> tuple[int, int]:
    """The patch grid; CapabilityError for networks without a class token in front of the patches."""
    grid = grid_of(network, images.pixels)
    if grid is None or weights.shape[-1] <= grid[0] * grid[1]:
        raise CapabilityError(f"{title_of(network)} has no class token before its patches, whose attention could be shown")
    return grid


def onto_shown(row: Tensor, grid: tuple[int, int], images: Images, size: tuple[int, int], *, least: bool = False) -> Values:
    """Weights (patches,) as a map over the original picture, from 0 (`least`: from the smallest) to the largest."""
    stride = -(-images.pixels.shape[2] // grid[0]), -(-images.pixels.shape[3] // grid[1])
    heat = row.float().unflatten(0, grid)
    low = heat.min() if least else heat.new_zeros(())
    heat = (heat - low) / (heat.max() - low).clamp(min=1e-12)
    return onto_picture(heat, images, 0, (stride[0] * grid[0], stride[1] * grid[1]), size)


def _kept(mask: Tensor, grid: tuple[int, int], images: Images, size: tuple[int, int]) -> Values:
    """A mask of patches (patches,) over the original picture, with the patches' own edges; 0 where the network saw nothing."""
    fine = mask.float().unflatten(0, grid).repeat_interleave(8, 0).repeat_interleave(8, 1)
    stride = -(-images.pixels.shape[2] // grid[0]), -(-images.pixels.shape[3] // grid[1])
    return np.nan_to_num(onto_picture(fine, images, 0, (stride[0] * grid[0], stride[1] * grid[1]), size) > 0.5).astype(np.float64)


def _scaled(values: Any) -> Values:
    return values / max(float(values[values == values].max()), 1e-12)

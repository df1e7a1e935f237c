"""What the queries of a set detector do: where each one answers, what it looks at, and what places of the picture look at.

Carion et al., ECCV 2020, arXiv 2005.12872: figure 7 (slots), figure 6 (decoder attention), figure 3 (encoder attention). Weights are
recomputed beside the network: the fused attention that it runs never forms them.
"""

from __future__ import annotations

from typing import Any, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from opticus.ops.boxes import cxcywh_to_xyxy, map_boxes
from opticus.plot.colours import colour
from opticus.plot.detection import KINDS, outlines, size_kinds, slot_scatter
from opticus.plot.panels import Panel, boxed, in_rows, overlay, panels
from opticus.structures import CapabilityError, Images
from opticus.verbs.explain_layers import layer_named, title_of
from opticus.verbs.explain_request import (
    Answer,
    Request,
    Values,
    at_least,
    batch_of,
    enlarged,
    hooked,
    onto_picture,
    rounded,
    shown_size,
)

TOLERANCE = 1e-3  # largest relative difference between a module's output and the one recomputed from its weights


class Watched(NamedTuple):
    """One attention of a forward pass: its name, weights (B, heads, Q, S), and whether queries and keys are the same tokens."""

    name: str
    weights: Tensor
    own: bool


def is_attention(module: nn.Module) -> bool:
    """Whether a module has one packed projection of queries, keys and values, given apart, as DETR's has."""
    packed, heads = getattr(module, "in_proj_weight", None), getattr(module, "heads", None)
    return isinstance(packed, Tensor) and isinstance(heads, int) and isinstance(getattr(module, "out_proj", None), nn.Linear)


def attend(module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    """Weights (B, heads, Q, S) of such a module at its inputs (B, N, D), and the output recomputed from them."""
    part = cast(Any, module)
    weights, biases = part.in_proj_weight.chunk(3), part.in_proj_bias.chunk(3)
    q, k, v = (
        F.linear(x, w, b).unflatten(-1, (part.heads, -1)).transpose(1, 2)
        for x, w, b in zip((query, key, value), weights, biases, strict=True)
    )
    scores = q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5
    if mask is not None:
        scores = scores.masked_fill(~mask, float("-inf"))
    shares = scores.softmax(-1)
    return shares, part.out_proj((shares @ v).transpose(1, 2).flatten(2))


def watch(network: Any, images: Images) -> tuple[Any, list[Watched]]:
    """The network's output for `images` and the weights of its attentions, in order.

    Raises CapabilityError if there is none, or if the recomputed weights do not reproduce a module's output.
    """
    found: list[Watched] = []

    def keeper(name: str) -> Any:
        def keep(module: nn.Module, args: tuple[Any, ...], out: Any) -> None:
            weights, again = attend(module, *args)
            if (out - again).abs().max() > TOLERANCE * out.abs().max().clamp(min=1e-6):
                raise CapabilityError(f"{title_of(network)}: the weights of {name} cannot be recomputed from its projections")
            found.append(Watched(name, weights, args[0].shape == args[1].shape and args[0] is args[1]))

        return keep

    modules = {name: module for name, module in network.named_modules() if is_attention(module)}
    if not modules:
        raise CapabilityError(
            f"{title_of(network)} has no queries: expected attention with a packed in_proj_weight and `heads`, as DETR has"
        )
    with hooked(*(module.register_forward_hook(keeper(name)) for name, module in modules.items())), torch.no_grad():
        out = network(images.pixels) if images.valid is None else network(images.pixels, images.valid)
    return out, found


def slots(request: Request, *, limit: int = 200, queries: int = 24) -> Answer:
    """Where each of the first `queries` queries puts its boxes on the first `limit` pictures, whatever their scores (figure 7)."""
    at_least("queries", queries, 1)
    network, samples = request.model, request.samples(limit)
    found: list[Tensor] = []
    scores: list[Tensor] = []
    for first in range(0, len(samples), 16):
        images = batch_of(network, [sample.picture for sample in samples[first : first + 16]])
        with torch.no_grad():
            out: Any = network(images.pixels) if images.valid is None else network(images.pixels, images.valid)
        boxes, logits = getattr(out, "boxes", None), getattr(out, "logits", None)
        if not isinstance(boxes, Tensor) or not isinstance(logits, Tensor) or boxes.shape[-1] != 4 or boxes.ndim != 3:
            raise CapabilityError(f"{title_of(network)} has no queries: expected an output with boxes (B, Q, 4), as DETR gives")
        found.append(boxes.cpu().double())
        scores.append(logits.softmax(-1)[..., :-1].amax(-1).cpu())
    boxes, score = torch.cat(found).transpose(0, 1)[:queries], torch.cat(scores).transpose(0, 1)[:queries]
    used = (score >= 0.5).double().mean(1)
    table: list[dict[str, Any]] = []
    for i, own in enumerate(boxes):
        kinds = size_kinds(own.numpy())
        shares = {name: float((kinds == k).mean()) for k, (name, _) in enumerate(KINDS)}
        spread = own[:, :2].std(0, correction=0)
        table.append(
            {
                "query": i,
                "answers with an object": float(used[i]),
                **shares,
                "spread x": float(spread[0]),
                "spread y": float(spread[1]),
            }
        )
    between = float(boxes[..., :2].mean(1).std(0, correction=0).mean())
    return Answer(
        slot_scatter(boxes.numpy(), [f"query {i}: {100 * float(u):.0f} % used" for i, u in enumerate(used)]),
        f"A dot per picture ({len(samples)}): the centre of the query's box, green small, orange wide, blue tall.",
        {"pictures": len(samples), "queries": table, "spread of the mean centres": between},
        ["Used: the share of pictures where the query answers with an object (best class at least 0.5)."],
        {"Queries": table},
    )


def decoder_attention(request: Request, *, index: int = 0, queries: int = 6, threshold: float = 0.5) -> Answer:
    """What each detected object's query looks at in the picture: the last decoder layer's weights, mean of the heads (figure 6)."""
    at_least("queries", queries, 1)
    network, item = request.model, request.items(1, index)[0]
    images = batch_of(network, [item.picture])
    out, found = watch(network, images)
    count = out.boxes.shape[1]
    chosen = [one for one in found if one.weights.shape[-2] == count and one.weights.shape[-1] != count]
    if not chosen:
        raise CapabilityError(f"{title_of(network)} has no attention from its queries to the picture")
    weights = chosen[-1].weights[0].mean(0)
    scores, labels = out.logits[0].float().softmax(-1)[:, :-1].max(-1)
    order = scores.argsort(descending=True)
    seen = [int(i) for i in order if scores[i] >= threshold][:queries] or [int(order[0])]
    size = shown_size(item.picture.size)
    photo, scale = enlarged(item.picture, size), size[0] / item.picture.size[0]
    parts = [Panel(photo, item.id + request.truth(item.id))]
    names = request.names
    grid, cover = _grid(network, images, weights.shape[-1])
    sides = torch.tensor([images.pixels.shape[-1], images.pixels.shape[-2]]).repeat(2)
    rows: list[dict[str, Any]] = []
    for number, query in enumerate(seen):
        box = map_boxes(cxcywh_to_xyxy(out.boxes[0, query].cpu().double()) * sides, images.to_input[0].cpu().double().inverse())
        label = int(labels[query])
        name = names[label] if label < len(names) else str(label)
        shown = overlay(photo, _scaled(onto_picture(weights[query].unflatten(0, grid), images, 0, cover, size)))
        parts.append(
            Panel(boxed(shown, (box * scale).tolist(), colour(number), 2), f"query {query}: {name} ({float(scores[query]):.2f})")
        )
        rows.append(
            {
                "query": query,
                "label": name,
                "score": float(scores[query]),
                "box": rounded(box),
                "inside": _inside(weights[query], grid, cover, out, query, sides),
            }
        )
    return Answer(
        panels(
            in_rows(parts, 4),
            cell=300,
            title=f"{request.title}: what each object's query looks at, {chosen[-1].name}",
            bar=("0", "the query's largest weight"),
        ),
        f"Attention over {grid[0]}x{grid[1]} places; each map is scaled to its own largest weight.",
        {"id": item.id, "layer": chosen[-1].name, "grid": list(grid), "objects": rows, "weights": rounded(weights[seen])},
        ["Inside: the share of the attention that falls into the query's own box."],
        {"Objects": rows},
    )


def encoder_attention(request: Request, *, index: int = 0, queries: int = 5, layer: str | None = None) -> Answer:
    """What places of the picture look at in the last encoder layer, or the one that is named: middles of the true objects where the
    data knows them, else of the detected ones (figure 3)."""
    at_least("queries", queries, 1)
    network, item = request.model, request.items(1, index)[0]
    images = batch_of(network, [item.picture])
    if layer is not None:
        layer_named(network, layer)
    out, found = watch(network, images)
    count = out.boxes.shape[1]
    own = [one for one in found if one.own and one.weights.shape[-1] != count] or [one for one in found if one.own][:1]
    chosen = own[-1] if layer is None else next((one for one in own if one.name == layer), None)
    if chosen is None:
        raise CapabilityError(
            f"{title_of(network)}: layer {layer!r} is no attention among the picture's places; those are {', '.join(w.name for w in own)}"
        )
    grid, cover = _grid(network, images, chosen.weights.shape[-1])
    weights = chosen.weights[0].mean(0)
    boxes = _objects(request, index, network, out, images)[:queries]
    size = shown_size(item.picture.size)
    photo, scale = enlarged(item.picture, size), size[0] / item.picture.size[0]
    fills = [colour(i) for i in range(len(boxes))]
    centres = (boxes[:, :2] + boxes[:, 2:]) / 2
    dots = torch.cat([centres * scale - 4, centres * scale + 4], 1)
    parts = [Panel(outlines(photo, dots, fills, 4), item.id + request.truth(item.id))]
    inner = map_boxes(torch.cat([centres, centres], 1), images.to_input[0].cpu().double())[:, :2]
    rows: list[dict[str, Any]] = []
    for number, point in enumerate(inner):
        row = min(max(int(point[1] * grid[0] / cover[0]), 0), grid[0] - 1)
        column = min(max(int(point[0] * grid[1] / cover[1]), 0), grid[1] - 1)
        heat = weights[row * grid[1] + column]
        shown = overlay(photo, _scaled(onto_picture(heat.unflatten(0, grid), images, 0, cover, size)))
        parts.append(
            Panel(
                outlines(shown, dots[number : number + 1], fills[number : number + 1], 4),
                f"from row {row}, column {column}",
                fills[number],
            )
        )
        rows.append({"row": row, "column": column, "largest": float(heat.max()), "own place": float(heat[row * grid[1] + column])})
    return Answer(
        panels(
            in_rows(parts, 3),
            cell=300,
            title=f"{request.title}: what places of the picture look at, {chosen.name}",
            bar=("0", "the place's largest weight"),
        ),
        f"Self-attention over {grid[0]}x{grid[1]} places, mean of the heads; each map is scaled to its own largest weight.",
        {
            "id": item.id,
            "layer": chosen.name,
            "grid": list(grid),
            "places": rows,
            "weights": rounded(torch.stack([weights[r["row"] * grid[1] + r["column"]] for r in rows])),
        },
        [],
        {"Places": rows},
    )


def _objects(request: Request, index: int, network: Any, out: Any, images: Images) -> Tensor:
    """(N, 4) xyxy in the picture's pixels, largest first: true boxes, else detected ones, at least one."""
    target = request.dataset()[index].target if request.data is not None and request.source is None else None
    boxes = getattr(target, "boxes", None)
    if boxes is None or not len(boxes):
        found = network.results(out, images)[0]
        boxes = found.boxes[found.scores.argsort(descending=True)][:5].cpu()
    boxes = boxes.double()
    return boxes[((boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])).argsort(descending=True)]


def _grid(network: Any, images: Images, places: int) -> tuple[tuple[int, int], tuple[float, float]]:
    """Rows and columns of the backbone's last map, and the height and width of the input that it covers."""
    height, width = int(images.pixels.shape[-2]), int(images.pixels.shape[-1])
    stride = int(network.backbone.strides[-1])
    grid = -(-height // stride), -(-width // stride)
    if grid[0] * grid[1] != places:
        raise CapabilityError(
            f"{title_of(network)}: {places} places are no map of {grid[0]}x{grid[1]} that could be shown on the picture"
        )
    return grid, (float(grid[0] * stride), float(grid[1] * stride))


def _inside(heat: Tensor, grid: tuple[int, int], cover: tuple[float, float], out: Any, query: int, sides: Tensor) -> float:
    """The share of a map's weight whose places lie in the query's box."""
    box = cxcywh_to_xyxy(out.boxes[0, query].cpu().double()) * sides
    y = (torch.arange(grid[0]) + 0.5) * cover[0] / grid[0]
    x = (torch.arange(grid[1]) + 0.5) * cover[1] / grid[1]
    within = ((y >= box[1]) & (y <= box[3]))[:, None] & ((x >= box[0]) & (x <= box[2]))[None]
    return float((heat.cpu().unflatten(0, grid) * within).sum() / heat.sum())


def _scaled(values: Values) -> Values:
    return values / max(float(values[values == values].max()), 1e-12)

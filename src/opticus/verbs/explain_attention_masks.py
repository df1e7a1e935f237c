"""What attention picks out: thresholded masks of the class token's heads, several models side by side, and the view from one point.

Caron et al., ICCV 2021, arXiv 2104.14294 (figure 4: masks that hold 60 % of the attention, supervised and self-supervised; figure 8 and
facebookresearch/dino: attention of reference points).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from opticus.data.segments import map_of
from opticus.metrics.masks import overlaps
from opticus.plot.colours import colour
from opticus.plot.masks import tinted
from opticus.plot.panels import Panel, in_rows, overlay, panels
from opticus.structures import Images, LabelMap, UsageError
from opticus.verbs.attention_masks import spread, with_maps
from opticus.verbs.explain_attention import attention_layer, mass_masks, onto_shown, patch_rows, sized
from opticus.verbs.explain_request import Answer, Request, Values, enlarged, rounded, shown_size
from opticus.verbs.predict import Item

HEADS = 12  # at most so many are shown
MASK, TRUTH = (230, 159, 0), (0, 158, 115)


def attention_mask(
    request: Request, *, size: int | None = None, mass: float = 0.6, layer: str | None = None, index: int = 0
) -> Answer:
    """Masks of the patches that hold `mass` of the class token's attention, a row per model, best heads first where the truth is known.

    The truth is that of `data` (a set with masks or maps), record `index`; a picture alone is shown without figures.
    """
    _ = request.model
    item, truth = _looked_at(request, index)
    shown = shown_size(item.picture.size)
    photo = enlarged(item.picture, shown)
    rows: list[list[Panel | None]] = []
    table: list[dict[str, Any]] = []
    numbers: list[dict[str, Any]] = []
    for network, title in zip(request.models, request.titles, strict=True):
        name = attention_layer(network, layer)
        weights, grid = patch_rows(network, sized(network, item.picture, size, own=False), name)
        kept = mass_masks(weights, mass)
        masks = spread(kept, grid, item.picture.size)
        scores = None if truth is None else overlaps(masks, truth.labels.numpy(), item.id, foreground=True)
        known = scores is not None and len(scores) > 0
        order = np.argsort(-scores[0]) if scores is not None and known else np.arange(len(masks))
        first: Panel = Panel(photo, item.id)
        if truth is not None:
            first = Panel(_drawn(photo, truth.labels.numpy() % 255 > 0, TRUTH), "annotated", TRUTH)
        row: list[Panel | None] = [first]
        for place, head in enumerate(order[:HEADS].tolist()):
            words = f"head {head}" + (f"\nJaccard {scores[0, head]:.3f}" if scores is not None and known else "")
            row.append(Panel(_drawn(photo, masks[head], MASK), words, MASK if known and place == 0 else None))
        rows.append(row)
        entry: dict[str, Any] = {"model": title, "layer": name, "heads": len(masks), "covered": float(masks.mean())}
        if scores is not None and known:
            entry |= {"best head": int(order[0]), "best": float(scores[0].max()), "mean of heads": float(scores[0].mean())}
        table.append(entry)
        numbers.append({**entry, "grid": list(grid), "kept": kept.int().unflatten(1, grid).tolist(),
                        "jaccard": rounded(scores[0]) if scores is not None and known else None})  # fmt: skip
    picture = panels(
        rows,
        cell=200,
        title=f"{100 * mass:.0f} % of the class token's attention{', best head first' if truth is not None else ''}",
        row_titles=[title.replace(" (", "\n(") for title in request.titles],
    )
    caption = f"The fewest patches that hold {100 * mass:.0f} % of each head's attention, as masks."
    notes = [
        "These masks were never trained to be masks (Caron et al. 2021, section 4.2.3); with an annotation the best head is chosen "
        "by it, so that its figure is an upper bound."
    ]
    return Answer(picture, caption, {"id": item.id, "mass": mass, "models": numbers}, notes, {"Masks": table})


def attention_point(
    request: Request, *, point: tuple[int, ...] | None = None, size: int | None = None, layer: str | None = None, index: int = 0
) -> Answer:
    """What the patch at `point` = (x, y), in pixels of the picture, attends to, head by head (its middle if no point is given)."""
    network, item = request.model, request.items(1, index)[0]
    height, width = item.picture.size
    at = (width // 2, height // 2) if point is None else point
    if len(at) != 2 or not (0 <= at[0] < width and 0 <= at[1] < height):
        raise UsageError(f"point must be x,y inside the {width}x{height} pixels of {item.id}, found {','.join(map(str, at))}")
    name = attention_layer(network, layer)
    images = sized(network, item.picture, size, own=False)
    place = _patch(images, at, network.strides[-1])
    columns = -(-images.pixels.shape[3] // network.strides[-1])
    rows, grid = patch_rows(network, images, name, place[0] * columns + place[1])
    shown = shown_size(item.picture.size)
    photo = enlarged(item.picture, shown)
    mark = (round((at[0] + 0.5) * shown[1] / width), round((at[1] + 0.5) * shown[0] / height))
    maps = [onto_shown(row, grid, images, shown) for row in (rows.mean(0), *rows)]
    parts = [Panel(_marked(photo, mark), f"{item.id}\npoint {at[0]},{at[1]}")]
    for number, one in enumerate(maps):
        words = "mean of the heads" if number == 0 else f"head {number - 1}"
        parts.append(Panel(_marked(overlay(photo, one), mark), words, None if number == 0 else colour(number - 1)))
    picture = panels(
        in_rows(parts),
        cell=260,
        title=f"{request.title}: what the patch at {at[0]},{at[1]} attends to, {name}",
        bar=("0", "largest weight of the panel"),
    )
    return Answer(
        picture,
        f"Attention of patch (row {place[0]}, column {place[1]}) of {grid[0]}x{grid[1]}; each panel is scaled to its own largest weight.",
        {"id": item.id, "point": list(at), "patch": list(place), "layer": name, "grid": list(grid), "weights": rounded(rows.unflatten(1, grid))},
        ["Weights are softmax(q k' / sqrt(D)) of the patch that holds the point, recomputed from qkv; the class token's share is left out."],
    )  # fmt: skip


def _looked_at(request: Request, index: int) -> tuple[Item, LabelMap | None]:
    """The picture, and its regions where a data set with masks or maps was named."""
    if request.source is not None or request.data is None:
        return request.items(1, index)[0], None
    data = with_maps(request.data, request.split)
    if not 0 <= index < len(data):
        raise UsageError(f"index must be in 0..{len(data) - 1} for this data, found {index}")
    sample = data[index]
    return Item(sample.id, sample.picture, lambda: sample.picture), map_of(sample.target, sample.id)


def _patch(images: Images, at: tuple[int, ...], stride: int) -> tuple[int, int]:
    """Row and column of the patch that holds a pixel of the original picture."""
    corner = torch.tensor([at[0] + 0.5, at[1] + 0.5, 1.0], dtype=torch.float64)
    x, y, _ = (images.to_input[0].double().cpu() @ corner).tolist()
    return int(y // stride), int(x // stride)


def _drawn(photo: Values, mask: Values, tint: tuple[int, int, int]) -> Any:
    """A mask (H, W) of the picture's own size over the enlarged one, which is shown in grey: colour means the mask."""
    height, width = photo.shape[:2]
    grey = np.repeat((0.75 * (photo @ np.array([0.299, 0.587, 0.114])) + 25)[..., None], 3, 2).astype(np.uint8)
    y = ((np.arange(height) + 0.5) * mask.shape[0] / height).astype(int)
    x = ((np.arange(width) + 0.5) * mask.shape[1] / width).astype(int)
    table = np.zeros((256, 3), np.uint8)
    table[1] = tint
    return tinted(grey, mask[y][:, x].astype(np.uint8), table, 0.6)


def _marked(picture: Any, at: tuple[int, int]) -> Any:
    """The picture with a ringed dot at (x, y)."""
    from PIL import Image as image_module
    from PIL import ImageDraw

    from opticus.plot.draw import to_pixels

    image = image_module.fromarray(to_pixels(picture))
    pen, radius = ImageDraw.Draw(image), max(4, round(min(image.size) * 0.02))
    for grow, fill in ((2, (6, 6, 8)), (0, (86, 180, 233))):
        r = radius + grow
        pen.ellipse((at[0] - r, at[1] - r, at[0] + r, at[1] + r), fill=fill)
    return image


__all__ = ["attention_mask", "attention_point"]

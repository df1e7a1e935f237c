"""What detectors do with boxes: anchors on a picture, where the proposal network sees objects, suppression, a gallery, focal loss."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from opticus.losses.focal import sigmoid_focal
from opticus.ops.boxes import map_boxes
from opticus.ops.iou import iou
from opticus.ops.nms import Suppression, watched
from opticus.plot.colours import Colour, colour
from opticus.plot.detection import focal_curves, outlines
from opticus.plot.draw import draw
from opticus.plot.panels import Panel, in_rows, overlay, panels
from opticus.structures import CapabilityError, Images, Instances, UsageError
from opticus.verbs.explain_layers import title_of
from opticus.verbs.explain_request import Answer, Request, at_least, batch_of, enlarged, onto_picture, rounded, shown_size
from opticus.verbs.predict import Item, contiguous, infer

TRUTH: Colour = (255, 255, 255)
GAMMAS = (0.0, 0.5, 1.0, 2.0, 5.0)  # of figure 1 of RetinaNet's paper


def anchors(request: Request, *, index: int = 0, threshold: float = 0.5) -> Answer:
    """The anchors of one place on every level, over the picture, and those that an object takes as its own from IoU `threshold` on."""
    _share("threshold", threshold)
    network, item = request.model, request.items(1, index)[0]
    images = batch_of(network, [item.picture])
    levels = [_original(level, images) for level in _anchors(network, images)]
    height, width = item.picture.size
    size = shown_size(item.picture.size)
    photo, scale = enlarged(item.picture, size), size[0] / height
    truth = _truth(request, index)
    parts = [Panel(_with(photo, truth.boxes, scale), f"{item.id}\nobjects: {len(truth)}")] if truth is not None else []
    table: list[dict[str, Any]] = []
    for number, level in enumerate(levels):
        here = _of_one_place(level, (width / 2, height / 2))
        shown = outlines(photo, here * scale, [colour(i) for i in range(len(here))])
        parts.append(Panel(shown, f"level {number + 1}: {len(level):,} anchors\n{len(here)} at each place"))
        sides = (here[:, 2] - here[:, 0]) * (here[:, 3] - here[:, 1])
        row = {"level": number + 1, "anchors": len(level), "at a place": len(here), "side (px)": float(sides.sqrt().mean())}
        table.append(row | ({"taken": int((_best(truth, level) >= threshold).sum())} if truth is not None else {}))
    every = torch.cat(levels)
    numbers: dict[str, Any] = {"id": item.id, "anchors": len(every), "levels": table}
    if truth is not None and len(truth):
        overlaps = iou(truth.boxes.to(every), every)
        taken = (overlaps.amax(0) >= threshold).nonzero()[:, 0]
        fills = [colour(int(overlaps[:, place].argmax())) for place in taken]
        caption = f"{len(taken)} anchors of {len(every):,}\nhave IoU >= {threshold:g} with an object"
        parts.append(Panel(_with(outlines(photo, every[taken] * scale, fills, cased=False), truth.boxes, scale), caption))
        numbers |= {"threshold": threshold, "taken": len(taken), "best IoU per object": rounded(overlaps.amax(1))}
    return Answer(
        panels(in_rows(parts, 4), cell=300, title=f"{request.title}: anchors"),
        f"{len(every):,} anchors on {len(levels)} levels; each panel shows those of the place nearest the middle.",
        numbers,
        ["An object whose best anchor stays below the threshold still gets that one in most detectors (rescue)."],
        {"Levels": table},
    )


def objectness(request: Request, *, index: int = 0, limit: int = 50) -> Answer:
    """Where the proposal network sees objects, level by level, and its `limit` best proposals."""
    at_least("limit", limit, 1)
    network, item = request.model, request.items(1, index)[0]
    images = batch_of(network, [item.picture])
    with torch.no_grad():
        out: Any = network(images.pixels) if images.valid is None else network(images.pixels, images.valid)
    if not (hasattr(out, "objectness") and hasattr(out, "proposals")):
        raise CapabilityError(f"{title_of(network)} has no proposal network: its output has no `objectness` and `proposals`")
    levels = _anchors(network, images)
    scores = out.objectness[0].float().sigmoid().split([len(level) for level in levels])
    size = shown_size(item.picture.size)
    photo, scale = enlarged(item.picture, size), size[0] / item.picture.size[0]
    truth = _truth(request, index)
    parts = [Panel(photo if truth is None else _with(photo, truth.boxes, scale), item.id)]
    cover = (float(images.pixels.shape[-2]), float(images.pixels.shape[-1]))
    table: list[dict[str, Any]] = []
    for number, (level, score) in enumerate(zip(levels, scores, strict=True)):
        rows, columns = (len(torch.unique((level[:, k] + level[:, k + 2]).round(decimals=3))) for k in (1, 0))
        heat = score.reshape(rows, columns, -1).amax(-1)
        shown = overlay(photo, onto_picture(heat, images, 0, cover, size))
        parts.append(Panel(shown, f"level {number + 1}: {rows} x {columns}\nhighest {float(heat.max()):.2f}"))
        table.append(
            {"level": number + 1, "rows": rows, "columns": columns, "highest": float(heat.max()), "mean": float(heat.mean())}
        )
    own = _original(out.proposals[out.pictures == 0], images)
    best = own[:limit]
    fills = [colour(i) for i in range(len(best))]
    drawn = outlines(photo, best * scale, fills, cased=False)
    parts.append(
        Panel(drawn if truth is None else _with(drawn, truth.boxes, scale), f"the {len(best)} best of {len(own)} proposals")
    )
    numbers: dict[str, Any] = {"id": item.id, "levels": table, "proposals": rounded(best)}
    notes = ["Objectness is the sigmoid of the best anchor of each place; white boxes are the true ones."]
    if truth is not None and len(truth):
        recall = {n: float((iou(truth.boxes.to(own), own[:n]).amax(1) >= 0.5).float().mean()) for n in (10, 50, 100) if len(own)}
        numbers["recall at IoU 0.5"] = recall
        notes.append(
            ", ".join(f"{100 * value:.0f} % of the objects among {n} proposals" for n, value in recall.items()) + " (IoU 0.5)."
        )
    return Answer(
        panels(in_rows(parts, 4), cell=300, title=f"{request.title}: where are objects?", bar=("0", "1")),
        "Probability of an object at every place of every level, before any class is known.",
        numbers,
        notes,
        {"Levels": table},
    )


def suppression(request: Request, *, index: int = 0, threshold: float = 0.3) -> Answer:
    """Boxes before and after non-maximum suppression, those that score at least `threshold`."""
    _share("threshold", threshold)
    network, item = request.model, request.items(1, index)[0]
    images = batch_of(network, [item.picture])
    with torch.no_grad():
        out: Any = network(images.pixels) if images.valid is None else network(images.pixels, images.valid)
        with watched() as calls:
            network.results(out, images)
    if not calls:
        raise CapabilityError(f"{title_of(network)} answers without suppression of boxes: there is nothing to compare")
    call = _joined(calls)
    boxes, kept = _original(call.boxes, images).float(), torch.zeros(len(call.boxes), dtype=torch.bool)
    kept[call.kept] = True
    shown = call.scores >= threshold
    names = request.names
    labels = torch.zeros(len(boxes), dtype=torch.long) if call.labels is None else call.labels.long()
    size = item.picture.size
    before = Instances(boxes[shown], labels[shown], size, call.scores[shown].float())
    after = Instances(boxes[shown & kept], labels[shown & kept], size, call.scores[shown & kept].float())
    truth = _truth(request, index)
    parts = [
        Panel(draw(item.picture, before, names), f"before: {len(before)} boxes"),
        Panel(draw(item.picture, after, names), f"after: {len(after)}"),
    ]
    if truth is not None:
        parts.insert(0, Panel(draw(item.picture, truth, names), f"truth: {len(truth)} objects"))
    return Answer(
        panels([parts], cell=420, title=f"{request.title}: suppression at IoU {call.threshold:g}, scores from {threshold:g} on"),
        f"The best box stays and removes those of its class that overlap it by more than IoU {call.threshold:g}; then the next best.",
        {"id": item.id, "iou": call.threshold, "score": threshold, "before": len(before), "after": len(after),
         "all before": len(boxes), "all after": int(kept.sum()), "boxes": rounded(before.boxes), "kept": kept[shown].tolist()},
        [f"Of all scores: {len(boxes):,} boxes before, {int(kept.sum()):,} after."],
    )  # fmt: skip


def gallery(request: Request, *, index: int = 0, limit: int = 5, threshold: float = 0.5) -> Answer:
    """What several detectors find on the same pictures, below the truth where it is known; boxes that score at least `threshold`."""
    _share("threshold", threshold)
    request.model  # noqa: B018 - raises without one
    items = request.items(limit, index)
    truths = [_truth(request, index + i) for i in range(len(items))] if request.data is not None and request.source is None else []
    names = tuple(request.dataset().names) if request.data is not None else ()
    rows: list[list[Panel | None]] = []
    titles: list[str] = []
    if truths:
        rows.append([Panel(draw(item.picture, truth, names), item.id) for item, truth in zip(items, truths, strict=True)])
        titles.append("truth")
    found: list[dict[str, Any]] = []
    for title, network in zip(request.titles, request.models, strict=True):
        row: list[Panel | None] = []
        for i, item in enumerate(items):
            result, own = _detected(network, item, threshold)
            right = _hits(result, truths[i]) if truths and truths[i] is not None else None
            words = f"{len(result)} boxes" + ("" if right is None else f", {right} right")
            row.append(Panel(draw(item.picture, result, own or names), words))
            found.append({"model": title, "id": item.id, "boxes": len(result)} | ({} if right is None else {"right": right}))
        rows.append(row)
        titles.append(title)
    return Answer(
        panels(rows, cell=250, title="Detections", row_titles=titles),
        f"Boxes that score at least {threshold:g}; right are those of the true class with IoU >= 0.5, each object counted once.",
        {"threshold": threshold, "found": found},
        [],
        {"Counts": found},
    )


def focal(request: Request, *, background: int = 1000) -> Answer:
    """The focal loss over the probability of the true class (RetinaNet's figure 1), and what easy background weighs in the sum.

    The sum is that of one object seen with probability 0.1 and `background` background places seen as such with 0.99.
    """
    at_least("background", background, 1)
    p = torch.linspace(0.005, 0.995, 199, dtype=torch.float64)
    curves: dict[str, Any] = {}
    shares: dict[str, float] = {}
    for gamma in GAMMAS:
        name = f"γ = {gamma:g}" + (" (cross-entropy)" if gamma == 0 else "")
        curves[name] = (p.numpy(), sigmoid_focal(p.logit(), torch.ones_like(p), alpha=-1.0, gamma=gamma).numpy())
        sides = p.new_tensor([0.1, 0.99]).logit() * p.new_tensor([1.0, -1.0])
        hard, easy = sigmoid_focal(sides, p.new_tensor([1.0, 0.0]), alpha=-1.0, gamma=gamma).tolist()
        shares[f"γ = {gamma:g}"] = background * easy / (background * easy + hard)
    return Answer(
        focal_curves(curves, shares),
        f"Right: {background:,} background places at probability 0.99 against one object at 0.1.",
        {
            "gammas": list(GAMMAS),
            "probability": rounded(p),
            "losses": {k: rounded(y) for k, (_, y) in curves.items()},
            "shares": shares,
        },
        ["-(1 - p)^γ log p: Lin et al. 2017, arXiv 1708.02002, eq. 4."],
    )


def _anchors(network: Any, images: Images) -> list[Tensor]:
    """Every level's anchors (N, 4), xyxy of the network's frame; CapabilityError for networks without."""
    if not callable(getattr(network, "anchors", None)):
        raise CapabilityError(f"{title_of(network)} has no anchors(): it places its boxes without")
    found: list[Tensor] = network.anchors(
        (int(images.pixels.shape[-2]), int(images.pixels.shape[-1])), torch.zeros((), dtype=torch.float64)
    )
    return found


def _original(boxes: Tensor, images: Images) -> Tensor:
    """Boxes of the network's frame in the picture's pixels, on the CPU in double precision."""
    return map_boxes(boxes.detach().cpu().double(), images.to_input[0].cpu().double().inverse())


def _of_one_place(level: Tensor, middle: tuple[float, float]) -> Tensor:
    """The anchors whose common centre is the nearest one to `middle`."""
    centres = (level[:, :2] + level[:, 2:]) / 2
    distance = (centres - centres.new_tensor(middle)).norm(dim=1)
    chosen = centres[distance.argmin()]
    return level[((centres - chosen).abs() < 1e-3 * (1 + chosen.abs())).all(1)]


def _best(truth: Instances, level: Tensor) -> Tensor:
    return iou(truth.boxes.to(level), level).amax(0) if len(truth) else torch.zeros(len(level))


def _joined(calls: Sequence[Suppression]) -> Suppression:
    """The suppressions of one picture (a call per level or class in some detectors) as one."""
    offsets = np.cumsum([0, *(len(call.boxes) for call in calls)])
    labels = (
        None
        if any(call.labels is None for call in calls)
        else torch.cat([call.labels for call in calls if call.labels is not None])
    )
    kept = torch.cat([call.kept + int(begin) for call, begin in zip(calls, offsets, strict=False)])
    boxes, scores = torch.cat([call.boxes for call in calls]), torch.cat([call.scores for call in calls])
    return Suppression(boxes.cpu(), scores.cpu(), None if labels is None else labels.cpu(), calls[0].threshold, kept.cpu())


def _truth(request: Request, index: int) -> Instances | None:
    """The true boxes of record `index` of the data, if the picture comes from there."""
    if request.data is None or request.source is not None:
        return None
    target = request.dataset()[index].target
    return replace(target, masks=None, keypoints=None) if isinstance(target, Instances) else None


def _with(photo: Any, boxes: Tensor, scale: float) -> Any:
    return outlines(photo, boxes.double() * scale, [TRUTH] * len(boxes), 1)


def _detected(network: Any, item: Item, threshold: float) -> tuple[Instances, tuple[str, ...]]:
    """The boxes of a picture with named labels, and the names."""
    found = infer(network, [item.picture])[0]
    if not isinstance(found, Instances) or found.scores is None:
        raise CapabilityError(f"{title_of(network)} finds no boxes: explain gallery needs detectors")
    card: Any = getattr(network, "card", None)
    kept: list[int] | None = None if card is None else card.kept()
    found = contiguous(found, kept)
    assert found.scores is not None
    names = () if kept is None or card is None else tuple(card.labels[k] for k in kept)
    return found[found.scores >= threshold], names


def _hits(found: Instances, truth: Instances | None) -> int:
    """How many objects are found: a box of their class with IoU >= 0.5."""
    if truth is None or not len(truth) or not len(found):
        return 0
    right = (iou(truth.boxes.to(found.boxes), found.boxes) >= 0.5) & (truth.labels[:, None] == found.labels[None])
    return int(right.any(1).sum())


def _share(name: str, value: float) -> None:
    if not 0 <= value <= 1:
        raise UsageError(f"{name} must be in 0..1, found {value:g}")
